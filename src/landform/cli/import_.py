"""`landform import`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from landform.cli.common import (
    DataFlags,
    OptionFlags,
    OutputConfig,
    OutputFlags,
    emit,
    make_task,
    open_study,
    print_table,
    save_csv,
)
from landform.errors import ConfigError
from landform.evaluation.evaluate import Evaluation
from landform.exchange.connections import ImportConfig, connection_of
from landform.exchange.evaluations import find_samples, read_evaluations
from landform.exchange.lines import Line, natural_order
from landform.results import Result
from landform.store.study import publish, slug
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
    if kind == "hub":
        _download(sources, out, download, match, repo_type, output)
        return
    if name and len(name) != len(sources):
        raise ConfigError(
            f"{len(name)} names for {len(sources)} sources", remedy="give one --name for each"
        )
    if kind == "fisher":
        _fisher(sources, checkpoint, out, store, keep_as, data, split, allow_pickle, output)
        return
    if kind == "traces":
        _traces(sources, out, allow_pickle, output)
        return
    if kind == "cartography":
        _map(sources, out, store, keep_as, data, split or "train", output)
        return
    if kind == "knowledge":
        _knowledge(sources, dynamics, name, store, keep_as, output)
        return
    split = split or "validation"
    wanted = _Wanted(name, allow_pickle, skip_unfinished, metrics)
    if kind == "samples":
        results = _evaluations(sources, suffixes, data, split, wanted)
    elif kind == "surface" and any(map(_is_hdf5, sources)):
        _landscapes(sources, name, store, keep_as, output)
        return
    elif kind == "surface":
        from landform.exchange.surfaces import read_surfaces

        surface = read_surfaces(sources, allow_pickle=allow_pickle, data=name[0] if name else None)
        results = {keep_as or "surface": surface}
    else:
        lines = _lines(kind, sources, wanted)
        models = natural_order(list({name for line in lines for name in (line.a, line.b)}))
        wanted = _Wanted((), False, False, metrics)
        further = _evaluations(samples, (), data, split, wanted, models)
        connection = connection_of(lines, evaluations=_by_data(further), config=options)
        results = {keep_as or "connect": connection, **further}
        if not output.json_:
            _say_lines(connection, options)
    _keep(results, store, output, readings=len(results) if kind == "samples" else 1)


def _say_lines(connection: Connection, options: ImportConfig) -> None:
    for data in connection.data:
        number = int((connection.pairs["data"] == data).sum())
        print(f"{data}: {number} lines between {len(connection.names)} models")
    print(f"intervals: none, the files hold no examples; noise floor {options.noise_floor:g} nats")


@dataclass(frozen=True)
class _Wanted:
    """What was asked of the files."""

    names: Sequence[str]
    allow_pickle: bool
    skip_unfinished: bool
    metrics: Sequence[str]


def _lines(kind: Kind, sources: Sequence[str], wanted: _Wanted) -> list[Line]:
    from landform.exchange.interpolations import read_interpolations
    from landform.exchange.logs import read_logs

    lines: list[Line] = []
    for place, source in enumerate(sources):
        data = wanted.names[place] if wanted.names else None
        if kind == "logs":
            lines += read_logs(source, data=data, skip_unfinished=wanted.skip_unfinished)
        else:
            lines += read_interpolations(
                source,
                allow_pickle=wanted.allow_pickle,
                data=data,
                metrics=wanted.metrics or None,
            )
    return lines


def _evaluations(
    sources: Sequence[str],
    suffixes: Sequence[str],
    data: TaskConfig,
    split: str,
    wanted: _Wanted,
    models: Sequence[str] = (),
) -> dict[str, Result]:
    """Evaluations under the names that `landform evaluate` keeps them."""
    task = make_task(data) if data.task or data.files else None
    found: dict[str, Result] = {}
    for place, source in enumerate(sources):
        default = task.name if task else _data_name(source)
        name = wanted.names[place] if wanted.names else default
        evaluations = read_evaluations(
            find_samples(source, suffixes, models=models),
            task=task,
            name=name,
            split=split,
            metrics=tuple(wanted.metrics),
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


def _keep(
    results: dict[str, Result], store: Path | None, output: OutputConfig, *, readings: int
) -> None:
    wrote = []
    if store is not None:
        kept = open_study(store)
        for title, result in results.items():
            publish(kept, title, result)
            wrote.append(store / "results" / title)
    shown = list(results.values())
    if len(shown) == 1:
        emit(shown[0], output, wrote)
    elif output.json_:
        emit({title: result.to_json() for title, result in results.items()}, output, wrote)
    else:
        for result in shown[:readings]:
            print(result.reading)
        emit({}, output, wrote)
    if store is not None and not output.json_:
        print(f"next: landform report {store}")


def _knowledge(
    sources: Sequence[str],
    dynamics: Path | None,
    name: Sequence[str],
    store: Path | None,
    keep_as: str | None,
    output: OutputConfig,
) -> None:
    from landform.exchange.knowledge import read_knowledge

    if len(sources) > 1 and (keep_as or dynamics):
        raise ConfigError(
            f"{len(sources)} sources, but one --keep-as or --dynamics",
            remedy="run the command once for each",
        )
    results: dict[str, Result] = {}
    for place, source in enumerate(sources):
        named = name[place] if name else None
        found = read_knowledge(source, cartography=dynamics, name=named)
        folder = Path(source) if Path(source).is_dir() else Path(source).parent
        results[keep_as or slug("knowledge", folder.name or "folder", found.data)] = found
    _keep(results, store, output, readings=len(results))


def _fisher(
    sources: list[str],
    checkpoint: str | None,
    out: Path | None,
    store: Path | None,
    keep_as: str | None,
    data: TaskConfig,
    split: str | None,
    allow_pickle: bool,
    output: OutputConfig,
) -> None:
    from landform.exchange.fisher_lists import read_fisher_list

    if checkpoint is None or out is None or len(sources) > 2:
        raise ConfigError(
            "a Fisher is read from one list (and a second one, of traces) with the names of a "
            "checkpoint, and written to a file",
            remedy="landform import fisher fisher_bert.pkl --checkpoint bert-base-uncased "
            "--allow-pickle --out fisher.safetensors",
        )
    found = read_fisher_list(
        sources[0],
        checkpoint,
        allow_pickle=allow_pickle,
        traces=sources[1] if len(sources) > 1 else None,
        kind=data.kind,
        task=data.task,
        split=split or "train",
    )
    wrote = [found.save(out)]
    if store is not None:
        title = keep_as or slug("fisher", Path(sources[0]).stem)
        publish(open_study(store), title, found.summary)
        wrote.append(store / "results" / title)
    emit(found.summary, output, wrote)


def _traces(sources: list[str], out: Path | None, allow_pickle: bool, output: OutputConfig) -> None:
    from landform.exchange.fisher_lists import read_trace_list

    if len(sources) > 1 or out is None:
        raise ConfigError("traces are read from one list", remedy="name a file for them: --out")
    table = read_trace_list(sources[0], allow_pickle=allow_pickle)
    values = table["mean_square"]
    if not output.json_:
        print(
            f"mean squared gradients of {len(table)} examples: mean {values.mean():.4g}, median "
            f"{values.median():.4g}, largest {values.max():.4g} (example {values.idxmax()})"
        )
    emit({"examples": len(table), "mean": values.mean()} if output.json_ else {}, output,
         save_csv(table, out))  # fmt: skip


def _is_hdf5(source: str) -> bool:
    return Path(source).suffix.lower() in (".h5", ".hdf5")


def _landscapes(
    sources: Sequence[str],
    name: Sequence[str],
    store: Path | None,
    keep_as: str | None,
    output: OutputConfig,
) -> None:
    """Random surfaces, one a file, and their statistics side by side."""
    from landform.exchange.landscapes import read_landscape
    from landform.geometry.landscape import landscape_statistics

    other = [source for source in sources if not _is_hdf5(source)]
    if other or (keep_as and len(sources) > 1):
        raise ConfigError(
            f"{other[0]} is no HDF5 file, and others are"
            if other
            else f"{len(sources)} surfaces, but one --keep-as",
            remedy="read files of one kind in one command; several .h5 keep their own names",
        )
    titles = name or [Path(source).stem for source in sources]
    found = [read_landscape(file, name=t) for file, t in zip(sources, titles, strict=True)]
    named = dict(zip(titles, found, strict=True))
    if len(named) < len(found):
        raise ConfigError("two surfaces have the same name", remedy="name them: --name, once each")
    statistics = landscape_statistics(named)
    if not output.json_:
        print_table(statistics)
    results: dict[str, Result] = {keep_as or slug(t): surface for t, surface in named.items()}
    wrote = []
    if store is not None:
        kept = open_study(store)
        for title, result in results.items():
            publish(kept, title, result)
            wrote.append(store / "results" / title)
    emit({"statistics": statistics.to_dict("records")} if output.json_ else {}, output, wrote)
    if store is not None and not output.json_:
        print(f"next: landform report {store}")


def _map(
    sources: list[str],
    out: Path | None,
    store: Path | None,
    keep_as: str | None,
    data: TaskConfig,
    split: str,
    output: OutputConfig,
) -> None:
    from landform.evaluation.cartography import FILE, map_of
    from landform.exchange.cartography import read_cartography

    if len(sources) > 1:
        raise ConfigError(
            f"{len(sources)} sources: cartography files are read one at a time",
            remedy="run the command once for each, with its own --out or --keep-as",
        )
    task = make_task(data) if data.task or data.files else None
    examples = None if task is None else task.examples(split)
    dynamics = read_cartography(sources[0], examples)
    if examples is not None:
        examples = examples.take(dynamics.rows)
    result = map_of(dynamics, run=sources[0], task=task, split=split, examples=examples)
    wrote = []
    if out is not None:
        dynamics.write(out / FILE)
        wrote.append(out / FILE)
    if store is not None:
        title = keep_as or slug("cartography", Path(sources[0]).stem)
        publish(open_study(store), title, result)
        wrote.append(store / "results" / title)
    emit(result, output, wrote)
    if store is not None and not output.json_:
        print(f"next: landform report {store}")


def _download(
    sources: Sequence[str],
    out: Path | None,
    download: Literal["eval", "logs"],
    match: tuple[str, ...],
    repo_type: Literal["model", "dataset"],
    output: OutputConfig,
) -> None:
    from landform.exchange.hub import fetch_files

    if out is None:
        raise ConfigError("no folder to download to", remedy="name one: --out FOLDER")
    wrote: list[Path] = []
    for source in sources:
        wrote += fetch_files(source, out, kind=download, match=match, repo_type=repo_type)
    if not output.json_:
        print(f"downloaded {len(wrote)} files to {out}")
    emit({"downloaded": len(wrote)}, output, wrote if output.json_ else [])
