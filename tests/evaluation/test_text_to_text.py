"""Losses over several references, generated answers and answer likelihoods, by brute force."""

import dataclasses
import json

import numpy as np
import pytest
import torch

import landform as lf
from landform.errors import ConfigError, DataError
from landform.evaluation.evaluate import EvaluateConfig
from landform.evaluation.field import Field
from landform.evaluation.generation import Generation, token_settings
from landform.evaluation.points import Data, Evaluator, PointsConfig, PointsWork, prepare, unpack
from landform.evaluation.scores import example_scores
from landform.evaluation.verbalisers import answer_log_likelihoods
from landform.store.artifacts import MemoryStore
from landform.store.engines import run_plan
from landform.store.plan import Plan
from landform.tasks.answers import TextForm, references
from landform.tasks.batching import collate
from landform.tasks.metrics import get_metric
from landform.tasks.objective import Objective
from landform.weights.checkpoint import load_model, resolve
from text_models import (
    FAMILIES,
    ROWS,
    save_text_model,
    text_model,
    text_tokenizer,
    toy_folder,
    write_answers,
)

# Random models seldom end what they say.
pytestmark = pytest.mark.filterwarnings("ignore:.*generated answers were cut")

THREE = (("w1 w2 w3", "yes"), ("w4 w5 w6 w7", "no", "w3 maybe w1 w2"), ("w3 w9", "maybe w2"))
"""Rows with 1, 2 and 1 answers."""


def load(folder, **options):
    return lf.load_task(folder, kind="text-to-text", **{"metrics": "token_f1", **options})


@pytest.fixture
def folder(tmp_path):
    return toy_folder(tmp_path / "toy")


@pytest.fixture
def checkpoint(tmp_path):
    return save_text_model(tmp_path / "model")


def prepared(model, task, checkpoint, **options):
    config = PointsConfig(dtype="float64", **options)
    return prepare(Data(task, "validation"), resolve(checkpoint), model, text_tokenizer(), config)


def token_losses(model, text, answer):
    """-log p of every token of one target, from the model called on one unpadded pair."""
    tokenizer = text_tokenizer()
    source = tokenizer(f" [toy] {text}", return_tensors="pt")
    target = tokenizer(f"<extra_id_0>{answer}", return_tensors="pt").input_ids
    with torch.no_grad():
        z = model(**source, labels=target).logits[0]
    return [float(-z[t].log_softmax(-1)[y]) for t, y in enumerate(target[0])]


# --- the loss -----------------------------------------------------------------------------------


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_the_loss_of_one_two_and_one_answers_by_hand(tmp_path, checkpoint, family):
    model = text_model(family)
    data = prepared(model, load(toy_folder(tmp_path / "three", THREE)), checkpoint)
    (raw,) = Evaluator(model, [data]).run()
    sums, counts = [], []
    for text, *answers in THREE:
        losses = [token_losses(model, text, answer) for answer in answers]
        sums.append(np.mean([sum(one) for one in losses]))
        counts.append(np.mean([len(one) for one in losses]))
    np.testing.assert_allclose(raw.losses, np.divide(sums, counts), rtol=1e-10)
    np.testing.assert_allclose(raw.tokens, counts, rtol=1e-12)
    assert counts[1] == (3 + 6) / 2
    predictions = raw.predictions(load(tmp_path / "three").examples("dev"), "seq2seq")
    mean = get_metric("loss").aggregate(predictions)
    assert mean == pytest.approx(sum(sums) / sum(counts), rel=1e-10)


def test_it_is_what_training_expects(folder, checkpoint):
    model, task = text_model(), load(folder)
    data = prepared(model, task, checkpoint)
    (raw,) = Evaluator(model, [data]).run()
    objective = data.objective
    row, epochs = 3, 600
    kept = {}
    for epoch in range(epochs):
        drawn = data.encoded.drawn(row, f"0 {epoch}")
        key = tuple(drawn["labels"])
        if key not in kept:
            batch = collate([drawn], [0], pad_id=data.encoded.pad_id)
            with torch.no_grad():
                z = objective.logits(model, batch)
            kept[key] = [0, float(objective.losses(z, batch.labels).sums)]
        kept[key][0] += 1
    drawn_mean = sum(n * value for n, value in kept.values()) / epochs
    spread = np.std([value for _, value in kept.values()])
    assert len(kept) == 3
    assert drawn_mean == pytest.approx(
        raw.losses[row] * raw.tokens[row], abs=5 * spread / epochs**0.5
    )


