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
from pydantic import Field
from torch import Tensor

from landform.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    LabelError,
    LandformError,
    NonFiniteError,
    SpaceMismatchError,
)
from landform.evaluation.generation import Generation, generates, generation_of, token_settings
from landform.store.artifacts import ArtifactStore, Contents
from landform.store.fingerprint import fingerprint
from landform.store.plan import Forecast, Job, Plan
from landform.tasks.answers import references
from landform.tasks.batching import (
    Batch,
    Encoded,
    cut_batches,
    encode,
    fit_to_model,
    longest_input,
    position_limit,
)
from landform.tasks.metrics import Predictions, get_metric
from landform.tasks.objective import Objective
from landform.tasks.task import Examples, Task
from landform.weights.checkpoint import (
    Checkpoint,
    LoadConfig,
    check_loadable,
    check_same_architecture,
    load_model,
    load_tokenizer,
)
from landform.weights.distance import euclidean
from landform.weights.points import Member
from landform.weights.space import BoundModel, ParameterSpace, check_same_buffers

__all__ = [
    "Data",
    "DataConfig",
    "Evaluator",
    "PointsConfig",
    "PointsWork",
    "PointsWorker",
    "PreparedData",
    "check_metrics",
    "check_padding",
    "check_same_vocabulary",
    "find_split",
    "prepare",
    "rows_identity",
    "target_length",
    "warn_if_cut",
]


class DataConfig(LoadConfig):
    """How a model is loaded and a data set is read for it."""

    rows: int | None = Field(None, ge=1)
    """Use only the first ROWS examples of each data set (default: all)."""
    max_length: int | None = Field(None, ge=2)
    """Cut inputs at this many tokens (default: what model and tokenizer can take)."""
    token_budget: int = Field(1024, ge=1)
    """Padded tokens in one batch. 1024 keeps activations in a CPU's cache; use 16384 on a GPU."""
    device: str = "auto"
    """Where the model runs: cpu, cuda, cuda:1, or auto (a GPU when there is one)."""
    model_labels: tuple[str, ...] | None = None
    """The model's label names in its own order, where its config does not tell them."""
    seed: int = Field(0, ge=0)
    """Seed of whatever chance decides: resampling, masked tokens, sampled labels."""

    def torch_device(self) -> torch.device:
        """The device that `device` names."""
        if self.device != "auto":
            try:
                device = torch.device(self.device)
                torch.zeros(1, device=device).item()
            except Exception as error:  # the type depends on what torch was built without
                raise ConfigError(
                    f"option device is {self.device!r}, which torch cannot use here: "
                    f"{str(error).splitlines()[0]}",
                    remedy="use cpu or auto, or install a torch build for that device",
                ) from None
            return device
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("cpu")


class PointsConfig(DataConfig):
    """How points are evaluated and how sure their numbers are."""

    replicates: int = Field(1000, ge=20)
    """Bootstrap replicates (resampled examples, the same for all that is compared)."""
    level: float = Field(0.95, gt=0, lt=1)
    """Coverage of the intervals."""
    memory: float = Field(2.0, gt=0, allow_inf_nan=False)
    """GiB for checkpoints held in memory at once; others are read again when needed."""
    max_new_tokens: int | None = Field(None, ge=1)
    """Cut generated answers at this many tokens, where a metric judges them (default: 64, or what
    the model can take)."""


@dataclass(frozen=True)
class Data:
    """One split of a task, asked to be evaluated."""

    task: Task
    split: str

    def __post_init__(self) -> None:
        if not isinstance(self.task, Task):
            raise ConfigError(
                f"{self.task!r} is not a task", remedy="make one with landform.load_task(...)"
            )

    @property
    def name(self) -> str:
        """`task:split`, as tables call it."""
        return f"{self.task.name}:{self.task.resolve(self.split)}"

    def examples(self, rows: int | None) -> Examples:
        """Its examples, at most the first `rows`; warns where those leave out a class."""
        chosen = self.task.examples(self.split, rows=rows)
        if rows is not None and self.task.kind == "classification":
            missing = set(self.task.examples(self.split).labels) - set(chosen.labels)
            if missing:
                names = ", ".join(self.task.label_names[label] for label in sorted(missing))
                warnings.warn(
                    f"{self.name}: the first {rows} rows have no example of {names}; the file "
                    "may be sorted, so take more rows or shuffle it: shuffle_seed=0",
                    stacklevel=2,
                )
        return chosen


