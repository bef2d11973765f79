"""The atlas page of a connection: every pair, its basins, and how their members behave."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from landform.report import connection_figures as figures
from landform.report.connections import (
    basins_of,
    by_name,
    checkpoint_order,
    natural,
    split_curves,
    styles_of,
)
from landform.report.connectivity_pages import transitivity_part
from landform.report.heatmap_figures import (
    HEIGHTS,
    QUANTITIES,
    SHARES,
    plot_heatmap,
    quantity_label,
)
from landform.report.parts import (
    NO_PICTURE,
    Kind,
    Row,
    all_rounded,
    as_text,
    data_table,
    fact,
    packed,
    picture,
    rounded,
)
from landform.report.style import (
    SEQUENTIAL_COLOURS,
    basin_styles,
    loss_label,
    loss_unit_of,
    metric_label,
)

__all__ = ["CONNECTION_KINDS"]


def _connection(result: Any, anchor: str, few: bool) -> Row:
    basins = basins_of(result)
    encoding, payload = packed(_explorer(result))
    return {
        "facts": _connection_facts(result, basins),
        "heatmap": picture(
            plot_heatmap,
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
        else NO_PICTURE,
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
        fact("checkpoints", n),
        fact("lines walked", walked, f"of {n * (n - 1) // 2} possible"),
        fact(
            "model evaluations",
            f"{result.evaluations:,}",
            "every checkpoint once, then the inner points of every line"
            + (f"; each on {len(result.data)} data sets" if len(result.data) > 1 else ""),
        ),
    ]
    if basins is not None:
        sizes = ", ".join(str(size) for size in basins.value_counts().sort_index())
        value = basins.nunique()
        facts.append(fact("basins", value, f"sizes {sizes}"))
        same = np.array([basins[a] == basins[b] for a, b in zip(rows["a"], rows["b"], strict=True)])
        for label, mask in (("gap within basins", same), ("gap between basins", ~same)):
            facts += _median_fact(label, rows["convexity_gap"].to_numpy()[mask], unit)
    else:
        facts += _median_fact("gap", rows["convexity_gap"].to_numpy(), unit)
    if "noise_floor" in rows:
        floor = rows["noise_floor"].median()
        above = int((rows["convexity_gap"] > rows["noise_floor"]).sum())
        note = f"median; {above} of {walked} gaps are above their floor"
        facts.append(fact("noise floor", f"{as_text(floor, 2)} {unit}", note))
    return facts


def _median_fact(label: str, gaps: np.ndarray, unit: str) -> list[Row]:
    if not len(gaps):
        return []
    pairs = "pair" if len(gaps) == 1 else "pairs"
    note = f"median of {len(gaps)} {pairs}, {as_text(gaps.min(), 3)} to {as_text(gaps.max(), 3)}"
    value = f"{as_text(float(np.median(gaps)), 3)} {unit}"
    return [fact(label, value, note)]


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
                "label": quantity_label(result, key),
                "height": key in HEIGHTS,
                "share": key in SHARES,
            }
            for key in QUANTITIES
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


CONNECTION_KINDS: dict[str, Kind] = {
    "Connection": Kind(
        "Connections",
        "connection.html.j2",
        _connection,
        lambda r: f"{len(r.names)} checkpoints on {', '.join(r.data)}",
    ),
}
"""How connections are shown."""
