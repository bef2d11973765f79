"""`landform distance`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from landform.cli.common import OptionFlags, OutputConfig, OutputFlags, emit, print_table
from landform.exchange.knowledge import write_distance
from landform.weights.distance import DistanceConfig
from landform.weights.distance import distance as measure

__all__ = ["distance"]


def distance(
    a: str,
    b: str,
    /,
    *,
    out: Path | None = None,
    options: Annotated[DistanceConfig, OptionFlags] = DistanceConfig(),
    output: Annotated[OutputConfig, OutputFlags] = OutputConfig(),
) -> None:
    """Distances between two checkpoints: L2, RMS per parameter, cosine, per group.

    Example: landform distance runs/seed0 runs/seed1 --by layer

    Parameters
    ----------
    a
        One checkpoint.
    b
        The other one.
    out
        Write the four numbers to this folder, as the distance.txt of Mode-Connectivity-PLM.
    """
    result = measure(a, b, **dict(options))
    wrote = [] if out is None else [write_distance(result, out / "distance.txt")]
    if not output.json_:
        print_table(result.table)
    emit(result, output, wrote)
