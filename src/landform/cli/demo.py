"""`landform demo`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from landform.cli.common import OutputConfig, OutputFlags
from landform.cli.run import run_and_report, say_forecast
from landform.studies.demo import demo_study

__all__ = ["demo"]


def demo(
    *,
    out: Path = Path("landform-demo"),
    seeds: int | None = None,
    dry_run: Annotated[bool, Parameter(negative=())] = False,
    output: Annotated[OutputConfig, OutputFlags] = OutputConfig(),
) -> None:
    """The embedded study: fine-tune 8 seeds of a small encoder, connect them, write the atlas.

    Nothing is downloaded. Takes a few minutes on two CPU cores, and goes on where it stopped.

    Parameters
    ----------
    out
        The study directory to make.
    seeds
        Number of seeds (default: 8).
    dry_run
        Say what would be done; do nothing.
    """
    study = demo_study(out, seeds=seeds)
    if dry_run:
        say_forecast(study, output)
        return
    start = time.perf_counter()
    run_and_report(study, output)
    if not output.json_:
        print(
            f"done in {time.perf_counter() - start:.0f} s; open {out / 'atlas.html'} in a browser"
        )
