"""The atlas: all results of a study in one HTML file that needs no network.

The page is useful without JavaScript (figures are embedded as SVG images), and with it has a heat
map that shows the curve behind every cell and tables that sort. The interactive parts are a few
kilobytes of our own SVG code rather than a plotting library, so that an atlas stays small enough
to mail. Everything a user named (checkpoints, data, labels) is escaped.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from landform.errors import ConfigError
from landform.report import figures
from landform.report.average_figures import AVERAGE_KINDS
from landform.report.boundary_pages import BOUNDARY_KINDS
from landform.report.cartography_pages import CARTOGRAPHY_KINDS
from landform.report.comparison_figures import COMPARISON_KINDS
from landform.report.connections import (
    basins_of,
    by_name,
    checkpoint_order,
    natural,
    split_curves,
    styles_of,
)
from landform.report.connectivity_pages import CONNECTIVITY_KINDS, transitivity_part
from landform.report.dropout_figures import DROPOUT_KINDS
from landform.report.example_pages import EXAMPLE_KINDS
from landform.report.fisher_figures import FISHER_KINDS
from landform.report.heatmap_figures import HEIGHTS, SHARES
from landform.report.influence_pages import INFLUENCE_KINDS
from landform.report.knowledge_pages import KNOWLEDGE_KINDS
from landform.report.landscape_figures import LANDSCAPE_KINDS
from landform.report.mixing_figures import MIXING_KINDS
from landform.report.parts import (
    Kind,
    Row,
    Together,
    all_rounded,
    as_text,
    data_table,
    packed,
    picture,
    pretty,
    rounded,
    table_cell,
    with_interval,
)
from landform.report.spectrum_figures import SPECTRUM_KINDS
from landform.report.style import (
    SEQUENTIAL_COLOURS,
    basin_styles,
    loss_label,
    loss_unit_of,
    metric_label,
    short_labels,
)
from landform.store.artifacts import environment
from landform.store.atomic import atomic_path, file_errors

if TYPE_CHECKING:
    from jinja2 import Environment

__all__ = ["write_atlas"]

FIGURES_OF_EVALUATIONS = 12


def write_atlas(
    path: str | os.PathLike[str],
    results: Any,
    *,
    title: str = "landform study",
    provenance: Mapping[str, Any] | None = None,
) -> Path:
    """Write the atlas of `results` to `path` and return the path.

    `results` is one result, a sequence of them, a mapping from names to results (grouped by kind),
    or a mapping from section titles to sequences of results. `provenance` is shown as JSON at the
    end; versions of the installed libraries are added. The file is whole or absent. Raises
    `ConfigError` when there is nothing to show or a result has no place in an atlas, `StoreError`
    when the file cannot be written.
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
            provenance_facts=[
                {"label": name, "value": value, "note": ""} for name, value in versions.items()
            ],
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
    evaluations = [r for _, r in items if _kind(r).title == "Evaluations"]
    few = len(evaluations) <= FIGURES_OF_EVALUATIONS
    shown = []
    for k, (name, result) in enumerate(items):
        kind = _kind(result)
        if kind.title == "Evaluations" and not few:
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


# --- a connection -----------------------------------------------------------------------------


def _connection(result: Any, anchor: str, few: bool) -> Row:
    basins = basins_of(result)
    encoding, payload = packed(_explorer(result))
    return {
        "facts": _connection_facts(result, basins),
        "heatmap": picture(
            figures.plot_heatmap,
            result,
            alt="Heat map of the convexity gaps of all pairs, ordered by basin",
        ),
        "encoding": encoding,
        "payload": payload,
        "curves": picture(
            figures.plot_curves,
            result,
            alt="Loss along every line, pairs within a basin against pairs between basins",
            caption="Thin: every pair. Thick: their mean. Band: the middle 80 % of the pairs.",
        ),
        "basin_sentence": _basin_sentence(result, basins),
        "members": _members(basins),
        "eigenvalues": picture(
            figures.plot_eigenvalues,
            result,
            alt="Eigenvalues of the Laplacian of the affinities",
            caption="The number of basins is where the eigenvalues jump.",
        )
        if result.clustering is not None
        else {"source": "", "caption": ""},
        "statistics": _statistics_table(result),
        "behaviour": _behaviour(result, basins),
        "basin_metrics": _basin_metrics(result),
        "endpoints": picture(
            figures.plot_endpoints,
            result,
            alt="Every checkpoint on every data set and subset, coloured by basin",
        ),
        "checkpoints": _checkpoints(result, basins),
        "triangles": transitivity_part(getattr(result, "transitivity", None), loss_unit_of(result)),
    }


