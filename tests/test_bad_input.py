"""What is wrong with the input is said in words, before the work, and nothing half is left.

Every case runs the command as a user would. It must end with status 1 (or 2: the command line
itself), name the culprit and the remedy on standard error, print nothing on standard output and
leave the disk as it was.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import landform as lf
from landform.cli.app import run
from landform.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    LabelError,
    NonFiniteError,
    SpaceMismatchError,
    StoreError,
)
from landform.evaluation.points import Evaluator
from landform.store.artifacts import MemoryStore, Store
from landform.store.atomic import check_place, file_errors
from landform.store.study import slug
from landform.studies.connect import ConnectionStudy


@pytest.fixture(scope="module")
def place(tmp_path_factory, save_checkpoint, write_rows, word_tokenizer, tiny_model):
    root = tmp_path_factory.mktemp("bad")
    for i in range(3):
        save_checkpoint(root / "runs" / f"seed{i}", seed=i)
    tiny_model(dtype=None).float().bert.save_pretrained(root / "base")
    word_tokenizer.save_pretrained(root / "base")
    write_rows(root / "dev.tsv", 16)
    write_rows(root / "train.tsv", 20, seed=1)
    return root


@pytest.fixture
def call(capsys, monkeypatch):
    monkeypatch.setenv("LANDFORM_PROGRESS", "0")

    def say(*words):
        capsys.readouterr()
        status = run([str(word) for word in words])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return say


@pytest.fixture
def evaluations(monkeypatch):
    """Forward passes over the data since the test began."""
    passes = []
    real = Evaluator.run

    def counted(self, where="the model"):
        passes.append(where)
        return real(self, where)

    monkeypatch.setattr(Evaluator, "run", counted)
    return passes


@pytest.fixture
def refused(call, evaluations):
    """`refused(*words, says=..., root=...)`: the command fails as it should, before any work."""

    def check(*words, says, root=None, status=None, after=0):
        before = listing(root) if root else None
        found, out, err = call(*words)
        assert found in ((1, 2) if status is None else (status,)), (words, out, err)
        assert err.startswith("error: ") and "what to do: " in err, (words, err)
        for part in [says] if isinstance(says, str) else says:
            assert part in err, (words, err)
        assert not out and "Traceback" not in err
        assert len(evaluations) <= after, "found only after the work was done"
        if root:
            assert listing(root) == before, "something was left behind"

    return check


def listing(root):
    return sorted(str(path.relative_to(root)) for path in Path(root).rglob("*"))


def data(place):
    return ["--task", place / "dev.tsv", "--text", "sentence", "--label", "label"]


def splits(place):
    return [
        *("--files.train", place / "train.tsv", "--files.validation", place / "dev.tsv"),
        *("--text", "sentence", "--label", "label", "--max-steps", 1),
    ]


# --- checkpoints ------------------------------------------------------------------------------


def change_config(path, **changes):
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, **changes}))


def change_tensors(path, change):
    from safetensors.torch import load_file, save_file

    tensors = load_file(path / "model.safetensors")
    change(tensors)
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})


def spoil_truncated(path):
    whole = (path / "model.safetensors").read_bytes()
    (path / "model.safetensors").write_bytes(whole[:-40])


def spoil_empty(path):
    (path / "model.safetensors").write_bytes(b"")


def spoil_pickle(path):
    (path / "model.safetensors").unlink()
    (path / "pytorch_model.bin").write_bytes(b"not looked at")


def spoil_tensorflow(path):
    (path / "model.safetensors").rename(path / "tf_model.h5")


def spoil_remote_code(path):
    change_config(path, model_type="own", auto_map={"AutoModel": "modeling.Own"})


def spoil_unknown_type(path):
    change_config(path, model_type="never_heard_of")


def spoil_adapter(path):
    (path / "config.json").unlink()
    (path / "adapter_config.json").write_text("{}")


def spoil_config(path):
    (path / "config.json").write_text('{"model_type": ')


def spoil_label_count(path):
    names = {"0": "LABEL_0", "1": "LABEL_1", "2": "LABEL_2"}
    change_config(path, id2label=names, label2id={name: int(i) for i, name in names.items()})


def spoil_label_keys(path):
    change_config(path, id2label={"0": "no", "2": "yes"})


def spoil_head(path):
    change_tensors(path, lambda tensors: tensors.pop("classifier.weight"))


def spoil_nan(path):
    def poison(tensors):
        tensors["bert.encoder.layer.1.output.dense.weight"][0, 0] = float("nan")

    change_tensors(path, poison)


def spoil_no_tokenizer(path):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (path / name).unlink()


def spoil_tokenizer(path):
    (path / "tokenizer.json").write_text("{")


def spoil_vocabulary(path):
    tokenizer = json.loads((path / "tokenizer.json").read_text())
    words = tokenizer["model"]["vocab"]
    tokenizer["model"]["vocab"] = {word: 2 * i for word, i in words.items()}
    (path / "tokenizer.json").write_text(json.dumps(tokenizer))


def spoil_heads(path):
    change_config(path, num_attention_heads=4)  # no shape tells


SPOILED = {
    spoil_truncated: "model.safetensors is truncated",
    spoil_empty: "model.safetensors is truncated",
    spoil_pickle: "pytorch_model.bin is a pickle",
    spoil_tensorflow: "tf_model.h5",
    spoil_remote_code: "",  # said in one of two ways
    spoil_unknown_type: "'never_heard_of'",
    spoil_adapter: "adapter_model.safetensors is missing",
    spoil_config: "config.json",
    spoil_label_count: "",
    spoil_label_keys: "id2label",
    spoil_head: "no weights for classifier.weight",
    spoil_nan: "tensor bert.encoder.layer.1.output.dense.weight",
    spoil_no_tokenizer: "no tokenizer files",
    spoil_tokenizer: "cannot load the tokenizer",
    spoil_vocabulary: "",
    spoil_heads: "num_attention_heads",
}
FINE_FOR = {
    # A distance needs no tokenizer; alone, a model with other heads is a model like any other.
    "distance": {spoil_no_tokenizer, spoil_tokenizer, spoil_vocabulary},
    "evaluate": {spoil_heads},
}


CASES = [
    pytest.param(command, spoil, id=f"{command}-{spoil.__name__.removeprefix('spoil_')}")
    for command in ("evaluate", "interpolate", "connect", "distance")
    for spoil in SPOILED
    if spoil not in FINE_FOR.get(command, ())
]


@pytest.mark.parametrize(("command", "spoil"), CASES)
def test_checkpoints(refused, place, tmp_path, command, spoil):
    spoiled = tmp_path / "spoiled"
    shutil.copytree(place / "runs" / "seed1", spoiled)
    spoil(spoiled)
    words = [command, *([] if command == "evaluate" else [place / "runs" / "seed0"]), spoiled]
    words += [] if command == "distance" else data(place)
    # What only the weights tell is found when they are read: after the first checkpoint's pass.
    after = 1 if spoil is spoil_nan and command != "evaluate" else 0
    if command != "distance" and not after:  # a study that holds nothing does not stay
        words += ["--store", tmp_path / "study"]
    refused(*words, says=[str(spoiled), SPOILED[spoil]], root=tmp_path, status=1, after=after)


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (spoil_nan, "tensor bert.encoder.layer.1.output.dense.weight"),
        (spoil_truncated, "truncated"),
        (spoil_pickle, "is a pickle"),
        (spoil_no_tokenizer, "no tokenizer files"),
        (spoil_vocabulary, "vocabulary"),
        (spoil_label_count, "config.json"),
    ],
)
def test_a_start_that_cannot_be_trained_leaves_no_directory(refused, place, tmp_path, spoil, says):
    shutil.copytree(place / "runs" / "seed1", tmp_path / "start")
    spoil(tmp_path / "start")
    labels = ["--label-names", 0, 1, *(["2"] if spoil is spoil_label_count else [])]
    words = ["train", tmp_path / "start", *splits(place), *labels, "--out", tmp_path / "out"]
    refused(*words, says=says, root=tmp_path, status=1)


def test_names_that_lead_nowhere(refused, place):
    seed0 = place / "runs" / "seed0"
    for words, says in [
        ((place / "none",), "there is no such directory"),
        ((place / "dev.tsv",), "is a file"),
        ((f"{seed0}@30",), "has no step 30"),
        ((f"{seed0}@main",), "has no revision"),
        ((place / "runs",), "did you mean one of seed0, seed1, seed2"),
        ((f"{place}/nothing*",), "no checkpoint matches"),
        (("no-such-org/no-such-model",), "the hub did not give it"),
    ]:
        refused("evaluate", *words, *data(place), says=says, root=place)


def test_two_architectures(refused, place, tmp_path, save_checkpoint):
    save_checkpoint(tmp_path / "gpt2", architecture="gpt2")
    save_checkpoint(tmp_path / "deep", num_hidden_layers=3)
    seed0 = place / "runs" / "seed0"
    for other, says in [("gpt2", "'gpt2'"), ("deep", "num_hidden_layers")]:
        for command in ("interpolate", "connect"):
            refused(command, seed0, tmp_path / other, *data(place), says=says, root=tmp_path)
        refused("distance", seed0, tmp_path / other, says=says)
        with pytest.raises(SpaceMismatchError, match=r"what to do"):
            lf.distance(str(seed0), str(tmp_path / other))


def test_label_orders_that_differ_cannot_be_mixed(refused, place, tmp_path, save_checkpoint):
    for name, labels in {"a": {0: "no", 1: "yes"}, "b": {0: "yes", 1: "no"}}.items():
        save_checkpoint(
            tmp_path / name, id2label=labels, label2id={v: k for k, v in labels.items()}
        )
    (tmp_path / "dev.tsv").write_text("sentence\tlabel\nw1 w2\tno\nw3 w4\tyes\n")
    says = "orders its labels ('no', 'yes')"
    refused("connect", tmp_path / "a", tmp_path / "b", *data(tmp_path), says=says, root=tmp_path)


def test_a_checkpoint_removed_between_plan_and_run(place, tmp_path, save_checkpoint):
    save_checkpoint(tmp_path / "gone", seed=7)
    task = lf.load_task(place / "dev.tsv", text="sentence", label="label")
    study = ConnectionStudy.of([place / "runs" / "seed0", tmp_path / "gone"], task, points=3)
    shutil.rmtree(tmp_path / "gone")
    with pytest.raises((StoreError, CheckpointError), match="gone"):
        study.run(MemoryStore())


# --- data -------------------------------------------------------------------------------------

FILES = {
    "empty": (b"", "is empty"),
    "header only": (b"sentence\tlabel\n", "no rows"),
    "NUL": (b"sentence\tlabel\nw1 \0w2\t0\n", "line 2, byte 4 of the line: NUL"),
    "not UTF-8": (b"sentence\tlabel\nw1\t0\nw\xe9\t1\n", "line 3, byte 2 of the line: byte 0xe9"),
    "UTF-16": ("sentence\tlabel\nw1\t0\n".encode("utf-16"), "UTF-16"),
    "short row": (b"sentence\tlabel\nw1\t0\nw2\nw3\t1\n", "line 3: 1 columns where 2"),
    "other columns": (b"text\ty\nw1\t0\n", "no column 'sentence'"),
    "one class": (b"sentence\tlabel\nw1\t0\nw2\t0\n", "every row has the label '0'"),
    "three classes": (b"sentence\tlabel\nw1\t0\nw2\t1\nw3\t2\n", "3 labels in the task, 2 in"),
    "withheld labels": (b"sentence\tlabel\nw1\t-1\nw2\t1\n", "-1 usually marks"),
    "scores": (b"sentence\tlabel\nw1\t0.5\nw2\t1.5\n", "is a regression; the model has 2 outputs"),
    "unknown names": (b"sentence\tlabel\nw1\tbad\nw2\tgood\n", "does not name its labels"),
    "no text": (b"sentence\tlabel\n\t0\nw2\t1\n", "line 2, column 'sentence': no text"),
}


@pytest.mark.parametrize("name", FILES)
def test_data_files(refused, place, tmp_path, name):
    content, says = FILES[name]
    (tmp_path / "dev.tsv").write_bytes(content)
    seeds = [place / "runs" / "seed0", place / "runs" / "seed1"]
    refused("evaluate", seeds[0], *data(tmp_path), says=says, root=tmp_path, status=1)
    refused("connect", *seeds, *data(tmp_path), says=says, root=tmp_path, status=1)
    words = ["train", seeds[0], "--files.train", tmp_path / "dev.tsv", "--text", "sentence"]
    words += ["--label", "label", "--eval-split", "none", "--out", tmp_path / "out"]
    if name != "unknown names" and name != "one class":
        refused(*words, says=says.split(";")[0], root=tmp_path, status=1)


def test_data_options(refused, place):
    seed0 = place / "runs" / "seed0"
    for words, says in [
        (("--task", "sst3"), "did you mean 'sst2'"),
        (("--task", "sst2", "--data-dir", place / "none"), "does not exist"),
        (("--task", place / "dve.tsv", "--text", "a", "--label", "b"), "did you mean"),
        (("--task", place / "runs", "--text", "a", "--label", "b"), "no file named after a split"),
        ((*data(place)[2:],), "no data"),
        ((*data(place)[:4], "--label", "lable"), "did you mean 'label'"),
        ((*data(place)[:4],), "which column holds the label"),
        ((*data(place), "--filters.label", "7"), "not a label of task"),
        ((*data(place), "--filters.genre", "x"), "no column 'genre'"),
        ((*data(place), "--subsets", "genre"), "no column 'genre'"),
        ((*data(place), "--split", "test"), "no split 'test'"),
        ((*data(place), "--metrics", "acuracy"), "did you mean 'accuracy'"),
        ((*data(place), "--metrics", "pearson"), "task 'dev': metric 'pearson'"),
        ((*data(place), "--metrics", "rouge_l"), "task 'dev': metric 'rouge_l'"),
        ((*data(place), "--model-labels", "a"), "1 model labels were given"),
        ((*data(place), "--kind", "causal-lm"), "has no labels"),
    ]:
        refused("evaluate", seed0, *words, says=says, root=place, status=1)


def test_corpora_and_shares(refused, place, tmp_path, save_checkpoint):
    seed0, bert = place / "runs" / "seed0", save_checkpoint(tmp_path / "bert", kind="masked-lm")
    (tmp_path / "empty.txt").write_text("\n \n\t\n")
    (tmp_path / "corpus.txt").write_text("w1 w2 w3\nw4 w5\n")
    empty, corpus = tmp_path / "empty.txt", tmp_path / "corpus.txt"
    mlm = ("--kind", "masked-lm")
    for words, says in [
        (("--task", empty, *mlm), ("empty.txt: all 3 lines are empty", "one text per line")),
        (("--task", empty, *mlm, "--blocks"), "empty.txt: all 3 lines are empty"),
        (("--task", tmp_path / "copus.txt", *mlm), "did you mean"),
        (("--task", corpus, *mlm, "--max-length", 33), "more than the model can take (32 tokens)"),
        (("--task", corpus, *mlm, "--id", "n"), "does not go with plain text"),
        (("--task", corpus, *mlm, "--mean-span", 2), "goes with --kind denoising only"),
        (("--task", corpus, "--kind", "causal-lm"), "no causal language model"),
        (("--task", place / "dev.tsv", *mlm), "which column holds the text"),
    ]:
        refused("evaluate", bert, *words, says=says, root=tmp_path)
    for option, value in [(o, v) for o in ("percent", "resplit") for v in (0, -3, 101, "nan")]:
        refused("evaluate", seed0, *data(place), f"--{option}", value, says=option, root=place)
    refused("evaluate", seed0, *data(place), "--resplit", 20, says="no split 'train'", root=place)
    refused("evaluate", seed0, *data(place), "--percent", 5, "--percent-of", "x", says="no split")
    refused("evaluate", seed0, *data(place), "--resplit-seed", 1, says="needs resplit")


def test_text_to_text(refused, place, tmp_path):
    from text_models import save_text_model, toy_folder, write_answers

    bart = save_text_model(tmp_path / "bart", "bart")
    toy = toy_folder(tmp_path / "toy")
    several = toy_folder(toy_folder(tmp_path / "several"), name="other")
    rows = toy_folder(tmp_path / "rows")
    write_answers(rows / "toy_dev.tsv", [("w1", "yes"), ("w2",)])
    metric = ("--metrics", "exact_match")
    for words, says in [
        ((toy,), "no metric is known for the text-to-text task 'toy'"),
        ((several, *metric), "holds 2 tasks: other, toy"),
        ((rows, *metric), "toy_dev.tsv, line 2: no tab, so no answer"),
        ((toy, *metric, "--max-new-tokens", "41"), "more than the model can take (40 tokens)"),
        ((toy, *metric, "--sentinel", "<extra_id_99>"), "is not a token of this model's tokenizer"),
        ((toy, "--metrics", "accuracy"), "metric 'accuracy' needs logits"),
        ((toy, *metric, "--text", "a"), "option text does not go with --kind text-to-text"),
    ]:
        words = ("--kind", "text-to-text", "--task", *words)
        refused("evaluate", bart, *words, says=says, root=tmp_path, status=1)
    words = ("--kind", "text-to-text", "--task", rows, *metric, "--out", tmp_path / "out")
    refused("train", bart, *words, says="line 2: no tab, so no answer", root=tmp_path, status=1)


def test_all_rows_filtered_out(refused, place, tmp_path):
    (tmp_path / "dev.tsv").write_text("sentence\tlabel\tg\nw1\t0\ta\nw2\t1\tb\n")
    words = [*data(tmp_path), "--filters.g", "a", "--filters.label", "1"]
    refused("evaluate", place / "runs" / "seed0", *words, says="filtered out", root=tmp_path)


# --- options ----------------------------------------------------------------------------------

ABSURD = {
    "evaluate": [
        *["--rows 0", "--rows -1", "--rows x", "--max-length 1", "--max-length 2"],
        *["--max-length 1000", "--token-budget 0", "--device banana", "--replicates 1"],
        *["--level 2", "--level 0", "--level nan", "--seed -1", "--memory 0", "--memory inf"],
        *["--dtype int8", "--merge min"],
    ],
    "interpolate": ["--points 0", "--points 1", "--points 2.5", "--also sst3", "--also no.yaml"],
    "connect": [
        *["--points 1", "--basins 0", "--basins 4", "--affinity-scale 0", "--compat all"],
        *["--ood nothing", "--in-domain nothing", "--engine rya", "--workers 0", "--workers 2"],
        *["--pairs seed0", "--pairs no-such-file.txt", "--pairs seed0,seed0"],
        *["--pairs seed0,seed9"],
    ],
    "surface": [
        *["--size 0", "--size 2", "--size 12", "--extent 1 -1", "--extent 0.1 1", "--extent 0 nan"],
        *["--range 0", "--range 0.9", "--density -1", "--density 3.7", "--refine -1"],
        *["--tolerance 0", "--normalise layer", "--directions up", "--engine rya", "--workers 2"],
    ],
    "distance": ["--by flower", "--dtype int8", "--origin none"],
    "train": [
        *["--seeds -1", "--seeds 0 0", "--seeds", "--percent 0", "--percent 101", "--rows 0"],
        *["--percent 0.01", "--rows 21", "--row-file none.txt", "--stratified", "--save-steps 9"],
        *["--save-steps -1", "--max-steps 0", "--batch-size 0", "--learning-rate -1", "--epochs 0"],
        *["--learning-rate nan", "--dropout 1", "--device banana", "--engine rya", "--workers 0"],
        *["--dropout guided", "--dropout-noise pink", "--dropout 0.1 --dropout-compat all"],
        *["--workers 2", "--split tset", "--eval-split tset", "--max-length 2", "--max-length 99"],
        *["--prefix ../up", "--threads 0", "--rows 5 --percent 5"],
    ],
    "demo": ["--seeds 0", "--seeds 1", "--seeds -3"],
    "dropout": [
        *["--low -1", "--high 1", "--low 0.2 --high 0.1", "--kind cubic", "--control upside-down"],
        *["--seed -1", "--weighting rows", "--compat all", "--figure no.doc"],
    ],
}


@pytest.mark.parametrize("command", ABSURD)
def test_options(refused, place, tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    seeds = [place / "runs" / f"seed{i}" for i in range(3)]
    words = {
        "evaluate": [seeds[0], *data(place), "--store", tmp_path / "study"][:-2],
        "interpolate": [*seeds[:2], *data(place)],
        "connect": [*seeds, *data(place)],
        "surface": ["--through", *seeds, *data(place)],
        "distance": seeds[:2],
        "train": [place / "base", *splits(place)[:-2], "--out", tmp_path / "out"],
        "demo": ["--out", tmp_path / "demo"],
        "dropout": ["bert-guided", "--out", tmp_path / "g.json"],
    }[command]
    for option in ABSURD[command]:
        name = option.split()[0].removeprefix("--").replace("-", "_")
        quiet = command == "train" and not option.startswith("--max-steps")
        rest = [*option.split(), *(["--max-steps", 1] if quiet else [])]
        says = {
            "origin": "none",
            "also": "",
            "pairs": "",
            "split": "",
            "eval_split": "",
            "ood": "ood",
            "rows": "row",
            "figure": "no.doc",
        }
        refused(command, *words, *rest, says=says.get(name, name.split("_")[0]), root=tmp_path)


def test_dropout_schedules(refused, place, tmp_path):
    """Of another model, of none, and for a model that has nothing to drop."""
    import transformers as hf

    from landform.training.schedules import write_schedule

    words = [*splits(place)[:-2], "--out", tmp_path / "out", "--max-steps", 1, "--quiet"]
    far = write_schedule(tmp_path / "far.json", {"bert.encoder.layer.9.output.dropout": 0.1})
    says = ["layer.9.output.dropout, which is no dropout site", "did you mean bert.encoder"]
    train = ["train", place / "base", *words, "--dropout"]
    refused(*train, far, says=says, root=tmp_path, status=1)
    refused(*train, "bert-guided", says="has 7 sites in 2 layers", root=tmp_path, status=1)
    (tmp_path / "cake.json").write_text('{"what": "cake"}')
    refused(*train, tmp_path / "cake.json", says="no dropout schedule", root=tmp_path, status=1)
    refused(*train, tmp_path / "no.json", says="no.json", root=tmp_path, status=1)
    refused("dropout", place / "base" / "model.safetensors", says="no Fisher", status=1)
    refused("dropout", tmp_path / "no.safetensors", says="no.safetensors", status=1)

    config = hf.LlamaConfig(
        vocab_size=45, hidden_size=8, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=8, pad_token_id=0,
    )  # fmt: skip
    hf.LlamaForCausalLM(config).save_pretrained(tmp_path / "llama")
    hf.AutoTokenizer.from_pretrained(place / "base").save_pretrained(tmp_path / "llama")
    g = write_schedule(tmp_path / "g.json", {"model.layers.0.mlp.down_proj": 0.1})
    says = ["has no dropout after model.layers.0.mlp.down_proj", "--insert-dropout"]
    refused("train", tmp_path / "llama", *words, "--dropout", g, says=says, root=tmp_path, status=1)


def test_an_empty_list_of_pairs_and_one_that_is_no_text(refused, call, place, tmp_path):
    words = ["connect", f"{place}/runs/seed*", *data(place), "--points", 3]
    (tmp_path / "none.txt").write_text("\n")
    refused(*words, "--pairs", tmp_path / "none.txt", says="the list of pairs is empty")
    (tmp_path / "bytes.txt").write_bytes(b"\xff\xfe")
    refused(*words, "--pairs", tmp_path / "bytes.txt", says="bytes.txt cannot be read")
    long = " ".join(["seed0,seed1"] * 500)  # longer than any path may be
    status, out, err = call(*words, "--pairs", long)
    assert status == 0 and "1 lines" in out, err


# --- tuned models -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tuned(place):
    """Factory: `tuned(name, tuning=..., **options)` -> a checkpoint tuned from `base`."""
    from landform.weights.checkpoint import load_model, load_tokenizer
    from landform.weights.tuning import TuningConfig, save_model, tune

    def make(name, base="base", **options):
        path = place / "tuned" / name
        if not path.exists():
            checkpoint = lf.weights.checkpoint.resolve(place / base)
            model = load_model(checkpoint, "classification", new_head=True)
            tune(model, TuningConfig(**options), head=True)
            save_model(model, path, checkpoint.path, checkpoint.fingerprint)
            load_tokenizer(checkpoint).save_pretrained(path)
        return path

    return make


def test_checkpoints_of_different_methods(refused, place, tuned, tmp_path):
    adapter = tuned("adapter", tuning="adapter", adapter_size=3)
    wide = tuned("wide", tuning="adapter", adapter_size=5)
    lora = tuned("lora", tuning="lora", lora_rank=2)
    other = tuned("other", base="runs/seed1", tuning="adapter", adapter_size=3)
    pairs = [
        (lora, ["two tuning methods", f"{adapter} is adapter", f"{lora} is lora"]),
        (place / "runs" / "seed0", ["two tuning methods", "seed0 is full"]),
        (wide, ["two kinds of adapter", f"adapter_size is 3 in {adapter} and 5 in {wide}"]),
        (other, ["tune two different pre-trained models", str(place / "runs" / "seed1")]),
    ]
    for b, says in pairs:
        refused("interpolate", adapter, b, *data(place), says=says, root=tmp_path)
        refused("connect", adapter, b, *data(place), says=says, root=tmp_path)
        refused("distance", adapter, b, says=says, root=tmp_path)
    for b in (wide, lora):
        words = ["curve", adapter, b, *splits(place)[:-2], "--out", tmp_path / "path"]
        refused(*words, says="two ", root=tmp_path)
    same = tuned("same", tuning="adapter", adapter_size=3)
    refused("align", adapter, same, "--out", tmp_path / "a", says="are tuned", root=tmp_path)


def test_tuned_models_that_are_not_whole(refused, place, tuned, tmp_path):
    path = shutil.copytree(tuned("adapter", tuning="adapter", adapter_size=3), tmp_path / "run")
    words = ["evaluate", path, *data(place)]
    options = json.loads((path / "adapter_config.json").read_text())

    def written(**changes):
        (path / "adapter_config.json").write_text(json.dumps({**options, **changes}))

    (path / "landform_base.json").unlink()
    written(base_model_name_or_path="/no/such/model")
    refused(*words, says=["/no/such/model", "is not there"], root=tmp_path)
    written(landform={**options["landform"], "adapter_sise": 3})
    refused(*words, says=["adapter_config.json", "adapter_sise", "adapter_size"], root=tmp_path)
    written(landform={**options["landform"], "adapter_size": 4})
    refused(*words, says=["(3, 16)", "(4, 16)", "adapter_model.safetensors"], root=tmp_path)
    written(landform=None)
    refused(*words, says=["adapter_config.json", "landform"], root=tmp_path)
    options_of_peft = {k: v for k, v in options.items() if k != "landform"}
    (path / "adapter_config.json").write_text(json.dumps(options_of_peft))
    refused(*words, says="does not know the method 'LANDFORM_ADAPTER'", root=tmp_path)
    (path / "adapter_config.json").write_text("{")
    refused(*words, says=["cannot read", "adapter_config.json"], root=tmp_path)
    written()
    (path / "adapter_model.safetensors").write_bytes(b"")
    refused(*words, says="adapter_model.safetensors is truncated", root=tmp_path)
    (path / "adapter_model.safetensors").rename(path / "adapter_model.bin")
    refused(*words, says=["adapter_model.bin is a pickle", "--allow-pickle"], root=tmp_path)
    (path / "adapter_model.bin").unlink()
    refused(*words, says=["no weights", "adapter_model.safetensors"], root=tmp_path)


def test_merging_what_cannot_be_merged(refused, place, tuned, tmp_path):
    out = ["--out", tmp_path / "merged"]
    for method in ("adapter", "compacter", "low-rank-adapter", "prefix", "prompt"):
        options = {"prompt_length": 3} if method == "prompt" else {}
        path = tuned(f"{method}-to-merge", tuning=method, **options)
        refused("merge", path, *out, says=f"{method} adds computation", root=tmp_path)
    refused("merge", place / "base", *out, says="is a whole model", root=tmp_path)
    lora = tuned("lora", tuning="lora", lora_rank=2)
    refused("merge", lora, "--out", place / "base", says="is there already", root=tmp_path)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("--adapter-size 3", "adapter_size is an option of tuning adapter, compacter or"),
        ("--tuning compacter --adapter-size 6", "phm_division 4 does not divide adapter_size 6"),
        ("--tuning compacter --phm-division 64", "phm_division 64 does not divide the width"),
        ("--tuning adapter --adapter-rank 2", "adapter_rank is an option of tuning compacter or"),
        ("--tuning lora --prompt-length 3", "prompt_length is an option of tuning prompt"),
        ("--tuning houlsby", "tuning"),
        ("--tuning adapter --adapter-size 0", "adapter"),
        ("--tuning adapter --init-std -1", "init"),
        ("--tuning adapter --adapter-placement parallel", "adapter"),
        ("--tuning lora --lora-modules nothing", "lora"),
        ("--tuning prompt --prompt-length 32", "no room for text: the model has 32 positions"),
        ("--tuning prompt --prompt-length 20 --max-length 30", "more than the model can take (12"),
    ],
)
def test_tuning_options(refused, place, tmp_path, words, says):
    base = [place / "base", *splits(place), "--out", tmp_path / "out"]
    refused("train", *base, *words.split(), says=says, root=tmp_path)


# --- places to write to -----------------------------------------------------------------------


def test_places_that_cannot_be_written_are_found_before_the_work(refused, place):
    seeds = [place / "runs" / "seed0", place / "runs" / "seed1"]
    a_file = place / "dev.tsv"
    line = ["interpolate", *seeds, *data(place), "--points", 3]
    refused(*line, "--figure", place / "line.jpeg", says="unknown format '.jpeg'", root=place)
    refused(*line, "--figure", place / "line", says="(no suffix)", root=place)
    refused(*line, "--figure", a_file / "line.png", says="cannot write", root=place)
    refused(*line, "--store", a_file, says="is a file", root=place)
    refused(*line, "--store", place / "runs", says="not a study directory", root=place)
    one = ["evaluate", seeds[0], *data(place)]
    refused(*one, "--samples", a_file, says="cannot write", root=place)
    train = ["train", place / "base", *splits(place)]
    refused(*train, "--out", a_file, says="cannot write", root=place)
    refused(*train, "--out", place / "runs", says="holds other things than a run", root=place)


def test_samples_are_refused_for_what_has_no_classes(refused, place, tmp_path, save_checkpoint):
    save_checkpoint(tmp_path / "model", kind="regression", num_labels=1)
    (tmp_path / "dev.tsv").write_text("sentence\tlabel\nw1\t0.5\nw2\t1.5\n")
    words = [tmp_path / "model", *data(tmp_path), "--samples", tmp_path / "samples"]
    refused("evaluate", *words, says="option samples", root=tmp_path)


def test_check_place_touches_nothing(tmp_path):
    check_place(tmp_path / "new" / "deep" / "file.png")
    assert not list(tmp_path.iterdir())
    with pytest.raises(StoreError, match="cannot write"):
        check_place(tmp_path)


FULL = """
import resource, signal, sys
from landform.cli.app import run
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), resource.RLIM_INFINITY))
assert run(sys.argv[2:]) == 1
"""


def test_a_disk_that_fills_up(zygote, place, tmp_path, write_rows):
    """Files above a limit cannot be written, which is a full disk as far as a program can see."""
    write_rows(tmp_path / "dev.tsv", 900)
    connect = ["connect", f"{place}/runs/seed*", *data(tmp_path), "--replicates", 20]
    train = ["train", place / "base", *splits(place), "--save-steps", 1]
    jobs = {
        (4000, *connect, "--points", 3, "--store", tmp_path / "study"): "tmp-",
        (9000, *train, "--out", tmp_path / "out"): "safetensors",
    }
    running = {words: zygote.start(words, tmp_path, script=FULL) for words in jobs}
    for words, process in running.items():
        ended = process.wait()
        out, err = ended.out, ended.err
        assert ended.status == 0 and not out, err
        assert "cannot write" in err and "ulimit -f" in err and "Traceback" not in err
        assert not [name for name in listing(tmp_path) if jobs[words] in name]


@pytest.mark.parametrize(
    "text",
    [
        "Error while serializing: I/O error: No space left on device (os error 28)",
        "[enforce fail at inline_container.cc:672] . unexpected pos 28224 vs 28116",
    ],
)
def test_a_full_disk_that_libraries_tell_in_words(text):
    with pytest.raises(StoreError, match="No space left") as caught, file_errors("write", "x"):
        raise RuntimeError(text)
    assert "free some disk space" in str(caught.value)
    with pytest.raises(RuntimeError, match="unrelated"), file_errors("write", "x"):
        raise RuntimeError("something unrelated")


# --- studies ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def study(place, tmp_path_factory):
    """A finished study of one line."""
    path = tmp_path_factory.mktemp("finished") / "study"
    task = lf.load_task(place / "dev.tsv", text="sentence", label="label")
    lf.connect([place / "runs" / "seed0", place / "runs" / "seed1"], task, points=3, store=path)
    return path


def again(place, study):
    seeds = [place / "runs" / "seed0", place / "runs" / "seed1"]
    return ["connect", *seeds, *data(place), "--points", 3, "--store", study]


def test_a_study_of_a_newer_version(refused, place, study, tmp_path):
    shutil.copytree(study, tmp_path / "study")
    about = json.loads((tmp_path / "study" / "study.json").read_text())
    about |= {"format": 99, "landform": "9.0"}
    (tmp_path / "study" / "study.json").write_text(json.dumps(about))
    for words in (["report", tmp_path / "study"], again(place, tmp_path / "study")):
        refused(*words, says="was written by landform 9.0", root=tmp_path, status=1)


def test_a_damaged_study_json_is_not_to_be_deleted(refused, place, study, tmp_path):
    shutil.copytree(study, tmp_path / "study")
    (tmp_path / "study" / "study.json").write_text("{")
    refused("report", tmp_path / "study", says=["study.json is damaged", "put back"], root=tmp_path)


def test_a_flipped_bit_is_found_and_its_remedy_works(refused, call, place, study, tmp_path):
    shutil.copytree(study, tmp_path / "study")
    expected = Store.open(study).published("connect").tables["pairs"]
    damaged = next((tmp_path / "study" / "artifacts").rglob("*.safetensors"))
    content = bytearray(damaged.read_bytes())
    content[-3] ^= 1
    damaged.write_bytes(bytes(content))
    refused(*again(place, tmp_path / "study"), says=[str(damaged), "SHA-256"], root=tmp_path)
    shutil.rmtree(damaged.parent)  # as the message says
    status, _, err = call(*again(place, tmp_path / "study"))
    assert status == 0, err
    found = Store.open(tmp_path / "study").published("connect").tables["pairs"]
    assert found.equals(expected)


def test_reports(refused, place, study, tmp_path):
    refused("report", tmp_path / "none", says="there is no study at", root=tmp_path)
    refused("report", place / "runs", says="not a study directory", root=place)
    refused("report", place / "dev.tsv", says="--store", root=place)
    Store.open(tmp_path / "empty")
    refused("report", tmp_path / "empty", says="holds no results yet", root=tmp_path)
    words = ["report", study]
    refused(*words, "--out", place / "dev.tsv" / "x", says="dev.tsv/x", root=study)
    refused(*words, "--figures", place / "dev.tsv", says="cannot write", root=study)
    shutil.copytree(study, tmp_path / "study")
    (tmp_path / "study" / "results" / "connect" / "curves.parquet").unlink()
    refused("report", tmp_path / "study", says="curves.parquet is damaged", root=tmp_path)


def test_names_that_a_file_cannot_hold_stay_apart():
    assert slug("evaluate", "seed0", "sst2", "validation") == "evaluate-seed0-sst2-validation"
    names = ["ü", "é", "my run", "my-run", "a" * 80, "a" * 81, "Läufe/seed0", "L-ufe/seed0"]
    made = [slug("evaluate", name, "a task", "validation") for name in names]
    assert len(set(made)) == len(names)
    for name in made:
        MemoryStore().publish(name, _nothing())


def _nothing():
    from landform.store.artifacts import Contents

    return Contents()


# --- study files ------------------------------------------------------------------------------

HEAD = """study: out
tasks: {toy: {files: {validation: dev.tsv, train: train.tsv}, text: sentence, label: label}}
steps:
  - evaluate: {checkpoints: runs/seed*, task: toy}
