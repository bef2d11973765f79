"""The files of Mode-Connectivity-PLM, written and read."""

import json

import numpy as np
import pandas as pd
import pytest

import landform as lf
from landform.errors import ConfigError, DataError
from landform.exchange.knowledge import (
    read_knowledge,
    write_distance,
    write_forgotten,
    write_knowledge,
    write_line,
)

# Section 6.3 of the description of the original: what its own script printed.
DYNAMICS = {
    "0": {"acc": [0, 1, 1], "confidence": [0.2, 0.6, 0.9]},
    "1": {"acc": [1, 1, 1], "confidence": [0.9, 0.9, 0.9]},
    "2": {"acc": [0, 0, 1], "confidence": [0.1, 0.2, 0.5]},
    "3": {"acc": [1, 0, 1], "confidence": [0.6, 0.4, 0.7]},
}
LISTS = {
    "0.0": {"zero_list": [0], "one_list": [1, 2, 3]},
    "0.5": {"zero_list": [0, 2, 3], "one_list": [1]},
    "1.0": {"zero_list": [2], "one_list": [0, 1, 3]},
}
REPORT = """\
this is from interpolation point start ===> 0.0
total number of newly forgotten examples: 1
average correctness is: 0.66667
average confidence is: 0.56667
average variance is: 0.28674
average turn is: 1.0

this is from interpolation point 0.0 ===> 0.5
total number of newly forgotten examples: 2
average correctness is: 0.5
average confidence is: 0.41667
average variance is: 0.14734
average turn is: 1.5

this is from interpolation point 0.5 ===> 1.0
total number of newly forgotten examples: 0
average correctness is: 0.0
average confidence is: 0.0
average variance is: 0.0
average turn is: 0.0

"""


@pytest.fixture
def folder(tmp_path):
    place = tmp_path / "mnli_adapter"
    place.mkdir()
    (place / "valid_data_analysis.json").write_text(json.dumps(LISTS))
    (place / "cartography.json").write_text(json.dumps(DYNAMICS))
    return place


@pytest.fixture
def line(tmp_path, save_checkpoint, write_rows):
    ends = [save_checkpoint(tmp_path / f"s{i}", seed=i) for i in (1, 2)]
    files = {"validation": write_rows(tmp_path / "dev.tsv", 30)}
    files["test"] = write_rows(tmp_path / "test.tsv", 26, seed=4)
    files["train"] = write_rows(tmp_path / "train.tsv", 20, seed=5)
    named = {split: str(path) for split, path in files.items()}
    task = lf.load_task(named, text="sentence", label="label", name="reviews")
    return ends, task


def rounded(text):
    """Numbers to five decimals, as the description has them."""
    lines = []
    for one in text.splitlines():
        head, colon, value = one.partition(": ")
        number = head.startswith("average")
        lines.append(f"{head}{colon}{round(float(value), 5) if number else value}")
    return "\n".join(lines) + "\n"


def test_the_golden_report(folder, tmp_path):
    k = read_knowledge(folder, cartography=folder / "cartography.json", replicates=50, controls=50)
    text = write_forgotten(k, tmp_path / "forgotten.txt").read_text()
    assert rounded(text) == REPORT
    assert k.summary.relearned.tolist() == [0, 0, 2]
    assert k.scores.tolist() == [[0, 1, 1, 1], [0, 1, 0, 0], [1, 1, 0, 1]]
    assert k.kind == "classification" and "newly forgotten" in k.reading
    assert k.data == "valid"


def test_lists_there_and_back(line, tmp_path):
    ends, task = line
    out = tmp_path / "out"
    valid, test = (
        lf.knowledge_along_path(*ends, task, split=split) for split in ("validation", "test")
    )
    wrote = write_knowledge([valid, test], out)
    names = ["valid_data_analysis.json", "test_data_analysis.json", "data_analyze.txt"]
    assert [path.name for path in wrote] == names
    document = json.loads((out / names[1]).read_text())
    assert list(document) == ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"]
    scores = test.scores
    for p, entry in enumerate(document.values()):
        assert list(entry) == ["zero_list", "one_list", "up_list", "down_list"]
        before = scores[p - 1] if p else np.zeros(26)
        assert entry["up_list"] == np.flatnonzero(scores[p] > before).tolist()
        assert entry["down_list"] == np.flatnonzero(scores[p] < before).tolist()
    back = read_knowledge(out / names[1])
    np.testing.assert_array_equal(back.scores, scores)
    counts = (out / "data_analyze.txt").read_text().splitlines()
    assert counts[:3] == [
        "total number of data is 30 ",
        "DEV: round x = 0.0, in dev_data: ",
        f"zero_list_num: {len(valid.lists[0]['zero'])}",
    ]
    heads = ("zero_list_num", "one_list_num", "up_list_num", "up_to_one_num", "down_list_num",
             "down_to_zero_num")  # fmt: skip
    assert [one.partition(":")[0] for one in counts[2:8]] == list(heads)
    assert counts[8:11] == [
        "",
        "total number of data is 26 ",
        "TEST: round x = 0.0, in test_data: ",
    ]
    with pytest.raises(DataError, match="two results would be written as valid_data_analysis"):
        write_knowledge([valid, valid], out)