def find_split(task: Task, split: str) -> str:
    """`split` where the task has it; for a missing train or validation, the only split there is."""
    try:
        task.resolve(split)
    except DataError:
        if split not in ("train", "validation") or len(task.parts) != 1:
            raise
        return next(iter(task.parts))
    return split


def rows_identity(
    checkpoint: Checkpoint, task: Task, examples: Examples, config: DataConfig
) -> dict[str, Any]:
    """What decides the outputs of one model on rows, but the seed: parts of the key of a job."""
    return {
        "weights": checkpoint.fingerprint,
        "tokenizer": checkpoint.tokenizer_fingerprint,
        "examples": examples.fingerprint,
        "kind": task.kind,
        "codes": task.label_names,
        "groups": task.label_groups and dict(task.label_groups),
        "merge": task.merge,
        "model_labels": config.model_labels,
        "max_length": config.max_length,
        "token_budget": config.token_budget,
        "dtype": config.dtype,
        "device": config.torch_device().type,
    }


@dataclass(frozen=True)
class PreparedData:
    """A data set as batches on the device."""

    name: str
    objective: Objective
    batches: tuple[Batch, ...]
    size: int
    ids: tuple[str, ...]
    truncated: int
    encoded: Encoded
    """the same examples unpadded, for whoever cuts other batches of them"""
    generation: Generation | None = None
    """how answers are generated, where a metric judges them"""

    @property
    def tokens(self) -> int:
        """Padded tokens of one pass over the data."""
        return sum(batch.inputs["input_ids"].numel() for batch in self.batches)


@dataclass(frozen=True)
class RawOutputs:
    """What one model says of one data set, in the order of the examples."""

    losses: np.ndarray
    """(N,) mean loss over the valid positions of an example, float64 (0 where it has none)"""
    tokens: np.ndarray
    """(N,) number of valid positions (of several references: their mean)"""
    logits: np.ndarray | None
    """(N, C) or (N,), in the task's label order; None for token tasks"""
    correct: np.ndarray | None
    """(N,) valid positions predicted right, for token tasks"""
    margins: np.ndarray | None = None
    """(N,) `Objective.margins` in nats, float64, where they were asked for"""
    texts: tuple[str, ...] | None = None
    """N generated answers, where they were asked for"""
    cut: int = 0
    """how many of these were cut at the maximum length"""

    def predictions(self, examples: Examples, kind: str) -> Predictions:
        """What metrics read."""
        sequence = kind in ("classification", "regression")
        return Predictions(
            logits=self.logits,
            labels=np.asarray(examples.labels) if sequence else None,
            losses=self.losses,
            tokens=self.tokens,
            texts=self.texts,
            references=None if self.texts is None else references(examples),
            correct=self.correct,
        )


class Evaluator:
    """Runs one model over prepared data sets, wherever its parameters stand at the moment."""

    def __init__(
        self, model: torch.nn.Module, data: Sequence[PreparedData], *, margins: bool = False
    ) -> None:
        self.model = model
        self.data = tuple(data)
        self.margins = margins
        self.evaluations = 0

    def run(self, where: str = "the model") -> tuple[RawOutputs, ...]:
        """Evaluate all data sets; `where` names the point in the error for a NaN loss."""
        self.evaluations += 1
        self.model.eval()  # dropout at a point would make its loss a random number
        with torch.inference_mode():
            return tuple(self._run(data, where) for data in self.data)

    def _run(self, data: PreparedData, where: str) -> RawOutputs:
        sums, counts, logits, correct, margins = [], [], [], [], []
        texts: list[str] = []
        cut = 0
        sequence = data.objective.kind in ("classification", "regression")
        for batch in data.batches:
            # The encoder's outputs serve the loss and the generated answers.
            memory = data.objective.encode(self.model, batch) if data.generation else None
            z = data.objective.logits(self.model, batch, memory)
            losses = data.objective.losses(
                z.double() if sequence else z, data.objective.targets(batch)
            ).per_example(batch)
            if self.margins:
                margins.append(
                    batch.per_example(data.objective.margins(z, data.objective.targets(batch)))
                )
            if data.generation is not None and memory is not None:
                answers, short = data.generation.run(self.model, batch, memory)
                texts += answers
                cut += short
            sums.append(losses.sums.double())
            counts.append(losses.counts.double())
            if sequence:
                logits.append(z)
            elif losses.correct is not None:
                correct.append(losses.correct.double())
        order = torch.cat([batch.rows for batch in data.batches]).argsort()

        def restore(parts: list[Tensor]) -> np.ndarray:
            values = torch.cat(parts)[order]
            # numpy has no bfloat16; float32 holds every bfloat16 and float16 value exactly.
            wide = values if values.dtype in (torch.float32, torch.float64) else values.float()
            return wide.cpu().numpy()

        total, count = restore(sums), restore(counts)
        if not np.isfinite(total).all():
            row = int(np.flatnonzero(~np.isfinite(total))[0])
            raise NonFiniteError(
                f"{where}: the loss of example {data.ids[row]} of {data.name} is {total[row]}",
                remedy="the weights are too large there: use another checkpoint (while training, "
                "a lower learning rate), or dtype float32",
            )
        return RawOutputs(
            total / np.where(count > 0, count, 1),
            count,
            restore(logits) if sequence else None,
            restore(correct) if correct else None,
            restore(margins) if margins else None,
            tuple(texts[i] for i in order.tolist()) if data.generation else None,
            cut,
        )


