"""`landform paws`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from landform.cli.common import OutputConfig, OutputFlags, emit
from landform.tasks.paws import build_paws_qqp

__all__ = ["paws"]


def paws(
    *,
    quora: Path,
    index: Path,
    out: Path,
    skip_missing: Annotated[bool, Parameter(negative=())] = False,
    output: Annotated[OutputConfig, OutputFlags] = OutputConfig(),
) -> None:
    """Build PAWS-QQP from Quora's question pairs and the released index files.

    Example: landform paws --quora quora_duplicate_questions.tsv --index paws_qqp --out paws_final

    Parameters
    ----------
    quora
        Quora's file of question pairs, quora_duplicate_questions.tsv.
    index
        The folder of the unpacked paws_qqp.tar.gz: train.tsv, dev_and_test.tsv.
    out
        The folder to write train.tsv and dev_and_test.tsv to; --task paws-qqp --data-dir reads it.
    skip_missing
        Leave out the rows whose question or token is not in Quora's file, instead of failing.
    """
    built = build_paws_qqp(quora, index, out, skip_missing=skip_missing)
    emit(built, output, [str(path) for path in built.files["path"]])
