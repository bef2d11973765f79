"""Where the rows of a split come from: local files, hub data sets, values given in Python."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from landform.errors import DataError
from landform.tasks.tables import (
    FileFormat,
    Table,
    chosen_columns,
    frame_of,
    read_columns,
    read_file,
    select,
    table_of,
)

__all__ = [
    "FileFormat",
    "FileSource",
    "FunctionSource",
    "HubSource",
    "MemorySource",
    "Source",
    "Table",
    "read_columns",
    "read_file",
    "table_of",
]


class Source(Protocol):
    """Named splits of rows."""

    @property
    def splits(self) -> tuple[str, ...]:
        """The names of the splits."""

    def columns(self, split: str) -> tuple[str, ...]:
        """The column names of a split."""

    def read(
        self, split: str, columns: Sequence[str] | None = None, optional: Sequence[str] = ()
    ) -> Table:
        """The rows of a split: all columns, or `columns` and those of `optional` that exist."""


@dataclass(frozen=True)
class FileSource:
    """One local file per split."""

    files: Mapping[str, Path]
    form: FileFormat = field(default_factory=FileFormat)

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits that have a file."""
        return tuple(self.files)

    def columns(self, split: str) -> tuple[str, ...]:
        """The header of the split's file."""
        return read_columns(self.files[split], self.form)

    def read(
        self, split: str, columns: Sequence[str] | None = None, optional: Sequence[str] = ()
    ) -> Table:
        """The rows of the split's file."""
        return read_file(self.files[split], self.form, columns, optional)


@dataclass(frozen=True, eq=False)
class MemorySource:
    """Tables given in Python."""

    tables: Mapping[str, Table]

    @property
    def splits(self) -> tuple[str, ...]:
        """The given splits."""
        return tuple(self.tables)

    def columns(self, split: str) -> tuple[str, ...]:
        """The columns of a given table."""
        return tuple(str(name) for name in self.tables[split].frame.columns)

    def read(
        self, split: str, columns: Sequence[str] | None = None, optional: Sequence[str] = ()
    ) -> Table:
        """The given table."""
        return select(self.tables[split], columns, optional)


@dataclass(frozen=True)
class FunctionSource:
    """Tables that a function makes: `function(split)` returns a DataFrame or a list of mappings.

    The function must be importable by name, so that a task can travel to another process.
    """

    function: Callable[..., Any]
    splits: tuple[str, ...]
    origin: str

    def columns(self, split: str) -> tuple[str, ...]:
        """The columns of the table that the function makes."""
        return tuple(str(name) for name in self.read(split).frame.columns)

    def read(
        self, split: str, columns: Sequence[str] | None = None, optional: Sequence[str] = ()
    ) -> Table:
        """The table that the function makes."""
        table = table_of(self.function(split), f"{self.origin}:{split}")
        return select(table, columns, optional)


@dataclass(frozen=True)
class HubSource:
    """A data set of the Hugging Face hub (or of its local cache).

    `names` maps the splits of the task to those of the data set; None asks the hub for them.
    """

    name: str
    subset: str | None = None
    revision: str | None = None
    names: Mapping[str, str] | None = None

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits of the data set; asks the hub unless `names` were given."""
        if self.names is not None:
            return tuple(self.names)
        import datasets

        with self._reported():
            found = datasets.get_dataset_split_names(
                self.name, config_name=self.subset, revision=self.revision
            )
        return tuple(str(split) for split in found)

    def columns(self, split: str) -> tuple[str, ...]:
        """The columns of a split (loads it)."""
        return tuple(self._load(split).column_names)

    def read(
        self, split: str, columns: Sequence[str] | None = None, optional: Sequence[str] = ()
    ) -> Table:
        """The rows of a split."""
        data = self._load(split)
        origin = f"{self.name}{f'/{self.subset}' if self.subset else ''}:{split}"
        wanted = list(chosen_columns(data.column_names, columns, optional, origin))
        if len(data) == 0:
            raise DataError(f"{origin} has no rows", remedy="choose another split")
        values = data.select_columns(wanted)[:]
        declared = {name: _declared(data.features[name]) for name in wanted}
        labels = {name: found for name, found in declared.items() if found}
        return Table(frame_of(values, len(data)), origin, None, labels)

    def _load(self, split: str) -> Any:
        import datasets

        own = split if self.names is None else self.names[split]
        with self._reported():
            return datasets.load_dataset(self.name, self.subset, split=own, revision=self.revision)

    @contextmanager
    def _reported(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # The hub client raises a dozen unrelated types.
            reason = next(iter(str(error).splitlines()), "") or type(error).__name__
            raise DataError(
                f"data set {self.name!r}"
                + (f", subset {self.subset!r}" if self.subset else "")
                + (f", revision {self.revision!r}" if self.revision else "")
                + f" cannot be loaded from the hub: {reason}",
                remedy="check the name (owner/name), subset= and revision=, and the connection;"
                " offline, give local files instead: data_dir= for a catalogue task, or"
                " {'train': 'a.tsv', 'validation': 'b.tsv'}",
            ) from error


def _declared(feature: Any) -> tuple[str, ...] | None:
    """Class names of a hub feature: ClassLabel, or a list of them."""
    inner = getattr(feature, "feature", feature)
    names = getattr(inner, "names", None)
    return tuple(map(str, names)) if names else None
