"""`landform influence`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from landform.attribution.influence import Influence
from landform.cli.common import (
    DataFlags,
    OptionFlags,
    OutputConfig,
    OutputFlags,
    check_k,
    make_task,
    query_sets,
    run_study,
)
from landform.cli.texts import coverage_line, print_text, print_texts, print_timings
from landform.errors import ConfigError
from landform.studies.attribute import (
    Attribution,
    AttributionConfig,
    AttributionStudy,
    hardest_queries,
    layer_shares,
    top_rows,
)
from landform.tasks.task import TaskConfig

__all__ = ["influence"]

Record = Mapping[Any, Any]
"""A row of a table by column."""


def influence(
    checkpoint: str,
    /,
    *,
    data: Annotated[TaskConfig, DataFlags] = TaskConfig(),
    split: str = "train",
    queries: tuple[str, ...] = ("validation",),
    query: tuple[int, ...] = (),
    k: int = 5,
    store: Path | None = None,
    csv: Path | None = None,
    dry_run: Annotated[bool, Parameter(negative=())] = False,
    options: Annotated[AttributionConfig, OptionFlags] = AttributionConfig(),
    output: Annotated[OutputConfig, OutputFlags] = OutputConfig(),
) -> None:
    """Which training examples made the model answer that?

    Example: landform influence runs/seed0 --task sst2 --rows 2000 --query-rows 200 --store study

    Parameters
    ----------
    checkpoint
        A directory, a step of a run (runs/seed0@300), or a hub model.
    split
        The split that the model was trained on.
    queries
        What is asked about: splits of the task, or NAME:SPLIT, FILE.yaml, FILE.yaml:SPLIT.
    query
        Which queries to print, counted from 0 (default: the three with the highest loss).
    k
        How many training texts to print on either side of a query.
    store
        Study directory: factors and blocks of scores are kept there and reused, and the results
        for landform report.
    csv
        Write the K most helpful and the K most harmful training rows of every query to this file.
    dry_run
        Say what it would take, with time and memory; keep nothing.
    """
    check_k(k)

    def study() -> AttributionStudy:
        made = AttributionStudy.of(
            checkpoint, make_task(data), split=split, queries=query_sets(queries), **dict(options)
        )
        _check_shown(made, query, csv)
        return made

    run_study(
        study,
        output,
        store=store,
        csv=csv,
        dry_run=dry_run,
        parts=_parts,
        json_of=lambda done: {
            "factors": done.factors.to_json(),
            "influence": [result.to_json() for result in done.influences],
        },
        table=lambda done: top_rows(done.influences, k),
        say=lambda done: _say(done, query, k),
    )


def _parts(study: AttributionStudy) -> list[str]:
    return [
        "factors",
        *(f"scores of {task.name}:{task.resolve(split)}" for task, split in study.queries),
    ]


def _check_shown(study: AttributionStudy, chosen: Sequence[int], csv: Path | None) -> None:
    """Raise now what printing and writing would raise after the work."""
    aggregate = study.config.aggregate
    if csv is not None and aggregate in ("train", "both"):
        raise ConfigError(
            "option csv: with the training rows summed there is no order among them",
            remedy="leave csv or aggregate out",
        )
    if chosen and aggregate is not None:
        raise ConfigError(
            f"option query: aggregate {aggregate} leaves no single queries to print",
            remedy="leave query or aggregate out",
        )
    for task, split in study.queries:
        count = len(task.examples(split, rows=study.config.query_rows))
        outside = [query for query in chosen if not 0 <= query < count]
        if outside:
            raise ConfigError(
                f"option query: {task.name}:{task.resolve(split)} has no query {outside[0]}",
                remedy=f"queries are 0 to {count - 1}; --query-rows decides how many there are",
            )


# --- what is printed --------------------------------------------------------------------------


def _say(done: Attribution, chosen: Sequence[int], k: int) -> None:
    print(done.factors.reading)
    print(coverage_line(done.factors))
    for result in done.influences:
        _say_influence(result, result.query_set, chosen, k)


def _say_influence(result: Influence, name: str, chosen: Sequence[int], k: int) -> None:
    print(result.reading)
    print(result.explanation)
    count = 0 if result.scores is None else result.scores.shape[1]
    if result.scores is not None and len(result.scores) != len(result.train):
        _say_sums(result, name)
    elif result.scores is not None and count != len(result.queries):
        print()
        print(f"the sum of all {len(result.queries)} queries of {name}")
        print_texts(_sides(result, 0, k), ("score", "row", "label"))
    else:
        for query in chosen or hardest_queries(result, 3):
            print()
            _say_query(result, name, query, k)
    print()
    if result.modules is not None:
        shares = layer_shares(result).head(5)
        print("layers with the largest share of the absolute scores:")
        for layer, share in shares.items():
            print(f"  {100 * share:4.1f} %  {layer}")
        print()
    print_timings(result.timings)


def _say_sums(result: Influence, name: str) -> None:
    """The training rows were summed: a number per query is left, or one."""
    values = result.values[:, 0]
    print()
    if len(values) != len(result.queries):
        print(f"all {len(result.train)} training rows on all queries of {name}: {values[0]:+.4g}")
        return
    print(f"the sum of all {len(result.train)} training rows, for queries of {name}")
    records: list[Record] = [
        {**result.queries.iloc[query].to_dict(), "score": f"{values[query]:+.4g}", "query": query}
        for query in hardest_queries(result, 10)
    ]
    print_texts([("highest loss", records)], ("score", "query", "label"))


def _say_query(result: Influence, name: str, query: int, k: int) -> None:
    record = result.queries.iloc[query].to_dict()
    facts = []
    if str(record["label"]):
        facts.append(f"labelled {record['label']}")
    if "prediction" in record:
        facts.append(f"predicted {record['prediction']}")
    facts.append(f"loss {record['loss']:.3g}")
    if result.measurement != "loss":
        facts.append(f"{result.measurement} {record['value']:.3g}")
    print(f"query {query} ({record['text_id']}) of {name}: {', '.join(facts)}")
    print_text(record)
    print_texts(_sides(result, query, k), ("score", "row", "label"))


def _sides(result: Influence, query: int, k: int) -> list[tuple[str, list[Record]]]:
    """The top rows of both sides; a row on the wrong side of 0 is not among them."""
    sides: list[tuple[str, list[Record]]] = []
    for title, harmful in (("most helpful", False), ("most harmful", True)):
        top = result.top(query, k, harmful=harmful)
        kept = top[top["score"] < 0] if harmful else top[top["score"] > 0]
        records = kept.to_dict("records")
        sides.append((title, [{**r, "score": f"{r['score']:+.4g}"} for r in records]))
    return sides
