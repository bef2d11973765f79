"""Prefix tuning (Li & Liang 2021, arXiv 2101.00190): trained keys and values.

In the self-attention of every layer of a stack (the encoder; the decoder), n trained keys and
values stand before those of the text, and every position may look at them:

    softmax(q [K_prefix; K]^T / sqrt(d_head) + [0; mask and position bias]) [V_prefix; V]

The keys and values of all layers of a stack are made from one embedding,

    [K_1 V_1 ... K_L V_L] = tanh(P W_down) W_up,      P (n, d), W_down (d, r), W_up (r, 2 L d_kv)

without biases, or, without hidden units, are parameters themselves. Cross-attention has none.
The prefix has no positions: rotations and relative biases are those of the text alone, and a cache
of keys never holds it. PEFT's prefix tuning has biases, does not reach the encoder of T5 and gives
its cross-attention the keys of its self-attention.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from landform.errors import ConfigError

__all__ = ["Prefix", "insert"]

_NAME = "landform_prefix"
"""How configs name the attention function below."""


@dataclass(frozen=True)
class _Attention:
    """One self-attention module: where it is, and what its keys look like."""

    name: str
    module: nn.Module
    heads: int
    """heads of its keys: fewer than those of its queries where they are grouped"""
    width: int

    @property
    def stack(self) -> str:
        """Name of the module that holds the list of layers: `encoder` of `encoder.block.0....`."""
        parts = self.name.split(".")
        number = next((i for i, part in enumerate(parts) if part.isdigit()), len(parts))
        return ".".join(parts[: max(number - 1, 0)])


class Prefix(nn.Module):
    """The trained keys and values of one stack."""

    def __init__(self, shapes: list[tuple[int, int]], width: int, length: int, hidden: int | None):
        super().__init__()
        self.shapes = shapes
        """heads and width of a head, for every layer"""
        sizes = [2 * heads * size for heads, size in shapes]
        self.starts = [sum(sizes[:layer]) for layer in range(len(sizes) + 1)]
        self.embedding = nn.Parameter(torch.empty(length, sum(sizes) if hidden is None else width))
        self.down: nn.Parameter | None = None
        self.up: nn.Parameter | None = None
        if hidden is not None:
            self.down = nn.Parameter(torch.empty(hidden, width))
            self.up = nn.Parameter(torch.empty(sum(sizes), hidden))

    def draw(self, mean: float, std: float) -> None:
        """The embedding from N(mean, std^2); the projections as linear layers start (Kaiming)."""
        nn.init.normal_(self.embedding, mean, std)
        for projection in (self.down, self.up):
            if projection is not None:
                nn.init.kaiming_uniform_(projection, a=math.sqrt(5))

    def keys_and_values(self, layer: int) -> tuple[Tensor, Tensor]:
        """Those of one layer, each (heads, n, width of a head)."""
        # Made anew in every call and kept nowhere: gradients, and whoever replaces parameters
        # for the time of one call, need no further thought.
        rows = slice(self.starts[layer], self.starts[layer + 1])
        if self.down is None or self.up is None:
            both = self.embedding[:, rows]
        else:
            both = torch.tanh(self.embedding @ self.down.T) @ self.up[rows].T
        heads, width = self.shapes[layer]
        keys, values = both.view(len(both), 2, heads, width).permute(1, 2, 0, 3)
        return keys, values


def insert(model: Any, *, length: int, hidden: int | None, mean: float, std: float) -> set[str]:
    """Put a prefix before the text in every self-attention of `model`; the names of its tensors.

    Raises `ConfigError` for a model whose attention cannot take one.
    """
    _register()
    body = getattr(model, model.base_model_prefix, model)
    configs = _configs(model)
    if not getattr(model, "_supports_sdpa", False):
        raise _refused(model)
    before = [config._attn_implementation for config in configs]
    for config in configs:
        # Not written to config.json: transformers leaves it out.
        config._attn_implementation = _NAME
    found = _self_attention(model, body)
    if not found:
        for config, name in zip(configs, before, strict=True):
            config._attn_implementation = name
        raise _refused(model)
    stacks: dict[str, list[_Attention]] = {}
    for attention in found:
        stacks.setdefault(attention.stack, []).append(attention)
    names: set[str] = set()
    reference = next(model.parameters())
    for stack, layers in stacks.items():
        owner = model.get_submodule(stack)
        if hasattr(owner, "prefix"):
            raise ConfigError(f"{stack} has a prefix already", remedy="start from the plain model")
        shapes = [(layer.heads, layer.width) for layer in layers]
        prefix = Prefix(shapes, _hidden_size(model.config), length, hidden).to(reference)
        prefix.draw(mean, std)
        owner.add_module("prefix", prefix)
        for number, layer in enumerate(layers):
            # In a tuple it is no child of the module: the prefix keeps one name.
            layer.module.landform_prefix = (prefix, number)  # type: ignore[assignment]
        root = f"{stack}.prefix" if stack else "prefix"
        names |= {f"{root}.{name}" for name, _ in prefix.named_parameters()}
    return names


def _refused(model: Any) -> ConfigError:
    return ConfigError(
        f"prefix: the attention of {type(model).__name__} takes no further keys (it does not go "
        "through the attention interface of transformers)",
        remedy="use tuning prompt, adapter or lora",
    )


def _hidden_size(config: Any) -> int:
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    return int(getattr(text, "hidden_size", None) or text.d_model)


def _configs(model: Any) -> list[Any]:
    """The configs of all modules: an encoder and a decoder have copies of their own."""
    found = {id(m.config): m.config for m in model.modules() if hasattr(m, "config")}
    return [c for c in found.values() if hasattr(c, "_attn_implementation")]


# --- which modules attend to their own sequence -------------------------------------------------

_seen: list[tuple[nn.Module, Tensor, Tensor]] | None = None
"""While a model is asked what it attends with: modules, queries and keys, in order."""


def _self_attention(model: Any, body: Any) -> list[_Attention]:
    """The self-attention modules in the order of the layers, found by running the body once."""
    global _seen
    ids = torch.full((1, 3), _some_token(model.config), device=next(model.parameters()).device)
    inputs = {"input_ids": ids}
    if getattr(model.config, "is_encoder_decoder", False):
        # Two against three positions: keys of cross-attention are of another length than queries.
        inputs["decoder_input_ids"] = ids[:, :2]
    _seen = []
    try:
        with _evaluating(model), torch.no_grad():
            body(**inputs)
        seen = _seen
    finally:
        _seen = None
    names = {id(module): name for name, module in model.named_modules()}
    found: dict[int, _Attention] = {}
    for module, query, key in seen:
        if query.shape[2] == key.shape[2] and id(module) in names:
            name = names[id(module)]
            found[id(module)] = _Attention(name, module, key.shape[1], key.shape[3])
    return list(found.values())


def _some_token(config: Any) -> int:
    return 1 if getattr(config, "pad_token_id", None) == 0 else 0


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """No dropout inside, and every module in its former mode behind."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


