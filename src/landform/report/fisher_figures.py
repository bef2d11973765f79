"""Figures and atlas pages of Fisher information: by sub-layer, by tensor, by entry.

The figures of several models (sorted, in the model's order, entry by entry) take one result or a
mapping from names to results; a `Fisher` or the path of its file does as well.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator

from landform.errors import ConfigError
from landform.report.parts import (
    Kind,
    Row,
    Together,
    as_text,
    data_table,
    fact,
    picture,
    with_interval,
)
from landform.report.style import (
    COLUMN,
    GRID,
    INK,
    MUTED,
    PAGE,
    PALETTE,
    Figure,
    new_figure,
    percent,
    percent_ticks,
    plain,
    short_labels,
    shorten,
    styled,
)

if TYPE_CHECKING:
    from landform.curvature.fisher import FisherScores

__all__ = [
    "FISHER_FIGURES",
    "FISHER_KINDS",
    "FISHER_OPERANDS",
    "FISHER_TOGETHER",
    "plot_fisher",
    "plot_fisher_entries",
    "plot_fisher_order",
    "plot_fisher_sorted",
]

Array = np.ndarray
GroupBy = Literal["sublayer", "layer", "tensor"]
Weighting = Literal["entries", "tensors"]

SCORE, ENTRY = "mean Fisher information", "Fisher information"
PARTS = {
    "attention.self": "attention",
    "attention": "attention",
    "attn": "attention",
    "self_attn": "attention",
    "attention.output": "attention output",
    "output": "feed-forward output",
    "mlp": "feed-forward",
}
"""What dropout sites are called in words, by their names inside of a layer."""
_LAYER = re.compile(r"^(.*?\b(?:layers?|h|blocks?))\.(\d+)(?:\.(.+))?$")
WIDE, WIDEST = 20.0, 1000.0
"""From these ratios of the largest score to the middle and to the smallest one on, scores are shown
on a logarithmic axis."""


# --- one model, by sub-layer --------------------------------------------------------------------


@styled
def plot_fisher(
    result: FisherScores,
    *,
    kind: GroupBy | None = None,
    weighting: Weighting = "entries",
    matrices_only: bool = False,
    log: bool | None = None,
) -> Figure:
    """Scores of the groups in the model's order, one panel for every type of sub-layer.

    Bars are means of F over the entries of a group (`weighting` tensors: means of the tensors' own
    means), lines their 95 % intervals over examples (1.96 standard errors). `kind` is sublayer
    where the model has any, else layer. `log` (default: where scores differ widely) shows points on
    a logarithmic axis, where a bar would have no foot.
    """
    chosen: GroupBy = kind or ("sublayer" if result.tensors["sublayer"].notna().any() else "layer")
    table = result.groups(chosen, weighting=weighting, matrices_only=matrices_only)
    panels = _panels(table)
    scores = table["score"].to_numpy(float)
    if log is None:
        positive = scores[scores > 0]
        log = bool(len(positive)) and bool(
            positive.max() > WIDE * np.median(positive) or positive.max() > WIDEST * positive.min()
        )
    counts = [len(part) for part in panels.values()]
    figure = new_figure(PAGE if sum(counts) > 12 else 5.0, 2.5)
    axes = figure.subplots(
        1, len(panels), sharey=True, squeeze=False, width_ratios=[max(n + 0.8, 2.6) for n in counts]
    )[0]
    several = len(panels) > 1
    for k, (at, (title, part)) in enumerate(zip(axes, panels.items(), strict=True)):
        _draw_groups(at, part, PALETTE[k % len(PALETTE)], log=log)
        at.set_title(_title(title, part, several), loc="left")
        if k:
            at.spines["left"].set_visible(False)
    axes[0].set_ylabel(SCORE)
    if log:
        axes[0].set_yscale("log")
        # Intervals that reach 0 leave the axis at its foot.
        axes[0].set_ylim(scores[scores > 0].min(initial=1.0) / 4)
    else:
        axes[0].set_ylim(bottom=0)
        _power_of_ten(axes[0])
    for at in axes[1:]:
        at.tick_params(axis="y", which="both", length=0)
    numbered = [at for at, title in zip(axes, panels, strict=True) if title]
    if numbered:
        numbered[len(numbered) // 2].set_xlabel("layer")
    figure.suptitle(_about(result), x=0.01, ha="left", fontsize=7, color=MUTED)
    return figure


def _about(result: FisherScores) -> str:
    """What a figure is of, and what its lines mean."""
    text = f"{plain(shorten(result.checkpoint, 40))} on {plain(result.task)}:{plain(result.split)}"
    if not result.examples:
        return text
    return f"{text}, {result.examples:,} examples; lines: 95 % intervals"


def _power_of_ten(axes: Axes) -> None:
    """Numbers near 1 beside the axis, their power of ten in its label."""
    top = axes.get_ylim()[1]
    power = math.floor(math.log10(top)) if top > 0 else 0
    if -2 <= power <= 3:
        return
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value / 10.0**power:g}"))
    axes.set_ylabel(f"{axes.get_ylabel()} ($10^{{{power}}}$)")


def _panels(table: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Groups by type: what lies outside of layers first or last, as in the model."""
    panels: dict[str, list[dict[str, Any]]] = {}
    stacks = {m.group(1) for name in table["name"] if (m := _LAYER.match(str(name)))}
    rows: Any = table.to_dict("records")
    for row in rows:
        match = _LAYER.match(str(row["name"]))
        if match is None:
            label = _outside(str(row["name"]))
            panels.setdefault("", []).append({**row, "label": label})
            continue
        stack, number, part = match.groups()
        title = _part(part or "layers")
        if len(stacks) > 1:
            title = f"{stack.rpartition('.')[0].rpartition('.')[2] or stack}: {title}"
        panels.setdefault(title, []).append({**row, "label": number})
    return {title: pd.DataFrame(rows) for title, rows in panels.items()}


