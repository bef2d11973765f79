"""Influence on a barrier: the formula by hand, a finite difference, and what a check may say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import landform as lf
from brute_force import curvature, per_example_gradients
from landform.attribution.directions import Directions, direction_scores, layer_share
from landform.errors import ConfigError
from landform.evaluation.points import Data
from landform.store.study import load_results, open_store
from landform.studies.barrier_check import _End, _options, summarise, trained_examples, verdict
from landform.studies.barrier_influence import BarrierStudy, barrier_influence
from landform.studies.scores import fine_tune
from landform.training.options import TrainConfig
from landform.weights.checkpoint import load_model, resolve
from small_cases import small_case

EXACT = {"dtype": "float64", "labels": "empirical"}


@pytest.fixture(scope="module")
def ends(tmp_path_factory: Any, save_checkpoint: Any) -> Any:
    """Factory: `ends(architecture, kind)` -> (a, b, task), two tiny models with attention."""
    made: dict[tuple[str, str], Any] = {}

    def make(architecture: str = "bert", kind: str = "classification") -> Any:
        if (architecture, kind) not in made:
            folder = tmp_path_factory.mktemp(f"{architecture}-{kind}")
            a, task = small_case(kind, architecture, folder / "a", save_checkpoint)
            b, _ = small_case(kind, architecture, folder / "b", save_checkpoint, seed=1)
            made[architecture, kind] = (a, b, task)
        return made[architecture, kind]

    return make


def rebuilt(a: Path, b: Path, task: Any, t: float) -> tuple[list[Any], Any]:
    """([model a, model b, model between them], the training rows prepared for them)."""
    session = lf.fit_factors(a, task, strategy="identity", **EXACT).session()
    models = [
        load_model(lf.select(str(p))[0], task.kind, session.config).double() for p in (a, b, a)
    ]
    with torch.no_grad():
        for x, y, z in zip(*(m.parameters() for m in models), strict=True):
            z.copy_((1 - t) * x + t * y)
    return models, session


def mean_gradients(model: Any, objective: Any, batches: Any, layers: Any, tokens: float) -> Any:
    found = per_example_gradients(model, objective, batches, layers)
    return {name: value.sum(0, keepdim=True) / tokens for name, value in found.items()}


def by_hand(a: Path, b: Path, task: Any, t: float, strategy: str, damping: float) -> np.ndarray:
    """(N,) dB of every training row, from autograd on the weights of three models."""
    (first, second, between), session = rebuilt(a, b, task, t)
    train = session.prepare(Data(task, "train"), task.examples("train"))
    held = session.prepare(Data(task, "validation"), task.examples("validation"))
    layers = [layer.name for layer in session.layers]
    tokens = float(sum((h.labels != -100).sum() for h in held.batches))
    objective = train.objective
    top = mean_gradients(between, objective, held.batches, layers, tokens)
    total = np.zeros(train.size)
    for share, model in ((1 - t, first), (t, second)):
        here = mean_gradients(model, objective, held.batches, layers, tokens)
        factors = curvature(strategy, model, objective, train.batches, layers)
        rows = per_example_gradients(model, objective, train.batches, layers)
        for name in layers:
            moved = factors[name].precondition(top[name] - here[name], damping, None)
            products = (moved * rows[name]).sum((1, 2))
            total += share / train.size * products.numpy()
    return total


def changes(result: Any) -> np.ndarray:
    return result.table.sort_values("row")["change"].to_numpy()


@pytest.mark.parametrize("strategy", ["identity", "ekfac"])
@pytest.mark.parametrize("t", [0.5, 0.3])
@pytest.mark.parametrize(
    ("architecture", "kind"),
    [("bert", "classification"), ("gpt2", "classification"), ("bert", "token-classification")],
)
def test_changes_are_those_of_the_formula(
    ends: Any, architecture: str, kind: str, t: float, strategy: str
) -> None:
    a, b, task = ends(architecture, kind)
    options = {"dtype": "float64"} if strategy == "identity" else {"damping": 1e-3, **EXACT}
    result = barrier_influence(a, b, task, at=t, strategy=strategy, points=3, **options)
    expected = by_hand(a, b, task, t, strategy, 1e-3)
    assert changes(result) == pytest.approx(expected, rel=1e-8, abs=1e-12 * abs(expected).max())
    assert result.t == t
    table = result.table
    assert (table["change"].diff().dropna() >= 0).all()
    assert (table["top"] - table["chord"]).to_numpy() == pytest.approx(table["change"].to_numpy())
    assert (table["via_a"] + table["via_b"]).to_numpy() == pytest.approx(table["change"].to_numpy())


def test_moving_the_ends_as_a_removal_does_changes_the_barrier_by_as_much(ends: Any) -> None:
    """A finite difference: the ends really moved by + grad l_z / N along the seen layers."""
    a, b, task = ends()
    t, row, step = 0.3, 4, 1e-5
    result = barrier_influence(a, b, task, at=t, strategy="identity", points=3, dtype="float64")
    (first, second, between), session = rebuilt(a, b, task, t)
    train = session.prepare(Data(task, "train"), task.examples("train"))
    held = session.prepare(Data(task, "validation"), task.examples("validation"))
    layers = [layer.name for layer in session.layers]
    moves = [
        per_example_gradients(model, train.objective, train.batches, layers)
        for model in (first, second)
    ]

    def loss(model: Any) -> float:
        with torch.no_grad():
            sums = [
                train.objective.losses(
                    train.objective.logits(model, h), train.objective.targets(h)
                ).sums.sum()
                for h in held.batches
            ]
        return float(sum(sums)) / held.size

    def barrier(sign: float) -> float:
        with torch.no_grad():
            for model, move in zip((first, second), moves, strict=True):
                for name in layers:
                    module, change = model.get_submodule(name), move[name][row] * sign / train.size
                    module.weight += change[:, :-1]
                    module.bias += change[:, -1]
            for x, y, z in zip(*(m.parameters() for m in (first, second, between)), strict=True):
                z.copy_((1 - t) * x + t * y)
        return loss(between) - (1 - t) * loss(first) - t * loss(second)

    here = barrier(0.0)
    assert result.barrier == pytest.approx(here, rel=1e-6)
    up, down = barrier(step), barrier(-2 * step)
    slope = (up - down) / (2 * step)
    assert slope == pytest.approx(changes(result)[row], rel=1e-4)


def test_batches_and_order_change_nothing(ends: Any) -> None:
    a, b, task = ends()
    options: dict[str, Any] = {"points": 5, "damping": 1e-2, **EXACT}
    plain = barrier_influence(a, b, task, **options)
    alone = barrier_influence(a, b, task, token_budget=1, **options)
    assert changes(alone) == pytest.approx(changes(plain), rel=1e-8)
    back = barrier_influence(b, a, task, at=1 - plain.t, **options)
    assert changes(back) == pytest.approx(changes(plain), rel=1e-8)
    assert back.barrier == pytest.approx(plain.barrier)
    assert back.share_a == pytest.approx(plain.share_b)


def test_the_top_of_the_line_is_found(ends: Any) -> None:
    a, b, task = ends()
    result = barrier_influence(a, b, task, points=7, strategy="identity", dtype="float64")
    line = lf.interpolate(a, b, task, points=7, dtype="float64").table
    above = (
        line["loss"] - (1 - line["t"]) * line["loss"].iloc[0] - line["t"] * line["loss"].iloc[-1]
    )
    best = above.iloc[1:-1].idxmax()
    assert result.t == line["t"][best]
    assert result.barrier == pytest.approx(above[best], rel=1e-6)
    assert result.low <= result.barrier <= result.high
    assert "not checked by retraining" in result.reading


# --- directions ----------------------------------------------------------------------------------


def test_the_gradient_of_a_query_as_a_direction_gives_the_scores_of_the_query(ends: Any) -> None:
    a, _, task = ends()
    factors = lf.fit_factors(a, task, strategy="kfac", **EXACT)
    session = factors.session()
    held = session.prepare(Data(task, "validation"), task.examples("validation"))
    model, names = session.model, list(factors.layers)
    found = per_example_gradients(model, held.objective, held.batches, names)
    given = [
        {
            f"{name}.{part}": value[query][:, :-1] if part == "weight" else value[query][:, -1]
            for name, value in found.items()
            for part in ("weight", "bias")
        }
        for query in range(held.size)
    ]
    scores = direction_scores(factors, Directions("here", lambda: given, 5), damping=1e-3)
    assert scores == pytest.approx(lf.influence(factors, damping=1e-3).values.T, rel=1e-8)
    assert layer_share(factors, given[0]) == pytest.approx(1.0)
    with pytest.raises(ConfigError, match="has no tensor"):
        direction_scores(factors, Directions("none", lambda: [{}], 1))


# --- what a check says ---------------------------------------------------------------------------


def _check(effects: dict[str, list[float]]) -> pd.DataFrame:
    predicted = {"none": 0.0, "top": -0.2, "bottom": 0.2, "random 1": 0.01, "random 2": -0.01}
    return pd.DataFrame(
        [
            {"pair": pair, "removal": name, "removed": 3, "predicted": predicted[name],
             "barrier": value}
            for name, values in effects.items()
            for pair, value in enumerate(values)
        ]
    )  # fmt: skip


def test_pairs_are_compared_with_their_own_random_removals() -> None:
    base = np.array([1.0, 2.0, 3.0])
    check = _check(
        {
            "none": list(base),
            "top": [0.89, 1.9, 2.91],
            "bottom": [1.3, 1.7, 3.0],
            "random 1": list(base + 0.02),
            "random 2": list(base),
        }
    )
    summary = summarise(check, 0.95).set_index("removal")
    assert summary.loc["top", "change"] == pytest.approx(-0.1)
    # Student's t with 2 degrees of freedom: 4.30265 s / sqrt(3), s = 0.01.
    half = 4.302652729911275 * 0.01 / np.sqrt(3)
    assert summary.loc["top", "low"] == pytest.approx(-0.1 - half)
    assert summary.loc["top - random", "change"] == pytest.approx(-0.11)
    assert summary.loc["top - random", "high"] == pytest.approx(-0.11 + half)
    assert summary.loc["random", "change"] == pytest.approx(0.01)
    said = verdict(summary.reset_index(), "nats")
    assert "3 pairs" in said
    raised, lowered = said.split(";")
    assert raised.endswith(": confirmed")
    assert "not confirmed, within the noise of retraining" in lowered


def test_a_change_against_the_prediction_is_called_that() -> None:
    base = [1.0, 2.0, 3.0]
    up = [1.11, 2.1, 3.09]
    check = _check({"none": base, "top": up, "bottom": up, "random 1": base, "random 2": base})
    raised, lowered = verdict(summarise(check, 0.95), "nats").split(";")
    assert raised.endswith(": contradicted") and lowered.endswith(": confirmed")


# --- removing and training again -----------------------------------------------------------------


@pytest.fixture(scope="module")
def runs(tmp_path_factory: Any, save_checkpoint: Any) -> Any:
    folder = tmp_path_factory.mktemp("runs")
    base, task = small_case("classification", "bert", folder / "base", save_checkpoint)
    options: dict[str, Any] = {"max_steps": 2, "batch_size": 4, "learning_rate": 1e-3}
    lf.train(base, task, out=folder / "runs", seeds=(0, 1), eval_split=None, **options)
    (folder / "some.txt").write_text("".join(f"train-{i}\n" for i in range(6)), "utf-8")
    lf.train(
        base, task, out=folder / "part", seeds=(2,), eval_split=None,
        row_file=folder / "some.txt", **options,
    )  # fmt: skip
    return folder, task


CHECK = {"retrain": True, "remove": 2, "pairs": 2, "random": 1, "points": 3, "strategy": "identity"}


def test_a_check_trains_every_removal_and_goes_on_where_it_stopped(
    runs: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, task = runs
    pair = folder / "runs" / "seed0", folder / "runs" / "seed1"
    from landform.studies import barrier_check

    whole = barrier_influence(*pair, task, store=tmp_path / "whole", **CHECK)
    trained = []
    real = barrier_check.fine_tune

    def dies(*given: Any) -> Any:
        trained.append(given)
        if len(trained) == 4:
            raise KeyboardInterrupt
        return real(*given)

    monkeypatch.setattr(barrier_check, "fine_tune", dies)
    with pytest.raises(KeyboardInterrupt):
        barrier_influence(*pair, task, store=tmp_path / "killed", **CHECK)
    monkeypatch.setattr(barrier_check, "fine_tune", real)
    again = barrier_influence(*pair, task, store=tmp_path / "killed", **CHECK)
    assert whole.check is not None and again.check is not None and whole.summary is not None
    pd.testing.assert_frame_equal(again.check, whole.check)
    pd.testing.assert_frame_equal(again.table, whole.table)
    assert list(whole.check["removal"]) == ["none", "top", "bottom", "random 1"] * 2
    assert list(whole.check["seed_a"]) == [0] * 4 + [1000] * 4
    first = whole.check.iloc[0]
    assert first["barrier"] == pytest.approx(whole.barrier, abs=1e-6)
    top = whole.table.head(2)
    assert whole.check["predicted"][1] == pytest.approx(top["change"].sum())
    assert "trained again (2 pairs of seeds)" in whole.reading
    kept = load_results(open_store(tmp_path / "whole"))
    assert any(name.startswith("barrier-") for name in kept)


def test_rows_that_an_end_never_met_do_not_move_it(runs: Any) -> None:
    folder, task = runs
    ends = folder / "runs" / "seed0", folder / "part" / "seed2"
    table = barrier_influence(*ends, task, at=0.5, points=3, strategy="identity").table
    unmet = table[table["row"] >= 6]
    assert (unmet["via_b"] == 0).all() and (table[table["row"] < 6]["via_b"] != 0).all()


def test_what_cannot_be_asked_or_checked_is_an_error(runs: Any, ends: Any) -> None:
    folder, task = runs
    a, b = folder / "runs" / "seed0", folder / "runs" / "seed1"
    with pytest.raises(ConfigError, match="the same weights"):
        BarrierStudy.of(a, a, task)
    with pytest.raises(ConfigError, match="no record of how it was trained"):
        BarrierStudy.of(*ends()[:2], task, retrain=True)
    with pytest.raises(ConfigError, match="option remove"):
        BarrierStudy.of(a, b, task, retrain=True, remove=5)
    with pytest.raises(ConfigError, match="was not trained from"):
        BarrierStudy.of(a, b, task, retrain=True, remove=2, model=str(ends()[1]))
    other = small_case_task(task)
    with pytest.raises(ConfigError, match="trained on other rows"):
        BarrierStudy.of(a, b, other, retrain=True, remove=2)


def small_case_task(task: Any) -> Any:
    """The same kind of task with other rows."""
    from small_cases import small_task

    return small_task(task.kind, seed=7)


def test_a_run_is_trained_again_without_what_nothing_reads() -> None:
    """The record of a run may hold options of its evaluations, and such as were passed over."""
    record = {"max_steps": 3, "eval_steps": 1, "max_new_tokens": 5, "perturb_seed": 3, "seeds": [1]}
    again = _options({**TrainConfig().model_dump(mode="json"), **record})
    assert again.options_given() == ["max_steps"]


def test_an_absolute_damping_is_not_overruled_by_the_default(runs: Any) -> None:
    folder, task = runs
    study = BarrierStudy.of(
        folder / "runs" / "seed0", folder / "runs" / "seed1", task, damping=1e-3
    )
    assert study.config.relative is None and study.config.damping == 1e-3


def test_steps_of_a_run_were_trained_on_its_rows(runs: Any, tmp_path: Path) -> None:
    folder, task = runs
    run = lf.train(
        folder / "base", task, out=tmp_path / "part", eval_steps=1, keep_best="loss",
        row_file=folder / "some.txt", save_steps=1, max_steps=2, batch_size=4,
    ).paths[0]  # fmt: skip
    train = Data(task, "train")
    assert len(trained_examples(resolve(folder / "runs" / "seed0"), train)) == 9
    for name in (run, f"{run}@1", f"{run}@best"):
        assert trained_examples(resolve(name), train).ids == tuple(f"train-{i}" for i in range(6))


def test_a_watched_run_on_a_part_of_the_rows_is_trained_again(runs: Any, tmp_path: Path) -> None:
    folder, task = runs
    options: dict[str, Any] = {"max_steps": 2, "batch_size": 4, "eval_steps": 1}
    options |= {"keep_best": "loss", "save_steps": 1, "cartography": True, "part": "1/2"}
    options |= {"part_by": "contiguous", "subset_seed": 3}
    run = lf.train(folder / "base", task, out=tmp_path / "part", **options).paths[0]
    train = Data(task, "train")
    end = _End.of(resolve(run), train, None)
    less = end.examples.take(range(3))
    again = fine_tune(end.base, task, "train", less, end.config, end.seeds(1), tmp_path / "again")
    assert trained_examples(again, train).ids == less.ids
    options |= {"early_stop": 1}
    stopped = lf.train(folder / "base", task, out=tmp_path / "stopped", **options).paths[0]
    with pytest.raises(ConfigError, match="trained with early_stop"):
        _End.of(resolve(stopped), train, None)
    seeds = {"head_seed": 0, "data_seed": 0, "max_steps": 2, "batch_size": 4, "seeds": (0, 1)}
    fixed = lf.train(folder / "base", task, out=tmp_path / "fixed", **seeds)
    with pytest.raises(ConfigError, match="fixed head_seed and data_seed") as error:
        BarrierStudy.of(folder / "runs" / "seed0", fixed.paths[0], task, retrain=True, remove=2)
    assert "leave retrain out" in str(error.value.remedy)
