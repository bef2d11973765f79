"""The report of a study directory: every result kept there, in one page or in single figures."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pandas as pd

from landform.errors import ConfigError, StoreError
from landform.report import figures
from landform.report.atlas import write_atlas
from landform.report.figures import save_all
from landform.report.style import Figure, check_figure, save, unknown, using
from landform.store.artifacts import Store
from landform.store.atomic import check_place
from landform.store.study import load_results

__all__ = ["draw_kept", "kept_figures", "parse_options", "write_figure", "write_report"]


def write_report(
    study: Path, *, out: Path | None = None, figures: Path | None = None, title: str | None = None
) -> list[Path]:
    """Write the atlas of `study` (and, if asked, its figures as PDF); the files written."""
    if figures is not None:
        check_place(figures / "figure.pdf")
    store = Store.open(study, create=False)
    results = _kept(study, store)
    provenance = {name: store.published_manifest(name) for name in results}
    path = write_atlas(
        out or study / "atlas.html",
        results,
        title=title or study.resolve().name,
        provenance=provenance,
    )
    return [path, *(save_all(results, figures) if figures is not None else ())]


def _kept(study: Path, store: Store | None = None) -> dict[str, Any]:
    results = load_results(store or Store.open(study, create=False))
    if not results:
        raise StoreError(
            f"{study} holds no results yet",
            remedy="run landform connect, evaluate or interpolate with --store first",
        )
    return results


# --- single figures ---------------------------------------------------------------------------


def kept_figures(study: Path, patterns: Sequence[str] = ()) -> pd.DataFrame:
    """The results kept in a study (those that match, if there are patterns) and their figures.

    Columns result, kind, figures (the main one first). Raises `StoreError` where there are none
    and `ConfigError` where a pattern matches nothing.
    """
    results = _kept(study)
    names = [name for group in _groups(results, patterns).values() for name in group]
    rows = [
        {
            "result": name,
            "kind": type(results[name]).__name__,
            "figures": ", ".join(_figures_of(results[name])),
        }
        for name in dict.fromkeys(names)
    ]
    return pd.DataFrame(rows)


def draw_kept(
    study: Path,
    patterns: Sequence[str] = (),
    *,
    which: str | None = None,
    options: Sequence[str] = (),
    style: str | None = None,
) -> tuple[str, Figure]:
    """A figure of one kept result, or of several side by side; with a name for its file.

    `patterns` name the results (`*` matches any letters). Without them the results that have the
    figure `which` are meant, if that is one; figures of several results take all of them.
    `options` are texts `name=value` for the figure's own options, `style` is "paper" or a file of
    matplotlib's settings. `ConfigError` says what there is where a name is unknown.
    """
    results = _kept(study)
    groups = _groups(results, patterns or _fitting(results, which))
    chosen = [name for group in groups.values() for name in group]
    together = figures.TOGETHER.get(which or "")
    with using(style):
        if together is not None and (
            len(chosen) > 1 or which not in _figures_of(results[chosen[0]])
        ):
            _check_kinds(str(which), {name: results[name] for name in chosen})
            given = parse_options(together, options)
            return str(which), together(_operands(results, groups), **given)
        if len(chosen) > 1:
            raise ConfigError(
                f"figure {which or 'the main one'} shows one result, and {len(chosen)} are meant:"
                f" {', '.join(chosen[:8])}",
                remedy=f"name one of them, or use --which {' or '.join(figures.TOGETHER)}",
            )
        known = _figures_of(results[chosen[0]])
        name = which or next(iter(known))
        if name not in known:
            raise unknown("figure", name, known)
        return f"{chosen[0]}-{name}", known[name](
            results[chosen[0]], **parse_options(known[name], options)
        )


def write_figure(
    study: Path,
    patterns: Sequence[str] = (),
    *,
    which: str | None = None,
    out: Path | None = None,
    options: Sequence[str] = (),
    style: str | None = None,
) -> Path:
    """`draw_kept`, written to `out` (by default STUDY/figures/RESULT-FIGURE.pdf)."""
    if out is not None:
        check_figure(out)
    name, figure = draw_kept(study, patterns, which=which, options=options, style=style)
    with using(style):
        return save(figure, out or study / "figures" / f"{name}.pdf")


def _figures_of(result: object) -> dict[str, Callable[..., Figure]]:
    try:
        return figures.figures_of(result)
    except ConfigError:
        return {}


def _fitting(results: Mapping[str, Any], which: str | None) -> list[str]:
    """The results meant where none was named."""
    if which is None:
        if len(results) == 1:
            return list(results)
        raise ConfigError(
            f"which of {len(results)} results?",
            remedy=f"name one: {', '.join(results)}",
        )
    if which == "score_distributions":
        raise ConfigError(
            "score distributions compare two groups of results",
            remedy="name two results or patterns, such as 'first-*' 'second-*'",
        )
    fitting = [name for name, result in results.items() if which in _figures_of(result)]
    if not fitting and which in figures.TOGETHER:
        kinds = set(figures.OPERANDS[which])
        fitting = [
            name
            for name, result in results.items()
            if kinds & {kind.__name__ for kind in type(result).__mro__}
        ]
        if not fitting:
            raise ConfigError(
                f"figure {which} takes results of the kind {' or '.join(sorted(kinds))}, and this"
                " study keeps none",
                remedy="landform figure STUDY lists what it keeps",
            )
    if not fitting:
        known = dict.fromkeys(f for r in results.values() for f in _figures_of(r))
        raise unknown("figure", which, [*known, *figures.TOGETHER])
    return fitting


def _groups(results: Mapping[str, Any], patterns: Sequence[str]) -> dict[str, list[str]]:
    """pattern -> the results it matches; everything where there are none."""
    groups: dict[str, list[str]] = {}
    for pattern in patterns or ("*",):
        exact = [pattern] if pattern in results else []
        groups[pattern] = exact or [name for name in results if fnmatchcase(name, pattern)]
        if not groups[pattern]:
            raise unknown("result", pattern, list(results))
    return groups


def _check_kinds(which: str, members: Mapping[str, Any]) -> None:
    wanted = figures.OPERANDS[which]
    for name, result in members.items():
        kinds = [kind.__name__ for kind in type(result).__mro__]
        if not set(wanted) & set(kinds):
            raise ConfigError(
                f"figure {which}: {name} is a {kinds[0]}, not of the kind {' or '.join(wanted)}",
                remedy="name results of that kind; landform figure STUDY lists them",
            )


def _operands(results: Mapping[str, Any], groups: Mapping[str, list[str]]) -> dict[str, Any]:
    """What a figure of several results takes: a result per name, or a list per pattern."""
    if all(len(names) == 1 for names in groups.values()) or len(groups) == 1:
        return {name: results[name] for names in groups.values() for name in names}
    return {
        pattern: results[names[0]] if len(names) == 1 else [results[name] for name in names]
        for pattern, names in groups.items()
    }


# --- options as text --------------------------------------------------------------------------


def parse_options(draw: Callable[..., Figure], texts: Sequence[str]) -> dict[str, Any]:
    """`name=value` texts as keyword arguments of a figure, by the types of its parameters.

    Several values are separated by commas (`clip_x=-0.5,1.5`). Raises `ConfigError` for a text
    without `=`, an option that the figure does not have, and a value of another type.
    """
    _, *parameters = inspect.signature(draw).parameters.values()
    known = {p.name: str(p.annotation) for p in parameters}
    options = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals:
            raise ConfigError(
                f"option {text!r} has no value", remedy="write name=value, such as levels=20"
            )
        if name not in known:
            raise unknown("option", name, list(known) or ["none"])
        options[name] = _value(name, value, known[name])
    return options


def _value(name: str, text: str, annotation: str) -> Any:
    if text.lower() == "none" and "None" in annotation:
        return None
    if "Range" in annotation or "Sequence[float]" in annotation:
        return tuple(_typed(name, part, float) for part in text.split(","))
    if "Sequence" in annotation and ("," in text or "| str" not in f"| {annotation}"):
        return [part.strip() for part in text.split(",")]
    for kind in (bool, int, float):
        if kind.__name__ in annotation and "str" not in annotation:
            return _typed(name, text, kind)
    return text


def _typed(name: str, text: str, kind: type) -> Any:
    words = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
    try:
        return words[text.lower()] if kind is bool else kind(text)
    except (KeyError, ValueError):
        expected = {bool: "true or false", int: "a whole number", float: "a number"}[kind]
        raise ConfigError(f"option {name}: {text!r} is not {expected}") from None