def _part(name: str) -> str:
    """A sub-layer inside of a layer, in words: `attention.output.dropout` -> attention output."""
    stem = re.sub(r"\.?(dropout\d*|drop|landform_dropout)$", "", name)
    if stem in PARTS:
        return PARTS[stem]
    return stem.replace("_", " ").replace(".", " ").strip() or name


def _outside(name: str) -> str:
    stem = re.sub(r"\.(dropout|drop)$", "", name).split(".")
    return {"wte": "embeddings", "drop": "embeddings"}.get(stem[-1], stem[-1].replace("_", " "))


def _title(title: str, part: pd.DataFrame, several: bool) -> str:
    if not several:
        return ""
    if not title and len(part) == 1:
        title = plain(part["label"].iloc[0])
    return "\n".join(_in_two(title)) if len(part) < 5 else title


def _in_two(words: str) -> list[str]:
    """Words in two lines where they are long."""
    if len(words) <= 12 or " " not in words:
        return [words]
    first, _, rest = words.partition(" ")
    return [first, rest]


def _draw_groups(axes: Axes, part: pd.DataFrame, colour: str, *, log: bool) -> None:
    x = np.arange(len(part))
    scores, errors = part["score"].to_numpy(float), 1.96 * part["error"].to_numpy(float)
    known = np.isfinite(errors)
    if log:
        axes.plot(x, scores, "o", color=colour, markersize=4)
        low = np.maximum(scores - errors, 1e-30)
        axes.vlines(x[known], low[known], (scores + errors)[known], color=colour, linewidth=1.1)
        axes.grid(axis="y")
    else:
        axes.bar(x, scores, width=0.68, color=colour, alpha=0.85, linewidth=0)
        low = np.maximum(scores - errors, 0)
        axes.vlines(x[known], low[known], (scores + errors)[known], color=INK, linewidth=0.8)
        axes.grid(axis="y")
    labels = [plain(label) for label in part["label"]]
    if part["label"].astype(str).str.fullmatch(r"\d+").all():
        step = max(1, math.ceil(len(part) / 12))
        axes.set_xticks(x[::step], labels[::step])
    elif len(part) == 1:  # its title says it
        axes.set_xticks([])
    else:
        axes.set_xticks(x, labels, rotation=35, ha="right", rotation_mode="anchor")
    axes.set_xlim(-0.7, len(part) - 0.3)
    axes.tick_params(axis="x", length=0)


# --- several models, by tensor ------------------------------------------------------------------

Models = Any
"""A result, a `Fisher`, a path of one, or a mapping of names to them."""


