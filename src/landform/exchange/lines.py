"""Lines that somebody else walked: checked against each other, and made a `Connection`.

A log says what was measured at every point of a line and nothing about single examples. So
everything that is a function of the mean curve is computed here (barriers, convexity gaps, basins,
statistics between basins), and intervals are NaN: they need the losses of single examples.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pydantic import Field

from landform.config import Config, nearest
from landform.errors import ConfigError, DataError, NonFiniteError
from landform.geometry.basins import DEFAULT_FLOOR, Clustering, cluster
from landform.geometry.curves import (
    area_under_curve,
    barrier_height,
    bump_height,
    convexity_gap,
)
from landform.geometry.line import SUMMARY_FIELDS
from landform.geometry.statistics import basin_summary, basin_table
from landform.studies.connect import Connection

__all__ = [
    "ImportConfig",
    "Line",
    "connection_of",
    "lines_of",
    "merge_lines",
    "natural_order",
]

Floats = NDArray[np.float64]


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


@dataclass(frozen=True, eq=False)
class Line:
    """One walked line from `a` (t = 0) to `b` (t = 1) on one data set."""

    a: str
    b: str
    data: str
    distance: float
    """|| a - b ||"""
    metrics: tuple[str, ...]
    """names of the columns of `values` after the loss"""
    t: Floats
    """(P,) rising from 0 to 1"""
    values: Floats
    """(P, 1 + metrics): the loss in nats, then the metrics"""
    origin: str
    """file, and line where there is one: for messages"""

    def reversed(self) -> Line:
        """The same line from `b` to `a`."""
        flipped = 1.0 - self.t[::-1]
        return dataclasses.replace(self, a=self.b, b=self.a, t=flipped, values=self.values[::-1])


def natural_order(names: Sequence[str]) -> list[str]:
    """Names with the numbers in them in numerical order: 2 before 10."""

    def key(name: str) -> list[tuple[int, int | str]]:
        return [(0, int(p)) if p.isdigit() else (1, p) for p in re.split(r"(\d+)", name) if p]

    return sorted(names, key=key)


# --- checks --------------------------------------------------------------------------------------


def merge_lines(lines: Sequence[Line], tolerance: float) -> list[Line]:
    """The lines, each pair once per data set, after a look at everything that was said twice.

    A pair that is given again, or from the other end, must say the same, and so must every line
    about a model that it shares with another one; otherwise a `DataError` names both places.
    """
    if not lines:
        raise DataError("there are no lines", remedy="name the folder that holds the logs")
    kept: dict[tuple[str, str, str], Line] = {}
    ends: dict[tuple[str, str], tuple[str, Floats]] = {}
    columns: dict[str, Line] = {}
    for line in lines:
        _check_line(line)
        if line.a == line.b:  # the diagonal, which some programs write
            continue
        first = columns.setdefault(line.data, line)
        _check_columns(first, line)
        before = kept.get((line.data, line.a, line.b))
        mirrored = kept.get((line.data, line.b, line.a))
        if before is None and mirrored is None:
            kept[line.data, line.a, line.b] = line
        else:
            _check_repeat(before or mirrored.reversed(), line, tolerance)  # type: ignore[union-attr]
        for name, values in ((line.a, line.values[0]), (line.b, line.values[-1])):
            origin, known = ends.setdefault((line.data, name), (line.origin, values))
            _check_end(name, first, (origin, known), (line.origin, values), tolerance)
    return list(kept.values())


def _check_line(line: Line) -> None:
    if not np.isfinite(line.values).all():
        point, column = (int(i) for i in np.argwhere(~np.isfinite(line.values))[0])
        what = ("loss", *line.metrics)[column]
        raise NonFiniteError(
            f"{line.origin}: the {what} at t = {line.t[point]:.4g} between {line.a} and {line.b} "
            f"is {line.values[point, column]}",
            remedy="look for overflow in the run that wrote it; remove the line to go on without",
        )
    if not np.isfinite(line.distance) or line.distance < 0:
        raise NonFiniteError(f"{line.origin}: the distance is {line.distance}")
    ends = abs(line.t[0]) < 1e-6 and abs(line.t[-1] - 1) < 1e-6
    if len(line.t) < 2 or not ends or any(a >= b for a, b in pairwise(line.t)):
        raise DataError(
            f"{line.origin}: the points between {line.a} and {line.b} do not go from one model to "
            f"the other: t = {', '.join(f'{t:.4g}' for t in line.t)}",
            remedy="the log is cut short, or a point of it is missing: walk this line again",
        )


def _check_columns(first: Line, line: Line) -> None:
    if line.metrics != first.metrics:
        raise DataError(
            f"{line.origin} has the metrics {', '.join(line.metrics) or 'none'}, {first.origin} "
            f"has {', '.join(first.metrics) or 'none'}",
            remedy="read logs of different data sets from folders of their own",
        )
    if len(line.t) != len(first.t) or np.abs(line.t - first.t).max() > 1e-6:
        raise DataError(
            f"{line.origin} has {len(line.t)} points, {first.origin} has {len(first.t)}"
            if len(line.t) != len(first.t)
            else f"{line.origin} and {first.origin} have their points at different places",
            remedy="lines can be compared only where they were walked alike: a point is missing, "
            "or these are two experiments",
        )


def _check_repeat(before: Line, line: Line, tolerance: float) -> None:
    worst = float(np.abs(before.values - line.values).max())
    apart = abs(before.distance - line.distance) > 1e-3 * max(before.distance, line.distance)
    if worst > tolerance or apart:
        what = (
            f"distances {before.distance:g} and {line.distance:g}"
            if apart
            else f"values up to {worst:.4g} apart"
        )
        raise DataError(
            f"{before.origin} and {line.origin} both hold the line between {line.a} and {line.b} "
            f"on {line.data}, with {what}",
            remedy="remove the one that does not belong to this experiment",
        )


def _check_end(
    name: str, columns: Line, one: tuple[str, Floats], two: tuple[str, Floats], tolerance: float
) -> None:
    worst = np.abs(one[1] - two[1])
    if worst.max() <= tolerance:
        return
    k = int(worst.argmax())
    what = ("loss", *columns.metrics)[k]
    raise DataError(
        f"two files disagree about model {name} on {columns.data}: its {what} is {one[1][k]:.6g} "
        f"in {one[0]} and {two[1][k]:.6g} in {two[0]}",
        remedy="they come from different models or data: remove one, or say tolerance "
        "(--tolerance) if the difference is known",
    )


def lines_of(connection: Connection, data: str) -> list[Line]:
    """The lines of a connection on one of its data sets, in the order of its pairs."""
    own = ("data", "a", "b", "t", "loss")
    chosen = connection.curves[connection.curves.data == data]
    metrics = tuple(
        str(name)
        for name in chosen.columns
        if name not in own
        and not str(name).endswith(("_low", "_high"))
        and bool(chosen[name].notna().all())  # a metric of another data set
    )
    distances = {
        (a, b): float(d)
        for name, a, b, d in connection.pairs[["data", "a", "b", "distance"]].itertuples(
            index=False
        )
        if name == data
    }
    return [
        Line(
            a=str(a),
            b=str(b),
            data=data,
            distance=distances[a, b],
            metrics=metrics,
            t=rows["t"].to_numpy(dtype=np.float64),
            values=rows[["loss", *metrics]].to_numpy(dtype=np.float64),
            origin=f"{a}-{b}",
        )
        for (a, b), rows in chosen.groupby(["a", "b"], sort=False)
    ]


# --- the result ----------------------------------------------------------------------------------


def connection_of(
    lines: Sequence[Line],
    *,
    endpoints: pd.DataFrame | None = None,
    config: ImportConfig | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> Connection:
    """A `Connection` from walked lines, as far as they tell.

    The first line's data set makes the basins, where every pair of its models was walked.
    `endpoints` (name x `data/metric`) adds columns to the ends' own loss and metrics: metrics of
    per-sample files, say. Intervals are NaN; `noise_floor` is that of the config, and the
    provenance says so.
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
    if endpoints is not None:
        table = _joined(table, endpoints)
    points = len(merged[0].t)
    connection = Connection(
        names=names,
        data=data,
        kind="classification",
        curves=curves,
        pairs=pd.DataFrame([_pair_row(line, options.noise_floor) for line in merged]),
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
