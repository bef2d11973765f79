"""Small Fisher diagonals for tests that do not care how one is computed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from landform.curvature.fisher import Fisher, FisherScores
from landform.weights.space import ParameterSpace

__all__ = ["make_fisher"]


def make_fisher(
    model: nn.Module | dict[str, Tensor],
    *,
    seed: int = 0,
    checkpoint: str = "runs/seed0",
    weights: str = "0" * 64,
    sublayers: dict[str, str] | None = None,
    examples: int = 12,
    **fields: Any,
) -> Fisher:
    """A Fisher of the shapes of `model` with positive random entries (or with the given diagonal).

    `sublayers`: tensor name -> dropout site, for the column of that name. `fields` replace those of
    the summary.
    """
    generator = torch.Generator().manual_seed(seed)
    if isinstance(model, nn.Module):
        space = ParameterSpace.of(model)
        diagonal = {
            name: torch.rand(shape, generator=generator, dtype=torch.float64).to(space.dtype) + 0.01
            for name, shape in zip(space.names, space.shapes, strict=True)
        }
    else:
        diagonal = dict(model)
        space = ParameterSpace(
            tuple(diagonal),
            tuple(tuple(value.shape) for value in diagonal.values()),
            next(iter(diagonal.values())).dtype,
        )
    layers = {
        region.name: layer for layer, regions in space.groups("layer").items() for region in regions
    }
    totals = np.array([float(value.double().sum()) for value in diagonal.values()])
    rng = np.random.default_rng(seed)
    samples = totals * rng.lognormal(0.0, 0.5, (examples, len(totals)))
    tensors = pd.DataFrame(
        {
            "name": space.names,
            "dims": [len(shape) for shape in space.shapes],
            "entries": space.sizes,
            "total": totals,
            "largest": [float(value.max()) for value in diagonal.values()],
            "layer": [layers[name] for name in space.names],
            "sublayer": [(sublayers or {}).get(name) for name in space.names],
        }
    )
    about: dict[str, Any] = {
        "checkpoint": checkpoint,
        "task": "small",
        "split": "train",
        "estimator": "empirical",
        "reduction": "mean",
        "examples": examples,
        "terms": examples,
        "tensors": tensors,
        "covariance": pd.DataFrame(
            np.atleast_2d(np.cov(samples.T)) / examples, columns=list(space.names)
        ),
        "traces": pd.DataFrame(
            {
                "text_id": [f"row{i}" for i in range(examples)],
                "tokens": [1] * examples,
                "trace": samples.sum(1),
            }
        ),
        "stability": pd.DataFrame(
            {
                "groups": ["tensor", "tensor"],
                "examples": [examples // 2, examples],
                "correlation": [0.8, 0.9],
                "low": [0.7, 0.85],
                "high": [0.9, 0.95],
            }
        ),
        "provenance": {"weights": weights},
    }
    return Fisher(FisherScores(**{**about, **fields}), diagonal)