# --- attention with a prefix --------------------------------------------------------------------


def _register() -> None:
    """Tell transformers of the attention function, and that its masks are those of sdpa."""
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    attention, masks = ALL_ATTENTION_FUNCTIONS, ALL_MASK_ATTENTION_FUNCTIONS
    if _NAME not in attention or _NAME not in masks:
        attention.register(_NAME, _attend)
        masks.register(_NAME, masks["sdpa"])


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    is_causal: bool | None = None,
    position_bias: Tensor | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """sdpa of transformers over the module's prefix and its keys, (B, H, T, width) each."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    if _seen is not None:
        _seen.append((module, query, key))
    carried = getattr(module, "landform_prefix", None)
    if carried is not None:
        causal = bool(getattr(module, "is_causal", True) if is_causal is None else is_causal)
        prefix, layer = carried
        n, asked = len(prefix.embedding), query.shape[2]
        if attention_mask is None and causal and asked > 1:
            # sdpa would cut its triangle off the prefix. Keys beyond the queries are the unused
            # places of a cache, as in sdpa.
            key, value = key[:, :, :asked], value[:, :, :asked]
            position_bias = None if position_bias is None else position_bias[..., :asked]
            ones = torch.ones(asked, asked, dtype=torch.bool, device=key.device)
            attention_mask = ones.tril()[None, None]
        attention_mask = _before(attention_mask, n, visible=True)
        position_bias = _before(position_bias, n, visible=False)
        keys, values = prefix.keys_and_values(layer)
        key, value = (
            torch.cat([p.to(x.dtype).expand(len(x), -1, -1, -1), x], dim=2)
            for p, x in ((keys, key), (values, value))
        )
    attended: tuple[Tensor, None] = sdpa_attention_forward(
        module,
        query,
        key,
        value,
        attention_mask,
        is_causal=is_causal,
        position_bias=position_bias,
        **options,
    )
    return attended


def _before(mask: Tensor | None, n: int, *, visible: bool) -> Tensor | None:
    """A mask (..., Q, K) as one of (..., Q, n + K): True, or nothing added, for the prefix."""
    if mask is None:
        return None
    shape = (*mask.shape[:-1], n)
    prefix = mask.new_full(shape, visible if mask.dtype == torch.bool else 0)
    return torch.cat([prefix, mask], dim=-1)
