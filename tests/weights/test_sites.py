"""Where dropout acts, and the tensors that make its input, architecture by architecture."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from dropout_models import MODELS, make_model
from landform.weights.sites import HEAD, dropout_sites, scheduled_sites


def sites_of(name, **changes):
    return {site.name: site for site in dropout_sites(make_model(name, **changes))}


def own(site):
    """The tensors of a site, without the path of its layer."""
    return [name.removeprefix(f"{site.layer}.") for name in site.tensors]


def test_the_37_groups_of_bert():
    """Reference: tensors 0 to 4; then of every layer 6 (query, key, value), 4 (output), 2 that are
    skipped (up projection), 4 (down projection)."""
    model = make_model("bert", num_hidden_layers=12)
    sites = scheduled_sites(dropout_sites(model))
    assert len(sites) == 37
    names = [name for name, _ in model.named_parameters() if "encoder" in name or "embed" in name]
    groups, start = [tuple(names[:5])], 5
    for _ in range(12):
        groups += [tuple(names[start : start + 6]), tuple(names[start + 6 : start + 10])]
        assert all("intermediate" in name for name in names[start + 10 : start + 12])
        groups.append(tuple(names[start + 12 : start + 16]))
        start += 16
    assert [site.tensors for site in sites] == groups
    first = [site.name for site in sites[:4]]
    assert first == [
        "bert.embeddings.dropout",
        "bert.encoder.layer.0.attention.self.dropout",
        "bert.encoder.layer.0.attention.output.dropout",
        "bert.encoder.layer.0.output.dropout",
    ]
    kinds = ["embeddings", "attention", "attention_output", "feed_forward_output"]
    assert [site.kind for site in sites[:4]] == kinds
    assert sites[1].layer == "bert.encoder.layer.0" and sites[0].layer is None


def test_the_head_changes_no_name():
    masked, classifier = sites_of("bert-mlm"), sites_of("bert")
    assert list(masked) == [name for name, site in classifier.items() if site.kind != HEAD]
    assert {n: s.tensors for n, s in masked.items()}.items() <= {
        n: s.tensors for n, s in classifier.items()
    }.items()
    assert [site.name for site in classifier.values() if site.kind == HEAD] == ["dropout"]
    assert list(classifier)[-1] == "dropout"


@pytest.mark.parametrize("name", list(MODELS))
def test_every_dropout_module_is_a_site_and_no_tensor_is_two(name):
    model = make_model(name)
    sites = dropout_sites(model)
    modules = {path for path, module in model.named_modules() if isinstance(module, nn.Dropout)}
    assert {site.name for site in sites if site.how == "module"} == modules
    assert len({site.name for site in sites}) == len(sites)
    owned = [tensor for site in sites for tensor in site.tensors]
    assert len(set(owned)) == len(owned)
    assert set(owned) <= {path for path, _ in model.named_parameters()}
    assert scheduled_sites(sites)


def test_floats_that_are_dropout():
    t5 = sites_of("t5", dropout_rate=0.2)
    attention = t5["encoder.block.1.layer.0.SelfAttention.dropout"]
    assert (attention.how, attention.p, attention.kind) == ("attribute", 0.2, "attention")
    assert own(attention)[-1] == "layer.0.layer_norm.weight"
    first = t5["encoder.block.0.layer.0.SelfAttention.dropout"]
    assert "layer.0.SelfAttention.relative_attention_bias.weight" in own(first)
    up = t5["decoder.block.0.layer.2.DenseReluDense.dropout"]
    assert up.kind == "feed_forward"
    assert own(up) == ["layer.2.DenseReluDense.wi.weight", "layer.2.layer_norm.weight"]
    down = t5["decoder.block.0.layer.2.dropout"]
    assert own(down) == ["layer.2.DenseReluDense.wo.weight"]
    assert t5["decoder.block.0.layer.1.dropout"].kind == "cross_attention_output"
    # The embeddings are tied: they are scored once, with the encoder.
    assert t5["encoder.dropout"].tensors[0] == "shared.weight"
    assert t5["decoder.dropout"].tensors == ("decoder.final_layer_norm.weight",)

    bart = sites_of("bart", dropout=0.3, attention_dropout=0.2, activation_dropout=0.1)
    layer = "model.encoder.layers.0"
    assert bart[f"{layer}.dropout"].p == 0.3 and bart[f"{layer}.dropout"].kind == "residual"
    assert bart[f"{layer}.self_attn.dropout"].p == 0.2
    assert own(bart[f"{layer}.activation_dropout"]) == ["fc1.weight", "fc1.bias"]
    assert not any("layerdrop" in name for name in bart)


def test_where_dropout_can_be_inserted():
    model = make_model("llama")
    sites = dropout_sites(model)
    insertable = [site.name for site in sites if site.how == "insert"]
    assert insertable[:3] == [
        "model.embed_tokens", "model.layers.0.self_attn.o_proj", "model.layers.0.mlp.down_proj"
    ]  # fmt: skip
    assert [site.name for site in dropout_sites(model, insert=False)] == [
        f"model.layers.{i}.self_attn.attention_dropout" for i in range(2)
    ]
    for name in ("mistral", "qwen2", "qwen3", "llama-classifier"):
        assert list(sites_of(name)) == [site.name for site in sites]
    attention = sites_of("qwen3")["model.layers.0.self_attn.attention_dropout"]
    assert "self_attn.q_norm.weight" in own(attention)


def test_an_unknown_architecture():
    """Each dropout is scored by what is registered since the one before it."""

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.up, self.drop_up = nn.Linear(3, 4), nn.Dropout(0.2)
            self.down, self.drop_down = nn.Linear(4, 3), nn.Dropout(0.3)

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList(Block() for _ in range(2))

    sites = dropout_sites(Model())
    assert [(s.name, s.kind, s.layer, s.tensors) for s in sites[:2]] == [
        ("layers.0.drop_up", "layers.drop_up", "layers.0",
         ("layers.0.up.weight", "layers.0.up.bias")),
        ("layers.0.drop_down", "layers.drop_down", "layers.0",
         ("layers.0.down.weight", "layers.0.down.bias")),
    ]  # fmt: skip


def test_sites_of_a_wrapped_model_are_those_of_what_it_wraps():
    from peft import LoraConfig, get_peft_model

    model = make_model("llama-classifier")
    plain = dropout_sites(model)
    wrapped = get_peft_model(
        model, LoraConfig(target_modules=["q_proj", "o_proj"], lora_dropout=0.1, r=2)
    )
    sites = dropout_sites(wrapped)
    names = [s.name.removeprefix("base_model.model.") for s in scheduled_sites(sites)]
    assert names == [site.name for site in plain]
    assert {s.kind for s in sites if "lora_dropout" in s.name} == {"adapter"}
    output = next(s for s in sites if s.name.endswith("layers.0.self_attn.o_proj"))
    assert any("lora_A" in name for name in output.tensors)
    assert torch.is_tensor(dict(wrapped.named_parameters())[output.tensors[0]])