def test_references_first_is_the_first_answer(folder, checkpoint):
    model = text_model()
    (raw,) = Evaluator(model, [prepared(model, load(folder, references="first"), checkpoint)]).run()
    for i, (text, answer, *_) in enumerate(ROWS):
        assert raw.losses[i] == pytest.approx(np.mean(token_losses(model, text, answer)), rel=1e-10)


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_padding_and_batches_change_nothing(folder, checkpoint, family):
    model, task = text_model(family), load(folder)
    whole = prepared(model, task, checkpoint, token_budget=4096)
    (expected,) = Evaluator(model, [whole]).run()
    assert len(whole.batches) == 1
    for budget in (1, 30):
        (found,) = Evaluator(model, [prepared(model, task, checkpoint, token_budget=budget)]).run()
        np.testing.assert_allclose(found.losses, expected.losses, rtol=1e-9)
        assert found.texts == expected.texts
    (batch,) = whole.batches
    wide = torch.nn.functional.pad(batch.labels, (0, 3), value=-100)
    inputs = {name: torch.nn.functional.pad(x, (0, 4)) for name, x in batch.inputs.items()}
    padded = dataclasses.replace(
        whole, batches=(dataclasses.replace(batch, labels=wide, inputs=inputs),)
    )
    (found,) = Evaluator(model, [padded]).run()
    np.testing.assert_allclose(found.losses, expected.losses, rtol=1e-9)
    np.testing.assert_array_equal(found.tokens, expected.tokens)
    assert found.texts == expected.texts


def test_the_order_of_examples_and_of_references_changes_nothing(tmp_path, checkpoint):
    model = text_model()
    (a,) = Evaluator(model, [prepared(model, load(toy_folder(tmp_path / "a")), checkpoint)]).run()
    turned = [(row[0], *row[:0:-1]) for row in ROWS[::-1]]
    other = load(toy_folder(tmp_path / "b", turned))
    (b,) = Evaluator(model, [prepared(model, other, checkpoint)]).run()
    np.testing.assert_allclose(b.losses[::-1], a.losses, rtol=1e-10)
    assert b.texts[::-1] == a.texts


def test_a_masked_position_carries_no_loss(folder, checkpoint):
    model, data = text_model(), prepared(text_model(), load(folder), checkpoint)
    (batch,) = data.batches
    labels = batch.labels.clone()
    at = int((batch.owners == 4).nonzero()[-1])
    row = int(batch.rows[4])
    labels[at, 1] = -100
    (whole,) = Evaluator(model, [data]).run()
    changed = dataclasses.replace(data, batches=(dataclasses.replace(batch, labels=labels),))
    (part,) = Evaluator(model, [changed]).run()
    k = int((batch.owners == 4).sum())
    assert whole.tokens[row] - part.tokens[row] == pytest.approx(1 / k)


def test_the_gradient_of_the_field_is_that_of_the_loss(folder, checkpoint):
    task = load(folder)
    config = PointsConfig(dtype="float64")
    work = PointsWork((resolve(checkpoint),), (Data(task, "validation"),), config)
    field = Field(work())
    loss, slope = field.gradient()
    slope = slope.clone()
    (raw,) = field.worker.evaluator.run()
    assert loss == pytest.approx((raw.losses * raw.tokens).sum() / raw.tokens.sum(), rel=1e-10)
    assert field.loss() == pytest.approx(loss, rel=1e-10)
    model, tokenizer = text_model(dtype=torch.float32).double(), text_tokenizer()
    sums, count = 0.0, 0.0
    for text, *answers in ROWS:
        source = tokenizer(f" [toy] {text}", return_tensors="pt")
        for answer in answers:
            labels = tokenizer(f"<extra_id_0>{answer}", return_tensors="pt").input_ids
            out = model(**source, labels=labels)
            sums = sums + out.loss * labels.shape[1] / len(answers)
            count += labels.shape[1] / len(answers)
    (sums / count).backward()
    expected = dict(model.named_parameters())
    for name, found in field.space.unflatten(slope).items():
        # T5's norms compute their variance in float32, whatever the weights are.
        np.testing.assert_allclose(found, expected[name].grad, atol=1e-7, err_msg=name)
    part = field.batches([3, 1])
    assert sum(len(batch) for batch in part) == 2
    assert field.loss(part) > 0


