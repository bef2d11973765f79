"""One look for every figure: sizes, fonts, colours, names as a reader of a paper expects them.

Figures are drawn for a column of 3.5 inches (or a page of 7) and are meant to be printed at that
size, so fonts are 6 to 8 points. Nothing here touches matplotlib's global state: `styled` sets the
parameters for the time of one call, and figures are made without pyplot.
"""

from __future__ import annotations

import functools
import io
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import matplotlib
import matplotlib.style
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure as MatplotlibFigure
from matplotlib.ticker import PercentFormatter

from landform.config import nearest
from landform.errors import ConfigError
from landform.store.atomic import atomic_path, check_place, file_errors
from landform.tasks.task import loss_unit

__all__ = [
    "COLUMN",
    "GRID",
    "HATCHED",
    "INK",
    "MINUS",
    "MUTED",
    "PAGE",
    "PALETTE",
    "PAPER",
    "SEQUENTIAL",
    "SEQUENTIAL_COLOURS",
    "BasinStyle",
    "Figure",
    "basin_styles",
    "check_figure",
    "column_label",
    "decimals",
    "end_names",
    "format_p",
    "interval",
    "is_known",
    "loss_label",
    "loss_panels",
    "loss_unit_of",
    "metric_label",
    "new_figure",
    "number",
    "ordered_basins",
    "percent",
    "percent_ticks",
    "pick",
    "plain",
    "save",
    "short_labels",
    "shorten",
    "styled",
    "unknown",
    "using",
    "wrapped",
]

P = ParamSpec("P")
R = TypeVar("R")

COLUMN, PAGE = 3.5, 7.0  # inches

MINUS = "\N{MINUS SIGN}"  # a hyphen is too short beside digits

INK, MUTED, GRID = "#1d2430", "#69717d", "#dfe3e8"

# Okabe and Ito's colours, which remain distinct with the common forms of colour blindness, without
# the yellow that vanishes on white.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#6B4C9A")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
LONE = "#8a9099"  # checkpoints that share a basin with no other

# Light is low, so that the blocks of one basin are light and the ridges between basins dark;
# lightness falls monotonically, so that the order survives a grey print.
SEQUENTIAL_COLOURS = ("#fbf9f3", "#e2ead9", "#abd0bd", "#63a7a8", "#327a96", "#214b78", "#161f4b")
SEQUENTIAL = LinearSegmentedColormap.from_list("landform", SEQUENTIAL_COLOURS)

STYLE: dict[str, Any] = {
    "font.family": "sans-serif",
    "font.sans-serif": ["Helvetica Neue", "Helvetica", "Arial", "Liberation Sans", "DejaVu Sans"],
    "font.size": 7.5,
    "axes.titlesize": 7.5,
    "axes.titleweight": "regular",
    "axes.titlelocation": "left",
    "axes.titlepad": 5.0,
    "axes.labelsize": 7.5,
    "axes.labelcolor": INK,
    "axes.edgecolor": MUTED,
    "axes.linewidth": 0.6,
    "axes.facecolor": "white",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": False,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.5,
    "text.color": INK,
    "text.usetex": False,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "legend.fontsize": 7,
    "legend.frameon": False,
    "legend.handlelength": 1.4,
    "legend.borderaxespad": 0.2,
    "lines.linewidth": 1.3,
    "lines.markersize": 4,
    "patch.linewidth": 0.6,
    "figure.facecolor": "white",
    "figure.dpi": 150,
    "figure.constrained_layout.use": True,
    "figure.constrained_layout.w_pad": 0.06,
    "figure.constrained_layout.h_pad": 0.06,
    "savefig.facecolor": "white",
    "savefig.dpi": 300,
    "pdf.fonttype": 42,
    "svg.fonttype": "path",
    # Identical results give identical files.
    "svg.hashsalt": "landform",
}


_SHEETS: ContextVar[tuple[Any, ...]] = ContextVar("sheets", default=())

PAPER = Path(__file__).with_name("paper.mplstyle")
"""Large serif letters, for figures that a page makes smaller; `matplotlib.style.use` takes it."""


