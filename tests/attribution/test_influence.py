"""Influence against its definition: one example at a time, autograd on the weights, float64."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import landform as lf
from brute_force import curvature, pairwise_scores, per_example_gradients, self_scores
from landform.errors import ConfigError, DataError, NonFiniteError
from landform.evaluation.points import Data
from small_cases import CASES, small_case, small_task
from tuned import family

STRATEGIES = ("identity", "diagonal", "kfac", "ekfac")


@pytest.fixture(scope="module")
def cases(tmp_path_factory: Any, save_checkpoint: Any) -> Any:
    made: dict[tuple[str, str], Any] = {}

    def case(kind: str, architecture: str) -> tuple[Path, Any]:
        if (kind, architecture) not in made:
            path = tmp_path_factory.mktemp(f"{kind}-{architecture}")
            made[kind, architecture] = small_case(kind, architecture, path, save_checkpoint)
        return made[kind, architecture]

    return case


def fit(case: tuple[Path, Any], **options: Any) -> Any:
    checkpoint, task = case
    return lf.fit_factors(
        checkpoint, task, **{"dtype": "float64", "labels": "empirical", **options}
    )


def by_definition(factors: Any, measurement: str = "loss", **damping: Any) -> np.ndarray:
    """(Q, N) scores of validation queries by brute force on the factors' own model and rows."""
    session = factors.session()
    train = session.prepare(Data(factors.task, "train"), factors.examples)
    queries = session.prepare(Data(factors.task, "validation"), factors.task.examples("validation"))
    names = list(factors.layers)
    model, objective = session.model, train.objective
    labels = "true" if factors.config.labels == "true" else "empirical"
    found = curvature(
        factors.config.strategy, model, objective, train.batches, names, labels=labels
    )
    q = per_example_gradients(model, objective, queries.batches, names, measurement=measurement)
    t = per_example_gradients(model, objective, train.batches, names)
    return sum(pairwise_scores(found, q, t, **damping).values()).numpy()


def close(a: np.ndarray, b: np.ndarray, tolerance: float = 1e-9) -> bool:
    return bool(np.abs(a - b).max() <= tolerance * np.abs(b).max())


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize(("kind", "architecture"), CASES)
def test_scores_are_those_of_the_definition(
    cases: Any, kind: str, architecture: str, strategy: str
) -> None:
    factors = fit(cases(kind, architecture), strategy=strategy)
    scores = lf.influence(factors, damping=1e-3)
    assert scores.values.shape == (5, 9)
    assert close(scores.values, by_definition(factors, damping=1e-3))


@pytest.mark.parametrize("strategy", ("diagonal", "kfac", "ekfac"))
@pytest.mark.parametrize(("kind", "architecture"), CASES[:3])
def test_the_expectation_over_labels_is_exact(
    cases: Any, kind: str, architecture: str, strategy: str
) -> None:
    factors = fit(cases(kind, architecture), strategy=strategy, labels="true")
    assert factors.labels == "true (exact)"
    assert close(lf.influence(factors, damping=1e-3).values, by_definition(factors, damping=1e-3))


# --- the four invariances: of all estimators in tests/curvature/test_invariances.py ---------------


@pytest.mark.parametrize(("kind", "architecture"), CASES)
def test_padding_and_batches_change_nothing(cases: Any, kind: str, architecture: str) -> None:
    """Every row alone without padding, and all rows padded to the longest."""
    alone = fit(cases(kind, architecture), token_budget=1)
    padded = fit(cases(kind, architecture), token_budget=10**6)
    a, b = lf.influence(alone, damping=1e-2), lf.influence(padded, damping=1e-2)
    assert close(a.values, b.values, 1e-10)


def test_masked_labels_carry_no_loss_and_still_count_as_tokens(cases: Any) -> None:
    """A token without a label adds nothing to any gradient of its own; attention still sees it."""
    checkpoint, task = cases("token-classification", "bert")
    examples = task.examples("train")
    tags = [list(row) for row in examples.labels]
    for row in tags[::2]:
        row[0] = -100
    table = pd.DataFrame({"text": pd.Series([list(words) for words in examples.texts])})
    table["label"] = pd.Series(tags)
    masked = lf.load_task(
        {"train": table, "validation": table.iloc[:5]},
        text="text",
        label="label",
        kind="token-classification",
        label_names=("a", "b", "c"),
    )
    for strategy in ("kfac", "ekfac"):
        factors = fit((checkpoint, masked), strategy=strategy)
        scores = lf.influence(factors, damping=1e-3)
        assert close(scores.values, by_definition(factors, damping=1e-3))