def _connection_facts(result: Any, basins: pd.Series | None) -> list[Row]:
    """The key numbers."""
    unit = loss_unit_of(result)
    rows = result.pairs[result.pairs["data"] == result.data[0]]
    n, walked = len(result.names), len(rows)
    facts: list[Row] = [
        {"label": "checkpoints", "value": n, "note": ""},
        {"label": "lines walked", "value": walked, "note": f"of {n * (n - 1) // 2} possible"},
        {
            "label": "model evaluations",
            "value": f"{result.evaluations:,}",
            "note": "every checkpoint once, then the inner points of every line"
            + (f"; each on {len(result.data)} data sets" if len(result.data) > 1 else ""),
        },
    ]
    if basins is not None:
        sizes = ", ".join(str(size) for size in basins.value_counts().sort_index())
        value = basins.nunique()
        facts.append({"label": "basins", "value": value, "note": f"sizes {sizes}"})
        same = np.array([basins[a] == basins[b] for a, b in zip(rows["a"], rows["b"], strict=True)])
        for label, mask in (("gap within basins", same), ("gap between basins", ~same)):
            facts += _median_fact(label, rows["convexity_gap"].to_numpy()[mask], unit)
    else:
        facts += _median_fact("gap", rows["convexity_gap"].to_numpy(), unit)
    if "noise_floor" in rows:
        floor = rows["noise_floor"].median()
        above = int((rows["convexity_gap"] > rows["noise_floor"]).sum())
        note = f"median; {above} of {walked} gaps are above their floor"
        facts.append({"label": "noise floor", "value": f"{as_text(floor, 2)} {unit}", "note": note})
    return facts


def _median_fact(label: str, gaps: np.ndarray, unit: str) -> list[Row]:
    if not len(gaps):
        return []
    pairs = "pair" if len(gaps) == 1 else "pairs"
    note = f"median of {len(gaps)} {pairs}, {as_text(gaps.min(), 3)} to {as_text(gaps.max(), 3)}"
    value = f"{as_text(float(np.median(gaps)), 3)} {unit}"
    return [{"label": label, "value": value, "note": note}]


def _basin_sentence(result: Any, basins: pd.Series | None) -> str:
    if basins is None:
        return (
            "Basins were not determined: that needs the lines between all pairs, and this study"
            " walked only some of them."
        )
    count, n = basins.nunique(), len(basins)
    if count == 1:
        text = f"There is one basin: the gaps do not divide the {n} checkpoints, so there is"
        text += " nothing to compare between basins."
    elif count == n:
        text = f"No two of the {n} checkpoints share a basin."
    else:
        text = f"There are {count} basins."
    note = getattr(result.clustering, "note", "")
    confidence = getattr(result.clustering, "confidence", None)
    if confidence is not None and confidence < 0.5:
        text += " The gaps show no clear groups (confidence under 0.5): read this with caution."
    return f"{text} How it was decided: {note}." if note else text


def _members(basins: pd.Series | None) -> list[Row]:
    if basins is None:
        return []
    styles = basin_styles(basins)
    return [
        {
            "title": f"basin {basin} ({len(members)})",
            "colour": styles[int(basin)].colour,
            "names": ", ".join(sorted(map(str, members.index), key=natural)),
        }
        for basin, members in basins.groupby(basins)
    ]


STATISTIC_TITLES = {
    "n_basin": "n basin 0",
    "n_rest": "n rest",
    "mean_basin": "mean basin 0",
    "sd_basin": "sd basin 0",
    "auc": "AUC",
    "auc_low": "AUC low",
    "auc_high": "AUC high",
    "p_value": "p (permutation)",
    "pearson_r": "r with centroid difference",
    "spearman_rho": "rho with centroid difference",
    "predictor_p": "p of r (permutation)",
    "partial_r": "partial r of membership, in-domain held fixed",
}


def _all_alone(result: Any) -> bool:
    """Nobody shares a basin: then "the largest basin" is an arbitrary checkpoint."""
    basins = basins_of(result)
    return basins is not None and bool(basins.value_counts().max() == 1)


def _statistics_table(result: Any) -> Row | None:
    table = result.statistics
    if table is None or not len(table) or _all_alone(result):
        return None
    if "role" in table:
        # The confound first: below thirty subsets nobody would see it.
        table = table.sort_values("role", key=lambda role: role != "in-domain", kind="stable")
    return data_table(
        table,
        "statistics of the largest basin against the rest",
        titles=STATISTIC_TITLES,
        caption="The largest basin against the rest, per metric. The shaded row is the in-domain"
        " metric: where it separates the basins as well, an out-of-distribution difference may be"
        " no more than a difference in quality.",
        mark=lambda row: "confound" if row.get("role") == "in-domain" else "",
    )


def _basin_metrics(result: Any) -> Row | None:
    table = getattr(result, "basin_metrics", None)
    return None if table is None or not len(table) else data_table(table, "metrics of every basin")


