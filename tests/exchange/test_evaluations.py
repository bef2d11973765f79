"""Per-sample files of many models: label orders, HANS by text, CoLA's two parts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import matthews_corrcoef

import landform as lf
from known_lines import made_lines
from landform.errors import DataError, LabelError
from landform.exchange.connections import ImportConfig, connection_of
from landform.exchange.evaluations import endpoint_table, find_samples, read_evaluations
from landform.tasks.metrics import softmax

GOOGLE = {"contradiction": 0, "entailment": 1, "neutral": 2}
HUGGING = {"contradiction": 2, "entailment": 0, "neutral": 1}


def write(
    path: Path,
    labels: list[str],
    logits: np.ndarray,
    order: dict[str, int],
    sentences: list[str] | None = None,
) -> Path:
    """`logits` has its columns in alphabetical order of the classes; the file has `order`'s."""
    names = sorted(order)
    columns = [names.index(name) for name in sorted(order, key=order.__getitem__)]
    rows = logits[:, columns]
    sentences = sentences or [f"[CLS] text {i} [SEP] pair {i} [SEP]" for i in range(len(labels))]
    samples = [
        {
            "probabilities": softmax(row).tolist(),
            "logits": row.tolist(),
            "label": order[label],
            "sentence": sentence,
        }
        for row, label, sentence in zip(rows, labels, sentences, strict=True)
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"label_dict": order, "samples": samples}))
    return path


@pytest.fixture
def mnli() -> tuple[list[str], np.ndarray]:
    generator = np.random.default_rng(0)
    labels = [sorted(GOOGLE)[k] for k in generator.integers(0, 3, 40)]
    return labels, generator.normal(size=(40, 3))


def test_label_orders_of_two_families_mean_the_same(tmp_path, mnli):
    labels, logits = mnli
    write(tmp_path / "m0.json", labels, logits, GOOGLE)
    write(tmp_path / "m1.json", labels, logits, HUGGING)
    found = read_evaluations(tmp_path / "m", name="mnli")
    assert list(found) == ["0", "1"]
    one, two = found.values()
    assert one.label_names == two.label_names == ("contradiction", "entailment", "neutral")
    pd.testing.assert_frame_equal(one.log, two.log)
    gold = np.array([sorted(GOOGLE).index(label) for label in labels])
    losses = -np.log(softmax(logits)[np.arange(40), gold])
    assert one.metrics["loss"] == pytest.approx(losses.mean())
    assert one.metrics["accuracy"] == (logits.argmax(1) == gold).mean()
    low, high = one.intervals["accuracy"]
    assert low < one.metrics["accuracy"] < high
    assert one.reading.startswith("0 on mnli:validation (40 examples): loss ")


def test_which_files(tmp_path, mnli):
    for name in ("a_eval_bert_2", "a_eval_bert_10", "a_eval_bert_x", "other"):
        write(tmp_path / f"{name}.json", *mnli, GOOGLE)
    assert list(find_samples(tmp_path / "a_eval_bert_")) == ["2", "10"]
    assert list(find_samples(tmp_path / "a_eval_bert_", ["x", "2"])) == ["x", "2"]
    (tmp_path / "other.json").unlink()
    assert list(find_samples(tmp_path)) == ["2", "10", "x"]
    whole = ["a_eval_bert_2", "a_eval_bert_10"]
    assert list(find_samples(tmp_path, models=whole))[:2] == whole
    with pytest.raises(DataError, match=r"bert_7\.json is missing"):
        find_samples(tmp_path / "a_eval_bert_", ["7"])
    with pytest.raises(DataError, match="no per-sample file of that prefix"):
        find_samples(tmp_path / "b_")