# --- forms of one matrix ------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_self_influence_is_the_diagonal(cases: Any, strategy: str) -> None:
    factors = fit(cases("classification", "bert"), strategy=strategy)
    pairs = lf.influence(factors, queries="train", damping=1e-3)
    own = lf.self_influence(factors, damping=1e-3)
    assert close(own.values, pairs.values.diagonal(), 1e-11)
    assert list(own.table.text_id) == list(factors.examples.ids)
    margins = lf.influence(factors, queries="train", measurement="margin", damping=1e-3)
    crossed = lf.self_influence(factors, measurement="margin", damping=1e-3)
    assert close(crossed.values, margins.values.diagonal(), 1e-11)


def test_self_influence_agrees_with_its_definition(cases: Any) -> None:
    factors = fit(cases("causal-lm", "gpt2"), strategy="ekfac")
    session = factors.session()
    train = session.prepare(Data(factors.task, "train"), factors.examples)
    names = list(factors.layers)
    found = curvature("ekfac", session.model, train.objective, train.batches, names)
    gradients = per_example_gradients(session.model, train.objective, train.batches, names)
    expected = sum(self_scores(found, gradients, damping=1e-3).values()).numpy()
    assert close(lf.self_influence(factors, damping=1e-3).values, expected)


def test_the_parts_of_the_layers_add_up(cases: Any) -> None:
    factors = fit(cases("classification", "gpt2"))
    scores = lf.influence(factors, per_module=True, damping=1e-3)
    assert set(scores.modules) == set(factors.layers)
    total = sum(part.to_numpy() for part in scores.modules.values())
    assert close(total.T, scores.values, 1e-12)
    assert close(scores.values, lf.influence(factors, damping=1e-3).values, 1e-12)


@pytest.mark.parametrize(("kind", "architecture"), [CASES[0], CASES[1], CASES[5]])
def test_the_parts_of_the_tokens_add_up(cases: Any, kind: str, architecture: str) -> None:
    factors = fit(cases(kind, architecture))
    scores = lf.influence(factors, per_token=True, damping=1e-3)
    added = scores.tokens.groupby("example")[[str(q) for q in range(5)]].sum().to_numpy()
    assert close(added.T, scores.values, 1e-11)
    lengths = scores.tokens.groupby("example").position.max() + 1
    session = factors.session()
    data = session.prepare(Data(factors.task, "train"), factors.examples)
    for batch in data.batches:
        real = batch.inputs["attention_mask"].sum(-1).tolist()
        assert [lengths[row] for row in batch.rows.tolist()] == real


def test_a_layer_that_is_used_twice_gives_each_token_the_sum_of_both(
    tmp_path: Path, word_tokenizer: Any
) -> None:
    """ALBERT's blocks share their weights: what the second use of a layer gave its tokens was put
    behind the last token of the text, and cut off there."""
    names = {"id2label": {0: "a", 1: "b", 2: "c"}, "label2id": {"a": 0, "b": 1, "c": 2}}
    family("albert", **names).save_pretrained(tmp_path)
    word_tokenizer.save_pretrained(tmp_path)
    factors = fit((tmp_path, small_task("classification")))
    scores = lf.influence(factors, per_token=True, damping=1e-3)
    added = scores.tokens.groupby("example")[[str(q) for q in range(5)]].sum().to_numpy()
    assert close(added.T, scores.values, 1e-11)