"""

STUDY_FILES = {
    "study: out\ntasks: [1]\nsteps: [{report: {}}]\n": "tasks: expected a mapping",
    "study: out\ntasks: {a: 3}\nsteps: [{report: {}}]\n": "task a: expected a mapping",
    "study: [out]\nsteps: [{report: {}}]\n": "study must be the path",
    "study: out\n1: 2\nsteps: [{report: {}}]\n": "unknown key '1'",
    "study: out\nsteps: {report: {}}\n": "steps must be a list",
    "study: out\nsteps: [3]\n": "step 1: expected a mapping",
    "study: out\nsteps: [{report: 3}]\n": "step 1 (report): expected a mapping",
    "": "expected a mapping of options",
    HEAD + "  - evaluate: {checkpoints: runs/seed0, task: toy, rows: [1]}\n": "option rows",
    HEAD + "  - evaluate: {checkpoints: runs/seed0, task: tyo}\n": "step 2: unknown task 'tyo'",
    HEAD + "  - evaluate: {checkpoints: runs/seed0, task: 'toy:x'}\n": "has no split 'x'",
    HEAD + "  - evaluate: {checkpoints: runs/sede*, task: toy}\n": "step 2: no checkpoint matches",
    HEAD + "  - connect: {checkpoints: runs/seed0, task: toy}\n": "at least two checkpoints",
    HEAD + "  - connect: {checkpoints: runs/seed*, task: toy, basins: 9}\n": "option basins is 9",
    HEAD + "  - connect: {checkpoints: runs/seed*, task: toy, also: [odo]}\n": "unknown task 'odo'",
    HEAD + "  - interpolate: {a: runs/seed0, b: runs/seed9, task: toy}\n": "seed9",
    HEAD + "  - train: {model: bse, task: toy, out: new}\n": "step 2: ",
    HEAD + "  - train: {model: base, task: toy, out: new, rows: 99}\n": "option rows is 99",
}


@pytest.mark.parametrize("text", STUDY_FILES, ids=STUDY_FILES.values())
def test_study_files_are_checked_before_the_first_step(refused, place, tmp_path, text):
    for name in ("runs", "base", "dev.tsv", "train.tsv"):
        (tmp_path / name).symlink_to(place / name)
    (tmp_path / "study.yaml").write_text(text)
    refused("run", tmp_path / "study.yaml", says=STUDY_FILES[text], root=tmp_path, status=1)


def test_steps_may_use_what_an_earlier_step_makes(call, place, tmp_path):
    for name in ("base", "dev.tsv", "train.tsv"):
        (tmp_path / name).symlink_to(place / name)
    steps = (
        "  - train: {model: base, task: toy, out: new, seeds: [0, 1], max_steps: 1}\n"
        "  - connect: {checkpoints: new/seed*, task: toy, points: 3, replicates: 20}\n"
    )
    (tmp_path / "study.yaml").write_text(HEAD.splitlines(True)[0] + HEAD.splitlines(True)[1])
    with (tmp_path / "study.yaml").open("a") as stream:
        stream.write("steps:\n" + steps)
    status, out, err = call("run", tmp_path / "study.yaml", "--json")
    assert status == 0 and json.loads(out), err


# --- odd, but right ---------------------------------------------------------------------------


def test_spaces_and_letters_in_paths(call, tmp_path, save_checkpoint, write_rows):
    root = tmp_path / "мой дом é"
    for i, name in enumerate(["ü", "é", "run 3"]):
        save_checkpoint(root / "my runs" / name, seed=i)
    write_rows(root / "dev.tsv", 8)
    runs = [root / "my runs" / name for name in ("ü", "é", "run 3")]
    few = ["--replicates", 20, "--store", root / "a study"]
    status, out, err = call("evaluate", *runs, *data(root), *few)
    assert status == 0 and len(list((root / "a study" / "results").iterdir())) == 3, err
    (root / "p.txt").write_text("ü,run 3\né,run 3\n", encoding="utf-8")
    words = ["connect", *runs, *data(root), *few, "--points", 3, "--pairs", root / "p.txt"]
    status, out, err = call(*words, "--json")
    assert status == 0 and len(json.loads(out)["pairs"]) == 2, err
    status, out, err = call("report", root / "a study")
    assert status == 0 and "ü" in (root / "a study" / "atlas.html").read_text(encoding="utf-8")


def test_relative_paths_outlive_a_change_of_directory(place, tmp_path, monkeypatch):
    monkeypatch.chdir(place)
    chosen = lf.select("runs/seed[01]")
    task = lf.load_task("dev.tsv", text="sentence", label="label")
    shutil.copytree(place / "runs", tmp_path / "elsewhere")
    monkeypatch.chdir(tmp_path)
    store = Store.open("study")
    monkeypatch.chdir(tmp_path / "elsewhere")
    found = lf.connect(chosen, task, points=3, replicates=20, store=store)
    assert found.evaluations == 3 and (tmp_path / "study" / "results" / "connect").is_dir()


def test_windows_line_ends_give_the_same_numbers(place, tmp_path):
    rows = (place / "dev.tsv").read_bytes()
    (tmp_path / "dev.tsv").write_bytes(rows.replace(b"\n", b"\r\n"))
    losses = [
        lf.evaluate(
            place / "runs" / "seed0",
            lf.load_task(folder / "dev.tsv", text="sentence", label="label"),
            replicates=20,
        ).log["loss"]
        for folder in (place, tmp_path)
    ]
    assert losses[0].equals(losses[1])


def words_of(n, seed=0):
    generator = np.random.default_rng(seed)
    return [f"w{i}" for i in generator.integers(0, 40, n)]


def task_of(kind, rows=6):
    texts = [" ".join(words_of(3 + i % 4, i)) for i in range(rows)]
    if kind == "regression":
        data = [{"s": text, "y": 0.5 + i / 3} for i, text in enumerate(texts)]
    elif kind == "token-classification":
        tags = ["A", "B", "C"]
        data = [
            {"s": text.split(), "y": [tags[(i + j) % 3] for j in range(len(text.split()))]}
            for i, text in enumerate(texts)
        ]
        return lf.load_task(data, text="s", label="y", label_names=tags, name="odd")
    elif kind in ("masked-lm", "causal-lm"):
        return lf.load_task([{"s": text} for text in texts], text="s", kind=kind, name="odd")
    elif kind == "seq2seq":
        data = [{"s": text, "y": text[:5]} for text in texts]
        return lf.load_task(data, text="s", label="y", kind=kind, name="odd")
    else:
        data = [{"s": text, "y": i % 2} for i, text in enumerate(texts)]
    return lf.load_task(data, text="s", label="y", name="odd")


def without_padding(path):
    change_config(path, pad_token_id=None)
    settings = json.loads((path / "tokenizer_config.json").read_text())
    settings.pop("pad_token")
    settings["eos_token"] = "[SEP]"
    (path / "tokenizer_config.json").write_text(json.dumps(settings))


ODD = {
    "regression": {"num_labels": 1},
    "token-classification": {
        "id2label": {0: "A", 1: "B", 2: "C"},
        "label2id": {"A": 0, "B": 1, "C": 2},
    },
    "masked-lm": {},
    "causal-lm": {"architecture": "gpt2"},
    "seq2seq": {"architecture": "t5"},
    "classification": {"architecture": "gpt2"},  # without a padding token
}


@pytest.mark.parametrize("kind", ODD)
def test_every_kind_of_task_through_every_measure(kind, tmp_path, save_checkpoint):
    ends = []
    for seed in range(2):
        ends.append(save_checkpoint(tmp_path / f"m{seed}", kind=kind, seed=seed, **ODD[kind]))
        if kind == "classification":
            without_padding(ends[-1])
    task = task_of(kind)
    one = lf.evaluate(ends[0], task, replicates=20, token_budget=1)  # every row alone: no padding
    found = lf.connect(ends, task, points=3, replicates=20, store=tmp_path / "study")
    line = lf.interpolate(*ends, task, points=3, replicates=20)
    ends_of_line = line.table.loc[line.table.t == 0, "loss"].iloc[0]
    np.testing.assert_allclose(ends_of_line, one.metrics["loss"], rtol=1e-5)
    np.testing.assert_allclose(found.gaps.iloc[0, 1], line.convexity_gap, rtol=1e-6, atol=1e-9)
    assert np.isfinite(found.distances.to_numpy()).all() and found.reading and line.reading
    assert run(["report", str(tmp_path / "study")]) == 0


def test_three_classes_on_two_labels(tmp_path, save_checkpoint):
    names = ("contradiction", "entailment", "neutral")
    ends = [
        save_checkpoint(
            tmp_path / f"m{seed}",
            seed=seed,
            id2label=dict(enumerate(names)),
            label2id={name: i for i, name in enumerate(names)},
        )
        for seed in range(2)
    ]
    gold = ["entailment", "non-entailment"]
    rows = [
        {"p": "w1 w2 w3", "h": f"w{i}", "y": gold[i % 2], "heuristic": "ab"[i // 4]}
        for i in range(8)
    ]
    groups = {"entailment": ("entailment",), "non-entailment": ("neutral", "contradiction")}
    for merge in ("max", "sum", "logsumexp"):
        task = lf.load_task(
            rows, text=("p", "h"), label="y", label_names=gold, label_groups=groups, merge=merge,
            subsets=[["heuristic", "label"]], name="hans-like",
        )  # fmt: skip
        found = lf.connect(ends, task, points=3, replicates=20)
        assert f"{task.name}:validation/a/entailment/accuracy" in found.endpoints
    with pytest.raises(LabelError, match=r"m0 and hans-like"):
        lf.evaluate(
            ends[0],
            lf.load_task(rows, text=("p", "h"), label="y", label_names=gold, name="hans-like"),
        )


def test_formats_on_disk_may_differ(tmp_path, save_checkpoint):
    import torch

    formats = {"bf16": torch.bfloat16, "f32": torch.float32, "f16": torch.float16}
    ends = [save_checkpoint(tmp_path / name, dtype=dtype) for name, dtype in formats.items()]
    found = lf.connect(ends, task_of("bert"), points=3, replicates=20)
    # The same weights but for rounding: 8 bits of mantissa, or 11.
    distances = found.distances
    assert 0 < distances.loc["f32", "f16"] < distances.loc["f32", "bf16"] < 0.1
    assert found.gaps.to_numpy().max() < 1e-3


def test_one_example_and_one_class(place, call, tmp_path, save_checkpoint):
    alone = lf.load_task(
        [{"s": "w1 w2", "y": 1}], text="s", label="y", label_names=("0", "1"), name="alone",
        metrics=("accuracy", "f1", "macro_f1", "matthews", "ece"),
    )  # fmt: skip
    ends = [place / "runs" / f"seed{i}" for i in range(3)]
    assert "1 example)" in lf.evaluate(ends[0], alone, replicates=20).reading
    assert lf.connect(ends, alone, points=3, replicates=20).basins.notna().all()
    # A correlation of one pair is undefined: nothing that JSON does not know is printed for it.
    save_checkpoint(tmp_path / "model", kind="regression", num_labels=1)
    (tmp_path / "dev.tsv").write_text("sentence\tlabel\nw1\t0.5\n")
    words = [tmp_path / "model", *data(tmp_path), "--kind", "regression", "--json"]
    status, out, err = call("evaluate", *words)

    def refuse(name):
        raise AssertionError(name)

    found = json.loads(out, parse_constant=refuse)["evaluations"][0]["metrics"]
    assert status == 0 and found["pearson"] is None and found["loss"] > 0, err


@pytest.mark.filterwarnings("default:.*were cut:UserWarning")
def test_long_texts_are_counted(place, call, tmp_path):
    long, short = " ".join(words_of(60)), "w1 w2"
    (tmp_path / "dev.tsv").write_text(f"sentence\tlabel\n{long}\t0\n{short}\t1\n")
    status, out, err = call("evaluate", place / "runs" / "seed0", *data(tmp_path))
    assert status == 0 and "1 of them cut at the maximum length" in out
    assert err.startswith("warning: dev:validation: 1 of 2 examples are longer than 32 tokens")


def test_a_checkpoint_and_itself(place, call, tmp_path):
    seed0 = place / "runs" / "seed0"
    words = ["interpolate", seed0, seed0, *data(place), "--points", 3, "--store", tmp_path / "s"]
    status, out, err = call(*words)
    assert status == 0 and "barrier 0 " in out, err


def test_a_run_of_other_options_stays(refused, call, place, tmp_path):
    words = ["train", place / "base", *splits(place)[:-1]]
    status, out, err = call(*words, 1, "--out", tmp_path / "out", "--json")
    assert status == 0 and json.loads(out)["runs"], err
    says = ["finished run of other options", "max_steps was 1, now 2"]
    refused(*words, 2, "--out", tmp_path / "out", says=says, root=tmp_path, after=9)


def test_training_that_diverges_names_the_step(call, place, tmp_path):
    words = ["train", place / "base", *splits(place)[:-1], 4, "--learning-rate", "1e38"]
    status, out, err = call(*words, "--out", tmp_path / "out")
    assert status == 1 and "seed0" in err and "learning" in err and not out
    assert not (tmp_path / "out").exists(), "nothing is left of a run that diverged"


# --- the surface ------------------------------------------------------------------------------


def test_every_public_name_is_there():
    for name in lf.__all__:
        assert getattr(lf, name) is not None


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--epsilon", 0), "epsilon"),
        (("--epsilon", -0.001), "epsilon"),
        (("--steps", 0), "steps"),
        (("--coordinates", 10**9), ["coordinates", "runs/seed0", "may move"]),
        (("--subspace", 10**9), "subspace"),
        (("--method", "box", "sam", "--epsilon", 1, 2, 3), "3 radii for 2 methods"),
    ],
)
def test_sharpness_of_an_absurd_region(refused, place, words, says):
    store = place / "no_study"
    command = ["sharpness", place / "runs" / "seed0", *data(place), *words, "--store", store]
    refused(*command, says=says, root=place)


@pytest.mark.parametrize(
    ("command", "words", "says"),
    [
        ("curve", ["--start", "random"], ["start", "whole model"]),
        ("curve", ["--start", "nowhere"], "nowhere"),
        ("curve", ["--select-at", 1.5], "select_at"),
        ("curve", ["--optimizer", "adafactr"], "adafactr"),
        ("mix", ["--groups", "head"], "groups"),
        ("mix", ["--learning-rates", 0.1, 0.1], "each once"),
        ("mix", ["--init-std", -1], "init"),
        ("mix", ["--keep", "best", "--select-split", "tset"], "tset"),
    ],
    ids=lambda value: "-".join(map(str, value)) if isinstance(value, list) else None,
)
@pytest.mark.filterwarnings("ignore:task 'dev'")
def test_absurd_curves_and_mixes(refused, place, command, words, says):
    ends = [place / "runs" / name for name in ("seed0", "seed1")]
    store = place / "no_study"
    refused(command, *ends, *data(place), *words, "--store", store, says=says, root=place)


def test_importing_warns_of_nothing():
    code = "import landform; assert 'torch' not in __import__('sys').modules"
    assert subprocess.run([sys.executable, "-W", "error", "-c", code]).returncode == 0


def test_python_raises_what_the_command_line_prints(place):
    task = lf.load_task(place / "dev.tsv", text="sentence", label="label")
    seed0 = str(place / "runs" / "seed0")
    for error, act in [
        (CheckpointError, lambda: lf.evaluate(place / "none", task)),
        (ConfigError, lambda: lf.evaluate(seed0, task, rows=-1)),
        (ConfigError, lambda: lf.evaluate(seed0, task, rwos=4)),
        (ConfigError, lambda: lf.interpolate(seed0, seed0, task, points=1)),
        (ConfigError, lambda: lf.connect([seed0], task)),
        (ConfigError, lambda: lf.connect(f"{place}/runs/seed*", task, basins=9)),
        (ConfigError, lambda: lf.connect(f"{place}/runs/seed*", task, ood=("nothing",))),
        (ConfigError, lambda: lf.sharpness(seed0, task, epsilon=0)),
        (ConfigError, lambda: lf.sharpness(seed0, task, steps=0)),
        (ConfigError, lambda: lf.evaluate(seed0, "sst2")),
        (ConfigError, lambda: lf.interpolate(seed0, seed0, "sst2")),
        (ConfigError, lambda: lf.connect([seed0, seed0], "sst2")),
        (ConfigError, lambda: lf.train(seed0, "sst2", out=place / "out")),
        (ConfigError, lambda: lf.load_model(seed0, "clasification")),
        (CheckpointError, lambda: lf.evaluate("x" * 400, task)),
        (DataError, lambda: lf.evaluate(seed0, task, split="tset")),
        (DataError, lambda: lf.load_task(place / "dev.tsv", text="sentense", label="label")),
    ]:
        with pytest.raises(error):
            act()


def test_a_loss_that_overflows_names_the_example(place, tmp_path):
    shutil.copytree(place / "runs" / "seed0", tmp_path / "huge")

    def blow_up(tensors):
        for name in ("classifier.weight", "bert.pooler.dense.bias"):
            tensors[name].fill_(3e38)

    change_tensors(tmp_path / "huge", blow_up)
    task = lf.load_task(place / "dev.tsv", text="sentence", label="label")
    with pytest.raises(NonFiniteError, match=r"the loss of example validation-\d+ of dev"):
        lf.evaluate(tmp_path / "huge", task)


# --- training dynamics ------------------------------------------------------------------------


def spoil_cut(path):
    path.write_bytes(path.read_bytes()[:-40])


def spoil_rows(path):
    from landform.evaluation.cartography import read_dynamics

    read_dynamics(path).table().iloc[:-1].to_parquet(path)


@pytest.mark.parametrize(
    ("spoil", "task", "says"),
    [
        (spoil_cut, "train.tsv", "cartography.parquet is damaged"),
        (spoil_rows, "train.tsv", "20 rows after epoch 1, but 19 after epoch 2"),
        (None, "other.tsv", "is of other data"),
        (None, "dev.tsv", "holds 20 rows, and the data have 16"),
    ],
    ids=["cut", "rows", "other", "fewer"],
)
def test_a_cartography_file_from_other_data(
    place, tmp_path, refused, write_rows, spoil, task, says
):
    from landform.evaluation.cartography import FILE, TrainingDynamics, texts_fingerprint

    write_rows(tmp_path / "other.tsv", 20, seed=7)
    for name in ("train.tsv", "dev.tsv"):
        shutil.copy(place / name, tmp_path / name)

    def words(name):
        return ["--files.train", tmp_path / name, "--text", "sentence", "--label", "label"]

    file = str(tmp_path / "train.tsv")
    examples = lf.load_task({"train": file}, text="sentence", label="label").examples("train")
    half = np.full((2, 20), 0.5)
    about = {"texts": texts_fingerprint(examples)}
    record = tmp_path / "run" / FILE
    TrainingDynamics(
        examples.ids, np.arange(20), np.array([1.0, 2.0]), half, half > 0.4, half, about
    ).write(record)
    if spoil is not None:
        spoil(record)
    refused("cartography", tmp_path / "run", *words(task), says=says, root=tmp_path)


def test_a_run_without_a_record(place, refused):
    says = ["no record of its training dynamics", "--cartography"]
    refused("cartography", place / "runs" / "seed0", says=says, root=place)


# --- knowledge along a path -------------------------------------------------------------------


def test_a_cartography_of_other_data(refused, place, tmp_path):
    dynamics = {"confidence": 0.5, "correct": True, "margin": 0.0, "epoch": 1.0}
    rows = [{"text_id": f"train-{i}", "row": i, **dynamics} for i in range(12)]
    rows[7]["text_id"] = "reviews-7"
    pd.DataFrame(rows).to_parquet(tmp_path / "cartography.parquet")
    ends = (place / "runs/seed0", place / "runs/seed1")
    own = ("--files.train", place / "train.tsv", "--text", "sentence", "--label", "label")
    more = ("--cartography", tmp_path / "cartography.parquet", "--store", tmp_path / "study")
    wrong = ["is of other data", "'reviews-7'", "'train-7'"]
    refused("knowledge", *ends, *own, *more, says=wrong, root=tmp_path, status=1)
    more = ("--cartography", place / "runs/seed0", "--store", tmp_path / "study")
    refused("knowledge", *ends, *own, *more, says="--cartography", root=tmp_path, status=1)
