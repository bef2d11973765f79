"""Prefix tuning: attention by hand with further keys, padding, gradients, generation, disk."""

from __future__ import annotations

import copy
import json
import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import linear

from landform.errors import ConfigError
from landform.weights.checkpoint import load_model
from landform.weights.space import ParameterSpace
from landform.weights.tuning import TuningConfig, save_model, tune
from tuned import (
    CAUSAL,
    ENCODERS,
    FAMILIES,
    SEQ2SEQ,
    call,
    each_family,
    family,
    generate,
    greedy,
    ids,
    padded,
)

LENGTH = 4
WITH_PREFIX = tuple(name for name in FAMILIES if name != "deberta")


def prefixed(name: str, hidden: int | None = 5, seed: int = 1, **changes: Any) -> Any:
    model = family(name, **changes)
    torch.manual_seed(seed)
    config = TuningConfig(
        tuning="prefix", prefix_length=LENGTH, prefix_hidden=hidden, init_std=1.0, init_mean=0.3
    )
    return tune(model, config, head=False).eval()


def keys_by_hand(owner: Any, layer: int, width: int) -> tuple[Tensor, Tensor]:
    """(n, width) keys and values of a layer, from the formula of the paper."""
    p = owner.prefix
    both = p.embedding if p.down is None else torch.tanh(linear(p.embedding, p.down)) @ p.up.T
    both = both.detach()[:, 2 * layer * width : 2 * (layer + 1) * width]
    return both[:, :width], both[:, width:]


def attention_by_hand(
    q: Tensor, k: Tensor, v: Tensor, scores: Tensor, heads: int, scale: float
) -> Tensor:
    """One example: q (T, d), k and v (n + T, d), additive scores (H, T, n + T) -> (T, d)."""
    out = torch.zeros_like(q)
    size = q.shape[1] // heads
    for head in range(heads):
        columns = slice(head * size, (head + 1) * size)
        for i in range(len(q)):
            logits = torch.stack([q[i, columns] @ k[j, columns] * scale for j in range(len(k))])
            weights = torch.softmax(logits + scores[head, i], 0)
            for j in range(len(k)):
                out[i, columns] += weights[j] * v[j, columns]
    return out


def seen(model: Any, name: str, text: Tensor) -> tuple[Tensor, Tensor]:
    """Input and output of a module while the model reads one text."""
    met: list[tuple[Tensor, Tensor]] = []

    def hook(_: Any, args: Any, given: Any, output: Any) -> None:
        states = args[0] if args else given["hidden_states"]
        met.append((states[0], output[0][0]))

    handle = model.get_submodule(name).register_forward_hook(hook, with_kwargs=True)
    with torch.no_grad():
        call(model, text)
    handle.remove()
    return met[0]


@pytest.mark.parametrize("hidden", [5, None], ids=["projected", "direct"])
def test_bert_attends_to_the_prefix(hidden: int | None) -> None:
    model = prefixed("bert", hidden)
    for layer in range(2):
        name = f"bert.encoder.layer.{layer}.attention.self"
        x, out = seen(model, name, ids(1, 6))
        own = model.get_submodule(name)
        q, k, v = (linear(x, m.weight, m.bias) for m in (own.query, own.key, own.value))
        pk, pv = keys_by_hand(model.bert.encoder, layer, 16)
        free = torch.zeros(2, 6, LENGTH + 6, dtype=x.dtype)
        wanted = attention_by_hand(
            q, torch.cat([pk, k]), torch.cat([pv, v]), free, 2, 1 / math.sqrt(8)
        )
        torch.testing.assert_close(out, wanted.detach(), rtol=1e-10, atol=1e-12)


