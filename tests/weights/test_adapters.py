"""Bottleneck adapters: where they stand, what they compute, and that nothing else moves."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import dropout, gelu, linear, relu, silu

from landform.errors import ConfigError
from landform.weights.adapters import output_projections
from landform.weights.checkpoint import load_model
from landform.weights.space import ParameterSpace
from landform.weights.tuning import TuningConfig, save_model, tune
from tuned import CAUSAL, FAMILIES, SEQ2SEQ, call, each_family, family, generate, greedy, ids

# Adapters of two layers (ALBERT runs one layer twice; decoders of T5 and BART attend twice).
HOULSBY = {name: 10 if name in SEQ2SEQ else 2 if name == "albert" else 4 for name in FAMILIES}


def adapted(name: str, seed: int = 1, dtype: Any = torch.float64, **options: Any) -> Any:
    model = family(name, dtype=dtype)
    torch.manual_seed(seed)
    config = TuningConfig(tuning="adapter", **{"adapter_size": 3, "init_std": 0.5, **options})
    return tune(model, config, head=False).eval()


@each_family()
def test_adapters_stand_behind_every_block(name: str) -> None:
    model = adapted(name)
    kinds = output_projections(family(name))
    assert len(kinds) == HOULSBY[name]
    attention = sum(kind == "attention" for kind in kinds.values())
    assert attention == {10: 6, 4: 2, 2: 1}[HOULSBY[name]]
    wanted = {f"{k}.adapter.{part}.weight" for k in kinds for part in ("down", "up")}
    assert model.landform_tuned == wanted
    space = ParameterSpace.of(model)
    assert (len(space.names), space.numel) == (2 * HOULSBY[name], HOULSBY[name] * 2 * 3 * 16)
    plain = dict(family(name).named_parameters())
    for parameter, values in model.named_parameters():
        assert values.requires_grad == (parameter in wanted)
        if parameter not in wanted:  # names and values of the model's own tensors stay
            assert torch.equal(values, plain.pop(parameter))
    assert not plain


@each_family()
def test_pfeiffer_adapters_stand_behind_feed_forward_blocks(name: str) -> None:
    model = adapted(name, adapter_placement="pfeiffer")
    kinds = output_projections(family(name))
    behind = {k.rpartition(".adapter.")[0] for k in model.landform_tuned}
    assert behind == {k for k, kind in kinds.items() if kind == "feed_forward"}
    layer = model.get_submodule(min(behind))
    a = torch.randn(2, 5, 16, dtype=torch.float64)
    down, up = layer.adapter.down.weight, layer.adapter.up.weight
    torch.testing.assert_close(layer.adapter(a), a + relu(a @ down.T) @ up.T)


@each_family()
def test_outputs_are_those_of_the_formula(name: str) -> None:
    """a + silu(a A) B at every output of every block, from the model without adapters."""
    model, plain = adapted(name), family(name)
    for k in output_projections(plain):
        layer = model.get_submodule(k).adapter
        down, up = layer.down.weight.detach(), layer.up.weight.detach()

        def hook(_: Any, __: Any, a: Tensor, down: Tensor = down, up: Tensor = up) -> Tensor:
            hidden = torch.stack([a @ row for row in down], -1)
            hidden = hidden * torch.sigmoid(hidden)
            added: Tensor = sum(hidden[..., i : i + 1] * up[:, i] for i in range(3))  # type: ignore[assignment]
            return a + added

        plain.get_submodule(k).register_forward_hook(hook)
    text = ids(2, 6)
    with torch.no_grad():
        torch.testing.assert_close(call(model, text), call(plain, text), rtol=1e-9, atol=1e-11)
        assert (call(model, text) - call(family(name), text)).abs().max() > 1e-3


def test_t5_adds_the_adapted_output_to_the_stream_behind_dropout() -> None:
    """h + dropout(a + silu(a A) B), with the same dropout mask."""
    model = adapted("t5", dtype=torch.float64).train()
    layer = model.encoder.block[0].layer[1]
    h = torch.randn(2, 5, 16, dtype=torch.float64)
    wo, adapter = layer.DenseReluDense.wo, layer.DenseReluDense.wo.adapter
    torch.manual_seed(7)
    out = layer(h)
    torch.manual_seed(7)
    wide = dropout(relu(linear(layer.layer_norm(h), layer.DenseReluDense.wi.weight)), 0.1)
    a = linear(wide, wo.weight)
    a = a + silu(a @ adapter.down.weight.T) @ adapter.up.weight.T
    torch.testing.assert_close(out, h + dropout(a, 0.1))


def test_bert_adds_the_adapted_output_before_its_norm() -> None:
    model = adapted("bert").train()
    block = model.bert.encoder.layer[0].output
    x = torch.randn(2, 5, 24, dtype=torch.float64)
    h = torch.randn(2, 5, 16, dtype=torch.float64)
    torch.manual_seed(7)
    out = block(x, h)
    torch.manual_seed(7)
    a = linear(x, block.dense.weight, block.dense.bias)
    adapter = block.dense.adapter
    a = a + silu(a @ adapter.down.weight.T) @ adapter.up.weight.T
    torch.testing.assert_close(out, block.LayerNorm(dropout(a, 0.1) + h))


@pytest.mark.parametrize("activation", ["silu", "relu", "gelu"])
def test_activations(activation: str) -> None:
    model = adapted("gpt2", adapter_activation=activation)
    adapter = model.transformer.h[0].mlp.c_proj.adapter
    a = torch.randn(3, 16, dtype=torch.float64)
    f = {"silu": silu, "relu": relu, "gelu": gelu}[activation]
    torch.testing.assert_close(adapter(a), a + f(a @ adapter.down.weight.T) @ adapter.up.weight.T)


@each_family()
def test_gradients_reach_adapters_and_nothing_else(name: str) -> None:
    model = adapted(name)
    call(model, ids(2, 6)).pow(2).sum().backward()
    reached = {n for n, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    assert reached == set(model.landform_tuned)


@each_family()
def test_adapters_come_back_from_disk(name: str, tmp_path: Any) -> None:
    family(name, dtype=torch.float32).save_pretrained(tmp_path / "base")
    kind = None if name in CAUSAL + SEQ2SEQ else "classification"
    model = load_model(tmp_path / "base", kind)
    config = TuningConfig(tuning="adapter", adapter_size=3, init_std=0.5)
    tune(model, config, head=kind is not None)
    save_model(model, tmp_path / "tuned", tmp_path / "base")
    read = load_model(tmp_path / "tuned")
    assert ParameterSpace.of(read) == ParameterSpace.of(model)
    text = ids(2, 6)
    with torch.no_grad():
        assert torch.equal(call(read, text), call(model.eval(), text))


@each_family(*CAUSAL, *SEQ2SEQ)
def test_generation_runs_through_adapters(name: str) -> None:
    model = adapted(name)
    text = ids(2, 5)
    mask = torch.ones_like(text)
    torch.testing.assert_close(generate(model, text, mask, 5), greedy(model, text, mask, 5))


def test_a_copy_has_adapters_of_its_own() -> None:
    model = adapted("bert")
    text = ids(2, 6)
    twin = copy.deepcopy(model)
    with torch.no_grad():
        before = call(model, text)
        space = ParameterSpace.of(twin)
        space.bind(twin).move_to(torch.zeros(space.numel, dtype=torch.float64))
        torch.testing.assert_close(call(twin, text), call(family("bert"), text))
        assert torch.equal(call(model, text), before)


def test_first_weights_have_the_mean_and_deviation_asked_for() -> None:
    space = ParameterSpace.of(
        model := adapted("bert", adapter_size=400, init_mean=0.5, init_std=0.08)
    )
    flat = space.flatten(model)
    assert abs(float(flat.mean()) - 0.5) < 0.002
    assert abs(float(flat.std()) - 0.08) < 0.002


def test_counts_are_those_of_the_reference() -> None:
    from transformers import (
        RobertaConfig,
        RobertaForSequenceClassification,
        T5Config,
        T5ForConditionalGeneration,
    )

    shape = {"d_model": 768, "d_kv": 64, "d_ff": 2048, "num_layers": 12, "num_heads": 12}
    config = T5Config(**shape, feed_forward_proj="gated-gelu", tie_word_embeddings=False)
    with torch.device("meta"):
        model = T5ForConditionalGeneration(config)
        # transformers 5 unties the head of a T5 by what the file holds, not by its config.
        model.lm_head.weight = torch.nn.Parameter(torch.empty_like(model.shared.weight))
        whole = ParameterSpace.of(model)
        assert (len(whole.names), whole.numel) == (282, 247_577_856)
        tune(model, TuningConfig(tuning="adapter", adapter_size=12), head=False)
        space = ParameterSpace.of(model)
        assert (len(space.names), space.numel) == (120, 1_105_920)
        model = T5ForConditionalGeneration(config)
        tune(model, TuningConfig(tuning="lora", lora_rank=10), head=False)
        space = ParameterSpace.of(model)
        assert (len(space.names), space.numel) == (144, 1_105_920)
        roberta = RobertaForSequenceClassification(RobertaConfig(num_labels=3))
        tune(roberta, TuningConfig(tuning="adapter", adapter_size=24), head=True)
        head = 768 * 768 + 768 + 3 * 768 + 3
        assert ParameterSpace.of(roberta).numel == 24 * 2 * 24 * 768 + head


def test_models_whose_blocks_are_not_known_are_refused(tmp_path: Any) -> None:
    from transformers import MambaConfig, MambaForCausalLM, XLNetConfig, XLNetModel

    with torch.device("meta"):
        mamba = MambaForCausalLM(MambaConfig(hidden_size=16, num_hidden_layers=1))
        xlnet = XLNetModel(XLNetConfig(d_model=16, n_layer=1, n_head=2, d_inner=24))
    with pytest.raises(ConfigError, match=r"no attention block .*layers\.0 of MambaForCausalLM"):
        tune(mamba, TuningConfig(tuning="adapter"), head=False)
    with pytest.raises(ConfigError, match=r"no attention block .*layer\.0 of XLNetModel"):
        tune(xlnet, TuningConfig(tuning="adapter"), head=False)
    model = family("bert")
    model.bert.encoder.layer[1].output.dense = torch.nn.Identity()
    with pytest.raises(ConfigError, match=r"no feed-forward block .* bert\.encoder\.layer\.1"):
        tune(model, TuningConfig(tuning="adapter"), head=False)
    with pytest.raises(ConfigError, match="has an adapter already"):
        tune(adapted("bert"), TuningConfig(tuning="adapter"), head=False)