def _models(results: Models) -> dict[str, FisherScores]:
    """Names and scores of what is to be drawn."""
    from landform.curvature.fisher import Fisher, FisherScores, load_fisher

    named = results if isinstance(results, Mapping) else {"": results}
    found: dict[str, FisherScores] = {}
    for name, value in named.items():
        for k, item in enumerate(value if isinstance(value, list) else [value]):
            scores = item
            if isinstance(item, str | Path):
                scores = load_fisher(item)
            if isinstance(scores, Fisher):
                scores = scores.summary
            if not isinstance(scores, FisherScores):
                raise ConfigError(
                    f"a {type(item).__name__} is no Fisher",
                    remedy="give results of landform fisher",
                )
            label = str(name) or scores.checkpoint
            found[label if not k else f"{label} ({k + 1})"] = scores
    if not found:
        raise ConfigError("there is no Fisher to draw")
    return found


def _tensor_scores(scores: FisherScores, drop: int, *, matrices_only: bool) -> pd.Series:
    """Means of the tensors, in the model's order, without the `drop` largest."""
    values = scores.by("tensor", matrices_only=matrices_only)
    if not 0 <= drop < len(values):
        raise ConfigError(
            f"drop_largest={drop} of {len(values)} tensors", remedy="leave some to be drawn"
        )
    largest = values.sort_values(kind="stable").index[len(values) - drop :]
    return values.drop(largest)


def _scaled(values: Array, normalise: bool) -> Array:
    """Min-max scaled to [0, 1] where that is asked for."""
    if not normalise:
        return values
    low, high = float(values.min()), float(values.max())
    return (values - low) / (high - low) if high > low else np.zeros_like(values)


def _finish(
    figure: Figure, axes: Axes, count: int, dropped: str, what: str, *, normalise: bool, log: bool
) -> Figure:
    """Scale, label, legend, and what was left out."""
    if log:
        axes.set_yscale("log")
    axes.set_ylabel(f"{what}\n(scaled to [0, 1])" if normalise else what)
    axes.grid(axis="y")
    if not normalise and not log:
        _power_of_ten(axes)
    if dropped:
        axes.set_title(dropped, loc="left", fontsize=6.5, color=MUTED)
    if count > 1:
        figure.legend(loc="outside upper left", ncols=min(count, 4))
    return figure


def _dropped(number: int, count: int, one: str, many: str) -> str:
    """What a figure says of what it leaves out."""
    if not number:
        return ""
    words = f"{number} largest {many}" if number > 1 else f"largest {one}"
    return f"left out: the {words}{' of each model' if count > 1 else ''}"


def _log_limits(axes: Axes, floors: Sequence[float], tops: Sequence[float]) -> None:
    axes.set_ylim(min(floors), 2 * max(tops))


def _names(models: Mapping[str, Any]) -> list[str]:
    return [plain(label) for label in short_labels(list(models), 28)]


@styled
def plot_fisher_sorted(
    results: Models,
    *,
    normalise: bool = False,
    drop_largest: int = 0,
    matrices_only: bool = False,
    log: bool | None = None,
) -> Figure:
    """Mean F of every tensor, sorted, for one model or several on the share of their tensors.

    `normalise` scales every model to [0, 1]. `drop_largest` leaves out so many tensors of each
    model, before scaling, and says so in the figure. The axis is logarithmic unless scaled.
    """
    models = _models(results)
    logarithmic = not normalise if log is None else log
    figure = new_figure(COLUMN, 2.6)
    axes = figure.subplots()
    lowest: list[float] = []
    highest: list[float] = []
    for k, (label, scores) in enumerate(zip(_names(models), models.values(), strict=True)):
        values = np.sort(_tensor_scores(scores, drop_largest, matrices_only=matrices_only))
        values = _scaled(values, normalise)
        x = np.arange(1, len(values) + 1) / (len(values) if len(models) > 1 else 1)
        axes.plot(
            x, values, color=PALETTE[k % len(PALETTE)], marker="o", markersize=1.8, linewidth=0.9,
            label=label,
        )  # fmt: skip
        lowest.append(_floor(values))
        highest.append(float(values.max()))
    if logarithmic:
        _log_limits(axes, lowest, highest)
    if len(models) > 1:
        axes.set_xlabel("tensors with at most this score")
        percent_ticks(axes.xaxis)
    else:
        axes.set_xlabel("tensors, by their score")
    dropped = _dropped(drop_largest, len(models), "tensor", "tensors")
    return _finish(figure, axes, len(models), dropped, SCORE, normalise=normalise, log=logarithmic)


def _floor(values: Array) -> float:
    """Where a logarithmic axis begins: gradients that are 0 but for rounding lie below."""
    positive = values[values > 0]
    if not len(positive):
        return 1e-12
    return float(max(positive.min() / 2, np.median(positive) * 1e-4))


