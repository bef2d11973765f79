"""`landform influence` and its measures, and their steps, as a newcomer would type them."""

import json

import pandas as pd
import pytest

import landform as lf
from landform.cli.app import run
from landform.cli.texts import print_texts, shorten_text


@pytest.fixture(scope="module")
def place(tmp_path_factory, save_checkpoint, write_rows):
    root = tmp_path_factory.mktemp("attribution")
    save_checkpoint(root / "runs" / "seed0", seed=3)
    save_checkpoint(root / "base", kind="masked-lm", seed=6)
    write_rows(root / "train.tsv", 30, seed=1)
    write_rows(root / "dev.tsv", 12, seed=2)
    write_rows(root / "ood.tsv", 6, seed=4)
    (root / "ood.yaml").write_text(
        "name: ood\nfiles: {validation: ood.tsv}\ntext: sentence\nlabel: label\n"
    )
    (root / "wrong.txt").write_text("train-2\ntrain-5\ntrain-20\n")
    return root


@pytest.fixture
def say(capsys, monkeypatch):
    """Run a command line in a terminal of 80 columns; (status, standard output, error)."""
    monkeypatch.setenv("LANDFORM_PROGRESS", "0")
    monkeypatch.setenv("COLUMNS", "80")

    def call(*words):
        status = run([str(word) for word in words])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return call


def words(place, command="influence"):
    return [command, place / "runs" / "seed0", "--files.train", place / "train.tsv",
            "--files.validation", place / "dev.tsv", "--text", "sentence",
            "--label", "label", "--name", "toy"]  # fmt: skip


@pytest.fixture(scope="module")
def expected(place):
    files = {"train": place / "train.tsv", "validation": place / "dev.tsv"}
    task = lf.load_task(files, text="sentence", label="label", name="toy")
    factors = lf.fit_factors(place / "runs" / "seed0", task)
    return lf.influence(factors, measurement="margin")


def test_what_influence_prints(say, place, expected):
    status, out, err = say(*words(place), "--measurement", "margin", "--query", 7, 2, "--k", 2)
    assert status == 0, err
    lines = out.splitlines()
    assert "coverage: 14 layers" in out and "Embedding (" in out and "LayerNorm (" in out
    assert expected.explanation in out
    asked = [line for line in lines if line.startswith("query ")]
    assert [line.split(" of ")[0] for line in asked] == [
        "query 7 (validation-7)",
        "query 2 (validation-2)",
    ]
    record = expected.queries.iloc[7]
    assert asked[0].endswith(
        f"labelled {record['label']}, predicted {record['prediction']}, "
        f"loss {record['loss']:.3g}, margin {record['value']:.3g}"
    )
    assert f"  {record['text']}" in lines
    part = out[out.index("query 7") : out.index("query 2")]
    for harmful in (False, True):
        for row in expected.top(7, 2, harmful=harmful).to_dict("records"):
            (line,) = [line for line in part.splitlines() if f"{row['score']:+.4g}" in line]
            assert f" {row['row']} " in line and row["text"][:10] in line and row["label"] in line
    assert part.index("most helpful") < part.index("most harmful")
    phases = lines[lines.index("phase                 seconds  share") + 1 :]
    assert [line.split()[0] for line in phases[:6]] == [
        "covariance", "eigendecomposition", "lambda", "queries", "scores", "total",
    ]  # fmt: skip


def test_by_itself_it_shows_the_queries_of_the_highest_loss(say, place, expected):
    _, out, _ = say(*words(place))
    shown = [int(line.split()[1]) for line in out.splitlines() if line.startswith("query ")]
    assert shown == expected.queries["loss"].nlargest(3).index.tolist()


def test_what_influence_keeps_and_the_report_shows(say, place, tmp_path):
    store = tmp_path / "study"
    line = [*words(place), "--store", store, "--queries", "validation", place / "ood.yaml"]
    line += ["--rows", 20, "--query-rows", 5, "--per-module", "--csv", tmp_path / "top.csv"]
    status, out, err = say(*line, "--dry-run")
    assert status == 0 and not store.exists() and not (tmp_path / "top.csv").exists(), err
    assert "40 rows to do" in out and "100 pairs to do" in out and "in all: about" in out
    status, out, err = say(*line, "--dry-run", "--json")
    forecast = json.loads(out)
    assert [step["step"] for step in forecast["steps"]] == [
        "factors", "scores of toy:validation", "scores of ood:validation",
    ]  # fmt: skip
    assert forecast["seconds"] > 0 and forecast["memory_bytes"] > 0
    status, out, err = say(*line)
    assert status == 0, err
    assert "layers with the largest share" in out and f"landform report {store}" in out
    names = sorted(path.name for path in (store / "results").iterdir())
    assert names == [
        "factors-seed0-ekfac-true-toy-train",
        "influence-seed0-ekfac-true-loss-ood-validation",
        "influence-seed0-ekfac-true-loss-toy-validation",
    ]
    assert all(f"wrote {store / 'results' / name}" in out for name in names)
    table = pd.read_csv(tmp_path / "top.csv")
    assert len(table) == 2 * 5 * 2 * 5 and list(table.columns)[:5] == [
        "queries", "query", "query_id", "side", "rank",
    ]  # fmt: skip
    status, _, err = say("report", store)
    assert status == 0, err
    page = (store / "atlas.html").read_text()
    assert "<h2>Factors</h2>" in page and "<h2>Influence</h2>" in page
    assert page.count("<h3>influence-seed0-ekfac-true-loss-") == 2


