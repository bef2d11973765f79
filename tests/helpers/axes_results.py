"""Task boundaries and axes with known numbers, made without a model."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from landform.geometry.overlap import overlap_numbers, overlap_regions
from landform.studies.axes import EXPERIMENTS, Axes
from landform.studies.boundary import Boundaries, Boundary


def _kept(x: np.ndarray, at: float) -> np.ndarray:
    """From 1 to 0, half-way at `at`."""
    fall = 1 / (1 + np.exp((x - at) / 0.06))
    kept: np.ndarray = (fall - fall[-1]) / (fall[0] - fall[-1])
    return kept


def make_boundary(points: int = 26, *, gap: bool = False, unknown: bool = False) -> Boundary:
    """Two tasks that fall at 0.7 and at 0.3 (with a gap: at 0.4 and 0.6)."""
    x = np.linspace(0, 1, points)
    a = _kept(x, 0.4 if gap else 0.75)
    b = _kept(x, 0.4 if gap else 0.7)[::-1]
    if unknown:
        a = np.full(points, np.nan)
    tables = []
    for side, data, kept, floor in (("a", "mnli:validation", a, 0.35), ("b", "sst2:dev", b, 0.5)):
        value = floor + kept * 0.4
        frame: dict[str, Any] = {"task": side, "data": data, "x": x, "metric": "accuracy"}
        for name, values in (("value", value), ("kept", kept), ("loss", 1.2 - kept)):
            frame |= {name: values, f"{name}_low": values - 0.03, f"{name}_high": values + 0.03}
        tables.append(pd.DataFrame(frame))
    row: dict[str, Any] = {}
    for name, number in overlap_numbers(a, b, x, 0.95).items():
        row |= {name: float(number), f"{name}_low": float(number) - 0.05}
        row |= {f"{name}_high": float(number) + 0.04}
    for side, floor in (("a", 0.35), ("b", 0.5)):
        own = floor - 0.05 if unknown and side == "a" else floor + 0.4
        row |= {f"own_{side}": own, f"other_{side}": floor, f"floor_{side}": floor}
    return Boundary(
        a="runs/mnli/seed0", b="runs/sst2/seed0", data_a="mnli:validation", data_b="sst2:dev",
        metric_a="accuracy", metric_b="accuracy", keep=0.95,
        table=pd.concat(tables, ignore_index=True), summary=pd.DataFrame([row]),
        regions=overlap_regions(a, b, x, 0.95), provenance={"weights": ["a", "b"]},
    )  # fmt: skip


def make_boundaries(pairs: int = 3) -> Boundaries:
    """The same for several pairs of models, the first with a gap."""
    rows, curves = [], []
    for k in range(pairs):
        one = make_boundary(gap=k == 0)
        row = {"label": f"step {1000 * (k + 1)}", "a": one.a, "b": one.b}
        row |= {str(name): value for name, value in one.summary.iloc[0].items()}
        for name in ("width", "margin", "area", "best_kept"):
            change = row[name] - (rows[0][name] if rows else row[name])
            row |= {f"{name}_change": change, f"{name}_change_low": change - 0.1 * (k > 0)}
            row |= {f"{name}_change_high": change + 0.1 * (k > 0)}
        rows.append(row)
        curves.append(one.table.assign(label=row["label"]))
    return Boundaries(
        data_a="mnli:validation", data_b="sst2:dev", metric_a="accuracy", metric_b="accuracy",
        keep=0.95, table=pd.DataFrame(rows), curves=pd.concat(curves, ignore_index=True),
        provenance={"weights": []},
    )  # fmt: skip


def make_axes(data: tuple[str, ...] = ("mnli:validation", "hans:validation")) -> Axes:
    """Four axes, of which the last has a ridge."""
    random = np.random.default_rng(0)
    values = {
        "seed": ("other seeds",),
        "order": ("other order of the data",),
        "init-std": ("0.02", "0.08", "0.02 and 0.08, one seed"),
        "split": ("other half, one seed", "one half, other seeds"),
    }
    rows = []
    for axis, names in values.items():
        for value in names:
            for k in range(2 if "one seed" in value else 1):
                for name in data:
                    barrier = 0.02 + 0.3 * (axis == "split") + 0.02 * random.random()
                    drop = barrier / 4
                    row: dict[str, Any] = {"axis": axis, "experiment": EXPERIMENTS[axis]}
                    row |= {"value": value, "pair": f"seed{k} - seed{k + 1}"}
                    row |= {"a": f"runs/seed{k}", "b": f"runs/{axis}/seed{k + 1}", "data": name}
                    row |= {"distance": 3.1, "metric": "accuracy", "metric_a": 0.9}
                    row |= {"metric_b": 0.91, "barrier_height": barrier}
                    row |= {"barrier_low": barrier - 0.02, "barrier_high": barrier + 0.03}
                    row |= {"noise_floor": 0.01, "metric_drop": drop}
                    row |= {"metric_drop_low": max(0, drop - 0.02)}
                    row |= {"metric_drop_high": drop + 0.03, "chord_area": 0.4 * barrier}
                    row |= {"chord_area_low": 0.3 * barrier, "chord_area_high": 0.5 * barrier}
                    rows.append({**row, "better": 2, "clearly_better": 0, "points": 26})
    return Axes("classification", pd.DataFrame(rows), {"weights": []})
