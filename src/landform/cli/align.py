"""`landform align`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from landform.cli.common import OptionFlags, OutputConfig, OutputFlags, emit, print_table
from landform.weights.alignment import AlignConfig
from landform.weights.alignment import align as reorder

__all__ = ["align"]


def align(
    a: str,
    b: str,
    /,
    *,
    out: Path,
    options: Annotated[AlignConfig, OptionFlags] = AlignConfig(),
    output: Annotated[OutputConfig, OutputFlags] = OutputConfig(),
) -> None:
    """Reorder the hidden units of one checkpoint to lie next to another; its function stays.

    Example: landform align runs/seed0 runs/seed1 --out aligned/seed1

    Parameters
    ----------
    a
        The checkpoint that stays.
    b
        The checkpoint whose units are reordered.
    out
        New directory for the reordered copy of b.
    """
    aligned = reorder(a, b, out, **dict(options))
    if not output.json_ and aligned.report.moved:
        print_table(aligned.report.parts)
    emit(aligned.report, output, [out])
