"""The options of fine-tuning."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from landform.training.schedules import (
    PRESETS,
    DropoutSchedule,
    check_probabilities,
    is_preset,
    read_schedule,
)
from landform.weights.tuning import TUNING_OPTIONS, TuningConfig

__all__ = [
    "ROW_OPTIONS",
    "WATCH_OPTIONS",
    "WHERE_ONLY",
    "TrainConfig",
    "identity",
    "named_dropout",
    "placed_dropout",
]

Seed = Annotated[int, Field(ge=0, lt=2**32)]


class TrainConfig(TuningConfig):
    """How models are fine-tuned: under a schedule, once for every seed.

    A run has four sources of chance: the first weights of what is new (the head, adapters), the
    order of the data, dropout, and the noise of `perturb`. Each has a seed of its own, which is the
    run's seed unless it is fixed to one value for all runs.
    """

    seeds: tuple[Seed, ...] = (0,)
    """One run for each of these seeds, in OUT/seed0, OUT/seed1, ..."""
    head_seed: Seed | None = None
    """Fix the first weights of the new head, and of adapters, for all runs (default: each run's own
    seed)."""
    data_seed: Seed | None = None
    """Fix the order of the training data, and which tokens masked language modelling hides in each
    epoch, for all runs (default: each run's own seed)."""
    dropout_seed: Seed | None = None
    """Fix the dropout masks for all runs (default: each run's own seed)."""
    prefix: str = Field("seed", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Name of the run directories before the seed."""

    optimizer: Literal["adamw", "adafactor"] = "adamw"
    """adamw, or adafactor with this learning rate (no scaling by the size of the weights)."""
    learning_rate: float = Field(2e-5, gt=0, allow_inf_nan=False)
    """Highest learning rate, reached after the warm-up."""
    epochs: float = Field(3.0, gt=0, allow_inf_nan=False)
    """Passes over the training rows."""
    max_steps: int | None = Field(None, ge=1)
    """Exact number of optimizer steps, in place of `epochs`."""
    batch_size: int = Field(32, ge=1)
    """Rows of one forward pass."""
    accumulation: int = Field(1, ge=1)
    """Forward passes of one optimizer step: it sees BATCH_SIZE x ACCUMULATION rows."""
    warmup_ratio: float = Field(0.1, ge=0, lt=1)
    """Share of the steps in which the learning rate rises from 0."""
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    """What the learning rate does after the warm-up: fall to 0 linearly or as a cosine, or stay."""
    weight_decay: float = Field(0.01, ge=0, allow_inf_nan=False)
    """Decoupled weight decay of all weights but biases and normalisation."""
    adam_epsilon: float = Field(1e-8, gt=0, allow_inf_nan=False)
    """Term that keeps AdamW's division finite (the original BERT code uses 1e-6)."""
    clip: float = Field(1.0, ge=0, allow_inf_nan=False)
    """Largest norm of the gradient; longer ones are shortened (0: no limit)."""
    dropout: float | str | Mapping[str, float] | None = None
    """A number: every dropout rate of the model. Or a schedule for its sub-layers, verified in a
    training forward pass: a file made by landform dropout, or bert-guided, the published one of
    BERT-base (default: what the model's config says)."""
    dropout_noise: Literal["bernoulli", "gaussian"] = "bernoulli"
    """What dropout does: set entries to 0 (bernoulli), or multiply them by Gaussian noise of mean 1
    and variance p / (1 - p)."""
    insert_dropout: bool = False
    """Put dropout where a LLaMA-class model has none: after its embeddings, attention outputs and
    feed-forward outputs."""
    dropout_compat: Literal["guided-dropout"] | None = None
    """Gaussian noise as the code of Sharma et al. 2024 has it: standard deviation p / (1 - p), and
    in evaluation too."""
    bf16: bool = False
    """Compute in bfloat16 where that is safe; weights and optimizer stay float32."""
    max_length: int | None = Field(None, ge=2)
    """Cut inputs at this many tokens (default: what model and tokenizer can take)."""
    max_new_tokens: int | None = Field(None, ge=0)
    """Cut the answers that evaluations generate, where a metric judges them, at this many tokens
    (default: 64, or what the model can take; 0: generate none, evaluate the loss only)."""
    new_head: bool = False
    """Draw a new head even if the model has one that fits."""
    perturb: float = Field(0.0, ge=0, allow_inf_nan=False)
    """Add Gaussian noise to every pre-trained tensor before training, with PERTURB times the
    standard deviation of the tensor's own entries."""
    perturb_seed: Seed | None = None
    """Fix the noise of `perturb` for all runs (default: each run's own seed)."""

    rows: int | None = Field(None, ge=1)
    """Train on this many rows, drawn under `subset_seed` (default: all)."""
    percent: float | None = None
    """Train on this percentage of the rows, drawn under `subset_seed`: above 0, at most 100."""
    row_file: Path | None = None
    """Train on the rows whose text ids this file lists, one per line."""
    stratified: bool = False
    """Draw rows so that every label keeps its share."""
    subset_seed: Seed = 0
    """Seed of the choice of rows, the same rows for all runs. A smaller choice under the same seed
    is part of a larger one."""
    part: str | None = None
    """Train on one of N disjoint parts of the rows: 1/2 is one half, 2/2 the other. `rows` and
    `percent` then choose within the part."""
    part_by: Literal["stratified", "random", "contiguous"] | None = None
    """How parts are made: stratified (every label keeps its share; the default where every row has
    one label), random (the default elsewhere), both under `subset_seed`; or contiguous, in the
    order of the file."""

    save_steps: tuple[Annotated[int, Field(ge=0)], ...] = ()
    """Also keep the model after exactly these steps (0: before training), as RUN/checkpoint-STEP,
    which other commands know as RUN@STEP."""
    eval_steps: int | None = Field(None, ge=1)
    """Evaluate every so many steps (default: only at the end)."""
    keep_best: str | None = None
    """Also keep the model of the best evaluation by this metric (loss, accuracy, ...), which other
    commands know as RUN@best; of equal ones the earliest. Needs `eval_steps`."""
    early_stop: int | None = Field(None, ge=1)
    """Stop after so many evaluations in a row without a new best (by `keep_best`, or the task's
    first metric). Needs `eval_steps`."""
    cartography: bool = False
    """Record the training dynamics for a data map: after every epoch, evaluate all training rows
    (one forward pass over them an epoch), into RUN/cartography.parquet."""
    log_steps: int = Field(10, ge=1)
    """Steps over which a row of the history averages the loss."""
    resume_steps: int = Field(500, ge=0)
    """Keep the state of a running training every so many steps, to go on from after a kill
    (0: never)."""
    overwrite: bool = False
    """Replace runs of other options that lie in the same place."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where training runs: auto takes a GPU where there is one."""
    threads: int | None = Field(None, ge=1)
    """CPU threads of one run (default: torch's own choice). The last bits of sums depend on it."""
    engine: Literal["local", "ray"] = "local"
    """Where runs are trained: in this process, or side by side on a Ray cluster."""
    workers: int = Field(1, ge=1)
    """Worker processes of the Ray engine."""
    keep_model: bool = True
    """Keep the trained model. Without it a run leaves its record, history and evaluations only: a
    few kilobytes in place of the weights."""
    ewc: Path | None = None
    """Elastic weight consolidation: a Fisher of the checkpoint that training starts from (a file of
    landform fisher), whose tensors are held near their start."""
    ewc_strength: float | None = Field(None, ge=0, allow_inf_nan=False)
    """Strength lambda of the penalty lambda/2 sum F (theta - start)^2. Needs `ewc`."""

    @field_validator("seeds", "save_steps", mode="before")
    @classmethod
    def _one_is_enough(cls, value: object) -> object:
        return (value,) if isinstance(value, int) and not isinstance(value, bool) else value

    @field_validator("dropout", mode="before")
    @classmethod
    def _schedule(cls, value: object) -> object:
        return _read_dropout(value)

    @field_validator("dropout")
    @classmethod
    def _hashable_schedule(cls, value: object) -> object:
        return _Probabilities(value) if isinstance(value, Mapping) else value

    @model_validator(mode="after")
    def _dropout_agrees(self) -> Self:
        if self.insert_dropout and self.dropout is None:
            raise ValueError("insert_dropout needs dropout: the probabilities of what is inserted")
        if self.dropout_compat is not None and self.dropout_noise != "gaussian":
            raise ValueError("dropout_compat says how dropout_noise gaussian is drawn")
        return self

    @field_validator("seeds")
    @classmethod
    def _distinct_seeds(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if not value:
            raise ValueError("at least one seed is needed")
        if len(set(value)) < len(value):
            raise ValueError("a seed occurs twice: its two runs would be the same")
        return value

    @field_validator("save_steps")
    @classmethod
    def _rising_steps(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(sorted(set(value)))

    @field_validator("percent")
    @classmethod
    def _percentage(cls, value: float | None) -> float | None:
        if value is not None and not 0 < value <= 100:
            raise ValueError("a percentage lies above 0 and is at most 100")
        return value

    @field_validator("part")
    @classmethod
    def _part_of_whole(cls, value: str | None) -> str | None:
        if value is None:
            return None
        found = re.fullmatch(r"\s*(\d+)\s*/\s*(\d+)\s*", value)
        if found is None or not 1 <= int(found[1]) <= int(found[2]):
            raise ValueError("expected NUMBER/PARTS, counted from 1, such as 1/2")
        return f"{int(found[1])}/{int(found[2])}"

    @model_validator(mode="after")
    def _one_part(self) -> Self:
        if self.part is not None and self.row_file is not None:
            raise ValueError("part and row_file both choose rows: give one of them")
        if self.part_by is not None and self.part is None:
            raise ValueError("part_by needs part, such as 1/2")
        return self

    @model_validator(mode="after")
    def _noise_is_kept(self) -> Self:
        # A tuned run keeps what was tuned, on the pre-trained model as it lies on disk.
        if self.perturb and self.tuning != "full":
            raise ValueError(
                f"perturb changes tensors that tuning {self.tuning} does not keep: take tuning "
                "full, or keep the noisy model first (perturb with save_steps 0) and tune RUN@0"
            )
        return self

    @model_validator(mode="after")
    def _read_options(self) -> Self:
        self.check_read(self.perturb, ["perturb_seed"], "without perturb")
        self.check_read(self.optimizer == "adamw", ["adam_epsilon"], "without optimizer adamw")
        return self

    @model_validator(mode="after")
    def _evaluated_while_it_trains(self) -> Self:
        for name in ("keep_best", "early_stop"):
            if getattr(self, name) is not None and self.eval_steps is None:
                raise ValueError(f"{name} needs eval_steps: the evaluations it chooses among")
        return self

    @model_validator(mode="after")
    def _consolidated_by_a_strength(self) -> Self:
        if (self.ewc is None) != (self.ewc_strength is None):
            given, other = ("ewc", "ewc_strength")[:: 1 if self.ewc_strength is None else -1]
            raise ValueError(f"{given} needs {other}")
        return self

    @model_validator(mode="after")
    def _one_subset(self) -> Self:
        given = [n for n in ("rows", "percent", "row_file") if getattr(self, n) is not None]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} both choose rows: give one of them")
        if self.stratified and given not in (["rows"], ["percent"]):
            raise ValueError("stratified needs rows or percent")
        return self


ROW_OPTIONS = frozenset(
    {"rows", "percent", "row_file", "stratified", "subset_seed", "part", "part_by"}
)
"""Options that choose training rows: none of them where a study chooses the rows itself."""
WATCH_OPTIONS = frozenset({"save_steps", "eval_steps", "keep_best", "early_stop", "cartography"})
"""Options that look at a training under way. Of them only `early_stop` changes its end."""
WHERE_ONLY = ROW_OPTIONS | frozenset(
    {"seeds", "head_seed", "data_seed", "dropout_seed", "perturb_seed", "prefix", "overwrite"}
    | {"resume_steps", "device", "threads", "engine", "workers", "cartography", "keep_model"}
)
"""Options that are no part of a run's identity: they say where and how many, or (seeds, rows) enter
it as what they came to."""


class _Probabilities(dict[str, float]):
    """{site: p} that nobody changes: options are looked up by what they hold."""

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(frozenset(self.items()))


def named_dropout(value: Any) -> Any:
    """A number, {site: p}, the name of a preset, or that of a file, which is not read."""
    if value is None or value == "none":
        return None
    if isinstance(value, DropoutSchedule):
        return value.probabilities
    if isinstance(value, Mapping):
        return check_probabilities(value, "option dropout")
    if isinstance(value, bool):
        raise ValueError("expected a number, a schedule file or the name of a preset")
    try:
        rate = float(value)
    except (TypeError, ValueError):
        return value if is_preset(value) else str(Path(value).expanduser())
    if not 0 <= rate < 1:
        raise ValueError("a dropout rate is at least 0 and below 1")
    return rate


def _read_dropout(value: Any) -> Any:
    """A number, the name of a preset, or {site: p}: the content of a file, not its name."""
    found = named_dropout(value)
    if not isinstance(found, str) or is_preset(found):
        return found
    place = Path(found)
    if place.suffix != ".json" and not place.exists():
        raise ValueError(
            f"expected a number, a schedule file, or one of the presets {', '.join(PRESETS)}"
        )
    return read_schedule(place)


def placed_dropout(base: Path, value: Any) -> Any:
    """An option dropout with a file's name starting from `base`; a preset keeps its name, unless a
    file of that name lies there."""
    if not isinstance(value, str) or (value in PRESETS and not (base / value).exists()):
        return value
    return str(base / value)


def identity(config: TrainConfig) -> dict[str, Any]:
    """The options that decide a run: those of its tuning method, and none that it does not read."""
    left_out = WHERE_ONLY | TUNING_OPTIONS
    if config.optimizer == "adamw":
        left_out |= {"optimizer"}
    if config.max_new_tokens is None:
        left_out |= {"max_new_tokens"}
    if config.max_steps is not None:
        left_out |= {"epochs"}
    left_out |= {name for name in ("keep_best", "early_stop") if getattr(config, name) is None}
    left_out |= {
        name
        for name in ("dropout_noise", "insert_dropout", "dropout_compat")
        if getattr(config, name) == TrainConfig.model_fields[name].default
    }
    left_out |= {"ewc", "ewc_strength"}  # what the file holds, not its name, is part of a run
    return {**config.model_dump(mode="json", exclude=set(left_out)), **config.identity()}