@contextmanager
def using(style: str | os.PathLike[str] | None) -> Iterator[None]:
    """Draw what is drawn inside with another look: "paper", or a file of matplotlib's settings.

    It is laid over the package's own style; figures grow with its letters. `ConfigError` where the
    file is missing or holds no settings.
    """
    if style is None:
        yield
        return
    path = PAPER if str(style) == "paper" else Path(style)
    try:
        sheet = matplotlib.rc_params_from_file(path, use_default_template=False)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"style {str(style)!r} cannot be read: {error}",
            remedy="use 'paper', or name a matplotlib style file",
        ) from None
    if not len(sheet):
        raise ConfigError(f"style {str(style)!r} has no settings that matplotlib knows")
    token = _SHEETS.set((*_SHEETS.get(), dict(sheet)))
    try:
        yield
    finally:
        _SHEETS.reset(token)


def styled(draw: Callable[P, R]) -> Callable[P, R]:
    """Runs `draw` under the package's style, and leaves the caller's settings as they were."""

    @functools.wraps(draw)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        # From the defaults, so that a caller's own settings do not leak into the figure.
        with matplotlib.style.context(["default", STYLE, *_SHEETS.get()]):
            return draw(*args, **kwargs)

    return wrapper


class Figure(MatplotlibFigure):
    """A matplotlib figure that notebooks show by itself, without pyplot being loaded."""

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.savefig(buffer, format="png", dpi=200)
        return buffer.getvalue()


HATCHED: dict[str, Any] = {"hatch": "////", "edgecolor": "white", "linewidth": 0}
"""Stripes over the second of two fillings, which are one grey in print."""


def new_figure(width: float, height: float) -> Figure:
    """An empty figure, in inches; larger where a style has larger letters, but less than they."""
    grow = (float(matplotlib.rcParams["font.size"]) / STYLE["font.size"]) ** 0.7
    return Figure(figsize=(width * grow, height * grow), layout="constrained")


def loss_panels(
    parts: Mapping[str, pd.DataFrame], height: float, below: float
) -> tuple[Figure, dict[str, Axes], Axes | None]:
    """(figure, the panel of every data set's loss, the panel for a metric below them).

    `parts` are tables with a column loss and perhaps its interval, loss_low and loss_high. One
    panel serves all data sets, unless the flattest of at most four would take less than a third of
    it: then each has its own. `height` is that of the figure with one panel of losses, `below`
    (inches) that of the metric's, 0 for none.
    """
    ends = {
        name: (
            float(part["loss_low" if "loss_low" in part else "loss"].min()),
            float(part["loss_high" if "loss_high" in part else "loss"].max()),
        )
        for name, part in parts.items()
    }
    whole = max(high for _, high in ends.values()) - min(low for low, _ in ends.values())
    flattest = min(high - low for low, high in ends.values())
    count = len(parts) if 1 < len(parts) <= 4 and flattest < whole / 3 else 1
    figure = new_figure(COLUMN, height + 0.9 * (count - 1) + below)
    ratios = [3.0 if count == 1 else 2.0] * count + [2.0] * bool(below)
    panels = figure.subplots(len(ratios), 1, sharex=True, squeeze=False, height_ratios=ratios)[:, 0]
    losses = {name: panels[n if count > 1 else 0] for n, name in enumerate(parts)}
    return figure, losses, panels[-1] if below else None


FORMATS = {".png": "png", ".pdf": "pdf", ".svg": "svg"}


@styled
def save(figure: MatplotlibFigure, path: str | os.PathLike[str]) -> Path:
    """Write a figure as png, pdf or svg, by the path's suffix; the file is whole or absent.

    Raises `ConfigError` on another suffix and `StoreError` where the file cannot be written.
    """
    target = Path(path)
    suffix = _known_suffix(target)
    with file_errors("write the figure", target):
        target.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(target, durable=True) as temporary:
            figure.savefig(temporary, format=FORMATS[suffix], metadata=_undated(suffix))
    return target


def check_figure(path: str | os.PathLike[str]) -> None:
    """Raise now what `save` would raise at the end: an unknown suffix, a place not to write to."""
    _known_suffix(Path(path))
    check_place(path)


