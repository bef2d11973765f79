"""Per-sample files of many models (see `evaluation.samples`), as `Evaluation` results and tables.

The connectivity project keeps what each model did on a data set as `<prefix><suffix>.json`, and
computes every metric from these. HANS rows are told apart by looking their sentences up in HANS
itself: `task` here. CoLA's validation files are its in-domain part (527 rows) and then its
out-of-domain part, which the order alone tells.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from landform.config import Config
from landform.errors import ConfigError, DataError, LabelError
from landform.evaluation.evaluate import EvaluateConfig, Evaluation, metric_table
from landform.evaluation.samples import read_samples
from landform.exchange.lines import natural_order
from landform.store.fingerprint import fingerprint_file
from landform.tasks.metrics import Predictions, get_metric, reliability
from landform.tasks.task import Task

__all__ = ["SamplesConfig", "endpoint_table", "find_samples", "read_evaluations"]

COLA = ("unacceptable", "acceptable")
COLA_IN_DOMAIN, COLA_ROWS = 527, 1043
_BY_CLASSES = {
    frozenset(COLA): ("matthews", "accuracy"),
    frozenset(("not_duplicate", "duplicate")): ("accuracy", "f1"),
}


class SamplesConfig(Config):
    """How per-sample files become evaluations."""

    name: str = "samples"
    """Name of the data set in tables."""
    split: str = "validation"
    """Name of its split."""
    metrics: tuple[str, ...] = ()
    """Metrics beside the loss (default: those of the known tasks with these classes; accuracy)."""
    replicates: int = EvaluateConfig.model_fields["replicates"].default
    """Bootstrap replicates over examples."""
    level: float = EvaluateConfig.model_fields["level"].default
    """Coverage of the intervals."""
    seed: int = 0
    """Seed of the resampling."""


# --- which files ---------------------------------------------------------------------------------


def find_samples(
    source: str | os.PathLike[str], suffixes: Sequence[str] = (), *, models: Sequence[str] = ()
) -> dict[str, Path]:
    """{model: file} of the per-sample files that `source` names, in natural order.

    * a prefix and `suffixes`: `<prefix><suffix>.json`, named by the suffix;
    * a prefix alone: all `<prefix><digits>.json`, named by the digits;
    * a folder: its .json files, or those in one folder per model as the hub keeps them (the file
      whose name is the model's, or the only one of which it says `eval`), named by what the
      names do not share.

    With `models`, names that the files must go with (those of lines, say), files are named by the
    whole name of the file or folder where that is what fits.
    """
    text = os.fspath(source)
    if suffixes:
        found = {s: Path(f"{text}{s}" + ("" if s.endswith(".json") else ".json")) for s in suffixes}
        gone = [path for path in found.values() if not path.is_file()]
        if gone:
            raise DataError(f"{gone[0]} is missing", remedy="check the prefix and the suffixes")
        return {name.removesuffix(".json"): path for name, path in found.items()}
    place = Path(text)
    if place.is_file():
        return {place.stem: place}
    whole = _in_folder(place) if place.is_dir() else {}
    found = _short(whole) if place.is_dir() else _by_prefix(place)
    if models and not set(models) <= set(found) and set(models) <= set(whole):
        found = whole
    if not found:
        raise DataError(
            f"{text}: no per-sample file {'in the folder' if place.is_dir() else 'of that prefix'}",
            remedy="expected PREFIX<digits>.json, a folder of .json files, or a folder for each "
            "model as 'landform import hub' makes them",
        )
    return {name: found[name] for name in natural_order(list(found))}


def _by_prefix(prefix: Path) -> dict[str, Path]:
    if not prefix.parent.is_dir():
        return {}
    pattern = re.compile(re.escape(prefix.name) + r"(\d+)\.json")
    matches = ((pattern.fullmatch(path.name), path) for path in prefix.parent.iterdir())
    return {found[1]: path for found, path in matches if found}


def _in_folder(folder: Path) -> dict[str, Path]:
    files = sorted(folder.glob("*.json"))
    if files:
        return {path.stem: path for path in files}
    chosen: dict[str, Path] = {}
    for inner in sorted(path for path in folder.iterdir() if path.is_dir()):
        own = inner / f"{inner.name}.json"
        named = [own] if own.is_file() else sorted(inner.glob("*eval*.json"))
        if len(named) > 1:
            raise DataError(
                f"{inner} holds {len(named)} per-sample files: "
                f"{', '.join(path.name for path in named[:3])}",
                remedy="download those of one data set into a folder of their own (--match)",
            )
        for path in named:
            chosen[inner.name] = path
    return chosen


def _short(files: Mapping[str, Path]) -> dict[str, Path]:
    """Names without what all of them share; a number is never cut in two."""
    names = list(files)
    if len(names) < 2:
        return dict(files)
    start = re.sub(r"\d+$", "", _common(names))
    end = re.sub(r"^\d+", "", _common([name[::-1] for name in names])[::-1])
    cut = {name: name[len(start) : len(name) - len(end)] for name in names}
    if not all(cut.values()) or len(set(cut.values())) < len(names):
        return dict(files)
    return {cut[name]: path for name, path in files.items()}


def _common(names: Sequence[str]) -> str:
    """The letters that all names begin with."""
    same = takewhile(lambda letters: len(set(letters)) == 1, zip(*names, strict=False))
    return "".join(letters[0] for letters in same)


# --- evaluations ---------------------------------------------------------------------------------


def read_evaluations(
    source: str | os.PathLike[str] | Mapping[str, Path],
    suffixes: Sequence[str] = (),
    *,
    task: Task | None = None,
    **options: Any,
) -> dict[str, Evaluation]:
    """An `Evaluation` of every per-sample file that `find_samples` finds, by model.

    `source` is a folder, a prefix with its `suffixes` (see `find_samples`), or the files by model.

    Loss (nats), metrics and intervals are computed from the logits as `evaluate` does. All files
    must hold the same samples in the same order, or a `DataError` names two that disagree; their
    label orders may differ (logits are brought into the order of the first file). With a `task`,
    whose `split` the samples are from, its ids and columns are joined by text, and its subsets are
    evaluated: heuristics of HANS, say. Options are the fields of `SamplesConfig`.
    """
    files = dict(source) if isinstance(source, Mapping) else find_samples(source, suffixes)
    if task is not None:
        options = {"name": task.name, **options}
    config = SamplesConfig.parse(options, where="read_evaluations")
    found: dict[str, Evaluation] = {}
    first: pd.DataFrame | None = None
    extra: pd.DataFrame | None = None
    for name, path in files.items():
        log = read_samples(path)
        if first is None:
            first, extra = log, _columns(log, path, task, config)
        else:
            log = _aligned(log, path, first, next(iter(files.values())))
        found[name] = _evaluation(name, path, log, extra, task, config)
    return found


def _aligned(log: pd.DataFrame, path: Path, first: pd.DataFrame, other: Path) -> pd.DataFrame:
    """The log with its logits in the label order of the first file, after comparing samples."""
    order, names = first.attrs["label_names"], log.attrs["label_names"]
    if set(order) != set(names):
        raise LabelError(
            f"{path} has the classes {', '.join(names)}, {other} has {', '.join(order)}",
            remedy="these are files of different tasks: read them one at a time",
        )
    same = len(log) == len(first)
    for column in ("text", "text_pair", "label"):
        if not same or (column in log) != (column in first):
            same = False
        elif column in log:
            mine, theirs = log[column].fillna(""), first[column].fillna("")
            differ = np.flatnonzero((mine != theirs).to_numpy())
            if len(differ):
                row = int(differ[0])
                raise DataError(
                    f"{path} and {other} disagree about sample {row}: its {column} is "
                    f"{mine.iloc[row]!r} in one and {theirs.iloc[row]!r} in the other",
                    remedy="they were written from different data; evaluate again on one",
                )
    if not same:
        raise DataError(
            f"{path} holds {len(log)} samples, {other} holds {len(first)}: not the same data",
            remedy="evaluate all models on the same examples",
        )
    logits = {f"logit_{j}": log[f"logit_{names.index(label)}"] for j, label in enumerate(order)}
    log = log.assign(**logits)
    log.attrs["label_names"] = order
    return log


def _evaluation(
    name: str,
    path: Path,
    log: pd.DataFrame,
    extra: pd.DataFrame | None,
    task: Task | None,
    config: SamplesConfig,
) -> Evaluation:
    names: tuple[str, ...] = log.attrs["label_names"]
    predictions = Predictions(
        logits=log[[f"logit_{j}" for j in range(len(names))]].to_numpy(),
        labels=log["label"].map({label: j for j, label in enumerate(names)}).to_numpy(),
        losses=log["loss"].to_numpy(),
        tokens=log["tokens"].to_numpy(),
    )
    metrics = _metrics(names, task, config)
    points = EvaluateConfig(replicates=config.replicates, level=config.level, seed=config.seed)
    table = metric_table(predictions, metrics, points)
    groups = task.subsets if task is not None else (("domain",),)
    whole = log.copy() if extra is None else pd.concat([log.drop(columns="text_id"), extra], axis=1)
    whole.attrs = {}
    rows = [
        {"subset": subset, "n": int(mask.sum()), "metric": metric}
        | dict(zip(("value", "low", "high"), values, strict=True))
        for subset, mask in _masks(whole, groups).items()
        for metric, values in metric_table(predictions.take(mask), metrics, points).items()
    ]
    return Evaluation(
        checkpoint=name,
        task=config.name,
        split=config.split,
        kind="classification",
        log=whole,
        metrics={metric: table[metric][0] for metric in metrics},
        intervals={metric: table[metric][1:] for metric in metrics},
        subsets=pd.DataFrame(rows, columns=["subset", "n", "metric", "value", "low", "high"]),
        reliability=reliability(predictions),
        label_names=names,
        provenance={
            "imported": str(path),
            "sha256": fingerprint_file(path),
            "config": config.model_dump(mode="json"),
        },
    )


def _metrics(names: Sequence[str], task: Task | None, config: SamplesConfig) -> tuple[str, ...]:
    chosen = config.metrics or (
        task.metrics if task is not None else _BY_CLASSES.get(frozenset(names), ("accuracy",))
    )
    for metric in chosen:
        get_metric(metric)
    return tuple(dict.fromkeys(("loss", *chosen)))


def _masks(log: pd.DataFrame, groups: Sequence[Sequence[str]]) -> dict[str, np.ndarray]:
    """Boolean masks by combinations of values of columns, where the log has these columns."""
    masks: dict[str, np.ndarray] = {}
    for group in groups:
        if all(column in log for column in group):
            for values, rows in log.groupby(list(group), sort=False).indices.items():
                words = values if isinstance(values, tuple) else (values,)
                mask = np.zeros(len(log), dtype=bool)
                mask[rows] = True
                masks["/".join(map(str, words))] = mask
    return masks


# --- further columns -----------------------------------------------------------------------------


def _columns(
    log: pd.DataFrame, path: Path, task: Task | None, config: SamplesConfig
) -> pd.DataFrame | None:
    """Ids and columns of the examples: from the task, or CoLA's two parts by their order."""
    if task is None:
        if set(log.attrs["label_names"]) != set(COLA) or len(log) != COLA_ROWS:
            return None
        inside = np.arange(COLA_ROWS) < COLA_IN_DOMAIN
        parts = np.where(inside, "in_domain_dev", "out_domain_dev")
        return pd.DataFrame({"text_id": log["text_id"], "domain": parts})
    examples = task.examples(config.split)
    place: dict[str, int] = {}
    for row, texts in enumerate(examples.texts):
        place.setdefault(_key(texts), row)
    pairs = log["text_pair"] if "text_pair" in log else [None] * len(log)
    rows = []
    for sample, (text, pair) in enumerate(zip(log["text"], pairs, strict=True)):
        key = _key((text,) if pair is None else (text, pair))
        if key not in place:
            raise DataError(
                f"{path}: sample {sample} is not in {task.name}:{config.split}: {text[:60]!r}",
                remedy="name the task and split that the file was written from, or leave them out",
            )
        rows.append(place[key])
    _check_labels(log, path, task, examples, rows)
    own = [column for column in examples.columns.columns if column not in log]
    extra = examples.columns[own].iloc[rows].reset_index(drop=True)
    extra.insert(0, "text_id", [examples.ids[row] for row in rows])
    return extra


def _check_labels(
    log: pd.DataFrame, path: Path, task: Task, examples: Any, rows: Sequence[int]
) -> None:
    names = np.array(task.label_names, dtype=object)
    theirs = names[np.asarray(examples.labels)[rows]]
    mine = log["label"].to_numpy()
    if set(mine) - set(names):
        raise LabelError(
            f"{path}: the class {sorted(set(mine) - set(names))[0]!r} is not one of {task.name}: "
            f"{', '.join(task.label_names)}",
            remedy="the file is of another task, or its label_dict has other names",
        )
    wrong = np.flatnonzero(mine != theirs)
    if len(wrong):
        raise LabelError(
            f"{path}: {len(wrong)} of {len(mine)} labels are not those of {task.name}: sample "
            f"{wrong[0]} is {mine[wrong[0]]}, there it is {theirs[wrong[0]]}",
            remedy="the numbers of its label_dict do not belong to these labels",
        )


def _key(texts: Sequence[Any]) -> str:
    """A text without case, accents and spaces, which decoding a tokenizer's numbers changes."""
    import unicodedata

    parts = [unicodedata.normalize("NFKD", str(text)).lower() for text in texts]
    return "\n".join("".join(c for c in part if c.isalnum()) for part in parts)


# --- the table of endpoints ----------------------------------------------------------------------


def endpoint_table(evaluations: Mapping[str, Evaluation]) -> pd.DataFrame:
    """One row per model; columns `data/metric` and `data/subset/metric`, as `connect` has them."""
    if not evaluations:
        raise ConfigError("there are no evaluations", remedy="read some first")
    rows = []
    for evaluation in evaluations.values():
        data = f"{evaluation.task}:{evaluation.split}"
        row = {f"{data}/{metric}": value for metric, value in evaluation.metrics.items()}
        for subset, metric, value in evaluation.subsets[["subset", "metric", "value"]].itertuples(
            index=False
        ):
            if metric != "loss":
                row[f"{data}/{subset}/{metric}"] = float(value)
        rows.append(row)
    return pd.DataFrame(rows, index=list(evaluations))
