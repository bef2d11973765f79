"""The atlas pages of connectivity beyond lines: planes, sharpness, paths, ridges, dynamics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from landform.report import connectivity_figures as figures
from landform.report import path_figures, sharpness_figures
from landform.report.parts import (
    NO_PICTURE,
    TEXTS,
    Kind,
    Row,
    Together,
    all_rounded,
    as_text,
    data_table,
    fact,
    packed,
    picture,
    rounded,
    with_interval,
    with_texts,
)
from landform.report.style import (
    SEQUENTIAL_COLOURS,
    column_label,
    loss_unit_of,
    metric_label,
    percent,
    short_labels,
)
from landform.report.surface_figures import (
    is_low_good,
    plot_surface,
    plot_surface_3d,
    plot_surfaces,
    surface_metrics,
    value_at,
)

__all__ = ["CONNECTIVITY_KINDS", "transitivity_part"]

ROWS = 60  # of a long table
LETTERS = 400  # of a text
PLANES = 6  # side by side
GUIDE = "connectivity_reading.html.j2"


def _first(table: pd.DataFrame, rows: int = ROWS) -> pd.DataFrame:
    return table.head(rows)


def _caption(table: pd.DataFrame, text: str, rows: int = ROWS) -> str:
    return f"{text} The first {rows} of {len(table):,}." if len(table) > rows else text


# --- planes -----------------------------------------------------------------------------------


def _surface(result: Any, anchor: str, few: bool) -> Row:
    encoding, payload = packed(_plane(result))
    points = result.points.copy()
    for metric in surface_metrics(result):
        values = {name: value_at(result, metric, *at) for name, at in result.models.items()}
        points[metric] = [values[name] for name in points["name"]]
    return {
        "facts": _surface_facts(result),
        "static": picture(
            plot_surface, result, alt="Contours of the loss over the plane, with the models on it"
        ),
        "relief": picture(
            plot_surface_3d,
            result,
            alt="The same as a relief",
            caption="The first data set as a relief; its contours lie on the floor.",
        ),
        "encoding": encoding,
        "payload": payload,
        "points": data_table(
            points, "models on the plane", caption=f"Values on {result.data[0]}, where they lie."
        ),
    }


def _surface_facts(result: Any) -> list[Row]:
    low, high = result.grid("loss"), loss_unit_of(result)
    row, column = np.unravel_index(int(np.nanargmin(low)), low.shape)
    cells = len(result.x) * len(result.y)
    facts = [
        fact("models", len(result.models), ", ".join(result.models)),
        fact("cells", f"{len(result.x)} × {len(result.y)}", f"{cells} on each data set"),
        fact("model evaluations", f"{result.evaluations:,}"),
        fact("unit of both axes", as_text(result.unit), "length in the space of weights"),
        fact(
            "lowest loss",
            f"{as_text(float(np.nanmin(low)), 3)} {high}",
            f"at ({as_text(result.x[column], 3)}, {as_text(result.y[row], 3)}), {result.data[0]}",
        ),
        fact("highest loss", f"{as_text(float(np.nanmax(low)), 3)} {high}", result.data[0]),
    ]
    if "evaluated" in result.table:
        done = float(result.table["evaluated"].astype(bool).mean())
        if done < 1:
            facts.append(fact("evaluated", percent(done), "of the cells; the rest interpolated"))
    return facts


def _plane(result: Any) -> Row:
    """Everything the page's map needs; values row by row from the lowest y."""
    models = [{"name": name, "x": x, "y": y} for name, (x, y) in result.models.items()]
    return {
        "x": all_rounded(np.asarray(result.x, float)),
        "y": all_rounded(np.asarray(result.y, float)),
        "unit": rounded(result.unit),
        "models": models,
        "colours": list(SEQUENTIAL_COLOURS),
        "sets": [_plane_set(result, data) for data in result.data],
    }


def _plane_set(result: Any, data: str) -> Row:
    metrics = []
    rows = result.table[result.table["data"] == data]
    for name in surface_metrics(result):
        if not rows[name].notna().any():
            continue
        label = column_label(result, name)
        entry: Row = {"key": name, "label": label, "low_is_good": is_low_good(name)}
        for column, key in ((name, "values"), (f"{name}_low", "low"), (f"{name}_high", "high")):
            if column in rows and rows[column].notna().any():
                entry[key] = all_rounded(np.asarray(result.grid(column, data), float).ravel())
        metrics.append(entry)
    evaluated: list[int] = []
    if "evaluated" in rows and not rows["evaluated"].all():
        square = rows.assign(evaluated=rows["evaluated"].astype(float)).pivot(
            index="y", columns="x", values="evaluated"
        )
        ordered = square.loc[list(result.y), list(result.x)].to_numpy()
        evaluated = [int(value) for value in ordered.ravel()]
    return {"name": data, "metrics": metrics, "evaluated": evaluated}


