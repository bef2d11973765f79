"""The shipped encoder loads offline and knows its grammar; the script that makes it is sound."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertForPreTraining,
)

import landform.embedded as embedded
from landform.embedded import STUDY, encoder_path
from landform.errors import CheckpointError
from landform.tasks.grammar import corpus, generate, vocabulary

MASKED_LOSS_LIMIT = 1.7
SCRIPT = Path(__file__).parents[1] / "scripts" / "pretrain_encoder.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("pretrain_encoder", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_encoder_is_small_and_loads_as_a_classifier() -> None:
    path = encoder_path()
    assert sum(file.stat().st_size for file in path.iterdir()) < 4 * 2**20
    model, info = AutoModelForSequenceClassification.from_pretrained(
        path, num_labels=2, output_loading_info=True
    )
    # Only the head is new: the pooler was trained with the encoder.
    assert set(info["missing_keys"]) == {"classifier.weight", "classifier.bias"}
    assert model.config.num_hidden_layers == 3
    assert model.config.max_position_embeddings == 64


def test_tokenizer_writes_pairs_with_token_types() -> None:
    tokenizer = AutoTokenizer.from_pretrained(encoder_path())
    encoded = tokenizer("the pilot sang", "Someone sang")
    assert tokenizer.convert_ids_to_tokens(encoded["input_ids"]) == [
        *("[CLS]", "the", "pilot", "sang", "[SEP]", "someone", "sang", "[SEP]")
    ]
    assert encoded["token_type_ids"] == [0, 0, 0, 0, 0, 1, 1, 1]
    single = tokenizer("the pilot flew")
    assert single["token_type_ids"] == [0] * 5
    assert single["input_ids"][3] == tokenizer.unk_token_id
    padded = tokenizer(["sang", "the pilot sang"], padding=True)
    assert padded["attention_mask"][0] == [1, 1, 1, 0, 0]
    assert padded["input_ids"][0][3:] == [tokenizer.pad_token_id] * 2
    assert tokenizer.model_max_length == 64


def test_tokenizer_knows_every_word_and_no_pair_is_too_long() -> None:
    tokenizer = AutoTokenizer.from_pretrained(encoder_path())
    assert set(vocabulary()) < set(tokenizer.get_vocab())
    for split in ("train", "heuristics"):
        frame = generate(split, 900, seed=5)
        ids = tokenizer(list(frame.premise), list(frame.hypothesis))["input_ids"]
        assert max(map(len, ids)) <= 64
        assert all(tokenizer.unk_token_id not in row for row in ids)


def masked_loss(model: torch.nn.Module, script: ModuleType) -> float:
    """Mean loss over the masked words of 400 passages that pre-training did not see."""
    tokenizer = AutoTokenizer.from_pretrained(encoder_path())
    generator = torch.Generator().manual_seed(0)
    losses, count = 0.0, 0
    model.eval()
    for inputs, special, _ in script.batches(list(corpus(400, seed=123)), tokenizer, 100):
        ids = inputs.pop("input_ids")
        masked, labels = script.mask_tokens(
            ids, special, tokenizer.mask_token_id, (5, len(tokenizer)), 0.2, generator
        )
        with torch.no_grad():
            logits = model(input_ids=masked, **inputs).logits
        losses += torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), labels.flatten(), ignore_index=-100, reduction="sum"
        ).item()
        count += int((labels != -100).sum())
    return losses / count


def test_pooler_tells_consequences_apart(script: ModuleType) -> None:
    tokenizer = AutoTokenizer.from_pretrained(encoder_path())
    model = BertForPreTraining.from_pretrained(encoder_path()).eval()
    right, count = 0, 0
    for inputs, _, follows in script.batches(list(corpus(400, seed=124)), tokenizer, 100):
        with torch.no_grad():
            told = model(**inputs).seq_relationship_logits.argmax(-1)
        paired = follows != -100
        right += int((told == follows)[paired].sum())
        count += int(paired.sum())
    assert right / count > 0.95


def test_encoder_predicts_masked_words(script: ModuleType) -> None:
    # The frequencies of the words alone give about 3.9 nats.
    shipped = AutoModelForMaskedLM.from_pretrained(encoder_path())
    assert masked_loss(shipped, script) < MASKED_LOSS_LIMIT


def test_masking_is_80_10_10(script: ModuleType) -> None:
    ids = torch.full((400, 50), 7)
    special = torch.zeros_like(ids, dtype=torch.bool)
    special[:, 0] = True
    generator = torch.Generator().manual_seed(0)
    masked, labels = script.mask_tokens(ids, special, 4, (5, 105), 0.2, generator)
    chosen = labels != -100
    assert not chosen[:, 0].any()
    assert (labels[chosen] == 7).all()
    assert (masked[~chosen] == 7).all()
    assert chosen[:, 1:].float().mean().item() == pytest.approx(0.2, abs=0.01)
    picked = masked[chosen]
    assert (picked == 4).float().mean().item() == pytest.approx(0.8, abs=0.02)
    kept = (picked == 7).float().mean().item()
    assert kept == pytest.approx(0.1 + 0.1 / 100, abs=0.02)
    words = picked[(picked != 4) & (picked != 7)]
    assert words.min() >= 5 and words.max() < 105


def test_script_is_deterministic_and_replaces_its_output(
    script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--passages", "200", "--batch-size", "20", "--layers", "1", "--width", "16"]
    threads = torch.get_num_threads()
    try:
        for name in ("a", "b", "b"):
            assert script.main([*arguments, "--heads", "2", "--out", str(tmp_path / name)]) == 0
    finally:
        torch.set_num_threads(threads)
    assert "final masked-word loss" in capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]
    a, b = (load_file(tmp_path / name / "model.safetensors") for name in "ab")
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_study_is_possible() -> None:
    assert len(STUDY.seeds) >= 8 and len(set(STUDY.seeds)) == len(STUDY.seeds)
    frame = generate("train", STUDY.train_rows, STUDY.data_seed, STUDY.disambiguating)
    assert len(frame) == STUDY.train_rows >= STUDY.batch_size
    assert STUDY.heuristic_rows % 30 == 0  # the same number of rows of every sub-case


def test_a_missing_encoder_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "files", lambda package: tmp_path)
    with pytest.raises(CheckpointError, match="encoder"):
        encoder_path()
