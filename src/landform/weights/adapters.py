"""Bottleneck adapters (Houlsby et al. 2019, arXiv 1902.00751; Pfeiffer et al. 2021).

After the output projection of a block, before its dropout and its addition to the residual stream,

    a  <-  a + activation(a A) B,        A (d, r), B (r, d), without biases

where a is the block's output (B, T, d). PEFT has no such adapter, and the library `adapters` needs
an older transformers; the module is small.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from landform.errors import ConfigError

__all__ = ["Bottleneck", "insert", "output_projections"]

# The last layer of an attention block (self or cross), in the spellings of transformers' families.
_ATTENTION = re.compile(
    r"(attention\.output\.dense|attention\.(out_lin|out_proj|o_proj|dense)|"
    r"(attn|attention)\.(o_proj|out_proj|c_proj|o|Wo|dense)|(Self|EncDec)Attention\.o|"
    r"(self_attn|encoder_attn|crossattention)\."
    r"(output|output\.dense|o_proj|out_proj|c_proj|dense))$"
)
_FEED_FORWARD = re.compile(
    r"((?<!attention\.)output\.dense|\.wo|mlp\.Wo|down_proj|mlp\.c_proj|ffn\.lin2|ffn_output|\.fc2|"
    r"dense_4h_to_h|mlp\.fc_out)$"
)
_LAYER = re.compile(r"(?:\b|_)(layers?|h|blocks?)\.\d+\.")
_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": nn.functional.silu,
    "relu": nn.functional.relu,
    "gelu": nn.functional.gelu,
}


class Bottleneck(nn.Module):
    """a -> a + activation(a A) B, with A in `down` (r, d) and B in `up` (d, r)."""

    def __init__(self, width: int, size: int, activation: str) -> None:
        super().__init__()
        self.down = nn.Linear(width, size, bias=False)
        self.up = nn.Linear(size, width, bias=False)
        self.activation = activation

    def forward(self, a: Tensor) -> Tensor:
        """The adapted output, (..., d)."""
        adapted: Tensor = a + self.up(_ACTIVATIONS[self.activation](self.down(a)))
        return adapted


def output_projections(model: nn.Module) -> dict[str, str]:
    """Names of the last layers of attention and feed-forward blocks: name -> which of the two."""
    found: dict[str, str] = {}
    for name, module in model.named_modules():
        if not _LAYER.search(name) or not isinstance(getattr(module, "weight", None), Tensor):
            continue
        if _ATTENTION.search(name):
            found[name] = "attention"
        elif _FEED_FORWARD.search(name):
            found[name] = "feed_forward"
    return found


def insert(
    model: Any, *, size: int, placement: str, activation: str, mean: float, std: float
) -> set[str]:
    """Put adapters behind the blocks of `model`; the names of their tensors.

    `placement`: houlsby (attention and feed-forward blocks) or pfeiffer (feed-forward blocks).
    Entries are drawn from N(mean, std^2). A layer that a model runs several times (ALBERT) has one
    adapter for all of them. Raises `ConfigError` for a model whose blocks are not recognised in
    every layer, and for one that has adapters.
    """
    wanted = ("attention", "feed_forward") if placement == "houlsby" else ("feed_forward",)
    found = output_projections(model)
    _check_every_layer(model, found, wanted)
    names: set[str] = set()
    for name, kind in found.items():
        if kind not in wanted:
            continue
        layer = model.get_submodule(name)
        if hasattr(layer, "adapter"):
            raise ConfigError(f"{name} has an adapter already", remedy="start from the plain model")
        adapter = Bottleneck(_width(layer), size, activation).to(layer.weight)
        for part in ("down", "up"):
            nn.init.normal_(getattr(adapter, part).weight, mean, std)
            names.add(f"{name}.adapter.{part}.weight")
        # A child of the layer, run behind it: the names of the model's own tensors stay.
        layer.add_module("adapter", adapter)
        layer.register_forward_hook(_adapt)
    return names


def _check_every_layer(model: Any, found: dict[str, str], wanted: Sequence[str]) -> None:
    """Raise where some layer would go without: half a method under the name of the whole."""
    matches = [(_LAYER.search(name), name) for name, _ in model.named_parameters()]
    layers = sorted({name[: match.end()] for match, name in matches if match})
    for layer in layers or [""]:
        kinds = {kind for name, kind in found.items() if name.startswith(layer)}
        for kind in wanted:
            if kind not in kinds:
                raise ConfigError(
                    f"adapter: no {kind.replace('_', '-')} block recognised in "
                    f"{layer.rstrip('.') or 'the layers'} of {type(model).__name__}",
                    remedy="use tuning lora with lora_modules",
                )


def _adapt(layer: Any, _: Any, output: Tensor) -> Tensor:
    adapted: Tensor = layer.adapter(output)
    return adapted


def _width(layer: nn.Module) -> int:
    """Outputs of a Linear (out, in) or of GPT-2's Conv1D (in, out)."""
    weight = layer.weight
    assert isinstance(weight, torch.Tensor)
    return int(weight.shape[0] if isinstance(layer, nn.Linear) else weight.shape[1])
