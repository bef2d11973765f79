"""Which rows of the training split are used."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from landform.errors import ConfigError, DataError
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
    `DataError` where nothing is left.
    """
    if config.row_file is not None:
        return _listed(examples, config.row_file)
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
