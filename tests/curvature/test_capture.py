"""Capture against autograd on the weights, one example at a time, for many architectures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from torch import nn

import landform as lf
from brute_force import per_example_gradients
from landform.curvature.capture import Capture
from landform.curvature.gradients import Basis, GradientStore
from landform.curvature.layers import coverage_share, find_layers
from landform.errors import ConfigError, CurvatureError
from landform.tasks.batching import Batch
from landform.tasks.objective import Objective

CLASSES = Objective("classification")
WORDS = {"vocab_size": 45, "pad_token_id": 0}
SHAPE = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 40,
}
CONFIGS: dict[str, Any] = {
    "bert": hf.BertConfig(**WORDS, **SHAPE, num_labels=3),
    "albert": hf.AlbertConfig(**WORDS, **SHAPE, embedding_size=8, num_labels=3),
    "distilbert": hf.DistilBertConfig(
        **WORDS, dim=16, n_layers=2, n_heads=2, hidden_dim=24, num_labels=3
    ),
    "llama": hf.LlamaConfig(**WORDS, **SHAPE, num_key_value_heads=1, num_labels=3),
    "opt": hf.OPTConfig(
        **WORDS, hidden_size=16, ffn_dim=24, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=40, word_embed_proj_dim=16, num_labels=3,
    ),
    "gpt2": hf.GPT2Config(
        **WORDS, n_embd=16, n_layer=2, n_head=2, n_positions=32, num_labels=3,
        bos_token_id=2, eos_token_id=3,
    ),
}  # fmt: skip


def model_of(name: str) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = hf.AutoModelForSequenceClassification.from_config(CONFIGS[name])
        for parameter in model.parameters():
            if parameter.dim() > 1:
                nn.init.normal_(parameter, std=0.3)
    return model.double()


def batches(extra: int = 0) -> list[Batch]:
    """Five examples in two batches, `extra` columns of padding more than needed."""
    generator = torch.Generator().manual_seed(0)
    lengths = (4, 7, 5, 9, 3)
    texts = [torch.randint(5, 45, (length,), generator=generator) for length in lengths]
    made = []
    for rows in ([3, 0, 1], [2, 4]):
        width = max(lengths[row] for row in rows) + extra
        ids = torch.zeros(len(rows), width, dtype=torch.int64)
        mask = torch.zeros_like(ids)
        for i, row in enumerate(rows):
            ids[i, : lengths[row]], mask[i, : lengths[row]] = texts[row], 1
        inputs = {"input_ids": ids, "attention_mask": mask}
        made.append(Batch(inputs, torch.tensor([row % 3 for row in rows]), torch.tensor(rows)))
    return made


def captured(model: Any, layers: Any, data: list[Batch]) -> dict[str, torch.Tensor]:
    """Gradients (N, d_out, d_in + 1) by layer, from the tokens that capture keeps."""
    store = GradientStore([Basis(layer) for layer in layers])
    with Capture(model, layers, CLASSES) as capture:
        for batch in data:
            logits = capture.forward(batch)
            gradient = CLASSES.output_gradient(logits.detach(), batch.labels)
            capture.backward(logits, [gradient], store.visitor(batch.rows))
    back = store.order.argsort()
    found = {}
    for layer, gradients in zip(layers, store.layers, strict=True):
        out = torch.empty(len(gradients), *gradients.shape, dtype=torch.float64)
        found[layer.name] = gradients.block(0, gradients.shape[0], out)[back]
    return found


@pytest.mark.parametrize("name", CONFIGS)
def test_gradients_are_those_of_autograd(name: str) -> None:
    model = model_of(name)
    layers, _ = find_layers(model)
    found = captured(model, layers, batches())
    expected = per_example_gradients(model, CLASSES, batches(), [layer.name for layer in layers])
    for layer, gradient in expected.items():
        assert (found[layer] - gradient).abs().max() <= 1e-11 * gradient.abs().max(), layer


def test_padding_changes_nothing() -> None:
    model = model_of("bert")
    layers, _ = find_layers(model)
    plain, padded = captured(model, layers, batches()), captured(model, layers, batches(extra=4))
    for layer, gradient in plain.items():
        assert (padded[layer] - gradient).abs().max() <= 1e-12 * gradient.abs().max()


def test_padding_and_silent_tokens_are_dropped_before_any_arithmetic() -> None:
    """In the last block only the first token of a text reaches the classifier."""
    model = model_of("bert")
    layers, _ = find_layers(model)
    store = GradientStore([Basis(layer) for layer in layers])
    batch = batches(extra=4)[0]
    with Capture(model, layers, CLASSES) as capture:
        logits = capture.forward(batch)
        gradient = CLASSES.output_gradient(logits.detach(), batch.labels)
        capture.backward(logits, [gradient], store.visitor(batch.rows))
    width = dict(
        zip(
            [x.name for x in layers],
            [g.pieces[0].inputs.shape[1] for g in store.layers],
            strict=True,
        )
    )
    assert width["bert.encoder.layer.0.intermediate.dense"] == 9  # the longest text, not 13
    assert width["bert.encoder.layer.1.intermediate.dense"] == 1
    assert width["bert.encoder.layer.1.attention.self.query"] == 1
    assert width["bert.encoder.layer.1.attention.self.key"] == 9


def test_layers_with_one_input_are_found() -> None:
    model = model_of("llama")
    layers, _ = find_layers(model)
    with Capture(model, layers, CLASSES) as capture:
        capture.forward(batches()[0])
        leaders = {
            layer.name: layers[g].name for layer, g in zip(layers, capture.groups, strict=True)
        }
    block = "model.layers.1"
    assert leaders[f"{block}.self_attn.v_proj"] == f"{block}.self_attn.q_proj"
    assert leaders[f"{block}.mlp.up_proj"] == f"{block}.mlp.gate_proj"
    assert leaders[f"{block}.self_attn.o_proj"] == f"{block}.self_attn.o_proj"


def test_the_model_is_as_before_and_no_weight_gradient_was_made() -> None:
    model = model_of("gpt2").train()
    some = model.score.weight.requires_grad_(False)
    captured(model, find_layers(model, include=["*c_fc", "score"])[0], batches())
    assert model.training and not some.requires_grad
    assert all(p.requires_grad for p in model.parameters() if p is not some)
    assert all(p.grad is None for p in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())


def test_rows_of_no_example_are_refused_by_name() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model_of("bert")
            self.config = self.model.config
            self.table = nn.Linear(4, 3).double()

        def forward(self, **inputs: Any) -> Any:
            out = self.model(**inputs)
            out.logits = out.logits + self.table(torch.ones(7, 4, dtype=torch.float64)).sum(0)
            return out

    model = Odd()
    layers, _ = find_layers(model)
    with Capture(model, layers, CLASSES) as capture, pytest.raises(CurvatureError, match="table"):
        capture.forward(batches()[0])


def test_an_overwritten_input_is_refused() -> None:
    class Overwriting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model_of("bert")
            self.config = self.model.config
            self.extra = nn.Linear(3, 3).double()

        def forward(self, **inputs: Any) -> Any:
            out = self.model(**inputs)
            x = out.logits.detach().clone()
            y = self.extra(x)
            x.zero_()
            out.logits = y
            return out

    model = Overwriting()
    layers, _ = find_layers(model, include=["extra"])
    with pytest.raises(CurvatureError, match="overwrites"):
        captured(model, layers, batches())


def test_lora_layers_are_taken_and_their_frozen_base_is_not() -> None:
    peft = pytest.importorskip("peft", reason="LoRA layers come from the package peft")
    options = peft.LoraConfig(
        task_type="SEQ_CLS", r=2, target_modules=["query", "value"], init_lora_weights=False
    )
    model = peft.get_peft_model(model_of("bert"), options).double()
    layers, coverage = find_layers(model)
    names = [layer.name for layer in layers]
    assert any("lora_A" in name for name in names) and any("lora_B" in name for name in names)
    assert not any("base_layer" in name for name in names)
    assert "frozen" in set(coverage.status)
    found = captured(model, layers, batches())
    expected = per_example_gradients(model, CLASSES, batches(), names)
    for layer, gradient in expected.items():
        assert (found[layer] - gradient).abs().max() <= 1e-11 * gradient.abs().max()


# --- coverage -----------------------------------------------------------------------------------


def test_coverage_counts_every_parameter_once() -> None:
    model = hf.GPT2LMHeadModel(CONFIGS["gpt2"])
    layers, coverage = find_layers(model)
    assert coverage.parameters.sum() == sum(p.numel() for p in model.parameters())
    status = dict(zip(coverage.name, coverage.status, strict=True))
    assert status["lm_head"] == "tied to the embeddings"
    assert status["transformer.ln_f"] == "no curvature for LayerNorm"
    assert "lm_head" not in {layer.name for layer in layers}
    seen = sum(layer.parameters for layer in layers)
    assert coverage_share(coverage) == seen / coverage.parameters.sum()
    assert "lm_head" in {layer.name for layer in find_layers(model, include=["lm_head"])[0]}


def test_patterns_choose_layers() -> None:
    model = model_of("bert")
    names = {x.name for x in find_layers(model, include=["*.attention.*"], exclude=["*key"])[0]}
    assert len(names) == 6 and not any("intermediate" in n or n.endswith("key") for n in names)
    with pytest.raises(ConfigError, match="atention"):
        find_layers(model, include=["*.atention.*"])
    with pytest.raises(CurvatureError, match="no layer"):
        find_layers(model, include=["bert.embeddings.word_embeddings"])


def test_a_table_of_the_whole_batch_is_left_out_and_said(
    tmp_path: Path, word_tokenizer: Any
) -> None:
    config = hf.DebertaV2Config(
        **WORDS, **SHAPE, relative_attention=True, position_biased_input=False,
        pos_att_type=["p2c", "c2p"], num_labels=2,
    )  # fmt: skip
    hf.DebertaV2ForSequenceClassification(config).save_pretrained(tmp_path)
    word_tokenizer.save_pretrained(tmp_path)
    import pandas as pd

    table = pd.DataFrame({"text": ["w1 w2 w3", "w4 w5", "w6"], "label": [0, 1, 0]})
    task = lf.load_task({"train": table}, text="text", label="label")
    factors = lf.fit_factors(tmp_path, task, strategy="diagonal", model_labels=("0", "1"))
    status = dict(zip(factors.coverage.name, factors.coverage.status, strict=True))
    name = "deberta.encoder.layer.0.attention.self.pos_key_proj"
    assert status[name] == "its rows belong to no example"
    assert name not in factors.layers and len(factors.layers) > 8
