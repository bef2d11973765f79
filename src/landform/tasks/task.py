"""A task: named splits of labelled text, and how a model's answers to it are judged.

`load_task` makes one from a catalogue name, a hub data set, local files or Python values. A task
reads a split when it is first asked for; files, columns and options are checked at once. It can
be pickled, and its `config` describes it for another process or a study file.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from dataclasses import replace as replaced
from pathlib import Path
from typing import Any, cast

from landform.config import nearest
from landform.errors import ConfigError, DataError, LabelError
from landform.tasks import catalogue, columns
from landform.tasks.answers import TextForm
from landform.tasks.catalogue import Entry, Layout, Part
from landform.tasks.corruption import Noise
from landform.tasks.examples import Examples, feed, joined, some_of
from landform.tasks.metrics import get_metric
from landform.tasks.options import (
    CORPUS_KINDS,
    SPLIT_ALIASES,
    Kind,
    Merge,
    TaskConfig,
    TaskKind,
    shard_of,
)
from landform.tasks.rows import Resplit, share, shuffled
from landform.tasks.sources import (
    FileFormat,
    FileSource,
    FunctionSource,
    HubSource,
    MemorySource,
    Source,
    Table,
    table_of,
)
from landform.tasks.tables import (
    PLAIN_TEXT,
    SUFFIXES,
    delimiter_hint,
    is_plain_text,
    is_text_table,
    missing_column,
)
from landform.tasks.text_to_text import metric_of, source_of_files, source_of_folder

__all__ = [
    "CORPUS_KINDS",
    "Examples",
    "Kind",
    "Merge",
    "Task",
    "TaskConfig",
    "TaskKind",
    "load_task",
    "loss_unit",
]

DEFAULT_METRICS: Mapping[str, tuple[str, ...]] = {
    "classification": ("accuracy",),
    "regression": ("pearson", "spearman"),
    "token-classification": ("token_accuracy",),
    "masked-lm": ("loss", "token_accuracy"),
    "causal-lm": ("loss", "perplexity", "token_accuracy"),
    "seq2seq": ("loss", "token_accuracy"),
}
"""The metrics of a task that names none, headline first."""


# ------------------------------------------------------------------------------------------ task


@dataclass(frozen=True, eq=False)
class Task:
    """Named splits of labelled text, and how answers are judged. Made by `load_task`.

    `label_names`: the classes, () when there are none. `metrics`: names of
    `landform.tasks.metrics`, the headline metric first. `subsets`: groups of columns by which
    metrics are broken down. `label_groups`: per label of the task the labels of a finer model
    that make it up, whose logits are merged by `merge`. `layout` says which columns of `source`
    hold what; `parts` which rows of it make up each split; `resplit` which of its splits are merged
    and cut anew before that. `form`: how text-to-text examples are written for a model; `noise`:
    see `Examples`.
    """

    name: str
    kind: Kind
    label_names: tuple[str, ...]
    metrics: tuple[str, ...]
    source: Source
    layout: Layout
    parts: Mapping[str, Part]
    config: TaskConfig
    subsets: tuple[tuple[str, ...], ...] = ()
    label_groups: Mapping[str, tuple[str, ...]] | None = None
    merge: Merge = "max"
    aliases: Mapping[str, str] = field(default_factory=dict)
    empty_text: bool = False
    form: TextForm | None = None
    noise: Noise | None = None
    resplit: Resplit | None = None
    _read: dict[str, Any] = field(default_factory=dict, repr=False)

    def __getstate__(self) -> dict[str, Any]:
        # What was read is read again elsewhere: a pickled task stays small.
        return {**self.__dict__, "_read": {}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)

    @classmethod
    def from_config(cls, config: TaskConfig) -> Task:
        """The task that `config` describes."""
        return _build(config, None)

    @property
    def splits(self) -> tuple[str, ...]:
        """The names of the splits."""
        return tuple(self.parts)

    @property
    def n_labels(self) -> int:
        """How many outputs a head for this task has: its classes, or 1 for regression."""
        return 1 if self.kind == "regression" else len(self.label_names)

    @property
    def is_drawn(self) -> bool:
        """Whether a seed decides what a model sees of a text, and is asked for."""
        return self.kind == "masked-lm" or self.noise is not None

    def resolve(self, split: str) -> str:
        """The split's own name for `split`, which may be an alias such as "dev"."""
        known = {**SPLIT_ALIASES, **self.aliases}
        name = split
        for _ in range(2):  # "dev" -> "validation" -> "validation_matched"
            if name not in self.parts:
                name = known.get(name, name)
        if name in self.parts:
            return name
        guess = nearest(split, [*self.parts, *self.aliases])
        raise DataError(
            f"task {self.name!r} has no split {split!r}",
            remedy=(f"did you mean {guess!r}? " if guess else "")
            + f"Splits: {', '.join(self.parts)}"
            + self._single_file_hint(),
        )

    def _single_file_hint(self) -> str:
        if self.config.files is not None or len(self.parts) > 1:
            return ""
        file = isinstance(self.source, FileSource)
        return "; to name the split of a single file: {'train': path}" if file else ""

    def examples(self, split: str, *, rows: int | None = None) -> Examples:
        """The examples of `split`, all or the first `rows` of them (after filters)."""
        if rows is not None and rows < 1:
            raise ConfigError(f"rows={rows}: at least 1 row is needed", remedy="give rows >= 1")
        split = self.resolve(split)
        key = f"examples {split}"
        if key not in self._read:
            self._read[key] = self._examples(split)
        found: Examples = self._read[key]
        return found if rows is None or rows >= len(found) else found.take(range(rows))

    def fingerprint(self, split: str, *, rows: int | None = None) -> str:
        """SHA-256 (hex) of what an evaluation on `split` depends on: rows, kind and labels."""
        groups = self.label_groups or {}
        digest = hashlib.sha256(self.examples(split, rows=rows).fingerprint.encode())
        feed(digest, "kind", (self.kind, self.merge))
        feed(digest, "labels", self.label_names)
        feed(digest, "groups", (f"{name}={joined(groups[name])}" for name in sorted(groups)))
        return digest.hexdigest()

    def _table(self, split: str) -> Table:
        """All needed columns of a split of the source; read once."""
        key = f"table {split}"
        if key not in self._read:
            layout, needed = self.layout, None
            if layout.keep is not None:
                roles = (*layout.text, layout.label, layout.id, *self._named_columns())
                needed = [name for name in roles if name is not None]
            self._read[key] = self.source.read(split, needed, layout.keep or ())
        table: Table = self._read[key]
        return table

    def _named_columns(self) -> tuple[str, ...]:
        """Columns besides text, label and id that options refer to."""
        named = [*self.config.filters, *(name for group in self.subsets for name in group)]
        named += [name for part in self.parts.values() for name in part.where]
        return tuple(dict.fromkeys(name for name in named if name != "label"))

    def _examples(self, split: str) -> Examples:
        part = self.parts[split]
        if self.resplit is not None and part.split in self.resplit.made:
            examples = self._cut_anew()[part.split]
        else:
            examples = self._rows_of(part)
        examples = self._filtered(examples, part.where)
        return self._ordered(self._filtered(examples, self.config.filters), split)

    def _cut_anew(self) -> dict[str, Examples]:
        """The splits that `resplit` makes; made once."""
        if "resplit" not in self._read and self.resplit is not None:
            pieces = [self._rows_of(Part(split)) for split in self.resplit.splits]
            self._read["resplit"] = self.resplit.cut(pieces)
        found: dict[str, Examples] = self._read["resplit"]
        return found

    def _rows_of(self, part: Part) -> Examples:
        """The rows of a part as they stand in the source."""
        layout = self.layout
        table = self._table(part.split).slice(part.start, part.stop)
        if self.kind == "token-classification":
            texts = columns.read_words(table, layout.text[0])
        else:
            texts = columns.read_texts(table, layout.text, allow_empty=self.empty_text)
        ids = columns.read_ids(table, layout.id, part.split, part.start)
        used = {*layout.text, layout.label, layout.id}
        extra = [name for name in table.frame.columns if name not in used]
        for name in self._named_columns():
            if name not in extra:
                raise missing_column(name, [*extra, "label"], table.origin)
        labels = self._labels(table, texts)
        frame = table.frame[extra].infer_objects()
        return Examples(ids, texts, labels, frame, self.form, self.noise)

    def _ordered(self, examples: Examples, split: str) -> Examples:
        """The rows of the config's shard, in the order of its shuffle, as far as its percentage."""
        rows = list(range(len(examples)))
        if self.config.shard is not None:
            number, shards = shard_of(self.config.shard)
            # Every n-th row: the shards of a file that is sorted by class look alike.
            rows = rows[number - 1 :: shards]
            if not rows:
                raise DataError(
                    f"shard {self.config.shard} of task {self.name!r}, split {split!r}, has no"
                    f" rows: the split has {len(examples)}",
                    remedy="cut the data into fewer shards",
                )
        seed = self.config.shuffle_seed
        if seed is not None:
            rows = [rows[i] for i in shuffled(len(rows), seed)]
        if self.config.percent is not None and self._is_shortened(split):
            rows = share(rows, self.config.percent, seed)
        return examples if rows == list(range(len(examples))) else examples.take(rows)

    def _is_shortened(self, split: str) -> bool:
        """Whether the config's percentage is meant for this split."""
        chosen = self.config.percent_of or (("train",) if "train" in self.parts else self.parts)
        names = {self.resolve(name) for name in chosen}
        return split in names or self.parts[split].split in names

    def _labels(self, table: Table, texts: tuple[tuple[str, ...], ...]) -> Any:
        label = self.layout.label
        if label is None:
            return None
        if self.kind == "classification":
            return columns.class_codes(table, label, self.label_names)
        if self.kind == "regression":
            return columns.read_scores(table, label)
        if self.kind == "token-classification":
            return columns.tag_codes(table, texts, label, self.label_names)
        if self.form is not None:
            return tuple(table.values(label))
        return columns.read_targets(table, label)

    def _filtered(self, examples: Examples, filters: Mapping[str, tuple[Any, ...]]) -> Examples:
        wanted: dict[str, tuple[Any, ...]] = dict(filters)
        if "label" in wanted and self.kind == "classification":
            wanted["label"] = tuple(map(self._label_index, wanted["label"]))
        for name, values in wanted.items():
            if name != "label":
                wanted[name] = self._found(examples, name, values)
        return examples.filter(**wanted) if wanted else examples

    def _found(self, examples: Examples, name: str, values: Sequence[Any]) -> tuple[Any, ...]:
        """The values of a column that are written like those wanted: 3 of a JSON file is "3" on a
        command line."""
        known: dict[str, list[Any]] = {}
        for cell in dict.fromkeys(examples.column(name)):
            known.setdefault(str(cell), []).append(cell)
        for value in values:
            if str(value) not in known:
                guess = nearest(str(value), known)
                raise DataError(
                    f"filter {name} = {value!r}: no row of task {self.name!r} has this value",
                    remedy=(f"did you mean {guess!r}? " if guess else "")
                    + f"Values: {some_of(known)}",
                )
        return tuple(cell for value in values for cell in known[str(value)])

    def _label_index(self, value: str | int | float) -> int:
        index = columns.class_finder(self.label_names)(value)
        if index is None:
            raise ConfigError(
                f"filter label = {value!r}: not a label of task {self.name!r}",
                remedy=f"labels: {', '.join(self.label_names)}",
            )
        return index


