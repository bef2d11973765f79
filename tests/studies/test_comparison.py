"""Arms of dropout compared: the tables by hand, runs that are paired, kept and resumed."""

import itertools
import json
import math
import signal

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

import landform as lf
from comparison_results import make_comparison
from fishers import make_fisher
from landform.errors import ConfigError, CurvatureError, StoreError
from landform.evaluation import prepared as preparing
from landform.store.artifacts import Store
from landform.store.study import load_results
from landform.studies.comparison import ARMS, ArmConfig, ComparisonConfig, ComparisonStudy
from landform.studies.study_file import StudyFile, describe_study, run_study
from landform.training import dropout
from landform.training.schedules import write_schedule
from landform.weights.checkpoint import load_model, resolve

QUICK = {"max_steps": 2, "batch_size": 4, "learning_rate": 1e-2, "threads": 1}
ONE = {"standard": 0.1, "none": 0.0}


@pytest.fixture(scope="module")
def place(tmp_path_factory, save_checkpoint, write_rows):
    folder = tmp_path_factory.mktemp("comparison")
    # Two layers without a head: every run draws one.
    save_checkpoint(folder / "model", kind="masked-lm")
    for name, rows, seed in (("train", 20, 0), ("validation", 9, 1)):
        write_rows(folder / f"{name}.tsv", rows, seed)
    lines = [f"w{k} w{k + 1} w{(7 * k) % 30} w3" for k in range(12)]
    (folder / "corpus.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def task(place):
    return lf.load_task(
        {name: place / f"{name}.tsv" for name in ("train", "validation")},
        text="sentence", label="label", name="small",
    )  # fmt: skip


@pytest.fixture(scope="module")
def fisher(place):
    model = load_model(place / "model", "masked-lm")
    sites = {tensor: site.name for site in lf.dropout_sites(model) for tensor in site.tensors}
    return make_fisher(model, weights=resolve(place / "model").fingerprint, sublayers=sites)


# --- the tables ---------------------------------------------------------------------------------


def test_differences_are_paired_by_seed_and_corrected_over_arms():
    result = make_comparison(gains={"guided": 0.01}, tasks=("a",), fractions=(100.0,))
    wide = result.runs.pivot(index="seed", columns="arm", values="value")
    table = result.differences.set_index("arm")
    assert list(table.index) == ["guided", "uniform", "shuffled", "none"]
    for arm, row in table.iterrows():
        test = stats.ttest_rel(wide[arm], wide["standard"])
        assert row.difference == pytest.approx((wide[arm] - wide["standard"]).mean())
        assert row.p_t == pytest.approx(test.pvalue)
    for name in ("p_t", "p_flip"):
        ordered = np.sort(table[name])
        stepped = np.minimum(1, np.maximum.accumulate(ordered * np.arange(4, 0, -1)))
        np.testing.assert_allclose(np.sort(table[f"{name}_holm"]), stepped)
    for row in result.summary.itertuples():
        values = wide[row.arm]
        low, high = stats.t.interval(0.95, 4, values.mean(), stats.sem(values))
        assert (row.mean, row.low, row.high) == pytest.approx((values.mean(), low, high))
    assert sorted(result.summary["rank"]) == [1, 2, 3, 4, 5]
    best = result.summary.loc[result.summary["rank"].idxmin()]
    assert best["mean"] == result.summary["mean"].max()


def test_overall_takes_a_task_under_one_seed_as_the_unit():
    result = make_comparison(gains={"guided": 0.01})
    wide = result.runs.pivot(index=["task", "fraction", "seed"], columns="arm", values="value")
    d = (wide["guided"] - wide["standard"]).groupby(["task", "seed"]).mean()
    row = result.overall.set_index("arm").loc["guided"]
    assert (row.n, row.gain) == (10, pytest.approx(d.mean()))
    assert row.p_t == pytest.approx(stats.ttest_1samp(d, 0).pvalue)
    signs = np.array(list(itertools.product((1, -1), repeat=10))) @ d.to_numpy()
    assert row.p_flip == pytest.approx((np.abs(signs) >= abs(d.sum()) - 1e-12).mean())
    ranks = result.summary[result.summary.arm == "guided"]["rank"]
    assert row["rank"] == pytest.approx(ranks.mean())
    assert math.isnan(result.overall.set_index("arm").gain["standard"])


def test_of_a_loss_less_is_better():
    result = make_comparison(gains={"guided": -0.05}, lower=True)
    guided = result.overall.set_index("arm").loc["guided"]
    assert guided["rank"] == 1 and guided.gain > 0.03
    assert (result.differences[result.differences.arm == "guided"].difference < 0).all()


def test_the_reading_claims_no_more_than_was_seen():
    nothing = make_comparison(tasks=("a",), fractions=(100.0,), seed=1).reading
    assert "no difference from standard can be told with 5 seeds" in nothing
    assert "its p is at least 0.062" in nothing and "80 % power" in nothing
    found = make_comparison(gains={"guided": 0.03}).reading
    shared = "taken as independent though tasks share seeds"
    assert shared in found and shared not in nothing
    assert "best mean rank guided (1 of 5); told from standard" in found
    assert "guided +0.03" in found and "uniform" not in found.partition("in single")[0]
    alone = make_comparison(seeds=(3,)).reading
    assert "1 seed)" in alone and "no interval, no test" in alone


def test_without_a_second_seed_intervals_are_nan():
    result = make_comparison(seeds=(0,))
    assert result.summary[["low", "high"]].isna().all(axis=None)
    columns = ["sd", "low", "high", "p_t", "p_flip", "p_t_holm", "p_flip_holm", "detectable"]
    assert result.differences[columns].isna().all(axis=None)
    assert result.differences.difference.notna().all()
    json.dumps(result.to_json(), default=str)


# --- runs ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def compared(place, task, fisher):
    arms = {"guided": {}, "uniform": {"control": "uniform"}, **ONE}
    return lf.compare_dropout(
        place / "model", task, out=place / "runs", fisher=fisher, arms=arms,
        fractions=(50, 100), seeds=(0, 1), save_steps=(0,), keep_model=True, **QUICK,
    )  # fmt: skip


def test_arms_of_one_seed_share_first_weights_rows_and_order(place, compared):
    runs = place / "runs" / "small"
    for fraction, seed in itertools.product(("50", "100"), (0, 1)):
        folders = [runs / fraction / arm / f"seed{seed}" for arm in compared.arms]
        states = [load_model(folder / "checkpoint-0").state_dict() for folder in folders]
        for other in states[1:]:
            assert all(torch.equal(value, other[name]) for name, value in states[0].items())
        records = [json.loads((folder / "landform.json").read_text()) for folder in folders]
        spec = [record["identity"] for record in records]
        assert len({one["train"] for one in spec}) == 1
        assert {json.dumps(one["seeds"]) for one in spec} == {
            json.dumps(dict.fromkeys(("seed", "head_seed", "data_seed", "dropout_seed"), seed))
        }
    first, second = (
        load_model(runs / "50" / "none" / f"seed{seed}" / "checkpoint-0").state_dict()
        for seed in (0, 1)
    )
    assert not torch.equal(first["classifier.weight"], second["classifier.weight"])
    chosen = [
        (runs / "50" / "none" / f"seed{seed}" / "train_rows.txt").read_text() for seed in (0, 1)
    ]
    assert chosen[0] != chosen[1] and all(len(rows.split()) == 10 for rows in chosen)


def test_every_arm_has_the_dropout_that_it_says(place, compared, fisher):
    expected = lf.dropout_schedule(fisher)
    found = compared.schedules[compared.schedules.arm == "guided"].set_index("site").p
    assert dict(found) == pytest.approx(expected)
    record = json.loads(
        (place / "runs" / "small" / "100" / "guided" / "seed0" / "landform.json").read_text()
    )
    assert {site: record["dropout"][site] for site in expected} == pytest.approx(expected)
    means = compared.overall.set_index("arm").dropout
    mean = pytest.approx(np.mean(list(expected.values())))
    assert (means["guided"], means["uniform"]) == (mean, mean)
    assert (means["standard"], means["none"]) == (0.1, 0.0)


def test_values_are_those_of_train(place, task, compared, tmp_path):
    row = compared.runs.query("fraction == 50 and arm == 'standard' and seed == 1").iloc[0]
    alone = lf.train(
        place / "model", task, out=tmp_path / "alone", seeds=(1,), subset_seed=1, percent=50,
        dropout=0.1, **QUICK,
    )  # fmt: skip
    assert row.value == alone.runs["validation/accuracy"].iloc[0]
    assert (row.rows, row.steps) == (10, 2)
    assert set(compared.runs.metric) == {"accuracy"}
    assert len(compared.runs) == 2 * 4 * 2


def test_kept_runs_are_used_again_and_small_where_no_model_is_kept(place, task, tmp_path):
    options = {"arms": ONE, "seeds": (0, 1), **QUICK}
    first = lf.compare_dropout(place / "model", task, out=tmp_path / "o", **options)
    assert not list((tmp_path / "o").rglob("*.safetensors"))
    assert sum(f.stat().st_size for f in (tmp_path / "o").rglob("*") if f.is_file()) < 200_000
    again = lf.compare_dropout(
        place / "model", task, out=tmp_path / "o", store=tmp_path / "study", **options
    )
    assert again.runs.reused.all() and not first.runs.reused.any()
    pd.testing.assert_frame_equal(
        again.runs.drop(columns="reused"), first.runs.drop(columns="reused")
    )
    kept = load_results(Store.open(tmp_path / "study"))["comparison"]
    assert kept.reading == again.reading == first.reading
    more = ComparisonStudy.of(
        place / "model", task, out=tmp_path / "o", **{**options, "arms": {**ONE, "half": 0.05}}
    ).forecast()
    assert (more.jobs, more.done, more.evaluations) == (6, 4, 4)
    assert more.seconds is not None


def test_a_run_without_its_model_is_trained_again_where_it_is_wanted(place, task, tmp_path):
    options = {"out": tmp_path / "o", **QUICK}
    bare = lf.train(place / "model", task, keep_model=False, **options)
    assert not (tmp_path / "o" / "seed0" / "config.json").exists()
    assert lf.train(place / "model", task, keep_model=False, **options).runs.reused.all()
    with pytest.warns(UserWarning, match="trained without its model: it is trained again"):
        whole = lf.train(place / "model", task, **options)
    assert not whole.runs.reused.any()
    assert whole.runs["validation/loss"].tolist() == bare.runs["validation/loss"].tolist()
    load_model(tmp_path / "o" / "seed0")
    assert lf.train(place / "model", task, keep_model=False, **options).runs.reused.all()


SCRIPT = """
import os, signal, sys
import landform as lf
from landform.training.work import TrainWorker

run, place, out = TrainWorker.run, sys.argv[1], sys.argv[2]
done = []

def stop(self, job):
    if len(done) == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    done.append(job)
    return run(self, job)

TrainWorker.run = stop
task = lf.load_task({n: f"{place}/{n}.tsv" for n in ("train", "validation")},
                    text="sentence", label="label", name="small")
lf.compare_dropout(f"{place}/model", task, out=out, arms={"standard": 0.1, "none": 0.0},
                   seeds=(0, 1), max_steps=2, batch_size=4, learning_rate=1e-2, threads=1)
"""


def test_a_killed_comparison_goes_on(zygote, place, task, tmp_path):
    ended = zygote.run([place, tmp_path / "killed"], tmp_path, script=SCRIPT)
    assert ended.status == -signal.SIGKILL, ended.err
    options = {"arms": ONE, "seeds": (0, 1), **QUICK}
    resumed = lf.compare_dropout(place / "model", task, out=tmp_path / "killed", **options)
    assert resumed.runs.reused.tolist() == [True, True, True, False]
    whole = lf.compare_dropout(place / "model", task, out=tmp_path / "whole", **options)
    assert resumed.runs.value.tolist() == whole.runs.value.tolist()


def test_merged_splits_differ_by_seed_and_not_by_arm(place, task, tmp_path):
    result = lf.compare_dropout(
        place / "model", task, out=tmp_path / "o", arms=ONE, seeds=(0, 1), test="merged", **QUICK
    )
    assert result.metrics.test_rows.tolist() == [6]  # 20 % of 29
    assert (result.runs.rows == 23).all()
    records = {
        (arm, seed): json.loads(
            (tmp_path / "o" / "small" / "100" / arm / f"seed{seed}" / "landform.json").read_text()
        )["identity"]
        for arm in ONE
        for seed in (0, 1)
    }
    for seed in (0, 1):
        assert records["none", seed]["eval"] == records["standard", seed]["eval"]
    assert records["none", 0]["eval"] != records["none", 1]["eval"]


def test_mnli_is_evaluated_on_both_of_its_validation_sets(place, tmp_path):
    folder = tmp_path / "MNLI"
    folder.mkdir()
    labels = ("entailment", "neutral", "contradiction")
    for name, rows in (("train", 12), ("dev_matched", 6), ("dev_mismatched", 9)):
        lines = ["sentence1\tsentence2\tgold_label"]
        lines += [f"w{k} w{k + 2}\tw{k + 1}\t{labels[k % 3]}" for k in range(rows)]
        (folder / f"{name}.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    mnli = lf.load_task("mnli", data_dir=tmp_path)
    result = lf.compare_dropout(
        place / "model", mnli, out=tmp_path / "o", arms=ONE, seeds=(0, 1), test="merged", **QUICK
    )
    assert result.metrics.metric.tolist() == ["accuracy", "accuracy_mm"]
    assert result.metrics.headline.tolist() == [True, False]
    assert result.metrics.test.tolist() == ["official", "official"]
    assert result.metrics.test_rows.tolist() == [6, 9]
    assert len(result.differences) == 2
    assert result.overall.n.dropna().tolist() == [2]


def test_an_arm_is_a_number_in_words_or_a_file_of_the_home(place, task, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    model = load_model(place / "model", "masked-lm")
    sites = [s.name for s in lf.dropout_sites(model) if s.tensors]
    write_schedule(tmp_path / "x.json", dict(zip(sites, [0.3] + [0.1] * 9, strict=False)))
    arms = {"low": "0.2", "mine": "~/x.json", "none": None}
    result = lf.compare_dropout(
        place / "model", task, out=tmp_path / "o", arms=arms, seeds=(0,), **QUICK
    )
    means = result.overall.set_index("arm").dropout
    assert (means["low"], means["none"]) == (0.2, 0.0)
    assert means["mine"] == pytest.approx((0.3 + 0.1 * (len(sites) - 1)) / len(sites))
    with pytest.raises(StoreError, match=r"lost\.json"):
        ComparisonStudy.of(place / "model", task, out=tmp_path, arms={**ONE, "l": "~/lost.json"})


def test_gaussian_noise_at_one_number_is_tried_before_anything_is_trained(
    place, task, tmp_path, monkeypatch
):
    def blind(model, sites, inputs):
        """As if a kernel drew attention's dropout itself."""
        found = places(model, sites, inputs)
        return {where: name for where, name in found.items() if "attention.self" not in name}

    places = dropout._places
    monkeypatch.setattr(dropout, "_places", blind)
    with pytest.raises(ConfigError, match=r"arm gaussian: .*attention\.self.* acts nowhere"):
        lf.compare_dropout(
            place / "model", task, out=tmp_path / "o", arms=["standard", "gaussian"], seeds=(0,),
            **QUICK,
        )  # fmt: skip
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize("test", ["official", "merged"])
def test_rows_are_forgotten_and_prepared_once_for_all_arms(
    place, task, tmp_path, monkeypatch, test
):
    study = ComparisonStudy.of(
        place / "model", task, out=tmp_path / "o", arms=ONE, seeds=(0, 1), fractions=(50, 100),
        test=test, **QUICK,
    )  # fmt: skip
    runs = study.trainings({})
    assert list(runs) == list(study.cells())
    assert not any({"rows", "chosen"} & set(run.work.__dict__) for run in runs.values())
    if test == "merged":
        assert not any(run.work.task._read for run in runs.values())
    prepared = []
    encode = preparing.encode
    monkeypatch.setattr(preparing, "encode", lambda *a, **k: prepared.append(1) or encode(*a, **k))
    study.run()
    # Rows to train on and to evaluate, not for every arm; two seeds share the whole of a split.
    assert len(prepared) == 2 * (4 if test == "merged" else 3)
    if test == "merged":
        assert not any(run.work.task._read for run in runs.values())


# --- decoders -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def decoder(tmp_path_factory, word_tokenizer):
    """A randomly drawn LLaMA-class model of two layers, and rows that can be learned."""
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("decoder")
    config = LlamaConfig(
        vocab_size=45, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=32,
        pad_token_id=0, bos_token_id=2, eos_token_id=3,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(folder / "llama")
    word_tokenizer.save_pretrained(folder / "llama")
    draw = np.random.default_rng(0)
    for name, rows in (("train", 160), ("validation", 60)):
        lines = ["sentence\tlabel"]
        for k in range(rows):
            words = [f"w{i}" for i in draw.integers(10, 40, draw.integers(2, 9))]
            words.insert(draw.integers(0, len(words) + 1), ("w0", "w1")[k % 2])
            lines.append(f"{' '.join(words)}\t{k % 2}")
        (folder / f"{name}.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def test_a_decoder_really_classifies_with_dropout_inserted(decoder, tmp_path):
    task = lf.load_task(
        {name: decoder / f"{name}.tsv" for name in ("train", "validation")},
        text="sentence", label="label", name="which",
    )  # fmt: skip
    corpus = lf.load_task(
        {"train": decoder / "train.tsv"}, text="sentence", kind="causal-lm", name="corpus"
    )
    arms = {"guided": {"insert": True}, "standard": {"dropout": 0.1, "insert": True}, "none": 0.0}
    options = {"epochs": 6, "batch_size": 16, "learning_rate": 1e-2, "threads": 1}
    result = lf.compare_dropout(
        decoder / "llama", task, out=tmp_path / "o", arms=arms, seeds=(0,),
        fisher=lf.FisherFit(corpus, options={"rows": 16}), **options,
    )  # fmt: skip
    assert (result.runs.value >= 0.85).all(), result.runs[["arm", "value"]]
    record = json.loads(
        (tmp_path / "o" / "which" / "100" / "guided" / "seed0" / "landform.json").read_text()
    )
    expected = result.schedules.set_index("site").p
    assert len(expected) >= 5 and expected.max() == pytest.approx(0.1)
    assert {site: record["dropout"].get(site) for site in expected.index} == pytest.approx(
        dict(expected)
    )


@pytest.mark.parametrize("options", [{"bf16": True}, {"tuning": "lora"}], ids=["bf16", "lora"])
def test_a_decoder_in_bfloat16_and_with_lora(decoder, tmp_path, options):
    task = lf.load_task(
        {name: decoder / f"{name}.tsv" for name in ("train", "validation")},
        text="sentence", label="label", name="which",
    )  # fmt: skip
    result = lf.compare_dropout(
        decoder / "llama", task, out=tmp_path / "o", seeds=(0,), epochs=6, batch_size=16,
        arms={"standard": {"dropout": 0.1, "insert": True}, "none": 0.0}, learning_rate=1e-2,
        threads=1, **options,
    )  # fmt: skip
    assert (result.runs.value >= 0.8).all(), result.runs[["arm", "value"]]


# --- study files --------------------------------------------------------------------------------


def test_a_study_file_runs_and_forecasts(place, tmp_path):
    step = {
        "model": str(place / "model"), "tasks": "small", "out": "runs", "seeds": [0, 1],
        "arms": ["guided", "standard"], "fisher": {"task": "corpus", "rows": 6}, **QUICK,
    }  # fmt: skip
    options = {
        "study": "study",
        "tasks": {
            "small": {
                "files": {n: str(place / f"{n}.tsv") for n in ("train", "validation")},
                "text": "sentence",
                "label": "label",
            },
            "corpus": {"files": {"train": str(place / "corpus.txt")}, "kind": "masked-lm"},
        },
        "steps": [{"comparison": step}],
    }
    file = StudyFile.of(options, base=tmp_path, where="study.yaml")
    (row,) = describe_study(file)
    assert row["step"] == "1 comparison"
    assert row["forecast"].startswith("Fisher of 6 rows of corpus; then 4 jobs, 0 of them done: 8")
    said = []
    run_study(file, progress=False, say=said.append)
    assert len(said) == 1 and said[0].startswith("2 arms on small (100 % of the rows, 2 seeds)")
    assert (tmp_path / "runs" / "schedules" / "guided.json").exists()
    (row,) = describe_study(file)
    assert "4 jobs, 4 of them done: 0 steps" in row["forecast"]
    result = load_results(Store.open(tmp_path / "study"))["comparison"]
    assert "6 examples of corpus:train (empirical, mean)" in result.fisher


def test_the_study_file_of_the_paper_forecasts(place, tmp_path):
    """With a stand-in for the data and the model."""
    from pathlib import Path

    import yaml

    text = (Path(__file__).parents[2] / "studies" / "guided_dropout.yaml").read_text("utf-8")
    options = yaml.safe_load(text)
    folder = tmp_path / "MRPC"
    folder.mkdir()
    for name, rows in (("train", 30), ("dev", 10)):
        lines = ["Quality\t#1 ID\t#2 ID\t#1 String\t#2 String"]
        lines += [f"{k % 2}\t{k}\t{k}\tw{k % 30} w1\tw2 w{k % 7}" for k in range(rows)]
        (folder / f"{name}.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    options["tasks"]["mrpc"]["data_dir"] = str(tmp_path)
    options["tasks"]["corpus"] = {"files": {"train": str(place / "corpus.txt")},
                                  "kind": "masked-lm"}  # fmt: skip
    step = options["steps"][0]["comparison"]
    assert set(step["tasks"]) | {"corpus"} == set(options["tasks"])
    step |= {"model": str(place / "model"), "tasks": ["mrpc"], "max_length": 32}
    file = StudyFile.of(options, base=tmp_path, where="guided_dropout.yaml")
    rows = describe_study(file)
    # 32 rows of 40: 4, 16 and 32 of them are 1, 1 and 2 batches of 18, in 3 epochs
    assert "165 jobs, 0 of them done: 660 steps" in rows[0]["forecast"]
    study = file.steps[0].study(file)
    assert study.headline(0) == "combined" and study.config.against == "standard"


# --- bad input ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        ({"fractions": [0, 10]}, "0: a percentage lies above 0 and is at most 100"),
        ({"fractions": [101]}, "101: a percentage lies above 0"),
        ({"fractions": [10, 10.0]}, "a percentage occurs twice"),
        ({"fractions": []}, "at least one is needed"),
        ({"arms": ["guided", "standart"]}, "unknown arm 'standart': did you mean 'standard'"),
        ({"arms": ["none", "standard", "none"]}, "the arm none occurs twice"),
        ({"arms": {"a": 0.1, "b": {"dropout": 0.1}}}, "the arms a and b are the same"),
        ({"arms": ["standard"]}, "two arms or more"),
        ({"arms": {"a": 0.1, "b": {"dropout": 0.2, "kind": "inverse"}}}, "kind is an option of a"),
        ({"arms": {"a": 0.1, "b": {"droput": 0.2}}}, "droput"),
        ({"arms": {"a": 0.1, "off": "none"}}, "none is no probability: write 0"),
        ({"arms": {"a": 0.1, "b": "0.10"}}, "the arms a and b are the same"),
        ({"arms": {"a": 0.1, "b": "1.5"}}, "at least 0 and below 1"),
        ({"arms": {"a": 0.1, "b": "bert-giuded"}}, "presets bert-guided"),
        ({"arms": ONE, "reference": "standart"}, "did you mean 'standard'"),
        ({"arms": ONE, "percent": 10}, "percent is what a comparison chooses"),
        ({"arms": ONE, "dropout": 0.3}, "dropout is what a comparison chooses"),
        ({"arms": ONE, "seeds": [1, 1]}, "a seed occurs twice"),
        ({"arms": ONE, "metric": "acuracy"}, "did you mean 'accuracy'"),
    ],
    ids=str,
)
def test_bad_options_are_refused_by_name(place, task, tmp_path, options, fault):
    with pytest.raises(ConfigError) as caught:
        ComparisonStudy.of(place / "model", task, out=tmp_path / "o", **options)
    assert fault in f"{caught.value.what} {caught.value.remedy}"
    assert not (tmp_path / "o").exists()


def test_what_does_not_fit_is_found_before_anything_is_trained(place, task, fisher, tmp_path):
    out = tmp_path / "o"
    with pytest.raises(ConfigError, match="the arm guided is a schedule from Fisher scores"):
        lf.compare_dropout(place / "model", task, out=out, arms=["guided", "standard"])
    other = make_fisher(load_model(place / "model", "masked-lm"), weights="1" * 64)
    with pytest.raises(CurvatureError, match="whose weights are not those of"):
        lf.compare_dropout(place / "model", task, out=out, fisher=other, arms=["guided", "none"])
    meant = ComparisonStudy.of(
        place / "model", task, out=out, fisher=other, arms=["guided", "none"], fisher_elsewhere=True
    )
    assert meant.scores(None, False) is other
    with pytest.raises(ConfigError, match="arm published: "):
        lf.compare_dropout(place / "model", task, out=out, arms=["standard", "published"])
    with pytest.raises(ConfigError, match="the task small occurs twice"):
        lf.compare_dropout(place / "model", [task, task], out=out, arms=ONE)
    assert not out.exists()


def test_known_arms_are_those_of_the_docs():
    assert all(isinstance(ArmConfig(**options), ArmConfig) for options in ARMS.values())
    config = ComparisonConfig(arms=list(ARMS))
    assert list(config.arms) == list(ARMS)
    assert [name for name, arm in config.arms.items() if not arm.needs_fisher] == [
        "published", "standard", "none", "gaussian", "gaussian-original",
    ]  # fmt: skip
    about = ComparisonConfig.model_fields["arms"].description
    assert all(name in about for name in ARMS)
