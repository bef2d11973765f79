"""Study files for the axes of an experiment: which runs to train, which pairs to connect.

    model: org/pre-trained
    tasks: [sst2, mnli]
    axes: [seed, order, split, boundary]
    train: {max_steps: 3000, batch_size: 32}

becomes one study file per task and axis (per pair of tasks where two are compared). Each trains
the runs that it needs, evaluates them, walks the lines of its pairs and keeps a table of them, in a
study of its own. The files share the directory of the runs, so that what two need is trained once.

    seed         other seeds: other first weights of what is new, other order of data and dropout
    init         only the first weights differ
    order        only the order of the data and dropout differ (the same first weights)
    init-std     first weights of adapters (prefixes, prompts) of several deviations
    perturb      the pre-trained model with noise
    step         checkpoints of the same runs at several steps
    rate-batch   learning rate x batch size
    split        the two halves of the training rows; beside them two seeds on one half
    domain       models of two tasks on one line, evaluated on both (tasks that share their outputs)
    boundary     models of two tasks, each under its own head
    pretraining  runs from several pre-trained models (steps, revisions)
    tuning       tuning methods
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations, product
from pathlib import Path
from typing import Any, Literal, Self, get_args

from pydantic import Field, field_validator, model_validator

from landform.config import Config, read_yaml
from landform.errors import ConfigError
from landform.store.atomic import atomic_path, check_place, file_errors
from landform.store.study import slug
from landform.studies.axes import EXPERIMENTS
from landform.studies.study_file import StudyFile
from landform.tasks import catalogue
from landform.tasks.task import TaskConfig
from landform.training.options import Seed, TrainConfig, placed_dropout

__all__ = ["AXES", "METHODS", "GridConfig", "StudyPlan", "plan_grid", "read_grid", "write_grid"]

Axis = Literal[
    "seed", "init", "order", "init-std", "perturb", "step", "rate-batch", "split", "domain",
    "boundary", "pretraining", "tuning",
]  # fmt: skip
AXES: tuple[str, ...] = get_args(Axis)

_COMPACTER = {"learning_rate": 3e-3, "adapter_size": 48, "phm_shared": False, "init_std": 0.01}

METHODS: Mapping[str, Mapping[str, Any]] = {
    "full": {},
    "bitfit": {"learning_rate": 3e-4},
    "adapter": {"learning_rate": 3e-4, "adapter_size": 24},
    "compacter": _COMPACTER,
    "compacter++": {**_COMPACTER, "tuning": "compacter", "adapter_placement": "pfeiffer"},
    "low-rank-adapter": {"learning_rate": 3e-4, "adapter_size": 24},
    "lora": {"learning_rate": 3e-4, "lora_rank": 8},
    "prefix": {"learning_rate": 3e-4},
    "prompt": {"learning_rate": 3e-2, "prompt_length": 100},
}
"""Options of the tuning methods, as the templates of Qin et al. 2022 for RoBERTa have them.

