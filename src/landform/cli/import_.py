"""`landform import`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from landform.cli.common import (
    DataFlags,
    OptionFlags,
    OutputConfig,
    OutputFlags,
    check_unread,
    emit,
    keep_result,
    open_study,
    print_table,
    save_csv,
    say_next,
    task_or_none,
)
from landform.config import Config
from landform.errors import ConfigError
from landform.evaluation.evaluate import Evaluation
from landform.exchange.connections import ImportConfig, connection_of
from landform.exchange.evaluations import find_samples, read_evaluations
from landform.exchange.lines import Line, natural_order
from landform.results import Result
from landform.store.study import slug
from landform.studies.connect import Connection
from landform.tasks.task import TaskConfig

__all__ = ["import_"]

Kind = Literal[
    "logs",
    "interpolations",
    "surface",
    "samples",
    "cartography",
    "knowledge",
    "hub",
    "fisher",
    "traces",
]


def import_(
    kind: Kind,
    sources: Annotated[list[str], Parameter(required=True)],
    /,
    *,
    store: Path | None = None,
    keep_as: str | None = None,
    name: tuple[str, ...] = (),
    suffixes: tuple[str, ...] = (),
    samples: tuple[str, ...] = (),
    allow_pickle: Annotated[bool, Parameter(negative=())] = False,
    skip_unfinished: Annotated[bool, Parameter(negative=())] = False,
    metrics: tuple[str, ...] = (),
    out: Path | None = None,
    download: Literal["eval", "logs"] = "eval",
    match: tuple[str, ...] = (),
    repo_type: Literal["model", "dataset"] = "model",
    data: Annotated[TaskConfig, DataFlags] = TaskConfig(),
    split: str | None = None,
    dynamics: Path | None = None,
    checkpoint: str | None = None,
    options: Annotated[ImportConfig, OptionFlags] = ImportConfig(),
    output: Annotated[OutputConfig, OutputFlags] = OutputConfig(),
) -> None:
    """Read the files of the connectivity project, or download them from the hub.

    Example: landform import logs mnli_logs hans_logs --store study

    Parameters
    ----------
    kind
        logs: text logs of interpolate_1d; interpolations: its pickles; surface: pickles of
        interpolate_2d, or HDF5 files (.h5) of random surfaces; samples: per-sample JSON of many
        models; cartography: cartography.json of training dynamics; knowledge: a
        *_data_analysis.json, or the folder of the valid one; fisher: the fisher_*.pkl of the
        guided-dropout scripts (and individual_gradients.pkl, as a second source); traces:
        individual_gradients.pkl alone; hub: download, read nothing.
    sources
        logs: folders or files, one data set each, the first makes the basins. samples: prefixes or
        folders, one data set each. hub: prefixes of models, or repositories of logs.
    store
        Study directory: the result is kept there, for 'landform report'.
    keep_as
        Name of the result in the study (default: connect, surface).
    name
        Names of the data sets, in the order of the sources (default: what the files say).
    suffixes
        samples: only these files, PREFIX + suffix + .json.
    samples
        logs, interpolations: prefixes or folders of per-sample files of the same models, whose
        metrics are compared between basins.
    allow_pickle
        Read pickles: numbers, texts, containers and arrays in them, and nothing else.
    skip_unfinished
        logs: leave out pairs whose job was killed, instead of an error.
    metrics
        interpolations: names of the columns after the loss. samples: metrics to compute.
    out
        hub: folder to download to. cartography: folder for the record, which landform cartography
        reads. fisher: file for the Fisher (.safetensors). traces: file for the table (.csv).
    download
        hub: the evaluations of all models of a prefix, or the logs of a repository.
    match
        hub: patterns of file names to download in place of the usual ones.
    repo_type
        hub: what kind of repository it is.
    split
        The split of the task that per-sample files are from (of cartography: train).
    dynamics
        knowledge: the cartography.json of the same training file.
    checkpoint
        fisher: a checkpoint of the model, which tells the names; --kind for another head than its
        own.
    """
    asked = _Asked(
        tuple(sources), store, keep_as, name, suffixes, samples, allow_pickle, skip_unfinished,
        metrics, out, download, match, repo_type, data, split, dynamics, checkpoint, options,
        output,
    )  # fmt: skip
    asked.check(kind)
    _IMPORTS[kind](asked)


@dataclass(frozen=True)
class _Asked:
    """What the command was given."""

    sources: tuple[str, ...]
    store: Path | None
    keep_as: str | None
    name: tuple[str, ...]
    suffixes: tuple[str, ...]
    samples: tuple[str, ...]
    allow_pickle: bool
    skip_unfinished: bool
    metrics: tuple[str, ...]
    out: Path | None
    download: Literal["eval", "logs"]
    match: tuple[str, ...]
    repo_type: Literal["model", "dataset"]
    data: TaskConfig
    split: str | None
    dynamics: Path | None
    checkpoint: str | None
    options: ImportConfig
    output: OutputConfig

    def check(self, kind: Kind) -> None:
        """Raise for options that this kind does not read."""
        for option, kinds in _READ_BY.items():
            value = getattr(self, option)
            if isinstance(value, Config):
                given: dict[str, object] = dict.fromkeys(value.options_given(), True)
            else:
                given = {option: None if value == _DEFAULTS.get(option) else value}
            if kind not in kinds:
                check_unread(given, f"on import {kind}", f"it is of import {', '.join(kinds)}")
        if kind in _LINES and not self.samples:
            given = {**dict.fromkeys(self.data.options_given(), True), "split": self.split}
            check_unread(given, "without samples", "it is about the per-sample files: --samples")
        if self.name and len(self.name) != len(self.sources):
            raise ConfigError(
                f"{len(self.name)} names for {len(self.sources)} sources",
                remedy="give one --name for each",
            )

    def keep(self, title: str, result: Result) -> list[Path]:
        """Keep a result where there is a study; the directories written."""
        if self.store is None:
            return []
        return keep_result(result, open_study(self.store), self.store, title)


def _samples(asked: _Asked) -> None:
    results = _evaluations(
        asked, asked.sources, asked.suffixes, names=asked.name, metrics=asked.metrics
    )
    _hand_out(asked, results, readings=len(results))


def _surface(asked: _Asked) -> None:
    if any(map(_is_hdf5, asked.sources)):
        _landscapes(asked)
        return
    from landform.exchange.surfaces import read_surfaces

    data = asked.name[0] if asked.name else None
    found = read_surfaces(list(asked.sources), allow_pickle=asked.allow_pickle, data=data)
    _hand_out(asked, {asked.keep_as or "surface": found})


def _connection(asked: _Asked, lines: list[Line]) -> None:
    """What lies between the models of lines, with the evaluations of the same models."""
    models = natural_order(list({name for line in lines for name in (line.a, line.b)}))
    further = _evaluations(asked, asked.samples, (), metrics=asked.metrics, models=models)
    connection = connection_of(lines, evaluations=_by_data(further), config=asked.options)
    if not asked.output.json_:
        _say_lines(connection, asked.options)
    _hand_out(asked, {asked.keep_as or "connect": connection, **further})


def _logs(asked: _Asked) -> None:
    from landform.exchange.logs import read_logs

    names = asked.name or (None,) * len(asked.sources)
    lines: list[Line] = []
    for source, data in zip(asked.sources, names, strict=True):
        lines += read_logs(source, data=data, skip_unfinished=asked.skip_unfinished)
    _connection(asked, lines)


def _interpolations(asked: _Asked) -> None:
    from landform.exchange.interpolations import read_interpolations

    names = asked.name or (None,) * len(asked.sources)
    lines: list[Line] = []
    for source, data in zip(asked.sources, names, strict=True):
        lines += read_interpolations(
            source, allow_pickle=asked.allow_pickle, data=data, metrics=asked.metrics or None
        )
    _connection(asked, lines)


def _say_lines(connection: Connection, options: ImportConfig) -> None:
    for data in connection.data:
        number = int((connection.pairs["data"] == data).sum())
        print(f"{data}: {number} lines between {len(connection.names)} models")
    print(f"intervals: none, the files hold no examples; noise floor {options.noise_floor:g} nats")


def _evaluations(
    asked: _Asked,
    sources: Sequence[str],
    suffixes: Sequence[str],
    *,
    names: Sequence[str] = (),
    metrics: Sequence[str] = (),
    models: Sequence[str] = (),
) -> dict[str, Result]:
    """Evaluations under the names that `landform evaluate` keeps them."""
    task, split = task_or_none(asked.data), asked.split or "validation"
    found: dict[str, Result] = {}
    for place, source in enumerate(sources):
        default = task.name if task else _data_name(source)
        name = names[place] if names else default
        evaluations = read_evaluations(
            find_samples(source, suffixes, models=models),
            task=task,
            name=name,
            split=split,
            metrics=tuple(metrics),
        )
        found |= {slug("evaluate", m, name, split): e for m, e in evaluations.items()}
    return found


def _data_name(source: str) -> str:
    """`hans` of logs/hans_eval_bert_."""
    import re

    return re.split(r"_?eval", Path(source).name)[0].strip("_-") or Path(source).name


def _by_data(results: dict[str, Result]) -> list[dict[str, Evaluation]]:
    """The evaluations of each data set, by model."""
    found: dict[str, dict[str, Evaluation]] = {}
    for result in results.values():
        if isinstance(result, Evaluation):
            data = f"{result.task}:{result.split}"
            found.setdefault(data, {})[result.checkpoint] = result
    return list(found.values())


def _hand_out(asked: _Asked, results: dict[str, Result], *, readings: int = 1) -> None:
    """Keep results and print them: of several so many readings."""
    wrote = [path for title, result in results.items() for path in asked.keep(title, result)]
    shown, output = list(results.values()), asked.output
    if len(shown) == 1:
        emit(shown[0], output, wrote)
    elif output.json_:
        emit({title: result.to_json() for title, result in results.items()}, output, wrote)
    else:
        for result in shown[:readings]:
            print(result.reading)
        emit({}, output, wrote)
    say_next(asked.store, output)


def _knowledge(asked: _Asked) -> None:
    from landform.exchange.knowledge import read_knowledge

    if len(asked.sources) > 1 and (asked.keep_as or asked.dynamics):
        raise ConfigError(
            f"{len(asked.sources)} sources, but one --keep-as or --dynamics",
            remedy="run the command once for each",
        )
    results: dict[str, Result] = {}
    for place, source in enumerate(asked.sources):
        named = asked.name[place] if asked.name else None
        found = read_knowledge(source, cartography=asked.dynamics, name=named)
        folder = Path(source) if Path(source).is_dir() else Path(source).parent
        results[asked.keep_as or slug("knowledge", folder.name or "folder", found.data)] = found
    _hand_out(asked, results, readings=len(results))


def _fisher(asked: _Asked) -> None:
    from landform.exchange.fisher_lists import read_fisher_list

    first, *second = asked.sources
    if asked.checkpoint is None or asked.out is None or len(second) > 1:
        raise ConfigError(
            "a Fisher is read from one list (and a second one, of traces) with the names of a "
            "checkpoint, and written to a file",
            remedy="landform import fisher fisher_bert.pkl --checkpoint bert-base-uncased "
            "--allow-pickle --out fisher.safetensors",
        )
    found = read_fisher_list(
        first,
        asked.checkpoint,
        allow_pickle=asked.allow_pickle,
        traces=second[0] if second else None,
        kind=asked.data.kind,
        task=asked.data.task,
        split=asked.split or "train",
    )
    wrote = [found.save(asked.out)]
    wrote += asked.keep(asked.keep_as or slug("fisher", Path(first).stem), found.summary)
    emit(found.summary, asked.output, wrote)


def _traces(asked: _Asked) -> None:
    from landform.exchange.fisher_lists import read_trace_list

    if len(asked.sources) > 1 or asked.out is None:
        raise ConfigError("traces are read from one list", remedy="name a file for them: --out")
    table = read_trace_list(asked.sources[0], allow_pickle=asked.allow_pickle)
    values = table["mean_square"]
    if not asked.output.json_:
        print(
            f"mean squared gradients of {len(table)} examples: mean {values.mean():.4g}, median "
            f"{values.median():.4g}, largest {values.max():.4g} (example {values.idxmax()})"
        )
    emit(
        {"examples": len(table), "mean": values.mean()} if asked.output.json_ else {},
        asked.output,
        save_csv(table, asked.out),
    )


def _is_hdf5(source: str) -> bool:
    return Path(source).suffix.lower() in (".h5", ".hdf5")


def _landscapes(asked: _Asked) -> None:
    """Random surfaces, one a file, and their statistics side by side."""
    from landform.exchange.landscapes import read_landscape
    from landform.geometry.landscape import landscape_statistics

    sources, keep_as = asked.sources, asked.keep_as
    other = [source for source in sources if not _is_hdf5(source)]
    if other or (keep_as and len(sources) > 1):
        raise ConfigError(
            f"{other[0]} is no HDF5 file, and others are"
            if other
            else f"{len(sources)} surfaces, but one --keep-as",
            remedy="read files of one kind in one command; several .h5 keep their own names",
        )
    titles = asked.name or tuple(Path(source).stem for source in sources)
    found = [read_landscape(file, name=t) for file, t in zip(sources, titles, strict=True)]
    named = dict(zip(titles, found, strict=True))
    if len(named) < len(found):
        raise ConfigError("two surfaces have the same name", remedy="name them: --name, once each")
    statistics = landscape_statistics(named)
    if not asked.output.json_:
        print_table(statistics)
    results: dict[str, Result] = {keep_as or slug(t): surface for t, surface in named.items()}
    wrote = [path for title, result in results.items() for path in asked.keep(title, result)]
    emit(
        {"statistics": statistics.to_dict("records")} if asked.output.json_ else {},
        asked.output,
        wrote,
    )
    say_next(asked.store, asked.output)


def _map(asked: _Asked) -> None:
    from landform.evaluation.cartography import FILE, map_of
    from landform.exchange.cartography import read_cartography

    source, *others = asked.sources
    if others:
        raise ConfigError(
            f"{len(asked.sources)} sources: cartography files are read one at a time",
            remedy="run the command once for each, with its own --out or --keep-as",
        )
    task, split = task_or_none(asked.data), asked.split or "train"
    examples = None if task is None else task.examples(split)
    dynamics = read_cartography(source, examples)
    if examples is not None:
        examples = examples.take(dynamics.rows)
    result = map_of(dynamics, run=source, task=task, split=split, examples=examples)
    wrote = []
    if asked.out is not None:
        dynamics.write(asked.out / FILE)
        wrote.append(asked.out / FILE)
    wrote += asked.keep(asked.keep_as or slug("cartography", Path(source).stem), result)
    emit(result, asked.output, wrote)
    say_next(asked.store, asked.output)


def _download(asked: _Asked) -> None:
    from landform.exchange.hub import fetch_files

    out, output = asked.out, asked.output
    if out is None:
        raise ConfigError("no folder to download to", remedy="name one: --out FOLDER")
    wrote: list[Path] = []
    for source in asked.sources:
        wrote += fetch_files(
            source, out, kind=asked.download, match=asked.match, repo_type=asked.repo_type
        )
    if not output.json_:
        print(f"downloaded {len(wrote)} files to {out}")
    emit({"downloaded": len(wrote)}, output, wrote if output.json_ else [])


_IMPORTS: dict[Kind, Callable[[_Asked], None]] = {
    "logs": _logs,
    "interpolations": _interpolations,
    "surface": _surface,
    "samples": _samples,
    "cartography": _map,
    "knowledge": _knowledge,
    "hub": _download,
    "fisher": _fisher,
    "traces": _traces,
}
_LINES: tuple[Kind, ...] = ("logs", "interpolations")
_KEPT: tuple[Kind, ...] = (*_LINES, "surface", "samples", "cartography", "knowledge", "fisher")
_READ_BY: dict[str, tuple[Kind, ...]] = {
    "store": _KEPT,
    "keep_as": tuple(kind for kind in _KEPT if kind != "samples"),
    "name": (*_LINES, "surface", "samples", "knowledge"),
    "suffixes": ("samples",),
    "samples": _LINES,
    "allow_pickle": ("interpolations", "surface", "fisher", "traces"),
    "skip_unfinished": ("logs",),
    "metrics": (*_LINES, "samples"),
    "out": ("hub", "cartography", "fisher", "traces"),
    "download": ("hub",),
    "match": ("hub",),
    "repo_type": ("hub",),
    "data": (*_LINES, "samples", "cartography", "fisher"),
    "split": (*_LINES, "samples", "cartography", "fisher"),
    "dynamics": ("knowledge",),
    "checkpoint": ("fisher",),
    "options": _LINES,
}
"""The kinds that read an option which not all do."""
_DEFAULTS = {"download": "eval", "repo_type": "model"}
