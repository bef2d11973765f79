"""Optimizing something by the loss of a model that is moved: the loop of curves and mixtures.

One step: draw batches, move the model, take the gradient of the loss with respect to its weights,
turn it into that of what is fitted, step. Everything random in a step comes from (seed, step), so
that a fit that was stopped goes on to the same result: its state is kept every `save_every` steps.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal, Protocol, Self

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from pydantic import Field as Option
from pydantic import model_validator
from torch import Tensor

from landform.config import Config
from landform.errors import NonFiniteError
from landform.evaluation.points import PointsConfig
from landform.store.artifacts import Contents

__all__ = [
    "WHERE_ONLY",
    "Loop",
    "LoopConfig",
    "LossField",
    "SelectConfig",
    "make_optimizer",
    "seed_of",
]

OptimizerName = Literal["adam", "adamw", "sgd", "adafactor"]


class LoopConfig(PointsConfig):
    """How something is fitted by the loss."""

    steps: int = Option(200, ge=1)
    """Optimizer steps (of a complex: for each connector)."""
    batch_size: int = Option(32, ge=1)
    """Rows of one batch."""
    accumulation: int = Option(1, ge=1)
    """Batches of one optimizer step."""
    learning_rate: float = Option(1e-4, gt=0, allow_inf_nan=False)
    """Highest learning rate, reached after the warm-up."""
    optimizer: OptimizerName = "adam"
    """adam, adamw (decoupled weight decay), sgd with momentum, or adafactor with this learning rate
    (no scaling by the size of the weights)."""
    momentum: float = Option(0.9, ge=0, lt=1)
    """Momentum of sgd."""
    weight_decay: float = Option(0.0, ge=0, allow_inf_nan=False)
    """Weight decay of what is fitted."""
    schedule: Literal["constant", "cosine", "linear"] = "cosine"
    """What the learning rate does after the warm-up: stay, or fall to 0 as a cosine or a line."""
    warmup_ratio: float = Option(0.1, ge=0, lt=1)
    """Share of the steps in which the learning rate rises."""
    dropout: bool = False
    """Run the model with its dropout, as in training."""
    save_every: int = Option(50, ge=1)
    """Keep the state every so many steps, to go on from after a kill (needs a store)."""

    @model_validator(mode="after")
    def _momentum_of_sgd(self) -> Self:
        self.check_read(self.optimizer == "sgd", ["momentum"], "without optimizer sgd")
        return self

    def rate(self, step: int) -> float:
        """The learning rate of a step, 0 <= step < steps."""
        warm = math.ceil(self.warmup_ratio * self.steps)
        if step < warm:
            return self.learning_rate * (step + 1) / warm
        done = (step - warm) / max(self.steps - warm, 1)
        factor = {
            "constant": 1.0,
            "linear": 1.0 - done,
            "cosine": 0.5 * (1.0 + math.cos(math.pi * done)),
        }[self.schedule]
        return self.learning_rate * factor


WHERE_ONLY = frozenset({"replicates", "level", "memory", "device", "allow_pickle", "save_every"})
"""Options that say where and how, and decide no number of a fit."""


class SelectConfig(Config):
    """How the state to keep is chosen."""

    select_split: str = "validation"
    """The split for that. What is chosen on it looks better on it than elsewhere."""
    select_by: Literal["loss", "metric"] = "loss"
    """What it is chosen by: the loss, or the first metric of the task."""


class LossField(Protocol):
    """A loss with its gradient: `Field` for models, a formula for tests."""

    @property
    def flat(self) -> Tensor:
        """Where it stands, (numel,); written to move."""

    @property
    def size(self) -> int:
        """Number of examples."""

    def batches(self, rows: npt.NDArray[np.intp]) -> Any:
        """These examples, in the form that `gradient` takes."""

    def gradient(self, batches: Any) -> tuple[float, Tensor]:
        """Loss and gradient (numel,) of these examples here."""


class Loop:
    """Fits `free` step by step, in one or more stages of `config.steps` steps each.

    What is fitted says how: where a stage starts, what its parameters are, and what a batch adds
    to their gradient.
    """

    free: Tensor
    """what is fitted, of any shape"""

    def __init__(self, landscape: LossField, config: LoopConfig) -> None:
        self.landscape, self.config = landscape, config
        self.step = 0
        self.history: list[dict[str, float]] = []
        self.gradient: Tensor | None = None
        """of the part of `free` that the stage fits"""
        self.optimizer: torch.optim.Optimizer | None = None
        self.begun: int | None = None
        """the stage that the optimizer is of"""

    @property
    def stages(self) -> int:
        """How often the fit begins anew with an optimizer and a schedule of its own."""
        return 1

    @property
    def total(self) -> int:
        """Steps of the whole fit."""
        return self.config.steps * self.stages

    # --- what a subclass says ---------------------------------------------------------------

    def place(self, stage: int) -> None:
        """Put what a stage fits where it starts."""
        raise NotImplementedError

    def fitted(self, stage: int) -> Tensor:
        """The part of `free` that a stage fits: a view."""
        return self.free

    def divided(self, values: Tensor) -> list[Tensor]:
        """A tensor shaped as `fitted`, as views that the optimizer takes for parameters."""
        return [values]

    def collect(self, number: int, stage: int, gradient: Tensor) -> float:
        """Add batch `number`'s share to the gradient; its share of the step's loss."""
        raise NotImplementedError

    def regularise(self, stage: int, gradient: Tensor) -> dict[str, float]:
        """Add what is no loss; further columns of the history."""
        return {}

    def visit(self) -> Iterator[None]:
        """Move to each of the points whose mean loss chooses the best state."""
        yield from ()

    def result(self) -> tuple[dict[str, npt.NDArray[Any]], dict[str, Any]]:
        """(tensors, records) that are kept of a finished fit besides its state."""
        return {}, {}

    # --- steps ------------------------------------------------------------------------------

    def begin(self, stage: int) -> None:
        """Place what a stage fits, and make its optimizer."""
        if self.step % self.config.steps == 0:
            self.place(stage)
        fitted = self.fitted(stage)
        self.gradient = torch.zeros_like(fitted)
        parameters = []
        slopes = self.divided(self.gradient)
        for values, slope in zip(self.divided(fitted), slopes, strict=True):
            parameter = torch.nn.Parameter(values)
            parameter.grad = slope
            parameters.append(parameter)
        self.optimizer = make_optimizer(parameters, self.config)
        self.begun = stage

    def advance(self) -> dict[str, float]:
        """One optimizer step; its row of the history."""
        stage, inner = divmod(self.step, self.config.steps)
        if self.begun != stage:
            self.begin(stage)
        assert self.gradient is not None and self.optimizer is not None
        self.gradient.zero_()
        count, loss = self.config.accumulation, 0.0
        try:
            with _dropout(self.config, self.step):
                for part in range(count):
                    loss += self.collect(self.step * count + part, stage, self.gradient)
        except NonFiniteError as error:
            raise self._diverged(f"step {self.step + 1} of the fit: {error.what}") from None
        further = self.regularise(stage, self.gradient)
        rate = self.config.rate(inner)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        try:
            self.optimizer.step()
        except RuntimeError as error:
            if "overflow" not in str(error):
                raise
            raise self._diverged(f"step {self.step + 1} of the fit: {error}") from None
        self.step += 1
        row = {"step": self.step, "loss": loss, **further, "learning_rate": rate}
        self.history.append(row)
        return row

    def rows(self, number: int) -> npt.NDArray[np.intp]:
        """The rows of batch `number`: shuffled passes over the data, one after the other."""
        count = self.landscape.size
        size = min(self.config.batch_size, count)
        wanted = np.arange(number * size, (number + 1) * size)
        rows = np.empty(size, dtype=np.intp)
        for epoch in range(int(wanted[0]) // count, int(wanted[-1]) // count + 1):
            random = np.random.default_rng(seed_of(self.config.seed, "rows", epoch))
            here = wanted // count == epoch
            rows[here] = random.permutation(count)[wanted[here] % count]
        return rows

    def check_finite(self) -> None:
        """Raise `NonFiniteError` where something fitted is not finite."""
        if not torch.isfinite(self.free).all():
            raise self._diverged(f"after step {self.step} something fitted is NaN or infinite")

    def _diverged(self, what: str) -> NonFiniteError:
        remedy = f"lower learning_rate (it is {self.config.learning_rate:g})"
        return NonFiniteError(what, remedy=remedy)

    # --- state ------------------------------------------------------------------------------

    def record(self) -> dict[str, Any]:
        """What a subclass must know to go on."""
        return {}

    def recall(self, record: Mapping[str, Any]) -> None:
        """Take over a `record`."""

    def state(self, *, final: bool = False) -> Contents:
        """Everything that the next step depends on; without the optimizer when `final`."""
        tensors = {"free": self.free.cpu().numpy()}
        if self.optimizer is not None and not final:
            kept = self.optimizer.state_dict()["state"]
            for number, values in kept.items():
                for name, value in values.items():
                    if value is not None:
                        tensors[f"optimizer.{number}.{name}"] = torch.as_tensor(value).cpu().numpy()
        record = {"step": self.step, **self.record()}
        return Contents(tensors, {"history": pd.DataFrame(self.history)}, {"state": record})

    def restore(self, contents: Contents) -> None:
        """Go on from a `state`."""
        record = contents.records["state"]
        self.step = int(record["step"])
        self.recall(record)
        self.free.copy_(torch.from_numpy(np.array(contents.tensors["free"])))
        rows = contents.tables["history"].to_dict("records")
        self.history = [{str(name): float(v) for name, v in row.items()} for row in rows]
        if self.step % self.config.steps == 0:
            return  # the next stage has an optimizer of its own
        self.begin(self.step // self.config.steps)
        assert self.optimizer is not None
        kept: dict[int, dict[str, Tensor]] = {}
        for key, value in contents.tensors.items():
            kind, _, rest = key.partition(".")
            if kind == "optimizer":
                number, _, name = rest.partition(".")
                kept.setdefault(int(number), {})[name] = torch.from_numpy(np.array(value))
        full = self.optimizer.state_dict()
        self.optimizer.load_state_dict({**full, "state": kept})


def make_optimizer(
    parameters: Sequence[torch.nn.Parameter], config: LoopConfig
) -> torch.optim.Optimizer:
    """The optimizer that a config names, at its highest learning rate.

    Adafactor (Shazeer & Stern 2018) as transformers has it, with this learning rate: no relative
    steps, no scaling by the size of the parameters. It factors the second moments of matrices.
    """
    kind: Any
    own: dict[str, Any]
    if config.optimizer == "adafactor":
        from transformers.optimization import Adafactor

        kind, own = Adafactor, {"scale_parameter": False, "relative_step": False}
    else:
        kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}[
            config.optimizer
        ]
        # One pass over memory in place of ten: on a CPU a step of Adam over 23 million entries
        # takes 0.03 seconds in place of 0.3, a third of the passes through a small model.
        own = {"fused": all(p.device.type in ("cpu", "cuda") for p in parameters)}
        if config.optimizer == "sgd":
            own["momentum"] = config.momentum
    made: torch.optim.Optimizer = kind(
        list(parameters), lr=config.learning_rate, weight_decay=config.weight_decay, **own
    )
    return made


def seed_of(*parts: int | str) -> int:
    """A seed from a seed, a word and a number."""
    numbers = [int.from_bytes(p.encode(), "little") if isinstance(p, str) else p for p in parts]
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)


@contextmanager
def _dropout(config: LoopConfig, step: int) -> Iterator[None]:
    """torch's generators seeded by the step inside, and as they were outside."""
    if not config.dropout:
        yield
        return
    with torch.random.fork_rng():
        torch.manual_seed(seed_of(config.seed, "dropout", step))
        yield
