"""The atlas pages of attribution: which training texts made the model answer that."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
import pandas as pd

from landform.errors import ConfigError
from landform.report import factor_figures, method_figures
from landform.report import influence_figures as figures
from landform.report.parts import (
    NO_PICTURE,
    TEXTS,
    Kind,
    Row,
    Together,
    as_text,
    data_table,
    fact,
    packed,
    picture,
    rounded,
    texts_of,
    with_interval,
    with_texts,
)
from landform.report.style import MINUS, is_known, percent, shorten

__all__ = ["INFLUENCE_KINDS"]

SHOWN = 6  # queries that are on the page itself
TOP = 5  # training rows on either side of a query
LETTERS = 600  # of a text; a longer one is cut
EMBEDDED = 1_500_000  # characters of texts behind the select control
SUSPECTS = 50  # rows of a ranking


# --- queries and their training texts ----------------------------------------------------------


def _influence(result: Any, anchor: str, few: bool) -> Row:
    shown = _shown(result)
    encoding, payload = _others(result, shown)
    return {
        "facts": _influence_facts(result),
        "explanation": str(getattr(result, "explanation", "")),
        "queries": [_query(result, query) for query in shown],
        "chosen": _chosen_sentence(result, len(shown)),
        "encoding": encoding,
        "payload": payload,
        "scores": picture(
            figures.plot_scores,
            result,
            alt="Histogram of all scores, harmful and helpful in two colours",
            caption="All queries. Dashed: a normal distribution of the same spread; what lies"
            " beyond it are the few training rows that matter more than the rest.",
        ),
        "by_query": picture(
            figures.plot_query_scores,
            result,
            queries=shown,
            alt="Distribution of the scores of single queries, their top rows marked",
            caption="The scores of the queries above. Triangles: the rows shown with them.",
        )
        if shown and not _summed(result)
        else NO_PICTURE,
        "timings": _timings(result),
        "timings_figure": _timings_figure(result),
    }


def _shown(result: Any) -> list[int]:
    """The queries whose rows the page shows; none where the training rows were summed."""
    if result.scores is not None and len(result.scores) != len(result.train):
        return []
    return [0] if _summed(result) else figures.chosen_queries(result, SHOWN)


def _summed(result: Any) -> bool:
    """Whether the scores are those of the sum of all queries."""
    return result.scores is not None and bool(result.scores.shape[1] != len(result.queries))


def _influence_facts(result: Any) -> list[Row]:
    rows = [
        ("queries", f"{len(result.queries):,}", ""),
        ("training rows", f"{len(result.train):,}", ""),
        ("strategy", result.strategy, f"{result.labels} labels"),
        ("measurement", result.measurement, "of the queries"),
        ("damping", result.damping, ""),
    ]
    facts = [fact(label, value, note) for label, value, note in rows]
    matrix = figures.score_matrix(result)
    if matrix is not None and matrix.size:
        share = float((matrix > 0).mean())
        facts.append(fact("helpful pairs", percent(share), "score above 0"))
    return facts


def _chosen_sentence(result: Any, shown: int) -> str:
    total = len(result.queries)
    if not shown:
        return "The training rows were summed, so there are no texts to show."
    if _summed(result):
        return f"The {total:,} queries were summed: their common training texts."
    if shown == total:
        return "Every query, from the highest loss to the lowest."
    return f"{shown} of {total:,} queries, spread evenly from the highest loss to the lowest."


def _query(result: Any, query: int) -> Row:
    """A query with its training rows on both sides, as the template and the script show it."""
    record = result.queries.iloc[query].to_dict()
    if _summed(result):
        record = {"text": f"the sum of {len(result.queries):,} queries"}
    sides = [_side(result, query, harmful) for harmful in (False, True)]
    largest = max((abs(row["score"]) for side in sides for row in side), default=0.0) or 1.0
    for side in sides:
        for row in side:
            row["size"] = round(100 * abs(row["score"]) / largest)
    return {
        "number": query,
        "id": str(record.get("text_id", "")),
        "texts": texts_of(record, LETTERS),
        "facts": _query_facts(record, result.measurement),
        "wrong": _wrong(record),
        "helpful": sides[0],
        "harmful": sides[1],
    }


def _query_facts(record: Mapping[str, Any], measurement: str) -> list[Row]:
    facts = [
        {"label": name, "value": str(record[name])}
        for name in ("label", "prediction")
        if is_known(record.get(name))
    ]
    numbers = {"loss": "loss"} if measurement == "loss" else {"loss": "loss", "value": measurement}
    return facts + [
        {"label": title, "value": as_text(float(record[name]), 3)}
        for name, title in numbers.items()
        if is_known(record.get(name))
    ]


def _wrong(record: Mapping[str, Any]) -> bool:
    label, prediction = record.get("label"), record.get("prediction")
    return is_known(label) and is_known(prediction) and label != prediction


def _side(result: Any, query: int, harmful: bool) -> list[Row]:
    """The top rows of a query on one side; a row on the wrong side of 0 is not among them."""
    top = result.top(query=query, k=TOP, harmful=harmful)
    rows = []
    for record in top.to_dict("records"):
        score = float(record["score"])
        if score > 0 if harmful else score < 0:
            continue
        rows.append(
            {
                "row": int(record["row"]),
                "score": score,
                "score_text": _score(score),
                "label": str(record["label"]) if is_known(record.get("label")) else "",
                "texts": texts_of(record, LETTERS),
            }
        )
    return rows


def _score(value: float) -> str:
    if 1000 <= abs(value) < 1e9:
        return f"{float(f'{value:.3g}'):,.0f}".replace("-", MINUS)
    return as_text(value, 3)


def _others(result: Any, shown: Sequence[int]) -> tuple[str, str]:
    """The data of the control that chooses any query, ("", "") where there is nothing to choose.

    Training texts are kept once, however many queries they are shown for. Queries are added from
    the first on until the page would grow too large.
    """
    if not shown or _summed(result) or len(shown) == len(result.queries):
        return "", ""
    train: dict[int, Row] = {}
    queries: list[Row] = []
    letters = 0
    for query in range(len(result.queries)):
        entry = _query(result, query)
        for side in ("helpful", "harmful"):
            for row in entry[side]:
                if row["row"] not in train:
                    train[row["row"]] = {"label": row["label"], "texts": row["texts"]}
                    letters += sum(map(len, row["texts"])) + 40
            entry[side] = [[r["row"], rounded(r["score"]), r["score_text"]] for r in entry[side]]
        queries.append(entry)
        letters += sum(map(len, entry["texts"])) + 300
        if letters > EMBEDDED:
            break
    return packed({"queries": queries, "train": train, "of": len(result.queries)})


def _timings(result: Any) -> Row | None:
    """The seconds of every phase as a table, None where they are not known."""
    timings = dict(getattr(result, "timings", None) or {})
    if not timings:
        return None
    total = timings.pop("total", sum(timings.values()))
    frame = pd.DataFrame(
        {
            "phase": [*(name.replace("_", " ") for name in timings), "total"],
            "seconds": [*timings.values(), total],
        }
    )
    frame["share (%)"] = (100 * frame["seconds"] / (total or np.nan)).round(1)
    return data_table(frame, "seconds of every phase")


def _timings_figure(result: Any) -> Row:
    if not getattr(result, "timings", None):
        return NO_PICTURE
    return picture(factor_figures.plot_timings, result, alt="Seconds of every phase as bars")


def _agreements(items: Sequence[tuple[str, Any]]) -> Together:
    """The first result's scores against those of the others that scored the same rows."""
    (first_name, first), *rest = items
    shown = []
    for name, other in rest[:4]:
        try:
            figures.agreement(first, other)
        except ConfigError:
            continue
        shown.append(
            picture(
                figures.plot_agreement,
                first,
                other,
                labels=(first_name, name),
                alt=f"Scores of {name} against those of {first_name}",
                caption=f"{name} against {first_name}: every dot is a query and a training row.",
            )
        )
    return Together(figures=shown)


