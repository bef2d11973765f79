"""The figure and the atlas page of dropout schedules: scores in order, and what they became."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from landform.report.parts import Kind, Row, as_text, data_table, fact, picture
from landform.report.style import (
    COLUMN,
    INK,
    MARKERS,
    MUTED,
    PALETTE,
    Figure,
    new_figure,
    plain,
    shorten,
    styled,
)
from landform.training.schedules import PRESETS

if TYPE_CHECKING:
    from landform.training.schedules import DropoutSchedule

__all__ = ["DROPOUT_FIGURES", "DROPOUT_KINDS", "plot_dropout"]

WORDS = {
    # Of BERT, DistilBERT, GPT-2, LLaMA, GPT-NeoX, BART, and T5: what follows the layer's number.
    "attention.self.dropout": "attention",
    "attention.output.dropout": "attention output",
    "output.dropout": "feed-forward output",
    "attention.dropout": "attention",
    "ffn.dropout": "feed-forward output",
    "attn.attn_dropout": "attention",
    "attn.resid_dropout": "attention output",
    "mlp.dropout": "feed-forward output",
    "self_attn.attention_dropout": "attention",
    "self_attn.o_proj": "attention output",
    "mlp.down_proj": "feed-forward output",
    "attention.attention_dropout": "attention",
    "post_attention_dropout": "attention output",
    "post_mlp_dropout": "feed-forward output",
    "self_attn.dropout": "attention",
    "encoder_attn.dropout": "cross-attention",
    "activation_dropout": "feed-forward",
    "dropout": "residual stream",
    "layer.0.SelfAttention.dropout": "attention",
    "layer.0.dropout": "attention output",
    "layer.1.EncDecAttention.dropout": "cross-attention",
    "encoder layer.1.DenseReluDense.dropout": "feed-forward",
    "encoder layer.1.dropout": "feed-forward output",
    "decoder layer.1.dropout": "cross-attention output",
    "layer.2.DenseReluDense.dropout": "feed-forward",
    "layer.2.dropout": "feed-forward output",
}
EMBEDDINGS = ("embeddings.dropout", "embed_tokens", "drop", "emb_dropout", "coder.dropout")


@styled
def plot_dropout(result: DropoutSchedule) -> Figure:
    """Sub-layers in the order of their Fisher scores (left axis, with two standard errors), and the
    dropout probability of each (right axis)."""
    table = result.table.sort_values("rank", kind="stable").reset_index(drop=True)
    types = list(dict.fromkeys(result.table["type"]))
    figure = new_figure(COLUMN * 1.35, 2.9 + 0.11 * ((len(types) + 1) // 2))
    axes = figure.subplots()
    _draw_scores(axes, table, types)
    if result.source in PRESETS:
        axes.set_ylabel("rank of the Fisher score, as published")
    right = axes.twinx()
    right.spines["right"].set_visible(True)
    right.plot(table.index, table.p, color=INK, linewidth=1.0, drawstyle="steps-mid", zorder=3)
    top = max(float(table.p.max()), 0.01)
    right.set_ylim(-0.02 * top, 1.06 * top)
    right.set_ylabel("dropout probability (line)")
    axes.set_xlabel("sub-layers, from the lowest to the highest Fisher score")
    name = result.kind if result.control is None else f"{result.control} (of {result.kind})"
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_title(plain(f"{name}, mean p {result.mean:.4g}"), loc="left")
    handles = [
        Line2D([], [], color=_colour(i), marker=_marker(i), linestyle="none")
        for i in range(len(types))
    ]
    figure.legend(
        handles, [plain(shorten(word, 34)) for word in _words(types)], loc="outside lower center",
        ncols=2 if len(types) > 1 else 1, columnspacing=1.2, handletextpad=0.3,
    )  # fmt: skip
    return figure


def _draw_scores(axes: Axes, table: Any, types: list[str]) -> None:
    score = table.score.to_numpy(float)
    positive = score[score > 0]
    # Scores span orders of magnitude; ranks (a preset) do not.
    wide = len(positive) == len(score) and score.max() > 30 * positive.min()
    for i, kind in enumerate(types):
        rows = table[table["type"] == kind]
        error = 2 * rows.error.fillna(0.0)
        below = np.minimum(error, 0.9 * rows.score) if wide else error
        axes.errorbar(
            rows.index, rows.score, yerr=[below, error], fmt=_marker(i),
            color=_colour(i), markersize=3.5, elinewidth=0.7, linestyle="none", zorder=4,
        )  # fmt: skip
    if wide:
        axes.set_yscale("log")
    known = bool(table.error.notna().any())
    axes.set_ylabel("Fisher score" + (" (± 2 standard errors)" if known else ""))
    axes.set_xlim(-0.8, len(table) - 0.2)
    axes.grid(axis="y")
    axes.tick_params(axis="both", colors=MUTED, labelcolor=INK)


def _colour(number: int) -> str:
    return PALETTE[number % len(PALETTE)]


def _marker(number: int) -> str:
    # After the last colour another marker goes with the first.
    return MARKERS[(number + number // len(PALETTE)) % len(MARKERS)]


def _words(types: list[str]) -> list[str]:
    """Sub-layers in words where they are known, with their stack where there are two."""
    stacks = [next((s for s in ("encoder", "decoder") if f".{s}." in f".{t}"), "") for t in types]
    several = len(set(filter(None, stacks))) > 1
    found = []
    for kind, stack in zip(types, stacks, strict=True):
        _, star, end = kind.rpartition("*.")
        word = WORDS.get(f"{stack} {end}", WORDS.get(end)) if star else None
        if not star and kind.endswith(EMBEDDINGS):
            word = "embeddings"
        found.append(kind if word is None else f"{stack} {word}" if several and stack else word)
    return found if len(set(found)) == len(found) else types


# --- atlas --------------------------------------------------------------------------------------


def _dropout(result: Any, anchor: str, few: bool) -> Row:
    control = "none" if result.control is None else result.control
    return {
        "facts": [
            fact("scores", result.source),
            fact("schedule", result.kind, f"control: {control}"),
            fact("sites", f"{len(result.table):,}"),
            fact("mean p", as_text(result.mean, 4), "standard is 0.1"),
        ],
        "figure": picture(
            plot_dropout,
            result,
            alt="Fisher scores of sub-layers in ascending order, and the probability of each",
            caption="Sub-layers from the lowest to the highest Fisher score, and the dropout"
            " probability that each of them gets.",
        ),
        "sites": data_table(result.table, "sites"),
    }


DROPOUT_FIGURES = {"DropoutSchedule": {"dropout": plot_dropout}}
DROPOUT_KINDS = {
    "DropoutSchedule": Kind(
        "Dropout schedules",
        "dropout.html.j2",
        _dropout,
        lambda r: f"{r.kind}{'' if r.control is None else ', ' + r.control} from {r.source}",
        "dropout_reading.html.j2",
    )
}
