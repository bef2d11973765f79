"""Which rows of the training split are used."""

from __future__ import annotations

import numpy as np

from landform.errors import ConfigError, DataError
from landform.tasks.rows import check_row_ids, read_row_file
from landform.tasks.task import Examples
from landform.training.options import TrainConfig

__all__ = ["choose_rows", "part_rows"]


def choose_rows(
    examples: Examples, config: TrainConfig, *, classes: bool
) -> tuple[int, ...] | None:
    """Positions of the rows to train on, ascending, or None for all.

    Rows are the first of one permutation under `subset_seed`, so that a smaller choice is part of
    a larger one; stratified, the same within every label, with counts rounded by largest
    remainder. With `part` they are chosen among the rows of that part (see `part_rows`). Raises
    `DataError` where nothing is left, and for rows that a row file cannot list.
    """
    chosen = _chosen(examples, config, classes=classes)
    if chosen is not None:  # the run will list them
        check_row_ids(examples.ids[row] for row in chosen)
    return chosen


def _chosen(examples: Examples, config: TrainConfig, *, classes: bool) -> tuple[int, ...] | None:
    if config.row_file is not None:
        return tuple(read_row_file(config.row_file, examples.ids, missing="no training row"))
    labels = np.asarray(examples.labels) if classes else None
    whole = np.arange(len(examples))
    if config.part is not None:
        number, parts = map(int, config.part.split("/"))
        how = config.part_by or ("random" if labels is None else "stratified")
        whole = part_rows(len(examples), number, parts, how, labels, config.subset_seed)
    count = _count(config, len(whole))
    if count is None:
        return None if config.part is None else tuple(whole.tolist())
    order = whole[np.random.default_rng(config.subset_seed).permutation(len(whole))]
    if not config.stratified:
        return tuple(sorted(order[:count].tolist()))
    if labels is None:
        raise ConfigError(
            "option stratified needs a task with one class label per row",
            remedy="leave stratified off for this task",
        )
    kept: list[int] = []
    for label, share in _shares(labels[order], count).items():
        kept += order[labels[order] == label][:share].tolist()
    return tuple(sorted(kept))


def part_rows(
    size: int, number: int, parts: int, how: str, labels: np.ndarray | None, seed: int
) -> np.ndarray:
    """Positions of part `number` of `parts` of `size` rows, ascending; no two parts share a row.

    contiguous   rows floor(N (i - 1) / n) to floor(N i / n): of two parts, the first floor(N / 2)
                 rows and the rest, as in the code of Qin et al. 2022 (split1, split2)
    random       one permutation under `seed`, dealt out row by row
    stratified   the same, dealt out label by label: parts differ by one row at most, in every label
                 too

    Raises `DataError` for a part without rows, `ConfigError` for stratified parts without labels.
    """
    if how == "contiguous":
        rows = np.arange(size * (number - 1) // parts, size * number // parts)
    else:
        order = np.random.default_rng(seed).permutation(size)
        if how == "stratified":
            if labels is None:
                raise ConfigError(
                    "option part_by is stratified: it needs a task with one class label per row",
                    remedy="use part_by random or contiguous",
                )
            order = order[np.argsort(labels[order], kind="stable")]
        rows = np.sort(order[number - 1 :: parts])
    if not len(rows):
        raise DataError(f"part {number}/{parts} of {size} rows has none", remedy="make fewer parts")
    return rows


def _count(config: TrainConfig, size: int) -> int | None:
    if config.rows is not None:
        if config.rows > size:
            raise DataError(
                f"option rows is {config.rows}, but the training split"
                + (f"'s part {config.part}" if config.part else "")
                + f" has {size} rows",
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
