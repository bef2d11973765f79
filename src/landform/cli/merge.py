"""`landform merge`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from landform.cli.common import OptionFlags, OutputConfig, OutputFlags, emit
from landform.weights.checkpoint import LoadConfig
from landform.weights.merge import merge as fold

__all__ = ["merge"]


def merge(
    checkpoint: str,
    /,
    *,
    out: Path,
    options: Annotated[LoadConfig, OptionFlags] = LoadConfig(),
    output: Annotated[OutputConfig, OutputFlags] = OutputConfig(),
) -> None:
    """Fold LoRA updates, or trained biases, into the weights: a whole model that loads anywhere.

    Example: landform merge runs/seed0 --out merged/seed0

    Parameters
    ----------
    checkpoint
        A checkpoint tuned by lora (or another method of PEFT that changes weights) or bitfit.
    out
        The checkpoint directory to make.
    """
    emit(fold(checkpoint, out, **dict(options)), output, [out])