def _surfaces_together(items: Sequence[tuple[str, Any]]) -> Together:
    """Planes of one section on one colour scale."""
    shown = dict(items[:PLANES])
    caption = "The loss on the first data set of every plane, on one colour scale."
    if len(items) > PLANES:
        caption += f" The first {PLANES} of {len(items)} planes."
    return Together(
        figures=[
            picture(plot_surfaces, shown, alt="All planes on one colour scale", caption=caption)
        ]
    )


# --- sharpness --------------------------------------------------------------------------------


def _sharpness(result: Any, anchor: str, few: bool) -> Row:
    unit = loss_unit_of(result)
    value = with_interval(result.value, result.value_low, result.value_high)
    facts = [
        fact("checkpoint", result.checkpoint, f"on {result.data}"),
        fact("sharpness", value, result.normalisation),
        fact("method", result.method, f"epsilon {as_text(result.epsilon)}"),
        fact("loss", f"{as_text(result.loss)} {unit}", "at the checkpoint"),
        fact("maximum", f"{as_text(result.maximum)} {unit}", "the highest that was found"),
    ]
    for name, label, note in (
        ("reach", "reach", "share of the region used"),
        ("distance", "distance", "to the point found, of the norm of the weights"),
    ):
        number = getattr(result, name, None)
        if number is not None and np.isfinite(number):
            facts.append(fact(label, as_text(number, 3), note))
    return {
        "facts": facts,
        "figure": picture(
            sharpness_figures.plot_climb, result, alt="Loss over the steps of every restart"
        ),
        "steps": data_table(
            _first(result.table), "steps of the ascent", caption=_caption(result.table, "Steps.")
        ),
    }


def _comparison(result: Any, anchor: str, few: bool) -> Row:
    table = result.table
    facts = [
        fact("checkpoints", table["checkpoint"].nunique(), ", ".join(result.data)),
        fact("methods", table["method"].nunique(), ", ".join(map(str, table["method"].unique()))),
    ]
    wide = table.rename(columns={str(c): metric_label(str(c)) for c in table if "/" in str(c)})
    return {
        "facts": facts,
        "figure": picture(
            sharpness_figures.plot_sharpness_scatter,
            result,
            alt="An out-of-distribution metric against sharpness, a panel per method",
            caption="Bars are the intervals of the sharpness over examples.",
        ),
        "correlations": data_table(
            result.correlations,
            "rank correlations of sharpness with every metric",
            titles={"spearman": "Spearman", "p_value": "p", "p_holm": "p (Holm)"},
            caption="Over checkpoints. The shaded rows are the in-domain metrics: where sharpness"
            " follows those as well, it may only rank models by quality.",
            mark=lambda row: "confound" if row.get("in_domain") else "",
        )
        if len(result.correlations)
        else None,
        "table": data_table(wide, "sharpness and metrics", caption="Press a heading to sort."),
    }


# --- bent paths -------------------------------------------------------------------------------


def _of_chord(result: Any) -> str:
    return f"{result.length / result.chord:.3f} × the chord" if result.chord else ""


def _path(result: Any, anchor: str, few: bool) -> Row:
    first = result.summary["data"].iloc[0]
    rows = result.summary[result.summary["data"] == first].set_index("path")
    unit = f"{loss_unit_of(result)}, on {first}"
    facts = [
        fact("from", result.a),
        fact("to", result.b),
        fact("curve", result.curve, _of_chord(result)),
        fact("length", as_text(result.length), f"the straight line: {as_text(result.chord)}"),
    ]
    for path, label in (("curve", "barrier of the path"), ("line", "barrier of the line")):
        if path in rows.index:
            row: Any = rows.loc[path]
            value = with_interval(row["barrier_height"], row["barrier_low"], row["barrier_high"])
            facts.append(fact(label, value, unit))
    reduction = getattr(result, "reduction", None)
    if reduction is not None and len(reduction):
        saved = reduction.iloc[0]
        value = with_interval(saved["barrier"], saved["low"], saved["high"])
        facts.append(fact("saved by bending", value, f"{unit}; paired over examples"))
    return {
        "facts": facts,
        "figure": picture(
            path_figures.plot_path, result, alt="Loss along the path and along the straight line"
        ),
        "distances": picture(
            path_figures.plot_path_distances,
            result,
            alt="Distances to both ends",
            caption="How far every point is from both ends. Full: the path. Dashed: the line.",
        ),
        "summary": data_table(result.summary, "barrier and gap of both paths per data set"),
        "points": data_table(result.table, "points of the path"),
    }


