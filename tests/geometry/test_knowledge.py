"""What is known along a path: scores of every example, and who is forgotten."""

import numpy as np
import pandas as pd
import pytest
import torch

import landform as lf
from landform.errors import ConfigError, DataError
from landform.evaluation.points import PointsWorker
from landform.geometry.forgetting import STATISTICS
from landform.geometry.knowledge import (
    Knowledge,
    KnowledgeConfig,
    between_ends,
    knowledge_along_path,
    score_name,
)
from landform.results import from_parts, to_parts
from landform.weights.checkpoint import resolve
from landform.weights.tuning import TuningConfig, save_model, tune


def load(path, write_rows, rows=40, seed=0):
    write_rows(path, rows, seed=seed)
    return lf.load_task({"train": str(path)}, text="sentence", label="label", name="reviews")


@pytest.fixture
def task(tmp_path, write_rows):
    return load(tmp_path / "train.tsv", write_rows)


@pytest.fixture
def ends(tmp_path, save_checkpoint):
    return [save_checkpoint(tmp_path / f"s{i}", seed=i) for i in (1, 2)]


def tuned(base, place, method, seed, word_tokenizer):
    """A checkpoint tuned by a method, its new tensors far from where they start."""
    model = lf.load_model(base, "classification")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        tune(model, TuningConfig(tuning=method), head=True)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name in model.landform_tuned:
                    parameter.normal_(std=0.3)
    save_model(model, place, base, resolve(base).fingerprint)
    word_tokenizer.save_pretrained(place)
    return place


def known(k, seed=0):
    """A cartography in which those that are often wrong are unsure."""
    random = np.random.default_rng(seed)
    n = len(k.table)
    confidence = 0.2 + 0.6 * k.scores.mean(axis=0) + 0.2 * random.random(n)
    return pd.DataFrame(
        {
            "text_id": k.table.text_id,
            "correctness": random.integers(0, 4, n) / 3,
            "confidence": confidence,
            "variability": random.random(n) / 2,
            "turns": random.integers(0, 3, n),
        }
    )


def test_every_score_against_a_mixed_state_dict(ends, task, tiny_model, word_tokenizer):
    k = knowledge_along_path(*ends, task, points=4, dtype="float64")
    assert k.scores.shape == (4, 40) and k.ts == (0, 1 / 3, 2 / 3, 1)
    a, b = (tiny_model(seed=s, dtype=torch.float32).double().state_dict() for s in (1, 2))
    examples, before = task.examples("train"), set()
    for p, t in enumerate(k.ts):
        model = tiny_model(seed=7)
        mixed = {n: (1 - t) * a[n] + t * b[n] if a[n].is_floating_point() else a[n] for n in a}
        model.load_state_dict(mixed)
        right = []
        for (text,), label in zip(examples.texts, examples.labels, strict=True):
            with torch.no_grad():
                logits = model(**word_tokenizer(text, return_tensors="pt")).logits
            right.append(float(logits.argmax() == label))
        assert k.scores[p].tolist() == right
        zero = {i for i, score in enumerate(right) if not score}
        assert set(k.forgotten[p]) == zero - before and set(k.relearned[p]) == before - zero
        assert set(k.lists[p]["zero"]) == zero
        before = zero
        assert k.along.score[p] == pytest.approx(np.mean(right))
    assert k.table.text_id.tolist() == list(examples.ids) and "text" in k.table


@pytest.mark.parametrize("method", ["full", "adapter", "lora", "bitfit"])
def test_ends_are_the_checkpoints_own_evaluations(
    method, tmp_path, save_checkpoint, task, word_tokenizer
):
    if method == "full":
        ends = [save_checkpoint(tmp_path / f"f{i}", seed=i) for i in (3, 4)]
    else:
        base = save_checkpoint(tmp_path / "base", seed=3)
        ends = [tuned(base, tmp_path / f"t{i}", method, i, word_tokenizer) for i in (5, 6)]
    k = knowledge_along_path(*ends, task, points=3)
    line = lf.interpolate(*ends, task, split="train", points=3)
    for place, end in ((0, ends[0]), (-1, ends[1])):
        own = lf.evaluate(end, task, split="train")
        assert k.scores[place].tolist() == own.log.correct.astype(float).tolist()
        assert line.table.loss.iloc[place] == own.metrics["loss"], "exactly, not nearly"
        assert line.table.accuracy.iloc[place] == own.metrics["accuracy"]
    assert line.table.loss.iloc[0] != line.table.loss.iloc[-1], "two models, not one"


def test_the_grid_of_26_points():
    config = KnowledgeConfig(points=26)
    assert [f"{t:.2f}" for t in config.ts] == [f"{4 * k / 100:.2f}" for k in range(26)]
    # The original rounds k / 25 to three decimals: the same numbers, to the last digit.
    assert [float(t) for t in config.ts] == [round(k / 25, 3) for k in range(26)]
    assert [round(t, 3) for t in KnowledgeConfig().ts] == [0, 0.2, 0.4, 0.6, 0.8, 1]