# --------------------------------------------------------------------------------------- loading


def loss_unit(kind: str) -> str:
    """The unit of a task's loss: nats, or squared units of the target for regression."""
    return "squared units" if kind == "regression" else "nats"


def load_task(
    source: Any,
    *,
    text: str | Sequence[str] | None = None,
    label: str | None = None,
    kind: TaskKind | None = None,
    name: str | None = None,
    label_names: Sequence[str] | None = None,
    metrics: str | Sequence[str] | None = None,
    id: str | None = None,
    data_dir: str | Path | None = None,
    **options: Any,
) -> Task:
    """A task from a catalogue name, a hub data set, local files, or values given in Python.

    `source` is one of: a catalogue name (`"sst2"`; with `data_dir=` from its published files,
    with `files=` from files of its columns); a hub data set `"owner/name"`; a mapping from split
    to file (`{"train": "a.tsv", "validation": "b.tsv"}`); a folder of files that are named after
    their splits; a single file, which becomes the split its name says (`train.csv`, `dev.tsv`) and
    `validation` otherwise (the kinds without labels also take plain text); a DataFrame or a list
    of mappings (`validation`), or a mapping from split to those; a `TaskConfig`; a `Task`. With
    kind="text-to-text" the folder holds `<task>_train.tsv`, `<task>_dev.tsv`, `<task>_test.tsv`:
    see `tasks.text_to_text`.

    Integer labels must be the codes 0..K-1 over all splits together; other labels are class
    names, sorted unless `label_names` gives their order. `text` and `label` name the columns that
    hold them, `id` one with text ids, `metrics` what is reported, the headline metric first. For
    the other `options` see `TaskConfig`.

    Raises `ConfigError` for an option, `DataError` for a file, column or row, `LabelError` for a
    label; each names the culprit and the remedy.
    """
    given = {
        "text": text, "label": label, "kind": kind, "name": name, "label_names": label_names,
        "metrics": metrics, "id": id, "data_dir": None if data_dir is None else str(data_dir),
    }  # fmt: skip
    chosen = {**{key: value for key, value in given.items() if value is not None}, **options}
    if isinstance(source, Task | TaskConfig):
        if chosen and isinstance(source, Task):
            raise ConfigError(
                f"options {', '.join(chosen)} were given with a task that is already loaded",
                remedy="give the options when the task is loaded first",
            )
        return source if isinstance(source, Task) else _build(source.replace(**chosen), None)
    values, place = _place(source)
    return _build(TaskConfig.parse({**place, **chosen}, where="load_task"), values)


