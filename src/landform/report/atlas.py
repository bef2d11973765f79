"""The atlas: all results of a study in one HTML file that needs no network.

The page is useful without JavaScript (figures are embedded as SVG images), and with it has a heat
map that shows the curve behind every cell and tables that sort. The interactive parts are a few
kilobytes of our own SVG code rather than a plotting library, so that an atlas stays small enough
to mail. Everything a user named (checkpoints, data, labels) is escaped.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from landform.errors import ConfigError
from landform.report.average_figures import AVERAGE_KINDS
from landform.report.boundary_pages import BOUNDARY_KINDS
from landform.report.cartography_pages import CARTOGRAPHY_KINDS
from landform.report.comparison_figures import COMPARISON_KINDS
from landform.report.connection_pages import CONNECTION_KINDS
from landform.report.connectivity_pages import CONNECTIVITY_KINDS
from landform.report.dropout_figures import DROPOUT_KINDS
from landform.report.evaluation_pages import (
    EVALUATION_KINDS,
    EVALUATIONS,
    FIGURES_OF_EVALUATIONS,
)
from landform.report.example_pages import EXAMPLE_KINDS
from landform.report.fisher_figures import FISHER_KINDS
from landform.report.influence_pages import INFLUENCE_KINDS
from landform.report.knowledge_pages import KNOWLEDGE_KINDS
from landform.report.landscape_figures import LANDSCAPE_KINDS
from landform.report.mixing_figures import MIXING_KINDS
from landform.report.parts import Kind, Row, Together, fact, pretty
from landform.report.spectrum_figures import SPECTRUM_KINDS
from landform.store.artifacts import environment
from landform.store.atomic import atomic_path, file_errors

if TYPE_CHECKING:
    from jinja2 import Environment

__all__ = ["write_atlas"]


def write_atlas(
    path: str | os.PathLike[str],
    results: Any,
    *,
    title: str = "landform study",
    provenance: Mapping[str, Any] | None = None,
) -> Path:
    """Write the atlas of `results` under `title` to `path` and return the path.

    `results` is one result, a sequence of them, a mapping from names to results (grouped by kind,
    from what connects to what the data say, as in `KINDS`), or a mapping from section titles to
    sequences of results. `provenance` is shown as JSON at the end; versions of the installed
    libraries are added. The file is whole or absent. Raises `ConfigError` when there is nothing to
    show or a result has no place in an atlas, `StoreError` when the file cannot be written.
    """
    target = Path(path)
    if target.is_dir():
        target = target / "atlas.html"
    sections = _sections(results)
    page = render(sections, title=title, provenance=provenance)
    with file_errors("write the atlas", target):
        target.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(target, durable=True) as temporary:
            temporary.write_text(page, encoding="utf-8")
    return target


def render(
    sections: Mapping[str, Sequence[tuple[str, Any]]],
    *,
    title: str,
    provenance: Mapping[str, Any] | None,
) -> str:
    """The page as text; `sections` are titles with (name, result) pairs."""
    versions = environment()
    shown = [_section(n, name, list(items)) for n, (name, items) in enumerate(sections.items())]
    guides = list(dict.fromkeys(guide for section in shown for guide in section["guides"]))
    return (
        _templates()
        .get_template("atlas.html.j2")
        .render(
            title=title,
            sections=shown,
            guides=guides,
            version=versions["landform"],
            css=_asset("atlas.css"),
            script=_asset("atlas.js"),
            provenance=pretty(provenance),
            provenance_facts=[fact(name, value) for name, value in versions.items()],
        )
    )


@cache
def _templates() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    return Environment(
        loader=PackageLoader("landform.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _asset(name: str) -> str:
    return (resources.files("landform.report") / "templates" / name).read_text("utf-8")


# --- what goes where --------------------------------------------------------------------------


def _sections(results: Any) -> dict[str, list[tuple[str, Any]]]:
    """Titles with (name, result) pairs, from any of the forms that `write_atlas` takes."""
    sections: dict[str, list[tuple[str, Any]]] = {}
    if isinstance(results, Mapping):
        if not any(isinstance(value, Sequence) for value in results.values()):
            sections = {kind.title: [] for kind in KINDS.values()}  # in their order
        for name, value in results.items():
            if isinstance(value, Sequence):
                sections.setdefault(str(name), []).extend((_name(r), r) for r in value)
            else:
                sections.setdefault(_kind(value).title, []).append((str(name), value))
    else:
        for result in results if isinstance(results, Iterable) else [results]:
            sections.setdefault(_kind(result).title, []).append((_name(result), result))
    sections = {name: items for name, items in sections.items() if items}
    if not sections:
        raise ConfigError("there are no results to show", remedy="pass at least one result")
    return sections


def _kind(result: Any) -> Kind:
    for base in type(result).__mro__:
        if base.__name__ in KINDS:
            return KINDS[base.__name__]
    raise ConfigError(
        f"a {type(result).__name__} has no place in an atlas",
        remedy=f"it shows: {', '.join(KINDS)}",
    )


def _name(result: Any) -> str:
    return str(_kind(result).name(result))


def _section(number: int, title: str, items: list[tuple[str, Any]]) -> Row:
    evaluations = [r for _, r in items if _kind(r).title == EVALUATIONS]
    few = len(evaluations) <= FIGURES_OF_EVALUATIONS
    shown = []
    for k, (name, result) in enumerate(items):
        kind = _kind(result)
        if kind.title == EVALUATIONS and not few:
            continue
        anchor = f"s{number + 1}-{k + 1}"
        shown.append(
            {
                "name": name,
                "anchor": anchor,
                "reading": result.reading,
                "template": kind.template,
                "provenance": pretty(getattr(result, "provenance", None)),
                **kind.context(result, anchor, few),
            }
        )
    return {
        "title": title,
        "anchor": f"s{number + 1}",
        "entries": shown,
        "together": _together(items),
        "guides": list(dict.fromkeys(_kind(result).guide for _, result in items)),
    }


def _together(items: Sequence[tuple[str, Any]]) -> list[Together]:
    """What several results of one kind show together, per kind."""
    kinds: dict[str, tuple[Kind, list[tuple[str, Any]]]] = {}
    for name, result in items:
        kind = _kind(result)
        kinds.setdefault(kind.template, (kind, []))[1].append((name, result))
    return [
        kind.together(members)
        for kind, members in kinds.values()
        if kind.together is not None and len(members) > 1
    ]


# --- every kind of result -------------------------------------------------------------------

KINDS: dict[str, Kind] = {
    **CONNECTION_KINDS,
    **EVALUATION_KINDS,
    **CONNECTIVITY_KINDS,
    **LANDSCAPE_KINDS,
    **MIXING_KINDS,
    **AVERAGE_KINDS,
    **BOUNDARY_KINDS,
    **SPECTRUM_KINDS,
    **FISHER_KINDS,
    **DROPOUT_KINDS,
    **COMPARISON_KINDS,
    **CARTOGRAPHY_KINDS,
    **KNOWLEDGE_KINDS,
    **INFLUENCE_KINDS,
    **EXAMPLE_KINDS,
}
"""In the order of a study's sections: which basin, how good, the surface, curvature, the data."""
