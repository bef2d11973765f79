"""kronfluence 1.0.1 on the batches that landform makes: the peer whose numbers must be met.

Imports kronfluence on use only: tests begin with `pytest.importorskip("kronfluence")`.
"""

from __future__ import annotations

import copy
import gc
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from landform.tasks.batching import IGNORED, Batch
from landform.tasks.objective import Objective

__all__ = ["Peer", "linear_copy"]


@contextmanager
def _little_garbage() -> Iterator[None]:
    """kronfluence collects garbage at every step, which takes longer than these tiny models.

    Objects that are there already are left out of it for a while.
    """
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


Tensors = dict[str, Tensor]


def linear_copy(model: nn.Module) -> nn.Module:
    """A copy whose Conv1D modules (unknown to kronfluence) are the nn.Linear of the same map."""
    model = copy.deepcopy(model)
    for parent in list(model.modules()):
        for name, module in list(parent.named_children()):
            if isinstance(module, Conv1D):
                linear = nn.Linear(*module.weight.shape, dtype=module.weight.dtype)
                linear.weight = nn.Parameter(module.weight.data.t().contiguous())
                linear.bias = module.bias
                setattr(parent, name, linear)
    return model


def _as_dict(batch: Batch, width: int | None = None) -> dict[str, Tensor]:
    found = {**{f"inputs.{n}": v for n, v in batch.inputs.items()}, "labels": batch.labels}
    if width is None:
        return found
    missing = width - batch.inputs["input_ids"].shape[1]
    fills = {name: IGNORED if name == "labels" else 0 for name in found}
    return {
        name: nn.functional.pad(value, (0, missing), value=fills[name])
        if value.dim() > 1
        else value
        for name, value in found.items()
    }


def _as_batch(values: dict[str, Tensor]) -> Batch:
    inputs = {n.removeprefix("inputs."): v for n, v in values.items() if n != "labels"}
    return Batch(inputs, values["labels"], torch.arange(len(values["labels"])))


def _order(batches: Sequence[Batch]) -> Tensor:
    """Where each row of the data is among the rows of the batches."""
    return torch.cat([batch.rows for batch in batches]).argsort()


