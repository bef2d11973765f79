"""How a plane lies in parameter space: measured once, from the vectors of its members.

See `landform.geometry.surface` for the formulas.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from landform.errors import ConfigError
from landform.evaluation.points import PointsWork, PointsWorker
from landform.geometry.masks import measure
from landform.store.artifacts import Contents
from landform.store.plan import Job
from landform.weights.distance import gram, off_line
from landform.weights.points import Direction, MaskedDirection

__all__ = ["Mode", "Span", "SurfaceWork", "SurfaceWorker"]

Mode = Literal["plane", "random"]


@dataclass(frozen=True)
class Span:
    """A plane: its members, how they weigh at coefficients (g, h), and its measures."""

    mode: Mode
    order: tuple[int, ...]
    """numbers of the members that are (a, b1, b2), or (centre, d1, d2)"""
    r: float
    """x of the third model (0 for random directions)"""
    unit: float
    """|| u1 ||"""
    aspect: float
    """one unit of h in units of y: s for a plane, 1 for random directions"""
    record: Mapping[str, Any]
    """what is said of it in the provenance"""

    @property
    def models(self) -> tuple[tuple[float, float], ...]:
        """Coefficients (g, h) of the models, in the order of their numbers."""
        if self.mode == "random":
            return ((0.0, 0.0),)
        places = dict(zip(self.order, ((0.0, 0.0), (1.0, 0.0), (self.r, 1.0)), strict=True))
        return tuple(places[m] for m in sorted(places))

    def weights(self, g: float, h: float) -> list[float]:
        """Weights of members 0, 1, 2 at origin + g u1 + h u2; those of a plane sum to one."""
        first = g - h * self.r
        origin = 1.0 if self.mode == "random" else 1.0 - first - h
        mix = dict(zip(self.order, (origin, first, h), strict=True))
        return [mix[m] + 0.0 for m in sorted(mix)]  # no -0.0: it would be another key

    @classmethod
    def of_models(cls, record: Mapping[str, Any], names: Sequence[str]) -> Span:
        """From the inner products of a "span" job; `ConfigError` for models that span no plane."""
        (d11, _), (_, d22) = record["gram"]
        first, second = record["order"][1:]
        for i, j, square in ((0, 1, d11), (0, 2, d22), (1, 2, record["between"] ** 2)):
            if math.sqrt(square) <= record["noise"]:
                a, b = (names[(0, first, second)[m]] for m in (i, j))
                raise ConfigError(
                    f"{a} and {b} are the same model: they and a third one span no plane",
                    remedy="give three different models, or look around one (option around)",
                )
        unit, height = math.sqrt(d11), record["off_line"]
        if height <= max(record["noise"], 1e-6 * math.sqrt(d22)):
            raise ConfigError(
                f"{', '.join(names)} lie on one line: {names[second]} is {height:.2g} away from "
                "it, no more than rounding makes",
                remedy="give three models of which none is a mix of the others",
            )
        measures = {
            "r": record["r"],
            "s": height / unit,
            "swapped": tuple(record["order"]) != (0, 1, 2),
            "distances": [unit, math.sqrt(d22), record["between"]],
        }
        return cls("plane", tuple(record["order"]), record["r"], unit, height / unit, measures)

    @classmethod
    def of_directions(cls, record: Mapping[str, Any]) -> Span:
        """From the inner products of centre and directions."""
        centre, first, second = (math.sqrt(record["gram"][i][i]) for i in range(3))
        if not first * second > 0:
            raise ConfigError(
                "a random direction has length 0: the model has no matrix that is not 0",
                remedy="use normalise none",
            )
        cosine = record["gram"][1][2] / (first * second)
        measures = {
            "norm": centre,
            "lengths": [first, second],
            "cosine": cosine,
            "directions": record["directions"],
        }
        return cls("random", (0, 1, 2), 0.0, first, 1.0, measures)


@dataclass(frozen=True)
class SurfaceWork:
    """The factory of a worker for mixes and for the measures of a plane."""

    points: PointsWork

    def __call__(self) -> SurfaceWorker:
        """Open a worker."""
        return SurfaceWorker(self.points())

    def span_job(self, mode: Mode) -> Job:
        """The job of measuring how the first three members lie."""
        config = self.points.config
        spec: dict[str, Any] = {
            "members": [member.fingerprint for member in self.points.members],
            "mode": mode,
            "dtype": config.dtype,
            "kind": self.points.data[0].task.kind,
        }
        if mode == "random":
            spec["directions"] = 1  # what is measured of them; older records lack it
        return Job("span", spec, cost=0.0, label="measuring the plane")


class SurfaceWorker:
    """Runs "span" jobs, and hands mixes to a `PointsWorker`."""

    def __init__(self, points: PointsWorker) -> None:
        self.points = points

    def run(self, job: Job) -> Contents:
        """What the job asks for."""
        if job.kind != "span":
            return self.points.run(job)
        keys = job.spec["members"]
        vectors = self.points.points(keys)
        if job.spec["mode"] == "random":
            found = {"gram": gram(vectors).tolist(), "directions": self._directions(keys[1:])}
            return Contents(records={"span": found})
        return Contents(records={"span": _measure(vectors)})

    def _directions(self, keys: Sequence[str]) -> list[dict[str, Any]]:
        """What each direction perturbs."""
        members = [self.points.made[key] for key in keys]
        return [
            measure(member, self.points.space, self.points.point)
            for member in members
            if isinstance(member, Direction | MaskedDirection)
        ]


def _measure(vectors: Sequence[torch.Tensor]) -> dict[str, Any]:
    """Gram-Schmidt of three models (see the module), with the swap: plain numbers."""
    products = gram(vectors[1:], origin=vectors[0])
    (d11, d12), (_, d22) = products
    order = [0, 1, 2]
    if d11 > 0 and d12 >= d11:
        order, d11, products = [0, 2, 1], d22, products[::-1, ::-1]
    # Rounded, so that a computer that sums in another order finds the cells that are kept; the
    # axes are then orthogonal to nine digits.
    r = round(d12 / d11, 9) + 0.0 if d11 > 0 else 0.0
    a, b1, b2 = (vectors[m] for m in order)
    exact = max(torch.finfo(a.dtype).eps, torch.finfo(torch.float32).eps)
    return {
        "gram": products.tolist(),
        "order": order,
        "r": r,
        "off_line": off_line(a, b1, b2, r),
        "between": off_line(b1, b1, b2, 0.0),
        # Rounding to nearest errs by less than eps / 2 in every entry: below this nothing is known.
        "noise": exact * math.sqrt(float(gram([a])[0, 0])),
    }