def test_lists_of_training_data(line, tmp_path):
    ends, task = line
    k = lf.knowledge_along_path(*ends, task)
    write_knowledge(k, tmp_path / "out")
    document = json.loads((tmp_path / "out/valid_data_analysis.json").read_text())
    assert {tuple(entry) for entry in document.values()} == {("zero_list", "one_list")}
    assert "TEST ON TRAIN: round x = 0.2, in dev_data: " in (
        tmp_path / "out/data_analyze.txt"
    ).read_text()  # fmt: skip
    with pytest.raises(DataError, match="without a cartography"):
        write_forgotten(k, tmp_path / "out/forgotten.txt")


def test_the_curve_and_its_averages(line, tmp_path):
    """The average of test was always 0 in the original."""
    ends, task = line
    result = lf.interpolate(*ends, task, also=[(task, "test")], points=26)
    write_line(result, tmp_path / "out")
    table = pd.read_csv(tmp_path / "out/result.csv")
    assert list(table) == [
        "prefix", "metric", "x", "dev_performance", "dev_loss", "test_performance", "test_loss",
    ]  # fmt: skip
    assert len(table) == 27 and table.prefix.tolist() == ["reviews"] * 26 + ["average"]
    assert table.x.tolist() == [*[round(k / 25, 3) for k in range(26)], 1.0]
    rows = {name: part for name, part in result.table.groupby("data")}
    for part, data in (("dev", "reviews:validation"), ("test", "reviews:test")):
        for column, name in ((f"{part}_performance", "accuracy"), (f"{part}_loss", "loss")):
            np.testing.assert_allclose(table[column][:26], rows[data][name], atol=5.1e-5)
            assert table[column][26] == pytest.approx(rows[data][name].mean(), abs=5.1e-5)
    assert (
        (tmp_path / "out/result.csv")
        .read_text()
        .splitlines()[1]
        .startswith("reviews,accuracy,0.0000,")
    )
    text = (tmp_path / "out/solution_analysis.txt").read_text()
    better = {
        name: [round(t, 3) for t in result.better[result.better.data == d].query("better").t]
        for name, d in (("valid", "reviews:validation"), ("test", "reviews:test"),
                        ("valid & test", "all"))
    }  # fmt: skip
    for name, xs in better.items():
        assert f"better {name} number: {len(xs)}, which are {xs} \n" in text
    assert f"best valid performance: {rows['reviews:validation'].accuracy.max()} \n" in text
    assert f"average test loss: {rows['reviews:test'].loss.mean()}" in text


def test_what_was_not_evaluated_is_empty(line, tmp_path):
    ends, task = line
    other = lf.load_task(
        {"test": str(tmp_path / "test.tsv")}, text="sentence", label="label", name="other"
    )
    result = lf.interpolate(*ends, task, also=[(other, "test")], points=3)
    write_line(result, tmp_path / "out")
    table = pd.read_csv(tmp_path / "out/result.csv")
    assert table.prefix.tolist() == [*["reviews"] * 3, "average", *["other"] * 3, "average"]
    assert table.test_loss[:4].isna().all() and table.dev_loss[4:].isna().all()
    assert table.test_loss[7] == pytest.approx(table.test_loss[4:7].mean(), abs=1e-4)


def test_distances(line, tmp_path):
    ends, _ = line
    d = lf.distance(*map(str, ends))
    lines = write_distance(d, tmp_path / "distance.txt").read_text().splitlines()
    assert lines[::2] == [
        "L2 distance is: ", "num of para is: ", "average L2 distance is: ", "Cos distance is: ",
    ]  # fmt: skip
    assert [float(x) for x in lines[1::2]] == [d.l2, d.parameters, d.rms, d.cosine]
    assert d.rms == pytest.approx(np.sqrt(d.l2**2 / d.parameters))
    same = lf.distance(str(ends[0]), str(ends[0]))
    assert same.l2 == 0 and same.cosine == pytest.approx(1, abs=1e-12)


