"""Computing the diagonal of a Fisher matrix: one pass over the examples, one sum in memory.

With l_i the loss of example i at the checkpoint theta (dropout off) and y its labels,

    F_j = 1/N sum_i E_y [ (d l_i(y) / d theta_j)^2 ]

over all N examples, exactly N in the denominator. `reduction` says what l_i is:

    mean     the mean over the example's scored tokens (Sharma et al. 2024)
    sum      their sum: - log p(y | x)
    token    every scored token is a term of its own, and N is their number

They are the same where an example has one label. An example without a scored token (a text of
which nothing is masked) has no gradient: it adds 0 and, for mean and sum, counts.

The sums are added up in chunks of rows. What is kept in a store after a chunk takes the place of
what was kept before, so there is one copy of the parameters in memory and on disk however many
rows there are, and a run that was killed goes on after its last chunk to the very same numbers.
"""

from __future__ import annotations

import os
import shutil
import warnings
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
import pandas as pd
import torch
from pydantic import Field

from landform.curvature.fisher import (
    ALONE,
    CAPTURED,
    Fisher,
    FisherScores,
    sublayers_of,
    tensor_table,
)
from landform.curvature.fisher_pass import Estimator, FisherPass, Reduction
from landform.curvature.moments import Halves, Moments
from landform.errors import NonFiniteError, StoreError
from landform.evaluation.points import (
    Data,
    DataConfig,
    PreparedData,
    find_split,
    rows_identity,
)
from landform.results import from_parts, to_parts
from landform.store.artifacts import ArtifactStore, Contents, Store
from landform.store.locks import held
from landform.store.plan import Forecast, Job, Plan
from landform.store.progress import track
from landform.store.study import open_store, publish, slug
from landform.tasks.batching import longest_input
from landform.tasks.task import Examples, Task
from landform.weights.checkpoint import Checkpoint, resolve, short_names
from landform.weights.space import ParameterSpace

__all__ = ["FisherConfig", "FisherStudy", "fisher"]

PARTIAL = ".partial"
"""What is added to the name of the file that is asked for, and the key, while it is computed."""


class FisherConfig(DataConfig):
    """How a Fisher diagonal is computed."""

    estimator: Estimator = "empirical"
    """Whose labels: empirical (the data's), true (the model's own; exact for few classes, sampled
    otherwise), sampled (one draw from the model)."""
    reduction: Reduction = "mean"
    """What one gradient is of: mean or sum of an example's token losses, or a single token."""
    stable: float | None = Field(None, gt=0, lt=1)
    """Stop when the scores of two random halves of the examples agree: when the median Spearman
    correlation, of tensors and of sublayers, is above this after two chunks in a row."""
    chunk_rows: int = Field(256, ge=1)
    """Rows after which the order is compared and a kept run writes what it has."""


def fisher(
    checkpoint: str | os.PathLike[str] | Checkpoint,
    task: Task,
    *,
    split: str = "train",
    store: str | os.PathLike[str] | ArtifactStore | None = None,
    out: str | os.PathLike[str] | None = None,
    progress: bool = False,
    **options: Any,
) -> Fisher:
    """The Fisher diagonal of a checkpoint's loss on a split of a task, for every float parameter.

    Options are the fields of `FisherConfig` (rows, estimator, reduction, stable, ...). With a
    `store` the result is kept under the fingerprint of the weights, the rows and the options; `out`
    writes it as one safetensors file. With either, a run that was killed goes on where it was. Of a
    tuned model (LoRA, an adapter) only the tuned tensors are looked at. Raises a `LandformError`
    naming the row, tensor or option for what cannot be computed.
    """
    study = FisherStudy.of(checkpoint, task, split=split, **options)
    return study.fisher(store=store, out=out, progress=progress)


