"""Results of connectivity with known numbers, made without a model."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd


@dataclass(frozen=True)
class Surface:
    """The documented attributes of `landform.geometry.surface.Surface`."""

    names: tuple[str, ...]
    data: tuple[str, ...]
    kind: str
    mode: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    unit: float
    table: pd.DataFrame
    points: pd.DataFrame
    evaluations: int
    provenance: dict[str, Any] = field(default_factory=dict)
    reading: str = "a plane through 3 checkpoints: the ridge is 0.6 nats high"

    def grid(self, metric: str, data: str | None = None) -> np.ndarray:
        part = self.table[self.table["data"] == (data or self.data[0])]
        square = part.pivot(index="y", columns="x", values=metric)
        return square.loc[list(self.y), list(self.x)].to_numpy(float)

    @property
    def models(self) -> dict[str, tuple[float, float]]:
        return {str(p.name): (float(p.x), float(p.y)) for p in self.points.itertuples(index=False)}

    @property
    def values(self) -> dict[str, np.ndarray]:
        return {name: self.grid(name) for name in ("loss", "accuracy")}


def make_surface(
    size: int = 13,
    *,
    names: tuple[str, ...] = ("seed0", "seed1", "seed2"),
    data: tuple[str, ...] = ("nli:validation", "hans:validation"),
    mode: str = "plane",
    skipped: float = 0.0,
    missing: bool = False,
    height: float = 1.0,
    seed: int = 0,
) -> Surface:
    """Wells at (0, 0), (1, 0) and (0.45, 0.9), a ridge before the last one.

    A share `skipped` of the cells far from the wells was not evaluated: interpolated, or `missing`.
    """
    random = np.random.default_rng(seed)
    x = tuple(np.linspace(-0.5, 1.5, size).round(9))
    y = tuple(np.linspace(-0.5, 1.5, size).round(9))
    wells = [(0.0, 0.0), (1.0, 0.0), (0.45, 0.9)][: len(names)]
    if mode == "random":
        wells = [(0.0, 0.0)]
        x = y = tuple(np.linspace(-1, 1, size).round(9))
    rows = []
    for d, name in enumerate(data):
        for q in y:
            for p in x:
                depth = max(float(np.exp(-((p - a) ** 2 + (q - b) ** 2) / 0.22)) for a, b in wells)
                bowl = 0.12 * ((p - 0.5) ** 2 + (q - 0.3) ** 2)
                loss = height * (0.75 + bowl - 0.65 * depth) + 0.3 * d
                away = min((p - a) ** 2 + (q - b) ** 2 for a, b in wells) > 0.15
                done = not (away and random.random() < skipped)
                value = loss if done or not missing else np.nan
                accuracy = 0.95 - 0.4 * value / height
                rows.append(
                    {"data": name, "x": p, "y": q, "loss": value, "loss_low": value - 0.02,
                     "loss_high": value + 0.03, "accuracy": accuracy,
                     "accuracy_low": accuracy - 0.02, "accuracy_high": accuracy + 0.02,
                     "evaluated": done}
                )  # fmt: skip
    points = pd.DataFrame(
        [{"name": n, "x": a, "y": b} for n, (a, b) in zip(names, wells, strict=False)]
    )
    return Surface(
        tuple(names[: len(wells)]), data, "classification", mode, x, y, 7.31, pd.DataFrame(rows),
        points, size * size, {"config": {"size": size}},
    )  # fmt: skip


@dataclass(frozen=True)
class Sharpness:
    """The documented attributes of `landform.geometry.sharpness.Sharpness`."""

    checkpoint: str
    data: str
    kind: str
    method: str
    epsilon: float
    loss: float
    maximum: float
    value: float
    value_low: float
    value_high: float
    table: pd.DataFrame
    normalisation: str
    provenance: dict[str, Any] = field(default_factory=dict)
    reading: str = "sharpness 12.4 [10.1, 14.9] in a box of 0.001"


def make_sharpness(restarts: int = 3, steps: int = 20) -> Sharpness:
    """Climbs that level off, the second one highest."""
    step = np.arange(steps + 1)
    table = pd.concat(
        pd.DataFrame(
            {"restart": r, "step": step,
             "loss": 0.31 + (0.1 + 0.06 * (r == 1)) * (1 - np.exp(-step / (4 + r)))}
        )
        for r in range(restarts)
    )  # fmt: skip
    top = float(table["loss"].max())
    value = 100 * (top - 0.31) / 1.31
    return Sharpness(
        "runs/seed0", "nli:validation", "classification", "box", 1e-3, 0.31, top, value,
        value - 1.5, value + 1.7, table.reset_index(drop=True), "100 (max - f) / (1 + f)",
    )  # fmt: skip


@dataclass(frozen=True)
class SharpnessComparison:
    """The documented attributes of `landform.geometry.sharpness.SharpnessComparison`."""

    data: tuple[str, ...]
    kind: str
    table: pd.DataFrame
    correlations: pd.DataFrame
    provenance: dict[str, Any] = field(default_factory=dict)
    reading: str = "no method ranks the checkpoints as hans:validation/accuracy does"


def make_comparison(n: int = 12, methods: tuple[str, ...] = ("box", "sam")) -> SharpnessComparison:
    """`n` checkpoints whose box sharpness falls with the accuracy on hans."""
    from scipy import stats

    random = np.random.default_rng(3)
    ood, own = np.sort(random.random(n)), 0.9 + 0.05 * random.random(n)
    rows, correlations = [], []
    for m, method in enumerate(methods):
        value = 20 * np.exp(-ood * (1.5 - m)) * (1 + 0.3 * random.random(n))
        rows += [
            {"checkpoint": f"seed{i}", "method": method, "epsilon": 1e-3, "loss": 0.3,
             "maximum": 0.4, "value": value[i], "value_low": value[i] * 0.9,
             "value_high": value[i] * 1.1, "nli:validation/accuracy": own[i],
             "hans:validation/accuracy": ood[i], "hans:validation/loss": 2 - ood[i]}
            for i in range(n)
        ]  # fmt: skip
        for metric, values in (
            ("nli:validation/accuracy", own),
            ("hans:validation/accuracy", ood),
            ("hans:validation/loss", 2 - ood),
        ):
            rho = float(stats.spearmanr(value, values).statistic)
            correlations.append(
                {"method": method, "metric": metric, "spearman": rho, "low": max(rho - 0.2, -1),
                 "high": min(rho + 0.2, 1), "p_value": 0.0312, "n": n,
                 "in_domain": metric.startswith("nli")}
            )  # fmt: skip
    return SharpnessComparison(
        ("nli:validation", "hans:validation"), "classification", pd.DataFrame(rows),
        pd.DataFrame(correlations),
    )  # fmt: skip


@dataclass(frozen=True)
class CurveFit:
    """The documented attributes of `landform.geometry.fitting.CurveFit`."""

    a: str
    b: str
    kind: str
    bends: int
    task_kind: str
    history: pd.DataFrame
    length: float
    chord: float
    provenance: dict[str, Any] = field(default_factory=dict)
    reading: str = "a Bezier curve with 1 bend: 1.21 times the length of the chord"


def make_fit(steps: int = 200) -> CurveFit:
    """A noisy loss that falls."""
    random = np.random.default_rng(4)
    step = np.arange(1, steps + 1)
    history = pd.DataFrame(
        {"step": step, "loss": 0.3 + 0.4 * np.exp(-step / 60) + 0.05 * random.normal(size=steps),
         "learning_rate": 0.015 * (1 - step / steps)}
    )  # fmt: skip
    return CurveFit("runs/seed0", "runs/seed1", "bezier", 1, "classification", history, 9.1, 7.5)


@dataclass(frozen=True)
class PathEvaluation:
    """The documented attributes of `landform.geometry.fitting.PathEvaluation`."""

    a: str
    b: str
    kind: str
    curve: str
    table: pd.DataFrame
    line: pd.DataFrame
    summary: pd.DataFrame
    length: float
    chord: float
    provenance: dict[str, Any] = field(default_factory=dict)
    reading: str = "the curve stays flat where the line rises by 0.31 nats"


def make_path(
    data: tuple[str, ...] = ("nli:validation",), points: int = 11, curve: str = "bezier"
) -> PathEvaluation:
    """A line over a ridge and a curve around it."""
    s = np.linspace(0, 1, points)
    tables: dict[str, list[pd.DataFrame]] = {"curve": [], "line": []}
    summary = []
    for d, name in enumerate(data):
        for path, ridge in (("curve", 0.03), ("line", 0.4)):
            loss = 0.3 + 0.4 * d + 0.05 * s + ridge * np.exp(-(((s - 0.5) / 0.2) ** 2))
            length = 9.1 if path == "curve" else 7.5
            tables[path].append(
                pd.DataFrame(
                    {"data": name, "t": s, "arc": s, "distance_a": length * s * (1 - 0.1 * s),
                     "distance_b": length * (1 - s) * (0.9 + 0.1 * s), "loss": loss,
                     "loss_low": loss - 0.02, "loss_high": loss + 0.02,
                     "accuracy": 0.97 - loss / 5, "accuracy_low": 0.95 - loss / 5,
                     "accuracy_high": 0.99 - loss / 5}
                )
            )  # fmt: skip
            barrier = float((loss - (1 - s) * loss[0] - s * loss[-1]).max())
            summary.append(
                {"data": name, "path": path, "barrier_height": barrier,
                 "barrier_low": barrier * 0.9, "barrier_high": barrier * 1.1,
                 "convexity_gap": barrier * 1.05, "gap_low": barrier, "gap_high": barrier * 1.2,
                 "gap_p_value": 0.01, "noise_floor": 0.01, "area_under_curve": 0.2,
                 "bump_height": barrier}
            )  # fmt: skip
    return PathEvaluation(
        "runs/seed0", "runs/seed1", "classification", curve,
        pd.concat(tables["curve"], ignore_index=True), pd.concat(tables["line"], ignore_index=True),
        pd.DataFrame(summary), 9.1, 7.5,
    )  # fmt: skip


@dataclass(frozen=True)
class ComplexFit:
    """The documented attributes of `landform.geometry.simplexes.ComplexFit`."""

    names: tuple[str, ...]
    base: tuple[bool, ...]
    cliques: tuple[tuple[int, ...], ...]
    history: pd.DataFrame
    samples: pd.DataFrame
    control: pd.DataFrame
    vertices: pd.DataFrame
    volume_squared: float
    volume: float
    task_kind: str = "classification"
    provenance: dict[str, Any] = field(default_factory=dict)
    reading: str = "2 simplexes over 5 vertices, volume 3.2"


def make_complex(samples: int = 8) -> ComplexFit:
    """Three models and two connectors: three triangles."""
    random = np.random.default_rng(5)
    names = ("seed0", "seed1", "seed2", "connector0", "connector1")
    cliques = ((0, 3, 4), (1, 3, 4), (2, 3, 4))
    history = [
        {"step": k, "vertex": vertex, "loss": 0.3 + 0.3 * np.exp(-(k % 50) / 15) / (v + 1),
         "volume": 2.0 + 0.01 * k, "learning_rate": 1e-3}
        for v, vertex in enumerate(names[3:])
        for k in range(50 * v, 50 * (v + 1))
    ]  # fmt: skip
    rows = []
    for c in range(len(cliques)):
        for k, value in enumerate(0.35 + 0.05 * c + 0.02 * random.random(samples)):
            rows.append(
                {"data": "nli:validation", "clique": c, "sample": k, "loss": value,
                 "loss_low": value - 0.02, "loss_high": value + 0.02, "accuracy": 0.9 - value / 10}
            )  # fmt: skip
    return ComplexFit(
        names, (True, True, True, False, False), cliques, pd.DataFrame(history),
        pd.DataFrame(rows), pd.DataFrame(rows[:samples]).assign(clique=0, loss=0.6),
        pd.DataFrame(), 10.24, 3.2,
    )  # fmt: skip


@dataclass(frozen=True)
class Transitivity:
    """The documented attributes of `landform.geometry.transitivity.Transitivity`."""

    names: tuple[str, ...]
    triples: int
    violations: int
    share: float
    total: float
    mean: float
    mean_percent: float
    table: pd.DataFrame
    compat: dict[str, Any] | None = None
    provenance: dict[str, Any] = field(default_factory=dict)
    reading: str = "7 of 56 triples violate the triangle inequality"


def make_transitivity(n: int = 8, seed: int = 0, metric: bool = False) -> Transitivity:
    """Triples of random gaps; with `metric`, of distances on a line, which violate nothing."""
    random = np.random.default_rng(seed)
    names = tuple(f"seed{i}" for i in range(n))
    place = random.random(n)
    gaps = np.abs(place[:, None] - place) if metric else random.random((n, n)) ** 2
    gaps = (gaps + gaps.T) / 2
    rows = []
    for i, j, k in combinations(range(n), 3):
        sides = [(gaps[i, j], i, k, j), (gaps[i, k], i, j, k), (gaps[j, k], j, i, k)]
        direct, a, b, c = max(sides)
        detour = gaps[a, b] + gaps[b, c]
        excess = direct - detour
        if excess > 1e-12:
            rows.append(
                {"a": names[a], "b": names[b], "c": names[c], "direct": direct, "detour": detour,
                 "excess": excess, "percent": 100 * excess / direct}
            )  # fmt: skip
    columns = ["a", "b", "c", "direct", "detour", "excess", "percent"]
    table = pd.DataFrame(rows, columns=columns)
    triples = n * (n - 1) * (n - 2) // 6
    total = float(table["excess"].sum())
    return Transitivity(
        names, triples, len(table), len(table) / triples, total,
        total / len(table) if len(table) else 0.0,
        float(table["percent"].mean()) if len(table) else 0.0, table,
    )  # fmt: skip


@dataclass(frozen=True)
class Ridge:
    """The documented attributes of `landform.geometry.ridge.Ridge`."""

    a: str
    b: str
    data: str
    kind: str
    t: float
    table: pd.DataFrame
    shares: pd.DataFrame
    rising: float
    low: float
    high: float
    provenance: dict[str, Any] = field(default_factory=dict)
    reading: str = "a tenth of the examples carries 71 % of the rise at t = 0.5"


def make_ridge(n: int = 120, texts: list[str] | None = None) -> Ridge:
    """Few examples that rise much, many that hardly move, some that fall."""
    random = np.random.default_rng(6)
    rise = np.sort(random.exponential(0.4, n) ** 2 - 0.05)[::-1]
    a, b = random.random(n) * 0.4, random.random(n) * 0.4
    texts = (
        texts
        or [
            f"the professor near the {w} did not see the lawyers who were {i}"
            for i, w in enumerate(["bank", "museum", "old theatre of the town", "sea"] * n)
        ][:n]
    )
    table = pd.DataFrame(
        {"id": [f"ex{i}" for i in range(n)], "text": texts[:n],
         "label": ["entailment", "non-entailment"] * (n // 2) + ["entailment"] * (n % 2),
         "loss_a": a, "loss_b": b, "chord": (a + b) / 2, "loss": (a + b) / 2 + rise, "rise": rise,
         "rank": np.arange(1, n + 1)}
    )  # fmt: skip
    total = rise[rise > 0].sum()
    shares = pd.DataFrame(
        [{"top": top, "examples": round(top * n),
          "share_of_rise": rise[: round(top * n)].sum() / total} for top in (0.01, 0.05, 0.1, 0.5)]
    )  # fmt: skip
    return Ridge(
        "runs/seed0", "runs/seed1", "nli:validation", "classification", 0.5, table, shares,
        float((rise > 0).mean()), 0.71, 0.83,
    )  # fmt: skip


@dataclass(frozen=True)
class Dynamics:
    """The documented attributes of `landform.studies.dynamics.Dynamics`."""

    steps: tuple[int, ...]
    names: tuple[str, ...]
    basins: pd.DataFrame
    positions: pd.DataFrame
    agreement: pd.DataFrame
    metric: str
    data: str
    provenance: dict[str, Any] = field(default_factory=dict)
    reading: str = "2 of 8 checkpoints switch basins between step 100 and 300"


def make_dynamics(n: int = 8, steps: tuple[int, ...] = (100, 200, 300)) -> Dynamics:
    """Two basins that drift apart; the last checkpoint switches at the last step."""
    random = np.random.default_rng(7)
    names = tuple(f"seed{i}" for i in range(n))
    basins = pd.DataFrame(
        {step: [int(i >= n // 2) for i in range(n)] for step in steps}, index=list(names)
    )
    basins.loc[names[-1], steps[-1]] = 0
    rows = []
    for name in names:
        for s, step in enumerate(steps):
            basin = int(basins.loc[name, step])
            side = 1 - 2 * basin
            rows.append(
                {"name": name, "step": step, "basin": basin,
                 "x": side * (0.2 + 0.25 * s) + 0.05 * random.normal(),
                 "performance": 0.5 + side * 0.1 * s + 0.03 * random.normal(),
                 "switched": s > 0 and basin != int(basins.loc[name, steps[s - 1]])}
            )  # fmt: skip
    agreement = pd.DataFrame(
        [{"step_a": p, "step_b": q, "adjusted_rand": 1.0 if q != steps[-1] else 0.5,
          "switched": int((basins[p] != basins[q]).sum())} for p, q in combinations(steps, 2)]
    )  # fmt: skip
    return Dynamics(
        steps, names, basins, pd.DataFrame(rows), agreement, "hans:validation/accuracy",
        "nli:validation",
    )  # fmt: skip


@dataclass(frozen=True)
class AlignmentReport:
    """The documented attributes of `landform.weights.alignment.AlignmentReport`."""

    a: str
    b: str
    distance_before: float
    distance_after: float
    parts: pd.DataFrame
    exact: float
    provenance: dict[str, Any] = field(default_factory=dict)
    reading: str = "distance 31.2 before, 24.8 after; the same function to 2e-6"


def make_alignment(layers: int = 2) -> AlignmentReport:
    """Heads and feed-forward units of every layer, and the residual stream."""
    rows = []
    for layer in range(layers):
        for part, size in (("heads", 4), ("feed_forward", 128)):
            before = 8.0 + layer + (2 if part == "heads" else 0)
            rows.append(
                {"layer": str(layer), "part": part, "size": size, "moved": size - layer,
                 "distance_before": before, "distance_after": before * 0.8}
            )  # fmt: skip
    rows.append(
        {"layer": "", "part": "residual", "size": 64, "moved": 0, "distance_before": 5.0,
         "distance_after": 5.0}
    )  # fmt: skip
    return AlignmentReport("runs/seed0", "runs/seed1", 31.2, 24.8, pd.DataFrame(rows), 2e-6)


MAKERS = {
    "Surface": make_surface,
    "Sharpness": make_sharpness,
    "SharpnessComparison": make_comparison,
    "CurveFit": make_fit,
    "PathEvaluation": make_path,
    "ComplexFit": make_complex,
    "Transitivity": make_transitivity,
    "Ridge": make_ridge,
    "Dynamics": make_dynamics,
    "AlignmentReport": make_alignment,
}
