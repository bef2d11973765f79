"""`landform distance`."""

from __future__ import annotations

from typing import Annotated

from landform.cli.common import OptionFlags, OutputConfig, OutputFlags, emit, print_table
from landform.weights.distance import DistanceConfig
from landform.weights.distance import distance as measure

__all__ = ["distance"]


def distance(
    a: str,
    b: str,
    /,
    *,
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
    """
    result = measure(a, b, **dict(options))
    if not output.json_:
        print_table(result.table)
    emit(result, output)
