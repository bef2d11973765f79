"""`landform models`."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

from landform.cli.common import OutputConfig, OutputFlags, emit, print_table
from landform.exchange.hub import hub_models

__all__ = ["models"]


def models(
    prefix: str,
    /,
    *,
    steps: Annotated[bool, Parameter(negative=())] = False,
    output: Annotated[OutputConfig, OutputFlags] = OutputConfig(),
) -> None:
    """List the hub's models of a prefix: PREFIX and a number.

    Example: landform models connectivity/bert_ft_qqp- --steps

    Parameters
    ----------
    prefix
        Everything before the number: org/name_.
    steps
        Look up the training steps that each model's history names: NAME@STEP is that step.
    """
    result = hub_models(prefix, steps=steps)
    if not output.json_:
        print_table(result.table[["name", "modified", *(["steps"] if steps else [])]])
    emit(result, output)
