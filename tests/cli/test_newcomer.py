"""What a newcomer types first: an odd CSV, an adapter of PEFT, a model without padding."""

import gzip
import shutil

import pytest

import landform as lf
from landform.cli.app import run
from landform.errors import CheckpointError, ConfigError

TEXTS = ["good film", 'bad "film"\nvery; bad', "good good", "bad bad bad"]
LABELS = ["pos", "NEG ", " Pos", "neg"]
NAMES = {"id2label": {0: "neg", 1: "pos"}, "label2id": {"neg": 0, "pos": 1}}


@pytest.fixture(scope="module")
def place(tmp_path_factory, save_checkpoint):
    root = tmp_path_factory.mktemp("newcomer")
    for seed in range(2):
        save_checkpoint(root / "runs" / f"seed{seed}", seed=seed, **NAMES)
    return root


@pytest.fixture
def say(capsys, monkeypatch):
    monkeypatch.setenv("LANDFORM_PROGRESS", "0")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    def call(*words):
        status = run([*map(str, words)])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return call


def write_table(path, *, delimiter=";", labels=("pos", "neg", "pos", "neg"), encoding="utf-8-sig"):
    """As a spreadsheet saves it: a byte-order mark, Windows line ends, quoted line breaks."""
    quoted = ['"' + text.replace('"', '""') + '"' for text in TEXTS]
    lines = [delimiter.join(["Unnamed: 0", "Review Text", "Stars (1-5)", "Label"])]
    for i, (text, label) in enumerate(zip(quoted, labels, strict=True)):
        lines.append(delimiter.join([str(i), text, "15"[i % 2], label]))
    path.write_bytes(("\r\n".join(lines) + "\r\n").encode(encoding))
    return path


COLUMNS = ("--text", "Review Text", "--label", "Label")


@pytest.mark.parametrize("delimiter", [";", "\t", "|"], ids=["semicolon", "tab", "bar"])
def test_another_delimiter_is_named_and_then_taken(say, place, tmp_path, delimiter):
    table = write_table(tmp_path / "reviews.csv", delimiter=delimiter)
    evaluate = ["evaluate", place / "runs" / "seed0", "--task", table]
    shown = f"give the right --delimiter {delimiter!r}"  # quoted, for a shell to take
    for words in ([], COLUMNS):
        status, _, err = say(*evaluate, *words)
        assert status == 1 and shown in err, err
    given = "\\t" if delimiter == "\t" else delimiter  # what a shell hands on
    status, out, err = say(*evaluate, *COLUMNS, "--delimiter", given)
    assert status == 0 and "4 examples" in out, err


@pytest.mark.parametrize("delimiter", ["semicolon", ";;", '"'], ids=["word", "two", "quote"])
def test_a_delimiter_that_is_none(say, place, tmp_path, delimiter):
    table = write_table(tmp_path / "reviews.csv")
    words = ("--task", table, *COLUMNS, "--delimiter", delimiter)
    status, _, err = say("evaluate", place / "runs" / "seed0", *words)
    assert status == 1 and "delimiter must be one character" in err


def test_labels_that_differ_in_case_only(say, place, tmp_path):
    table = write_table(tmp_path / "reviews.csv", labels=LABELS)
    words = ("--task", table, *COLUMNS, "--delimiter", ";")
    status, _, err = say("evaluate", place / "runs" / "seed0", *words)
    assert status == 1 and "write each in one way in the column 'Label'" in err


def test_files_of_other_programs(say, place, tmp_path):
    plain = write_table(tmp_path / "reviews.csv")
    packed = tmp_path / "reviews.csv.gz"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    sheet = tmp_path / "reviews.xlsx"
    sheet.write_bytes(b"PK\x03\x04")
    latin = tmp_path / "latin.csv"
    latin.write_bytes("text,label\ncaf\xe9,pos\n".encode("latin-1"))
    advice = {packed: "unpack it", sheet: "save the sheet as CSV", latin: "iconv"}
    for file, remedy in advice.items():
        words = ("--task", file, "--text", "text", "--label", "label")
        status, _, err = say("evaluate", place / "runs" / "seed0", *words)
        assert status == 1 and str(file) in err and remedy in err, err


def test_a_column_of_texts_taken_for_labels_is_not_printed_whole(say, place, tmp_path):
    table = tmp_path / "many.csv"
    rows = [f"good film,{'a long label ' * 5}{i}" for i in range(200)]
    table.write_text("\n".join(["text,label", *rows]) + "\n")
    words = ("--task", table, "--text", "text", "--label", "label")
    status, _, err = say("evaluate", place / "runs" / "seed0", *words)
    assert status == 1 and "200 labels in the task" in err and "and 180 more" in err
    assert len(err) < 4000


def test_a_slip_in_a_name(say, place, tmp_path, monkeypatch):
    monkeypatch.chdir(place)
    table = write_table(tmp_path / "reviews.csv", delimiter=",")
    status, _, err = say("evaluate", "runs/sed0", "--task", table, *COLUMNS)
    assert status == 1 and "did you mean 'runs/seed0'?" in err
    shutil.copytree("runs/seed0", "steps0/checkpoint-20")
    shutil.copytree("runs/seed0", "steps0/checkpoint-100")
    status, _, err = say("connect", "steps*", "--task", table, *COLUMNS)
    assert status == 1 and "did you mean 'steps*/checkpoint-100'?" in err