# --- factors ----------------------------------------------------------------------------------


def _factors(result: Any, anchor: str, few: bool) -> Row:
    coverage = result.coverage
    seen = coverage["status"] == "seen"
    total = int(coverage["parameters"].sum())
    facts = [
        ("parameters seen", percent(result.share), f"of {total:,}" if total else ""),
        ("modules seen", f"{int(seen.sum())} of {len(coverage)}", ""),
        ("strategy", result.strategy, f"{result.labels} labels"),
        ("rows", f"{result.rows:,}", f"{result.task}:{result.split}"),
        ("precision", result.dtype, ""),
    ]
    spectra = picture(
        factor_figures.plot_spectra,
        result,
        alt="Eigenvalues of the factors of every module on a log axis",
        caption="A line per module. Effective rank: (sum of eigenvalues)² / sum of their squares,"
        " as a share of their number; the median over modules is given.",
    )
    return {
        "facts": [fact(label, value, note) for label, value, note in facts],
        "spectra": spectra,
        "coverage": data_table(
            _coverage(result),
            "what the factors see",
            caption="Every module with parameters, and why the factors do not see it where they"
            " do not. Effective ranks in per cent of the full rank.",
            mark=lambda row: "" if row.get("status") == "seen" else "unseen",
        ),
        "timings": _timings(result),
        "timings_figure": _timings_figure(result),
    }