class Peer:
    """Factors of one strategy, and scores made with them, by kronfluence in float64.

    Empirical labels. `mask`: which positions kronfluence is told of: "attention" for those that are
    no padding, "labels" for those with a label. Its data loader yields our batches one by one.
    """

    @_little_garbage()
    def __init__(
        self,
        model: nn.Module,
        objective: Objective,
        train: Sequence[Batch],
        folder: Path,
        *,
        strategy: str = "ekfac",
        layers: Sequence[str] | None = None,
        mask: str = "attention",
        shared: bool = False,
    ) -> None:
        from kronfluence.analyzer import Analyzer, prepare_model
        from kronfluence.utils.common.factor_arguments import pytest_factor_arguments
        from kronfluence.utils.dataset import DataLoaderKwargs

        self.train = list(train)
        self.task = _task(objective, layers, mask)
        self.analyzer = Analyzer(
            "peer",
            model=prepare_model(linear_copy(model), self.task),
            task=self.task,
            cpu=True,
            log_level=logging.ERROR,
            disable_tqdm=True,
            output_dir=str(folder),
        )
        self.analyzer.set_dataloader_kwargs(DataLoaderKwargs(collate_fn=lambda items: items[0]))
        arguments = pytest_factor_arguments(strategy)
        arguments.has_shared_parameters = shared
        self.analyzer.fit_all_factors(
            factors_name="factors",
            dataset=[_as_dict(batch) for batch in self.train],
            per_device_batch_size=1,
            factor_args=arguments,
        )
        self._runs = 0

    def factors(self) -> dict[str, Tensors]:
        """Everything kronfluence keeps: covariances as sums, counts, eigenvectors, Lambda sums."""
        return {
            **(self.analyzer.load_covariance_matrices("factors") or {}),
            **(self.analyzer.load_eigendecomposition("factors") or {}),
            **(self.analyzer.load_lambda_matrices("factors") or {}),
        }

    def _name(self) -> str:
        self._runs += 1
        return f"scores{self._runs}"

    @_little_garbage()
    def scores(
        self,
        queries: Sequence[Batch],
        *,
        measurement: str = "loss",
        damping: float | None = 1e-8,
        width: int | None = None,
        **changes: Any,
    ) -> Tensors:
        """ "all_modules", or each module, -> (Q, N) or (Q, N, T) scores in the order of the data.

        `width` pads every batch to so many tokens; `changes` are fields of kronfluence's arguments.
        """
        from kronfluence.utils.common.score_arguments import pytest_score_arguments

        self.task.measurement = measurement
        arguments = pytest_score_arguments(damping_factor=damping)
        for field, value in changes.items():
            assert hasattr(arguments, field)
            setattr(arguments, field, value)
        name = self._name()
        self.analyzer.compute_pairwise_scores(
            scores_name=name,
            factors_name="factors",
            query_dataset=[_as_dict(batch, width) for batch in queries],
            train_dataset=[_as_dict(batch, width) for batch in self.train],
            per_device_query_batch_size=1,
            per_device_train_batch_size=1,
            score_args=arguments,
        )
        found = self.analyzer.load_pairwise_scores(name)
        if not arguments.aggregate_query_gradients:
            found = {key: value[_order(queries)] for key, value in found.items()}
        if not arguments.aggregate_train_gradients:
            found = {key: value[:, _order(self.train)] for key, value in found.items()}
        return found

    @_little_garbage()
    def self_scores(self, *, measurement: str = "loss", damping: float | None = 1e-8) -> Tensor:
        """(N,) self-influence of the training rows."""
        from kronfluence.utils.common.score_arguments import pytest_score_arguments

        self.task.measurement = measurement
        name = self._name()
        arguments = pytest_score_arguments(damping_factor=damping)
        arguments.use_measurement_for_self_influence = measurement != "loss"
        self.analyzer.compute_self_scores(
            scores_name=name,
            factors_name="factors",
            train_dataset=[_as_dict(batch) for batch in self.train],
            per_device_train_batch_size=1,
            score_args=arguments,
        )
        found: Tensor = self.analyzer.load_self_scores(name)["all_modules"]
        return found[_order(self.train)]


def _task(objective: Objective, layers: Sequence[str] | None, mask: str) -> Any:
    from kronfluence.task import Task

    class OurTask(Task):  # type: ignore[misc]
        measurement = "loss"

        def compute_train_loss(
            self, batch: dict[str, Tensor], model: nn.Module, sample: bool = False
        ) -> Tensor:
            assert not sample, "both sides take the labels of the data"
            ours = _as_batch(batch)
            logits, targets = objective.logits(model, ours), objective.targets(ours)
            if objective.kind == "regression":
                return (logits - targets).square().sum()
            return F.cross_entropy(
                logits.reshape(-1, logits.shape[-1]), targets.reshape(-1),
                ignore_index=IGNORED, reduction="sum",
            )  # fmt: skip

        def compute_measurement(self, batch: dict[str, Tensor], model: nn.Module) -> Tensor:
            if self.measurement == "loss":
                return self.compute_train_loss(batch, model)
            ours = _as_batch(batch)
            logits, targets = objective.logits(model, ours), objective.targets(ours)
            valid = targets != IGNORED
            logits, targets = logits[valid], targets[valid]
            rows = torch.arange(len(targets))
            others = logits.clone()
            others[rows, targets] = -torch.inf
            return -(logits[rows, targets] - others.logsumexp(-1)).sum()

        def get_influence_tracked_modules(self) -> list[str] | None:
            return None if layers is None else list(layers)

        def get_attention_mask(self, batch: dict[str, Tensor]) -> Tensor:
            if mask == "attention":
                return batch["inputs.attention_mask"]
            return (batch["labels"] != IGNORED).long()

    return OurTask()
