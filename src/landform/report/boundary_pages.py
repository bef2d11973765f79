"""The atlas pages of task boundaries and of the axes of an experiment."""

from __future__ import annotations

from typing import Any

from landform.report import boundary_figures as figures
from landform.report.parts import Kind, Row, as_text, data_table, fact, picture, with_interval

__all__ = ["BOUNDARY_KINDS"]

TEMPLATE = "boundary.html.j2"


def _boundary(result: Any, anchor: str, few: bool) -> Row:
    row = result.summary.iloc[0]

    def number(name: str) -> str:
        return with_interval(row[name], row[f"{name}_low"], row[f"{name}_high"])

    facts = [
        fact("x = 0", result.a, f"{result.data_a}: {result.metric_a} {as_text(row['own_a'])}"),
        fact("x = 1", result.b, f"{result.data_b}: {result.metric_b} {as_text(row['own_b'])}"),
        fact("good for both", number("width"), f"each keeps {100 * result.keep:g} %"),
        fact("margin", number("margin"), "below 0: a gap"),
        fact("best for both", number("best_kept"), f"at x = {as_text(row['best_x'])}"),
    ]
    return {
        "facts": facts,
        "figure": picture(figures.plot_boundary, result, alt="What both tasks keep along the line"),
        "summary": data_table(result.summary.T.reset_index(names="number"), "all numbers"),
        "points": data_table(result.table, "points of the line"),
    }


def _boundaries(result: Any, anchor: str, few: bool) -> Row:
    shown = ["label", "width", "width_low", "width_high", "margin", "margin_low", "margin_high",
             "crossing", "area", "best_kept", "margin_change", "margin_change_low",
             "margin_change_high"]  # fmt: skip
    return {
        "facts": [fact("tasks", f"{result.data_a}, {result.data_b}")],
        "figure": picture(figures.plot_boundaries, result, alt="The boundary of every pair"),
        "summary": data_table(result.table[shown], "the boundary of every pair of models"),
        "points": data_table(result.curves, "points of the lines"),
    }


def _axes(result: Any, anchor: str, few: bool) -> Row:
    shown = ["value", "axis", "experiment", "pair", "data", "distance", "barrier_height",
             "barrier_low", "barrier_high", "metric_drop", "metric_drop_low", "metric_drop_high",
             "better", "clearly_better"]  # fmt: skip
    return {
        "facts": [fact("axes", ", ".join(result.axes))],
        "figure": picture(figures.plot_axes, result, alt="Barriers and drops by axis and value"),
        "summary": data_table(result.table[shown], "pairs of the axes"),
        "points": data_table(result.table, "all columns"),
    }


BOUNDARY_KINDS: dict[str, Kind] = {
    "Boundary": Kind(
        "Task boundaries", TEMPLATE, _boundary, lambda r: f"{r.data_a} and {r.data_b}"
    ),
    "Boundaries": Kind(
        "Task boundaries", TEMPLATE, _boundaries, lambda r: f"{r.data_a} and {r.data_b}, many pairs"
    ),
    "Axes": Kind("Axes", TEMPLATE, _axes, lambda r: ", ".join(r.axes)),
}
