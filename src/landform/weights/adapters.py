"""Bottleneck adapters (Houlsby et al. 2019, arXiv 1902.00751; Pfeiffer et al. 2021).

After the output projection of a block, before its dropout and its addition to the residual stream,

    a  <-  a + activation(a A) B,        A (d, r), B (r, d), without biases

where a is the block's output (B, T, d). PEFT has no such adapter, and the library `adapters` needs
an older transformers; the module is small. Adapters whose two matrices are made of fewer numbers
(`weights.compacter`) stand in the same places.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from landform.errors import ConfigError

__all__ = ["Bottleneck", "insert", "output_projections", "place"]

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
    "gelu_new": partial(nn.functional.gelu, approximate="tanh"),
}


class Bottleneck(nn.Module):
    """a -> a + up(activation(down(a))), with `down` from d to r entries and `up` back."""

    def __init__(self, down: nn.Module, up: nn.Module, activation: str) -> None:
        super().__init__()
        self.down = down
        self.up = up
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
    Entries are drawn from N(mean, std^2). Raises `ConfigError` as `place` does.
    """

    def make(width: int, like: Tensor) -> Bottleneck:
        down, up = nn.Linear(width, size, bias=False), nn.Linear(size, width, bias=False)
        adapter = Bottleneck(down, up, activation).to(like)
        for part in (down, up):
            nn.init.normal_(part.weight, mean, std)
        return adapter

    return place(model, placement, make)


def place(model: Any, placement: str, make: Callable[[int, Tensor], Bottleneck]) -> set[str]:
    """Put what `make` returns behind the blocks of `model`; the names of its tensors.

    `make(d, like)` is called for every block, with the width of its output and a tensor of the type
    and on the device that the adapter is to have. A layer that a model runs several times (ALBERT)
    has one adapter for all of them. Raises `ConfigError` for a model whose blocks are not
    recognised in every layer, and for one that has adapters; the model is as it was then.
    """
    wanted = ("attention", "feed_forward") if placement == "houlsby" else ("feed_forward",)
    found = output_projections(model)
    _check_every_layer(model, found, wanted)
    made: dict[str, Bottleneck] = {}
    for name, kind in found.items():
        if kind not in wanted:
            continue
        layer = model.get_submodule(name)
        if hasattr(layer, "adapter"):
            raise ConfigError(f"{name} has an adapter already", remedy="start from the plain model")
        made[name] = make(_width(layer), layer.weight)
    for name, adapter in made.items():
        # A child of the layer, run behind it: the names of the model's own tensors stay.
        layer = model.get_submodule(name)
        layer.add_module("adapter", adapter)
        layer.register_forward_hook(_adapt)
    return {
        f"{name}.adapter.{part}"
        for name, adapter in made.items()
        for part, _ in adapter.named_parameters()
    }


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
