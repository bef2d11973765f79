"""The four invariances, for every estimator that is made of gradients: one list, one test.

Nothing but the examples decides a number. On a model with attention, in float64, every estimator
below gives the same (rows in the order of the data) when

    padding   every batch has three more columns of padding
    batches   every example is alone, in place of one batch of all
    order     the examples come in another order
    masked    an example is added whose labels are all -100: its own row is 0, nothing else moves

    estimator                                          what is compared
    A, S of K-FAC; empirical, true, sampled            the matrices; masked: the sum of g g^T
    Lambda, diagonal; empirical, true, sampled         the sums of squares
    K-FAC, EK-FAC; empirical, true, sampled            the operator on a probe; masked: the trace
    scores: identity, diagonal, K-FAC, EK-FAC          (training rows, queries), by layer and token
    self-influence: identity, diagonal, K-FAC, EK-FAC  (rows,)
    index of gradients                                 estimated scores (training rows, queries)
    Fisher diagonal: 3 labels; mean, sum, token        the sums by entry, a trace for every row
    Hessian, GGN, Fisher, empirical Fisher x 3         eigenvalues, trace, nodes of the density
    true labels that are an exact expectation          factors, scores, Fisher (classification: each
                                                       row has its one label, so none is masked)

A and the counts of tokens are no matter of labels, so a masked row's tokens are in them: only sums
over gradients can be compared there. Products with one vector: `test_operators`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch.nn.functional import pad

import landform as lf
from brute_force import apply_operator
from landform.attribution.index import build_index
from landform.evaluation import prepared
from landform.tasks.batching import IGNORED, Batch
from small_cases import small_case, small_task

ORDER = [4, 2, 8, 0, 1, 7, 3, 6, 5]
SIZES = {
    "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 6,
    "max_position_embeddings": 16,
}  # fmt: skip
STRATEGIES = ("identity", "diagonal", "kfac", "ekfac")
LABELS = ("empirical", "true", "sampled")
Found = dict[str, np.ndarray]
"""Names that begin with "row" have the rows of the data as their first axis."""


# --- the estimators -------------------------------------------------------------------------------


def _fit(case: Any, split: str = "train", **options: Any) -> Any:
    checkpoint, task, budget = case
    return lf.fit_factors(
        checkpoint, task, split=split, dtype="float64", token_budget=budget, **options
    )


def factors(strategy: str, labels: str) -> Callable[[Any], Found]:
    def run(case: Any) -> Found:
        fitted = _fit(case, "scored", strategy=strategy, labels=labels)
        texts = case[1].examples("scored").texts
        tokens = sum(2 + len(text) for text in texts)  # CLS and SEP
        found: Found = {}
        for name in fitted.layers:
            values = fitted.eigenvalues(name)
            if strategy == "kfac":
                s = fitted.gradient_covariance(name)
                found[f"A/{name}"] = fitted.activation_covariance(name).numpy()
                found[f"S/{name}"] = s.numpy()
                found[f"sum/{name}"] = np.array(float(s.trace()) * tokens)
            elif strategy == "diagonal":
                found[f"sum/{name}"] = values.numpy() * len(texts)
            else:
                found[f"sum/{name}"] = np.array(float(values.sum()) * len(texts))
            if strategy != "diagonal":
                generator = torch.Generator().manual_seed(0)
                probe = torch.randn(values.shape, generator=generator, dtype=torch.float64)
                sides = (fitted.vectors[f"S/{name}"], fitted.vectors[f"A/{name}"])
                found[f"operator/{name}"] = apply_operator(*sides, values, probe).numpy()
        return found

    return run


def scores(strategy: str, labels: str = "empirical") -> Callable[[Any], Found]:
    def run(case: Any) -> Found:
        fitted = _fit(case, strategy=strategy, labels=labels)
        parts = lf.influence(fitted, train="scored", per_module=True, damping=1e-2)
        assert parts.modules is not None
        found = {"row scores": parts.values.T}
        return found | {f"row {n}": part.to_numpy() for n, part in parts.modules.items()}

    return run


def token_scores(case: Any) -> Found:
    each = lf.influence(
        _fit(case, labels="empirical"), train="scored", per_token=True, damping=1e-2
    )
    assert each.tokens is not None
    columns = [str(query) for query in range(5)]
    table = np.zeros((len(each.train), 1 + 16, 5))
    table[each.tokens["example"], each.tokens["position"] + 1] = each.tokens[columns]
    return {"row tokens": table}


def own_scores(strategy: str) -> Callable[[Any], Found]:
    def run(case: Any) -> Found:
        fitted = _fit(case, strategy=strategy, labels="empirical")
        return {"row": lf.self_influence(fitted, split="scored", damping=1e-2).values}

    return run


def index(case: Any) -> Found:
    # Without a basis: an eigenvector and its negative are one, but not their sketches.
    fitted = _fit(case, strategy="diagonal", labels="empirical")
    made = build_index(fitted, train="scored", size=64, share=1, number="float32", damping=1e-2)
    return {"row single": made.estimate().T}


def fisher(estimator: str, reduction: str) -> Callable[[Any], Found]:
    def run(case: Any) -> Found:
        checkpoint, task, budget = case
        made = lf.fisher(
            checkpoint, task, split="scored", dtype="float64", token_budget=budget,
            estimator=estimator, reduction=reduction,
        )  # fmt: skip
        terms = made.summary.terms
        sums = {f"sum/{name}": terms * value.numpy() for name, value in made.diagonal.items()}
        return {**sums, "row trace": made.summary.traces.trace.to_numpy()}

    return run


def spectrum(operator: str, reduction: str | None = None) -> Callable[[Any], Found]:
    def run(case: Any) -> Found:
        checkpoint, task, budget = case
        made = lf.spectrum(
            checkpoint, task, split="scored", dtype="float64", token_budget=budget, top=2, steps=5,
            operator=operator, probes=4, density_probes=1, density_steps=4,
            **({} if reduction is None else {"reduction": reduction}),
        )  # fmt: skip
        nodes = made.quadrature
        return {
            "sum/eigenvalues": made.eigenvalues,
            "sum/trace": np.array(made.trace),
            "sum/nodes": nodes[["eigenvalue", "weight"]].to_numpy(),
        }

    return run


ESTIMATORS: dict[str, Callable[[Any], Found]] = {
    **{
        f"{strategy}, {labels}": factors(strategy, labels)
        for strategy in STRATEGIES[1:]
        for labels in LABELS
    },
    **{f"scores, {strategy}": scores(strategy) for strategy in STRATEGIES},
    "scores of tokens": token_scores,
    **{f"self-influence, {strategy}": own_scores(strategy) for strategy in STRATEGIES},
    "index": index,
    **{f"Fisher, {labels}, mean": fisher(labels, "mean") for labels in LABELS},
    **{f"Fisher, empirical, {r}": fisher("empirical", r) for r in ("sum", "token")},
    **{operator: spectrum(operator) for operator in ("hessian", "ggn", "fisher")},
    **{f"empirical Fisher, {r}": spectrum("empirical-fisher", r) for r in ("mean", "sum", "token")},
}  # fmt: skip
EXACT: dict[str, Callable[[Any], Found]] = {
    **{f"{strategy}, exact": factors(strategy, "true") for strategy in STRATEGIES[1:]},
    "scores, exact": scores("ekfac", "true"),
    "Fisher, exact": fisher("true", "mean"),
}


# --- the data, in four other forms ----------------------------------------------------------------


def _tasks(kind: str) -> dict[str, Any]:
    """The task as it is, in another order, and with one row more, of which nothing is scored."""
    task = small_task(kind, train=9)
    rows = task.examples("train")
    token = kind == "token-classification"
    texts = [list(text) for text in rows.texts] if token else [text[0] for text in rows.texts]
    labels = [np.asarray(label).tolist() for label in rows.labels]
    base = pd.DataFrame({"text": pd.Series(texts), "label": pd.Series(labels)})
    asked = base.iloc[:5]
    options: dict[str, Any] = {
        "kind": kind, "text": "text", "label": "label", "label_names": ("a", "b", "c")
    }  # fmt: skip

    def made(train: Any, scored: Any) -> Any:
        return lf.load_task({"train": train, "scored": scored, "validation": asked}, **options)

    back = base.iloc[ORDER].reset_index(drop=True)
    found = {"base": made(base, base), "order": made(back, back)}
    if token:
        more = pd.DataFrame({"text": [texts[3][::-1]], "label": [[IGNORED] * len(texts[3])]})
        found["masked"] = made(base, pd.concat([base, more], ignore_index=True))
    return found


def _wider(batch: Batch) -> Batch:
    """Three more columns of padding."""
    inputs = {name: pad(value, (0, 3)) for name, value in batch.inputs.items()}
    labels = pad(batch.labels, (0, 3), value=IGNORED) if batch.labels.dim() > 1 else batch.labels
    return Batch(inputs, labels, batch.rows, batch.owners)


@pytest.fixture(scope="module")
def cases(tmp_path_factory: Any, save_checkpoint: Any) -> Callable[[str], Any]:
    """(checkpoint, tasks) for a kind of task."""

    @cache
    def make(kind: str) -> tuple[Path, dict[str, Any]]:
        folder = tmp_path_factory.mktemp(kind)
        checkpoint, _ = small_case(kind, "bert", folder, save_checkpoint, **SIZES)
        return checkpoint, _tasks(kind)

    return make


ALL = 10**6


def _compare(
    found: Found, expected: Found, keep: list[int] | None = None, *, masked: bool = False
) -> None:
    largest = max(float(np.abs(value).max()) for value in expected.values())
    for name, value in expected.items():
        if not name.startswith(("row", "sum") if masked else ""):
            continue
        mine = found[name][keep] if keep is not None and name.startswith("row") else found[name]
        assert mine.shape == value.shape, name
        tolerance = 1e-5 if name == "row single" else 1e-9
        scale = max(float(np.abs(value).max()), 1e-6 * largest)
        assert np.abs(mine - value).max() <= tolerance * scale, name


@pytest.mark.parametrize("name", [*ESTIMATORS, *EXACT])
def test_nothing_but_the_examples_decides(
    cases: Any, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    exact = name in EXACT
    run = (EXACT if exact else ESTIMATORS)[name]
    checkpoint, tasks = cases("classification" if exact else "token-classification")
    base = run((checkpoint, tasks["base"], ALL))
    assert any(np.abs(value).max() > 0 for value in base.values())
    _compare(run((checkpoint, tasks["base"], 1)), base)
    _compare(run((checkpoint, tasks["order"], 40)), base, list(np.argsort(ORDER)))
    if not exact:
        more = run((checkpoint, tasks["masked"], 40))
        _compare(more, base, list(range(9)), masked=True)
        for key, value in more.items():
            assert not (key.startswith("row") and value[9].any()), key
    cut = prepared.cut_batches
    monkeypatch.setattr(prepared, "cut_batches", lambda *a: [_wider(batch) for batch in cut(*a)])
    _compare(run((checkpoint, tasks["base"], 40)), base)