def test_distances_count_tied_tensors_once_and_adapters_alone(tmp_path, save_checkpoint):
    """The original counted the embedding of T5 three times."""
    import torch

    from landform.weights.checkpoint import resolve
    from landform.weights.tuning import TuningConfig, save_model, tune

    tied = {"kind": "seq2seq", "architecture": "t5", "tie_word_embeddings": True}
    ends = [save_checkpoint(tmp_path / f"t{i}", seed=i, **tied) for i in (1, 2)]
    models = [lf.load_model(end, "seq2seq") for end in ends]
    a, b = (torch.cat([p.detach().double().flatten() for p in m.parameters()]) for m in models)
    d = lf.distance(*map(str, ends))
    assert d.parameters == len(a) < sum(v.numel() for v in models[0].state_dict().values())
    assert d.l2 == pytest.approx(float((a - b).norm()))
    assert d.cosine == pytest.approx(float(a @ b / (a.norm() * b.norm())))
    base = save_checkpoint(tmp_path / "base", seed=3)
    for i in (5, 6):
        model = lf.load_model(base, "classification")
        with torch.random.fork_rng():
            torch.manual_seed(i)
            tune(model, TuningConfig(tuning="adapter", adapter_size=2), head=False)
        save_model(model, tmp_path / f"a{i}", base, resolve(base).fingerprint)
        for file in base.glob("tokenizer*"):
            (tmp_path / f"a{i}" / file.name).write_bytes(file.read_bytes())
    d = lf.distance(str(tmp_path / "a5"), str(tmp_path / "a6"))
    assert d.parameters == 2 * 2 * 2 * 16 * 2  # blocks, adapters, matrices, width, size
    assert 0 < d.l2 < 1  # adapters alone: the models are those of one base


def test_scores_between_right_and_wrong_are_not_in_the_files(tmp_path):
    lists = {"0.0": {"zero_list": [0], "one_list": [1]}, "1.0": {"zero_list": [2], "one_list": [0]}}
    (tmp_path / "test_data_analysis.json").write_text(json.dumps(lists))
    (tmp_path / "data_analyze.txt").write_text(
        "total number of data is 9 \nDEV: round x = 0.0, in dev_data: \n"
        "total number of data is 5 \nTEST: round x = 0.0, in test_data: \n"
    )
    k = read_knowledge(tmp_path / "test_data_analysis.json")
    assert k.scores.shape == (2, 5) and np.isnan(k.scores).sum() == 6
    assert k.along.score.isna().all() and k.reading.startswith("on test; of 0") is False
    assert [rows.tolist() for rows in k.forgotten] == [[0], [2]]


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ("[1, 2]", "holds no JSON object"),
        ("{", "not JSON, or cut short"),
        ('{"nan": {"zero_list": [], "one_list": [1]}}', "x = nan is no position"),
        ("[" * 100_000, "not JSON, or cut short"),
        ('{"a": {}}', "x = a is no position"),
        ('{"0.0": {"zero_list": [1]}}', "x = 0.0 has no one_list"),
        ('{"0.0": {"zero_list": [-1], "one_list": []}}', "-1 in zero_list is no position"),
        ('{"0.0": {"zero_list": [1], "one_list": [1]}}', "example 1 is in zero_list and in one"),
        ('{"0.5": {"zero_list": [], "one_list": [1]}, "0.2": {}}', "x = 0.2 comes after 0.5"),
        ('{"0.0": {"zero_list": [], "one_list": []}}', "lists no examples"),
    ],
    ids=["list", "cut", "nan", "deep", "key", "missing", "negative", "both", "order", "empty"],
)
def test_files_that_are_no_lists(document, message, tmp_path):
    (tmp_path / "valid_data_analysis.json").write_text(document)
    with pytest.raises(DataError, match=message):
        read_knowledge(tmp_path)


def test_a_cartography_of_other_data(folder):
    (folder / "cartography.json").write_text(json.dumps({**DYNAMICS, "7": DYNAMICS["1"]}))
    (folder / "data_analyze.txt").write_text(
        "total number of data is 4 \nTEST ON TRAIN: round x = 0.0, in dev_data: \n"
    )
    with pytest.raises(DataError, match="of other data: valid has no example '7'"):
        read_knowledge(folder, cartography=folder / "cartography.json")
    short = {key: DYNAMICS[key] for key in ("0", "1", "2")}
    (folder / "cartography.json").write_text(json.dumps(short))
    with pytest.raises(DataError, match="no row for 1 of 4 examples of valid, the first of them"):
        read_knowledge(folder, cartography=folder / "cartography.json")
    (folder / "data_analyze.txt").write_text(
        "total number of data is 3 \nTEST ON TRAIN: round x = 0.0, in dev_data: \n"
    )
    with pytest.raises(DataError, match=r"lists example 3, .* says that there are 3"):
        read_knowledge(folder)
    with pytest.raises(ConfigError, match="unknown option 'point'"):
        read_knowledge(folder, point=3)