What they leave open is OpenDelta's: bottlenecks of a sixteenth of the width (compacter, of RoBERTa
base) and of a thirty-second (low-rank adapter), first weights."""

_SPELLED = {"low_rank_adapter": "low-rank-adapter"}
"""Names in those templates that are other names here."""

Variant = tuple[str, dict[str, Any]]
"""Name of a directory of runs, and the options that differ from the common ones."""
Pair = tuple[str, str, str]
"""The value of the axis, and the two checkpoints."""


_OF_AXES: Mapping[str, tuple[str, ...]] = {
    "init-std": ("init_stds",),
    "perturb": ("perturbs",),
    "step": ("steps",),
    "rate-batch": ("learning_rates", "batch_sizes"),
    "split": ("part_by",),
    "pretraining": ("models",),
    "tuning": ("methods",),
}
"""Options that one axis alone reads."""


class GridConfig(Config):
    """Which study files are written."""

    model: str
    """The pre-trained model that all runs start from."""
    tasks: dict[str, TaskConfig]
    """The tasks: names of the catalogue, or NAME: {options of a task} as in a study file."""
    axes: tuple[Axis, ...] = ("seed", "order", "step", "split")
    """The axes: seed, init, order, init-std, perturb, step, rate-batch, split, domain, boundary,
    pretraining, tuning."""
    seeds: tuple[Seed, ...] = Field((0, 1), min_length=2)
    """Seeds of the runs; pairs are those of different seeds."""
    train: TrainConfig = TrainConfig()
    """Options of all runs."""
    init_stds: tuple[float, ...] = Field((0.02, 0.08), min_length=1)
    """Axis init-std: the deviations."""
    perturbs: tuple[float, ...] = Field((0.0, 0.05), min_length=1)
    """Axis perturb: the noise, as a share of every tensor's own deviation."""
    steps: tuple[int, ...] = ()
    """Axis step: the steps (default: 20, 60 and 100 % of `train.max_steps`)."""
    learning_rates: tuple[float, ...] = Field((2e-5, 5e-5), min_length=1)
    """Axis rate-batch: the learning rates."""
    batch_sizes: tuple[int, ...] = Field((16, 32), min_length=1)
    """Axis rate-batch: the batch sizes."""
    part_by: Literal["stratified", "random", "contiguous"] | None = None
    """Axis split: how the halves are made (see `landform train --part-by`)."""
    models: dict[str, str] = Field(default_factory=dict)
    """Axis pretraining: the pre-trained models, by name (a list names them by themselves)."""
    methods: dict[str, dict[str, Any]] = Field(default_factory=lambda: _methods(list(METHODS)))
    """Axis tuning: the methods, with further options each (a list: with those of `METHODS`)."""
    points: int = Field(26, ge=2)
    """Points on every line."""
    rows: int | None = Field(None, ge=1)
    """Evaluate on the first ROWS examples only."""
    curves: bool = False
    """Also fit a Bezier curve between the models of every pair."""
    evaluate: bool = True
    """Also evaluate every run by itself."""

    @field_validator("tasks", mode="before")
    @classmethod
    def _named_tasks(cls, value: object) -> object:
        names = (value,) if isinstance(value, str) else value
        if isinstance(names, list | tuple):
            value = {str(name): {"task": str(name)} for name in names}
        if not value:
            raise ValueError("at least one task is needed")
        return value

    @field_validator("models", mode="before")
    @classmethod
    def _named_models(cls, value: object) -> object:
        if isinstance(value, str):
            value = (value,)
        if isinstance(value, list | tuple):
            # What tells them apart: the revision, or the last part of the name.
            short = [str(m).rpartition("@")[2].rpartition("/")[2] for m in value]
            names = short if len(set(short)) == len(short) else [str(m) for m in value]
            return dict(zip(names, map(str, value), strict=True))
        return value

    @field_validator("methods", mode="before")
    @classmethod
    def _known_methods(cls, value: object) -> object:
        return _methods([value] if isinstance(value, str) else value)

    @field_validator("axes", "seeds", "steps", mode="before")
    @classmethod
    def _one_is_enough(cls, value: object) -> object:
        return (value,) if isinstance(value, str | int) and not isinstance(value, bool) else value

    @model_validator(mode="after")
    def _seeds_are_the_grids(self) -> Self:
        if self.train.seeds != TrainConfig().seeds:
            raise ValueError("the seeds of all runs are the option seeds, not train.seeds")
        if len(set(self.seeds)) != len(self.seeds):
            raise ValueError("a seed occurs twice: its two runs would be the same")
        return self

    @model_validator(mode="after")
    def _read_options(self) -> Self:
        for axis, names in _OF_AXES.items():
            self.check_read(axis in self.axes, names, f"without axis {axis}")
        return self


def _methods(value: Any) -> Any:
    """Methods by name with their options, from a list or a mapping."""
    if not isinstance(value, list | tuple | Mapping):
        return value
    listed = value if isinstance(value, Mapping) else dict.fromkeys(value, None)
    given = {
        str(name).replace("low_rank_adapter", "low-rank-adapter"): o for name, o in listed.items()
    }
    for name in given:
        if name not in METHODS:
            raise ValueError(f"unknown tuning method {name!r}; known: {', '.join(METHODS)}")
    return {name: {**METHODS[name], **(options or {})} for name, options in given.items()}