# --- generation ---------------------------------------------------------------------------------


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_batched_generation_is_that_of_transformers_one_by_one(folder, checkpoint, family):
    model, task, tokenizer = text_model(family, seed=3), load(folder), text_tokenizer()
    data = prepared(model, task, checkpoint, max_new_tokens=7)
    (raw,) = Evaluator(model, [data]).run()
    expected, cut = [], 0
    for text, *_ in ROWS:
        source = tokenizer(f" [toy] {text}", return_tensors="pt")
        made = model.generate(**source, do_sample=False, num_beams=1, max_new_tokens=7)[0, 1:]
        cut += int(tokenizer.eos_token_id not in made.tolist())
        expected.append(tokenizer.decode(made, skip_special_tokens=True).strip())
    assert list(raw.texts) == expected
    assert raw.cut == cut
    assert len(set(expected)) > 1, "a model that always says the same shows nothing"


def test_generation_stops_at_the_end_and_counts_what_was_cut(folder, checkpoint):
    model, task = text_model(seed=3), load(folder)
    data = prepared(model, task, checkpoint, max_new_tokens=3)
    generation, (batch,) = data.generation, data.batches
    with torch.inference_mode():
        memory = data.objective.encode(model, batch)
        tokens, ended = generation.tokens(model, batch.inputs["attention_mask"], memory)
        assert tokens.shape == (len(ROWS), 3)
        # From here on every token is the end: one step, and nothing is cut.
        ends = tuple(range(model.config.vocab_size))
        short = dataclasses.replace(generation, ends=ends)
        tokens, ended = short.tokens(model, batch.inputs["attention_mask"], memory)
    assert tokens.shape == (len(ROWS), 1)
    assert ended.all()
    assert short.run(model, batch, memory)[1] == 0


def test_texts_lose_special_tokens_the_sentinel_and_space():
    tokenizer = text_tokenizer()
    form = TextForm("toy")
    generation = Generation(tokenizer, 8, 0, (1,), 0, form.lead(tokenizer))
    ids = tokenizer("<extra_id_0> w1 w2").input_ids
    rows = torch.tensor([[*ids, 0, 0], [*ids[:2], 1, 5, 5, 5]])
    assert generation.texts(rows) == ["w1 w2", "w1"]


def test_a_length_beyond_the_positions_is_refused(folder, tmp_path):
    bart = save_text_model(tmp_path / "bart", "bart")
    task = load(folder)
    with pytest.raises(DataError, match="max_new_tokens 41 is more than the model can take"):
        lf.evaluate(bart, task, max_new_tokens=41)
    with pytest.raises(DataError, match="max_target_length 41 is more than the model can take"):
        lf.evaluate(bart, load(folder, max_target_length=41))
    with pytest.warns(UserWarning, match=r"generated answers were cut at 40 tokens"):
        lf.evaluate(bart, task)
    with pytest.raises(ConfigError, match="max_new_tokens"):
        lf.evaluate(bart, task, max_new_tokens=0)


# --- evaluate, lines ------------------------------------------------------------------------------