def test_models_and_tables_where_names_are_expected(place, tmp_path, tiny_model):
    import pandas as pd

    model = tiny_model()
    table = write_table(tmp_path / "reviews.csv", delimiter=",")
    task = lf.load_task(str(table), text="Review Text", label="Label")
    for given in (model, [model, model]):
        with pytest.raises(CheckpointError, match="not by a BertForSequenceClassification"):
            lf.connect(given, task)
    with pytest.raises(ConfigError, match=r"^a DataFrame is not a task") as caught:
        lf.evaluate(str(place / "runs" / "seed0"), pd.read_csv(table))
    assert "text= and label=" in str(caught.value)


def test_results_print_their_reading(place, tmp_path):
    table = write_table(tmp_path / "reviews.csv", delimiter=",")
    task = lf.load_task({"train": table, "validation": table}, text="Review Text", label="Label")
    ends = [str(place / "runs" / f"seed{i}") for i in range(2)]
    curve = lf.interpolate(*ends, task, points=3, replicates=20)
    study = lf.connect(ends, task, points=3, replicates=20)
    factors = lf.fit_factors(ends[0], task)
    for result in (curve, study, factors.summary(), lf.influence(factors, queries="validation")):
        said = repr(result)
        assert result.reading in said and type(result).__name__ in said
        assert len(said) < len(result.reading) + 400
    assert "table, kind, summary" in repr(curve)
    assert len(repr(factors)) < 300


@pytest.fixture(scope="module")
def adapters(tmp_path_factory, save_checkpoint):
    """LoRA adapters as PEFT writes them: plain, in a trainer's folder, with a head of their own."""
    import peft
    import torch
    from transformers import AutoModelForSequenceClassification

    root = tmp_path_factory.mktemp("peft")
    base = save_checkpoint(root / "base", **NAMES)
    kinds = {
        "plain": peft.LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query", "value"]),
        "head": peft.LoraConfig(
            r=2, target_modules=["query", "value"], modules_to_save=["classifier"]
        ),
        "prompt": peft.PromptTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=2),
    }
    for kind, config in kinds.items():
        for seed in range(1 if kind == "prompt" else 2):
            torch.manual_seed(seed)
            model = AutoModelForSequenceClassification.from_pretrained(base)
            model = peft.get_peft_model(model, config)
            for name, tensor in model.named_parameters():
                if "lora_" in name:
                    torch.nn.init.normal_(tensor, std=0.1)
            model.save_pretrained(root / f"{kind}{seed}")
            if kind == "plain":
                model.save_pretrained(root / f"trainer{seed}" / "checkpoint-100")
    return root


@pytest.mark.parametrize("kind", ["plain", "head", "trainer"])
def test_adapters_of_peft(say, adapters, tmp_path, kind):
    table = write_table(tmp_path / "reviews.csv", delimiter=",")
    inner = "/checkpoint-100" if kind == "trainer" else ""
    words = ("--task", table, *COLUMNS, "--points", 3)
    status, out, err = say("connect", f"{adapters}/{kind}*{inner}", *words)
    assert status == 0 and "2 checkpoints" in out, err


def test_adapters_that_cannot_be_moved_say_what_to_do(say, adapters, tmp_path):
    table = write_table(tmp_path / "reviews.csv", delimiter=",")
    words = ("--task", table, *COLUMNS)
    status, _, err = say("evaluate", adapters / "prompt0", *words)
    assert status == 1 and "landform train --tuning" in err
    orphan = tmp_path / "orphan"
    shutil.copytree(adapters / "plain0", orphan)
    config = orphan / "adapter_config.json"
    config.write_text(config.read_text().replace(str(adapters / "base"), str(tmp_path / "gone")))
    status, _, err = say("evaluate", orphan, *words)
    assert status == 1 and "base_model_name_or_path" in err
    status, _, err = say("interpolate", adapters / "plain0", adapters / "base", *words)
    assert status == 1 and "landform merge" in err


@pytest.fixture(scope="module")
def decoders(tmp_path_factory, save_checkpoint):
    """Decoder-only classifiers whose tokenizer and config know no padding token."""
    from transformers import AutoTokenizer

    root = tmp_path_factory.mktemp("decoders")
    for seed in range(2):
        options = {"seed": seed, "architecture": "gpt2", "pad_token_id": None, **NAMES}
        folder = save_checkpoint(root / f"gpt{seed}", **options)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        tokenizer.pad_token = None
        tokenizer.save_pretrained(folder)
    return root


def test_decoder_only_classifiers_without_padding(say, decoders, tmp_path):
    table = write_table(tmp_path / "reviews.csv", delimiter=",")
    words = ("--task", table, *COLUMNS)
    status, out, err = say("connect", f"{decoders}/gpt*", *words, "--points", 3)
    assert status == 0 and "2 checkpoints" in out, err
    # What padding would add: the loss of a batch is that of its rows one at a time.
    together, alone = (
        lf.evaluate(
            str(decoders / "gpt0"),
            lf.load_task(str(table), text="Review Text", label="Label"),
            token_budget=budget,
        ).log["loss"]
        for budget in (1024, 1)
    )
    assert together.to_numpy() == pytest.approx(alone.to_numpy(), abs=1e-5)
    for command in (("sharpness", "--steps", 1), ("fisher", "--out", tmp_path / "f.safetensors")):
        status, _, err = say(command[0], decoders / "gpt0", *words, *command[1:])
        assert status == 0, err
    files = ("--files.train", table, "--files.validation", table, *COLUMNS)
    status, out, err = say("influence", decoders / "gpt0", *files)
    assert status == 0 and "most helpful" in out, err
