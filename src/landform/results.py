"""What every result object can do: say its reading in a line, become JSON, draw itself, be kept.

A result is a frozen dataclass. `to_parts` divides it into tables (its DataFrames and Series) and
one JSON record (everything else); `from_parts` puts it together again. That is all a store needs
to keep any result, and to hand it to a report later.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from landform.errors import StoreError

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

__all__ = ["Result", "from_parts", "to_parts"]


class Result:
    """Base of results: `reading` for a person, `to_json` for a machine, `plot` for a page."""

    def __init_subclass__(cls, **options: Any) -> None:
        """Keep the dataclass from printing every table in full: `print(result)` is its reading."""
        super().__init_subclass__(**options)
        if "__repr__" not in cls.__dict__:
            cls.__repr__ = Result.__repr__  # type: ignore[method-assign]

    def __repr__(self) -> str:
        """The reading, and below it the names of what the result holds."""
        fields = getattr(self, "__dataclass_fields__", ())
        held = ", ".join(name for name in fields if not name.startswith("_"))
        try:
            reading = self.reading
        except NotImplementedError:
            reading = "no reading"
        return f"<{type(self).__name__}: {reading}\n  {held}>"

    @property
    def reading(self) -> str:
        """One line that says what the result means, with its interval."""
        raise NotImplementedError

    def to_json(self) -> dict[str, Any]:
        """The result as JSON-ready values."""
        raise NotImplementedError

    @property
    def subject(self) -> tuple[str, ...]:
        """The checkpoints, or the run, that it is about, as they were named; () of other results.

        Results are kept under short names (seed0), which two of them may share.
        """
        named = getattr(self, "provenance", {}).get("checkpoints", ())
        if named and isinstance(named, tuple | list):
            return tuple(map(str, named))
        found: list[str] = []
        for name in ("checkpoint", "run", "a", "b", "checkpoints"):
            value = getattr(self, name, ())
            if isinstance(value, str):
                found.append(value)
            elif isinstance(value, tuple | list):  # of some results `run` is a method
                found += [v for v in value if isinstance(v, str)]
        return tuple(found)

    @property
    def subject_weights(self) -> Any:
        """The fingerprints of the weights that it is about; None where it keeps none."""
        return getattr(self, "provenance", {}).get("weights")

    def plot(self, **options: Any) -> Figure:
        """The result's main figure (see `landform.report.figures` for all of them)."""
        # Looked up by name at call time: figures live on a floor above the results they draw,
        # and people who never draw should not pay for importing matplotlib.
        figures = importlib.import_module("landform.report.figures")
        figure: Figure = figures.draw(self, **options)
        return figure


def to_parts(result: Any) -> tuple[dict[str, pd.DataFrame], dict[str, Any]]:
    """(tables by name, JSON record) of a result dataclass; inverse of `from_parts`."""
    tables: dict[str, pd.DataFrame] = {}
    record = _divide(result, "", tables)
    return tables, record


def _divide(value: Any, path: str, tables: dict[str, pd.DataFrame]) -> Any:
    import pandas as pd

    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        kind = type(value)
        return {
            "class": f"{kind.__module__}:{kind.__qualname__}",
            "fields": {
                field.name: _divide(
                    getattr(value, field.name), f"{path}.{field.name}".strip("."), tables
                )
                for field in dataclasses.fields(value)
            },
        }
    if isinstance(value, pd.DataFrame):
        tables[path] = value
        return {"table": path}
    if isinstance(value, pd.Series):
        # Parquet keeps frames; the name of a Series may be None, which a column cannot be.
        tables[path] = value.to_frame("value")
        return {"series": path, "name": value.name}
    if isinstance(value, tuple):
        return {"tuple": [_divide(v, f"{path}.{i}", tables) for i, v in enumerate(value)]}
    if isinstance(value, Mapping):
        return {"map": [[key, _divide(v, f"{path}.{key}", tables)] for key, v in value.items()]}
    if isinstance(value, list):
        return [_divide(v, f"{path}.{i}", tables) for i, v in enumerate(value)]
    return value


def from_parts(tables: Mapping[str, pd.DataFrame], record: Any) -> Any:
    """The result that `to_parts` divided."""
    if isinstance(record, list):
        return [from_parts(tables, value) for value in record]
    if not isinstance(record, Mapping):
        return record
    try:
        if "class" in record:
            return _kind(record["class"])(
                **{name: from_parts(tables, value) for name, value in record["fields"].items()}
            )
        if "table" in record:
            return tables[record["table"]]
        if "series" in record:
            return tables[record["series"]]["value"].rename(record["name"])
        if "tuple" in record:
            return tuple(from_parts(tables, value) for value in record["tuple"])
        return {key: from_parts(tables, value) for key, value in record["map"]}
    except (KeyError, TypeError, ValueError, AttributeError, ImportError) as error:
        raise StoreError(f"a kept result cannot be read: {error!r}", remedy=_REMEDY) from error


_REMEDY = "it was made by another version of landform; run the command again"


def _kind(name: str) -> Any:
    module, _, kind = name.partition(":")
    # The name comes from a file: only classes of this package are ever looked up.
    if not module.startswith("landform.") or not kind.isidentifier():
        raise StoreError(
            f"a kept result names the class {name!r}, which is not landform's", remedy=_REMEDY
        )
    found = getattr(importlib.import_module(module), kind)
    if not (isinstance(found, type) and dataclasses.is_dataclass(found)):
        raise StoreError(f"a kept result names {name!r}, which is not a result", remedy=_REMEDY)
    return found
