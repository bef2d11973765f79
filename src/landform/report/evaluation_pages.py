"""The atlas pages of single checkpoints and lines: evaluations, training runs, interpolations."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from landform.report import evaluation_figures as figures
from landform.report.line_figures import plot_interpolation
from landform.report.parts import (
    Kind,
    Row,
    Together,
    as_text,
    data_table,
    fact,
    picture,
    table_cell,
    with_interval,
)
from landform.report.style import loss_unit_of, metric_label, short_labels

__all__ = ["EVALUATIONS", "EVALUATION_KINDS", "FIGURES_OF_EVALUATIONS"]

EVALUATIONS = "Evaluations"
FIGURES_OF_EVALUATIONS = 12  # a section of more is a table


def _interpolation(result: Any, anchor: str, few: bool) -> Row:
    row = result.summary.iloc[0]
    unit = loss_unit_of(result)
    facts = [
        fact("from (t = 0)", result.a),
        fact("to (t = 1)", result.b),
        fact("distance", as_text(result.distance)),
    ]
    for key, label in (("barrier", "barrier height"), ("gap", "convexity gap")):
        column = "barrier_height" if key == "barrier" else "convexity_gap"
        value = with_interval(row[column], row[f"{key}_low"], row[f"{key}_high"])
        facts.append(fact(label, value, f"{unit}, on {row['data']}"))
    return {
        "facts": facts,
        "figure": picture(plot_interpolation, result, alt="Loss and metric along the line"),
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


EVALUATION_KINDS: dict[str, Kind] = {
    "Interpolation": Kind(
        "Lines", "interpolation.html.j2", _interpolation, lambda r: f"{r.a} to {r.b}"
    ),
    "Evaluation": Kind(
        EVALUATIONS,
        "evaluation.html.j2",
        _evaluation,
        lambda r: f"{r.checkpoint} on {r.task}:{r.split}",
        together=_comparison,
    ),
    "Training": Kind("Training", "training.html.j2", _training, lambda r: f"{r.model} on {r.task}"),
}
"""How evaluations, training runs and lines are shown."""
