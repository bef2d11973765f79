"""Studies with known numbers: simulated seeds on two basins, lines between them, one evaluation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from connectivity_results import make_transitivity

SUBSETS = (
    "lexical_overlap/entailment",
    "lexical_overlap/non-entailment",
    "subsequence/non-entailment",
    "constituent/non-entailment",
)


@dataclass(frozen=True)
class Connection:
    """The documented attributes of `landform.studies.connect.Connection`, filled in by hand."""

    names: tuple[str, ...]
    data: tuple[str, ...]
    curves: pd.DataFrame
    pairs: pd.DataFrame
    clustering: Any
    endpoints: pd.DataFrame
    statistics: pd.DataFrame | None
    basin_metrics: pd.DataFrame | None
    evaluations: int
    basins: pd.Series
    reading: str = "8 checkpoints: 2 basins of 6, 2; gaps 0.002 to 0.31 nats"
    provenance: dict[str, Any] = field(default_factory=dict)

    def matrix(self, quantity: str = "convexity_gap", data: str | None = None) -> pd.DataFrame:
        table = pd.DataFrame(np.nan, index=list(self.names), columns=list(self.names))
        rows = self.pairs[self.pairs.data == (data or self.data[0])]
        for a, b, value in zip(rows.a, rows.b, rows[quantity], strict=True):
            table.loc[a, b] = table.loc[b, a] = value
        values = table.to_numpy(copy=True)
        np.fill_diagonal(values, 0.0)
        return pd.DataFrame(values, index=table.index, columns=table.columns)

    @property
    def transitivity(self) -> Any:
        return make_transitivity(len(self.names)) if len(self.names) > 2 else None

    @property
    def gaps(self) -> pd.DataFrame:
        return self.matrix("convexity_gap")


def brute_gap(losses: np.ndarray) -> tuple[float, float]:
    """(barrier, convexity gap) by the definition, three loops."""
    best = barrier = 0.0
    n = len(losses)
    for i in range(n):
        for j in range(i + 2, n):
            for k in range(i + 1, j):
                rise = losses[k] - ((j - k) * losses[i] + (k - i) * losses[j]) / (j - i)
                best = max(best, rise)
                if (i, j) == (0, n - 1):
                    barrier = max(barrier, rise)
    return barrier, best


def make_connection(
    labels: Sequence[int] = (0, 0, 0, 1, 0, 1, 0, 0),
    *,
    names: Sequence[str] | None = None,
    data: Sequence[str] = ("nli:validation", "hans:validation"),
    points: int = 10,
    pairs: int | None = None,
    known_basins: bool = True,
    seed: int = 0,
) -> Connection:
    """A study of `len(labels)` seeds whose basins are `labels`."""
    random = np.random.default_rng(seed)
    labels = np.asarray(labels)
    n = len(labels)
    names = tuple(names or [f"seed{i}" for i in range(n)])
    t = np.linspace(0, 1, points)
    ends = 0.30 + 0.02 * random.random(n)
    curves, rows = [], []
    for a, b in list(combinations(range(n), 2))[:pairs]:
        for d, name in enumerate(data):
            ridge = (0.25 if labels[a] != labels[b] else 0.01) * (1 + 0.4 * random.random())
            shape = np.exp(-(((t - 0.5 - 0.1 * random.normal()) / 0.16) ** 2))
            shift = d * 0.6 * (1 + 0.2 * t * random.random())
            loss = (1 - t) * ends[a] + t * ends[b] + ridge * shape + shift
            loss += 0.0015 * random.normal(size=points)
            barrier, gap = brute_gap(loss)
            half = 0.015 + 0.05 * ridge
            rows.append(
                {"data": name, "a": names[a], "b": names[b],
                 "distance": 6 + 2 * ridge * (1 + a / n),
                 "barrier_height": barrier, "barrier_low": max(0, barrier - half),
                 "barrier_high": barrier + half, "convexity_gap": gap,
                 "gap_low": max(0.0, gap - half), "gap_high": gap + half, "gap_p_value": 0.01,
                 "noise_floor": 0.012, "area_under_curve": 0.1 + ridge, "bump_height": gap,
                 "error_agreement": 0.95 - ridge, "functional_similarity": 0.97 - ridge,
                 "js_distance": 0.02 + ridge / 3}
            )  # fmt: skip
            for k in range(points):
                curves.append(
                    {"data": name, "a": names[a], "b": names[b], "t": t[k], "loss": loss[k],
                     "loss_low": loss[k] - half, "loss_high": loss[k] + half,
                     "accuracy": 0.95 - 0.5 * (loss[k] - loss.min())}
                )  # fmt: skip
    basins = pd.Series(labels, index=list(names), name="basin")
    endpoints = {f"{data[0]}/loss": ends}
    endpoints[f"{data[0]}/accuracy"] = 0.985 - 0.004 * labels + 0.004 * random.random(n)
    if len(data) > 1:
        level = np.where(labels == 0, 0.55, 0.1) + 0.1 * random.random(n)
        endpoints[f"{data[1]}/loss"] = 2 - level
        endpoints[f"{data[1]}/accuracy"] = 0.5 + 0.3 * level
        for s, subset in enumerate(SUBSETS):
            value = 0.97 - 0.02 * level if s == 0 else np.abs(level - 0.3 * (s - 1))
            endpoints[f"{data[1]}/{subset}/accuracy"] = value
    table = pd.DataFrame(endpoints, index=list(names))
    several = known_basins and len(set(labels.tolist())) > 1
    return Connection(
        names=names,
        data=tuple(data),
        curves=pd.DataFrame(curves),
        pairs=pd.DataFrame(rows),
        clustering=_clustering(basins, random) if known_basins else None,
        endpoints=table,
        statistics=_statistics(table, labels) if several else None,
        basin_metrics=_basin_metrics(table, basins) if known_basins else None,
        evaluations=n + len(rows) // len(data) * (points - 2),
        basins=basins if known_basins else pd.Series(pd.NA, index=list(names), dtype="Int64"),
        provenance={
            "config": {"points": points, "seed": 0},
            "data": {name: "0" * 64 for name in data},
        },
    )


def _clustering(basins: pd.Series, random: np.random.Generator) -> SimpleNamespace:
    count = basins.nunique()
    values = np.sort(np.r_[0.01 * np.arange(count), 0.7 + 0.3 * random.random(len(basins) - count)])
    centre = np.where(basins == 0, 0.7, -0.6) + 0.1 * random.normal(size=len(basins))
    return SimpleNamespace(
        basins=basins, n_basins=count, scale=0.12, eigenvalues=values, eigengap=0.6,
        method="eigengap",
        centroid_difference=pd.Series(centre, index=basins.index) if count > 1 else None,
        silhouette=0.8, confidence=0.8, noise_floor=0.012,
        note="scale 0.12 nats; number of basins chosen by the eigengap",
    )  # fmt: skip


def _statistics(table: pd.DataFrame, labels: np.ndarray) -> pd.DataFrame:
    rows = []
    for column in [c for c in table if not c.endswith("/loss")]:
        inside, rest = table[column][labels == 0], table[column][labels != 0]
        wins = (inside.to_numpy()[:, None] > rest.to_numpy()).mean()
        rows.append(
            {"metric": column, "role": "in-domain" if column == table.columns[1] else "ood",
             "n_basin": len(inside), "n_rest": len(rest), "mean_basin": inside.mean(),
             "sd_basin": inside.std(), "mean_rest": rest.mean(), "sd_rest": rest.std(),
             "auc": wins, "auc_low": max(0.0, wins - 0.1), "auc_high": min(1.0, wins + 0.1),
             "rank_biserial": 2 * wins - 1, "p_value": 0.036, "pearson_r": 0.8,
             "predictor_p": 0.0123, "partial_r": 0.4}
        )  # fmt: skip
    return pd.DataFrame(rows)


def _basin_metrics(table: pd.DataFrame, basins: pd.Series) -> pd.DataFrame:
    rows = []
    for basin, members in basins.groupby(basins):
        for column in table:
            values = table[column][members.index]
            rows.append(
                {"basin": basin, "metric": column, "n": len(values), "mean": values.mean(),
                 "sd": values.std(), "min": values.min(), "max": values.max()}
            )  # fmt: skip
    return pd.DataFrame(rows)


@dataclass(frozen=True)
class Interpolation:
    """The documented attributes of `landform.geometry.line.Interpolation`."""

    a: str
    b: str
    distance: float
    table: pd.DataFrame
    summary: pd.DataFrame
    reading: str = "barrier 0.2 nats: a ridge between them"
    provenance: dict[str, Any] = field(default_factory=dict)


def make_interpolation(
    curves: dict[str, Sequence[float]] | None = None,
    *,
    a: str = "runs/seed0",
    b: str = "runs/seed1",
) -> Interpolation:
    """A line with the given losses per data set."""
    curves = curves or {
        "sst2:validation": [0.30, 0.31, 0.45, 0.62, 0.55, 0.40, 0.42, 0.39, 0.33, 0.32, 0.31]
    }
    table, rows = [], []
    for name, values in curves.items():
        losses = np.asarray(values, dtype=float)
        t = np.linspace(0, 1, len(losses))
        table.append(
            pd.DataFrame(
                {"data": name, "t": t, "loss": losses, "loss_low": losses - 0.02,
                 "loss_high": losses + 0.03, "accuracy": 0.95 - losses / 4,
                 "accuracy_low": 0.93 - losses / 4, "accuracy_high": 0.97 - losses / 4}
            )
        )  # fmt: skip
        barrier, gap = brute_gap(losses)
        rows.append(
            {"data": name, "barrier_height": barrier, "barrier_low": barrier * 0.9,
             "barrier_high": barrier * 1.1, "convexity_gap": gap, "gap_low": gap * 0.9,
             "gap_high": gap * 1.1, "noise_floor": 0.01, "area_under_curve": 0.5,
             "bump_height": gap}
        )  # fmt: skip
    return Interpolation(a, b, 7.25, pd.concat(table, ignore_index=True), pd.DataFrame(rows))


@dataclass(frozen=True)
class Evaluation:
    """The documented attributes of `landform.evaluation.evaluate.Evaluation`."""

    checkpoint: str
    task: str
    split: str
    log: pd.DataFrame
    metrics: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    subsets: pd.DataFrame
    reliability: pd.DataFrame | None
    label_names: tuple[str, ...] = ("entailment", "non-entailment")
    reading: str = "runs/seed0 on hans:validation (400 examples): accuracy 0.61 [0.57, 0.66]"
    provenance: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Training:
    """The documented attributes of `landform.training.finetune.Training`."""

    model: str
    task: str
    runs: pd.DataFrame
    history: pd.DataFrame
    reading: str = "3 runs of encoder on nli: training loss 0.1 to 0.2"
    provenance: dict[str, Any] = field(default_factory=dict)


def make_training(runs: int = 3) -> Training:
    """Runs whose loss decays, evaluated at the end."""
    steps = np.arange(10, 101, 10)
    history = [
        pd.DataFrame({"run": f"seed{i}", "step": steps, "loss": np.exp(-steps / (30 + 3 * i)),
                      "nli:validation/accuracy": np.where(steps == 100, 0.9, np.nan)})
        for i in range(runs)
    ]  # fmt: skip
    rows = [
        {"name": f"seed{i}", "path": f"runs/seed{i}", "seed": i, "head_seed": i, "data_seed": i,
         "dropout_seed": i, "rows": 400, "steps": 100, "train_loss": 0.05,
         "nli:validation/accuracy": 0.9, "seconds": 12.5, "reused": False}
        for i in range(runs)
    ]  # fmt: skip
    return Training("encoder", "nli", pd.DataFrame(rows), pd.concat(history, ignore_index=True))


def make_evaluation(*, subsets: int = len(SUBSETS), classes: bool = True) -> Evaluation:
    """An evaluation of 400 examples."""
    random = np.random.default_rng(1)
    names = [*SUBSETS, *(f"subcase_with_a_long_name_{i}" for i in range(100))][:subsets]
    rows = [
        {"subset": name, "n": 100, "metric": metric, "value": value,
         "low": value - 0.05, "high": value + 0.04}
        for name in names
        for metric, value in (("loss", 0.9), ("accuracy", 0.1 + 0.8 * random.random()))
    ]  # fmt: skip
    edges = np.linspace(0, 1, 11)
    count = np.array([0, 0, 0, 0, 0, 10, 25, 40, 75, 250])
    with np.errstate(invalid="ignore"):
        centre = np.where(count > 0, (edges[:-1] + edges[1:]) / 2, np.nan)
    reliability = pd.DataFrame(
        {"bin": range(10), "lower": edges[:-1], "upper": edges[1:], "count": count,
         "confidence": centre, "accuracy": centre - 0.08}
    )  # fmt: skip
    return Evaluation(
        "runs/seed0", "hans", "validation",
        pd.DataFrame({"text_id": [f"ex{i}" for i in range(400)], "loss": 0.9}),
        {"loss": 0.912, "accuracy": 0.61, "f1": 0.58, "ece": 0.08},
        {"loss": (0.85, 0.98), "accuracy": (0.57, 0.66), "f1": (0.53, 0.63), "ece": (0.05, 0.11)},
        pd.DataFrame(rows, columns=["subset", "n", "metric", "value", "low", "high"]),
        reliability if classes else None,
    )  # fmt: skip


@pytest.fixture(scope="session")
def connection() -> Callable[..., Connection]:
    return make_connection


@pytest.fixture(scope="session")
def interpolation() -> Callable[..., Interpolation]:
    return make_interpolation


@pytest.fixture(scope="session")
def training() -> Callable[..., Training]:
    return make_training


@pytest.fixture(scope="session")
def evaluation() -> Callable[..., Evaluation]:
    return make_evaluation