def test_a_folder_per_model_as_the_hub_keeps_them(tmp_path, mnli):
    for i in (1, 12):
        write(tmp_path / "qqp" / f"bert_ft_qqp-{i}" / "qqp_eval@34110steps.json", *mnli, GOOGLE)
        write(tmp_path / "cola" / f"cola_6ep_ft-{i}" / f"cola_6ep_ft-{i}.json", *mnli, GOOGLE)
    assert list(find_samples(tmp_path / "qqp")) == ["1", "12"], "11 is not cut in two"
    assert list(find_samples(tmp_path / "cola")) == ["1", "12"]
    write(tmp_path / "qqp" / "bert_ft_qqp-1" / "paws_eval@34110steps.json", *mnli, GOOGLE)
    with pytest.raises(DataError, match="holds 2 per-sample files"):
        find_samples(tmp_path / "qqp")


def test_cola_is_two_parts_by_the_order(tmp_path):
    generator = np.random.default_rng(1)
    order = {"unacceptable": 0, "acceptable": 1}
    labels = [("unacceptable", "acceptable")[k] for k in generator.integers(0, 2, 1043)]
    logits = generator.normal(size=(1043, 2))
    sentences = [f"[CLS] text {i} [SEP]" for i in range(1043)]
    write(tmp_path / "cola_6ep_ft-0.json", labels, logits, order, sentences)
    (found,) = read_evaluations(tmp_path / "cola_6ep_ft-", name="cola").values()
    gold = np.array([label == "acceptable" for label in labels])
    said = logits[:, 0] > logits[:, 1]  # alphabetical columns: acceptable first
    assert found.metrics["matthews"] == pytest.approx(matthews_corrcoef(gold, said))
    values = found.subsets.set_index(["subset", "metric"])
    assert values.loc[("in_domain_dev", "matthews"), "n"] == 527
    assert values.loc[("out_domain_dev", "matthews"), "n"] == 516
    assert values.loc[("in_domain_dev", "matthews"), "value"] == pytest.approx(
        matthews_corrcoef(gold[:527], said[:527])
    )


# --- HANS ----------------------------------------------------------------------------------------

TWO = {"entailment": 0, "non-entailment": 1}


