"""`landform push`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from landform.cli.common import OutputConfig, OutputFlags, emit
from landform.exchange.hub import push as push_to_hub

__all__ = ["push"]


def push(
    source: str,
    repo: str,
    /,
    *,
    private: Annotated[bool, Parameter(negative=())] = False,
    revision: str | None = None,
    path_in_repo: str = "",
    message: str | None = None,
    repo_type: Literal["model", "dataset"] = "model",
    output: Annotated[OutputConfig, OutputFlags] = OutputConfig(),
) -> None:
    """Push a checkpoint, a study with its atlas, logs or a file to the hub, with a card.

    Example: landform push runs/seed0@300 org/model-0

    Parameters
    ----------
    source
        A checkpoint (DIR or DIR@STEP), a study directory (its atlas is written where it has none),
        a folder or a file.
    repo
        The repository: org/name. It is made where it is missing.
    private
        Make it private (a repository that exists stays as it is).
    revision
        Branch to push to, made where it is missing (default: main).
    path_in_repo
        Folder in the repository; for a single file the path to put it at.
    message
        Message of the commit (default: 'Weights of step N', 'Add study NAME', ...).
    repo_type
        What kind of repository it is.
    """
    wrote: list[Path] = []
    if (Path(source) / "study.json").is_file() and not (Path(source) / "atlas.html").exists():
        from landform.report.study import write_report

        wrote = write_report(Path(source))
    result = push_to_hub(
        source,
        repo,
        private=private,
        revision=revision,
        path_in_repo=path_in_repo,
        message=message,
        repo_type=repo_type,
    )
    emit(result, output, wrote)
