"""The table of examples: its columns from their definitions, its correlations against scipy."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import rankdata, spearmanr

import landform as lf
from landform.errors import DataError, StoreError
from landform.evaluation.cartography import FILE
from landform.evaluation.intervals import resample_counts
from landform.store.study import load_results, open_store
from landform.studies.example_table import (
    COLUMNS,
    ExampleTableStudy,
    _along,
    example_table,
    rank_correlations,
)
from landform.tasks.metrics import Predictions
from landform.weights.checkpoint import load_model, load_tokenizer, resolve
from small_cases import small_case, small_task


@pytest.fixture(scope="module")
def ends(tmp_path_factory: Any, save_checkpoint: Any) -> Any:
    folder = tmp_path_factory.mktemp("ends")
    a, task = small_case("classification", "bert", folder / "a", save_checkpoint)
    b, _ = small_case("classification", "bert", folder / "b", save_checkpoint, seed=1)
    return a, b, task


def outputs(a: Path, b: Path, task: Any, ts: Any) -> tuple[np.ndarray, np.ndarray]:
    """(losses, whether right), both (points, rows), one row at a time in float64."""
    first, second, model = (
        load_model(resolve(path), "classification").double().eval() for path in (a, b, a)
    )
    tokenizer, examples = load_tokenizer(resolve(a)), task.examples("train")
    losses, right = [], []
    with torch.no_grad():
        for t in ts:
            triples = zip(*(m.parameters() for m in (first, second, model)), strict=True)
            for x, y, z in triples:
                z.copy_((1 - t) * x + t * y)
            logits = torch.cat(
                [model(**tokenizer(*t, return_tensors="pt")).logits for t in examples.texts]
            )
            labels = torch.tensor(examples.labels)
            losses.append(F.cross_entropy(logits, labels, reduction="none").numpy())
            right.append((logits.argmax(-1) == labels).numpy())
    return np.stack(losses), np.stack(right)


def test_columns_are_what_they_are_called(ends: Any) -> None:
    a, b, task = ends
    result = example_table(a, b, task, points=5, dtype="float64", strategy="identity")
    ts = np.linspace(0, 1, 5)
    losses, right = outputs(a, b, task, ts)
    above = losses - np.outer(1 - ts, losses[0]) - np.outer(ts, losses[-1])
    top = 1 + above.mean(1)[1:-1].argmax()
    table = result.table
    assert result.t == ts[top] and result.dynamics is None
    assert list(table["text_id"]) == list(task.examples("train").ids)
    expected = {
        "loss_a": losses[0],
        "loss_b": losses[-1],
        "path_mean": losses.mean(0),
        "path_max": losses.max(0),
        "rise": above[top],
    }
    for name, values in expected.items():
        assert table[name].to_numpy() == pytest.approx(values, rel=1e-8, abs=1e-10), name
    gone = [any(x and not y for x, y in pairwise(r)) for r in right.T]
    assert list(table["forgotten"]) == gone and any(gone) and not all(gone)
    factors = lf.fit_factors(a, task, strategy="identity", dtype="float64")
    assert table["self_influence"].to_numpy() == pytest.approx(lf.self_influence(factors).values)
    assert result.columns == COLUMNS[4:]
    assert "no run keeps training dynamics" in result.reading


def test_batches_change_nothing(ends: Any) -> None:
    a, b, task = ends
    options: dict[str, Any] = {"points": 3, "dtype": "float64", "strategy": "identity"}
    one = example_table(a, b, task, token_budget=1, **options).table
    other = example_table(a, b, task, token_budget=10**6, **options).table
    pd.testing.assert_frame_equal(one, other, rtol=1e-9)


def test_training_dynamics_are_joined_by_text(
    ends: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b, task = ends
    ids = list(task.examples("train").ids)[::-1][:8]
    learned = pd.DataFrame(
        {
            "text_id": ids,
            "confidence": np.linspace(0.1, 0.9, 8),
            "variability": np.linspace(0.4, 0.0, 8) ** 2,
            "correctness": 0.5,
            "forgetting": [0, 1, 0, 2, 0, 1, 0, 0],
        }
    )
    from landform.studies import example_table as module

    monkeypatch.setattr(module, "cartography", lambda run, task, split: learned)
    result = example_table(
        a, b, task, points=3, strategy="identity", dynamics="some/run", store=tmp_path / "study"
    )
    assert result.dynamics == "some/run" and result.columns == COLUMNS
    mine = result.table.set_index("text_id")
    assert mine.loc[ids[3], "forgetting"] == 2
    assert np.isnan(mine.loc[task.examples("train").ids[0], "confidence"])
    both = result.table.dropna()
    assert len(both) == 8 == result.compared
    found = result.correlation("rise", "confidence")
    assert found["spearman"] == pytest.approx(spearmanr(both["rise"], both["confidence"])[0])
    assert np.isnan(result.correlation("correctness", "rise")["spearman"])
    # A partial correlation is that of the residuals of ranks.
    x, y, z = (rankdata(both[name]) for name in ("rise", "confidence", "loss_a"))
    rests = [v - np.polyval(np.polyfit(z, v, 1), z) for v in (x, y)]
    assert found["given_loss_a"] == pytest.approx(np.corrcoef(*rests)[0, 1])
    assert "rank correlation with the rise" in result.reading
    (kept,) = load_results(open_store(tmp_path / "study")).values()
    pd.testing.assert_frame_equal(kept.table, result.table)
    with pytest.raises(DataError, match="no correlation"):
        result.correlation("rise", "text")


def test_a_record_that_is_named_must_be_there(ends: Any) -> None:
    a, b, task = ends
    with pytest.raises(StoreError):
        example_table(a, b, task, dynamics=a)


def test_numbers_are_neither_right_nor_wrong(tmp_path: Path, save_checkpoint: Any) -> None:
    a, task = small_case("regression", "bert", tmp_path / "a", save_checkpoint)
    b, _ = small_case("regression", "bert", tmp_path / "b", save_checkpoint, seed=1)
    result = example_table(a, b, task, points=3, strategy="identity")
    assert "forgotten" not in result.table and "forgotten" not in result.reading


def test_too_few_examples_to_compare_are_an_error(ends: Any) -> None:
    a, b, _ = ends
    two = small_task("classification", train=2)
    with pytest.raises(DataError, match="nothing to compare"):
        example_table(a, b, two, points=3, strategy="identity")


@given(st.data())
def test_correlations_are_those_of_the_resampled_examples(data: st.DataObject) -> None:
    n = data.draw(st.integers(3, 9))
    entry = st.integers(0, 4)
    table = pd.DataFrame(
        {name: data.draw(st.lists(entry, min_size=n, max_size=n)) for name in "xyz"}
    )
    found = rank_correlations(table, replicates=30, seed=3).set_index(["x", "y"])
    counts = resample_counts(n, 30, 3).astype(int)
    ranks = {name: [rankdata(np.repeat(table[name], times)) for times in counts] for name in "xyz"}
    for x, y in (("x", "y"), ("x", "z"), ("y", "z")):
        row = found.loc[(x, y)]
        if table[x].nunique() == 1 or table[y].nunique() == 1:
            assert np.isnan(row["spearman"]) and np.isnan(row["low"])
            continue
        assert row["spearman"] == pytest.approx(spearmanr(table[x], table[y])[0])
        drawn = []
        for p, q in zip(ranks[x], ranks[y], strict=True):
            if np.ptp(p) and np.ptp(q):
                drawn.append(np.corrcoef(p, q)[0, 1])
        assert row["low"] == pytest.approx(np.quantile(drawn, 0.025), abs=1e-12)
        assert row["high"] == pytest.approx(np.quantile(drawn, 0.975), abs=1e-12)


def test_a_product_of_numbers_is_neither_right_nor_wrong() -> None:
    class Numbers:
        kind, metrics = "seq2seq", ("answer_pearson",)

    points = [
        Predictions(None, None, np.ones(3), np.ones(3), texts, (("1",), ("2",), ("4",)))
        for texts in (("1", "2", "4"), ("1", "3", "2"), ("4", "2", "1"))
    ]
    task: Any = Numbers()
    columns, _ = _along((0.0, 0.5, 1.0), points, task)
    assert "rise" in columns and "forgotten" not in columns
    task.metrics = ("exact_match",)
    assert list(_along((0.0, 0.5, 1.0), points, task)[0]["forgotten"]) == [True, True, True]


def test_a_damaged_record_is_not_passed_over(tmp_path: Path, save_checkpoint: Any) -> None:
    a, task = small_case("classification", "bert", tmp_path / "a", save_checkpoint)
    b, _ = small_case("classification", "bert", tmp_path / "b", save_checkpoint, seed=1)
    (a / FILE).write_bytes(b"PAR1 and no more")
    with pytest.raises(StoreError, match=FILE):
        ExampleTableStudy.of(a, b, task)
