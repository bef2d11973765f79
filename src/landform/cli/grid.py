"""`landform grid`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from landform.cli.common import (
    OptionFlags,
    OutputConfig,
    OutputFlags,
    check_figure_place,
    check_unread,
    emit,
    keep_result,
    open_study,
    print_table,
    read_task,
    save_figure,
)
from landform.config import Config
from landform.errors import ConfigError
from landform.studies.axes import COLLECTED, collect_axes
from landform.studies.grid import METHODS, GridConfig, plan_grid, read_grid, write_grid
from landform.training.options import TrainConfig

__all__ = ["grid"]

SHOWN = (
    *("axis", "value", "pair", "data", "distance", "barrier_height", "barrier_low"),
    *("barrier_high", "metric_drop", "metric_drop_low", "metric_drop_high", "better"),
)


class GridFlags(Config):
    """The grid as flags: what a file maps to names is a list here."""

    model: str | None = None
    """The pre-trained model that all runs start from."""
    tasks: tuple[str, ...] = ()
    """The tasks: names of the catalogue, or FILE.yaml (the fields of --task, --text, ...)."""
    axes: tuple[str, ...] = ("seed", "order", "step", "split")
    """The axes: seed, init, order, init-std, perturb, step, rate-batch, split, domain, boundary,
    pretraining, tuning."""
    seeds: tuple[int, ...] = (0, 1)
    """Seeds of the runs; pairs are those of different seeds."""
    train: TrainConfig = TrainConfig()
    """Options of all runs (--train.max-steps 1000 --train.batch-size 32)."""
    init_stds: tuple[float, ...] = (0.02, 0.08)
    """Axis init-std: the deviations."""
    perturbs: tuple[float, ...] = (0.0, 0.05)
    """Axis perturb: the noise, as a share of every tensor's own deviation."""
    steps: tuple[int, ...] = ()
    """Axis step: the steps (default: 20, 60 and 100 % of --train.max-steps)."""
    learning_rates: tuple[float, ...] = (2e-5, 5e-5)
    """Axis rate-batch: the learning rates."""
    batch_sizes: tuple[int, ...] = (16, 32)
    """Axis rate-batch: the batch sizes."""
    part_by: str | None = None
    """Axis split: how the halves are made: stratified, random or contiguous."""
    models: tuple[str, ...] = ()
    """Axis pretraining: the pre-trained models (org/name@1000 org/name@2000)."""
    methods: tuple[str, ...] = tuple(METHODS)
    """Axis tuning: the methods."""
    points: int = 26
    """Points on every line."""
    rows: int | None = None
    """Evaluate on the first ROWS examples only."""
    curves: bool = False
    """Also fit a Bezier curve between the models of every pair."""
    evaluate: bool = True
    """Also evaluate every run by itself."""


def grid(
    file: Path | None = None,
    /,
    *,
    out: Path | None = None,
    collect: tuple[Path, ...] = (),
    store: Path | None = None,
    figure: Path | None = None,
    options: Annotated[GridFlags, OptionFlags] = GridFlags(),
    output: Annotated[OutputConfig, OutputFlags] = OutputConfig(),
) -> None:
    """Write the study files of a grid of experiments; collect what came of them in one table.

    Example: landform grid --model org/pre-trained --tasks sst2 --axes seed order --out studies

    Example: landform grid --collect studies/study --figure axes.png

    Parameters
    ----------
    file
        A YAML file with these options (tasks, models and methods may map names to options), in
        place of flags.
    out
        The directory of the study files.
    collect
        Studies that the files have filled, or directories of them: one table of all axes.
    store
        With --collect: keep the table in this study, for its atlas.
    figure
        With --collect: write the figure (.png, .pdf or .svg).
    """
    if collect:
        given = {"file": file, "out": out, **dict.fromkeys(options.options_given(), True)}
        check_unread(given, "with --collect", "collect what has been run: --collect STUDY")
        _collect(collect, store, figure, output)
        return
    if out is None:
        raise ConfigError("where to?", remedy="--out DIR for study files, or --collect STUDY")
    given = {"store": store, "figure": figure}
    check_unread(given, "without --collect", "run the study files first, then collect them")
    plans = plan_grid(_config(file, options), out)
    paths = write_grid(plans, out)
    if output.json_:
        emit({"files": [str(path) for path in paths]}, output)
        return
    for plan, path in zip(plans, paths, strict=True):
        print(f"wrote {path}: {plan.says}")
    print(f"next: landform run {paths[0]} --dry-run; then landform grid --collect {out}/study")


def _config(file: Path | None, flags: GridFlags) -> GridConfig:
    """The grid of a file, or that of the flags."""
    if file is not None:
        if flags.options_given():
            raise ConfigError(
                f"{file} describes the grid, and flags do too",
                remedy="write all options into the file, or give none",
            )
        return read_grid(file)
    if flags.model is None or not flags.tasks:
        raise ConfigError(
            "which model, which tasks?", remedy="--model NAME --tasks NAME, or a grid FILE.yaml"
        )
    tasks: dict[str, Any] = {}
    for name in flags.tasks:
        if name.endswith((".yaml", ".yml")):
            config = read_task(name)
            tasks[config.name or Path(name).stem] = dict(config)
        else:
            tasks[name] = {"task": name}
    given = {name: getattr(flags, name) for name in flags.options_given()}
    return GridConfig.parse({**given, "tasks": tasks}, where="grid")


def _collect(
    studies: tuple[Path, ...], store: Path | None, figure: Path | None, output: OutputConfig
) -> None:
    check_figure_place(figure)
    result = collect_axes(studies)
    wrote = keep_result(result, None if store is None else open_study(store), store, COLLECTED)
    wrote += [*save_figure(result, figure)]
    if not output.json_:
        print_table(result.table[[name for name in SHOWN if name in result.table]])
    emit(result, output, wrote)