def test_points_that_interpolate_kept_are_reused(ends, task, tmp_path, monkeypatch):
    lf.interpolate(*ends, task, split="train", points=6, store=tmp_path / "study")
    monkeypatch.setattr(PointsWorker, "run", lambda self, job: pytest.fail("evaluated again"))
    k = knowledge_along_path(*ends, task, store=tmp_path / "study")
    assert len(k.ts) == 6


def test_a_killed_run_goes_on_to_the_same_result(ends, task, tmp_path, monkeypatch):
    whole = knowledge_along_path(*ends, task, store=tmp_path / "whole")
    ran, original = [], PointsWorker.run

    def run(self, job):
        if len(ran) == 2:
            raise KeyboardInterrupt
        ran.append(job.key)
        return original(self, job)

    monkeypatch.setattr(PointsWorker, "run", run)
    with pytest.raises(KeyboardInterrupt):
        knowledge_along_path(*ends, task, store=tmp_path / "part")
    monkeypatch.setattr(PointsWorker, "run", original)
    again = knowledge_along_path(*ends, task, store=tmp_path / "part")
    pd.testing.assert_frame_equal(again.table, whole.table)
    pd.testing.assert_frame_equal(again.summary, whole.summary)
    assert again.reading == whole.reading and again.provenance == whole.provenance


def test_along_a_fitted_curve(ends, task, tmp_path):
    path = lf.fit_curve(*ends, task, bends=1, steps=3, batch_size=8)
    k = knowledge_along_path(*ends, task, points=5, path=path)
    assert k.path == "bezier" and k.ts == pytest.approx((0, 0.25, 0.5, 0.75, 1))
    found = path.evaluate(task, split="train", points=5)
    np.testing.assert_allclose(k.along.score, found.table.accuracy)
    with pytest.raises(ConfigError, match=r"the path runs from .*s1 to .*s2; .*s2 has other"):
        knowledge_along_path(*reversed(ends), task, path=path)
    with pytest.raises(ConfigError, match="points of a curve lie at equal arc length"):
        knowledge_along_path(*ends, task, path=path, positions=(0.0, 0.3, 1.0))


def test_the_forgotten_against_all_and_against_chance(ends, task):
    plain = knowledge_along_path(*ends, task)
    assert plain.comparison is None and "newly forgotten" not in plain.reading
    table = known(plain).sample(frac=1, random_state=0)  # in any order
    k = knowledge_along_path(*ends, task, cartography=table)
    by_id = table.set_index("text_id")
    for p, rows in enumerate(k.forgotten):
        own = by_id.loc[list(k.table.text_id[rows])]
        for name in STATISTICS:
            expected = own[name].mean() if len(own) else np.nan
            assert k.summary[name][p] == pytest.approx(expected, nan_ok=True)
            assert k.summary[f"{name}_base"][p] == pytest.approx(by_id[name].mean())
    assert {"turns_low", "turns_high", "relearned_turns", "turns_control"} <= set(k.summary)
    assert k.summary.forgotten.tolist() == [len(rows) for rows in k.forgotten]
    assert "newly forgotten on the way" in k.reading and "random" in k.reading
    tables, record = to_parts(k)
    assert from_parts(tables, record).to_json().keys() == k.to_json().keys()
    assert isinstance(from_parts(tables, record), Knowledge)


def test_between_ends_that_agree(ends, task):
    k = knowledge_along_path(*ends, task, points=9)
    right = k.scores == 1
    both = right[0] & right[-1]
    lost = sum(both[i] and not right[:, i].all() for i in range(40))
    gained = sum(not right[0, i] and not right[-1, i] and right[:, i].any() for i in range(40))
    assert k.between["of"].tolist() == [both.sum(), (~right[0] & ~right[-1]).sum()]
    assert k.between.examples.tolist() == [lost, gained]
    row = k.between.iloc[0]
    assert row.share == pytest.approx(lost / both.sum()) and row.low <= row.share <= row.high


def test_an_example_without_a_score_is_neither_right_nor_wrong():
    """It once counted among those that are not right at both ends."""
    scores = np.array([[0.0, 1.0, np.nan], [1.0, 1.0, np.nan], [0.0, 1.0, np.nan]])
    found = between_ends(scores, 0.95).set_index("change")
    assert found["of"].to_dict() == {"forgotten": 1, "learned": 1}
    assert found.examples.to_dict() == {"forgotten": 0, "learned": 1}


# --- a cartography of other data -----------------------------------------------------------------


