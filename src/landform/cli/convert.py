"""`landform convert`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from landform.cli.common import OutputConfig, OutputFlags, emit
from landform.weights.convert import convert as convert_weights

__all__ = ["convert"]


def convert(
    source: Path,
    destination: Path,
    /,
    *,
    kind: str | None = None,
    config: Path | None = None,
    tokenizer: Path | None = None,
    labels: tuple[str, ...] = (),
    output: Annotated[OutputConfig, OutputFlags] = OutputConfig(),
) -> None:
    """Convert weights of TensorFlow, Flax or a PyTorch state dict to a checkpoint.

    Example: landform convert model.ckpt-34110 runs/bert --labels not_duplicate duplicate

    Parameters
    ----------
    source
        The weights (model.ckpt-34110, flax_model.msgpack, tf_model.h5, model.pt), or a folder with
        one of them.
    destination
        The checkpoint directory to make.
    kind
        The head: classification, masked-lm, ... (default: what config and tensors tell).
    config
        config.json or bert_config.json (default: next to the weights).
    tokenizer
        Folder with the tokenizer's files (default: next to the weights).
    labels
        Names of the classes in the order of the model's outputs, where the config has none.
    """
    result = convert_weights(
        source, destination, kind=kind, config=config, tokenizer=tokenizer, labels=labels
    )
    emit(result, output, [destination])