def _known_suffix(target: Path) -> str:
    suffix = target.suffix.lower()
    if suffix not in FORMATS:
        raise ConfigError(
            f"figure {target}: unknown format {suffix or '(no suffix)'!r}",
            remedy=f"end the name in {', '.join(FORMATS)}",
        )
    return suffix


def _undated(suffix: str) -> dict[str, Any]:
    """Metadata without the date of writing: the same figure gives the same bytes."""
    return {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}.get(suffix, {})


# --- words ------------------------------------------------------------------------------------

METRIC_LABELS = {
    "loss": "loss",
    "accuracy": "accuracy",
    "f1": "F1",
    "macro_f1": "macro F1",
    "matthews": "Matthews correlation",
    "matthews_correlation": "Matthews correlation",
    "pearson": "Pearson r",
    "spearman": "Spearman rho",
    "combined": "combined score",
    "ece": "calibration error (ECE)",
    "exact_match": "exact match",
    "token_f1": "token F1",
    "rouge_l": "ROUGE-L",
    "perplexity": "perplexity",
}


def metric_label(name: str) -> str:
    """A metric, or a column `data/subset/metric`, in words."""
    place, _, metric = name.rpartition("/")
    words = METRIC_LABELS.get(metric, metric.replace("_", " "))
    return f"{words} on {place}" if place else words


def loss_unit_of(result: object) -> str:
    """The unit of a result's loss, and so of its gaps and barriers."""
    return loss_unit(str(_task_kind(result)))


def loss_label(result: object) -> str:
    """The loss of a result with its unit: squared error for regression, else nats."""
    return "squared error" if _task_kind(result) == "regression" else "cross-entropy (nats)"


def column_label(result: object, column: str) -> str:
    """What an axis shows: the loss with its unit, or a metric."""
    return loss_label(result) if column == "loss" else metric_label(column)


def _task_kind(result: object) -> object:
    """Of fits `kind` is that of the curve, and the task's stands beside it."""
    return getattr(result, "task_kind", getattr(result, "kind", "classification"))


def plain(text: object) -> str:
    """Text that matplotlib draws as it is: a `$` in a name would start a formula."""
    return str(text).replace("$", r"\$").replace("\n", " ")


def shorten(text: object, limit: int = 18) -> str:
    """At most `limit` characters: the middle goes, since names differ at their ends."""
    words = str(text)
    if len(words) <= limit:
        return words
    tail = (limit - 1) * 2 // 3
    return f"{words[: limit - 1 - tail]}\N{HORIZONTAL ELLIPSIS}{words[len(words) - tail :]}"


def wrapped(text: str, limit: int) -> str:
    """Text in lines of about `limit` characters, broken at spaces and after `/`."""
    lines = [""]
    for word in re.findall(r"[^ /]+[ /]*", text):
        if lines[-1] and len(lines[-1]) + len(word.rstrip()) > limit:
            lines.append("")
        lines[-1] += word
    return "\n".join(line.rstrip() for line in lines)


def _shared(names: Sequence[str]) -> int:
    """How many characters all names have in common at their beginning."""
    columns = zip(*names, strict=False)
    differ = (at for at, letters in enumerate(columns) if len(set(letters)) > 1)
    return next(differ, min(map(len, names)))


def short_labels(names: Sequence[str], limit: int) -> list[str]:
    """Names of at most about `limit` characters that still tell one from another.

    What they all share at their beginning and end is given up first.
    """
    labels = [shorten(name, limit) for name in names]
    if len(set(labels)) == len(set(names)):
        return labels
    head = _shared(names)
    tail = _shared([name[head:][::-1] for name in names])
    cores = [name[head : len(name) - tail] or name[head:] for name in names]
    dots = "\N{HORIZONTAL ELLIPSIS}"
    room = max(0, min(head, limit - max(map(len, cores)) - 2))
    labels = [
        f"{dots if head > room else ''}{name[head - room : head]}{shorten(core, limit)}"
        f"{dots if tail else ''}"
        for name, core in zip(names, cores, strict=True)
    ]
    return labels if len(set(labels)) == len(set(names)) else list(names)


def number(value: float, form: str = ".3g") -> str:
    """A number with a true minus sign."""
    return f"{value:{form}}".replace("-", MINUS)