def _behaviour(result: Any, basins: pd.Series | None) -> list[Row]:
    """Histogram and centroid scatter of the first metric and of the one that separates best."""
    table = result.statistics
    if (
        basins is None
        or basins.nunique() < 2
        or table is None
        or not len(table)
        or _all_alone(result)
    ):
        return []
    ood = table[table["role"] == "ood"] if "role" in table else table
    chosen = {str(ood["metric"].iloc[0]): "The first of the metrics compared."} if len(ood) else {}
    if len(ood) > 1 and "auc" in ood:
        # Said in the caption: the best of many is selected, and looks better than it is.
        best = str(ood["metric"][(ood["auc"] - 0.5).abs().idxmax()])
        caption = f"Of {len(ood)} metrics compared, the one that separates the basins most."
        if best in chosen:
            caption = f"The first of {len(ood)} metrics compared; none separates the basins more."
        chosen[best] = caption
    drawings = (
        (figures.plot_basin_histogram, "by basin"),
        (figures.plot_centroid_scatter, "by centroid difference"),
    )
    return [
        picture(draw, result, name, alt=f"{metric_label(name)} {how}", caption=caption)
        for name, caption in chosen.items()
        for draw, how in drawings
    ]


def _checkpoints(result: Any, basins: pd.Series | None) -> Row:
    """One row per checkpoint, sortable; metrics as in `endpoints`."""
    order = checkpoint_order(result)
    frame = pd.DataFrame({"checkpoint": order})
    colours: dict[str, str] = {}
    if basins is not None:
        styles = basin_styles(basins)
        frame["basin"] = [int(basins[name]) for name in order]
        colours = {name: styles[int(basins[name])].colour for name in order}
    gaps = result.matrix("convexity_gap").loc[order, order]
    frame["mean gap to others"] = gaps.mask(np.eye(len(order), dtype=bool)).mean().to_numpy()
    difference = getattr(result.clustering, "centroid_difference", None)
    if difference is not None:
        frame["centroid difference"] = by_name(difference, result.names)[order].to_numpy()
    endpoints = result.endpoints.loc[order].reset_index(drop=True)
    endpoints.columns = [metric_label(str(column)) for column in endpoints.columns]
    return data_table(
        pd.concat([frame, endpoints], axis=1),
        "checkpoints",
        caption="Press a heading to sort.",
        colours=colours,
    )


# --- the data of the interactive heat map ------------------------------------------------------


def _explorer(result: Any) -> Row:
    """Everything the page's heat map and pair curves need, in as few characters as possible."""
    names = [str(name) for name in result.names]
    basins, styles = styles_of(result)
    known = basins_of(result) is not None
    where = {name: k for k, name in enumerate(names)}
    return {
        "names": names,
        "colours": list(SEQUENTIAL_COLOURS),
        "basinColours": [styles[int(basins[name])].colour for name in names],
        "basinNames": [f"basin {int(basins[name])}" if known else "" for name in names],
        "quantities": [
            {
                "key": key,
                "label": figures.quantity_label(result, key),
                "height": key in HEIGHTS,
                "share": key in SHARES,
            }
            for key in figures.QUANTITIES
            if key in result.pairs
        ],
        "orders": _orders(result, where),
        "sets": [_set(result, data, where) for data in result.data],
    }


def _orders(result: Any, where: Mapping[str, int]) -> list[Row]:
    keys = {"basin": "basin", "seed": "name"} | {
        str(column): metric_label(str(column)) for column in result.endpoints.columns
    }
    return [
        {"label": label, "rows": [where[name] for name in checkpoint_order(result, key)]}
        for key, label in keys.items()
    ]


PAIR_FIELDS = (
    "convexity_gap",
    "gap_low",
    "gap_high",
    "barrier_height",
    "barrier_low",
    "barrier_high",
    "noise_floor",
    "distance",
    "bump_height",
    "area_under_curve",
    "error_agreement",
    "functional_similarity",
    "js_distance",
)


def _set(result: Any, data: str, where: Mapping[str, int]) -> Row:
    """One data set: every pair's numbers and its curve."""
    rows = result.pairs[result.pairs["data"] == data]
    table = result.curves[result.curves["data"] == data]
    curves: dict[tuple[str, str], Row] = {}
    for column, key in (("loss", "loss"), ("loss_low", "low"), ("loss_high", "high")):
        if column in table:
            for a, b, t, values in split_curves(table, column):
                curve = curves.setdefault((a, b), {"t": all_rounded(t)})
                curve[key] = all_rounded(values)
    common = next(iter(curves.values()))["t"] if curves else []
    pairs = []
    for row in rows.to_dict("records"):
        curve = dict(curves.get((str(row["a"]), str(row["b"])), {}))
        if curve.get("t") == common:
            curve.pop("t")
        numbers = {field: rounded(row[field]) for field in PAIR_FIELDS if field in row}
        pairs.append({"i": where[row["a"]], "j": where[row["b"]], **numbers, **curve})
    units = {"loss": loss_label(result), "unit": loss_unit_of(result)}
    return {"name": data, **units, "t": common, "pairs": pairs}


