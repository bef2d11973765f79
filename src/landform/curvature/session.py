"""A checkpoint opened for capture: model, tokenizer and the layers that are looked at."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from pydantic import Field
from torch import Tensor

from landform.curvature.capture import Capture
from landform.curvature.layers import SEEN, Layer, find_layers
from landform.curvature.ranks import current_ranks
from landform.errors import CurvatureError, NonFiniteError
from landform.evaluation.points import Data, DataConfig, PreparedData, check_padding, prepare
from landform.tasks.batching import Batch
from landform.tasks.objective import Objective
from landform.tasks.task import Examples
from landform.weights.checkpoint import Checkpoint, load_model, load_tokenizer
from landform.weights.space import ParameterSpace

__all__ = ["LayersConfig", "Session", "finite_logits", "memory_of"]

REMEMBERED = 4


class LayersConfig(DataConfig):
    """How a model is opened for its per-layer gradients."""

    include: tuple[str, ...] = ()
    """Only layers whose names fit one of these patterns ('*.attention.*'; default: all)."""
    exclude: tuple[str, ...] = ()
    """No layers whose names fit one of these patterns."""
    memory: float | None = Field(None, ge=0, allow_inf_nan=False)
    """GiB for gradients held in memory (default: a quarter of what the machine has)."""


@dataclass(eq=False)
class Session:
    """An opened checkpoint (see the module's docstring)."""

    checkpoint: Checkpoint
    config: LayersConfig
    model: Any
    tokenizer: Any
    layers: tuple[Layer, ...]
    coverage: pd.DataFrame
    groups: tuple[int, ...]
    """for each layer, the number of the first layer that always has the same input"""
    kept: dict[tuple[str, str], Any] = field(default_factory=dict, repr=False)
    """`Captured` gradients of training rows, by their fingerprint and the labels: what one phase
    made, the next one takes"""
    _prepared: dict[tuple[str, str], PreparedData] = field(default_factory=dict, repr=False)

    @classmethod
    def open(cls, checkpoint: Checkpoint, data: Data, config: LayersConfig) -> Session:
        """Load the model and look, with one example of the data, which layers it uses and how."""
        model: Any = load_model(checkpoint, data.task.kind, config)
        model.to(config.torch_device())
        ParameterSpace.of(model).check_finite(
            ParameterSpace.of(model).flatten(model), checkpoint.spec
        )
        tokenizer = load_tokenizer(checkpoint)
        layers, coverage = find_layers(model, include=config.include, exclude=config.exclude)
        session = cls(checkpoint, config, model, tokenizer, layers, coverage, ())
        sample = data.task.examples(data.split, rows=2)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that a text is cut is said when all are prepared
            session._look(session.prepare(data, sample))
        return session

    def _look(self, sample: PreparedData) -> None:
        """Keep the layers that a forward pass calls, with rows that belong to examples."""
        with Capture(self.model, self.layers, sample.objective, lenient=True) as capture:
            capture.forward(sample.batches[0])
            called, shared = capture.called(), capture.unassigned
        # DeBERTa projects its table of relative positions once for the whole batch.
        for numbers, status in (
            ({i for i, used in enumerate(called) if not used} - shared, "not called by the model"),
            (shared, "its rows belong to no example"),
        ):
            names = {self.layers[i].name for i in numbers}
            self.coverage.loc[self.coverage.name.isin(names), "status"] = status
        kept = [i for i, used in enumerate(called) if used and i not in shared]
        if not kept:
            count = len(self.layers)
            why = f"the model calls none of its {count} layers"
            if shared:  # what makes the keys and values of a prefix, say
                why = f"of its {count} layers none has rows that belong to examples"
            raise CurvatureError(
                f"{self.checkpoint.spec}: {why}",
                remedy="widen include; a curvature sees linear modules that are called for the "
                "tokens of an example",
            )
        with Capture(self.model, [self.layers[i] for i in kept], sample.objective) as capture:
            capture.forward(sample.batches[0])
            assert capture.groups is not None
            self.groups = capture.groups
        self.layers = tuple(self.layers[i] for i in kept)

    def prepare(self, data: Data, examples: Examples) -> PreparedData:
        """Examples as batches of like length on the device; the last few sets are remembered."""
        key = (data.name, examples.fingerprint)
        if key not in self._prepared:
            if len(self._prepared) >= REMEMBERED:
                self._prepared.pop(next(iter(self._prepared)))
            self._prepared[key] = prepare(
                data, self.checkpoint, self.model, self.tokenizer, self.config, examples=examples
            )
        return self._prepared[key]

    def check_padding(self, data: PreparedData) -> None:
        """Raise where the model's outputs depend on padding (see `evaluation.points`)."""
        check_padding(self.model, data, self.checkpoint.spec)

    @contextmanager
    def capture(self, objective: Objective) -> Iterator[Capture]:
        """Hooks on the layers for as long as the block lasts."""
        with Capture(self.model, self.layers, objective) as capture:
            capture.groups = None
            yield capture

    def logits(self, capture: Capture, batch: Batch, ids: Sequence[str], name: str) -> Tensor:
        """The logits of a batch; `NonFiniteError` names the first example whose are not finite."""
        return finite_logits(capture, batch, ids, name, self.checkpoint.spec)

    @property
    def dtype(self) -> torch.dtype:
        """What gradients are computed in."""
        found: torch.dtype = getattr(torch, self.config.dtype)
        return found

    @property
    def wide(self) -> torch.dtype:
        """What sums are kept in: float32 at least."""
        return torch.float64 if self.dtype == torch.float64 else torch.float32

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        found: torch.device = next(iter(self.model.parameters())).device
        return found

    @property
    def token_bytes(self) -> int:
        """Bytes of one token's inputs and gradients in all layers."""
        entries = sum(self.layers[i].columns for i in set(self.groups))
        entries += sum(layer.outputs for layer in self.layers)
        return entries * self.dtype.itemsize

    def budget(self, memory: float | None) -> float:
        """Bytes that gradients may take: `memory` GiB, or a quarter of what the machine has.

        Not of what is free at the moment: a run that goes on must cut its blocks as before, or it
        would not find them. Several processes ask together and get the same answer.
        """
        if memory is not None:
            return memory * 2**30
        ranks = current_ranks()
        return 0.25 * min(ranks.gather(memory_of(self.device))) / ranks.world

    def seen(self) -> frozenset[str]:
        """Names of the layers looked at."""
        return frozenset(self.coverage.name[self.coverage.status == SEEN])


def finite_logits(
    capture: Capture, batch: Batch, ids: Sequence[str], name: str, spec: str
) -> Tensor:
    """The logits of a batch; `NonFiniteError` names the first example whose are not finite."""
    logits = capture.forward(batch)
    finite = torch.isfinite(logits.flatten(1) if logits.dim() > 1 else logits.unsqueeze(1))
    bad = (~finite.all(-1)).nonzero()
    if len(bad):
        row = int(batch.rows[int(bad[0])])
        raise NonFiniteError(
            f"{spec}: the outputs for example {ids[row]} of {name} are not finite",
            remedy="use another checkpoint, or dtype float32",
        )
    return logits


def memory_of(device: torch.device) -> float:
    """Bytes of memory of a device, or of this process's container; 8 GiB where nothing tells."""
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[1])
    sizes = []
    try:
        lines = dict(x.split(":", 1) for x in Path("/proc/meminfo").read_text().splitlines())
        sizes.append(1024.0 * int(lines["MemTotal"].split()[0]))
    except (OSError, KeyError, ValueError):
        sizes.append(8.0 * 2**30)
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        try:
            sizes.append(float(Path("/sys/fs/cgroup", name).read_text()))
        except (OSError, ValueError):  # no such limit, or "max"
            continue
    return min(sizes)