def end_names(a: str, b: str, limit: int = 24) -> tuple[str, str]:
    """The two ends of a path for a label: without the directories that both lie in."""
    parts = [name.rstrip("/").split("/") for name in (a, b)]
    shared = next((k for k, (p, q) in enumerate(zip(*parts, strict=False)) if p != q), 0)
    first, last = short_labels(["/".join(part[shared:]) for part in parts], limit)
    return plain(first), plain(last)


def format_p(p: float) -> str:
    """`p = 0.032`, or `p < 0.001`."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.2g}" if p < 0.1 else f"p = {p:.2f}"


def interval(row: Any, key: str, form: str = ".3g") -> str:
    """`[low, high]` of a row's `<key>_low` and `<key>_high`; nothing where they are missing."""
    low, high = row.get(f"{key}_low"), row.get(f"{key}_high")
    if low is None or high is None or not np.isfinite(low + high):
        return ""
    return f"[{low:{form}}, {high:{form}}]"


def percent(share: float) -> str:
    """`16 %`, and two digits below ten: `7.6 %`."""
    if share != share:
        return "\N{EN DASH}"
    return f"{100 * share:.0f} %" if share >= 0.0995 or share == 0 else f"{100 * share:.2g} %"


def percent_ticks(axis: Axis) -> None:
    """Shares on an axis as whole percents, written like `percent`."""
    axis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=" %"))


def is_known(value: Any) -> bool:
    """Whether a cell of a table holds something: not None, nan or NA."""
    return value is not None and value is not pd.NA and bool(value == value)


# --- errors ----------------------------------------------------------------------------------


def unknown(what: str, name: object, known: Sequence[str] | dict[str, Any]) -> ConfigError:
    """An error that names what there is, and the nearest of it."""
    guess = nearest(str(name), known)
    hint = f"did you mean {guess!r}? " if guess else ""
    return ConfigError(
        f"unknown {what} {str(name)!r}", remedy=f"{hint}there are: {', '.join(map(str, known))}"
    )


def pick(what: str, name: str | None, known: Sequence[str]) -> str:
    """`name` if it is known, the first known one for None."""
    if not known:
        raise ConfigError(f"there is no {what} to draw")
    if name is None:
        return known[0]
    if name not in known:
        raise unknown(what, name, known)
    return name


# --- basins -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class BasinStyle:
    """How the checkpoints of one basin are drawn."""

    colour: str
    marker: str
    label: str


def basin_styles(basins: pd.Series) -> dict[int, BasinStyle]:
    """A colour, a marker and a legend entry per basin.

    Colours go to the basins with at least two members, largest first; when the palette is
    exhausted, and for checkpoints alone in their basin, there is one neutral grey with one legend
    entry: twenty hues would tell nothing apart. If nobody shares a basin and there are few, each
    keeps a colour.
    """
    sizes = basins.value_counts()
    order = sorted(sizes.index, key=lambda basin: (-int(sizes[basin]), basin))
    shared = [basin for basin in order if sizes[basin] > 1]
    coloured = (order if len(order) <= 4 else shared)[: len(PALETTE)]
    styles = {
        int(basin): BasinStyle(colour, marker, f"basin {basin} (n = {sizes[basin]})")
        for basin, colour, marker in zip(coloured, PALETTE, MARKERS, strict=False)
    }
    rest = [int(basin) for basin in order if int(basin) not in styles]
    alone = all(sizes[basin] == 1 for basin in rest)
    label = f"alone in a basin (n = {len(rest)})" if alone else f"{len(rest)} smaller basins"
    return {**styles, **{basin: BasinStyle(LONE, "o", label) for basin in rest}}


def ordered_basins(styles: dict[int, BasinStyle]) -> list[BasinStyle]:
    """The distinct legend entries, in order."""
    return list(dict.fromkeys(styles.values()))


def decimals(values: Sequence[float] | np.ndarray) -> int:
    """How many decimals show three digits of the largest of `values`."""
    finite = np.abs(np.asarray(values, dtype=float))
    finite = finite[np.isfinite(finite)]
    top = float(finite.max()) if finite.size else 0.0
    return 3 if top < 1 else 2 if top < 10 else 1 if top < 100 else 0