def test_influence_as_json(say, place):
    status, out, err = say(*words(place), "--json", "--query-rows", 4)
    found = json.loads(out)
    assert status == 0, err
    assert found["factors"]["rows"] == 30 and len(found["influence"][0]["queries"]) == 4
    assert found["influence"][0]["explanation"].startswith("A positive score is helpful")


def test_language_models_have_no_labels_to_show(say, place, save_checkpoint, tmp_path):
    save_checkpoint(tmp_path / "gpt2", kind="causal-lm", architecture="gpt2", seed=5)
    line = ["influence", tmp_path / "gpt2", "--kind", "causal-lm", "--text", "sentence"]
    line += ["--files.train", place / "train.tsv", "--files.validation", place / "dev.tsv"]
    status, out, err = say(*line, "--query", 1, "--query-rows", 3, "--k", 1)
    assert status == 0, err
    (asked,) = [text for text in out.splitlines() if text.startswith("query ")]
    assert "label" not in asked and "predict" not in asked and "loss " in asked
    head = next(text for text in out.splitlines() if "most helpful" in text)
    assert head.split() == ["score", "row", "most", "helpful"]
    assert "true (sampled)" in out


@pytest.mark.parametrize(
    ("aggregate", "text"),
    [
        ("queries", "the sum of all 12 queries of toy:validation"),
        ("train", "the sum of all 30 training rows, for queries of toy:validation"),
        ("both", "all 30 training rows on all queries of toy:validation: "),
    ],
)
def test_sums_are_shown_as_sums(say, place, aggregate, text):
    status, out, err = say(*words(place), "--aggregate", aggregate)
    assert status == 0 and text in out, err
    assert ("most helpful" in out) == (aggregate == "queries")


def test_what_mislabel_prints_and_keeps(say, place, tmp_path):
    line = [*words(place, "mislabel"), "--k", 4]
    status, out, err = say(*line)
    assert status == 0, err
    assert "which labels are wrong is not known" in out and "inspected" not in out
    status, out, err = say(
        *line,
        "--known",
        place / "wrong.txt",
        "--store",
        tmp_path / "s",
        "--csv",
        tmp_path / "r.csv",
    )
    assert status == 0, err
    assert "the first tenth" in out and "inspected   found   interval" in out
    assert "100.0%" in out
    ranking = pd.read_csv(tmp_path / "r.csv")
    assert len(ranking) == 30 and ranking["known"].sum() == 3
    shown = [text for text in out.splitlines() if text.strip().startswith(("1 ", "2 ", "3 "))]
    assert shown[0].split()[2] == ranking["text_id"][0]
    assert "mislabel-seed0-ekfac-true-loss-toy-train" in out
    status, out, err = say(*line, "--dry-run", "--store", tmp_path / "s")
    assert status == 0 and "0 rows to do" in out and "30 rows to do" in out, err
    status, out, err = say(*line, "--json", "--known", place / "wrong.txt")
    assert status == 0 and json.loads(out)["known"] == 3, err


