"""Which rows of the training split are used."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from landform.errors import ConfigError, DataError
from landform.tasks.task import Examples
from landform.training.options import TrainConfig

__all__ = ["choose_rows"]


def choose_rows(
    examples: Examples, config: TrainConfig, *, classes: bool
) -> tuple[int, ...] | None:
    """Positions of the rows to train on, ascending, or None for all.

    Rows are the first of one permutation under `subset_seed`, so that a smaller choice is part of
    a larger one; stratified, the same within every label, with counts rounded by largest
    remainder. Raises `DataError` where nothing is left.
    """
    size = len(examples)
    if config.row_file is not None:
        return _listed(examples, config.row_file)
    count = _count(config, size)
    if count is None:
        return None
    order = np.random.default_rng(config.subset_seed).permutation(size)
    if not config.stratified:
        return tuple(sorted(order[:count].tolist()))
    if not classes:
        raise ConfigError(
            "option stratified needs a task with one class label per row",
            remedy="leave stratified off for this task",
        )
    labels = np.asarray(examples.labels)[order]
    kept: list[int] = []
    for label, share in _shares(labels, count).items():
        kept += order[labels == label][:share].tolist()
    return tuple(sorted(kept))


def _count(config: TrainConfig, size: int) -> int | None:
    if config.rows is not None:
        if config.rows > size:
            raise DataError(
                f"option rows is {config.rows}, but the training split has {size} rows",
                remedy=f"use rows <= {size}, or leave the option out for all",
            )
        return config.rows
    if config.percent is None:
        return None
    count = round(size * config.percent / 100)
    if count == 0:
        raise DataError(
            f"percent: {config.percent:g} % of {size} rows leaves none",
            remedy=f"use percent >= {100 / size:.3g}, or rows=1",
        )
    return count


def _shares(labels: np.ndarray, count: int) -> dict[int, int]:
    """How many rows of each label make `count` rows in the labels' own proportions."""
    values, sizes = np.unique(labels, return_counts=True)
    exact = sizes * (count / len(labels))
    shares = np.floor(exact).astype(int)
    largest = np.argsort(-(exact - shares), kind="stable")[: count - int(shares.sum())]
    shares[largest] += 1
    return dict(zip(values.tolist(), shares.tolist(), strict=True))


def _listed(examples: Examples, path: Path) -> tuple[int, ...]:
    try:
        lines = path.expanduser().read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"row_file {path} cannot be read: {error}", remedy="name a text file with one id a line"
        ) from None
    where = {text_id: row for row, text_id in enumerate(examples.ids)}
    chosen: dict[int, int] = {}
    for number, line in enumerate(lines, start=1):
        text_id = line.strip()
        if not text_id:
            continue
        if text_id not in where:
            raise DataError(
                f"row_file {path}, line {number}: no training row has the id {text_id!r}",
                remedy=f"ids look like {examples.ids[0]!r}",
            )
        row = where[text_id]
        if row in chosen:
            raise DataError(
                f"row_file {path}, line {number}: {text_id!r} is already on line {chosen[row]}",
                remedy="list each row once",
            )
        chosen[row] = number
    if not chosen:
        raise DataError(f"row_file {path} lists no rows", remedy="one text id per line")
    return tuple(sorted(chosen))