@pytest.fixture
def hans(tmp_path) -> tuple[Any, list[str], list[str], list[str]]:
    """A small HANS, and its rows as an uncased tokenizer decodes them, shuffled."""
    rows, sentences, labels, heuristics = [], [], [], []
    for i in range(24):
        heuristic = ("lexical_overlap", "subsequence", "constituent")[i % 3]
        gold = ("entailment", "non-entailment")[i // 3 % 2]
        premise, hypothesis = f"The Actor n°{i} didn't run, fast .", f"The actor {i} ran ."
        rows.append([gold, premise, hypothesis, f"ex{i}", heuristic, f"case{i % 6}", "t"])
        decoded = f"the actor n ° {i} didn ' t run , fast."
        sentences.append(f"[CLS] {decoded} [SEP] the actor {i} ran. [SEP] [PAD] [PAD]")
        labels.append(gold)
        heuristics.append(heuristic)
    header = ["gold_label", "sentence1", "sentence2", "pairID", "heuristic", "subcase", "template"]
    file = tmp_path / "HANS" / "heuristics_evaluation_set.txt"
    file.parent.mkdir()
    pd.DataFrame(rows, columns=header).to_csv(file, sep="\t", index=False)
    order = np.random.default_rng(42).permutation(24)
    task = lf.load_task("hans", data_dir=tmp_path)
    picked = ([values[k] for k in order] for values in (sentences, labels, heuristics))
    return (task, *picked)


def test_hans_rows_are_found_by_their_text(tmp_path, hans):
    task, sentences, labels, heuristics = hans
    logits = np.random.default_rng(2).normal(size=(24, 2))
    path = write(tmp_path / "hans_eval_bert_3.json", labels, logits, TWO, sentences)
    (found,) = read_evaluations(path, task=task).values()
    assert list(found.log["heuristic"]) == heuristics
    assert set(found.log["text_id"]) == {f"ex{i}" for i in range(24)}
    said = np.where(logits[:, 0] >= logits[:, 1], "entailment", "non-entailment")
    values = found.subsets.set_index(["subset", "metric"])
    for heuristic in set(heuristics):
        for gold in TWO:
            mask = (np.array(heuristics) == heuristic) & (np.array(labels) == gold)
            share = (said[mask] == gold).mean()
            assert values.loc[(f"{heuristic}/{gold}", "accuracy"), "value"] == share
    assert values.loc[("case0", "accuracy"), "n"] == 4
    columns = endpoint_table({"3": found}).columns
    assert "hans:validation/lexical_overlap/non-entailment/accuracy" in columns


def test_samples_of_another_data_set(tmp_path, hans):
    task, sentences, labels, _ = hans
    logits = np.zeros((24, 2))
    foreign = ["[CLS] who [SEP] knows [SEP]", *sentences[1:]]
    path = write(tmp_path / "a.json", labels, logits, TWO, foreign)
    with pytest.raises(DataError, match=r"a\.json: sample 0 is not in hans:validation: 'who'"):
        read_evaluations(path, task=task)


def test_a_wrong_label_dict(tmp_path, hans):
    task, sentences, labels, _ = hans
    logits = np.zeros((24, 2))
    path = write(tmp_path / "a.json", labels, logits, TWO, sentences)
    document = json.loads(path.read_text())
    swapped = {"entailment": 1, "non-entailment": 0}
    path.write_text(json.dumps({**document, "label_dict": swapped}))
    with pytest.raises(LabelError, match="24 of 24 labels are not those of hans"):
        read_evaluations(path, task=task)
    path.write_text(json.dumps({**document, "label_dict": {"yes": 0, "no": 1}}))
    with pytest.raises(LabelError, match="the class 'no' is not one of hans"):
        read_evaluations(path, task=task)
    path.write_text(json.dumps({**document, "label_dict": {"entailment": 0, "non-entailment": 2}}))
    with pytest.raises(DataError, match=r"a\.json: 'label_dict' is"):
        read_evaluations(path, task=task)


def test_two_files_that_disagree(tmp_path, mnli):
    labels, logits = mnli
    one = write(tmp_path / "m0.json", labels, logits, GOOGLE)
    other = ["neutral" if labels[5] != "neutral" else "entailment"]
    write(tmp_path / "m1.json", [*labels[:5], *other, *labels[6:]], logits, GOOGLE)
    with pytest.raises(DataError, match="disagree about sample 5: its label") as caught:
        read_evaluations(tmp_path / "m")
    assert str(one) in str(caught.value) and "m1.json" in str(caught.value)
    write(tmp_path / "m1.json", labels[:-1], logits[:-1], GOOGLE)
    with pytest.raises(DataError, match=r"m1\.json holds 39 samples, .*m0\.json holds 40"):
        read_evaluations(tmp_path / "m")
    write(tmp_path / "m1.json", ["entailment"] * 40, logits[:, :2], TWO)
    with pytest.raises(LabelError, match=r"m1\.json has the classes entailment, non-entailment"):
        read_evaluations(tmp_path / "m")


# --- beside lines --------------------------------------------------------------------------------


def test_evaluations_of_the_models_of_lines(tmp_path, mnli):
    labels, logits = mnli
    generator = np.random.default_rng(5)
    for name in ("0", "1", "2", "10"):
        noise = generator.normal(size=logits.shape)
        write(tmp_path / f"m{name}.json", labels, logits + noise, GOOGLE)
    found = read_evaluations(tmp_path / "m", name="mnli")
    connection = connection_of(
        made_lines(), evaluations=[found], config=ImportConfig(replicates=20)
    )
    assert connection.statistics is not None
    assert "mnli:validation/accuracy" in connection.endpoints
    row = connection.pairs.iloc[0]
    one, two = (found[name].log for name in (row.a, row.b))
    assert row.error_agreement == (one.correct == two.correct).mean()
    assert row.functional_similarity == (one.prediction == two.prediction).mean()
    assert 0 < row.js_distance < 1
    alone = connection_of(made_lines(), config=ImportConfig(replicates=20))
    assert alone.pairs[["error_agreement", "js_distance"]].isna().all(axis=None)