def test_evaluate_judges_generated_answers_and_keeps_them(folder, checkpoint, tmp_path):
    task = load(folder, metrics=("token_f1", "exact_match"))
    result = lf.evaluate(checkpoint, task, store=tmp_path / "study", max_new_tokens=5)
    again = lf.evaluate(checkpoint, task, store=tmp_path / "study", max_new_tokens=5)
    log = result.log
    assert log.label[1] == "no | w3 maybe"
    assert result.metrics["token_f1"] == pytest.approx(log.score.mean())
    assert again.log.prediction.tolist() == log.prediction.tolist()
    assert again.metrics == result.metrics
    assert again.provenance["generations_cut"] == result.provenance["generations_cut"] > 0
    assert f"{result.provenance['generations_cut']} generated answers cut" in result.reading
    other = lf.evaluate(checkpoint, task, store=tmp_path / "study", max_new_tokens=1)
    assert all(len(text.split()) <= 1 for text in other.log.prediction)


def test_no_metric_of_text_no_generation(folder, checkpoint):
    result = lf.evaluate(checkpoint, load(folder, metrics="token_accuracy"))
    assert "prediction" not in result.log
    assert set(result.metrics) == {"loss", "token_accuracy"}


def test_seq2seq_tasks_of_own_columns_have_the_same_metrics(tmp_path, checkpoint):
    path = tmp_path / "own.tsv"
    path.write_text("source\ttarget\nw1 w2\tyes\nw3 w4 w5\tno w1\n", encoding="utf-8")
    task = lf.load_task(
        {"validation": str(path)},
        text="source",
        label="target",
        kind="seq2seq",
        metrics=("exact_match", "rouge_l"),
    )
    assert references(task.examples("validation")) == (("yes",), ("no w1",))
    result = lf.evaluate(checkpoint, task, max_new_tokens=4)
    assert {"loss", "exact_match", "rouge_l"} == set(result.metrics)
    assert len(result.log.prediction) == 2
    model, tokenizer = text_model(dtype=torch.float32), text_tokenizer()
    made = model.generate(**tokenizer("w1 w2", return_tensors="pt"), max_new_tokens=4)[0, 1:]
    assert result.log.prediction[0] == tokenizer.decode(made, skip_special_tokens=True).strip()


def test_a_line_keeps_texts_and_its_ends_are_the_checkpoints(folder, tmp_path):
    a, b = (save_text_model(tmp_path / name, "t5", seed) for seed, name in enumerate("ab"))
    task = load(folder, metrics=("token_f1", "rouge_l"))
    options = {"max_new_tokens": 4}
    line = lf.interpolate(a, b, task, points=4, **options)
    for end, row in ((a, 0), (b, -1)):
        alone = lf.evaluate(end, task, **options)
        for name in ("loss", "token_f1", "rouge_l"):
            assert line.table[name].iloc[row] == alone.metrics[name]


def test_the_texts_of_an_artifact_need_no_model(folder, checkpoint):
    task = load(folder)
    config = EvaluateConfig(max_new_tokens=4)
    work = PointsWork((resolve(checkpoint),), (Data(task, "validation"),), config)
    job, store = work.point_job(0), MemoryStore()
    with pytest.warns(UserWarning, match=r"\d of 5 generated answers were cut at 4"):
        run_plan(Plan([job]), work, store)
    (found,) = unpack(store.read(job.key), 0, task.examples("validation"), "seq2seq")
    assert len(found.texts) == len(ROWS)
    assert found.references == references(task.examples("validation"))
    np.testing.assert_array_equal(
        example_scores(task, found), example_scores(task, found, "token_f1")
    )
    assert example_scores(task, found, "loss").tolist() == found.losses.tolist()
    other = PointsWork(work.checkpoints, work.data, EvaluateConfig(max_new_tokens=5))
    assert other.point_job(0).key != job.key


# --- likelihoods of answers -----------------------------------------------------------------------


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_log_likelihoods_of_answers_by_hand(folder, checkpoint, family):
    model = text_model(family)
    data = prepared(model, load(folder), checkpoint, token_budget=40)
    answers = ("yes", "no w1", "no", "w3 maybe w2 w1")
    found = answer_log_likelihoods(model, data, answers, text_tokenizer())
    assert found.shape == (len(ROWS), 4)
    assert found.dtype == np.float64
    for i, (text, *_) in enumerate(ROWS):
        for k, answer in enumerate(answers):
            expected = -sum(token_losses(model, text, answer)[1:])  # without the sentinel
            assert found[i, k] == pytest.approx(expected, rel=1e-9)