@styled
def plot_fisher_order(
    results: Models,
    *,
    normalise: bool = False,
    drop_largest: int = 0,
    matrices_only: bool = False,
    log: bool | None = None,
) -> Figure:
    """Mean F of every tensor in the model's own order, its layers shaded.

    `normalise` scales every model to [0, 1], as several models are easier compared, and
    `drop_largest` leaves out so many tensors of each before, as in `plot_fisher_sorted`.
    """
    models = _models(results)
    logarithmic = not normalise if log is None else log
    figure = new_figure(PAGE, 2.4)
    axes = figure.subplots()
    lowest: list[float] = []
    highest: list[float] = []
    layers = [tuple(scores.tensors["layer"]) for scores in models.values()]
    if len(set(layers)) == 1:
        _shade_layers(axes, layers[0])
    for k, (label, scores) in enumerate(zip(_names(models), models.values(), strict=True)):
        kept = _tensor_scores(scores, drop_largest, matrices_only=matrices_only)
        values = _scaled(kept.to_numpy(float), normalise)
        order = {name: place for place, name in enumerate(scores.tensors["name"])}
        axes.plot(
            [order[name] for name in kept.index], values, color=PALETTE[k % len(PALETTE)],
            marker="o", markersize=1.6, linewidth=0.8, label=label,
        )  # fmt: skip
        lowest.append(_floor(values))
        highest.append(float(values.max()))
    axes.set_xlabel("tensors in the order of the model")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.margins(x=0.01)
    if logarithmic:
        _log_limits(axes, lowest, [3 * top for top in highest])
    else:
        axes.set_ylim(bottom=0)
    dropped = _dropped(drop_largest, len(models), "tensor", "tensors")
    return _finish(figure, axes, len(models), dropped, SCORE, normalise=normalise, log=logarithmic)


def _shade_layers(axes: Axes, names: Sequence[object]) -> None:
    """A band behind every other layer, with its number."""
    layers = np.array([str(name) for name in names])
    named = False
    ends = [0, *(np.flatnonzero(layers[1:] != layers[:-1]) + 1), len(layers)]
    for k, (start, stop) in enumerate(pairwise(ends)):
        if k % 2:
            axes.axvspan(start - 0.5, stop - 0.5, color=GRID, alpha=0.45, linewidth=0, zorder=0)
        match = _LAYER.match(layers[start])
        if match:
            axes.text(
                (start + stop - 1) / 2, 0.985, f"{'' if named else 'layer '}{match.group(2)}",
                fontsize=6, color=MUTED,
                ha="center", va="top", transform=axes.get_xaxis_transform(),
            )  # fmt: skip
            named = True


# --- several models, entry by entry -------------------------------------------------------------


@styled
def plot_fisher_entries(
    results: Models,
    *,
    normalise: bool = False,
    drop_largest: int = 0,
    log: bool | None = None,
) -> Figure:
    """All entries of F, sorted, for one model or several, on the share of their entries.

    Drawn from the counts of `FisherScores.distribution`, a thousand places of the curve whatever
    the number of entries; values are exact to 3 %. `normalise` scales every model to [0, 1];
    `drop_largest` leaves out so many entries of each.
    """
    models = _models(results)
    logarithmic = True if log is None else log
    figure = new_figure(COLUMN, 2.6)
    axes = figure.subplots()
    lowest: list[float] = []
    highest: list[float] = []
    for k, (label, scores) in enumerate(zip(_names(models), models.values(), strict=True)):
        values, below = _curve(scores, drop_largest)
        zero = float(below[values <= 0].max(initial=0) / below[-1])
        values, share = _scaled(values, normalise), below / below[-1]
        shown = values > 0 if logarithmic else values >= 0
        note = f"{percent(zero)} are 0" if zero >= 0.005 else ""
        axes.plot(
            share[shown], values[shown], color=PALETTE[k % len(PALETTE)],
            label=f"{label} ({note})" if note else label,
        )  # fmt: skip
        # All but one in two hundred of those that are not 0.
        start = int(np.searchsorted(share[shown], zero + 0.005 * (1 - zero)))
        lowest.append(float(values[shown][min(start, int(shown.sum()) - 1)]) / 3)
        highest.append(float(values.max()))
        if len(models) == 1:
            total = f"{int(below[-1]):,} entries"
            axes.set_title(f"{total}, {note}" if note else total, loc="right", fontsize=6.5)
    if logarithmic:
        _log_limits(axes, lowest, highest)
    axes.set_xlim(-0.02, 1.02)
    axes.set_xlabel("entries with at most this value")
    percent_ticks(axes.xaxis)
    dropped = _dropped(drop_largest, len(models), "entry", "entries")
    return _finish(figure, axes, len(models), dropped, ENTRY, normalise=normalise, log=logarithmic)