def _coverage(result: Any) -> pd.DataFrame:
    """The coverage with the effective ranks of every module that has spectra."""
    table = pd.DataFrame(result.coverage).reset_index(drop=True)
    ranks = factor_figures.effective_ranks(result)
    names = {"activation": "A", "gradient": "S", "lambda": "\N{GREEK CAPITAL LETTER LAMDA}"}
    for factor, short in names.items():
        values = ranks[ranks["factor"] == factor].set_index("module")
        if values["effective_rank"].notna().any():
            table[f"rank of {short} (%)"] = _per_cent(table["name"], values["effective_rank"])
        if len(values) and factor == "lambda":
            title = f"{short} above 1e-08 (%)"
            table[title] = _per_cent(table["name"], values["above_damping"])
    return table


def _per_cent(names: pd.Series, shares: pd.Series) -> pd.Series:
    return (100 * names.map(shares).astype(float)).round(1)


# --- self-influence and mislabelled rows -------------------------------------------------------


def _self_influence(result: Any, anchor: str, few: bool) -> Row:
    table = result.table.sort_values("score", ascending=False, kind="stable").head(SUSPECTS)
    return {
        "figure": picture(
            method_figures.plot_self_influence,
            result,
            alt="Self-influence of every row against its loss",
        ),
        "explanation": str(getattr(result, "explanation", "")),
        "rows": _ranking(table, f"the {len(table)} rows of the highest self-influence"),
        "total": len(result.table),
        "timings": _timings(result),
    }


def _ranking(table: pd.DataFrame, label: str) -> Row:
    wanted = ("rank", "row", "text_id", "score", "label", "prediction", "loss", "known", "text",
              "text_pair")  # fmt: skip
    known = [name for name in wanted if name in table and table[name].notna().any()]
    frame = with_texts(table[known], LETTERS)
    if "known" in frame:
        frame["known"] = ["mislabelled" if known else "" for known in frame["known"]]
    return data_table(
        frame,
        label,
        caption="Press a heading to sort.",
        titles={"text_id": "text id", "text_pair": "second text", "known": "known to be"},
        mark=lambda row: "confound" if row.get("known") == "mislabelled" else "",
        prose=TEXTS,
    )


def _mislabel(result: Any, anchor: str, few: bool) -> Row:
    table = result.table.head(SUSPECTS)
    level = float(getattr(result, "level", 0.95))
    return {
        "facts": _measures(result),
        "recall": picture(
            method_figures.plot_mislabel,
            result,
            alt="Share of the mislabelled rows found against the share of rows inspected",
            caption=f"The grey band holds what a random order finds with probability {level:g}.",
        ),
        "rows": _ranking(table, f"the {len(table)} most suspicious rows"),
        "total": len(result.table),
    }


def _measures(result: Any) -> list[Row]:
    facts = []
    for name, label in (("average_precision", "average precision"), ("auc", "AUC")):
        value, low, high = (getattr(result, f"{name}{end}", None) for end in ("", "_low", "_high"))
        if not is_known(value):
            continue
        text = as_text(float(cast(float, value)), 3)
        if is_known(low) and is_known(high):
            text = with_interval(*(float(cast(float, number)) for number in (value, low, high)))
        chance = 0.5 if name == "auc" else getattr(result, f"{name}_random", None)
        note = "" if chance is None else f"random order: {as_text(float(chance), 2)}"
        facts.append(fact(label, text, note))
    return facts


# --- how far to trust scores --------------------------------------------------------------------