def prepare(
    data: Data,
    checkpoint: Checkpoint,
    model: Any,
    tokenizer: Any,
    config: DataConfig,
    examples: Examples | None = None,
) -> PreparedData:
    """Tokenise a data set (or the `examples` chosen of it) and move its batches to the device."""
    examples = data.examples(config.rows) if examples is None else examples
    length = longest_input(tokenizer, model, config.max_length)
    encoded = encode(
        examples,
        tokenizer,
        data.task.kind,
        max_length=length,
        mask_seed=config.seed,
        max_target_length=target_length(data.task, model),
    )
    warn_if_cut(data.name, encoded, length)
    try:
        objective = Objective.of(data.task, checkpoint.label_names(), given=config.model_labels)
    except LabelError as error:
        raise LabelError(
            f"{checkpoint.spec} and {data.name}: {error.what}", remedy=error.remedy
        ) from None
    encoded = fit_to_model(encoded, model, tokenizer, f"{checkpoint.spec} and {data.name}")
    device = config.torch_device()
    batches = tuple(batch.to(device) for batch in cut_batches(encoded, config.token_budget))
    generation = None
    if isinstance(config, PointsConfig):
        generation = generation_of(data.task, model, tokenizer, config.max_new_tokens)
    return PreparedData(
        data.name,
        objective,
        batches,
        len(examples),
        examples.ids,
        encoded.truncated,
        encoded,
        generation,
    )


def target_length(task: Task, model: Any) -> int | None:
    """Tokens at which the targets of a text-to-text task are cut; None: where inputs are."""
    if task.form is None:
        return None
    return position_limit(model, task.form.max_target_length, "max_target_length")


def check_padding(model: Any, data: PreparedData, spec: str) -> None:
    """Raise `CheckpointError` where padding changes what the model says of a row.

    XLNet's classifier reads the last position, FNet mixes all positions: their numbers would
    depend on which rows share a batch. One row is run alone and with three padded positions, where
    some batch has padding at all. A causal language model must not see what follows either.
    """
    model.eval()
    _check_causal(model, data, spec)
    for batch in data.batches:
        lengths = batch.inputs["attention_mask"].sum(-1)
        row, width = int(lengths.argmin()), batch.inputs["attention_mask"].shape[1]
        length = int(lengths[row])
        if length < width:
            break
    else:
        return
    with torch.inference_mode():
        alone, padded = (
            data.objective.logits(model, _cut_row(batch, row, size, data.objective.kind))
            for size in (length, min(length + 3, width))
        )
    if not alone.numel():  # a text of one token has no next one
        return
    if alone.dim() == 3:
        padded = padded[:, : alone.shape[1]]
    difference = float((padded - alone).abs().max())
    # Another width rounds otherwise, which is worth far less than half the digits; NaN is no
    # matter of padding and is reported where losses are.
    tolerance = math.sqrt(torch.finfo(alone.dtype).eps) * (1 + float(alone.abs().max()))
    if difference > tolerance:
        raise CheckpointError(
            f"{spec}: its outputs depend on padding (a logit of one row of {data.name} changes by "
            f"{difference:.3g} with {min(3, width - length)} padded positions), so they would "
            "depend on which rows share a batch",
            remedy="use token_budget 1: every row alone, without padding",
        )