def _fit(result: Any, anchor: str, few: bool) -> Row:
    ends = result.history["loss"]
    edge = max(1, len(ends) // 10)
    facts = [
        fact("from", result.a),
        fact("to", result.b),
        fact("curve", result.kind, f"{result.bends} bend{'' if result.bends == 1 else 's'}"),
        fact("steps", len(ends)),
        fact(
            "loss",
            f"{as_text(float(ends.tail(edge).mean()), 3)} {loss_unit_of(result)}",
            "mean of the last tenth",
        ),
        fact("length", as_text(result.length), f"the straight line: {as_text(result.chord)}"),
    ]
    return {
        "facts": facts,
        "figure": picture(path_figures.plot_fit, result, alt="Loss while the path was fitted"),
    }


# --- complexes --------------------------------------------------------------------------------


def _complex(result: Any, anchor: str, few: bool) -> Row:
    bases = sum(result.base)
    facts = [
        fact("vertices", len(result.names), f"{bases} fixed, {len(result.names) - bases} fitted"),
        fact("simplexes", len(result.cliques), "maximal cliques"),
        fact("volume", as_text(result.volume), f"squared {as_text(result.volume_squared)}"),
    ]
    return {
        "facts": facts,
        "figure": picture(
            path_figures.plot_complex,
            result,
            alt="Loss of random points of every simplex, and the history of the fit",
            caption="Left: points drawn uniformly from every simplex, their mean as a bar.",
        ),
        "cliques": _clique_table(result),
        "vertices": data_table(result.vertices, "the vertices themselves")
        if len(getattr(result, "vertices", ()))
        else None,
    }


def _clique_table(result: Any) -> Row | None:
    samples = result.samples
    if not len(samples):
        return None
    keys = [key for key in ("data", "clique") if key in samples]
    numbers = [
        str(c)
        for c in samples
        if c not in (*keys, "sample") and not str(c).endswith(("_low", "_high"))
    ]
    table = samples.groupby(keys, sort=False)[numbers].mean().reset_index()
    worst = samples.groupby(keys, sort=False)["loss"].max().to_numpy()
    table["clique"] = [path_figures.clique_label(result, clique) for clique in table["clique"]]
    table.insert(len(keys) + 1, "highest loss", worst)
    return data_table(table, "means over the points of every simplex", caption="Means of points.")


# --- triangles --------------------------------------------------------------------------------


def transitivity_part(result: Any, unit: str = "as the loss") -> Row | None:
    """The triangles of a connection or of a result of its own; None where there are none."""
    if result is None or not result.triples:
        return None
    share = percent(result.share)
    if np.isfinite(getattr(result, "share_low", np.nan)):
        share += f" [{percent(result.share_low)}, {percent(result.share_high)}]"
    facts = [
        fact("triples", f"{result.triples:,}", f"of {len(result.names)} checkpoints"),
        fact("violations", f"{result.violations:,}", share),
        fact("mean excess", as_text(result.mean, 3), f"of the violations, {unit}"),
        fact("in percent", as_text(result.mean_percent, 3), "of the direct gap"),
    ]
    if getattr(result, "clear", None) is not None:
        facts.append(fact("beyond noise", result.clear, "excess above the line's noise floor"))
    for name, value in (result.compat or {}).items():
        facts.append(fact(str(name).replace("_", " "), as_text(value), "as the original script"))
    return {
        "facts": facts,
        "figure": picture(
            figures.plot_transitivity,
            result,
            alt="Histogram of the percentage violations of the triangle inequality",
        ),
        "table": data_table(
            _first(result.table), "violations", caption=_caption(result.table, "Violations.")
        )
        if len(result.table)
        else None,
    }


def _transitivity(result: Any, anchor: str, few: bool) -> Row:
    facts = [fact("triples", result.triples, f"of {len(result.names)} checkpoints")]
    return transitivity_part(result) or {"facts": facts, "figure": NO_PICTURE, "table": None}


# --- who rises --------------------------------------------------------------------------------


def _ridge(result: Any, anchor: str, few: bool) -> Row:
    unit = loss_unit_of(result)
    facts = [
        fact("from", result.a),
        fact("to", result.b),
        fact("position", as_text(result.t, 3), "t of the ridge"),
        fact(
            "examples that rise",
            percent(result.rising),
            f"{percent(result.low)} to {percent(result.high)}, of {len(result.table):,}",
        ),
    ]
    if hasattr(result, "mean_low"):
        value = with_interval(result.mean, result.mean_low, result.mean_high)
        facts.append(fact("mean rise", value, f"{unit}, on {result.data}"))
    if hasattr(result, "cross_fit_low"):
        value = with_interval(result.cross_fit, result.cross_fit_low, result.cross_fit_high)
        facts.append(fact("cross-fitted", value, "the ridge chosen on other examples"))
    columns = [c for c in result.table if c not in ("id", "cross_fit", "weight")]
    order = [c for c in ("rank", "rise", "text") if c in columns]
    table = result.table[[*order, *(c for c in columns if c not in order)]]
    return {
        "facts": facts,
        "figure": picture(
            figures.plot_ridge, result, alt="Rises of all examples, sorted, with their shares"
        ),
        "shares": data_table(
            result.shares,
            "share of the rise that the first examples carry",
            caption="The part of all that rises which the first examples carry.",
        ),
        "table": data_table(
            with_texts(_first(table), LETTERS),
            "examples",
            caption=_caption(table, "Largest rises."),
            prose=TEXTS,
        ),
    }


# --- over time --------------------------------------------------------------------------------


def _dynamics(result: Any, anchor: str, few: bool) -> Row:
    switched = result.positions.groupby("name")["switched"].any()
    last = result.basins.iloc[:, -1]
    facts = [
        fact("checkpoints", len(result.names)),
        fact("steps", len(result.steps), ", ".join(map(str, result.steps))),
        fact("basins at the end", int(last.dropna().nunique())),
        fact("switch basins", int(switched.sum()), ", ".join(map(str, switched[switched].index))),
    ]
    basins = result.basins.rename(columns=lambda step: f"step {step}")
    return {
        "facts": facts,
        "figure": picture(
            figures.plot_dynamics,
            result,
            alt="Arrows of every checkpoint from step to step, those that switch coloured",
        ),
        "agreement": data_table(
            result.agreement,
            "agreement of the basins of two steps",
            titles={"adjusted_rand": "adjusted Rand index"},
        ),
        "basins": data_table(
            basins.reset_index(names="checkpoint"),
            "basins at every step",
            caption="Basins, with the labels of every step matched to those before it.",
        ),
    }


# --- permutations -----------------------------------------------------------------------------


def _alignment(result: Any, anchor: str, few: bool) -> Row:
    saved = 1 - result.distance_after / result.distance_before if result.distance_before else 0.0
    facts = [
        fact("reference", result.a),
        fact("permuted", result.b),
        fact("distance before", as_text(result.distance_before)),
        fact("distance after", as_text(result.distance_after), f"{percent(saved)} less"),
        fact("same function", as_text(result.exact, 2), "largest difference of an output"),
    ]
    return {
        "facts": facts,
        "notes": list(getattr(result, "notes", ())),
        "figure": picture(
            figures.plot_alignment, result, alt="Distances of all parts before and after"
        ),
        "parts": data_table(result.parts, "parts that were aligned"),
    }


def _ends(result: Any) -> str:
    return " to ".join(short_labels([result.a, result.b], 40))


def _plane_name(result: Any) -> str:
    names: Mapping[str, Any] = result.models
    where = "around" if result.mode == "random" else "through"
    return f"{where} {', '.join(names)}"


CONNECTIVITY_KINDS: dict[str, Kind] = {
    "Surface": Kind(
        "Planes", "surface.html.j2", _surface, _plane_name, GUIDE, together=_surfaces_together
    ),
    "PathEvaluation": Kind(
        "Bent paths", "path.html.j2", _path, lambda r: f"{r.curve}, {_ends(r)}", GUIDE
    ),
    "CurveFit": Kind(
        "Fits of paths", "fit.html.j2", _fit, lambda r: f"{r.kind}, {_ends(r)}", GUIDE
    ),
    "ComplexFit": Kind(
        "Complexes",
        "complex.html.j2",
        _complex,
        lambda r: f"{len(r.cliques)} simplexes over {', '.join(r.names)}",
        GUIDE,
    ),
    "Ridge": Kind(
        "Who makes the ridge", "ridge.html.j2", _ridge, lambda r: f"{_ends(r)} on {r.data}", GUIDE
    ),
    "SharpnessComparison": Kind(
        "Sharpness and behaviour",
        "comparison.html.j2",
        _comparison,
        lambda r: f"{r.table['checkpoint'].nunique()} checkpoints on {r.data[0]}",
        GUIDE,
    ),
    "Sharpness": Kind(
        "Sharpness",
        "sharpness.html.j2",
        _sharpness,
        lambda r: f"{r.checkpoint} on {r.data}, {r.method}",
        GUIDE,
    ),
    "Dynamics": Kind(
        "Basins over time",
        "dynamics.html.j2",
        _dynamics,
        lambda r: f"{len(r.names)} checkpoints at {len(r.steps)} steps",
        GUIDE,
    ),
    "Transitivity": Kind(
        "Triangles",
        "transitivity.html.j2",
        _transitivity,
        lambda r: f"{len(r.names)} checkpoints",
        GUIDE,
    ),
    "AlignmentReport": Kind("Permutations", "alignment.html.j2", _alignment, _ends, GUIDE),
}