def read_grid(path: Path) -> GridConfig:
    """The grid that a YAML file describes; its relative paths start from the file."""
    value = read_yaml(path)
    if "model" not in value or "tasks" not in value:
        raise ConfigError(f"{path}: model and tasks are needed", remedy="write model: and tasks:")
    base = path.parent
    if isinstance(value.get("train"), dict):
        value = {**value, "train": _placed_training(value["train"], base)}
    config = GridConfig.parse(value, where=str(path))
    return config.replace(
        model=_local(config.model, base),
        models={name: _local(model, base) for name, model in config.models.items()},
        tasks={name: dict(task.placed(base)) for name, task in config.tasks.items()},
    )


def _placed_training(options: Mapping[str, Any], base: Path) -> dict[str, Any]:
    """Options of training whose files start from `base`."""
    placed = dict(options)
    for name in ("row_file", "ewc"):
        if isinstance(options.get(name), str):
            placed[name] = str(base / options[name])
    if isinstance(options.get("dropout"), str):
        name = options["dropout"]
        placed["dropout"] = placed_dropout(base, name) if _is_file(base / name) else name
    return placed


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:
        return False


def _local(model: str, base: Path) -> str:
    """A model's name with a relative path starting from `base`, where something is there."""
    place = base / model
    stem = Path(str(place).rpartition("@")[0] or place)
    return str(place) if place.exists() or stem.exists() else model


# --- the files -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class StudyPlan:
    """One study file that is to be written."""

    name: str
    """its name, without .yaml"""
    axis: str
    content: dict[str, Any]
    """the mapping that the file holds"""
    says: str
    """the comment at its top"""


@dataclass(frozen=True)
class _Scene:
    """What the runs and the pairs of one file are made from."""

    grid: GridConfig
    task: str
    out: Path
    variants: list[Variant] = field(default_factory=list)
    pairs: list[Pair] = field(default_factory=list)

    def runs(self, name: str, options: Mapping[str, Any] | None = None) -> list[str]:
        """The runs of a variant, one for every seed; it is noted that they are to be trained.

        Without options: those of the variant that is noted already, or none.
        """
        known = dict(self.variants)
        wanted = known.get(name, {}) if options is None else dict(options)
        if known.setdefault(name, wanted) != wanted:
            raise ConfigError(
                f"two variants of {self.task} would both be called {name}: {known[name]} and "
                f"{wanted}",
                remedy="give values that differ in their first six digits",
            )
        self.variants[:] = known.items()
        prefix = self.grid.train.prefix
        return [f"{self.folder(name)}/{prefix}{seed}" for seed in self.grid.seeds]

    def folder(self, name: str) -> str:
        """The directory of a variant's runs."""
        return f"runs/{slug(self.task)}/{name}"

    def between_seeds(self, value: str, runs: Sequence[str], at: str = "") -> None:
        """Pairs of the runs of different seeds."""
        self.pairs.extend((value, a + at, b + at) for a, b in combinations(runs, 2))


def plan_grid(config: GridConfig, out: Path) -> list[StudyPlan]:
    """The study files of a grid, to lie in `out`; every one is parsed as `landform run` would.

    Raises `ConfigError` for an axis that cannot be made of these options, and says why.
    """
    plans = list(_plans(config, out))
    for plan in plans:
        StudyFile.of(plan.content, base=out, where=f"{plan.name}.yaml")
    return plans


def _plans(config: GridConfig, out: Path) -> Iterator[StudyPlan]:
    for axis in dict.fromkeys(config.axes):
        if axis in ("domain", "boundary"):
            if len(config.tasks) < 2:
                raise ConfigError(
                    f"axis {axis} compares two tasks, and there is only {next(iter(config.tasks))}",
                    remedy="name two tasks or more",
                )
            for first, second in combinations(config.tasks, 2):
                yield _two_tasks(axis, config, first, second, out)
            continue
        for task in config.tasks:
            scene = _Scene(config, task, out)
            _BUILDERS[axis](scene)
            yield _plan(axis, scene)
        if axis == "pretraining" and len(config.tasks) > 1:
            for first, second in combinations(config.tasks, 2):
                yield _boundaries_over_models(config, first, second, out)