def _lds(result: Any, anchor: str, few: bool) -> Row:
    facts = [
        ("masks", f"{result.masks:,}", f"{percent(result.fraction)} of the rows kept in each"),
        (
            "retrainings",
            f"{result.retrainings:,}" if result.retrainings else "not known",
            "of every mask, averaged",
        ),
        ("queries", f"{result.per_query['query'].nunique():,}", result.measurement),
    ]
    if is_known(getattr(result, "reliability", None)):
        reliability = as_text(float(result.reliability), 2)
        facts.append(("reliability", reliability, "split half, of the truth"))
    if is_known(getattr(result, "ceiling", None)):
        ceiling = as_text(float(result.ceiling), 2)
        facts.append(("ceiling", ceiling, "what perfect scores would be expected to reach"))
    differences = getattr(result, "differences", None)
    return {
        "facts": [fact(label, value, note) for label, value, note in facts],
        "methods": picture(
            method_figures.plot_lds, result, alt="Linear datamodelling score of every method"
        ),
        "by_query": picture(
            method_figures.plot_lds_queries,
            result,
            alt="Linear datamodelling score of every query, a strip per method",
        ),
        "table": data_table(result.table, "linear datamodelling scores", titles={"lds": "LDS"}),
        "differences": None
        if differences is None or not len(differences)
        else data_table(
            differences,
            "differences between methods",
            caption="Differences of the LDS of two methods, paired: both were judged by the same"
            " retrained models and queries.",
        ),
        "timings": _timings(result),
        "queries": data_table(
            result.per_query.pivot_table(
                index="text_id" if "text_id" in result.per_query else "query",
                columns="method",
                values="lds",
                sort=False,
            ).reset_index(),
            "scores of every query",
            titles={"text_id": "query"},
            caption="Press a heading to sort.",
        ),
    }


def _counterfactual(result: Any, anchor: str, few: bool) -> Row:
    flips, comparison = (getattr(result, name, None) for name in ("flips", "comparison"))
    counts = {"targets": int(result.curve["targets"].max())}
    for name in ("queries", "retrainings"):
        if is_known(getattr(result, name, None)):
            counts[name] = int(getattr(result, name))
    notes = {"targets": "predictions to flip", "queries": "in which they were sought"}
    return {
        "facts": [fact(name, f"{count:,}", notes.get(name, "")) for name, count in counts.items()],
        "comparison": None
        if comparison is None or not len(comparison)
        else data_table(
            comparison,
            "every method against random rows",
            titles={"p_value": "p (McNemar)"},
            caption="Every method against random rows, on the same targets. p is not corrected for"
            " the number of comparisons.",
        ),
        "figure": picture(
            method_figures.plot_counterfactual,
            result,
            alt="Share of the targets that flip by number of removed training rows",
            caption="Solid: flipped at this size, with its interval. Faint: flipped at it or at a"
            " smaller one."
            if result.curve["share"].notna().all()
            else "Flipped at this size or at a smaller one, with its interval.",
        ),
        "curve": data_table(
            result.curve,
            "targets flipped",
            titles={"share_carried": "share, carried forward"},
        ),
        "flips": None
        if flips is None or not len(flips)
        else data_table(flips, "every target and size", caption="Press a heading to sort."),
    }


def _label(*words: str) -> str:
    return ", ".join(shorten(word, 48) for word in words if word)


GUIDE = "influence_reading.html.j2"

INFLUENCE_KINDS: dict[str, Kind] = {
    "Influence": Kind(
        "Influence",
        "influence.html.j2",
        _influence,
        lambda r: _label(r.checkpoint, r.strategy, r.measurement),
        GUIDE,
        _agreements,
    ),
    "FactorSummary": Kind(
        "Factors",
        "factors.html.j2",
        _factors,
        lambda r: _label(r.checkpoint, f"{r.strategy} on {r.task}:{r.split}"),
        GUIDE,
    ),
    "SelfInfluence": Kind(
        "Self-influence",
        "self_influence.html.j2",
        _self_influence,
        lambda r: _label(r.checkpoint, f"{r.task}:{r.split}", r.strategy),
        GUIDE,
    ),
    "Mislabel": Kind("Mislabelled rows", "mislabel.html.j2", _mislabel, lambda r: r.task, GUIDE),
    "LinearDatamodelling": Kind(
        "Linear datamodelling score", "lds.html.j2", _lds, lambda r: r.task, GUIDE
    ),
    "Counterfactual": Kind(
        "Counterfactuals", "counterfactual.html.j2", _counterfactual, lambda r: r.task, GUIDE
    ),
}
