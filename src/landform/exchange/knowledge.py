"""The files of Mode-Connectivity-PLM (Qin et al. 2022): what is known along a line, and its curve.

    valid_data_analysis.json, test_data_analysis.json
        {"<x>": {"zero_list": [...], "one_list": [...], "up_list": [...], "down_list": [...]}}
        positions of the examples whose score at x is 0, is 1, is above, below that at the x before
    data_analyze.txt         the sizes of those lists, and of up-to-one and down-to-zero
    result.csv               prefix, metric, x, dev_performance, dev_loss, test_performance,
                             test_loss: a row per x and a last one of averages
    solution_analysis.txt    the x whose metric beats both ends, the best, the averages
    distance.txt             L2 distance, number of parameters, RMS distance, cosine
    forgotten.txt            of every step the newly forgotten examples and their means

The layouts are the original's; its faults are not. The averages of test are those of test (they
were always 0), a data set that was not evaluated leaves its columns empty (they were 0), and files
are written anew (they were appended to). x is rounded to three decimals, as there; the row of
averages carries x = 1, as there.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from landform.errors import DataError
from landform.geometry.forgetting import STATISTICS
from landform.geometry.knowledge import Knowledge, KnowledgeConfig, align_known, knowledge_of
from landform.geometry.line import Interpolation
from landform.store.atomic import atomic_path, file_errors
from landform.tasks.metrics import METRICS, get_metric
from landform.tasks.tables import read_document, read_text
from landform.weights.distance import Distance

__all__ = [
    "read_knowledge",
    "write_distance",
    "write_forgotten",
    "write_knowledge",
    "write_line",
]

FOUR = ("zero", "one", "up", "down")
COUNTS = ("zero", "one", "up", "up_to_one", "down", "down_to_zero")
"""In the order of data_analyze.txt."""
HEADS = {
    "train": "TEST ON TRAIN: round x = {}, in dev_data: \n",
    "valid": "DEV: round x = {}, in dev_data: \n",
    "test": "TEST: round x = {}, in test_data: \n",
}
TITLES = {
    "correctness": "average correctness is",
    "confidence": "average confidence is",
    "variability": "average variance is",
    "turns": "average turn is",
}
"""What forgotten.txt calls the statistics; its "variance" is a standard deviation."""
_EXPECTED = 'expected {"0.0": {"zero_list": [1, 5], "one_list": [0, 2]}, "0.2": ...}'


def _x(t: float) -> float:
    return round(float(t), 3)


def _part(data: str) -> str:
    """train, valid or test: what the original calls a split."""
    split = data.rpartition(":")[2]
    return split if split in ("train", "test") else "valid"


def _write(path: Path, text: str) -> Path:
    with file_errors("write", path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(path) as place:
            place.write_text(text, encoding="utf-8")
    return path


# --- lists of examples ---------------------------------------------------------------------------


def write_knowledge(
    results: Knowledge | Sequence[Knowledge], folder: str | os.PathLike[str]
) -> list[Path]:
    """Write what is known along a line: the JSON of lists, data_analyze.txt, forgotten.txt.

    Several results are those of one line on several splits. The lists of a split `test` go to
    test_data_analysis.json, those of any other to valid_data_analysis.json (of `train` the lists
    of zeros and ones alone, as the original writes them). forgotten.txt is written where a result
    has a cartography. Raises `DataError` for two results that would have one file.
    """
    chosen = [results] if isinstance(results, Knowledge) else list(results)
    target = Path(folder)
    names = ["test" if _part(k.data) == "test" else "valid" for k in chosen]
    if len(set(names)) < len(names):
        raise DataError(
            f"two results would be written as {names[0]}_data_analysis.json: "
            f"{', '.join(f'{k.data} from {k.a} to {k.b}' for k in chosen)}",
            remedy="export them one at a time, each to a folder of its own",
        )
    wrote, counts = [], []
    for name, k in zip(names, chosen, strict=True):
        path = target / f"{name}_data_analysis.json"
        wrote.append(_write(path, json.dumps(_document(k))))
        counts.append(_counts(k))
    text = "".join(part for at_x in zip(*counts, strict=False) for part in at_x)
    wrote.append(_write(target / "data_analyze.txt", text))
    for k in chosen:
        if k.comparison is not None:
            wrote.append(write_forgotten(k, target / "forgotten.txt"))
    return wrote


def _document(k: Knowledge) -> dict[str, dict[str, list[int]]]:
    kept = FOUR[:2] if _part(k.data) == "train" else FOUR
    return {
        repr(_x(t)): {f"{name}_list": found[name].tolist() for name in kept}
        for t, found in zip(k.ts, k.lists, strict=True)
    }


def _counts(k: Knowledge) -> list[str]:
    """data_analyze.txt of one split, point by point."""
    part = _part(k.data)
    names = COUNTS[:2] if part == "train" else COUNTS
    blocks = []
    for t, found in zip(k.ts, k.lists, strict=True):
        lines = [f"total number of data is {len(k.table)} \n", HEADS[part].format(_x(t))]
        lines += [f"{name}{'' if '_to_' in name else '_list'}_num: {len(found[name])}\n"
                  for name in names]  # fmt: skip
        blocks.append("".join(lines) + "\n")
    return blocks


def write_forgotten(k: Knowledge, path: str | os.PathLike[str]) -> Path:
    """Write the report of newly forgotten examples: six lines a step, and an empty one.

    The line of a step without forgotten examples has zeros, as in the original. Raises `DataError`
    for a result without a cartography.
    """
    if k.comparison is None:
        raise DataError(
            "without a cartography there is nothing to report of the forgotten examples",
            remedy="give knowledge_along_path a cartography (--cartography RUN)",
        )
    text, before = "", "start"
    for row in k.summary.to_dict("records"):
        x = repr(_x(row["to_t"]))
        text += f"this is from interpolation point {before} ===> {x}\n"
        text += f"total number of newly forgotten examples: {int(row['forgotten'])}\n"
        for name in STATISTICS:
            value = float(row.get(name, np.nan))
            text += f"{TITLES[name]}: {value if np.isfinite(value) else 0.0}\n"
        text, before = text + "\n", x
    return _write(Path(path), text)


# --- curves --------------------------------------------------------------------------------------


def write_line(result: Interpolation, folder: str | os.PathLike[str]) -> list[Path]:
    """Write result.csv and solution_analysis.txt of a line.

    For every task its first data set that is not a split `test` is dev, its split `test` is test;
    what there is not is left empty. The metric is the task's first one.
    """
    target, tables, text = Path(folder), [], ""
    for prefix, dev, test in _tasks(result):
        parts = {name: _curve(result, data) for name, data in (("dev", dev), ("test", test))}
        tables.append(_rows(prefix, parts))
        text += _solutions(parts)
    table = pd.concat(tables, ignore_index=True)
    csv = table.to_csv(index=False, float_format="%.4f", lineterminator="\n")
    return [
        _write(target / "result.csv", csv),
        _write(target / "solution_analysis.txt", text),
    ]


def _tasks(result: Interpolation) -> list[tuple[str, str | None, str | None]]:
    """(task, its dev data set, its test data set), in order."""
    found: dict[str, dict[str, str]] = {}
    for name in dict.fromkeys(map(str, result.table["data"])):
        task = name.rpartition(":")[0]
        found.setdefault(task, {}).setdefault("test" if _part(name) == "test" else "dev", name)
    return [(task, own.get("dev"), own.get("test")) for task, own in found.items()]


def _curve(result: Interpolation, data: str | None) -> pd.DataFrame | None:
    """x, performance, loss of a data set; its metric in `attrs`."""
    if data is None:
        return None
    rows = result.table[result.table["data"] == data].sort_values("t")
    known = [str(c) for c in rows if c in METRICS and c != "loss" and bool(rows[c].notna().all())]
    metric = known[0] if known else "loss"
    table = pd.DataFrame(
        {
            "x": [_x(t) for t in rows["t"]],
            "performance": rows[metric].to_numpy(np.float64),
            "loss": rows["loss"].to_numpy(np.float64),
        }
    )
    table.attrs["metric"] = metric
    return table


def _rows(prefix: str, parts: Mapping[str, pd.DataFrame | None]) -> pd.DataFrame:
    """A row for each x of a task, and their mean."""
    first = next(part for part in parts.values() if part is not None)
    columns: dict[str, Any] = {"prefix": prefix, "metric": first.attrs["metric"], "x": first["x"]}
    for name, part in parts.items():
        for what in ("performance", "loss"):
            columns[f"{name}_{what}"] = np.nan if part is None else part[what]
    table = pd.DataFrame(columns)
    numbers = [str(c) for c in table if c not in ("prefix", "metric", "x")]
    average = {"prefix": "average", "metric": first.attrs["metric"], "x": 1.0}
    average |= {name: table[name].mean() for name in numbers}
    return pd.concat([table, pd.DataFrame([average])], ignore_index=True)


def _solutions(parts: Mapping[str, pd.DataFrame | None]) -> str:
    """solution_analysis.txt of one task."""
    found = {name: _better(part) for name, part in parts.items()}
    both = [x for x in found["dev"] if x in found["test"]]
    lists = (("valid", found["dev"]), ("test", found["test"]), ("valid & test", both))
    lines = [f"better {name} number: {len(xs)}, which are {xs} \n" for name, xs in lists]
    dev = parts["dev"]
    best = ""
    if dev is not None:
        sign = 1 if get_metric(dev.attrs["metric"]).higher_is_better else -1
        best = str(float(sign * (sign * dev["performance"]).max()))
    lines += [f"\nbest valid performance: {best} \n"]
    for name, part in (("valid", dev), ("test", parts["test"])):
        for what in ("performance", "loss"):
            value = "" if part is None else float(part[what].mean())
            lines.append(f"average {name} {what}: {value} \n")
    return "".join(lines) + "\n"


def _better(part: pd.DataFrame | None) -> list[float]:
    """The x whose metric is better than at both ends."""
    if part is None:
        return []
    sign = 1 if get_metric(part.attrs["metric"]).higher_is_better else -1
    values = sign * part["performance"].to_numpy()
    return [float(x) for x in part["x"][values > max(values[0], values[-1])]]


def write_distance(result: Distance, path: str | os.PathLike[str]) -> Path:
    """Write distance.txt; what it calls cosine distance is the cosine."""
    values = {
        "L2 distance is": result.l2,
        "num of para is": result.parameters,
        "average L2 distance is": result.rms,
        "Cos distance is": result.cosine,
    }
    return _write(Path(path), "".join(f"{name}: \n{value}\n" for name, value in values.items()))


# --- reading -------------------------------------------------------------------------------------


def read_knowledge(
    source: str | os.PathLike[str],
    *,
    cartography: str | os.PathLike[str] | None = None,
    name: str | None = None,
    **options: Any,
) -> Knowledge:
    """Read a *_data_analysis.json, or the valid one of a folder, with a cartography.json.

    The ids of the examples are their positions, of which there are as many as data_analyze.txt
    beside the file says, as the cartography has, or as the lists need. Scores between 0 and 1 are
    not in the files: they are NaN here, and the mean scores with them. Options are the fields of
    `KnowledgeConfig`. Raises `DataError` that names the file, x and list for anything else.
    """
    config = KnowledgeConfig.parse(options, where="read_knowledge")
    file = Path(source)
    file = file / "valid_data_analysis.json" if file.is_dir() else file
    lists = _read_lists(file)
    table = None if cartography is None else _dynamics(cartography)
    size = _size(file, lists, table)
    scores = np.full((len(lists), size), np.nan)
    for row, (zero, one) in zip(scores, lists.values(), strict=True):
        row[zero], row[one] = 0.0, 1.0
    ids = [str(row) for row in range(size)]
    data = name or file.stem.removesuffix("_data_analysis")
    where = str(cartography)
    known = None if table is None else align_known(table, ids, where, data, partial=config.partial)
    found = knowledge_of(
        scores,
        list(lists),
        pd.DataFrame({"text_id": ids}),
        known,
        config,
        provenance={"file": str(source)},
        a=f"{file.parent.name} x = 0",
        b=f"{file.parent.name} x = 1",
        data=data,
        kind="classification" if np.isfinite(scores).all() else "seq2seq",
        metric="accuracy" if np.isfinite(scores).all() else "score",
        path="line",
    )
    if not np.isfinite(scores).all():
        unknown = ["score", "score_low", "score_high"]
        found.along[unknown] = np.nan
        found.summary["correct"] = np.nan
    return found


def _read_lists(file: Path) -> dict[float, tuple[list[int], list[int]]]:
    """x -> positions of score 0 and of score 1."""
    document = read_document(file, _EXPECTED)
    found: dict[float, tuple[list[int], list[int]]] = {}
    for key, entry in document.items():
        where = f"{file}: x = {key}"
        x = _number(key)
        if not math.isfinite(x):
            raise DataError(f"{where} is no position", remedy=_EXPECTED)
        if found and x <= list(found)[-1]:
            raise DataError(f"{where} comes after {list(found)[-1]}", remedy="x must rise")
        if not isinstance(entry, dict):
            raise DataError(f"{where} has no lists", remedy=_EXPECTED)
        zero, one = (_positions(entry, name, where) for name in ("zero_list", "one_list"))
        both = set(zero) & set(one)
        if both:
            raise DataError(f"{where}: example {min(both)} is in zero_list and in one_list")
        found[x] = zero, one
    return found


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _positions(entry: Mapping[str, Any], name: str, where: str) -> list[int]:
    values = entry.get(name)
    if not isinstance(values, list):
        raise DataError(f"{where} has no {name}", remedy=_EXPECTED)
    for value in values:
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise DataError(f"{where}: {value!r} in {name} is no position", remedy=_EXPECTED)
    return values


def _dynamics(path: str | os.PathLike[str]) -> pd.DataFrame:
    from landform.evaluation.cartography import summarise
    from landform.exchange.cartography import read_cartography

    d = read_cartography(path)
    return summarise(d.confidence, d.correct, d.margin, d.ids, epochs=d.epochs)


def _size(
    file: Path, lists: Mapping[float, tuple[list[int], list[int]]], table: pd.DataFrame | None
) -> int:
    """How many examples there are."""
    needed = 1 + max((row for pair in lists.values() for part in pair for row in part), default=-1)
    counts = file.parent / "data_analyze.txt"
    said = 0
    if counts.is_file():
        marks = {"test": "TEST: "}.get(file.stem.removesuffix("_data_analysis"), "DEV: |TEST ON")
        found = re.search(
            rf"total number of data is (\d{{1,18}}) *\n(?:{marks})", read_text(counts)
        )
        said = int(found[1]) if found else 0
    if said and needed > said:
        raise DataError(
            f"{file} lists example {needed - 1}, {counts} says that there are {said}",
            remedy="the files are of two runs: keep each in a folder of its own",
        )
    size = said or max(needed, 0 if table is None else len(table))
    if not size:
        raise DataError(f"{file} lists no examples", remedy=_EXPECTED)
    return size