def _seed(scene: _Scene) -> None:
    scene.between_seeds("other seeds", scene.runs("base"))


def _init(scene: _Scene) -> None:
    fixed = _fixed(scene, "data_seed", "dropout_seed")
    scene.between_seeds("other first weights", scene.runs("init", fixed))


def _order(scene: _Scene) -> None:
    scene.between_seeds("other order of the data", scene.runs("order", _fixed(scene, "head_seed")))


def _fixed(scene: _Scene, *names: str) -> dict[str, Any]:
    """Seeds that are the same for all runs; the noise on the pre-trained model is one of them."""
    noise = ("perturb_seed",) if scene.grid.train.perturb else ()
    return dict.fromkeys((*names, *noise), scene.grid.seeds[0])


def _init_std(scene: _Scene) -> None:
    if scene.grid.train.tuning not in ("adapter", "compacter", "prefix", "prompt"):
        raise ConfigError(
            f"axis init-std: tuning {scene.grid.train.tuning} has no first weights of a chosen "
            "deviation",
            remedy="choose train.tuning adapter, compacter, prefix or prompt",
        )
    runs = {std: scene.runs(f"std{std:g}", {"init_std": std}) for std in scene.grid.init_stds}
    for std, found in runs.items():
        scene.between_seeds(f"{std:g}", found)
    for (one, a), (two, b) in combinations(runs.items(), 2):
        scene.pairs.extend(
            (f"{one:g} and {two:g}, one seed", x, y) for x, y in zip(a, b, strict=True)
        )


def _perturb(scene: _Scene) -> None:
    if scene.grid.train.tuning != "full" and any(scene.grid.perturbs):
        raise ConfigError(
            f"axis perturb: a run of tuning {scene.grid.train.tuning} keeps what was tuned, not "
            "the noise on the other tensors",
            remedy="choose train.tuning full; or keep noisy models first (landform train --perturb "
            "--save-steps 0) and compare them by axis pretraining: RUN@0",
        )
    for scale in scene.grid.perturbs:
        name = f"perturb{scale:g}" if scale else "base"
        scene.between_seeds(f"{scale:g}", scene.runs(name, {"perturb": scale} if scale else {}))


