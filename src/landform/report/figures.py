"""Figures of results: every function takes a result object and returns a matplotlib figure.

The functions look at the documented attributes of a result and at nothing else, so that a result
read back from a study is drawn like a fresh one. None of them uses pyplot or keeps state; write a
figure with `save(figure, path)`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from landform.errors import ConfigError
from landform.report.average_figures import AVERAGE_FIGURES, plot_average
from landform.report.boundary_figures import (
    BOUNDARY_FIGURES,
    plot_axes,
    plot_boundaries,
    plot_boundary,
)
from landform.report.cartography_figures import CARTOGRAPHY_FIGURES, plot_data_map, plot_epochs
from landform.report.comparison_figures import (
    COMPARISON_FIGURES,
    plot_arms,
    plot_comparison,
    plot_schedules,
)
from landform.report.connection_figures import (
    CONNECTION_FIGURES,
    plot_basin_histogram,
    plot_centroid_scatter,
    plot_curves,
    plot_eigenvalues,
    plot_endpoints,
)
from landform.report.connections import (
    checkpoint_order,
)
from landform.report.connectivity_figures import (
    CONNECTIVITY_FIGURES,
    plot_alignment,
    plot_dynamics,
    plot_ridge,
    plot_transitivity,
)
from landform.report.dropout_figures import DROPOUT_FIGURES, plot_dropout
from landform.report.evaluation_figures import (
    EVALUATION_FIGURES,
    plot_evaluation,
    plot_metrics,
    plot_reliability,
    plot_training,
)
from landform.report.example_figures import (
    EXAMPLE_FIGURES,
    plot_barrier,
    plot_examples,
    plot_examples_matrix,
)
from landform.report.factor_figures import plot_spectra, plot_timings
from landform.report.fisher_figures import (
    FISHER_FIGURES,
    FISHER_OPERANDS,
    FISHER_TOGETHER,
    plot_fisher,
    plot_fisher_entries,
    plot_fisher_order,
    plot_fisher_sorted,
)
from landform.report.group_figures import (
    plot_ridges,
    plot_score_distributions,
    ridge_groups,
)
from landform.report.heatmap_figures import (
    QUANTITIES,
    plot_heatmap,
    quantities_of,
    quantity_label,
    quantity_range,
)
from landform.report.influence_figures import (
    INFLUENCE_FIGURES,
    plot_agreement,
    plot_query_scores,
    plot_scores,
)
from landform.report.knowledge_figures import (
    KNOWLEDGE_FIGURES,
    plot_forgotten,
    plot_knowledge,
    plot_score_matrix,
)
from landform.report.landscape_figures import (
    LANDSCAPE_FIGURES,
    plot_landscape,
    plot_landscape_relief,
    plot_landscape_surfaces,
    plot_landscapes,
)
from landform.report.line_figures import LINE_FIGURES, gap_segment, plot_interpolation
from landform.report.method_figures import (
    plot_counterfactual,
    plot_lds,
    plot_lds_queries,
    plot_mislabel,
    plot_self_influence,
)
from landform.report.mixing_figures import MIXING_FIGURES, plot_mixing
from landform.report.path_figures import plot_complex, plot_fit, plot_path, plot_path_distances
from landform.report.sharpness_figures import plot_climb, plot_sharpness_scatter
from landform.report.spectrum_figures import (
    SPECTRUM_FIGURES,
    plot_path_spectrum,
    plot_spectrum,
)
from landform.report.style import (
    Figure,
    save,
    unknown,
)
from landform.report.surface_figures import plot_surface, plot_surface_3d, plot_surfaces

__all__ = [
    "FIGURES",
    "OPERANDS",
    "QUANTITIES",
    "TOGETHER",
    "checkpoint_order",
    "draw",
    "figures_of",
    "gap_segment",
    "plot_agreement",
    "plot_alignment",
    "plot_arms",
    "plot_average",
    "plot_axes",
    "plot_barrier",
    "plot_basin_histogram",
    "plot_boundaries",
    "plot_boundary",
    "plot_centroid_scatter",
    "plot_climb",
    "plot_comparison",
    "plot_complex",
    "plot_counterfactual",
    "plot_curves",
    "plot_data_map",
    "plot_dropout",
    "plot_dynamics",
    "plot_eigenvalues",
    "plot_endpoints",
    "plot_epochs",
    "plot_evaluation",
    "plot_examples",
    "plot_examples_matrix",
    "plot_fisher",
    "plot_fisher_entries",
    "plot_fisher_order",
    "plot_fisher_sorted",
    "plot_fit",
    "plot_forgotten",
    "plot_heatmap",
    "plot_interpolation",
    "plot_knowledge",
    "plot_landscape",
    "plot_landscape_relief",
    "plot_landscape_surfaces",
    "plot_landscapes",
    "plot_lds",
    "plot_lds_queries",
    "plot_metrics",
    "plot_mislabel",
    "plot_mixing",
    "plot_path",
    "plot_path_distances",
    "plot_path_spectrum",
    "plot_query_scores",
    "plot_reliability",
    "plot_ridge",
    "plot_ridges",
    "plot_schedules",
    "plot_score_distributions",
    "plot_score_matrix",
    "plot_scores",
    "plot_self_influence",
    "plot_sharpness_scatter",
    "plot_spectra",
    "plot_spectrum",
    "plot_surface",
    "plot_surface_3d",
    "plot_surfaces",
    "plot_timings",
    "plot_training",
    "plot_transitivity",
    "quantities_of",
    "quantity_label",
    "quantity_range",
    "ridge_groups",
    "save",
    "save_all",
]

# --- which figure -----------------------------------------------------------------------------


def draw(result: object, which: str | None = None, **options: Any) -> Figure:
    """The figure `which` of a result (its main one by default).

    `FIGURES` lists them by the name of the result's class. `ConfigError` names an unknown figure,
    or a result that has none, and what there is.
    """
    known = figures_of(result)
    name = which or next(iter(known))
    if name not in known:
        raise unknown("figure", name, known)
    return known[name](result, **options)


FIGURES: dict[str, dict[str, Callable[..., Figure]]] = {
    **EVALUATION_FIGURES,
    **LINE_FIGURES,
    **CONNECTION_FIGURES,
    **BOUNDARY_FIGURES,
    **CARTOGRAPHY_FIGURES,
    **CONNECTIVITY_FIGURES,
    **DROPOUT_FIGURES,
    **EXAMPLE_FIGURES,
    **AVERAGE_FIGURES,
    **FISHER_FIGURES,
    **INFLUENCE_FIGURES,
    **KNOWLEDGE_FIGURES,
    **LANDSCAPE_FIGURES,
    **MIXING_FIGURES,
    **SPECTRUM_FIGURES,
    **COMPARISON_FIGURES,
}
"""The figures of each kind of result, its main one first."""


def _plot_two_agree(
    results: Mapping[str, Any], *, labels: Sequence[str] | None = None, points: int = 20_000
) -> Figure:
    """`plot_agreement` of exactly two results, each named by its key."""
    meant = sum(len(r) if isinstance(r, list) else 1 for r in results.values())
    if (len(results), meant) != (2, 2):
        raise ConfigError(
            f"agreement compares two results, and {meant} are meant: {', '.join(results)}",
            remedy="name two results of landform influence that scored the same rows",
        )
    names = list(labels or results)
    if len(names) != 2:
        raise ConfigError(f"agreement has two labels, got {len(names)}: {', '.join(names)}")
    first, second = results.values()
    return plot_agreement(first, second, labels=(names[0], names[1]), points=points)


TOGETHER: dict[str, Callable[..., Figure]] = {
    "surfaces": plot_surfaces,
    "score_distributions": plot_score_distributions,
    "agreement": _plot_two_agree,
    "landscapes": plot_landscapes,
    **FISHER_TOGETHER,
}
"""The figures of several results: each takes them as a mapping from names."""

OPERANDS: dict[str, tuple[str, ...]] = {
    "surfaces": ("Surface",),
    "score_distributions": ("Connection", "Evaluation"),
    "agreement": ("Influence",),
    "landscapes": ("Surface", "Landscape"),
    **FISHER_OPERANDS,
}
"""The kinds of results that a figure of several takes."""


def save_all(
    results: Mapping[str, object], folder: str | os.PathLike[str], *, suffix: str = ".pdf"
) -> list[Path]:
    """Write every figure of every result as `<name>-<figure><suffix>`; the files written.

    A figure that does not exist for a result (a centroid scatter of one basin, say) is left out.
    """
    written = []
    for name, result in results.items():
        for which in figures_of(result):
            try:
                figure = draw(result, which)
            except ConfigError:
                continue
            written.append(save(figure, Path(folder) / f"{name}-{which}{suffix}"))
    return written


def figures_of(result: object) -> dict[str, Callable[..., Figure]]:
    """The figures of a result by name, its main one first; `ConfigError` where it has none."""
    for kind in type(result).__mro__:
        if kind.__name__ in FIGURES:
            return FIGURES[kind.__name__]
    raise ConfigError(
        f"there is no figure of a {type(result).__name__}",
        remedy=f"figures exist for: {', '.join(sorted(FIGURES))}",
    )