def _place(source: Any) -> tuple[dict[str, Table] | None, dict[str, Any]]:
    """In-memory tables, and the options that describe where rows come from."""
    if isinstance(source, str | os.PathLike):
        return None, {"task": os.fspath(source)}
    if isinstance(source, Mapping):
        if not source:
            raise ConfigError("no split was given", remedy="give {'validation': 'file.tsv'}")
        if all(isinstance(value, str | os.PathLike) for value in source.values()):
            return None, {"files": {str(key): os.fspath(path) for key, path in source.items()}}
        splits = {str(key): value for key, value in source.items()}
    else:
        splits = {"validation": source}
    return {split: table_of(value, f"given data {split!r}") for split, value in splits.items()}, {}


def _build(config: TaskConfig, values: dict[str, Table] | None) -> Task:
    _check_places(config, values)
    for metric in config.metrics or ():
        get_metric(metric)
    _check_kind_options(config)
    return _with_rows(_made(config, values), config)


def _made(config: TaskConfig, values: dict[str, Table] | None) -> Task:
    if config.kind == "text-to-text":
        return _text_task(config, values)
    if values is not None:
        return _own_task(config, MemorySource(_by_split(values)), config.name or "task")
    if config.files is not None and config.task is None:
        return _file_task(config, _named_files(config.files))
    return _from_name(config, config.task or "")