def _step(scene: _Scene) -> None:
    steps = scene.grid.steps
    last = scene.grid.train.max_steps
    if not steps and last is None:
        raise ConfigError(
            "axis step: which steps?", remedy="give steps, or the number of all: train.max_steps"
        )
    chosen = sorted(set(steps or (max(1, int(last or 0) * k // 5) for k in (1, 3, 5))))
    runs = scene.runs("steps", {"save_steps": chosen})
    for step in chosen:
        scene.between_seeds(f"step {step}", runs, at=f"@{step}")
    if len(chosen) > 1:
        a, b = chosen[0], chosen[-1]
        scene.pairs.append((f"steps {a} and {b}", f"{runs[0]}@{a}", f"{runs[1]}@{b}"))
        scene.pairs.append((f"steps {a} and {b}, one seed", f"{runs[0]}@{a}", f"{runs[0]}@{b}"))


def _rate_batch(scene: _Scene) -> None:
    cells = {}
    for rate, batch in product(scene.grid.learning_rates, scene.grid.batch_sizes):
        options: dict[str, Any] = {"learning_rate": rate, "batch_size": batch}
        cells[f"lr {rate:g}, batch {batch}"] = scene.runs(f"lr{rate:g}-batch{batch}", options)
    for value, runs in cells.items():
        scene.between_seeds(value, runs)
    (first, runs), *others = cells.items()
    for value, found in others:
        scene.pairs.append((f"{first} and {value}, one seed", runs[0], found[0]))


def _split(scene: _Scene) -> None:
    how = {} if scene.grid.part_by is None else {"part_by": scene.grid.part_by}
    name = scene.grid.part_by or "half"
    one, two = (scene.runs(f"{name}{k}", {"part": f"{k}/2", **how}) for k in (1, 2))
    scene.pairs.extend(("other half, one seed", a, b) for a, b in zip(one, two, strict=True))
    # Beside what other rows do: what another seed does on the same rows.
    scene.between_seeds("one half, other seeds", one)


def _pretraining(scene: _Scene) -> None:
    if not scene.grid.models:
        raise ConfigError(
            "axis pretraining: which pre-trained models?",
            remedy="give models, such as org/name@1000 org/name@2000",
        )
    for name, model in scene.grid.models.items():
        options = {"model": _from(model, scene.out)}
        scene.between_seeds(name, scene.runs(f"from-{slug(name)}", options))


def _tuning(scene: _Scene) -> None:
    partial = [method for method in scene.grid.methods if method != "full"]
    if scene.grid.train.perturb and partial:
        raise ConfigError(
            f"axis tuning: train.perturb adds noise that {partial[0]} does not keep",
            remedy="leave train.perturb out; or keep the noisy model first (landform train "
            "--perturb --save-steps 0) and name it as model: RUN@0",
        )
    for method, options in scene.grid.methods.items():
        scene.between_seeds(method, scene.runs(method, {"tuning": method, **options}))


_BUILDERS: Mapping[str, Callable[[_Scene], None]] = {
    "seed": _seed,
    "init": _init,
    "order": _order,
    "init-std": _init_std,
    "perturb": _perturb,
    "step": _step,
    "rate-batch": _rate_batch,
    "split": _split,
    "pretraining": _pretraining,
    "tuning": _tuning,
}


def _plan(axis: str, scene: _Scene) -> StudyPlan:
    """The file of an axis within one task."""
    task = scene.task
    steps = _trained(scene)
    pairs = [{"value": value, "a": a, "b": b} for value, a, b in scene.pairs]
    steps.append({"axes": {"axis": axis, "pairs": pairs, "task": task, **_evaluation(scene.grid)}})
    if scene.grid.curves:
        steps += [
            {"curve": {"a": pair["a"], "b": pair["b"], "task": task, "bends": 1}} for pair in pairs
        ]
    return _file(axis, f"{slug(task)}-{axis}", scene.grid, [task], scene.out, steps)


def _two_tasks(axis: str, config: GridConfig, one: str, two: str, out: Path) -> StudyPlan:
    """The file of the models of two tasks: on one path (domain), or each under its head."""
    if axis == "domain":
        _check_outputs(config, one, two)
    scenes = [_Scene(config, task, out) for task in (one, two)]
    runs = [scene.runs("base") for scene in scenes]
    steps = [step for scene in scenes for step in _trained(scene)]
    if axis == "domain":
        pairs = [
            {"value": f"{one} and {two}, one seed", "a": a, "b": b}
            for a, b in zip(*runs, strict=True)
        ]
        walk = {"axis": axis, "pairs": pairs, "task": one, "also": [two], **_evaluation(config)}
        steps.append({"axes": walk})
    else:
        steps += [
            {"boundary": {"a": a, "b": b, "task": one, "task_b": two, **_evaluation(config)}}
            for a, b in zip(*runs, strict=True)
        ]
    return _file(axis, f"{slug(one)}-{slug(two)}-{axis}", config, [one, two], out, steps)


def _check_outputs(config: GridConfig, one: str, two: str) -> None:
    """Raise where it is known that two tasks have other outputs: no model can be mixed of both."""
    found = []
    for name in (one, two):
        task = config.tasks[name]
        entry = catalogue.find(task.task) if task.task is not None else None
        labels = task.label_names or (entry[1].label_names if entry else None)
        found.append((task.kind or (entry[1].kind if entry else None), labels))
    if None not in (found[0][1], found[1][1]) and found[0] != found[1]:
        raise ConfigError(
            f"axis domain: {one} and {two} have other labels ({', '.join(found[0][1] or ())}; "
            f"{', '.join(found[1][1] or ())}), so their heads cannot be mixed",
            remedy="use the axis boundary, which keeps the heads, or text-to-text tasks",
        )


def _boundaries_over_models(config: GridConfig, one: str, two: str, out: Path) -> StudyPlan:
    """The file of the boundary between two tasks over pre-trained models."""
    scenes = [_Scene(config, task, out) for task in (one, two)]
    for scene in scenes:
        _pretraining(scene)
    names = [f"from-{slug(name)}" for name in config.models]
    a, b = ([scene.runs(name)[0] for name in names] for scene in scenes)
    steps = [step for scene in scenes for step in _trained(scene)]
    walk = {"a": a, "b": b, "labels": list(config.models), "task": one, "task_b": two}
    steps.append({"boundary": {**walk, **_evaluation(config)}})
    name = f"{slug(one)}-{slug(two)}-pretraining-boundary"
    return _file("pretraining", name, config, [one, two], out, steps)


def _trained(scene: _Scene) -> list[dict[str, Any]]:
    """The steps that train the variants of a scene, and evaluate every run."""
    grid = scene.grid
    common = grid.train.model_dump(mode="json", exclude_defaults=True, exclude={"seeds"})
    for name in {"row_file", "ewc"} & set(common):
        common[name] = os.path.relpath(common[name], scene.out)
    steps: list[dict[str, Any]] = []
    for name, options in scene.variants:
        made: dict[str, Any] = {"model": _from(grid.model, scene.out), "task": scene.task}
        made |= {"out": scene.folder(name), "seeds": list(grid.seeds)}
        steps.append({"train": {**made, **common, **options}})
    if grid.evaluate:
        prefix = grid.train.prefix
        folders = [f"{scene.folder(name)}/{prefix}*" for name, _ in scene.variants]
        rows = {} if grid.rows is None else {"rows": grid.rows}
        steps.append({"evaluate": {"checkpoints": folders, "task": scene.task, **rows}})
    return steps


def _evaluation(config: GridConfig) -> dict[str, Any]:
    rows = {} if config.rows is None else {"rows": config.rows}
    return {"points": config.points, **rows}


def _file(
    axis: str,
    name: str,
    config: GridConfig,
    tasks: Sequence[str],
    out: Path,
    steps: list[dict[str, Any]],
) -> StudyPlan:
    described = {
        task: _moved(config.tasks[task], out).model_dump(mode="json", exclude_defaults=True)
        for task in tasks
    }
    says = f"axis {axis} (Qin et al. 2022: {EXPERIMENTS[axis]})"
    content = {"study": f"study/{name}", "tasks": described, "steps": steps}
    return StudyPlan(name, axis, content, says)


def _from(model: str, out: Path) -> str:
    """A model's name as a file in `out` writes it: a path from there, or a hub name as it is."""
    stem, at, step = model.rpartition("@")
    if at and Path(stem).expanduser().exists():
        return f"{os.path.relpath(Path(stem).expanduser(), out)}@{step}"
    place = Path(model).expanduser()
    return os.path.relpath(place, out) if place.exists() else model


def _moved(task: TaskConfig, out: Path) -> TaskConfig:
    """A task whose paths start from `out`."""
    changes: dict[str, Any] = {}
    if task.files is not None:
        changes["files"] = {s: os.path.relpath(path, out) for s, path in task.files.items()}
    if task.data_dir is not None:
        changes["data_dir"] = os.path.relpath(task.data_dir, out)
    if task.task is not None and catalogue.find(task.task) is None and Path(task.task).exists():
        changes["task"] = os.path.relpath(task.task, out)
    return task.replace(**changes) if changes else task


def write_grid(plans: Sequence[StudyPlan], out: Path) -> list[Path]:
    """Write the study files into `out`; the paths, in their order. Each is whole or absent."""
    import yaml

    paths = []
    for plan in plans:
        path = out / f"{plan.name}.yaml"
        check_place(path)
        text = yaml.safe_dump(
            plan.content, sort_keys=False, allow_unicode=True, width=110, default_flow_style=None
        )
        with file_errors("write", path):
            out.mkdir(parents=True, exist_ok=True)
            with atomic_path(path) as temporary:
                temporary.write_text(f"# {plan.says}\n{text}", encoding="utf-8")
        paths.append(path)
    return paths
