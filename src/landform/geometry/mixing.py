"""Mixing weights of their own for groups of tensors between two checkpoints.

With groups g of the tensors and one number a_g for each,

    p(a)_g = sigma(a_g) A_g + (1 - sigma(a_g)) B_g,        sigma(x) = 1 / (1 + exp(-x))

a is fitted so that the mixed model has a low training loss, A and B stay (Qin et al. 2022 look for
such a mix of two fine-tunes). Along the line all groups have one weight; here every layer has its
own, so this is a search in a box around the line and not a path.

    dL/da_g = sigma'(a_g) < (dL/dp)_g, A_g - B_g >

is all that is needed of the model: it is moved, and no graph runs through the mixing.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, NamedTuple, Self

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from pydantic import Field as Option
from pydantic import field_validator, model_validator
from torch import Tensor

from landform.errors import StoreError
from landform.evaluation.data import as_data_or_only, data_sets
from landform.evaluation.evaluate import headline
from landform.evaluation.field import Field
from landform.evaluation.points import Data, PointsConfig, PointsWork, PointsWorker, unpack
from landform.geometry.compared import metric_row, paired_differences
from landform.geometry.descent import FitWork, check_apart, history_table, run_fit
from landform.geometry.fitted import check_target, save_point
from landform.geometry.fitting import ONLY_ROWS, SAME_ROWS
from landform.geometry.loop import Loop, LoopConfig, LossField, SelectConfig, seed_of
from landform.results import Result
from landform.store.artifacts import ArtifactStore, Contents
from landform.store.engines import run_plan
from landform.store.plan import Forecast, Job, Plan
from landform.store.study import open_store, slug
from landform.tasks.metrics import best_of, get_metric, mean_loss
from landform.tasks.task import Task, loss_unit
from landform.weights.checkpoint import (
    Checkpoint,
    CheckpointLike,
    LoadConfig,
    load_model,
    resolve,
    short_names,
)
from landform.weights.points import Vertex
from landform.weights.space import ParameterSpace

__all__ = ["GroupName", "MixConfig", "MixStudy", "MixingFit", "MixingLoop", "fit_mixing"]

Floats = npt.NDArray[np.float64]
GroupName = Literal["tensor", "sublayer", "layer", "block"]
Spans = Sequence[tuple[int, int]]

PLM = {
    "init_std": 10.0,
    "optimizer": "adafactor",
    "learning_rates": (0.1, 0.05),
    "schedule": "constant",
    "warmup_ratio": 0.0,
    "dropout": True,
    "keep": "best",
    "select_by": "metric",
}
"""How Qin et al. 2022 fit them."""
_MODELS = ("mix", "a", "b", "even", "line")


class MixConfig(SelectConfig, LoopConfig):
    """How mixing weights are fitted and the mix is evaluated."""

    groups: GroupName = "layer"
    """What has a weight of its own: every tensor, sublayer (a module: weight and bias), layer of
    the model, or block (attention, cross-attention, feed-forward) of a layer; what lies outside of
    the layers (embeddings, head) is a group in each."""
    init_std: float = Option(0.0, ge=0, allow_inf_nan=False)
    """Standard deviation of the first a, drawn under the seed (0: the even mix)."""
    learning_rate: float = Option(0.1, gt=0, allow_inf_nan=False)
    """Highest learning rate, reached after the warm-up."""
    learning_rates: tuple[float, ...] = ()
    """Fit once with each of these, and keep the fit that is best on `select_split`."""
    keep: Literal["last", "best"] = "last"
    """The weights to keep: the last, or the best on `select_split`, looked at every SAVE_EVERY
    steps."""
    compat: Literal["plm"] | None = None
    """plm: as the code of Qin et al. 2022 does it; a starts at N(0, 10^2), Adafactor at a constant
    learning rate, 0.1 and 0.05, dropout, the weights kept that are best by the metric. Options that
    are given stay."""
    points: int = Option(11, ge=2)
    """Points of the line that the mix is compared with."""
    eval_rows: int | None = Option(None, ge=1)
    """Use only the first EVAL_ROWS examples of each data set that is evaluated (default: all)."""

    @field_validator("learning_rates")
    @classmethod
    def _distinct(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if any(not 0 < rate < math.inf for rate in value) or len(set(value)) < len(value):
            raise ValueError("learning rates are positive, each once")
        return value

    @model_validator(mode="after")
    def _read_options(self) -> Self:
        one = self.learning_rate in self.rates  # that of one of the fits
        self.check_read(one, ["learning_rate"], "beside learning_rates")
        chosen = self.compat is not None or self.keep == "best" or len(self.rates) > 1
        names = ["select_split", "select_by"]
        self.check_read(chosen, names, "without keep best or several learning_rates")
        return self

    @property
    def rates(self) -> tuple[float, ...]:
        """The learning rates of the fits."""
        return self.learning_rates or (self.learning_rate,)

    def settled(self) -> Self:
        """With what `compat` stands for, where nothing else was given."""
        if self.compat is None:
            return self
        given = self.options_written()
        if "learning_rate" in given:
            given.setdefault("learning_rates", ())
        return self.parse({**PLM, **given})


# --- the fit ------------------------------------------------------------------------------------


def group_spans(space: ParameterSpace, groups: GroupName) -> dict[str, list[tuple[int, int]]]:
    """Where the groups of a kind lie in the flat vector."""
    return {
        name: space.spans({region.name for region in regions})
        for name, regions in space.groups(groups).items()
    }


def mix_groups(out: Tensor, a: Tensor, b: Tensor, where: Sequence[Spans], shares: Floats) -> None:
    """out <- shares[g] a + (1 - shares[g]) b on the spans of every group g."""
    with torch.no_grad():
        for share, group in zip(shares, where, strict=True):
            for start, stop in group:
                torch.lerp(b[start:stop], a[start:stop], float(share), out=out[start:stop])


class MixingLoop(Loop):
    """Fits a: `free`, (groups,), float64."""

    config: MixConfig

    def __init__(
        self,
        landscape: LossField,
        ends: Sequence[Tensor],
        where: Sequence[Spans],
        config: MixConfig,
    ) -> None:
        super().__init__(landscape, config)
        self.ends, self.where = ends, where
        self.difference = ends[0] - ends[1]
        self.free = torch.zeros(len(where), dtype=torch.float64, device=landscape.flat.device)

    @property
    def shares(self) -> Floats:
        """sigma(a), the share of the first end in every group."""
        return np.asarray(torch.sigmoid(self.free).cpu().numpy(), dtype=np.float64)

    def place(self, stage: int) -> None:
        """a ~ N(0, init_std^2)."""
        generator = torch.Generator().manual_seed(seed_of(self.config.seed, "mix"))
        drawn = torch.randn(len(self.free), generator=generator, dtype=torch.float64)
        self.free.copy_(self.config.init_std * drawn)

    def move(self) -> None:
        """Go to the mix."""
        mix_groups(self.landscape.flat, self.ends[0], self.ends[1], self.where, self.shares)

    def collect(self, number: int, stage: int, gradient: Tensor) -> float:
        """sigma'(a_g) < (dL/dp)_g, A_g - B_g >, a batch's share of it."""
        share = 1.0 / self.config.accumulation
        self.move()
        loss, slope = self.landscape.gradient(self.landscape.batches(self.rows(number)))
        along = [
            sum(
                float(torch.dot(slope[start:stop], self.difference[start:stop]))
                for start, stop in group
            )
            for group in self.where
        ]
        sigma = torch.sigmoid(self.free)
        slopes = torch.tensor(along, dtype=torch.float64).to(gradient)
        gradient += share * sigma * (1.0 - sigma) * slopes
        return share * loss

    def visit(self) -> Iterator[None]:
        """The mix itself."""
        self.move()
        yield


@dataclass(frozen=True)
class MixShape:
    """What is fitted, for the fingerprint of the fit."""

    groups: GroupName
    stages: int = 1


@dataclass(frozen=True, eq=False)
class MixWork(FitWork):
    """The fit of mixing weights at one learning rate, before it runs."""

    @property
    def unread(self) -> frozenset[str]:
        """Options that decide no number of the fit."""
        return frozenset({"learning_rates", "points", "eval_rows", "groups", "keep", "compat"})

    def loop(self, opened: PointsWorker) -> MixingLoop:
        """The fit, before its first step."""
        ends = [opened.point(checkpoint.fingerprint) for checkpoint in self.checkpoints]
        check_apart(self.checkpoints, ends)
        where = group_spans(opened.space, self.shape.groups)
        field = Field(opened, 0, dropout=self.config.dropout)
        return MixingLoop(field, ends, list(where.values()), self.config)


# --- what comes out -----------------------------------------------------------------------------


@dataclass(frozen=True)
class MixingFit(Result):
    """How much of checkpoint `a` every group of tensors has in a good mix of `a` and `b`."""

    a: str
    b: str
    groups: str
    """the kind of the groups"""
    task_kind: str
    table: pd.DataFrame
    """one row per group: group, layer, part, weight (the share of a, sigma(a_g)), logit (a_g),
    entries (parameters), distance (|| A_g - B_g ||)"""
    history: pd.DataFrame
    """columns step, loss, learning_rate"""
    rates: pd.DataFrame
    """one row per learning rate: learning_rate, step (whose weights were kept), value (on the split
    of the choice, by the metric of the choice; NaN where there was no choice), chosen"""
    evaluation: pd.DataFrame
    """columns data, model (mix, a, b, even: the mean of both, line: the best point of the line), t
    (share of b on the line), loss, loss_low, loss_high, and the same three for every metric"""
    comparison: pd.DataFrame
    """columns data, quantity (loss, and the first metric of the task), against, difference (the
    mix's value minus the other's), low, high: paired bootstrap over examples"""
    provenance: dict[str, Any]

    @property
    def weights(self) -> dict[str, float]:
        """The share of `a` in every group."""
        return dict(zip(self.table["group"], self.table["weight"].astype(float), strict=True))

    def _against(self, model: str) -> Any:
        rows = self.comparison[self.comparison["data"] == self.comparison["data"].iloc[0]]
        return rows[(rows["quantity"] == "loss") & (rows["against"] == model)].iloc[0]

    @property
    def reading(self) -> str:
        """One line for a person."""
        first = self.evaluation[self.evaluation["data"] == self.evaluation["data"].iloc[0]]
        rows = first.set_index("model")
        low, high = self.table["weight"].min(), self.table["weight"].max()
        line = self._against("line")
        if line.high < 0:
            verdict = "lower than anywhere on the line"
        elif line.low > 0:
            verdict = "higher than at the best point of the line"
        else:
            verdict = "not told from the best point of the line"
        mix = rows.loc["mix"]
        text = (
            f"mix of {self.a} and {self.b} by {self.groups} ({len(self.table)} weights of "
            f"{self.a}, {low:.3g} to {high:.3g}): loss {mix.loss:.4g} [{mix.loss_low:.4g}, "
            f"{mix.loss_high:.4g}] {loss_unit(self.task_kind)} on {mix['data']}, {verdict} "
            f"(t = {rows.loc['line'].t:.3g}: {rows.loc['line'].loss:.4g}, difference "
            f"{line.difference:.4g} [{line.low:.4g}, {line.high:.4g}]); the ends "
            f"{rows.loc['a'].loss:.4g} and {rows.loc['b'].loss:.4g}"
        )
        chosen = self.provenance["chosen_on"]
        return f"{text}; chosen on the same rows" if chosen == mix["data"] else text

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        names = ("a", "b", "groups", "task_kind", "weights", "provenance")
        tables = ("table", "history", "rates", "evaluation", "comparison")
        return {
            **{name: getattr(self, name) for name in names},
            **{name: getattr(self, name).to_dict("records") for name in tables},
        }

    def checkpoint(self, directory: str | os.PathLike[str], **options: Any) -> Checkpoint:
        """Write the mixed model as a checkpoint: config and tokenizer are those of `a`.

        Options are the fields of `LoadConfig`. Raises `ConfigError` for a directory that holds
        other things, and `StoreError` where the checkpoints have other weights now.
        """
        kept = self.provenance["config"]
        load = LoadConfig.parse({**{n: kept[n] for n in LoadConfig.model_fields}, **options})
        target = check_target(directory, "config.json")
        ends = [resolve(name) for name in (self.a, self.b)]
        for end, weights in zip(ends, self.provenance["weights"], strict=True):
            if end.fingerprint != weights:
                raise StoreError(
                    f"{end.spec} has other weights than when it was mixed", remedy="fit it again"
                )
        groups: Any = self.groups
        loaded = _Ends.of(ends, self.task_kind, load)
        values = loaded.mix(groups, self.table["logit"].to_numpy(dtype=np.float64))
        loaded.space.bind(loaded.model).move_to(values)
        return save_point(loaded.model, ends[0], target)


@dataclass(frozen=True, eq=False)
class _Ends:
    """Two checkpoints in memory."""

    model: Any
    space: ParameterSpace
    here: Tensor
    there: Tensor

    @classmethod
    def of(cls, ends: Sequence[Checkpoint], task_kind: str, load: LoadConfig) -> Self:
        """The first one stays as a model."""
        model: Any = load_model(ends[0], task_kind, load)
        space = ParameterSpace.of(model)
        other = load_model(ends[1], task_kind, load)
        return cls(model, space, space.flatten(model), space.flatten(other))

    def mix(self, groups: GroupName, logits: Floats) -> Tensor:
        """The mixed point."""
        out, shares = torch.empty_like(self.here), torch.sigmoid(torch.tensor(logits)).numpy()
        where = list(group_spans(self.space, groups).values())
        mix_groups(out, self.here, self.there, where, shares)
        return out


def fit_mixing(
    a: CheckpointLike,
    b: CheckpointLike,
    task: Task | Data | tuple[Task, str],
    *,
    split: str = "train",
    eval_split: str = "validation",
    also: Sequence[Task | Data | tuple[Task, str]] = (),
    store: str | os.PathLike[str] | ArtifactStore | None = None,
    progress: bool = False,
    **options: Any,
) -> MixingFit:
    """Fit one mixing weight for every group of tensors of two checkpoints, and evaluate the mix.

        min over a of  E L( sigma(a_g) A_g + (1 - sigma(a_g)) B_g )

    over batches of `split`; on `eval_split`, and on `also`, the mix is put beside both ends, their
    even mix, and the point of the line between them that is best on these very rows, which favours
    the line. Options are the fields of `MixConfig`. With a `store` a fit that was stopped goes on
    where it was. Raises `ConfigError` for two ends with the same weights, `SpaceMismatchError` for
    models that cannot be mixed, `NonFiniteError` where the loss is no number.
    """
    study = MixStudy.of(a, b, task, split=split, eval_split=eval_split, also=also, options=options)
    return study.run(store, progress=progress)


class _Made(NamedTuple):
    """What the fits came to."""

    best: int
    """number of the fit that is kept"""
    rates: pd.DataFrame
    mix: Vertex
    table: pd.DataFrame


@dataclass(frozen=True, eq=False)
class MixStudy:
    """A mix of two checkpoints, before anything is loaded."""

    fits: tuple[MixWork, ...]
    """one per learning rate"""
    data: tuple[Data, ...]
    """what it is evaluated on"""
    config: MixConfig

    @classmethod
    def of(
        cls,
        a: CheckpointLike,
        b: CheckpointLike,
        task: Task | Data | tuple[Task, str],
        *,
        split: str = "train",
        eval_split: str = "validation",
        also: Sequence[Task | Data | tuple[Task, str]] = (),
        options: Mapping[str, Any],
    ) -> Self:
        """Raises for options, checkpoints and splits that are not there."""
        config = MixConfig.parse(options, where="mix").settled()
        ends = resolve(a), resolve(b)
        fitted = as_data_or_only(task, split, SAME_ROWS)
        first = as_data_or_only(fitted.task, eval_split, ONLY_ROWS)
        chosen = config.keep == "best" or len(config.rates) > 1
        select = Data(fitted.task, config.select_split) if chosen else None
        if select is not None:
            select.task.resolve(select.split)
        fits = tuple(
            MixWork(
                ends,
                fitted,
                MixShape(config.groups),
                config.replace(learning_rate=rate),
                f"mix {ends[0].spec} + {ends[1].spec}",
                select,
                select_by=config.select_by,
                keep_last=config.keep == "last",
            )
            for rate in config.rates
        )
        return cls(fits, data_sets(first, eval_split, also), config)

    @property
    def ends(self) -> tuple[Checkpoint, ...]:
        """The two checkpoints."""
        return self.fits[0].checkpoints

    @property
    def name(self) -> str:
        """What its result is called in a study."""
        names, first = short_names(self.ends), self.data[0]
        return slug("mix", self.config.groups, *names, first.task.name, first.split)

    @cached_property
    def evaluated(self) -> PointsConfig:
        """How the models are evaluated."""
        names = (name for name in PointsConfig.model_fields if name != "rows")
        return PointsConfig.parse(
            {**{name: getattr(self.config, name) for name in names}, "rows": self.config.eval_rows}
        )

    @property
    def ts(self) -> list[float]:
        """Inner points of the line, its middle among them."""
        grid = np.arange(1, self.config.points - 1) / (self.config.points - 1)
        return sorted({0.5, *grid.tolist()})

    def _controls(self, work: PointsWork) -> tuple[Job, Job, Job]:
        return work.point_job(0), work.point_job(1), work.line_job(0, 1, self.ts)

    def forecast(self, store: ArtifactStore) -> tuple[Forecast, ...]:
        """Steps of the fits, and evaluations after them."""
        keys = [fit.final.key for fit in self.fits]
        if all(key in store for key in keys):
            made = self._mixed([store.read(key) for key in keys])
            work = PointsWork(self.ends, self.data, self.evaluated, (made.mix,))
            mix = work.point_job(2)
        else:  # not known yet: its job is only stood for
            work = PointsWork(self.ends, self.data, self.evaluated)
            mix = Job("mix", {"of": keys}, cost=1.0, label="mix")
        plan = Plan((*self._controls(work), mix))
        return (*(fit.forecast(store) for fit in self.fits), work.forecast(plan, store))

    def run(
        self, store: str | os.PathLike[str] | ArtifactStore | None, *, progress: bool = False
    ) -> MixingFit:
        """Fit and evaluate what is missing."""
        kept = open_store(store)
        found = [run_fit(fit, kept, progress=progress) for fit in self.fits]
        made = self._mixed(found)
        evaluation, comparison = self._evaluate(made.mix, kept, progress)
        columns = {name: name for name in ("step", "loss", "learning_rate")}
        select = self.fits[0].select
        return MixingFit(
            a=self.ends[0].spec,
            b=self.ends[1].spec,
            groups=self.config.groups,
            task_kind=self.fits[0].data.task.kind,
            table=made.table,
            history=history_table(found[made.best], columns),
            rates=made.rates,
            evaluation=evaluation,
            comparison=comparison,
            provenance={
                "weights": [end.fingerprint for end in self.ends],
                "data": self.fits[0].data.name,
                "chosen_on": None if select is None else select.name,
                "config": self.config.model_dump(mode="json"),
            },
        )

    def _mixed(self, found: Sequence[Contents]) -> _Made:
        """The mix that the fits came to."""
        rates, best = self._chosen(found)
        logits = np.array(found[best].tensors["free"], dtype=np.float64)
        loaded = _Ends.of(self.ends, self.fits[0].data.task.kind, self.config)
        groups = self.config.groups
        mix = Vertex(self.fits[0].label, loaded.space, loaded.mix(groups, logits))
        return _Made(best, rates, mix, _group_table(loaded, groups, logits))

    def _chosen(self, found: Sequence[Contents]) -> tuple[pd.DataFrame, int]:
        """(the learning rates, the number of the fit to keep)."""
        values = [
            math.nan if fit.records["best"] is None else float(fit.records["best"]["value"])
            for fit in found
        ]
        best = 0
        if len(values) > 1:
            by_loss = self.config.select_by == "loss"
            name = "loss" if by_loss else headline(self.fits[0].data.task)
            best = best_of(values, higher=get_metric(name).higher_is_better)
        rows = []
        for number, (rate, fit) in enumerate(zip(self.config.rates, found, strict=True)):
            best_step = fit.records["best"]
            step = self.config.steps if best_step is None else int(best_step["step"])
            row = {"learning_rate": rate, "step": step, "value": values[number]}
            rows.append({**row, "chosen": number == best})
        return pd.DataFrame(rows), best

    def _evaluate(
        self, mix: Vertex, store: ArtifactStore, progress: bool
    ) -> tuple[pd.DataFrame, pd.DataFrame]:
        """(evaluation, comparison) on every data set."""
        config = self.evaluated
        work = PointsWork(self.ends, self.data, config, (mix,))
        jobs = (*self._controls(work), work.point_job(2))
        run_plan(Plan(jobs), work, store, progress=progress, description="mixes")
        contents = [store.read(job.key) for job in jobs]
        tables: list[dict[str, Any]] = []
        differences: list[dict[str, Any]] = []
        for d, data in enumerate(self.data):
            examples, kind = data.examples(config.rows), data.task.kind
            (a,), (b,), inner, (mixed,) = (unpack(one, d, examples, kind) for one in contents)
            ts = [0.0, *self.ts, 1.0]
            line = [a, *inner, b]
            best = best_of([mean_loss(point) for point in line], higher=False)
            models = {
                "mix": (math.nan, mixed),
                "a": (0.0, a),
                "b": (1.0, b),
                "even": (0.5, line[ts.index(0.5)]),
                "line": (ts[best], line[best]),
            }
            for name in _MODELS:
                row = metric_row(*models[name], data, config)
                tables.append({"data": data.name, "model": name, **row})
            predictions = {name: models[name][1] for name in _MODELS}
            pairs = [("mix", other) for other in _MODELS[1:]]
            differences += paired_differences(data, predictions, pairs, config)
        return pd.DataFrame(tables), pd.DataFrame(differences).drop(columns="model")


def _group_table(loaded: _Ends, kind: GroupName, logits: Floats) -> pd.DataFrame:
    """The groups and their weights."""
    space = loaded.space
    away = loaded.here.double() - loaded.there.double()
    home = {r.name: layer for layer, regions in space.groups("layer").items() for r in regions}
    groups = space.groups(kind)
    rows = []
    for (name, where), logit in zip(group_spans(space, kind).items(), logits, strict=True):
        layer = home[groups[name][0].name]
        square = sum(float(away[start:stop].square().sum()) for start, stop in where)
        row: dict[str, Any] = {"group": name, "layer": layer}
        row |= {"part": name.removeprefix(f"{layer}.") if name != layer else ""}
        row |= {"weight": float(torch.sigmoid(torch.tensor(logit))), "logit": float(logit)}
        row |= {"entries": sum(stop - start for start, stop in where)}
        rows.append({**row, "distance": math.sqrt(square)})
    return pd.DataFrame(rows)