def _from_name(config: TaskConfig, source: str) -> Task:
    """A catalogue name, a folder, a file or a hub data set, tried in this order."""
    known = catalogue.find(source)
    if known is not None:
        return _catalogue_task(config, *known)
    path = _path(source)
    if path.is_dir():
        return _file_task(config, _files_of(path))
    if path.suffix.lower() in SUFFIXES or path.is_file():
        split = SPLIT_ALIASES.get(path.stem.lower(), path.stem.lower())
        known_split = split in ("train", "validation", "test")
        return _file_task(config, {split if known_split else "validation": path})
    if source.count("/") == 1 and not source.startswith((".", "/", "~")):
        hub = HubSource(source, config.subset, config.revision)
        return _own_task(config, hub, config.name or source.split("/")[-1])
    if "/" in source:
        raise DataError(f"{source} does not exist", remedy="check the path")
    raise catalogue.unknown_task(source)


def _check_places(config: TaskConfig, values: dict[str, Table] | None) -> None:
    named = config.task is not None and catalogue.find(config.task) is not None
    # A catalogue task may come with files: they then hold its columns.
    places = [config.task is not None, config.files is not None and not named, values is not None]
    if sum(places) != 1:
        raise ConfigError(
            "a task needs exactly one of task= (or the first argument of load_task) and files="
            + (" (this one was made from values in memory)" if not any(places) else ""),
            remedy="name a catalogue task, a hub data set or local files; write data that only"
            " exists in memory to a file to use it in another process",
        )


def _path(path: str) -> Path:
    # Absolute: another process that works on the task may stand in another folder.
    return Path(path).expanduser().absolute()


def _named_files(files: Mapping[str, str]) -> dict[str, Path]:
    return _by_split({split: _path(path) for split, path in files.items()})


