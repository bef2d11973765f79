"""Evaluating points of parameter space: one model, moved in place, over prepared data.

This is the one mechanism behind `evaluate`, `interpolate`, `connect`, `surface` and curves: a *mix
job* names its members (checkpoints, trained vertices, random directions: all by fingerprint), a
list of mixing weights, and data sets. A worker holds one model
bound to a flat buffer, the checkpoints it has met as flat vectors (a bounded cache), and the data
as padded batches; for each mix it writes the buffer and runs the forward passes of all data sets.
"""

from __future__ import annotations

import math
import time
import warnings
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from landform.errors import CheckpointError, ConfigError, LabelError, SpaceMismatchError
from landform.evaluation.data import (
    Data,
    DataConfig,
    PointsConfig,
    find_split,
    rows_identity,
    task_identity,
)
from landform.evaluation.evaluator import Evaluator, RawOutputs, check_metrics
from landform.evaluation.generation import generates, token_settings
from landform.evaluation.prepared import (
    PreparedData,
    check_padding,
    prepare,
    target_length,
    warn_if_cut,
)
from landform.store.artifacts import ArtifactStore, Contents
from landform.store.fingerprint import fingerprint
from landform.store.plan import Forecast, Job, Plan
from landform.tasks.metrics import Predictions
from landform.tasks.task import Examples, Task
from landform.weights.checkpoint import (
    Checkpoint,
    check_loadable,
    check_same_architecture,
    load_model,
    load_tokenizer,
)
from landform.weights.distance import euclidean
from landform.weights.points import Member
from landform.weights.space import BoundModel, ParameterSpace, check_same_buffers

# With what points are evaluated on: their homes are `data`, `prepared` and `evaluator`.
__all__ = [
    "Data",
    "DataConfig",
    "Evaluator",
    "PointsConfig",
    "PointsWork",
    "PointsWorker",
    "PreparedData",
    "RawOutputs",
    "check_metrics",
    "check_padding",
    "check_same_vocabulary",
    "data_fingerprint",
    "find_split",
    "prepare",
    "rows_identity",
    "target_length",
    "unpack",
    "warn_if_cut",
]


