"""Where dropout acts when a model is trained, and which tensors make what it drops.

A *site* is one probability that can be set: that of an `nn.Dropout`, or a float that a module hands
to `torch.nn.functional.dropout` or to attention. One probability may act in several places (T5
drops embeddings and the stack's output by one module; BART's layers hold one float for all that
they add to the residual stream).

The tensors of a site are those whose Fisher scores it (Sharma et al. 2024, arXiv 2406.14005,
section 3). Where norms follow the sum (BERT), as in the paper: embeddings with their norm;
query, key, value; the attention's output with its norm; the feed-forward's down projection with its
norm. Where norms come first (GPT-2, T5, LLaMA), a norm belongs to what reads it. The feed-forward's
up projection has a site only where dropout follows it (T5, BART). No tensor belongs to two sites:
one that feeds two (tied embeddings) is scored with the first.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

__all__ = [
    "ADAPTER",
    "HEAD",
    "INSERTED",
    "DropoutSite",
    "copied_rates",
    "dropout_sites",
    "scheduled_sites",
]

How = Literal["module", "attribute", "insert"]

HEAD = "head"
"""Kind of a site after the pre-trained body: schedules leave it alone."""
ADAPTER = "adapter"
"""Kind of a site inside what a tuning method added (LoRA's own dropout): left alone as well."""
INSERTED = "landform_inserted_dropout"
"""Name of the child that an inserted dropout is, below the module whose output it drops."""


@dataclass(frozen=True)
class DropoutSite:
    """One dropout probability of a model."""

    name: str
    """what a schedule calls it: the path of the `nn.Dropout`; of a module and its float
    (`encoder.block.0.layer.0.SelfAttention.dropout`); or, where dropout can be inserted, of the
    module whose output it would drop (`model.layers.0.mlp.down_proj`)"""
    kind: str
    """embeddings, attention (its probabilities), attention_output, cross_attention,
    cross_attention_output, feed_forward (after its activation), feed_forward_output, residual (one
    float for all of a layer's outputs), position, head, adapter; of an architecture that is not
    known, the path without numbers"""
    layer: str | None
    """path of the layer that it is in"""
    tensors: tuple[str, ...]
    """names of the parameters whose Fisher scores it; none: no schedule is made for it"""
    how: How
    """what holds the probability: an nn.Dropout module, a float attribute, or nothing yet"""
    p: float
    """the probability that is set now"""


@dataclass(frozen=True)
class _Rule:
    """A kind of site of a family: its path, and what makes its input, both behind the wrapper.

    `{layer}` in `made_by` stands for what the group `layer` of `path` matched.
    """

    path: str
    kind: str
    made_by: str
    insert: bool = False


_BERT_LAYER = r"(?P<layer>(?:encoder|transformer)\.layer\.\d+)\."
_BERT = (
    _Rule(r"embeddings\.dropout", "embeddings", r"embeddings\..*"),
    _Rule(_BERT_LAYER + r"attention\.self\.dropout", "attention", r"{layer}\.attention\.self\..*"),
    _Rule(
        _BERT_LAYER + r"attention\.output\.dropout",
        "attention_output",
        r"{layer}\.attention\.output\..*",
    ),
    _Rule(
        _BERT_LAYER + r"crossattention\.self\.dropout",
        "cross_attention",
        r"{layer}\.crossattention\.self\..*",
    ),
    _Rule(
        _BERT_LAYER + r"crossattention\.output\.dropout",
        "cross_attention_output",
        r"{layer}\.crossattention\.output\..*",
    ),
    _Rule(_BERT_LAYER + r"output\.dropout", "feed_forward_output", r"{layer}\.output\..*"),
    # DeBERTa drops its table of relative positions, in every layer the same one.
    _Rule(_BERT_LAYER + r"attention\.self\.pos_dropout", "position", r"(?!)"),
    # DistilBERT's names; it does not drop the attention's output.
    _Rule(_BERT_LAYER + r"attention\.dropout", "attention", r"{layer}\.attention\.[qkv]_lin\..*"),
    _Rule(
        _BERT_LAYER + r"ffn\.dropout",
        "feed_forward_output",
        r"{layer}\.(ffn\.lin2|output_layer_norm)\..*",
    ),
)
_GPT2_LAYER = r"(?P<layer>h\.\d+)\."
_GPT2 = (
    _Rule(r"drop", "embeddings", r"wte\..*|wpe\..*"),
    _Rule(_GPT2_LAYER + r"attn\.attn_dropout", "attention", r"{layer}\.(ln_1|attn\.c_attn)\..*"),
    _Rule(_GPT2_LAYER + r"attn\.resid_dropout", "attention_output", r"{layer}\.attn\.c_proj\..*"),
    _Rule(
        _GPT2_LAYER + r"crossattention\.attn_dropout",
        "cross_attention",
        r"{layer}\.(ln_cross_attn|crossattention\.(c_attn|q_attn))\..*",
    ),
    _Rule(
        _GPT2_LAYER + r"crossattention\.resid_dropout",
        "cross_attention_output",
        r"{layer}\.crossattention\.c_proj\..*",
    ),
    _Rule(_GPT2_LAYER + r"mlp\.dropout", "feed_forward_output", r"{layer}\.mlp\.c_proj\..*"),
)
_T5_BLOCK = r"(?P<layer>(?:encoder|decoder)\.block\.\d+)\."
_T5 = (
    _Rule(
        r"encoder\.dropout",
        "embeddings",
        r"shared\..*|encoder\.(embed_tokens|final_layer_norm)\..*",
    ),
    _Rule(r"decoder\.dropout", "embeddings", r"decoder\.(embed_tokens|final_layer_norm)\..*"),
    _Rule(
        _T5_BLOCK + r"layer\.0\.SelfAttention\.dropout",
        "attention",
        r"{layer}\.layer\.0\.(layer_norm|SelfAttention\.([qkv]|relative_attention_bias))\..*",
    ),
    _Rule(
        _T5_BLOCK + r"layer\.0\.dropout",
        "attention_output",
        r"{layer}\.layer\.0\.SelfAttention\.o\..*",
    ),
    _Rule(
        _T5_BLOCK + r"layer\.1\.EncDecAttention\.dropout",
        "cross_attention",
        r"{layer}\.layer\.1\.(layer_norm|EncDecAttention\.[qkv])\..*",
    ),
    _Rule(
        r"(?P<layer>decoder\.block\.\d+)\.layer\.1\.dropout",
        "cross_attention_output",
        r"{layer}\.layer\.1\.EncDecAttention\.o\..*",
    ),
    _Rule(
        _T5_BLOCK + r"layer\.[12]\.DenseReluDense\.dropout",
        "feed_forward",
        r"{layer}\.layer\.[12]\.(DenseReluDense\.wi(_\d)?\..*|layer_norm\..*)",
    ),
    _Rule(
        _T5_BLOCK + r"layer\.[12]\.dropout",
        "feed_forward_output",
        r"{layer}\.layer\.[12]\.DenseReluDense\.wo\..*",
    ),
)
_BART_LAYER = r"(?P<layer>(?:encoder|decoder)\.layers\.\d+)\."
_BART = (
    _Rule(
        r"encoder\.dropout",
        "embeddings",
        r"shared\..*|encoder\.(embed_tokens|embed_positions|layernorm_embedding)\..*",
    ),
    _Rule(
        r"decoder\.dropout",
        "embeddings",
        r"decoder\.(embed_tokens|embed_positions|layernorm_embedding)\..*",
    ),
    _Rule(_BART_LAYER + r"self_attn\.dropout", "attention", r"{layer}\.self_attn\.[qkv]_proj\..*"),
    _Rule(
        _BART_LAYER + r"encoder_attn\.dropout",
        "cross_attention",
        r"{layer}\.encoder_attn\.[qkv]_proj\..*",
    ),
    _Rule(
        _BART_LAYER + r"dropout",
        "residual",
        r"{layer}\.((self|encoder)_attn\.out_proj|(self|encoder)_attn_layer_norm|fc2"
        r"|final_layer_norm)\..*",
    ),
    _Rule(_BART_LAYER + r"activation_dropout", "feed_forward", r"{layer}\.fc1\..*"),
)
_LLAMA_LAYER = r"(?P<layer>layers\.\d+)\."
_LLAMA = (
    _Rule(r"embed_tokens", "embeddings", r"embed_tokens\..*", insert=True),
    _Rule(
        _LLAMA_LAYER + r"self_attn\.attention_dropout",
        "attention",
        r"{layer}\.(input_layernorm|self_attn\.([qkv]_proj|[qk]_norm))\..*",
    ),
    _Rule(
        _LLAMA_LAYER + r"self_attn\.o_proj",
        "attention_output",
        r"{layer}\.self_attn\.o_proj\..*",
        insert=True,
    ),
    _Rule(
        _LLAMA_LAYER + r"mlp\.down_proj",
        "feed_forward_output",
        r"{layer}\.mlp\.down_proj\..*",
        insert=True,
    ),
)
_NEOX = (
    _Rule(r"emb_dropout", "embeddings", r"embed_in\..*"),
    _Rule(
        _LLAMA_LAYER + r"attention\.attention_dropout",
        "attention",
        r"{layer}\.(input_layernorm|attention\.query_key_value)\..*",
    ),
    _Rule(
        _LLAMA_LAYER + r"post_attention_dropout",
        "attention_output",
        r"{layer}\.attention\.dense\..*",
    ),
    _Rule(
        _LLAMA_LAYER + r"post_mlp_dropout",
        "feed_forward_output",
        r"{layer}\.mlp\.dense_4h_to_h\..*",
    ),
)
_FAMILIES: dict[str, tuple[_Rule, ...]] = {
    **dict.fromkeys(
        ("bert", "roberta", "xlm-roberta", "camembert", "electra", "distilbert"), _BERT
    ),
    **dict.fromkeys(("deberta", "deberta-v2"), _BERT),
    "gpt2": _GPT2,
    **dict.fromkeys(("t5", "mt5"), _T5),
    **dict.fromkeys(("bart", "mbart"), _BART),
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2"), _LLAMA),
    "gpt_neox": _NEOX,
}
_RATE = re.compile(r"(\w+_)?dropout(_p|_prob|_rate)?")
_NOT_A_RATE = re.compile(r"layer_?drop|drop_path|stochastic")
_ADAPTERS = re.compile(r"(^|\.)(lora_dropout|adapters?|prefix|prompt_encoder)(\.|$)")


def dropout_sites(model: nn.Module, *, insert: bool = True) -> tuple[DropoutSite, ...]:
    """The sites of a model, in the order of its parameters; those of the head come last.

    `insert`: also the places where a LLaMA-class model has no dropout but can be given one: after
    the embeddings, the attention's output projection and the feed-forward's down projection.

    Of an architecture that is not in the table, a site's tensors are those that the model registers
    since the site before it.
    """
    family = _FAMILIES.get(str(getattr(getattr(model, "config", None), "model_type", "")))
    names = [name for name, _ in model.named_parameters()]
    place = {name: index for index, name in enumerate(names)}
    body = str(getattr(model, "base_model_prefix", "") or "")
    body = f"{body}." if body and isinstance(getattr(model, body, None), nn.Module) else ""
    claimed, found, last = set[str](), [], -1
    for path, how, p, before in _holders(model, family or (), insert):
        rule, layer, makers = _fit(path, family or ())
        tensors: tuple[str, ...] = ()
        if _ADAPTERS.search(path):
            kind = ADAPTER
        elif rule is not None and makers is not None:
            kind = rule.kind
            tensors = tuple(n for n in names if n not in claimed and makers.fullmatch(n))
        elif body and not _inside(path, body):
            kind = HEAD
        else:
            kind = re.sub(r"\.\d+(?=\.|$)", "", path)
            layer = (re.match(r".*?\.\d+(?=\.)", path) or [None])[0]
            if family is None:
                tensors = tuple(n for n in before if n in place and n not in claimed)
        claimed |= set(tensors)
        last = place[tensors[0]] if tensors else last
        order = (kind in (HEAD, ADAPTER), last)
        found.append((order, DropoutSite(path, kind, layer, tensors, how, p)))
    found.sort(key=lambda pair: pair[0])
    return tuple(site for _, site in found)


def scheduled_sites(sites: Sequence[DropoutSite]) -> tuple[DropoutSite, ...]:
    """Those that a schedule is for: with tensors to score, not of the head or an adapter."""
    return tuple(site for site in sites if site.tensors and site.kind not in (HEAD, ADAPTER))


def _inside(path: str, body: str) -> bool:
    # A tuned model is wrapped once more: base_model.model.bert.encoder...
    return path.startswith(body) or f".{body}" in path


def _fit(path: str, rules: Sequence[_Rule]) -> tuple[_Rule | None, str | None, Any]:
    """The rule of a path, the path of its layer, and the pattern of its tensors' names."""
    for rule in rules:
        match = re.fullmatch(rf"(?P<wrapper>(?:[\w.]+\.)?){rule.path}", path)
        if match is None:
            continue
        wrapper, layer = match["wrapper"], match.groupdict().get("layer")
        made_by = rule.made_by.replace("{layer}", re.escape(layer or ""))
        pattern = re.compile(rf"{re.escape(wrapper)}(?:{made_by})")
        return rule, layer and wrapper + layer, pattern
    return None, None, None


_Holder = tuple[str, How, float, tuple[str, ...]]


def _holders(model: nn.Module, rules: Sequence[_Rule], insert: bool) -> list[_Holder]:
    """(path, how, p, parameters registered since the holder before) in the model's order."""
    pending: list[str] = []
    found: list[_Holder] = []

    def add(path: str, how: How, p: float) -> None:
        found.append((path, how, float(p), tuple(pending)))
        pending.clear()

    def visit(module: nn.Module, path: str) -> None:
        if isinstance(module, nn.modules.dropout._DropoutNd):
            if not path.endswith(f".{INSERTED}"):
                add(path, "module", module.p)
            return
        prefix = f"{path}." if path else ""
        pending.extend(prefix + name for name in module._parameters)
        for name, child in module.named_children():
            visit(child, prefix + name)
        for name, value in _rates(module):
            add(prefix + name, "attribute", value)
        rule = _fit(path, rules)[0]
        if rule is not None and rule.insert:
            inserted = getattr(module, INSERTED, None)
            if insert or inserted is not None:
                add(path, "insert", 0.0 if inserted is None else inserted.p)

    visit(model, "")
    return found


def copied_rates(owner: nn.Module, name: str) -> tuple[str, ...]:
    """The attributes of `owner` that are a copy of the p of its `nn.Dropout` of this name, made
    when it was built: dropout_prob beside dropout (attention of older transformers)."""
    names = [f"{name}_{end}" for end in ("p", "prob", "rate")]
    return tuple(copy for copy in names if isinstance(vars(owner).get(copy), float))


def _rates(module: nn.Module) -> Iterator[tuple[str, float]]:
    copies = {
        copy
        for name, child in module.named_children()
        if isinstance(child, nn.modules.dropout._DropoutNd)
        for copy in copied_rates(module, name)
    }
    for name, value in vars(module).items():
        number = isinstance(value, float | int) and not isinstance(value, bool)
        if name in copies:
            continue
        if number and _RATE.fullmatch(name) and not _NOT_A_RATE.search(name):
            yield name, float(value)