def _by_split(given: Mapping[str, Any]) -> dict[str, Any]:
    named: dict[str, Any] = {}
    for split, value in given.items():
        own = SPLIT_ALIASES.get(split, split)
        if own in named:
            raise ConfigError(f"the split {own!r} was given twice", remedy="name each split once")
        named[own] = value
    return named


def _files_of(folder: Path) -> dict[str, Path]:
    names = {*SPLIT_ALIASES, "train", "validation", "test"}
    files = [
        path
        for path in sorted(folder.iterdir())
        if path.suffix.lower() in SUFFIXES and path.stem.lower() in names
    ]
    if not files:
        raise DataError(
            f"folder {folder} holds no file named after a split",
            remedy="expected train.*, validation.* (or dev.*), test.* with one of the endings"
            f" {', '.join(SUFFIXES)}; or give {{'train': path, 'validation': path}}",
        )
    order = ("train", "validation", "test")
    found = _by_split_files(files)
    return {split: found[split] for split in order if split in found}


def _by_split_files(files: Sequence[Path]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in files:
        split = SPLIT_ALIASES.get(path.stem.lower(), path.stem.lower())
        if split in found:
            raise DataError(
                f"{found[split]} and {path} are both the split {split!r}",
                remedy="keep one of them, or give {'train': path, 'validation': path}",
            )
        found[split] = path
    return found


def _file_task(config: TaskConfig, files: dict[str, Path]) -> Task:
    paths = list(files.values())
    name = paths[0].stem if len(paths) == 1 else paths[0].parent.name
    form = FileFormat(config.quoting, config.delimiter, None, config.skip_bad_rows)
    if config.kind in CORPUS_KINDS and config.text is None and all(map(is_plain_text, paths)):
        _refuse(
            config, ("id", "quoting", "delimiter"), "does not go with plain text",
            f"{paths[0]} is read as plain text; where it is a table, name its column with text=",
        )  # fmt: skip
        form = FileFormat(plain="blocks" if config.blocks else "lines")
    return _own_task(config, FileSource(files, form), config.name or name or "task")


def _refuse(config: TaskConfig, names: Sequence[str], reason: str, remedy: str) -> None:
    given = [name for name in names if getattr(config, name) not in (None, False)]
    if given:
        raise ConfigError(f"option {given[0]} {reason}", remedy=remedy)


def _check_format(config: TaskConfig, source: Source) -> None:
    """Refuse options of text tables for rows that come from no text table."""
    tables = isinstance(source, FileSource) and any(map(is_text_table, source.files.values()))
    if not tables or (isinstance(source, FileSource) and source.form.plain is not None):
        given = [n for n in ("quoting", "delimiter") if getattr(config, n) is not None]
        given += ["skip_bad_rows"] if config.skip_bad_rows else []
        if given:
            raise ConfigError(
                f"option {given[0]} is for text tables (.csv, .tsv, .txt)", remedy="leave it out"
            )


_KIND_OPTIONS: Mapping[str, tuple[str, ...]] = {
    "text-to-text": (
        *("file_prefix", "one_prefix", "task_prefix", "sentinel", "lowercase", "bos"),
        *("references", "max_target_length"),
    ),
    "masked-lm": ("mask_rate",),
    "denoising": ("noise_density", "mean_span", "denoising"),
}
"""Options that one kind of task has."""


def _check_kind_options(config: TaskConfig) -> None:
    def refuse(name: str, what: str, remedy: str) -> None:
        if getattr(config, name) != TaskConfig.model_fields[name].default:
            raise ConfigError(f"option {name} {what}", remedy=f"leave it out{remedy}")

    for kind, names in _KIND_OPTIONS.items():
        for name in names if kind != config.kind else ():
            refuse(name, f"goes with kind={kind!r} only", f", or pass kind={kind!r}")
    if config.kind not in CORPUS_KINDS:
        refuse("blocks", "is for plain text", f", or pass kind= ({', '.join(CORPUS_KINDS)})")
    if config.percent is None:
        refuse("percent_of", "needs percent", ", or give percent=")
    for name in ("resplit_seed", "resplit_of") if config.resplit is None else ():
        refuse(name, "needs resplit", ", or give resplit=20")
    if config.kind in CORPUS_KINDS:
        refuse("label_names", f"does not go with kind={config.kind!r}, which has no labels", "")
    if config.denoising == "guided-dropout":
        refuse("mean_span", "does not go with denoising='guided-dropout'", "")


def _noise(config: TaskConfig) -> Noise | None:
    if config.kind == "denoising":
        return Noise(config.noise_density, config.mean_span, config.denoising)
    # 15 % is what `encode` hides: naming it would change the fingerprints of what was made so far.
    default = TaskConfig.model_fields["mask_rate"].default
    if config.kind == "masked-lm" and config.mask_rate != default:
        return Noise(config.mask_rate)
    return None


def _with_rows(task: Task, config: TaskConfig) -> Task:
    """The task with its merged splits, where the config asks for them."""
    for name in config.percent_of or ():
        task.resolve(name)
    if config.resplit is None:
        return task
    try:
        names = tuple(map(task.resolve, config.resplit_of or ("train", "validation")))
    except DataError as error:
        raise DataError(f"resplit: {error.what}", remedy=error.remedy) from None
    others = [s for s in task.source.splits if s.startswith("validation") and s not in names]
    if len(set(names)) < 2 or (config.resplit_of is None and others):
        raise ConfigError(
            f"resplit merges train and validation; task {task.name!r} has the splits "
            + ", ".join(task.source.splits)
            if config.resplit_of is None
            else f"resplit_of names the splits {', '.join(names)}; two or more are merged",
            remedy="name those that should be merged, the one that becomes the percentage last:"
            " resplit_of=(...); or leave resplit out",
        )
    whole = [name for name in names if task.parts[name] != Part(name)]
    if whole:
        raise ConfigError(
            f"resplit_of: {whole[0]} is a part of the split {task.parts[whole[0]].split}",
            remedy=f"whole splits can be merged: {', '.join(task.source.splits)}",
        )
    seed = config.resplit_seed if config.resplit_seed is not None else config.shuffle_seed
    resplit = Resplit(names, config.resplit, seed or 0)
    # Rows so-and-so of an old split are nothing of the new one; rows with such a value are.
    parts = {
        name: part
        for name, part in task.parts.items()
        if part.split not in names
        or (part.split in resplit.made and (part.start, part.stop) == (0, None))
    }
    return replaced(task, parts=parts, resplit=resplit, _read=task._read)


def _text_task(config: TaskConfig, values: Mapping[str, Table] | None) -> Task:
    """A text-to-text task: files of inputs and answers (see `tasks.text_to_text`)."""
    fixed = ("text", "label", "id", "label_names", "label_groups", "merge", "data_dir")
    _refuse(
        config, (*fixed, "subset", "revision", "quoting", "delimiter"),
        "does not go with kind='text-to-text'",
        "its files have no header: column 1 is the input, the others are answers; for named columns"
        " pass kind='seq2seq'",
    )  # fmt: skip
    if values is not None:
        raise ConfigError(
            "kind='text-to-text' reads files",
            remedy="write the rows as <task>_train.tsv, ..., or pass kind='seq2seq' with text= and"
            " label=",
        )
    if config.files is not None:
        _refuse(config, ["task"], "was given beside files", "leave one of them out")
        source = source_of_files(_named_files(config.files), config)
    else:
        source = source_of_folder(_path(config.task or ""), config)
    name = config.name or source.prefix
    metrics = config.metrics or (metric_of(name, source),)
    form = TextForm(
        prefix=(name.lower() if config.lowercase else name) if config.task_prefix else None,
        sentinel=None if config.sentinel in ("", "none") else config.sentinel,
        bos=config.bos,
        max_target_length=config.max_target_length,
        references=config.references,
    )
    return Task(
        name=name,
        kind="seq2seq",
        label_names=(),
        metrics=metrics,
        source=source,
        layout=Layout(("input",), "answers"),
        parts={split: Part(split) for split in source.splits},
        config=config,
        subsets=config.subsets or (),
        empty_text=config.empty_text,
        form=form,
    )


def _own_task(config: TaskConfig, source: Source, name: str) -> Task:
    """A task whose columns the user names."""
    _refuse(config, ["data_dir"], "needs a catalogue task", "name the files themselves")
    if not isinstance(source, HubSource):
        _refuse(config, ["subset", "revision"], "needs a hub data set", "leave it out")
    _check_format(config, source)
    splits = source.splits
    plain = isinstance(source, FileSource) and source.form.plain is not None
    text = (PLAIN_TEXT,) if plain else config.text
    if text is None:
        known = source.columns(splits[0])
        raise ConfigError(
            f"task {name!r}: which column holds the text?",
            remedy="pass text=, or text=(first, second) for pairs. Columns: "
            + ", ".join(map(repr, known))
            + delimiter_hint(known),
        )
    layout = Layout(text, config.label, config.id)
    _check_layout(config, layout)
    if config.blocks and not plain:
        raise ConfigError(
            "option blocks is for plain text files", remedy="leave it out: a table has rows"
        )
    task = Task(
        name=name,
        kind=cast(Kind, _kind_of_head(config.kind) or "classification"),
        label_names=config.label_names or (),
        metrics=(),
        source=source,
        layout=layout,
        parts={split: Part(split) for split in splits},
        config=config,
        subsets=config.subsets or (),
        label_groups=config.label_groups,
        merge=config.merge or "max",
        empty_text=config.empty_text,
        noise=_noise(config),
    )
    _check_columns(task)
    return _with_labels(task, config)


def _kind_of_head(kind: TaskKind | None) -> TaskKind | None:
    return "seq2seq" if kind == "denoising" else kind


def _check_layout(config: TaskConfig, layout: Layout) -> None:
    roles = [*layout.text, *(name for name in (layout.label, layout.id) if name is not None)]
    twice = next((name for name in roles if roles.count(name) > 1), None)
    if twice is not None:
        raise ConfigError(
            f"the column {twice!r} has two roles among text=, label= and id=",
            remedy="name each column once",
        )
    if config.kind == "token-classification" and len(layout.text) > 1:
        raise ConfigError(
            "text= names two columns; token classification has one list of words per row",
            remedy="name the column that holds the words",
        )
    if config.kind == "denoising" and len(layout.text) > 1:
        raise ConfigError(
            "text= names two columns; denoising has one text per row",
            remedy="name one column",
        )
    language_model = config.kind in CORPUS_KINDS
    if language_model and layout.label is not None:
        raise ConfigError(
            f"kind={config.kind!r} has no labels; label={layout.label!r} was given",
            remedy="leave label= out, or choose another kind",
        )
    if layout.label is None and not language_model:
        raise ConfigError(
            "which column holds the label?" if config.kind is None
            else f"kind={config.kind!r} needs labels",
            remedy="pass label=, or kind='masked-lm', 'causal-lm' or 'denoising' for text without"
            " labels",
        )  # fmt: skip


def _check_columns(task: Task) -> None:
    """Every column that is named exists in every split, as far as that can be known now."""
    if isinstance(task.source, HubSource):
        return  # Asking would start a download; reading says the same.
    layout = task.layout
    named = [*layout.text, layout.label, layout.id, *task._named_columns()]
    for split in dict.fromkeys(part.split for part in task.parts.values()):
        known = task.source.columns(split)
        for name in named:
            if name is not None and name not in known:
                origin = (
                    str(task.source.files[split]) if isinstance(task.source, FileSource) else split
                )
                raise missing_column(name, known, origin)


def _with_labels(task: Task, config: TaskConfig) -> Task:
    """The task with kind, classes and metrics, found from the label column where not given."""
    label = task.layout.label
    kind, names = task.kind, task.label_names
    if label is not None:
        tables = [task._table(split) for split in task.source.splits] if _must_look(config) else []
        if config.kind is None:
            kind = cast(Kind, columns.infer_kind(tables, label))
            if config.label_names is not None and kind == "regression":
                kind = "classification"
        if kind in ("classification", "token-classification"):
            tags = kind == "token-classification"
            names = config.label_names or columns.infer_label_names(tables, label, tags=tags)
        elif config.label_names is not None:
            raise ConfigError(f"label_names= does not go with kind={kind!r}", remedy="leave it out")
    if len(set(map(columns.normalised, names))) < len(names):
        raise LabelError(
            f"the label names {', '.join(names)} are not distinct",
            remedy="give distinct names"
            if config.label_names
            else f"names that differ only in case or spaces are one name to a model: write each in"
            f" one way in the column {label!r}",
        )
    metrics = config.metrics or DEFAULT_METRICS[kind]
    return _checked_groups(
        replaced(task, kind=kind, label_names=names, metrics=metrics, _read=task._read)
    )


def _must_look(config: TaskConfig) -> bool:
    classes = config.kind in ("classification", "token-classification")
    return config.kind is None or (classes and config.label_names is None)


def _checked_groups(task: Task) -> Task:
    groups = task.label_groups
    if groups is None and task.config.merge is not None:
        raise ConfigError(
            "option merge says how the logits of gathered labels become one, and no labels are"
            " gathered",
            remedy="leave it out, or give label_groups",
        )
    if groups is not None and set(groups) != set(task.label_names):
        raise LabelError(
            f"label_groups names {', '.join(groups)}; the labels of task {task.name!r} are"
            f" {', '.join(task.label_names) or '(none)'}",
            remedy="give one group of model labels for each label of the task",
        )
    return task


def _catalogue_task(config: TaskConfig, name: str, entry: Entry) -> Task:
    fixed = ("text", "label", "id", "label_names", "subset", "quoting", "delimiter", "blocks")
    corpus = config.kind in CORPUS_KINDS
    _refuse(
        config, fixed if corpus else (*fixed, "kind"), f"is fixed for the catalogue task {name!r}",
        "leave it out; for other columns give the files as {'train': path, 'validation': path}",
    )  # fmt: skip
    source, layout = _catalogue_source(config, name, entry)
    _check_format(config, source)
    if corpus:
        entry, layout = (
            _without_labels(entry, cast(Kind, _kind_of_head(config.kind))),
            replaced(layout, label=None),
        )
        _check_layout(config, layout)
    splits = source.splits
    parts = {split: Part(split) for split in splits}
    parts.update({key: part for key, part in entry.parts.items() if part.split in splits})
    task = Task(
        name=config.name or name,
        kind=entry.kind,
        label_names=entry.label_names,
        metrics=config.metrics or entry.metrics,
        source=source,
        layout=layout,
        parts=parts,
        config=config,
        subsets=entry.subsets if config.subsets is None else config.subsets,
        label_groups=config.label_groups or entry.label_groups,
        merge=config.merge or entry.merge,
        aliases=entry.aliases,
        empty_text=entry.empty_text or config.empty_text,
        noise=_noise(config),
    )
    _check_columns(task)
    return _checked_groups(task)


def _without_labels(entry: Entry, kind: Kind) -> Entry:
    """The texts of a task as a corpus."""
    return replaced(
        entry,
        kind=kind,
        label_names=(),
        metrics=DEFAULT_METRICS[kind],
        parts={name: part for name, part in entry.parts.items() if "label" not in part.where},
        subsets=tuple(group for group in entry.subsets if "label" not in group),
        label_groups=None,
    )


def _catalogue_source(config: TaskConfig, name: str, entry: Entry) -> tuple[Source, Layout]:
    if config.data_dir is not None or config.files is not None:
        given = "data_dir" if config.files is None else "files"
        _refuse(config, ["revision"], f"does not go with {given}", "leave one of them out")
        if entry.folder is None:
            raise ConfigError(
                f"task {name!r} has no published files; {given}= was given", remedy="leave it out"
            )
        form = FileFormat(header=entry.folder.header, skip_bad_rows=config.skip_bad_rows)
        if config.data_dir is not None:
            _refuse(config, ["files"], "does not go with data_dir", "leave one of them out")
            path = _path(config.data_dir)
            return catalogue.folder_source(name, entry.folder, path, form), entry.folder.layout
        return FileSource(_splits_of(name, entry, config.files or {}), form), entry.folder.layout
    if entry.generator is not None:
        _refuse(config, ["revision"], "needs a hub data set", "leave it out")
        made = entry.generator
        return FunctionSource(made.function, made.splits, name), made.layout
    if entry.hub is None:
        raise ConfigError(
            f"task {name!r} is not on the hub", remedy="pass data_dir= with its published files"
        )
    hub = entry.hub
    revision = config.revision or hub.revision
    return HubSource(hub.name, hub.subset, revision, hub.splits), hub.layout


def _splits_of(name: str, entry: Entry, files: Mapping[str, str]) -> dict[str, Path]:
    """Files of a catalogue task by the task's own names of splits."""
    known = tuple(entry.folder.files) if entry.folder is not None else ()
    found: dict[str, Path] = {}
    for split, path in _named_files(files).items():
        own = entry.aliases.get(split, split)
        if own not in known:
            raise ConfigError(
                f"files.{split}: task {name!r} has no split of this name",
                remedy=f"splits with files: {', '.join(known)}",
            )
        found[own] = path
    return found