def _peak_memory() -> int:
    """Bytes this process has held at most: the libraries, the model and one evaluation."""
    import resource
    import sys

    status = Path("/proc/self/status")
    if status.exists():  # the other count starts from what the parent process held
        line = next(x for x in status.read_text().splitlines() if x.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


@dataclass(frozen=True)
class PointsWork:
    """What a worker needs to be opened, in this process or another: the picklable factory."""

    checkpoints: tuple[Checkpoint, ...]
    data: tuple[Data, ...]
    config: PointsConfig
    made: tuple[Member, ...] = ()
    """further members of mixes: trained vertices, random directions"""

    def __post_init__(self) -> None:
        for data in self.data:
            check_metrics(data.task, data.task.metrics)

    def __call__(self) -> PointsWorker:
        """Open a worker: load the first checkpoint as the model that moves, prepare the data."""
        return PointsWorker(self)

    def forecast(self, plan: Plan, store: ArtifactStore, *, workers: int = 1) -> Forecast:
        """Evaluations of a plan that remain, their time (from one real evaluation, after a
        warm-up), and the memory of the checkpoints held."""
        held = min(len(self.members) * self.point_bytes, int(self.config.memory * 2**30))
        return plan.forecast(
            store,
            seconds_per_unit=self._sample_seconds() if plan.missing(store) else 0.0,
            memory=held + _peak_memory(),
            workers=workers,
        )

    @property
    def members(self) -> tuple[Checkpoint | Member, ...]:
        """What a mix may be made of, in the order of its numbers: checkpoints, then `made`."""
        return (*self.checkpoints, *self.made)

    @cached_property
    def point_bytes(self) -> int:
        """Bytes of one checkpoint as a point in memory, whatever the format on disk."""
        first = self.checkpoints[0]
        entries = sum(math.prod(shape) for shape in first.shapes.values())
        if not entries:  # pickled weights tell their shapes only when they are read
            return sum(file.stat().st_size for file in first.weight_files)
        return entries * int(getattr(torch, self.config.dtype).itemsize)

    def _sample_seconds(self) -> float:
        evaluator = self().evaluator
        evaluator.run()
        start = time.perf_counter()
        evaluator.run()
        return time.perf_counter() - start

    @cached_property
    def _shared_spec(self) -> dict[str, Any]:
        # Everything but the weights that the numbers depend on.
        config = self.config
        return {
            "data": [
                {
                    "name": data.name,
                    "examples": data.examples(config.rows).fingerprint,
                    **_task_identity(data.task),
                }
                for data in self.data
            ],
            # The weights of a mix run in the model of the first checkpoint, whose config says how.
            "function": fingerprint(self.checkpoints[0].function),
            "tokenizer": self.checkpoints[0].tokenizer_fingerprint,
            "max_length": config.max_length,
            "token_budget": config.token_budget,
            "dtype": config.dtype,
            # Kernels of another device round otherwise: ends and interior must not be mixed.
            "device": config.torch_device().type,
            "model_labels": config.model_labels,
            "mask_seed": config.seed if any(d.task.is_drawn for d in self.data) else None,
            **self._generation_spec,
        }

    @property
    def _generation_spec(self) -> dict[str, Any]:
        # The tokens may be those of generation_config.json, which no fingerprint holds.
        answered = [generates(data.task) for data in self.data]
        if not any(answered):
            return {}
        tokens = token_settings(self.checkpoints[0])
        limit = self.config.max_new_tokens
        return {"generation": {"max_new_tokens": limit, "data": answered, **tokens}}

    def mix_job(
        self, members: Sequence[int], weights: Sequence[Sequence[float]], label: str
    ) -> Job:
        """The job of evaluating `sum_m weights[p][m] self.members[members[m]]` for every p."""
        spec = {
            **self._shared_spec,
            "members": [self.members[m].fingerprint for m in members],
            "weights": [list(row) for row in weights],
        }
        return Job("mix", spec, cost=float(len(weights)), label=label)

    def point_job(self, member: int) -> Job:
        """The job of evaluating one member as it is."""
        return self.mix_job([member], [[1.0]], self.members[member].spec)

    def line_job(self, a: int, b: int, ts: Sequence[float]) -> Job:
        """The job of evaluating (1 - t) a + t b for every t."""
        label = f"{self.members[a].spec} -> {self.members[b].spec}"
        return self.mix_job([a, b], [[1.0 - t, t] for t in ts], label)


class PointsWorker:
    """Runs mix jobs (see the module's docstring)."""

    def __init__(self, work: PointsWork) -> None:
        self.config = work.config
        self.checkpoints = {c.fingerprint: c for c in work.checkpoints}
        self.made = {member.fingerprint: member for member in work.made}
        first = work.checkpoints[0]
        device = self.config.torch_device()
        kind = work.data[0].task.kind
        if {_head(d.task.kind) for d in work.data} != {_head(kind)}:
            kinds = ", ".join(f"{d.name} ({d.task.kind})" for d in work.data)
            raise ConfigError(
                f"data sets that need different heads cannot share one model: {kinds}",
                remedy="evaluate them in separate commands",
            )
        model: Any = load_model(first, kind, self.config)
        model.to(device)
        tokenizer = load_tokenizer(first)
        self.kind, self.first = kind, first
        self.vocabulary = tokenizer.get_vocab()
        self.space = ParameterSpace.of(model)
        self.bound: BoundModel = self.space.bind(model)
        self._data, self._tokenizer = work.data, tokenizer
        self.capacity = max(2, int(self.config.memory * 2**30 // self.space.nbytes))
        self.space.check_finite(self.bound.flat, first.spec)
        # The model that moves was loaded from the first checkpoint: no need to read it again.
        self._points = OrderedDict({first.fingerprint: self.bound.flat.clone()})
        self.loads = 1
        self.seconds = {"load": 0.0, "move": 0.0, "evaluate": 0.0}
        for other in work.checkpoints[1:]:
            self._check_other(other)

    @cached_property
    def evaluator(self) -> Evaluator:
        """The data, prepared when they are first asked for: writing an average needs none."""
        first, model = self.first, self.bound.model
        found = [prepare(d, first, model, self._tokenizer, self.config) for d in self._data]
        for prepared in found:
            check_padding(model, prepared, first.spec)
        return Evaluator(model, found)

    def _check_other(self, other: Checkpoint) -> None:
        """Raise before the first evaluation for a checkpoint that cannot be mixed with the first.

        Reads no weights: configs, tokenizers and the shapes in the headers of the files tell.
        """
        check_loadable(other, self.config)
        check_same_architecture(self.first, other)
        _check_compatible(self.first, other, self.vocabulary)
        if other.shapes != self.first.shapes:
            self.point(other.fingerprint)  # loading decides: files may differ in what is tied

    def run(self, job: Job) -> Contents:
        """Evaluate every mix of a job."""
        keys = list(job.spec["members"])
        outputs: list[tuple[RawOutputs, ...]] = []
        points = self.points(keys)
        for weights in job.spec["weights"]:
            start = time.perf_counter()
            self._move(points, weights)
            moved = time.perf_counter()
            outputs.append(self.evaluator.run(_where(job, weights)))
            self.seconds["move"] += moved - start
            self.seconds["evaluate"] += time.perf_counter() - moved
        records: dict[str, Any] = {"evaluations": len(outputs)}
        if len(points) == 2:
            records["distance"] = euclidean(points[0], points[1])
        records["truncated"] = [data.truncated for data in self.evaluator.data]
        texts = self._texts(outputs)
        return Contents(tensors=_pack(outputs), records={"points": records, **texts})

    def _texts(self, outputs: Sequence[tuple[RawOutputs, ...]]) -> dict[str, Any]:
        """The generated answers of every data set and point; a warning where some were cut."""
        texts, cut = {}, {}
        for d, data in enumerate(self.evaluator.data):
            if data.generation is None:
                continue
            texts[str(d)] = [list(output[d].texts or ()) for output in outputs]
            cut[str(d)] = [output[d].cut for output in outputs]
            most = max(cut[str(d)], default=0)
            if most:
                warnings.warn(
                    f"{data.name}: {'up to ' * (len(outputs) > 1)}{most} of {data.size} generated "
                    f"answers were cut at {data.generation.limit} tokens (max_new_tokens)",
                    stacklevel=2,
                )
        return {"texts": texts, "generations_cut": cut} if texts else {}

    def move(self, keys: Sequence[str], weights: Sequence[float]) -> None:
        """Put the model at the mixture of the members with these fingerprints."""
        self._move(self.points(keys), weights)

    def _move(self, points: list[Tensor], weights: Sequence[float]) -> None:
        if len(points) == 1 and weights[0] == 1.0:
            self.bound.move_to(points[0])
        elif len(points) == 2 and abs(weights[0] + weights[1] - 1) < 1e-12:
            self.bound.lerp(points[0], points[1], weights[1])
        else:
            self.bound.combine(points, weights)

    def points(self, keys: Sequence[str]) -> list[Tensor]:
        """Members that are needed at once, as flat vectors, whatever memory the cache has."""
        # Evicting one of them would only mean to read it again for the next mix.
        self.capacity = max(self.capacity, len(keys))
        return [self.point(key) for key in keys]

    def point(self, key: str) -> Tensor:
        """The member with this fingerprint as a flat vector, from the cache or made anew."""
        if key not in self._points:
            start = time.perf_counter()
            made = self.made.get(key)
            flat = self._read(key) if made is None else made.flat(self.space, self.point)
            while len(self._points) >= self.capacity:
                self._points.popitem(last=False)
            self._points[key] = flat.to(self.bound.flat.device)
            self.seconds["load"] += time.perf_counter() - start
        self._points.move_to_end(key)
        return self._points[key]

    def _read(self, key: str) -> Tensor:
        """A checkpoint from disk, where it fits the model that moves."""
        checkpoint = self.checkpoints[key]
        model = load_model(checkpoint, self.kind, self.config)
        self.space.check_same(ParameterSpace.of(model), self.first.spec, checkpoint.spec)
        check_same_buffers(self.bound.model, model, self.first.spec, checkpoint.spec)
        flat = self.space.flatten(model)
        self.space.check_finite(flat, checkpoint.spec)
        self.loads += 1
        return flat


def _task_identity(task: Task) -> dict[str, Any]:
    """`task_identity` as mixes have it, which say `labels` for the codes."""
    parts = task_identity(task)
    return {"labels": parts.pop("codes"), **parts}


def _head(kind: str) -> str:
    return "classification" if kind == "regression" else kind


def _check_compatible(first: Checkpoint, other: Checkpoint, vocabulary: dict[str, int]) -> None:
    """Refuse to mix models that number their labels or their tokens differently."""
    counts = len(first.label_names()), len(other.label_names())
    if counts[0] != counts[1]:
        raise SpaceMismatchError(
            f"the head of {first.spec} has {counts[0]} labels, that of {other.spec} {counts[1]}",
            remedy="compare checkpoints with one kind of head",
        )
    if first.label_names() != other.label_names():
        raise LabelError(
            f"{first.spec} orders its labels {first.label_names()}, {other.spec} "
            f"{other.label_names()}: their heads cannot be mixed",
            remedy="permute the rows of one head, or compare models of one label order",
        )
    check_same_vocabulary(first, other, vocabulary)


def check_same_vocabulary(
    first: Checkpoint, other: Checkpoint, vocabulary: dict[str, int] | None = None
) -> None:
    """`CheckpointError` for two checkpoints that number their tokens differently.

    `vocabulary` is that of the first where it has been read.
    """
    if first.tokenizer_fingerprint == other.tokenizer_fingerprint:
        return
    if vocabulary is None:
        vocabulary = load_tokenizer(first).get_vocab()
    if load_tokenizer(other).get_vocab() != vocabulary:
        raise CheckpointError(
            f"{first.spec} and {other.spec} have different vocabularies: the same text would be "
            "different tokens",
            remedy="compare models fine-tuned from one pre-trained model",
        )


def _where(job: Job, weights: Sequence[float]) -> str:
    if len(weights) == 1:
        return job.label
    return f"{job.label} at weights {', '.join(f'{w:.3g}' for w in weights)}"


def _pack(outputs: Sequence[tuple[RawOutputs, ...]]) -> dict[str, np.ndarray]:
    """Stack the outputs of P points: `<d>.losses` (P, N), `<d>.logits` (P, N, C), ..."""
    tensors: dict[str, np.ndarray] = {}
    if not outputs:  # a line of two points has no interior
        return tensors
    for d in range(len(outputs[0])):
        points = [output[d] for output in outputs]
        tensors[f"{d}.losses"] = np.stack([p.losses for p in points])
        tensors[f"{d}.tokens"] = points[0].tokens
        for field in ("logits", "correct"):
            if getattr(points[0], field) is not None:
                tensors[f"{d}.{field}"] = np.stack([getattr(p, field) for p in points])
    return tensors


def unpack(contents: Contents, data: int, examples: Examples, kind: str) -> list[Predictions]:
    """The predictions of every point of a mix job on data set number `data`."""
    tensors = contents.tensors
    logits, correct = tensors.get(f"{data}.logits"), tensors.get(f"{data}.correct")
    texts = contents.records.get("texts", {}).get(str(data))
    return [
        RawOutputs(
            losses,
            tensors[f"{data}.tokens"],
            None if logits is None else logits[p],
            None if correct is None else correct[p],
            texts=None if texts is None else tuple(texts[p]),
        ).predictions(examples, kind)
        for p, losses in enumerate(tensors[f"{data}.losses"])
    ]


def data_fingerprint(work: PointsWork) -> str:
    """Hash of the data sets and how they are read: kept beside every result made from them."""
    return fingerprint(work._shared_spec)