# --- the other results ------------------------------------------------------------------------


def _interpolation(result: Any, anchor: str, few: bool) -> Row:
    row = result.summary.iloc[0]
    unit = loss_unit_of(result)
    facts = [
        {"label": "from (t = 0)", "value": result.a, "note": ""},
        {"label": "to (t = 1)", "value": result.b, "note": ""},
        {"label": "distance", "value": as_text(result.distance), "note": ""},
    ]
    for key, label in (("barrier", "barrier height"), ("gap", "convexity gap")):
        column = "barrier_height" if key == "barrier" else "convexity_gap"
        value = with_interval(row[column], row[f"{key}_low"], row[f"{key}_high"])
        facts.append({"label": label, "value": value, "note": f"{unit}, on {row['data']}"})
    return {
        "facts": facts,
        "figure": picture(figures.plot_interpolation, result, alt="Loss and metric along the line"),
        "summary": data_table(result.summary, "barrier and gap per data set"),
        "points": data_table(result.table, "points of the line"),
    }


def _evaluation(result: Any, anchor: str, few: bool) -> Row:
    return {
        "figure": picture(figures.plot_evaluation, result, alt="Calibration and metrics"),
        "subsets": data_table(result.subsets, "metrics of subsets")
        if len(result.subsets)
        else None,
    }


def _comparison(items: Sequence[tuple[str, Any]]) -> Together:
    """All evaluations of a section in one table."""
    evaluations = [result for _, result in items]
    metrics = list(dict.fromkeys(name for e in evaluations for name in e.metrics))
    rows = []
    for e, label in zip(evaluations, _checkpoint_names(evaluations), strict=True):
        cells = [table_cell(label), table_cell(f"{e.task}:{e.split}"), table_cell(len(e.log))]
        for name in metrics:
            value = e.metrics.get(name, math.nan)
            interval = e.intervals.get(name)
            text = None if interval is None else with_interval(value, *interval)
            cells.append(table_cell(value, text=text))
        rows.append({"cells": cells, "mark": ""})
    columns = [{"title": t, "numeric": False} for t in ("checkpoint", "data")]
    columns += [{"title": t, "numeric": True} for t in ("examples", *map(metric_label, metrics))]
    caption = "Brackets are bootstrap intervals over the examples. Press a heading to sort."
    if len(evaluations) > FIGURES_OF_EVALUATIONS:
        caption += f" Figures are shown for at most {FIGURES_OF_EVALUATIONS} evaluations."
    return Together(
        {
            "label": "evaluations",
            "caption": caption,
            "sortable": True,
            "columns": columns,
            "rows": rows,
        }
    )


def _checkpoint_names(evaluations: Sequence[Any]) -> list[str]:
    names = list(dict.fromkeys(str(e.checkpoint) for e in evaluations))
    short = dict(zip(names, short_labels(names, 48), strict=True))
    return [short[str(e.checkpoint)] for e in evaluations]


def _training(result: Any, anchor: str, few: bool) -> Row:
    return {
        "figure": picture(figures.plot_training, result, alt="Training loss of every run"),
        "runs": data_table(result.runs, "training runs", caption="Press a heading to sort."),
    }


KINDS: dict[str, Kind] = {
    "Connection": Kind(
        "Connections",
        "connection.html.j2",
        _connection,
        lambda r: f"{len(r.names)} checkpoints on {', '.join(r.data)}",
    ),
    "Interpolation": Kind(
        "Lines", "interpolation.html.j2", _interpolation, lambda r: f"{r.a} to {r.b}"
    ),
    "Evaluation": Kind(
        "Evaluations",
        "evaluation.html.j2",
        _evaluation,
        lambda r: f"{r.checkpoint} on {r.task}:{r.split}",
        together=_comparison,
    ),
    "Training": Kind("Training", "training.html.j2", _training, lambda r: f"{r.model} on {r.task}"),
    **CARTOGRAPHY_KINDS,
    **BOUNDARY_KINDS,
    **CONNECTIVITY_KINDS,
    **EXAMPLE_KINDS,
    **FISHER_KINDS,
    **AVERAGE_KINDS,
    **INFLUENCE_KINDS,
    **KNOWLEDGE_KINDS,
    **LANDSCAPE_KINDS,
    **DROPOUT_KINDS,
    **MIXING_KINDS,
    **SPECTRUM_KINDS,
    **COMPARISON_KINDS,
}