def test_a_token_score_is_the_product_with_that_token_alone(cases: Any) -> None:
    """Cutting the gradient at all other tokens of a layer leaves the score of the token."""
    factors = fit(cases("causal-lm", "gpt2"), strategy="identity", include=("*.0.mlp.c_proj",))
    scores = lf.influence(factors, per_token=True)
    session = factors.session()
    layer = session.layers[0].module
    validation = factors.task.examples("validation")
    queries = session.prepare(Data(factors.task, "validation"), validation)
    name = factors.layers[0]
    query = per_example_gradients(session.model, queries.objective, queries.batches, [name])
    train = session.prepare(Data(factors.task, "train"), factors.examples)
    batch = next(b for b in train.batches if 3 in b.rows.tolist())
    seen: dict[str, torch.Tensor] = {}

    def hook(module: Any, inputs: Any, output: torch.Tensor) -> None:
        seen["x"], seen["y"] = inputs[0].detach(), output

    handle = layer.register_forward_hook(hook)
    logits = train.objective.logits(session.model, batch)
    handle.remove()
    loss = train.objective.losses(logits, train.objective.targets(batch)).sums.sum()
    (g,) = torch.autograd.grad(loss, seen["y"])
    place = batch.rows.tolist().index(3)
    token = torch.outer(g[place, 1], torch.cat([seen["x"][place, 1], torch.ones(1)]))
    expected = (query[name] * token).sum((1, 2)).numpy()
    mine = scores.tokens[(scores.tokens.example == 3) & (scores.tokens.position == 1)]
    assert close(mine[[str(q) for q in range(5)]].to_numpy()[0], expected, 1e-10)


def test_sums_over_one_side_or_both(cases: Any) -> None:
    factors = fit(cases("classification", "bert"))
    whole = lf.influence(factors, damping=1e-3).values
    for side, expected in (
        ("queries", whole.sum(0, keepdims=True)),
        ("train", whole.sum(1, keepdims=True)),
        ("both", whole.sum(keepdims=True)),
    ):
        summed = lf.influence(factors, aggregate=side, damping=1e-3, memory=1e-4)
        assert summed.values.shape == expected.shape
        assert close(summed.values, expected, 1e-10), side


def test_streamed_top_is_the_top_of_the_whole_matrix(cases: Any) -> None:
    factors = fit(cases("classification", "bert"))
    whole = lf.influence(factors, damping=1e-3)
    for memory in (None, 1e-4):  # one block, and a block for each row or two
        streamed = lf.influence(factors, top=3, damping=1e-3, memory=memory)
        assert streamed.scores is None
        for query in range(5):
            for harmful in (False, True):
                a = whole.top(query, 3, harmful=harmful)
                b = streamed.top(query, 3, harmful=harmful)
                assert list(a.row) == list(b.row)
                assert np.allclose(a.score, b.score, rtol=1e-9)
    with pytest.raises(ConfigError, match="streamed"):
        _ = streamed.values


def test_low_rank_queries(cases: Any) -> None:
    factors = fit(cases("classification", "bert"))
    whole = lf.influence(factors, damping=1e-3).values
    errors = [
        np.abs(lf.influence(factors, query_rank=rank, damping=1e-3).values - whole).max()
        for rank in (1, 4, 16)
    ]
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 1e-9 * np.abs(whole).max()  # no gradient here has a rank above 16
    with pytest.raises(ConfigError, match="query_rank is 40"):
        lf.influence(factors, query_rank=40)


def test_rank_one_is_the_best_of_its_rank(cases: Any) -> None:
    factors = fit(cases("classification", "bert"), include=("*.0.output.dense",))
    (name,) = factors.layers
    session = factors.session()
    queries = session.prepare(Data(factors.task, "validation"), factors.task.examples("validation"))
    train = session.prepare(Data(factors.task, "train"), factors.examples)
    found = curvature("ekfac", session.model, train.objective, train.batches, [name])[name]
    q = per_example_gradients(session.model, train.objective, queries.batches, [name])[name]
    t = per_example_gradients(session.model, train.objective, train.batches, [name])[name]
    u, s, v = torch.linalg.svd(found.precondition(q, 1e-3, None))
    best = s[:, 0, None, None] * u[:, :, :1] @ v[:, :1]
    expected = (best.flatten(1) @ t.flatten(1).t()).numpy()
    scores = lf.influence(factors, query_rank=1, damping=1e-3)
    assert close(scores.values, expected, 1e-3)  # two power iterations, not a full SVD


# --- measurements and damping -------------------------------------------------------------------