def test_log_likelihoods_in_parts_and_without_a_sentinel(folder, checkpoint, monkeypatch):
    from landform.evaluation import verbalisers

    model = text_model()
    data = prepared(model, load(folder, sentinel="", task_prefix=False), checkpoint)
    answers = ("yes", "no w1", "no")
    whole = answer_log_likelihoods(model, data, answers, text_tokenizer())
    monkeypatch.setattr(verbalisers, "_ROWS", 2 * len(ROWS))
    parts = answer_log_likelihoods(model, data, answers, text_tokenizer())
    np.testing.assert_allclose(parts, whole, rtol=1e-10)
    tokenizer = text_tokenizer()
    source = tokenizer(ROWS[0][0], return_tensors="pt")
    target = tokenizer("no w1", return_tensors="pt").input_ids
    with torch.no_grad():
        mean = float(model(**source, labels=target).loss)
    assert whole[0, 1] == pytest.approx(-3 * mean, rel=1e-9)


def test_likelihoods_need_answers_and_a_seq2seq_task(folder, checkpoint, tmp_path, write_rows):
    model = text_model()
    data = prepared(model, load(folder), checkpoint)
    with pytest.raises(ConfigError, match="no answers"):
        answer_log_likelihoods(model, data, (), text_tokenizer())
    classes = dataclasses.replace(data, objective=Objective("regression"))
    with pytest.raises(ConfigError, match="answers have likelihoods in seq2seq tasks"):
        answer_log_likelihoods(model, classes, ("a",), text_tokenizer())


def test_pairs_of_files_of_one_row(tmp_path, checkpoint):
    path = write_answers(tmp_path / "toy_dev.tsv", [("w1", "yes", "no", "maybe")])
    task = load({"dev": str(path)})
    result = lf.evaluate(checkpoint, task, max_new_tokens=2)
    assert len(result.log) == 1


# --- what decides an artifact with answers --------------------------------------------------------


def test_which_data_sets_are_answered_decides_the_artifact(folder, checkpoint):
    judged, lost = load(folder, metrics="exact_match"), load(folder, metrics="token_accuracy")
    one = (Data(judged, "validation"), Data(lost, "train"))
    both = (Data(judged, "validation"), Data(judged, "train"))
    store = MemoryStore()
    for data in (one, both):
        work = PointsWork((resolve(checkpoint),), data, EvaluateConfig(max_new_tokens=3))
        run_plan(Plan([work.point_job(0)]), work, store)
        for d, item in enumerate(data):
            examples = item.examples(None)
            (found,) = unpack(store.read(work.point_job(0).key), d, examples, "seq2seq")
            assert (found.texts is not None) == (item.task is judged)


@pytest.mark.parametrize("family", ["t5", "bart"])
def test_the_tokens_of_the_answers_decide_the_artifact(folder, tmp_path, family):
    path, data = save_text_model(tmp_path / "m", family), Data(load(folder), "validation")
    file, keys = path / "generation_config.json", set()
    settings = json.loads(file.read_text())
    for changes in ({}, {"decoder_start_token_id": 5}, {"eos_token_id": [1, 6]}):
        file.write_text(json.dumps({**settings, **changes}))
        checkpoint = resolve(path)
        model, told = load_model(checkpoint, "seq2seq"), token_settings(checkpoint)
        made = Generation.of(model, text_tokenizer(), None, 4)
        end = told["eos_token_id"]
        assert made.start == told["decoder_start_token_id"] and made.pad == told["pad_token_id"]
        assert made.ends == (tuple(end) if isinstance(end, list) else (end,))
        keys.add(PointsWork((checkpoint,), (data,), EvaluateConfig()).point_job(0).key)
    file.unlink()
    assert token_settings(resolve(path))["eos_token_id"] == 1
    assert len(keys) == 3
