"""What figures and pages of a `Connection` look up in it: basins, order, columns, curves.

The functions look at the documented attributes of the result and at nothing else.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from matplotlib.lines import Line2D

from landform.report.style import MUTED, BasinStyle, basin_styles, ordered_basins, unknown

if TYPE_CHECKING:
    from landform.studies.connect import Connection

__all__ = [
    "CENTROID_AXIS",
    "basin_handles",
    "basins_of",
    "by_name",
    "checkpoint_order",
    "default_metric",
    "endpoint_column",
    "endpoint_metric",
    "metric_columns",
    "natural",
    "split_curves",
    "statistic",
    "styles_of",
]

Array = np.ndarray

CENTROID_AXIS = "distance to the centroid of basin 1\nminus that of basin 0"

# Columns that say where a point is: on a line, a bent path, a plane, in a complex.
PLACES = ("t", "arc", "distance_a", "distance_b", "x", "y", "evaluated", "clique", "sample")


def basins_of(connection: Connection) -> pd.Series | None:
    """name -> basin; None where the study has none (not all pairs were walked)."""
    basins = connection.basins
    if basins is None or len(basins) == 0 or basins.isna().any():
        return None
    return basins.astype(int).reindex(list(connection.names))


def natural(name: str) -> tuple[Any, ...]:
    """Numbers in names count as numbers: seed2 before seed10."""
    return tuple(
        (0, int(part), "") if part.isdigit() else (1, 0, part)
        for part in re.split(r"(\d+)", name)
        if part
    )


def checkpoint_order(connection: Connection, order: str = "basin") -> list[str]:
    """Names in drawing order: by "basin" (then name), by "seed" (name, numbers as numbers), or by a
    column of `endpoints` (largest first)."""
    names = sorted(map(str, connection.names), key=natural)
    if order == "seed":
        return names
    if order == "basin":
        basins = basins_of(connection)
        return names if basins is None else sorted(names, key=lambda name: int(basins[name]))
    column = endpoint_column(connection, order, "order")
    return sorted(names, key=lambda name: -float(connection.endpoints[column][name]))


def endpoint_column(connection: Connection, name: str, what: str = "metric") -> str:
    """`name` if it is a column of `endpoints`; `ConfigError` names what there is."""
    columns = list(map(str, connection.endpoints.columns))
    if name in columns:
        return name
    words = {"order": ["basin", "seed"], "ticks": ["names", "values"]}
    known = [*words.get(what, ()), *columns]
    raise unknown(what, name, known)


def default_metric(connection: Connection) -> str:
    """The first out-of-distribution metric, else the first endpoint column that is no loss."""
    statistics = connection.statistics
    if statistics is not None and len(statistics):
        ood = statistics[statistics["role"] == "ood"] if "role" in statistics else statistics
        if len(ood):
            return str(ood["metric"].iloc[0])
    columns = list(map(str, connection.endpoints.columns))
    return next((c for c in columns if not c.endswith("/loss")), columns[0])


def endpoint_metric(connection: Connection, metric: str | None) -> str:
    """The column of `endpoints` asked for, or the default one."""
    return default_metric(connection) if metric is None else endpoint_column(connection, metric)


def statistic(connection: Connection, metric: str) -> dict[str, Any]:
    """The row of the statistics about a metric, {} where there is none."""
    table = connection.statistics
    if table is None or "metric" not in table:
        return {}
    rows = table[table["metric"] == metric]
    return dict(rows.iloc[0]) if len(rows) else {}


def styles_of(connection: Connection) -> tuple[pd.Series, dict[int, BasinStyle]]:
    """Basins and their styles; one neutral group where the study has no basins."""
    basins = basins_of(connection)
    if basins is not None:
        return basins, basin_styles(basins)
    names = list(connection.names)
    nobody = BasinStyle(MUTED, "o", f"basins not determined (n = {len(names)})")
    return pd.Series(0, index=names), {0: nobody}


def basin_handles(styles: dict[int, BasinStyle], shown: Sequence[int]) -> list[Line2D]:
    """Legend entries of the basins that are shown."""
    entries = [s for s in ordered_basins(styles) if any(styles[int(b)] == s for b in shown)]
    return [
        Line2D([], [], color=s.colour, marker=s.marker, linestyle="none", label=s.label)
        for s in entries
    ]


def metric_columns(table: pd.DataFrame) -> list[str]:
    """Columns that are metrics: numbers other than the position, the loss and the intervals."""
    fixed = {"data", "a", "b", "loss", *PLACES}
    return [
        str(column)
        for column in table.columns
        if column not in fixed
        and not re.fullmatch(r".+_(low|high)", str(column))
        and pd.api.types.is_numeric_dtype(table[column])
    ]


def split_curves(table: pd.DataFrame, column: str) -> list[tuple[str, str, Array, Array]]:
    """(a, b, positions, values) of every line; a sort and a split, as there may be thousands."""
    table = table[["a", "b", "t", column]].sort_values(["a", "b", "t"], kind="stable")
    a, b = table["a"].to_numpy(), table["b"].to_numpy()
    t, values = table["t"].to_numpy(float), table[column].to_numpy(float)
    starts = np.flatnonzero(np.r_[True, (a[1:] != a[:-1]) | (b[1:] != b[:-1])])[: len(a)]
    pieces = zip(starts, np.split(t, starts[1:]), np.split(values, starts[1:]), strict=True)
    return [(str(a[s]), str(b[s]), x, y) for s, x, y in pieces]


def by_name(values: Any, names: Sequence[str]) -> pd.Series:
    """Numbers per checkpoint as a Series in the order of `names`."""
    if isinstance(values, pd.Series):
        return values.astype(float).reindex(list(names))
    return pd.Series(np.asarray(values, dtype=float), index=list(names))
