"""Models whose outputs depend on padding, where training evaluates them.

Evaluations of `landform evaluate` looked for it, those of a training did not: an XLNet's metrics
then told which rows had shared a batch.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

import landform as lf
from landform.errors import CheckpointError
from landform.evaluation.points import Data
from landform.training.ensemble import retrain
from landform.training.options import TrainConfig
from landform.weights.checkpoint import load_model, load_tokenizer, resolve

from .conftest import WORDS, save_bert, save_tokenizer

QUICK = {"max_steps": 2, "batch_size": 8, "learning_rate": 1e-3, "threads": 1}


@pytest.fixture(scope="module")
def xlnet(tmp_path_factory):
    """A classifier that reads the last position, be it padding or not."""
    from transformers import XLNetConfig, XLNetForSequenceClassification

    path = tmp_path_factory.mktemp("pretrained") / "xlnet"
    config = XLNetConfig(
        vocab_size=5 + len(WORDS), d_model=16, n_layer=1, n_head=2, d_inner=24, pad_token_id=0,
        dropout=0.0, summary_last_dropout=0.0, id2label={0: "negative", 1: "positive"},
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = XLNetForSequenceClassification(config)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(path)
    save_tokenizer(path)
    return path


def test_evaluations_of_a_training_do_not_depend_on_padding(xlnet, task, tmp_path):
    with pytest.warns(UserWarning, match=r"depend on padding .* evaluated row by row, but trained"):
        run = lf.train(xlnet, task, out=tmp_path, cartography=True, **QUICK)
    alone = lf.evaluate(run.paths[0], task, token_budget=1, replicates=20)
    assert run.runs["validation/loss"][0] == pytest.approx(alone.metrics["loss"], rel=1e-6)
    rows = lf.evaluate(run.paths[0], task, split="train", token_budget=1, replicates=20).log
    seen = lf.cartography(run.paths[0])
    np.testing.assert_allclose(seen.confidence, np.exp(-rows.loss), rtol=1e-5)


def test_noise_in_evaluation_is_no_dependence_on_padding(pretrained, task, tmp_path, recwarn):
    lf.train(
        pretrained, task, out=tmp_path, dropout=0.2, dropout_noise="gaussian",
        dropout_compat="guided-dropout", **QUICK,
    )  # fmt: skip
    assert not [w for w in recwarn if "padding" in str(w.message)]


def test_retraining_in_numbers_refuses_such_models(xlnet, task):
    with pytest.raises(CheckpointError, match=r"depend on padding") as caught:
        retrain(
            resolve(xlnet), task, [np.arange(20)], seeds=(0,), queries=Data(task, "validation"),
            config=TrainConfig(**QUICK),
        )  # fmt: skip
    assert "another architecture" in str(caught.value.remedy)


def test_a_callback_refuses_them_too(xlnet, task, tmp_path):
    from transformers import TrainerControl, TrainerState, TrainingArguments

    model, tokenizer = load_model(xlnet).train(), load_tokenizer(xlnet)
    arguments = TrainingArguments(str(tmp_path / "trainer"), report_to="none", use_cpu=True)

    def begin(**options):
        callback = lf.CartographyCallback(task, tokenizer, out=tmp_path / "run", **options)
        callback.on_train_begin(arguments, TrainerState(), TrainerControl(), model=model)

    with pytest.raises(CheckpointError, match=r"depend on padding"):
        begin()
    begin(token_budget=1)
    assert model.training


def test_an_encoder_is_not_trained_as_a_causal_model(files, tmp_path):
    """BERT's own head over next tokens reads the answer off its input."""
    save_bert(tmp_path / "bert", initializer_range=0.5)
    task = lf.load_task(files, text="sentence", kind="causal-lm", name="texts")
    with pytest.raises(CheckpointError, match="is no causal language model"):
        lf.train(tmp_path / "bert", task, out=tmp_path / "runs", **QUICK)
    assert not (tmp_path / "runs").exists()