def test_gpt2_attends_to_the_prefix_and_to_no_later_token() -> None:
    model = prefixed("gpt2")
    for layer in range(2):
        x, out = seen(model, f"transformer.h.{layer}.attn", ids(1, 6))
        own = model.transformer.h[layer].attn
        q, k, v = (x @ own.c_attn.weight + own.c_attn.bias).split(16, 1)
        pk, pv = keys_by_hand(model.transformer, layer, 16)
        scores = torch.zeros(2, 6, LENGTH + 6, dtype=x.dtype)
        for i in range(6):
            scores[:, i, LENGTH + i + 1 :] = -torch.inf
        attended = attention_by_hand(
            q, torch.cat([pk, k]), torch.cat([pv, v]), scores, 2, 1 / math.sqrt(8)
        )
        wanted = attended @ own.c_proj.weight + own.c_proj.bias
        torch.testing.assert_close(out, wanted.detach(), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("stack", ["encoder", "decoder"])
def test_t5_has_no_position_bias_for_the_prefix(stack: str) -> None:
    model = prefixed("t5")
    owner = getattr(model, stack)
    for layer in range(2):
        x, out = seen(model, f"{stack}.block.{layer}.layer.0.SelfAttention", ids(1, 6))
        own = owner.block[layer].layer[0].SelfAttention
        length = len(x)
        bias = owner.block[0].layer[0].SelfAttention.compute_bias(length, length)[0]
        scores = torch.cat([torch.zeros(2, length, LENGTH, dtype=x.dtype), bias], -1)
        if stack == "decoder":
            for i in range(length):
                scores[:, i, LENGTH + i + 1 :] = -torch.inf
        q, k, v = (x @ m.weight.T for m in (own.q, own.k, own.v))
        pk, pv = keys_by_hand(owner, layer, 16)
        attended = attention_by_hand(q, torch.cat([pk, k]), torch.cat([pv, v]), scores, 2, 1.0)
        torch.testing.assert_close(
            out, (attended @ own.o.weight.T).detach(), rtol=1e-10, atol=1e-12
        )


def test_grouped_heads_share_keys_of_the_prefix() -> None:
    """A model with grouped heads is the one whose keys and values are written out for each."""
    grouped = prefixed("llama", None)
    whole = prefixed("llama", None, num_key_value_heads=4)

    def repeated(x: Tensor) -> Tensor:  # (2 heads of 4, ...) -> (4 heads of 4, ...)
        return x.view(2, 4, *x.shape[1:]).repeat_interleave(2, 0).reshape(16, *x.shape[1:])

    with torch.no_grad():
        mine = dict(whole.named_parameters())
        for name, value in grouped.named_parameters():
            if "k_proj" in name or "v_proj" in name:
                value = repeated(value)
            elif "prefix" in name:
                value = torch.cat([repeated(part.T).T for part in value.split(8, 1)], 1)
            mine[name].copy_(value)
        text = ids(2, 7)
        torch.testing.assert_close(call(grouped, text), call(whole, text), rtol=1e-9, atol=1e-11)


@each_family(*WITH_PREFIX)
def test_padding_changes_nothing(name: str) -> None:
    model = prefixed(name)
    text = ids(2, 6)
    with torch.no_grad():
        alone = call(model, text, torch.ones_like(text))
        longer, mask = padded(model, text, 10)
        beside = call(model, longer, mask)[:, : alone.shape[1]]
    torch.testing.assert_close(beside, alone, rtol=1e-9, atol=1e-11)
    with torch.no_grad():  # and the prefix does change something
        plain = call(family(name), text)
    assert (plain - alone).abs().max() > 1e-3


@each_family(*WITH_PREFIX)
def test_gradients_reach_the_prefix_and_nothing_else(name: str) -> None:
    model = prefixed(name)
    call(model, ids(2, 6)).pow(2).sum().backward()
    for parameter, value in model.named_parameters():
        if "prefix" in parameter:
            assert value.grad is not None and value.grad.abs().max() > 0, parameter
        else:
            assert value.grad is None, parameter


@each_family(*CAUSAL, *SEQ2SEQ)
def test_generation_with_a_cache_says_the_same(name: str) -> None:
    model = prefixed(name)
    short, long = ids(1, 4, seed=3), ids(1, 7, seed=4)
    side = "right" if model.config.is_encoder_decoder else "left"
    rows = [padded(model, text, 7, side) for text in (short, long)]
    text, mask = (torch.cat(parts) for parts in zip(*rows, strict=True))
    said = generate(model, text, mask, 6)
    torch.testing.assert_close(said, greedy(model, text, mask, 6))
    torch.testing.assert_close(said, generate(model, text, mask, 6, use_cache=False))
    one_row = generate(model, short, torch.ones_like(short), 6)
    torch.testing.assert_close(said[:1], one_row)
    beams = {"num_beams": 2, "length_penalty": 0.0}
    torch.testing.assert_close(
        generate(model, text, mask, 4, **beams),
        generate(model, text, mask, 4, use_cache=False, **beams),
    )


@each_family(*WITH_PREFIX)
def test_a_prefix_comes_back_from_disk(name: str, tmp_path: Any) -> None:
    family(name, dtype=torch.float32).save_pretrained(tmp_path / "base")
    kind = None if name in CAUSAL + SEQ2SEQ else "classification"
    torch.manual_seed(0)
    model = load_model(tmp_path / "base", kind)
    config = TuningConfig(tuning="prefix", prefix_length=LENGTH, prefix_hidden=5, init_std=1.0)
    tune(model, config, head=kind is not None)
    save_model(model, tmp_path / "tuned", tmp_path / "base")
    read = load_model(tmp_path / "tuned")
    assert ParameterSpace.of(read) == ParameterSpace.of(model)
    text = ids(2, 6)
    with torch.no_grad():
        assert torch.equal(call(read, text), call(model.eval(), text))
    written = (tmp_path / "tuned" / "config.json").read_text()
    assert "landform_prefix" not in written
    assert "attn_implementation" not in json.loads(written)


def test_points_move_the_prefix() -> None:
    model = prefixed("bert")
    space = ParameterSpace.of(model)
    assert [name.rpartition(".")[2] for name in space.names] == ["embedding", "down", "up"]
    point = space.flatten(model) * 0.5
    text = ids(2, 6)
    with torch.no_grad():
        called = space.call(model, point, input_ids=text).logits
        before = call(model, text)
        twin = copy.deepcopy(model)
        space.bind(twin).move_to(point)
        torch.testing.assert_close(call(twin, text), called, rtol=0, atol=0)
        torch.testing.assert_close(call(model, text), before, rtol=0, atol=0)
    assert (called - before).abs().max() > 1e-3


def test_counts_are_those_of_the_reference() -> None:
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(
        **{"d_model": 768, "d_kv": 64, "d_ff": 2048, "num_layers": 12, "num_heads": 12},
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,
    )
    with torch.device("meta"):
        model = T5ForConditionalGeneration(config)
        options = TuningConfig(tuning="prefix", prefix_length=120, prefix_hidden=24)
        space = ParameterSpace.of(tune(model, options, head=False))
    assert (len(space.names), space.numel) == (6, 1_105_920)


def test_first_weights_have_the_deviation_asked_for() -> None:
    model = family("bert")
    torch.manual_seed(0)
    config = TuningConfig(
        tuning="prefix", prefix_length=2000, prefix_hidden=7, init_mean=1.0, init_std=0.5
    )
    prefix = tune(model, config, head=False).bert.encoder.prefix
    assert abs(prefix.embedding.mean().item() - 1.0) < 0.02
    assert abs(prefix.embedding.std().item() - 0.5) < 0.02
    # Kaiming with a = sqrt(5): uniform within 1 / sqrt(inputs)
    assert 0.9 / 4 < prefix.down.abs().max().item() <= 1 / 4
    assert 0.9 / math.sqrt(7) < prefix.up.abs().max().item() <= 1 / math.sqrt(7)


def test_attention_that_takes_no_keys_is_refused() -> None:
    model = family("deberta")
    with pytest.raises(ConfigError, match=r"DebertaV2.* takes no further keys"):
        tune(model, TuningConfig(tuning="prefix"), head=False)
    call(model, ids(1, 4))  # and is left as it was
    with pytest.raises(ConfigError, match="has a prefix already"):
        tune(prefixed("bert"), TuningConfig(tuning="prefix"), head=False)


def test_training_mode_and_random_numbers_are_left_alone() -> None:
    assert set(ENCODERS) > {"bert"}
    model = family("bert").train()
    model.bert.embeddings.eval()
    modes = [module.training for module in model.modules()]
    torch.manual_seed(3)
    tune(model, TuningConfig(tuning="prefix", prefix_length=2, prefix_hidden=None), head=False)
    assert [m.training for m in model.modules() if type(m).__name__ != "Prefix"] == modes
    drawn = model.bert.encoder.prefix.embedding.clone()
    torch.manual_seed(3)
    torch.testing.assert_close(drawn, torch.randn_like(drawn) * 0.02, rtol=1e-6, atol=1e-9)
