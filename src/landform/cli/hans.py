"""`landform hans`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, get_args

from cyclopts import Parameter

from landform.cli.common import (
    OptionFlags,
    OutputConfig,
    OutputFlags,
    check_unread,
    emit,
    print_table,
)
from landform.errors import ConfigError
from landform.evaluation.hans import ScoreConfig, score_predictions
from landform.tasks.hans import HansSplit, write_hans
from landform.tasks.hans_templates import SUBCASES

__all__ = ["hans"]


def hans(
    *,
    out: Path | None = None,
    rows_per_subcase: int = 1000,
    seed: int = 0,
    split: HansSplit = "validation",
    predictions: Path | None = None,
    pairs: Annotated[Path | None, Parameter(name="--data")] = None,
    options: Annotated[ScoreConfig, OptionFlags] = ScoreConfig(),
    output: Annotated[OutputConfig, OutputFlags] = OutputConfig(),
) -> None:
    """Generate HANS-like data, or score a file of HANS predictions.

    Example: landform hans --out HANS

    Parameters
    ----------
    out
        Where to write generated pairs: a file (hans.tsv) for one split, or a folder (HANS) for both
        under the published names, which --task hans --data-dir HANS reads.
    rows_per_subcase
        Pairs of each of the 30 sub-cases.
    seed
        Seed of the pairs.
    split
        validation or train, for a file; no pair is in both.
    predictions
        Score this file instead: the header pairID,gold_label, then a line per pair: ex0,entailment.
    pairs
        The HANS file or folder that the predictions are about.
    """
    if (out is None) == (predictions is None):
        raise ConfigError(
            "landform hans either generates or scores: give one of --out and --predictions",
            remedy="--out hans.tsv, or --predictions FILE --data hans.tsv",
        )
    if out is not None:
        if pairs is not None:
            raise ConfigError(
                "option data goes with --predictions", remedy="leave --data or --out out"
            )
        given: dict[str, object] = dict.fromkeys(options.options_given(), True)
        check_unread(given, "with --out", "it is about scores: --predictions FILE")
        if not out.suffix:
            given = {"split": split != "validation"}
            check_unread(given, f"on a folder: {out} gets both", "name a file: --out hans.tsv")
        _generate(out, rows_per_subcase, seed, split, output)
        return
    assert predictions is not None
    given = {
        "rows_per_subcase": rows_per_subcase != 1000,
        "seed": seed != 0,
        "split": split != "validation",
    }
    check_unread(given, "with --predictions", "it is about pairs that are generated: --out")
    if pairs is None:
        raise ConfigError(
            "option data is missing: which pairs are the predictions about?",
            remedy="--data hans.tsv, or the folder with heuristics_evaluation_set.txt",
        )
    scores = score_predictions(predictions, pairs, **dict(options))
    if not output.json_:
        for title, table in scores.sections().items():
            print(f"{title}:")
            print_table(table)
            print()
    emit(scores, output)


def _generate(
    out: Path, rows_per_subcase: int, seed: int, split: HansSplit, output: OutputConfig
) -> None:
    wrote = write_hans(out, rows_per_subcase, seed, split)
    splits = [split] if out.suffix else list(get_args(HansSplit))
    said = {
        "splits": splits,
        "subcases": len(SUBCASES),
        "rows": rows_per_subcase * len(SUBCASES),
        "seed": seed,
    }
    if not output.json_:
        print(
            f"{said['rows']} pairs for each of {', '.join(splits)}: {len(SUBCASES)} sub-cases of "
            f"{rows_per_subcase}, seed {seed}"
        )
    emit(said, output, wrote)
