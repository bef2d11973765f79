"""A `Connection` from lines that were not walked here.

A log says what was measured at every point of a line and nothing about single examples. So
everything that is a function of the mean curve is computed (barriers, convexity gaps, basins,
statistics between basins), and intervals are NaN: they need the losses of single examples.
Per-sample files of the models add their metrics, and how alike two of them answer.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd
from pydantic import Field

from landform.config import Config, nearest
from landform.errors import ConfigError, DataError
from landform.evaluation.evaluate import Evaluation
from landform.exchange.evaluations import endpoint_table
from landform.exchange.lines import Line, merge_lines, natural_order
from landform.geometry.basins import DEFAULT_FLOOR, Clustering, cluster
from landform.geometry.curves import (
    area_under_curve,
    barrier_height,
    bump_height,
    convexity_gap,
)
from landform.geometry.line import SUMMARY_FIELDS
from landform.geometry.similarity import error_agreement, functional_similarity, js_distance
from landform.geometry.statistics import basin_summary, basin_table
from landform.studies.connect import Connection

__all__ = ["ImportConfig", "connection_of"]


class ImportConfig(Config):
    """How lines of other programs become a connection."""

    noise_floor: float = Field(DEFAULT_FLOOR, ge=0, allow_inf_nan=False)
    """Gap that counts as zero, in nats: curves without losses of single examples do not tell how
    large a gap noise alone makes."""
    tolerance: float = Field(1.5e-4, ge=0, allow_inf_nan=False)
    """How far two values of one model on one data set may differ (default: one unit in the last
    of the four decimals of a text log, and rounding)."""
    basins: int | None = Field(None, ge=1)
    """Number of basins (default: chosen by the data)."""
    affinity_scale: float | None = Field(None, gt=0)
    """Scale s of the affinity exp(-gap^2 / 2 s^2), in nats (default: chosen by the data)."""
    compat: Literal["connectivity"] | None = None
    """'connectivity' repeats the fixed choices of Juneja et al. 2023: scale 1 nat, two basins."""
    ood: tuple[str, ...] = ()
    """Columns of the endpoint table to compare between basins (default: the headline metric of
    every further data set and of its subsets)."""
    in_domain: str | None = None
    """The column beside them as the confound (default: the first data set's headline metric)."""
    replicates: int = Field(1000, ge=20)
    """Bootstrap replicates over checkpoints in the statistics between basins."""
    level: float = Field(0.95, gt=0, lt=1)
    """Coverage of their intervals."""
    seed: int = Field(0, ge=0)
    """Seed of the resampling and of k-means."""


def connection_of(
    lines: Sequence[Line],
    *,
    evaluations: Sequence[Mapping[str, Evaluation]] = (),
    endpoints: pd.DataFrame | None = None,
    config: ImportConfig | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> Connection:
    """A `Connection` from walked lines, as far as they tell.

    The first line's data set makes the basins, where every pair of its models was walked.
    `evaluations` of the same models, by name and one mapping for each data set (see
    `read_evaluations`), add their metrics to the endpoints' own; of a data set that was walked,
    they tell how alike two models answer. `endpoints` (name x `data/metric`) adds other columns.
    Intervals are NaN; `noise_floor` is that of the config, and the provenance says so.
    """
    options = config or ImportConfig()
    merged = merge_lines(lines, options.tolerance)
    if not merged:
        raise DataError("every line joins a model with itself", remedy="pairs of two models")
    data = tuple(dict.fromkeys(line.data for line in merged))
    used = {name for line in merged for name in (line.a, line.b)}
    names = tuple(natural_order(list(used)))
    curves = pd.DataFrame([row for line in merged for row in _curve_rows(line)])
    table = _endpoints(merged, names, data)
    for further in (
        *map(endpoint_table, evaluations),
        *(() if endpoints is None else (endpoints,)),
    ):
        table = _joined(table, further)
    points = len(merged[0].t)
    connection = Connection(
        names=names,
        data=data,
        kind="classification",
        curves=curves,
        pairs=_pairs(merged, evaluations, options.noise_floor),
        clustering=None,
        endpoints=table,
        statistics=None,
        basin_metrics=None,
        evaluations=len(names) + sum(line.data == data[0] for line in merged) * (points - 2),
        provenance={
            **(provenance or {}),
            "imported": sorted({line.origin.rpartition(":")[0] or line.origin for line in merged}),
            "noise_floor": "assumed: the files hold no losses of single examples",
            "config": options.model_dump(mode="json"),
        },
    )
    return _with_basins(connection, options)


def _curve_rows(line: Line) -> list[dict[str, Any]]:
    head = {"data": line.data, "a": line.a, "b": line.b}
    unknown = {"loss_low": float("nan"), "loss_high": float("nan")}
    return [
        {**head, "t": float(t), "loss": float(row[0]), **unknown}
        | {name: float(value) for name, value in zip(line.metrics, row[1:], strict=True)}
        for t, row in zip(line.t, line.values, strict=True)
    ]


def _pair_row(line: Line, noise_floor: float) -> dict[str, Any]:
    losses = line.values[:, 0]
    found = {
        "barrier_height": barrier_height(losses, t=line.t),
        "convexity_gap": convexity_gap(losses, t=line.t),
        "area_under_curve": area_under_curve(losses, line.distance, t=line.t),
        "bump_height": bump_height(losses, t=line.t),
        "noise_floor": noise_floor,
    }
    return {"data": line.data, "a": line.a, "b": line.b, "distance": line.distance} | {
        name: float(found.get(name, float("nan"))) for name in SUMMARY_FIELDS
    }


def _pairs(
    lines: Sequence[Line], evaluations: Sequence[Mapping[str, Evaluation]], noise_floor: float
) -> pd.DataFrame:
    """A row per line: barrier, gap, and what the evaluations of its ends say."""
    pairs = pd.DataFrame([_pair_row(line, noise_floor) for line in lines])
    by_data = {}
    for found in evaluations:
        first = next(iter(found.values()))
        by_data[first.task] = by_data[f"{first.task}:{first.split}"] = _alike(found)
    rows = [
        [_cell(table, a, b) for table in by_data.get(data, dict.fromkeys(_MEASURES)).values()]
        for data, a, b in pairs[["data", "a", "b"]].itertuples(index=False)
    ]
    return pd.concat([pairs, pd.DataFrame(rows, columns=list(_MEASURES))], axis=1)


_MEASURES = ("error_agreement", "functional_similarity", "js_distance")


def _alike(evaluations: Mapping[str, Evaluation]) -> dict[str, pd.DataFrame | None]:
    """The function-space measures of all pairs of models, name x name."""
    logs = [evaluation.log for evaluation in evaluations.values()]
    classes = next(iter(evaluations.values())).label_names
    columns = [f"logit_{j}" for j in range(len(classes))]
    logits = np.stack([log[columns].to_numpy(dtype=np.float64) for log in logs])
    labels = logs[0]["label"].map({name: j for j, name in enumerate(classes)}).to_numpy()
    values = (error_agreement(logits, labels), functional_similarity(logits), js_distance(logits))
    names = list(evaluations)
    return {
        measure: pd.DataFrame(value, index=names, columns=names)
        for measure, value in zip(_MEASURES, values, strict=True)
    }


def _cell(table: pd.DataFrame | None, a: str, b: str) -> float:
    if table is None or a not in table.index or b not in table.index:
        return float("nan")
    return float(table.to_numpy()[table.index.get_loc(a), table.columns.get_loc(b)])


def _endpoints(lines: Sequence[Line], names: Sequence[str], data: Sequence[str]) -> pd.DataFrame:
    """Loss and metrics of every model where its lines end; NaN where none does."""
    table = pd.DataFrame(index=list(names))
    for name in data:
        chosen = [line for line in lines if line.data == name]
        for column, metric in enumerate(("loss", *chosen[0].metrics)):
            ends: dict[str, float] = {}
            for line in chosen:
                ends.setdefault(line.a, float(line.values[0, column]))
                ends.setdefault(line.b, float(line.values[-1, column]))
            table[f"{name}/{metric}"] = pd.Series(ends).reindex(list(names))
    return table


def _joined(table: pd.DataFrame, endpoints: pd.DataFrame) -> pd.DataFrame:
    absent = [name for name in table.index if name not in endpoints.index]
    if absent:
        raise DataError(
            f"no per-sample file for model {absent[0]!r} of the lines "
            f"({len(absent)} of {len(table)} models have none)",
            remedy=f"the files are of: {', '.join(map(str, endpoints.index[:8]))}",
        )
    both = [column for column in endpoints.columns if column in table]
    # The files hold every digit and all examples: where both tell, they are the better source.
    return pd.concat([table.drop(columns=both), endpoints.loc[list(table.index)]], axis=1)


def _with_basins(connection: Connection, options: ImportConfig) -> Connection:
    """The connection with basins and their statistics, where all pairs were walked."""
    ood, in_domain = _columns(connection, options)
    gaps = connection.gaps
    if gaps.isna().to_numpy().any() or len(gaps) < 2:
        return connection
    clustering: Clustering = cluster(
        gaps,
        n_basins=options.basins,
        scale="auto" if options.affinity_scale is None else options.affinity_scale,
        noise_floor=options.noise_floor,
        compat=options.compat == "connectivity",
        seed=options.seed,
    )
    statistics = None
    if clustering.n_basins > 1:
        statistics = basin_table(
            clustering.basins,
            connection.endpoints,
            ood=ood,
            in_domain=in_domain,
            centroid_difference=clustering.centroid_difference,
            replicates=options.replicates,
            seed=options.seed,
            level=options.level,
        )
    return dataclasses.replace(
        connection,
        clustering=clustering,
        statistics=statistics,
        basin_metrics=basin_summary(clustering.basins, connection.endpoints),
    )


def _columns(connection: Connection, options: ImportConfig) -> tuple[tuple[str, ...], str]:
    """The OOD columns and the in-domain one: as asked, or by default."""
    known = [str(column) for column in connection.endpoints.columns]
    for column in (*options.ood, *((options.in_domain,) if options.in_domain else ())):
        if column not in known:
            guess = nearest(column, known)
            raise ConfigError(
                f"option ood/in_domain: there is no endpoint metric {column!r}",
                remedy=(f"did you mean {guess!r}? " if guess else "")
                + f"Known: {', '.join(known[:12])}",
            )
    heads: dict[str, str] = {}  # data set or data set and subset -> its first metric but the loss
    for column in known:
        place, _, metric = column.rpartition("/")
        if metric != "loss":
            heads.setdefault(place, column)
    first = connection.data[0]
    in_domain = options.in_domain or heads.get(first, f"{first}/loss")
    ood = options.ood or tuple(column for column in heads.values() if column != in_domain)
    return ood, in_domain
