"""`landform demo`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

from landform.cli.common import OutputConfig, OutputFlags
from landform.cli.run import run_and_report
from landform.studies.demo import demo_study

__all__ = ["demo"]


def demo(
    *,
    out: Path = Path("landform-demo"),
    seeds: int | None = None,
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
    """
    start = time.perf_counter()
    run_and_report(demo_study(out, seeds=seeds), output)
    if not output.json_:
        print(
            f"done in {time.perf_counter() - start:.0f} s; open {out / 'atlas.html'} in a browser"
        )