@dataclass(frozen=True)
class FisherStudy:
    """The plan of a fit, before anything is loaded."""

    checkpoint: Checkpoint
    data: Data
    config: FisherConfig

    @classmethod
    def of(
        cls,
        checkpoint: str | os.PathLike[str] | Checkpoint,
        task: Task,
        *,
        split: str = "train",
        **options: Any,
    ) -> Self:
        """Resolve checkpoint, rows and options."""
        config = FisherConfig.parse(options, where="fisher")
        study = cls(resolve(checkpoint), Data(task, _split(task, split)), config)
        len(study.examples)
        return study

    @cached_property
    def examples(self) -> Examples:
        """The rows to go through."""
        return self.data.examples(self.config.rows)

    @cached_property
    def _spec(self) -> dict[str, Any]:
        config, task = self.config, self.data.task
        return {
            **rows_identity(self.checkpoint, task, self.examples, config),
            "estimator": config.estimator,
            "reduction": config.reduction,
            "stable": config.stable,
            "chunk_rows": min(config.chunk_rows, len(self.examples)),
            "seed": config.seed,
        }

    @property
    def job(self) -> Job:
        """What is kept in the end."""
        return Job("fisher", self._spec, cost=float(len(self.examples)), label=self.result_name)

    def state_job(self, chunk: int) -> Job:
        """What is kept after `chunk` chunks, until the next one is done."""
        return Job("fisher-sums", {**self._spec, "chunks": chunk})

    @property
    def result_name(self) -> str:
        """The name of its scores in a study."""
        (name,) = short_names([self.checkpoint])
        config = self.config
        return slug(
            "fisher", name, self.data.task.name, self.data.split, config.estimator, config.reduction
        )

    def forecast(self, store: ArtifactStore | None = None) -> Forecast:
        """Rows that remain (all of them, if the order is not stable before)."""
        return Plan([self.job]).forecast(store, unit="rows")

    def run(self, store: ArtifactStore | None = None, *, progress: bool = False) -> FisherScores:
        """The scores, kept by name; the diagonal is kept beside them in the study."""
        return self.fisher(store=store, progress=progress).summary

    def fisher(
        self,
        *,
        store: str | os.PathLike[str] | ArtifactStore | None = None,
        out: str | os.PathLike[str] | None = None,
        progress: bool = False,
    ) -> Fisher:
        """Compute what is missing."""
        if store is None and out is not None:
            return self._beside(Path(out), progress)
        kept = None if store is None else open_store(store)
        found = self._find(kept, progress)
        if kept is not None:
            publish(kept, self.result_name, found.summary)
        if out is not None:
            found.save(out)
        return found

    def _beside(self, out: Path, progress: bool) -> Fisher:
        """Compute what goes to `out` alone; the run is kept beside it until the file is there."""
        key = self.job.key.rpartition("/")[-1][:12]
        beside = Path(f"{out}.{key}{PARTIAL}")
        with held(beside, f"another process is computing {out}"):
            try:
                found = self._find(Store.open(beside), progress)
                found.save(out)
            except BaseException:
                if not _holds_sums(beside):
                    shutil.rmtree(beside, ignore_errors=True)  # nothing to go on from
                raise
            shutil.rmtree(beside, ignore_errors=True)
        return found

    def _find(self, store: ArtifactStore | None, progress: bool) -> Fisher:
        held = _held(store, self.job.key)
        if store is not None and held is not None:
            self.forget(store)  # of a run that was killed after its last write
            return self._read(held)
        run = _Run(self, store)
        found = run.to_the_end(progress)
        if store is not None:
            tables, record = to_parts(found.summary)
            tensors = {name: value.numpy() for name, value in found.diagonal.items()}
            contents = Contents(tensors, tables, {"summary": record})
            store.write(self.job.key, contents, provenance=self.job.provenance())
            self.forget(store)
        return found

    def forget(
        self, store: ArtifactStore, chunks: int | None = None, *, but: int | None = None
    ) -> None:
        """Remove the sums kept after the first `chunks` chunks (all of them), but those of one."""
        most = -(-len(self.examples) // self.config.chunk_rows)
        for chunk in range(1, (most if chunks is None else chunks) + 1):
            if chunk != but:
                store.remove(self.state_job(chunk).key)

    def _read(self, contents: Contents) -> Fisher:
        summary: FisherScores = from_parts(contents.tables, contents.records["summary"])
        # The same weights and rows may have been called otherwise then.
        summary = replace(
            summary,
            checkpoint=self.checkpoint.spec,
            task=self.data.task.name,
            split=self.data.task.resolve(self.data.split),
        )
        return Fisher(summary, {n: torch.from_numpy(v) for n, v in contents.tensors.items()})


def _split(task: Task, split: str) -> str:
    """The split asked for; of a single file, which has one split, that one, with a warning."""
    found = find_split(task, split) if isinstance(task, Task) else split
    if found != split:
        warnings.warn(
            f"task {task.name!r} has the split {found!r} only, no {split!r}: the Fisher is of "
            "those rows",
            stacklevel=4,
        )
    return found


def _holds_sums(folder: Path) -> bool:
    return any(path.suffix == ".safetensors" for path in folder.rglob("*"))


def _held(store: ArtifactStore | None, key: str) -> Contents | None:
    """What a store holds, or None; another process may take it away while it is read."""
    if store is None or key not in store:
        return None
    try:
        return store.read(key)
    except StoreError:
        if key in store:
            raise
        return None


class _Run:
    """One pass over the rows: sums, and what is said of them chunk by chunk."""

    def __init__(self, study: FisherStudy, store: ArtifactStore | None) -> None:
        self.study, self.store, self.config = study, store, study.config
        config = study.config
        self.work = FisherPass(
            study.checkpoint, study.data, config, config.estimator, config.reduction
        )
        self.space: ParameterSpace = self.work.space
        count = len(self.space.names)
        self.moments = Moments(count + 1)
        self.halves = Halves(count, config.seed)
        self.traces = np.zeros(0)
        self.tokens = np.zeros(0, dtype=np.int64)
        self.stability: list[pd.DataFrame] = []
        self.cut = 0
        self.chunks = 0
        self.groups: dict[str, list[str | None]] = {
            "tensor": list(self.space.names),
            "sublayer": sublayers_of(self.work.model, self.space),
        }
        self._resume()

    def to_the_end(self, progress: bool) -> Fisher:
        """Go through the chunks that are left."""
        study, size = self.study, self.config.chunk_rows
        total = len(study.examples)
        done = len(self.traces)
        with track(total, "squaring gradients", "rows", done=done, enabled=progress) as report:
            while done < total and not self._stable():
                rows = range(done, min(done + size, total))
                data = self.work.prepare(study.examples.take(rows))
                self._add(data)
                done = len(self.traces)
                if done < total and not self._stable():
                    self._keep()
                report.advance(len(rows))
        self._warn()
        return self._collect()

    def _add(self, data: PreparedData) -> None:
        if not len(self.traces):
            self.work.check_padding(data)
        norms, tokens = self.work.add(data)
        terms = tokens if self.config.reduction == "token" else np.ones(len(tokens))
        self.moments.add(np.column_stack([norms, terms]))
        self.halves.add(norms, len(self.traces))
        self.traces = np.concatenate([self.traces, norms.sum(1)])
        self.tokens = np.concatenate([self.tokens, tokens])
        self.cut += data.truncated
        self.chunks += 1
        entries = np.array(self.space.sizes, dtype=float)
        found = self.halves.stability(self.groups, entries, len(self.traces))
        self.stability.append(found)

    def _stable(self) -> bool:
        """Whether the order was stable after two chunks in a row."""
        last = self.stability[-2:]
        return (
            self.config.stable is not None
            and len(last) == 2
            and all(len(t) and (t.correlation >= self.config.stable).all() for t in last)
        )

    def _warn(self) -> None:
        if self.cut:
            length = longest_input(self.work.tokenizer, self.work.model, self.config.max_length)
            warnings.warn(
                f"{self.study.data.name}: {self.cut} of {len(self.traces)} examples are longer "
                f"than {length} tokens and were cut",
                stacklevel=2,
            )

    # --- what is kept between chunks --------------------------------------------------------------

    def _keep(self) -> None:
        """Keep the sums in the place of those of the chunk before."""
        if self.store is None:
            return
        job = self.study.state_job(self.chunks)
        self.store.remove(job.key)
        tensors = {f"sum/{name}": total.cpu().numpy() for name, total in self.work.totals.items()}
        tensors |= {
            "mean": self.moments.mean,
            "products": self.moments.products,
            "halves": self.halves.sums,
            "traces": self.traces,
            "tokens": self.tokens,
        }
        tables = {"stability": pd.concat(self.stability, ignore_index=True)}
        lengths = [len(table) for table in self.stability]
        records = {"state": {"cut": self.cut, "alone": self.work.alone, "stability": lengths}}
        self.store.write(job.key, Contents(tensors, tables, records), job.provenance())
        self.study.forget(self.store, self.chunks, but=self.chunks)

    def _resume(self) -> None:
        """Go on after the last chunk that is kept."""
        study = self.study
        size = self.config.chunk_rows
        for chunk in range(-(-len(study.examples) // size), 0, -1):
            contents = _held(self.store, study.state_job(chunk).key)
            if contents is None:
                continue
            state = contents.records["state"]
            if tuple(state["alone"]) != self.work.alone:
                continue  # another version of a library: other sums
            for name, total in self.work.totals.items():
                total.copy_(torch.from_numpy(contents.tensors[f"sum/{name}"]))
            self.moments.mean = contents.tensors["mean"]
            self.moments.products = contents.tensors["products"]
            self.halves.sums = contents.tensors["halves"]
            self.traces, self.tokens = contents.tensors["traces"], contents.tensors["tokens"]
            self.moments.count = len(self.traces)
            table, start = contents.tables["stability"], 0
            for length in state["stability"]:
                part = table.iloc[start : start + length].reset_index(drop=True)
                self.stability.append(part)
                start += length
            self.cut, self.chunks = state["cut"], chunk
            return

    # --- the result -------------------------------------------------------------------------------

    def _collect(self) -> Fisher:
        study, space, config = self.study, self.space, self.config
        terms = int(self.tokens.sum()) if config.reduction == "token" else len(self.traces)
        diagonal = {}
        for name, total in self.work.totals.items():
            # In place: the sums become the result.
            diagonal[name] = total.div_(max(terms, 1)).cpu()
            if not bool(torch.isfinite(diagonal[name]).all()):
                raise NonFiniteError(
                    f"{study.checkpoint.spec}: the sum of squared gradients of tensor {name} is "
                    "not finite",
                    remedy="use dtype float32 or float64",
                )
        alone = set(self.work.alone)
        tensors = tensor_table(space, diagonal, self.groups["sublayer"])
        tensors["way"] = [ALONE if name in alone else CAPTURED for name in space.names]
        ids = study.examples.ids[: len(self.traces)]
        summary = FisherScores(
            checkpoint=study.checkpoint.spec,
            task=study.data.task.name,
            split=study.data.task.resolve(study.data.split),
            estimator=self._labels(),
            reduction=config.reduction,
            examples=len(self.traces),
            terms=terms,
            tensors=tensors,
            covariance=pd.DataFrame(self.moments.covariance(), columns=list(space.names)),
            traces=pd.DataFrame({"text_id": ids, "tokens": self.tokens, "trace": self.traces}),
            stability=pd.concat(self.stability, ignore_index=True),
            provenance={
                "weights": study.checkpoint.fingerprint,
                "examples": study.examples.fingerprint,
                "config": config.model_dump(mode="json"),
            },
        )
        return Fisher(summary, diagonal)

    def _labels(self) -> str:
        if self.config.estimator != "true":
            return self.config.estimator
        return f"true ({'exact' if self.work.exact else 'sampled'})"