def _curve(scores: FisherScores, drop: int) -> tuple[Array, Array]:
    """(values, entries up to each) without the `drop` largest entries."""
    table = scores.distribution
    if table is None:
        raise ConfigError(
            f"the Fisher of {scores.checkpoint} is kept without its entries' sizes",
            remedy="give the file of the Fisher itself, or compute it again (landform fisher)",
        )
    below = np.cumsum(table["entries"].to_numpy(np.int64))
    left = int(below[-1]) - drop
    if drop < 0 or left < 1:
        raise ConfigError(f"drop_largest={drop} of {int(below[-1])} entries")
    kept = int(np.searchsorted(below, left)) + 1
    return table["value"].to_numpy(float)[:kept], np.minimum(below[:kept], left)


# --- atlas --------------------------------------------------------------------------------------


def _fisher(result: Any, anchor: str, few: bool) -> Row:
    sublayers = result.tensors["sublayer"].notna().any()
    groups = result.groups("sublayer" if sublayers else "layer")
    total = int(result.tensors["entries"].sum())
    known = f"{result.examples:,}" if result.examples else "not known"
    labels = f"{result.estimator} labels, gradients of the {result.reduction}"
    facts = [
        fact("examples", known, labels),
        fact("trace", as_text(result.trace, 4), f"sum of F over {total:,} entries"),
    ]
    last = result.stability.groupby("groups", sort=False).tail(1)
    for row in last.to_dict("records"):
        value = with_interval(row["correlation"], row["low"], row["high"])
        note = f"Spearman, {row['examples']:,} examples"
        facts.append(fact(f"same order of {row['groups']}s in two halves", value, note))
    return {
        "facts": facts,
        "figure": picture(
            plot_fisher,
            result,
            alt="Mean Fisher information of every sub-layer, by type",
            caption="Means of F over the entries of a group; lines are 95 % intervals over"
            " examples.",
        ),
        "order": picture(
            plot_fisher_order,
            result,
            alt="Mean Fisher information of every tensor in the order of the model",
            caption="Every tensor for itself. Key biases of softmax attention have no gradient.",
        ),
        "groups": data_table(groups, "scores of the groups"),
        "stability": data_table(
            result.stability,
            "stability of the order",
            caption="Spearman's correlation of the scores from two random halves of the first so"
            " many examples.",
        )
        if len(result.stability)
        else None,
        "tensors": data_table(
            result.tensors.assign(mean=result.tensors["total"] / result.tensors["entries"])[
                ["name", "layer", "entries", "mean", "largest"]
            ],
            "scores of all tensors",
        ),
    }


def _together(items: Sequence[tuple[str, Any]]) -> Together:
    """Several models: their tensors sorted, and all their entries."""
    models = dict(items)
    return Together(
        figures=[
            picture(plot_fisher_sorted, models, alt="Scores of the tensors of all models, sorted"),
            picture(plot_fisher_entries, models, alt="Entries of F of all models, sorted"),
        ]
    )


FISHER_FIGURES: dict[str, dict[str, Callable[..., Figure]]] = {
    "FisherScores": {
        "fisher": plot_fisher,
        "fisher_sorted": plot_fisher_sorted,
        "fisher_order": plot_fisher_order,
        "fisher_entries": plot_fisher_entries,
    },
}
FISHER_TOGETHER: dict[str, Callable[..., Figure]] = {
    "fisher_sorted": plot_fisher_sorted,
    "fisher_order": plot_fisher_order,
    "fisher_entries": plot_fisher_entries,
}
FISHER_OPERANDS = dict.fromkeys(FISHER_TOGETHER, ("FisherScores",))
FISHER_KINDS = {
    "FisherScores": Kind(
        "Fisher information",
        "fisher.html.j2",
        _fisher,
        lambda r: f"{r.checkpoint} on {r.task}:{r.split}",
        "fisher_reading.html.j2",
        _together,
    ),
}
