"""Many small retrainings at once: one model for every pair of a subset of the rows and a seed.

What is asked of training data (which rows matter?) is measured by training again without some of
them, hundreds of times. Each model here is the one that `train` gives on exactly those rows with
that seed: the same head, the same order of the data, the same optimizer, schedule and clipping.
Without dropout they agree to rounding; with dropout the masks come from another stream (one for
all models that are trained together), so they agree in distribution only, and a model's numbers
depend on which others share its pass. Nothing is evaluated, logged or saved on the way: what is
kept of a model is what it says of the queries.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import get_scheduler

from landform.errors import ConfigError, DataError, NonFiniteError
from landform.evaluation.data import Data, task_identity, torch_device
from landform.evaluation.prepared import PreparedData, check_padding, tokenise
from landform.store.artifacts import ArtifactStore, Contents, MemoryStore
from landform.store.engines import run_plan
from landform.store.fingerprint import fingerprint, fingerprint_array
from landform.store.plan import Forecast, Job, Plan
from landform.tasks.batching import Batch, Encoded, collate, set_padding
from landform.tasks.objective import Objective
from landform.tasks.task import Examples, Task
from landform.training.loop import count_steps, cpu_threads, length_parts
from landform.training.models import label_order, refuse_tuned, starting_model
from landform.training.options import (
    ROW_OPTIONS,
    WATCH_OPTIONS,
    TrainConfig,
    identity,
)
from landform.training.seeds import DataOrder, Seeds, isolated_randomness
from landform.training.stacked import NotStackable, Single, Stack, check_stack
from landform.weights.checkpoint import Checkpoint, load_tokenizer, quiet_transformers

__all__ = ["EnsembleWork", "EnsembleWorker", "plan_retraining", "retrain"]

TOGETHER = 8
"""Models of one pass on a CPU. More do not make a model cheaper there: once the matrix products
dominate, further models only push each other out of the cache."""
TOGETHER_ON_GPU = 32
_KINDS = ("classification", "regression")
_UNUSED = WATCH_OPTIONS | {"log_steps"}
_LOOK = 50  # steps between looks at the losses: a look waits for the device


@dataclass(frozen=True)
class Member:
    """One model: the rows it is trained on (ascending positions) and its seed."""

    rows: np.ndarray
    seed: int
    name: str


@dataclass(frozen=True, eq=False)
class EnsembleWork:
    """What a worker needs, in this process or another: the picklable factory."""

    checkpoint: Checkpoint
    task: Task
    split: str
    rows: int | None
    """the subsets are positions in the first so many rows"""
    queries: Data
    query_rows: tuple[int, ...] | int | None
    subsets: tuple[np.ndarray, ...]
    seeds: tuple[int, ...]
    config: TrainConfig
    together: int = TOGETHER

    def __call__(self) -> EnsembleWorker:
        """Open a worker: read and tokenise the data once."""
        return EnsembleWorker(self)

    @cached_property
    def examples(self) -> Examples:
        """The rows that subsets are taken of."""
        return self.task.examples(self.split, rows=self.rows)

    @cached_property
    def query_examples(self) -> Examples:
        """The rows that every model is asked about."""
        if self.query_rows is None or isinstance(self.query_rows, int):
            return self.queries.examples(self.query_rows)
        examples = self.queries.examples(None)
        outside = [row for row in self.query_rows if not 0 <= row < len(examples)]
        if outside or not self.query_rows:
            raise DataError(
                f"{self.queries.name}: "
                + (f"there is no row {outside[0]}" if outside else "no rows are asked for"),
                remedy=f"rows are numbered from 0 to {len(examples) - 1}",
            )
        return examples.take(self.query_rows)

    @cached_property
    def labels(self) -> tuple[str, ...]:
        """The label of each output of the head."""
        return label_order(self.checkpoint, self.task, new_head=self.config.new_head)

    @cached_property
    def members(self) -> tuple[Member, ...]:
        """All models: the seeds of the first subset, then those of the second, and so on."""
        return tuple(
            Member(rows, seed, f"subset {number}, seed {seed}")
            for number, rows in enumerate(self.subsets)
            for seed in self.seeds
        )

    @cached_property
    def device(self) -> torch.device:
        """Where models are trained."""
        return torch_device(self.config.device)

    def check(self) -> None:
        """Raise for whatever can be seen to be wrong before a model is loaded."""
        refuse_tuned(self.checkpoint)
        for task in (self.task, self.queries.task):
            if task.kind not in _KINDS:
                raise ConfigError(
                    f"task {task.name} ({task.kind}): only models with one output vector per row "
                    "can be retrained in numbers",
                    remedy="use a classification or regression task",
                )
        if self.config.tuning != "full" or self.config.optimizer != "adamw":
            raise ConfigError(
                f"tuning {self.config.tuning} with {self.config.optimizer}: models are retrained "
                "in numbers by full fine-tuning with adamw only",
                remedy="leave tuning and optimizer out",
            )
        chosen = self.config.options_given(ROW_OPTIONS)
        if chosen:
            raise ConfigError(
                f"option {chosen[0]} chooses training rows, which the subsets do already",
                remedy="leave it out",
            )
        if self.config.ewc is not None:
            raise ConfigError(
                "option ewc: models that are retrained in numbers are trained without a penalty",
                remedy="leave ewc and ewc_strength out",
            )
        if self.config.early_stop is not None:
            raise ConfigError(
                "option early_stop ends a training by its evaluations, and models that are "
                "retrained in numbers are not evaluated",
                remedy="leave it out; give the number of steps: max_steps",
            )
        size = len(self.examples)
        for number, rows in enumerate(self.subsets):
            _check_subset(number, rows, size)
        _ = self.query_examples, self.labels, self.device

    @cached_property
    def _shared_spec(self) -> dict[str, Any]:
        options = {k: v for k, v in identity(self.config).items() if k not in _UNUSED}
        return {
            "weights": self.checkpoint.fingerprint,
            "tokenizer": self.checkpoint.tokenizer_fingerprint,
            "task": _task_spec(self.task, self.labels),
            "train": self.examples.fingerprint,
            "query_task": _task_spec(self.queries.task, ()),
            "queries": self.query_examples.fingerprint,
            "options": options,
        }

    @cached_property
    def _keys(self) -> tuple[str, ...]:
        return tuple(fingerprint_array(rows) for rows in self.subsets)

    def identity(self, member: Member) -> dict[str, Any]:
        """What tells a model from the others."""
        seeds = Seeds.of(member.seed, self.config).columns()
        if not self.config.perturb:
            del seeds["perturb_seed"]
        return {"rows": fingerprint_array(member.rows), "seeds": seeds}

    def steps(self, member: Member) -> int:
        """Optimizer steps of a model."""
        return count_steps(len(member.rows), self.config)

    @cached_property
    def groups(self) -> tuple[tuple[int, ...], ...]:
        """Positions of the models that are trained together: those of like size, in order."""
        order = sorted(range(len(self.members)), key=lambda i: len(self.members[i].rows))
        return tuple(
            tuple(order[start : start + self.together])
            for start in range(0, len(order), self.together)
        )

    def job(self, group: Sequence[int]) -> Job:
        """The training of some models together."""
        members = [self.members[i] for i in group]
        spec = {**self._shared_spec, "members": [self.identity(member) for member in members]}
        first, last = members[0].name, members[-1].name
        label = f"retraining ({first})" if len(group) == 1 else f"retraining ({first} to {last})"
        return Job("retrain", spec, cost=float(sum(map(self.steps, members))), label=label)

    def collect(self, store: ArtifactStore) -> np.ndarray:
        """The finished logits: (subsets, seeds, queries, outputs), float32."""
        found: dict[int, np.ndarray] = {}
        for group in self.groups:
            found.update(zip(group, store.read(self.job(group).key).tensors["logits"], strict=True))
        values = np.stack([found[i] for i in range(len(self.members))])
        return values.reshape(len(self.subsets), len(self.seeds), *values.shape[1:])

    def forecast(self, plan: Plan, store: ArtifactStore | None, *, workers: int = 1) -> Forecast:
        """Steps that remain, their time (from a few real ones) and the bytes of a worker."""
        seconds, memory = self().sample() if plan.missing(store) else (0.0, 0)
        return plan.forecast(
            store, seconds_per_unit=seconds, memory=memory, workers=workers, unit="steps"
        )


def _task_spec(task: Task, labels: tuple[str, ...]) -> dict[str, Any]:
    return {"labels": labels, **task_identity(task)}


def _check_subset(number: int, rows: np.ndarray, size: int) -> None:
    if not len(rows):
        raise DataError(f"subset {number} has no rows", remedy="leave at least one row in each")
    if rows[0] < 0 or rows[-1] >= size:
        bad = rows[0] if rows[0] < 0 else rows[-1]
        raise DataError(
            f"subset {number} asks for row {bad}, but there are {size} training rows",
            remedy=f"rows are numbered from 0 to {size - 1}",
        )
    if (np.diff(rows) == 0).any():
        twice = rows[1:][np.diff(rows) == 0][0]
        raise DataError(f"subset {number} lists row {twice} twice", remedy="list each row once")


def plan_retraining(
    checkpoint: Checkpoint,
    task: Task,
    subsets: Sequence[np.ndarray],
    *,
    seeds: Sequence[int],
    queries: Data,
    config: TrainConfig,
    split: str = "train",
    query_rows: int | Sequence[int] | None = None,
    rows: int | None = None,
    together: int | None = None,
) -> tuple[EnsembleWork, Plan]:
    """The work and its jobs, before anything is trained; raises for what cannot be.

    subsets: positions of training rows, or masks (boolean, one entry per row). together: models of
    one pass, which is also what one job is; by default what was measured to be fastest.
    """
    if not len(subsets) or not len(seeds):
        raise ConfigError("there is nothing to train", remedy="give a subset and a seed at least")
    if len(set(seeds)) < len(seeds):
        raise ConfigError("a seed occurs twice: its models would be the same", remedy="drop one")
    if together is not None and together < 1:
        raise ConfigError(f"option together is {together}, expected 1 or more")
    chosen = query_rows if query_rows is None or isinstance(query_rows, int) else tuple(query_rows)
    work = EnsembleWork(
        checkpoint, task, split, rows, queries, chosen, (), tuple(map(int, seeds)), config
    )
    positions = tuple(_positions(i, given, len(work.examples)) for i, given in enumerate(subsets))
    if together is None:
        together = TOGETHER_ON_GPU if work.device.type == "cuda" else TOGETHER
    work = replace(work, subsets=positions, together=1 if config.bf16 else together)
    work.check()
    return work, Plan(work.job(group) for group in work.groups)


def _positions(number: int, given: Any, size: int) -> np.ndarray:
    values = np.asarray(given)
    if values.dtype == bool:
        if values.shape != (size,):
            raise DataError(
                f"mask {number} has {values.size} entries, but there are {size} training rows",
                remedy="make masks for the rows that are used",
            )
        return np.flatnonzero(values)
    return np.sort(values.astype(np.int64).reshape(-1))


def retrain(
    checkpoint: Checkpoint,
    task: Task,
    subsets: Sequence[np.ndarray],
    *,
    seeds: Sequence[int],
    queries: Data,
    config: TrainConfig,
    split: str = "train",
    query_rows: int | Sequence[int] | None = None,
    rows: int | None = None,
    together: int | None = None,
    store: ArtifactStore | None = None,
    engine: str = "local",
    workers: int = 1,
    progress: bool = False,
) -> np.ndarray:
    """Train `checkpoint` on every subset with every seed; what each model says of the queries.

    Returns logits in the queries' label order, (subsets, seeds, queries, outputs) float32. With a
    `store`, what is finished is kept and reused. Further arguments (`config`, `query_rows`, `rows`,
    `together`): see `plan_retraining`; `engine` and `workers` say where the jobs run.
    """
    work, plan = plan_retraining(
        checkpoint, task, subsets, seeds=seeds, queries=queries, config=config, split=split,
        query_rows=query_rows, rows=rows, together=together,
    )  # fmt: skip
    kept = MemoryStore() if store is None else store
    run_plan(
        plan, work, kept, engine=engine, workers=workers, progress=progress,
        description="retraining", unit="steps",
    )  # fmt: skip
    return work.collect(kept)


# --- the worker ---------------------------------------------------------------------------------


class EnsembleWorker:
    """Trains groups of models on data that was read and tokenised once."""

    def __init__(self, work: EnsembleWork) -> None:
        self.work, self.device = work, work.device
        self.rows = {fingerprint_array(rows): rows for rows in work.subsets}
        with quiet_transformers():
            self.tokenizer = load_tokenizer(work.checkpoint)
        self.starting = lru_cache(maxsize=16)(self._starting)
        with isolated_randomness():
            model = self.starting(work.seeds[0])
        self.objective = Objective.of(work.task, work.labels)
        encoded = self._tokenise(Data(work.task, work.split), work.examples, model)
        self.lengths = encoded.lengths
        every = collate(encoded.rows, range(len(encoded)), pad_id=encoded.pad_id)
        self.inputs, self.targets = every.inputs, self.objective.targets(every)
        self.questions = self._tokenise(work.queries, work.query_examples, model)
        self.answers = Objective.of(work.queries.task, work.labels)
        check_padding(
            model,
            self.asked(1),
            work.checkpoint.spec,
            remedy="models that are retrained in numbers share padded batches: start from another "
            "architecture (BERT, RoBERTa, GPT-2, ...)",
        )
        self.stackable = work.together > 1 and self._stackable(model)

    def _starting(self, seed: int) -> Any:
        work = self.work
        with quiet_transformers():
            model = starting_model(
                work.checkpoint, work.task, work.labels, work.config, Seeds.of(seed, work.config)
            )
        set_padding(model, self.tokenizer)
        return model.to(self.device)

    def _tokenise(self, data: Data, examples: Examples, model: Any) -> Encoded:
        most = self.work.config.max_length
        return tokenise(data.name, data.task, examples, model, self.tokenizer, max_length=most)

    def asked(self, models: int) -> PreparedData:
        """The queries as batches for so many models at once."""
        return PreparedData.of(
            self.work.queries.name,
            self.answers,
            self.questions,
            self.work.query_examples.ids,
            token_budget=max(4096 // models, 256),
            device=self.device,
        )

    def _stackable(self, model: nn.Module) -> bool:
        rows = np.resize(np.argsort(self.lengths, kind="stable")[[0, len(self.lengths) // 2]], 4)
        try:
            check_stack(model, self._batch(rows).inputs)
        except (NotStackable, RuntimeError) as error:
            warnings.warn(
                f"{type(model).__name__} cannot be trained several at once ({error}): "
                "models are trained one after another",
                stacklevel=2,
            )
            return False
        return True

    def _batch(self, rows: np.ndarray) -> Batch:
        width = int(self.lengths[rows].max())
        chosen = torch.from_numpy(np.ascontiguousarray(rows))
        inputs = {name: values[chosen, :width] for name, values in self.inputs.items()}
        return Batch(inputs, self.targets[chosen], chosen).to(self.device)

    def run(self, job: Job) -> Contents:
        """Train the models of a job and ask them."""
        members = [
            Member(self.rows[m["rows"]], m["seeds"]["seed"], f"model {i} of {job.label}")
            for i, m in enumerate(job.spec["members"])
        ]
        groups = [members] if self.stackable else [[member] for member in members]
        with isolated_randomness(), cpu_threads(self.work.config.threads):
            logits = [self._train(group).ask() for group in groups]
        return Contents(tensors={"logits": np.concatenate(logits)})

    def _train(self, members: Sequence[Member], limit: int | None = None) -> _Group:
        group = _Group(self, members)
        for step in range(group.longest if limit is None else min(limit, group.longest)):
            group.step(step)
        group.check_losses()
        group.check_weights()
        return group

    def sample(self) -> tuple[float, int]:
        """(seconds of a step of one model, bytes held at most), from a few steps of one group."""
        members = [self.work.members[i] for i in self.work.groups[0]]
        members = members if self.stackable else members[:1]
        with isolated_randomness(), cpu_threads(self.work.config.threads):
            self._train(members, 2)
            start = time.perf_counter()
            group = self._train(members, 6)
            seconds = time.perf_counter() - start
        held = 4 * group.models.flat.numel() * group.models.flat.element_size()
        return seconds / (6 * len(members)), held


class _Group:
    """Some models on their way through their steps."""

    def __init__(self, worker: EnsembleWorker, members: Sequence[Member]) -> None:
        self.worker, self.members, self.config = worker, members, worker.work.config
        starting = [worker.starting(member.seed) for member in members]
        self.models: Single | Stack = Stack(starting) if len(starting) > 1 else Single(starting[0])
        self.models.model.train()
        self.steps = [worker.work.steps(member) for member in members]
        self.longest = max(self.steps)
        self.rates = [_rates(self.config, steps) for steps in self.steps]
        self.batches = [_step_rows(member, self.config) for member in members]
        self.optimizer = self._optimizer()
        self.recent: list[tuple[int, Tensor]] = []
        # One stream for the whole group: each entry of a batch draws masks of its own from it.
        dropout = [Seeds.of(member.seed, self.config).dropout for member in members]
        torch.manual_seed(int(fingerprint(dropout)[:8], 16))

    def _optimizer(self) -> torch.optim.AdamW:
        """AdamW with two groups (with and without decay) for each model."""
        groups = []
        for weights, gradient in zip(self.models.flat, self.models.gradient, strict=True):
            cut = self.models.with_decay
            for part, decay in ((slice(cut), self.config.weight_decay), (slice(cut, None), 0.0)):
                parameter = nn.Parameter(weights[part])
                parameter.grad = gradient[part]
                groups.append({"params": [parameter], "weight_decay": decay})
        return torch.optim.AdamW(
            groups, lr=self.config.learning_rate, eps=self.config.adam_epsilon, fused=True
        )

    def step(self, number: int) -> None:
        """One step of every model that has one left."""
        rows = [
            next(batches) if number < steps else np.empty(0, dtype=np.int64)
            for batches, steps in zip(self.batches, self.steps, strict=True)
        ]
        self.models.gradient.zero_()
        losses = self.models.flat.new_zeros(len(rows))
        counts = [max(len(chosen), 1) for chosen in rows]
        for positions, weights in self._parts(rows):
            losses += self._gradients(positions, weights, counts)
        self._clip()
        for i, (rates, steps) in enumerate(zip(self.rates, self.steps, strict=True)):
            for group in self.optimizer.param_groups[2 * i : 2 * i + 2]:
                group["lr"] = rates[min(number, steps - 1)]
                if number == steps:  # finished: the optimizer passes over it from here on
                    group["params"][0].grad = None
        self.optimizer.step()
        self.recent.append((number + 1, losses))
        if len(self.recent) == _LOOK:
            self.check_losses()

    def _parts(self, rows: Sequence[np.ndarray]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """(models, rows) positions and weights: batches of like length, as wide for every model.

        A model with fewer rows repeats one of its own, or of the others, with weight 0.
        """
        most = max(map(len, rows))
        any_row = next(chosen[0] for chosen in rows if len(chosen))
        positions = np.empty((len(rows), most), dtype=np.int64)
        weights = np.zeros((len(rows), most), dtype=np.float32)
        for i, chosen in enumerate(rows):
            ordered = chosen[np.argsort(self.worker.lengths[chosen], kind="stable")]
            fill = most - len(ordered)
            positions[i, :fill] = ordered[0] if len(ordered) else any_row
            positions[i, fill:] = ordered
            weights[i, fill:] = 1.0
        if self.worker.device.type != "cpu":
            yield positions, weights
            return
        widths = self.worker.lengths[positions].max(axis=0)
        # A pass costs the same whatever the number of models, so it is weighed against theirs.
        for part in length_parts((widths * len(rows)).tolist()):
            yield positions[:, part], weights[:, part]

    def _gradients(
        self, positions: np.ndarray, weights: np.ndarray, counts: Sequence[int]
    ) -> Tensor:
        """Add the gradients of some rows to the buffer; their share of each model's mean loss."""
        worker = self.worker
        batch = worker._batch(positions.reshape(-1))
        scale = torch.from_numpy(weights / np.array(counts, dtype=np.float32)[:, None])
        with torch.autocast(worker.device.type, torch.bfloat16, enabled=self.config.bf16):
            logits = worker.objective.read(self.models.logits(batch.inputs))
            sums = worker.objective.losses(logits, batch.labels).sums
        shares = (sums * scale.reshape(-1).to(sums)).view(len(positions), -1).sum(1)
        torch.autograd.backward(shares.sum())
        return shares.detach().to(self.models.flat.dtype)

    def _clip(self) -> None:
        """Shorten each model's gradient to the largest norm allowed (as torch does, with 1e-6)."""
        if not self.config.clip:
            return
        gradient = self.models.gradient
        norms = torch.stack([torch.dot(row, row) for row in gradient]).sqrt()
        factors = (self.config.clip / (norms + 1e-6)).clamp(max=1.0)
        if gradient.device.type != "cpu":
            gradient.mul_(factors.unsqueeze(1))
            return
        for row, factor in zip(gradient, factors.tolist(), strict=True):
            if factor != 1.0:
                row.mul_(factor)

    def check_losses(self) -> None:
        """Raise for a loss that became NaN or infinite since the last look."""
        if not self.recent:
            return
        losses = torch.stack([losses for _, losses in self.recent])
        bad = (~torch.isfinite(losses)).nonzero()
        if len(bad):
            step, model = (int(i) for i in bad[0])
            raise NonFiniteError(
                f"{self.members[model].name}: the training loss is {losses[step, model].item()} "
                f"at step {self.recent[step][0]}",
                remedy="lower learning_rate, lengthen the warm-up, or switch bf16 off",
            )
        self.recent.clear()

    def check_weights(self) -> None:
        """Raise for a model whose weights are not finite."""
        fine = torch.isfinite(self.models.flat).all(1)
        for row in (~fine).nonzero().flatten().tolist():
            raise NonFiniteError(
                f"{self.members[row].name}: tensor {self.models.bad_tensor(row)} has NaN or "
                "infinite entries after training",
                remedy="lower learning_rate, or lengthen the warm-up",
            )

    def ask(self) -> np.ndarray:
        """(models, queries, outputs): what the models say of the queries, without dropout."""
        models, worker = len(self.members), self.worker
        self.models.model.eval()
        data, values = worker.asked(models), list[Tensor]()
        with torch.no_grad():
            for batch in data.batches:
                inputs = {
                    name: x.repeat(models, *[1] * (x.dim() - 1)) for name, x in batch.inputs.items()
                }
                logits = worker.answers.read(self.models.logits(inputs)).float()
                values.append(logits.view(models, len(batch), -1))
        return torch.cat(values, 1)[:, data.order].cpu().numpy()


def _step_rows(member: Member, config: TrainConfig) -> Iterator[np.ndarray]:
    """The rows of each step, as positions in the data: what the Trainer's loader would give."""
    order = DataOrder(len(member.rows), Seeds.of(member.seed, config).data)
    for epoch in range(2**62):
        order.set_epoch(epoch)
        permutation = member.rows[np.fromiter(order, dtype=np.int64)]
        size = config.batch_size * config.accumulation
        for start in range(0, len(permutation), size):
            yield permutation[start : start + size]


@lru_cache(maxsize=64)
def _rates(config: TrainConfig, steps: int) -> tuple[float, ...]:
    """The learning rate of each step, from the schedules that the Trainer uses."""
    parameter = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=config.learning_rate)
    schedule = "constant_with_warmup" if config.schedule == "constant" else config.schedule
    scheduler = get_scheduler(
        schedule,
        optimizer,
        num_warmup_steps=math.ceil(steps * config.warmup_ratio),
        num_training_steps=steps,
    )
    rates = []
    for _ in range(steps):
        rates.append(float(optimizer.param_groups[0]["lr"]))
        optimizer.step()
        scheduler.step()
    return tuple(rates)
