"""`landform export`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from landform.cli.common import OutputConfig, OutputFlags, check_unread, emit
from landform.errors import ConfigError
from landform.evaluation.evaluate import Evaluation
from landform.evaluation.samples import write_samples
from landform.store.artifacts import Store
from landform.store.study import load_results, slug
from landform.weights.checkpoint import unique_tails

__all__ = ["export"]

Kind = Literal[
    "logs", "interpolations", "surface", "samples", "cartography", "knowledge", "line", "fisher"
]

_READ_BY: dict[str, tuple[Kind, ...]] = {
    "result": ("logs", "interpolations", "surface", "samples", "cartography", "knowledge", "line"),
    "only": ("logs", "interpolations", "surface", "samples", "knowledge"),
    "as": ("surface",),
    "directions_of": ("surface",),
    "fisher": ("surface",),
}
"""The kinds that read an option which not all do."""


def export(
    kind: Kind,
    store: Path,
    /,
    *,
    out: Annotated[Path, Parameter(required=True)],
    result: str | None = None,
    only: tuple[str, ...] = (),
    as_: Annotated[Literal["pickle", "hdf5"] | None, Parameter(name="--as")] = None,
    directions_of: str | None = None,
    fisher: Path | None = None,
    output: Annotated[OutputConfig, OutputFlags] = OutputConfig(),
) -> None:
    """Write results of a study in the formats of other programs.

    Example: landform export logs study --out logs

    Parameters
    ----------
    kind
        logs: text logs of the lines of a connection; interpolations: its pickles; surface: pickles
        of a plane through three models, HDF5 of random surfaces; samples: per-sample JSON of
        every evaluation; cartography: cartography.json of every data map; knowledge: lists of
        examples, counts and the report of the forgotten (--only: several splits of one line); line:
        result.csv and solution_analysis.txt of a line; fisher: the lists of the guided-dropout
        scripts.
    store
        The study directory; for cartography also a run that was trained with it; for fisher the
        file of a Fisher.
    out
        Folder to write to.
    result
        Name of the result (default: the only one of its kind).
    only
        Only these data sets, as the result names them.
    as_
        surface: the format (default: pickle for a plane through three models, hdf5 for random
        directions, a file for every surface and data set).
    directions_of
        surface: the model that a random surface is around; its directions are drawn again and
        written too.
    fisher
        surface: the Fisher that they are masked by.
    """
    given = {"result": result, "only": only, "as": as_, "directions_of": directions_of,
             "fisher": fisher}  # fmt: skip
    for name, kinds in _READ_BY.items():
        where = f"on export {kind}"
        if kind not in kinds:
            check_unread({name: given[name]}, where, f"it is of export {', '.join(kinds)}")
    if directions_of is None:
        check_unread({"fisher": fisher}, "without directions_of", "name the model of the surface")
    if kind == "cartography":
        wrote = _maps(store, out, result)
    elif kind == "fisher":
        wrote = _fishers(store, out)
    else:
        results = load_results(Store.open(store, create=False))
        if kind == "samples":
            wrote = _samples(results, out, result, only)
        elif kind == "knowledge":
            wrote = _knowledge(results, out, result, only, store)
        elif kind == "line":
            wrote = _line(results, store, out, result)
        elif kind == "surface":
            wrote = _surfaces(results, store, out, result, only, as_, directions_of, fisher)
        else:
            wrote = _connection(kind, results, store, out, result, only)
    emit({"written": len(wrote)} if output.json_ else {}, output, wrote)


def _fishers(source: Path, out: Path) -> list[Path]:
    from landform.curvature.fisher import load_fisher
    from landform.exchange.fisher_lists import write_fisher_lists

    return write_fisher_lists(load_fisher(source), out)


def _line(results: dict[str, Any], store: Path, out: Path, name: str | None) -> list[Path]:
    from landform.exchange.knowledge import write_line
    from landform.geometry.line import Interpolation

    return write_line(_one(results, Interpolation, name, store), out)


def _connection(
    kind: Literal["logs", "interpolations"],
    results: dict[str, Any],
    store: Path,
    out: Path,
    name: str | None,
    only: tuple[str, ...],
) -> list[Path]:
    """The lines of a connection, as logs or as pickles of every data set."""
    from landform.exchange.interpolations import write_interpolations
    from landform.exchange.logs import write_logs
    from landform.studies.connect import Connection

    connection: Connection = _one(results, Connection, name, store)
    if kind == "logs":
        return write_logs(connection, out, only or None)
    return [
        write_interpolations(connection, out / f"interpol_{slug(*data.split(':'))}.pkl", data)
        for data in only or connection.data
    ]


def _surfaces(
    results: dict[str, Any],
    store: Path,
    out: Path,
    name: str | None,
    only: tuple[str, ...],
    as_: Literal["pickle", "hdf5"] | None,
    directions_of: str | None,
    fisher: Path | None,
) -> list[Path]:
    """A plane as pickles; random surfaces, one or those of a landscape, as HDF5."""
    from landform.exchange.landscapes import directions_name, write_directions, write_landscape
    from landform.exchange.surfaces import write_surfaces
    from landform.geometry.landscape import Landscape
    from landform.geometry.surface import Surface

    fitting = {t: v for t, v in results.items() if isinstance(v, Surface | Landscape)}
    only_one = next(iter(fitting)) if name is None and len(fitting) == 1 else name
    chosen = fitting.get(only_one or "")
    if chosen is None:
        chosen = _one(results, Surface, name, store)
    if as_ == "pickle" or (as_ is None and getattr(chosen, "mode", "random") == "plane"):
        if isinstance(chosen, Landscape):
            raise ConfigError("a landscape has no pickles", remedy="use --as hdf5")
        given = {"only": only, "directions_of": directions_of}
        check_unread(given, "on pickles", "they hold every data set and no directions: --as hdf5")
        return write_surfaces(chosen, out)
    wrote = []
    for surface in chosen.surfaces if isinstance(chosen, Landscape) else (chosen,):
        masked = () if surface.mask == "none" else tuple(surface.mask.split(" by "))
        pair = surface.provenance.get("pair", 0)
        parts = (*surface.names, *masked, *([f"pair{pair}"] if pair else []))
        drawn = out / directions_name(Path(f"surf_{slug(*parts)}.h5"))
        for data in only or surface.data:
            several = [data] if len(only or surface.data) > 1 else []
            path = out / f"surf_{slug(*parts, *several)}.h5"
            wrote.append(write_landscape(surface, path, data=data, dir_file=drawn.name))
        if directions_of is not None:
            wrote.append(write_directions(surface, drawn, around=directions_of, fisher=fisher))
    return wrote


def _one(results: dict[str, Any], kind: type, name: str | None, store: Path) -> Any:
    """The result of a kind: the one that is named, or the only one."""
    fitting = {title: value for title, value in results.items() if isinstance(value, kind)}
    if name is not None and name in fitting:
        return fitting[name]
    if name is None and len(fitting) == 1:
        return next(iter(fitting.values()))
    known = ", ".join(fitting) or "none"
    raise ConfigError(
        f"{store} holds no {kind.__name__.lower()} {name!r}"
        if name
        else f"{store} holds {len(fitting)} results of the kind {kind.__name__.lower()}",
        remedy=f"name one (--result): {known}",
    )


def _knowledge(
    results: dict[str, Any], out: Path, name: str | None, only: tuple[str, ...], store: Path
) -> list[Path]:
    """One result, or with `only` those of one line on these data sets."""
    from landform.exchange.knowledge import write_knowledge
    from landform.geometry.knowledge import Knowledge

    if not only:
        return write_knowledge(_one(results, Knowledge, name, store), out)
    chosen = [
        value for value in results.values() if isinstance(value, Knowledge) and value.data in only
    ]
    if name is not None:
        own = _one(results, Knowledge, name, store)
        chosen = [k for k in chosen if (k.a, k.b, k.path) == (own.a, own.b, own.path)]
    missing = [data for data in only if data not in {k.data for k in chosen}]
    lines = {(k.a, k.b, k.path) for k in chosen}
    if missing or len(lines) > 1:
        raise ConfigError(
            f"{store} holds nothing known on {missing[0]}"
            if missing
            else f"{store} holds what is known along {len(lines)} lines",
            remedy="name a result of the line (--result), and data sets as it names them (--only)",
        )
    return write_knowledge(chosen, out)


def _maps(store: Path, out: Path, name: str | None) -> list[Path]:
    from landform.evaluation.cartography import FILE, DataMap, read_dynamics
    from landform.exchange.cartography import dynamics_of, write_cartography

    if store.is_file() or (store / FILE).is_file():
        return [write_cartography(read_dynamics(store), out / "cartography.json")]
    results = load_results(Store.open(store, create=False))
    maps = {
        title: value
        for title, value in results.items()
        if isinstance(value, DataMap) and name in (None, title)
    }
    if not maps:
        raise ConfigError(
            f"{store} holds no data map" + (f" called {name}" if name else ""),
            remedy="make one: landform cartography RUN --store STUDY",
        )
    return [
        write_cartography(dynamics_of(value), out / f"{title}.json")
        for title, value in maps.items()
    ]


def _samples(
    results: dict[str, Any], out: Path, name: str | None, only: tuple[str, ...]
) -> list[Path]:
    chosen: dict[str, dict[str, Evaluation]] = {}
    for title, value in results.items():
        if not isinstance(value, Evaluation) or value.kind != "classification":
            continue
        if name in (None, title) and (not only or f"{value.task}:{value.split}" in only):
            folder = chosen.setdefault(slug(value.task, value.split), {})
            folder[os.path.normpath(value.checkpoint)] = value
    wrote = []
    for part, values in chosen.items():
        for tail, value in zip(unique_tails(list(values)), values.values(), strict=True):
            path = out / part / f"{slug(tail)}.json"
            write_samples(path, value.log, value.label_names)
            wrote.append(path)
    if not wrote:
        raise ConfigError(
            "the study holds no evaluation of classes" + (f" called {name}" if name else ""),
            remedy="make some: landform evaluate ... --store STUDY",
        )
    return wrote