def test_bad_words(say, place, tmp_path):
    influence, mislabel = words(place), words(place, "mislabel")
    (tmp_path / "empty.tsv").write_text("sentence\tlabel\n")
    (tmp_path / "labels.tsv").write_text("sentence\tlabel\nw1 w2\t7\n")
    (tmp_path / "unknown.txt").write_text("train-99\n")
    swapped = [*influence]
    swapped[5] = tmp_path / "empty.tsv"
    strange = [*influence]
    strange[5] = tmp_path / "labels.tsv"
    cases = {
        (*influence, "--measurement", "margins"): (1, "did you mean 'margin'"),
        (*influence, "--strategy", "ekfacs"): (2, "strategy"),
        (*influence, "--rows", 0): (2, "option rows"),
        (*influence, "--query-rows", 0): (2, "option query_rows"),
        (*influence, "--k", 0): (1, "option k is 0"),
        (*influence, "--query", 12): (1, "toy:validation has no query 12"),
        (*influence, "--query", 3, "--query-rows", 3): (1, "queries are 0 to 2"),
        (*influence, "--query", 1, "--aggregate", "queries"): (1, "no single queries"),
        (*influence, "--csv", tmp_path, "--rows", 5): (1, str(tmp_path)),
        (*influence, "--csv", tmp_path / "x.csv", "--aggregate", "train"): (1, "option csv"),
        (*influence, "--include", "*.atention.*"): (1, "no module fits the pattern"),
        (*influence, "--exclude", "*"): (1, "has no layer to look at"),
        (*influence, "--split", "trian"): (1, "no split 'trian'"),
        (*influence, "--queries", "tset"): (1, "no split 'tset'"),
        (*influence, "--queries", "sst3:dev"): (1, "sst3"),
        (*influence, "--queries", "validation", "dev"): (1, "named twice"),
        (*influence, "--top", 3, "--per-module"): (2, "top keeps whole scores only"),
        (*influence, "--query-rank", 400): (1, "option query_rank is 400"),
        (*influence, "--damping", -1): (2, "option damping"),
        tuple(swapped): (1, "empty.tsv"),
        tuple(strange): (1, "7"),
        (*mislabel, "--known", tmp_path / "none.txt"): (1, "none.txt cannot be read"),
        (*mislabel, "--known", tmp_path / "unknown.txt"): (1, "train-99"),
        (*mislabel, "--k", 0): (1, "option k is 0"),
        (*mislabel, "--measurement", "los"): (1, "did you mean 'loss'"),
    }
    for line, (expected, message) in cases.items():
        status, out, err = say(*line)
        assert status == expected and message in err, (line[11:], out, err)
        assert "Traceback" not in err and not out


def quick(place, command):
    """Command, model and data for tests that train: a few steps of a tiny model."""
    line = words(place, command)
    line[1] = place / "base"
    return [*line, "--rows", 20, "--query-rows", 6, "--train.max-steps", 3,
            "--train.batch-size", 4, "--train.learning-rate", 0.01]  # fmt: skip