def _check_causal(model: Any, data: PreparedData, spec: str) -> None:
    """Raise `CheckpointError` where a model that is asked for next tokens sees them.

    An encoder such as BERT loads as a causal model and reads the answer off its input. Its longest
    row is run with and without its last token.
    """
    batch = data.batches[-1]
    length = int(batch.inputs["attention_mask"].sum(-1).max())
    if data.objective.kind != "causal-lm" or length < 3:
        return
    row = int(batch.inputs["attention_mask"].sum(-1).argmax())
    with torch.inference_mode():
        whole, shorter = (
            data.objective.logits(model, _cut_row(batch, row, size, data.objective.kind))
            for size in (length, length - 1)
        )
    difference = float((whole[:, : shorter.shape[1]] - shorter).abs().max())
    if difference > math.sqrt(torch.finfo(whole.dtype).eps) * (1 + float(whole.abs().max())):
        raise CheckpointError(
            f"{spec}: what it says of a token depends on the tokens after it (a logit of one row of"
            f" {data.name} changes by {difference:.3g} without the last token), so it is no causal"
            " language model",
            remedy="use kind='masked-lm' for an encoder, or a decoder such as GPT-2",
        )


def _cut_row(batch: Batch, row: int, width: int, kind: str) -> Batch:
    """One row of a batch at another width."""
    inputs = {name: values[row : row + 1, :width] for name, values in batch.inputs.items()}
    labels = batch.labels if batch.owners is None else batch.labels[batch.owners >= row]
    labels = labels[row : row + 1] if batch.owners is None else labels[:1]
    aligned = kind in ("token-classification", "masked-lm", "causal-lm")
    return Batch(inputs, labels[:, :width] if aligned else labels, batch.rows[row : row + 1])


def warn_if_cut(name: str, encoded: Encoded, length: int) -> None:
    """Warn of examples that lost their ends: their numbers are those of shorter texts."""
    if encoded.truncated:
        warnings.warn(
            f"{name}: {encoded.truncated} of {len(encoded)} examples are longer than {length} "
            "tokens and were cut",
            stacklevel=2,
        )


def check_metrics(task: Task, names: Sequence[str]) -> None:
    """Raise for a metric that does not fit the kind of the task, which two made-up examples show.

    Found after the forward passes, it would cost them.
    """
    classes, regression = task.kind == "classification", task.kind == "regression"
    answered = task.kind == "seq2seq" and task.noise is None  # what is hidden is no answer
    two = np.arange(2)
    made_up = Predictions(
        logits=np.eye(2, max(task.n_labels, 2)) if classes else two * 1.0 if regression else None,
        labels=two if classes else two * 1.0 if regression else None,
        losses=np.ones(2),
        tokens=np.ones(2),
        texts=("0", "1") if answered else None,
        references=(("0",), ("1",)) if answered else None,
        correct=None if classes or regression else np.ones(2),
    )
    for name in names:
        try:
            get_metric(name).aggregate(made_up)
        except LandformError as error:
            raise ConfigError(f"task {task.name!r}: {error.what}", remedy=error.remedy) from None


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
                    "kind": data.task.kind,
                    "labels": data.task.label_names,
                    "groups": data.task.label_groups and dict(data.task.label_groups),
                    "merge": data.task.merge,
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
        self.evaluator = Evaluator(
            model, [prepare(d, first, model, tokenizer, self.config) for d in work.data]
        )
        for prepared in self.evaluator.data:
            check_padding(model, prepared, first.spec)
        self.capacity = max(2, int(self.config.memory * 2**30 // self.space.nbytes))
        self.space.check_finite(self.bound.flat, first.spec)
        # The model that moves was loaded from the first checkpoint: no need to read it again.
        self._points = OrderedDict({first.fingerprint: self.bound.flat.clone()})
        self.loads = 1
        self.seconds = {"load": 0.0, "move": 0.0, "evaluate": 0.0}
        for other in work.checkpoints[1:]:
            self._check_other(other)

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