def test_the_margin_and_a_function_of_ones_own(cases: Any) -> None:
    factors = fit(cases("classification", "bert"))
    margin = lf.influence(factors, measurement="margin", damping=1e-3)
    assert close(margin.values, by_definition(factors, "margin", damping=1e-3))

    def own_margin(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return (
            factors.session()
            .prepare(Data(factors.task, "train"), factors.examples)
            .objective.margins(logits, targets)
        )

    same = lf.influence(factors, measurement=own_margin, damping=1e-3)
    assert close(same.values, margin.values, 1e-12)
    assert same.measurement == "own_margin" and same.better == 1

    def one_number(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return logits.sum()

    def constant(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return torch.zeros(len(targets), dtype=torch.float64)

    for function, message in ((one_number, "one number per example"), (constant, "depend")):
        with pytest.raises(ConfigError, match=message):
            lf.influence(factors, measurement=function)
    with pytest.raises(ConfigError, match="did you mean 'margin'"):
        lf.influence(factors, measurement="margins")


@pytest.mark.parametrize("strategy", ("diagonal", "kfac", "ekfac"))
def test_damping_changes_without_fitting_again(cases: Any, strategy: str) -> None:
    factors = fit(cases("classification", "bert"), strategy=strategy)
    for options, brute in (
        ({"damping": 0.1}, {"damping": 0.1}),
        ({"damping": None}, {"damping": None, "relative_damping": 0.1}),
        ({"relative_damping": 0.3}, {"damping": None, "relative_damping": 0.3}),
    ):
        scores = lf.influence(factors, **options)
        assert close(scores.values, by_definition(factors, **brute)), options


def test_positive_is_helpful(tmp_path: Path, save_checkpoint: Any) -> None:
    """One small step on a training row alone lowers the query's loss where its score says so."""
    checkpoint, task = small_case("classification", "bert", tmp_path / "m", save_checkpoint)
    factors = fit((checkpoint, task), strategy="identity")
    scores = lf.influence(factors).values
    session = factors.session()
    train = session.prepare(Data(task, "train"), factors.examples)
    names = {f"{name}.{part}" for name in factors.layers for part in ("weight", "bias")}

    def losses() -> np.ndarray:
        found = lf.evaluate(tmp_path / "step", task, dtype="float64").log.loss.to_numpy()
        return np.asarray(found)

    batch = next(b for b in train.batches if 2 in b.rows.tolist())
    row = batch.rows.tolist().index(2)
    logits = train.objective.logits(session.model, batch)
    loss = train.objective.losses(logits, train.objective.targets(batch)).sums[row]
    parameters = {n: p for n, p in session.model.named_parameters() if n in names}
    gradients = torch.autograd.grad(loss, list(parameters.values()))
    session.model.save_pretrained(tmp_path / "step")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "step" / name).write_bytes((checkpoint / name).read_bytes())
    before, step = losses(), 1e-5
    with torch.no_grad():
        for p, g in zip(parameters.values(), gradients, strict=True):
            p -= step * g
    session.model.save_pretrained(tmp_path / "step")
    fall = (before - losses()) / step
    assert np.allclose(fall, scores[:, 2], rtol=1e-2, atol=1e-3 * np.abs(scores).max())


# --- half precision, tables, bad input ----------------------------------------------------------


def test_half_precision_keeps_the_ranking(cases: Any) -> None:
    full = lf.influence(fit(cases("classification", "bert"), dtype="float32"), damping=1e-2)
    half = lf.influence(fit(cases("classification", "bert"), dtype="bfloat16"), damping=1e-2)
    assert half.values.dtype == np.float32 and np.isfinite(half.values).all()
    assert np.corrcoef(full.values.ravel(), half.values.ravel())[0, 1] > 0.95


def test_tables_say_which_text_it_is(cases: Any) -> None:
    factors = fit(cases("classification", "bert"))
    scores = lf.influence(factors, query_rows=[4, 1], train_rows=[8, 3, 5], damping=1e-3)
    whole = lf.influence(factors, damping=1e-3)
    assert close(scores.values, whole.values[[4, 1]][:, [8, 3, 5]], 1e-12)
    top = scores.top(query=0, k=2)
    assert list(top.columns) == ["row", "score", "label", "text"]
    best = int(np.argmax(scores.values[0]))
    assert top.row[0] == [8, 3, 5][best]
    assert top.text[0] == factors.task.examples("train").texts[top.row[0]][0]
    assert set(scores.queries.columns) >= {"row", "text", "label", "prediction", "loss", "value"}
    log = lf.evaluate(factors.checkpoint, factors.task, dtype="float64").log
    assert np.allclose(scores.queries.loss, log.loss.iloc[[4, 1]])
    assert list(scores.queries.prediction) == list(log.prediction.iloc[[4, 1]])
    phases = ["covariance", "eigendecomposition", "lambda", "queries", "scores", "total"]
    assert list(scores.timings) == phases
    assert scores.timings["total"] == pytest.approx(sum(scores.timings[p] for p in phases[:-1]))
    assert "helpful" in scores.explanation and "lowers its loss" in scores.explanation


def test_bad_rows_and_options_are_refused(cases: Any) -> None:
    factors = fit(cases("classification", "bert"), strategy="identity")
    for options, error, message in (
        ({"query_rows": 0}, DataError, "queries: 0 rows"),
        ({"train_rows": []}, DataError, "training rows: there are no rows"),
        ({"train_rows": [3, 99]}, DataError, "no row 99"),
        ({"train_rows": [3, 3]}, DataError, "twice"),
        ({"queries": "tset"}, DataError, "test|tset"),
        ({"damping": -1.0}, ConfigError, "damping"),
        ({"dampning": 1.0}, ConfigError, "did you mean 'damping'"),
        ({"top": 3, "per_module": True}, ConfigError, "top"),
        ({"per_token": True, "aggregate": "train"}, ConfigError, "per_token"),
        ({"queries": (small_task("regression"), "validation")}, ConfigError, "regression"),
    ):
        with pytest.raises(error, match=message):
            lf.influence(factors, **options)
    for name, value in (("top", 3), ("per_token", True), ("query_rank", 1), ("aggregate", "both")):
        with pytest.raises(ConfigError, match=f"option {name} has no effect in self_influence"):
            lf.self_influence(factors, **{name: value})
    scores = lf.influence(factors)
    with pytest.raises(ConfigError, match="there are 5 queries"):
        scores.top(query=5)


def test_an_eigenvalue_of_zero_needs_damping(cases: Any) -> None:
    factors = fit(cases("classification", "bert"), strategy="diagonal")
    factors.squares["classifier"][0, 0] = 0.0
    with pytest.raises(NonFiniteError, match=r"layer classifier: an eigenvalue of 0 .* damping"):
        lf.influence(factors, damping=0.0)


# --- stores -------------------------------------------------------------------------------------


def test_blocks_change_nothing_and_are_found_again(
    cases: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    from landform.attribution.scoring import InfluenceWorker

    factors = fit(cases("classification", "bert"))
    whole = lf.influence(factors, damping=1e-3)
    options: dict[str, Any] = {"damping": 1e-3, "memory": 1e-4, "store": tmp_path}
    run, calls = InfluenceWorker.run, []

    def failing(self: Any, job: Any) -> Any:
        if len(calls) == 3:
            raise KeyboardInterrupt
        calls.append(job.label)
        return run(self, job)

    monkeypatch.setattr(InfluenceWorker, "run", failing)
    with pytest.raises(KeyboardInterrupt):
        lf.influence(factors, **options)
    monkeypatch.setattr(InfluenceWorker, "run", run)
    again: list[str] = []
    monkeypatch.setattr(
        InfluenceWorker, "run", lambda self, job: again.append(job.label) or run(self, job)
    )
    resumed = lf.influence(factors, **options)
    assert not set(again) & set(calls) and len(again) > 2
    uninterrupted = lf.influence(factors, **{**options, "store": None})
    assert (resumed.values == uninterrupted.values).all()
    assert close(resumed.values, whole.values, 1e-11)
    again.clear()
    lf.influence(factors, **options)
    assert not again
    lf.influence(factors, **{**options, "damping": 2e-3})
    assert again  # another damping is another result


def test_a_function_is_known_by_its_code_in_a_store(cases: Any, tmp_path: Path) -> None:
    factors = fit(cases("classification", "bert"), strategy="identity")

    def measure(scale: float) -> Any:
        return lambda logits, targets: scale * logits[:, 0]

    one = lf.influence(factors, measurement=measure(1.0), store=tmp_path)
    two = lf.influence(factors, measurement=measure(2.0), store=tmp_path)
    assert close(two.values, 2 * one.values, 1e-12)
    model = torch.nn.Linear(3, 1)
    with pytest.raises(ConfigError, match="cannot be kept in a store"):
        lf.influence(factors, measurement=lambda z, y: model(z.float())[:, 0], store=tmp_path)


def test_a_result_survives_the_store(cases: Any, tmp_path: Path) -> None:
    from landform.results import from_parts, to_parts

    scores = lf.influence(fit(cases("classification", "bert")), damping=1e-3, per_module=True)
    back = from_parts(*to_parts(scores))
    assert (back.values == scores.values).all()
    assert back.reading == scores.reading