def test_what_lds_prints_and_keeps(say, place, tmp_path):
    line = [*quick(place, "lds"), "--masks", 6, "--retrainings", 2, "--methods", "identity",
            "diagonal:empirical", "--store", tmp_path / "s"]  # fmt: skip
    status, out, err = say(*line, "--dry-run", "--json")
    assert status == 0 and not (tmp_path / "s").exists(), err
    assert json.loads(out)["evaluations"] == 6 * 2 * 3
    status, out, err = say(*line, "--figure", tmp_path / "lds.png")
    assert status == 0, err
    assert "diagonal:empirical" in out and "retraining" in out and "over 6 masks" in out
    assert (tmp_path / "lds.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "s" / "results" / "lds" / "per_query.parquet").exists()
    status, out, err = say(*line, "--json")
    found = json.loads(out)
    assert status == 0 and found["retrainings"] == 2 and found["masks"] == 6, err
    assert [row["method"] for row in found["methods"]] == ["identity", "diagonal:empirical"]
    status, _, err = say("report", tmp_path / "s")
    assert status == 0 and "<h2>Linear datamodelling score</h2>" in (
        tmp_path / "s" / "atlas.html"
    ).read_text(), err  # fmt: skip


def test_what_counterfactual_prints_and_keeps(say, place, tmp_path):
    line = [*quick(place, "counterfactual"), "--methods", "random", "identity"]
    line += ["--sizes", 2, 4, "--base-seeds", 0, "--retrain-seeds", 7, "--targets", 2]
    line += ["--store", tmp_path / "s"]
    status, out, err = say(*line, "--dry-run")
    assert status == 0 and "steps to do" in out and not (tmp_path / "s").exists(), err
    status, out, err = say(*line, "--figure", tmp_path / "flips.pdf")
    assert status == 0, err
    assert "2 targets among 6 queries" in out and "against random rows" in out
    assert "flip without the 4 rows" in out and (tmp_path / "flips.pdf").exists()
    curve = pd.read_parquet(tmp_path / "s" / "results" / "counterfactual" / "curve.parquet")
    assert curve["method"].tolist() == ["random"] * 2 + ["identity"] * 2
    status, out, err = say(*line, "--json")
    assert status == 0 and json.loads(out)["targets"] == 2, err


def test_bad_words_of_the_measures(say, place, tmp_path):
    lds, flips = quick(place, "lds"), quick(place, "counterfactual")
    (tmp_path / "masks.csv").write_text("1,0,1\n0,1,1\n1,1,0\n")
    cases = {
        (*lds, "--methods", "ekfacs"): (1, "did you mean 'ekfac'"),
        (*lds, "--masks", 1): (2, "option masks"),
        (*lds, "--mask-file", tmp_path / "masks.csv"): (1, "masks of 3 rows"),
        (*lds, "--margin-file", tmp_path / "masks.csv"): (2, "margin_file needs the mask_file"),
        (*lds, "--train.save-steps", 2): (1, "option train.save_steps"),
        (*lds, "--figure", tmp_path / "x.txt"): (1, "x.txt"),
        (*lds, "--queries", "tset"): (1, "no split 'tset'"),
        (*flips, "--sizes", 20): (1, "20 rows cannot be removed from 20"),
        (*flips, "--methods", "randm"): (2, "methods"),
        (*flips, "--scored", place / "none"): (1, "none"),
    }
    for line, (expected, message) in cases.items():
        status, out, err = say(*line)
        assert status == expected and message in err, (line[18:], out, err)
        assert "Traceback" not in err and not out


STUDY = """
study: study
tasks:
  toy: {{files: {{train: train.tsv, validation: dev.tsv}}, text: sentence, label: label}}
  ood: {{files: {{validation: ood.tsv}}, text: sentence, label: label}}
steps:
  - influence: {{checkpoint: runs/seed0, task: toy, queries: [validation, "ood:validation"],
                measurement: {measurement}, query_rows: 4}}
  - mislabel: {{checkpoint: runs/seed0, task: toy, known: wrong.txt}}
  - lds: {{model: base, task: toy, methods: identity, masks: 4, retrainings: 1, rows: 12,
          query_rows: 4, train: {{max_steps: 2}}}}
  - counterfactual: {{model: base, task: toy, methods: [random, identity], sizes: 3, rows: 12,
                     query_rows: 4, base_seeds: 0, retrain_seeds: 5, train: {{max_steps: 2}}}}
  - report: {{}}
"""


def test_steps_of_a_study_file(say, place, tmp_path):
    for name in ("runs", "base", "train.tsv", "dev.tsv", "ood.tsv", "wrong.txt"):
        (tmp_path / name).symlink_to(place / name)
    file = tmp_path / "study.yaml"
    file.write_text(STUDY.format(measurement="margins"))
    status, _, err = say("run", file)
    assert status == 1 and "step 1: unknown measurement" in err
    file.write_text(STUDY.format(measurement="margin"))
    status, out, err = say("run", file, "--dry-run")
    assert status == 0 and not (tmp_path / "study").exists(), err
    assert "1 influence: " in out and "120 pairs to do" in out and "2 mislabel: " in out
    status, out, err = say("run", file)
    assert status == 0, err
    assert "ekfac factors" in out and "on the margin of 4 queries" in out
    names = {path.name for path in (tmp_path / "study" / "results").iterdir()}
    assert names == {
        "factors-seed0-ekfac-true-toy-train",
        "influence-seed0-ekfac-true-margin-ood-validation",
        "influence-seed0-ekfac-true-margin-toy-validation",
        "self-seed0-ekfac-true-loss-toy-train",
        "mislabel-seed0-ekfac-true-loss-toy-train",
        "lds",
        "counterfactual",
    }
    assert (tmp_path / "study" / "atlas.html").exists()


# --- texts on a terminal ----------------------------------------------------------------------


@pytest.mark.parametrize("columns", [40, 80, 200])
def test_texts_fit_the_terminal(capsys, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    long = " ".join(f"word{i}" for i in range(80))
    records = [
        {"score": "+1.2", "label": "positive", "text": long},
        {"score": "-0.5", "label": "not positive", "text": "short\n\tand [bold]plain[/bold]"},
        {"score": "+7", "label": "positive", "text": "猫" * 150, "text_pair": "second"},
    ]
    print_texts([("most helpful", records), ("most harmful", [])], ("score", "label", "unused"))
    from rich.cells import cell_len

    out = capsys.readouterr().out
    lines = out.splitlines()
    assert max(map(cell_len, lines)) <= columns
    assert "short and [bold]plain[/bold]" in out and "second" in out and "none" in lines[-1]
    assert "unused" not in out and "\N{HORIZONTAL ELLIPSIS}" in out
    assert sum("word" in line for line in lines) == 2
    assert all(line == line.rstrip() for line in lines)


def test_a_shortened_text_ends_with_a_word_where_that_costs_little():
    assert shorten_text("one two three", 13) == "one two three"
    assert shorten_text("a sentence of words", 14) == "a sentence of\N{HORIZONTAL ELLIPSIS}"
    assert shorten_text("x" * 50, 10) == "x" * 9 + "\N{HORIZONTAL ELLIPSIS}"
