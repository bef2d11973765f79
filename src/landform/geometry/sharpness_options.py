"""Options of sharpness: which neighbourhood, and how it is climbed."""

from __future__ import annotations

import math
from typing import Literal, Self

from pydantic import Field, model_validator

from landform.evaluation.points import PointsConfig
from landform.geometry.ascent import Ascent, Optimizer
from landform.geometry.regions import (
    AVERAGES,
    DEFAULT_EPSILON,
    Basis,
    Method,
    RegionSpec,
    Scale,
)

__all__ = ["SharpnessConfig", "SharpnessOptions"]

COMPAT_EPSILON = 1e-5
COMPAT_BATCH = 128


class SharpnessOptions(PointsConfig):
    """What all methods of sharpness share."""

    scale: Scale = "own"
    """own: epsilon in the method's own unit. relative: epsilon is the root mean square length of a
    perturbation of full size (a corner, the sphere, a Gaussian draw) over ||w||, which makes
    methods comparable."""
    steps: int = Field(20, ge=1)
    """Steps of each climb; 1 gives the first-order step (that of SAM and ASAM in balls)."""
    restarts: int = Field(1, ge=1)
    """Climbs: the first from the checkpoint itself, the others from random points of its region
    (corners of a box)."""
    optimizer: Optimizer | None = None
    """sign, gradient (normalised), adam or sgd (plain); default: steepest ascent, which is sign in
    a box and gradient in a ball."""
    step_size: float = Field(1.0, gt=0, allow_inf_nan=False)
    """Length of the first step, in widths of the region; it shrinks linearly to nothing."""
    learning_rate: float = Field(8e-5, gt=0, allow_inf_nan=False)
    """Learning rate of the optimizer sgd."""
    batch_rows: int | None = Field(None, ge=1)
    """Rows that each gradient is computed on (default: all; iterates are always compared on
    all)."""
    draws: int = Field(16, ge=2)
    """Gaussian perturbations of the averages; each is taken in both directions, v and -v."""
    coordinates: int | None = Field(None, ge=1)
    """Move only this many random coordinates (default: all)."""
    subspace: int | None = Field(None, ge=1)
    """Move in a random subspace of this dimension: w + A z, with the region around A^+ w."""
    basis: Basis = "dense"
    """dense: orthonormalised Gaussian directions (parameters x dimension in memory). sparse:
    random blocks of coordinates with random signs, which take the memory of two checkpoints."""
    parameters: tuple[str, ...] = ("*",)
    """Move only tensors whose names match one of these patterns."""
    exclude: tuple[str, ...] = ()
    """Do not move tensors whose names match one of these, say '*embeddings*'."""
    eta: float = Field(0.0, ge=0, allow_inf_nan=False)
    """Added to |w| by the adaptive methods (Kwon et al. 2021 train with 0.01); invariance to
    rescaling is exact at 0."""
    climb_split: str | None = None
    """Climb on another split than is measured (default: the same rows, as Keskar et al. do)."""
    climb_rows: int | None = Field(None, ge=1)
    """Climb on the first CLIMB_ROWS rows of that split (default: as many as `rows`)."""
    compat: Literal["connectivity"] | None = None
    """'connectivity' repeats Juneja et al. 2023: box |w + 1|, epsilon 1e-5, one pass of plain SGD
    ascent (learning rate 8e-5, batches of 128 in order, dropout on), and its last point."""

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if self.coordinates is not None and self.subspace is not None:
            raise ValueError("coordinates and subspace exclude each other")
        if self.dtype in ("bfloat16", "float16"):
            raise ValueError(
                f"dtype {self.dtype} rounds a small perturbation of a weight away; use float32"
            )
        own = ["restarts", "optimizer", "steps", "step_size"]
        self.check_read(self.compat is None, own, "beside compat, which has a climb of its own")
        plain = self.compat is not None or self.optimizer == "sgd"
        self.check_read(plain, ["learning_rate"], "without optimizer sgd")
        self.check_read(self.subspace, ["basis"], "without subspace")
        return self


class SharpnessConfig(SharpnessOptions):
    """Options of `sharpness`."""

    method: Method = "box"
    """box: |v_i| <= epsilon (|w_i| + 1). sam: ||v||_2 <= epsilon. adaptive: ||v / |w| ||_2 <=
    epsilon. adaptive-box: |v_i| <= epsilon |w_i|. average, adaptive-average: the mean over Gaussian
    v of deviation epsilon, epsilon |w_i|."""
    epsilon: float | None = Field(None, gt=0, allow_inf_nan=False)
    """Radius of the region (default: 1e-3 for box, adaptive-box and average, 0.05 for sam, 0.5 for
    adaptive, 0.01 for adaptive-average)."""

    @model_validator(mode="after")
    def _method_agrees(self) -> Self:
        if self.subspace is not None and self.method.startswith("adaptive"):
            raise ValueError(
                f"method {self.method!r} scales single parameters, which a random subspace mixes; "
                "use coordinates, or another method"
            )
        if self.compat is not None and self.method != "box":
            raise ValueError(f"compat is a way to climb the box, not {self.method!r}")
        if self.epsilon is None and self.scale == "relative":
            raise ValueError("scale relative needs an epsilon, say 0.01: a hundredth of ||w||")
        return self

    @property
    def radius(self) -> float:
        """`epsilon`, or the method's default."""
        if self.epsilon is not None:
            return self.epsilon
        return COMPAT_EPSILON if self.compat else DEFAULT_EPSILON[self.method]

    @property
    def averages(self) -> bool:
        """Whether perturbations are drawn in place of climbing."""
        return self.method in AVERAGES

    def region(self) -> RegionSpec:
        """The region these options describe."""
        return RegionSpec(
            method=self.method,
            epsilon=self.radius,
            scale=self.scale,
            eta=self.eta,
            coordinates=self.coordinates,
            subspace=self.subspace,
            basis=self.basis,
            parameters=self.parameters,
            exclude=self.exclude,
            seed=self.seed,
            compat=self.compat is not None,
        )

    def ascent(self, examples: int) -> Ascent:
        """The climb these options describe, on so many examples."""
        if self.compat is None:
            return Ascent(
                self.steps,
                self.optimizer,
                self.step_size,
                self.learning_rate,
                self.batch_rows,
            )
        batch = min(self.batch_rows or COMPAT_BATCH, examples)
        return Ascent(
            steps=math.ceil(examples / batch),
            optimizer="sgd",
            learning_rate=self.learning_rate,
            batch_rows=batch,
            in_order=True,
            dropout=True,
            keep="last",
        )