def test_a_cartography_of_other_data(ends, task):
    table = known(knowledge_along_path(*ends, task, points=2))
    strange = table.assign(text_id=["other-7", *table.text_id[1:]])
    with pytest.raises(DataError, match="other data: reviews:train has no example 'other-7'"):
        knowledge_along_path(*ends, task, cartography=strange)
    first = table.text_id[3]
    with pytest.raises(DataError, match=f"no row for 2 of 40 .* the first of them '{first}'"):
        knowledge_along_path(*ends, task, cartography=table.drop([3, 5]))
    with pytest.raises(DataError, match=f"two rows for '{first}'"):
        knowledge_along_path(*ends, task, cartography=pd.concat([table, table.iloc[[3]]]))
    with pytest.raises(DataError, match="there must be text_id and one of correctness"):
        knowledge_along_path(*ends, task, cartography=table[["text_id"]])
    holes = table.assign(turns=table.turns.where(table.index != 4))
    with pytest.raises(DataError, match="the turns of 'train-4' is nan"):
        knowledge_along_path(*ends, task, cartography=holes)


@pytest.mark.parametrize(
    "options", [{"controls": 50}, {"partial": True}], ids=["controls", "partial"]
)
def test_options_of_a_cartography_that_is_not_there(ends, task, options):
    with pytest.raises(ConfigError, match=f"{next(iter(options))} has no effect without"):
        knowledge_along_path(*ends, task, **options)


def test_a_cartography_of_a_part(ends, task):
    whole = knowledge_along_path(*ends, task)
    table = known(whole)
    k = knowledge_along_path(*ends, task, cartography=table.iloc[:30], partial=True)
    assert k.scores.shape == (6, 40) and k.table.turns.isna().sum() == 10
    row = k.comparison[(k.comparison.step == 0) & (k.comparison.statistic == "turns")].iloc[0]
    assert row.base == pytest.approx(table.turns[:30].mean())
    assert row.n == (whole.forgotten[0] < 30).sum()
    few = knowledge_along_path(*ends, task, cartography=table, rows=20)
    assert few.scores.shape == (6, 20)
    assert few.summary.turns_base[0] == pytest.approx(table.turns[:20].mean())


def test_examples_that_are_neither_right_nor_wrong(tmp_path, save_checkpoint):
    rows = "sentence\tscore\n" + "".join(f"w{i} w{i + 1}\t{i / 10}\n" for i in range(8))
    (tmp_path / "sts.tsv").write_text(rows)
    task = lf.load_task(
        str(tmp_path / "sts.tsv"), text="sentence", label="score", kind="regression"
    )
    ends = [save_checkpoint(tmp_path / f"r{i}", num_labels=1, seed=i) for i in range(2)]
    with pytest.warns(UserWarning, match="no 'train'"), pytest.raises(ConfigError, match="neither"):
        knowledge_along_path(*ends, task)


@pytest.mark.filterwarnings("ignore:.*generated answers were cut")
def test_answers_in_text_have_scores_between(tmp_path, save_checkpoint):
    folder = tmp_path / "toy"
    folder.mkdir()
    rows = [f"w{i} w{(7 * i) % 40}\tw{i % 40} w1\tw{(3 * i) % 40}\n" for i in range(16)]
    (folder / "toy_train.tsv").write_text("".join(rows))
    ends = [
        save_checkpoint(tmp_path / f"t{i}", kind="seq2seq", architecture="t5", seed=i)
        for i in (1, 2)
    ]
    task = lf.load_task(str(folder), kind="text-to-text", metrics=("token_f1",))
    options = {"max_new_tokens": 6}
    k = knowledge_along_path(*ends, task, points=3, **options)
    assert k.metric == "token_f1" and k.scores.shape == (3, 16)
    for place, end in ((0, ends[0]), (-1, ends[1])):
        own = lf.evaluate(end, task, split="train", **options)
        assert k.along.score.iloc[place] == pytest.approx(own.metrics["token_f1"], abs=1e-12)
    assert 0 < k.scores.max() < 1, "a share of the words of a random answer"
    wrong = {p: set(np.flatnonzero(row == 0)) for p, row in enumerate(k.scores)}
    assert set(k.forgotten[1]) == wrong[1] - wrong[0]


def test_a_metric_whose_examples_are_not_from_0_to_1_is_refused(tmp_path, save_checkpoint):
    folder = tmp_path / "toy"
    folder.mkdir()
    (folder / "toy_train.tsv").write_text("".join(f"w{i} w2\t{i}.0\n" for i in range(6)))
    ends = [
        save_checkpoint(tmp_path / f"t{i}", kind="seq2seq", architecture="t5", seed=i)
        for i in (1, 2)
    ]
    task = lf.load_task(str(folder), kind="text-to-text", metrics=("answer_pearson",))
    with pytest.raises(ConfigError, match=r"(?s)answer_pearson.* use a metric that has: exact_m"):
        knowledge_along_path(*ends, task, points=3)
    assert score_name(task) is None
    both = lf.load_task(str(folder), kind="text-to-text", metrics=("answer_pearson", "token_f1"))
    assert score_name(both) == "token_f1"
