"""Results of attribution with known numbers, filled in by hand: the documented attributes only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

STRATEGIES = ("identity", "diagonal", "kfac", "ekfac")
WORDS = (
    "a",
    "film",
    "plot",
    "quiet",
    "and",
    "dull",
    "joyous",
    "the",
    "of",
    "never",
    "warm",
    "thin",
)


def sentences(n: int, random: np.random.Generator) -> list[str]:
    return [" ".join(random.choice(WORDS, size=random.integers(4, 14))) for _ in range(n)]


@dataclass(frozen=True)
class Influence:
    checkpoint: str
    task: str
    strategy: str
    labels: str
    measurement: str
    damping: str
    queries: pd.DataFrame
    train: pd.DataFrame
    scores: pd.DataFrame | None
    best: pd.DataFrame | None
    modules: dict[str, pd.DataFrame] | None
    timings: dict[str, float]
    provenance: dict[str, Any] = field(default_factory=dict)
    reading: str = "the most helpful training row of query 0 is row 3"
    explanation: str = "Positive scores are helpful; units are those of the margin."

    @property
    def values(self) -> np.ndarray:
        assert self.scores is not None
        return self.scores.to_numpy().T

    def top(self, query: int = 0, k: int = 5, harmful: bool = False) -> pd.DataFrame:
        """The `k` rows of the highest (harmful: lowest) scores, the extreme one first."""
        if self.scores is None:
            best = self.best
            assert best is not None
            rows = best[(best["query"] == query) & (best["sign"] == ("-" if harmful else "+"))]
            rows = rows.sort_values("score", ascending=harmful).head(k)
            train = self.train.set_index("row").loc[rows["row"]].reset_index()
            return train.assign(score=rows["score"].to_numpy())
        scores = self.values[query]
        order = np.argsort(scores if harmful else -scores, kind="stable")[:k]
        return self.train.iloc[order].assign(score=scores[order]).reset_index(drop=True)


def make_influence(
    queries: int = 9,
    train: int = 120,
    *,
    seed: int = 0,
    noise: float = 0.0,
    texts: tuple[Sequence[str], Sequence[str]] | None = None,
    pairs: bool = False,
    streamed: bool = False,
    **changes: Any,
) -> Influence:
    random = np.random.default_rng(seed)
    names = np.array(["negative", "positive"])
    asked = list(texts[0]) if texts else sentences(queries, random)
    known = list(texts[1]) if texts else sentences(train, random)
    loss = np.exp(random.normal(-2, 1.5, size=queries))
    label, given = random.integers(2, size=queries), random.integers(2, size=train)
    query_table = pd.DataFrame(
        {"row": range(queries), "text_id": [f"validation-{i}" for i in range(queries)],
         "text": asked, "label": names[label],
         "prediction": names[np.where(loss > 0.69, 1 - label, label)], "loss": loss,
         "value": -np.log(np.expm1(loss))}
    )  # fmt: skip
    train_table = pd.DataFrame(
        {"row": range(train), "text_id": [f"train-{i}" for i in range(train)], "text": known,
         "label": names[given]}
    )  # fmt: skip
    if pairs:
        query_table.insert(3, "text_pair", sentences(queries, random))
        train_table.insert(3, "text_pair", sentences(train, random))
    same = np.where(label[:, None] == given, 1.0, -0.4)
    values = random.standard_t(2.5, size=(queries, train)) + 0.8 * same
    values *= (30 * loss**0.5)[:, None] * np.exp(random.normal(0, 0.7, size=train))
    values += noise * np.abs(values).mean() * np.random.default_rng(9).normal(size=values.shape)
    frame = pd.DataFrame(values.T.astype(np.float32), columns=[str(q) for q in range(queries)])
    result = Influence(
        "runs/sst2/seed0", "sst2", "ekfac", "true", "margin", "1e-08", query_table, train_table,
        frame, None, None,
        {"covariance": 3.4, "eigendecomposition": 1.7, "lambda": 5.4, "queries": 9.0,
         "scores": 14.9, "total": 34.4},
        provenance={"rows": train},
    )  # fmt: skip
    if streamed:
        result = _streamed(result)
    return Influence(**{**result.__dict__, **changes})


def _streamed(result: Influence, k: int = 8) -> Influence:
    """The same result with only the `k` rows at either end kept."""
    parts = []
    for query in range(len(result.queries)):
        for sign, harmful in (("+", False), ("-", True)):
            top = result.top(query, k, harmful)[["row", "score"]]
            parts.append(top.assign(query=query, rank=range(len(top)), sign=sign))
    best = pd.concat(parts, ignore_index=True)
    return Influence(**{**result.__dict__, "scores": None, "best": best})


@dataclass(frozen=True)
class FactorSummary:
    checkpoint: str
    task: str
    split: str
    strategy: str
    labels: str
    dtype: str
    rows: int
    coverage: pd.DataFrame
    share: float
    spectra: pd.DataFrame
    timings: dict[str, float]
    provenance: dict[str, Any] = field(default_factory=dict)
    reading: str = "EK-FAC factors of 36 modules see 47 % of the parameters"


def make_factors(blocks: int = 6, *, strategy: str = "ekfac", points: int = 200) -> FactorSummary:
    random = np.random.default_rng(1)
    inner = ("attention.self.query", "attention.self.key", "attention.self.value",
             "attention.output.dense", "intermediate.dense", "output.dense")  # fmt: skip
    names = [f"bert.encoder.layer.{b}.{name}" for b in range(blocks) for name in inner]
    rows: list[tuple[str, str, int, str]] = [
        ("bert.embeddings.word_embeddings", "Embedding", 30522 * 384, "no curvature for Embedding")
    ]
    rows += [(name, "Linear", 384 * 385, "seen") for name in names]
    rows += [("classifier", "Linear", 770, "seen")]
    coverage = pd.DataFrame(rows, columns=["name", "kind", "parameters", "status"])
    at = np.linspace(0, 1, points)
    curves = []
    for n, name in enumerate([*names, "classifier"] if strategy in ("kfac", "ekfac") else []):
        for factor, top, drop in (("activation", 3.0, 9), ("gradient", 1e-3, 11)):
            steep = drop * (1 + 0.3 * n / len(names)) * random.uniform(0.8, 1.1)
            values = top * np.exp(-4 * at / (at + 0.05) - steep * at**1.5) + 1e-12
            curves.append((name, factor, values))
        values = 1e-2 * np.exp(-9 * at**0.6 - 12 * at**3 - n / 20)
        curves.append((name, "lambda", values))
    spectra = [
        pd.DataFrame({"module": m, "factor": f, "quantile": at, "eigenvalue": v})
        for m, f, v in curves
    ]
    empty = pd.DataFrame(columns=["module", "factor", "quantile", "eigenvalue"])
    seen = coverage["status"] == "seen"
    return FactorSummary(
        "runs/sst2/seed0", "sst2", "train", strategy, "true", "float32", 512, coverage,
        float(coverage["parameters"][seen].sum() / coverage["parameters"].sum()),
        pd.concat(spectra, ignore_index=True) if spectra else empty,
        {"covariance": 3.4, "eigendecomposition": 1.7, "lambda": 5.4},
    )  # fmt: skip


@dataclass(frozen=True)
class SelfInfluence:
    checkpoint: str
    task: str
    split: str
    strategy: str
    labels: str
    measurement: str
    damping: str
    table: pd.DataFrame
    timings: dict[str, float]
    provenance: dict[str, Any] = field(default_factory=dict)
    reading: str = "the row of the highest self-influence is row 17"


def make_self_influence(rows: int = 400, *, texts: Sequence[str] | None = None) -> SelfInfluence:
    random = np.random.default_rng(2)
    names = np.array(["negative", "positive"])
    loss = np.exp(random.normal(-3, 1.8, size=rows))
    label = random.integers(2, size=rows)
    table = pd.DataFrame(
        {"row": range(rows), "text_id": [f"train-{i}" for i in range(rows)],
         "text": list(texts) if texts else sentences(rows, random), "label": names[label],
         "prediction": names[np.where(loss > 0.69, 1 - label, label)], "loss": loss,
         "score": 50 * loss**1.3 * np.exp(random.normal(0, 0.9, size=rows))}
    )  # fmt: skip
    return SelfInfluence(
        "runs/sst2/seed0", "sst2", "train", "ekfac", "true", "loss", "1e-08", table,
        {"covariance": 3.4, "self-influence": 4.0, "total": 7.4},
    )  # fmt: skip


@dataclass(frozen=True)
class Mislabel:
    task: str
    table: pd.DataFrame
    curve: pd.DataFrame | None
    reading: str = "average precision 0.61 [0.55, 0.67] where chance is 0.10"
    provenance: dict[str, Any] = field(default_factory=dict)


def make_mislabel(rows: int = 400, share: float = 0.1, *, known: bool = True) -> Mislabel:
    random = np.random.default_rng(3)
    source = make_self_influence(rows).table.drop(columns=["prediction", "loss"])
    wrong = random.random(rows) < share
    source["score"] *= np.where(wrong, 12.0, 1.0)
    source["known"] = wrong
    table = source.sort_values("score", ascending=False, ignore_index=True)
    table.insert(0, "rank", np.arange(1, rows + 1))
    if not known:
        return Mislabel("sst2", table.drop(columns="known"), None)
    inspected = np.linspace(0, 1, 101)
    found = np.concatenate([[0], np.cumsum(table["known"])]) / table["known"].sum()
    recall = found[np.rint(inspected * rows).astype(int)]
    spread = 0.12 * np.sqrt(recall * (1 - recall))
    curve = pd.DataFrame(
        {"inspected": inspected, "recall": recall, "low": recall - spread,
         "high": recall + spread, "random": inspected}
    )  # fmt: skip
    return Mislabel("sst2", table, curve)


@dataclass(frozen=True)
class LinearDatamodelling:
    task: str
    measurement: str
    table: pd.DataFrame
    per_query: pd.DataFrame
    masks: int
    retrainings: int
    fraction: float
    reliability: float
    reading: str = "LDS of ekfac 0.38 [0.34, 0.42]"
    provenance: dict[str, Any] = field(default_factory=dict)


def make_lds(
    methods: Sequence[str] = STRATEGIES, *, queries: int = 128, reliability: float = 0.71
) -> LinearDatamodelling:
    random = np.random.default_rng(4)
    rows, parts = [], []
    for n, method in enumerate(methods):
        values = np.clip(random.normal(0.08 + 0.1 * n, 0.14, size=queries), -1, 1)
        mean = float(values.mean())
        rows.append({"method": method, "lds": mean, "low": mean - 0.035, "high": mean + 0.03})
        parts.append(
            pd.DataFrame(
                {"query": range(queries), "text_id": [f"validation-{i}" for i in range(queries)],
                 "method": method, "lds": values}
            )
        )  # fmt: skip
    return LinearDatamodelling(
        "sst2", "margin", pd.DataFrame(rows), pd.concat(parts, ignore_index=True), 100, 5, 0.5,
        reliability,
    )  # fmt: skip


@dataclass(frozen=True)
class Counterfactual:
    task: str
    curve: pd.DataFrame
    flips: pd.DataFrame
    methods: tuple[str, ...]
    reading: str = "removing 80 rows that ekfac names flips 41 % of 40 targets, random rows 6 %"
    provenance: dict[str, Any] = field(default_factory=dict)


def make_counterfactual(methods: Sequence[str] = ("random", *STRATEGIES)) -> Counterfactual:
    random = np.random.default_rng(5)
    sizes, targets = (20, 40, 60, 80, 100, 120), 40
    rows, flips = [], []
    for n, method in enumerate(methods):
        carried = 0
        for step, size in enumerate(sizes):
            flipped = int(
                min(targets, (0.05 + 0.025 * n * step) * targets + random.integers(-1, 3))
            )
            carried = max(carried, flipped) + (step > 0)
            share = flipped / targets
            half = 1.96 * np.sqrt(max(share * (1 - share), 0.02) / targets)
            rows.append(
                {"method": method, "size": size, "flipped": flipped, "targets": targets,
                 "share": share, "low": max(0.0, share - half), "high": min(1.0, share + half),
                 "share_carried": carried / targets, "low_carried": carried / targets - 0.1,
                 "high_carried": carried / targets + 0.1}
            )  # fmt: skip
            flips += [
                {"method": method, "query": q, "text_id": f"validation-{q}", "size": size,
                 "accuracy": float(q >= flipped), "flipped": q < flipped}
                for q in range(targets)
            ]  # fmt: skip
    return Counterfactual("sst2", pd.DataFrame(rows), pd.DataFrame(flips), tuple(methods))
