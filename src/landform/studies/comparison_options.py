"""The options of a comparison of ways of dropout: its arms, and how they are trained."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from landform.config import nearest
from landform.curvature.fisher import Fisher
from landform.training.options import ROW_OPTIONS, Seed, TrainConfig, named_dropout
from landform.training.schedules import DropoutSchedule, ScheduleConfig, make_schedule

__all__ = ["ARMS", "ArmConfig", "ComparisonConfig"]

ARMS: Mapping[str, Mapping[str, Any]] = {
    "guided": {},
    "guided-original": {"compat": "guided-dropout"},
    "value-proportional": {"kind": "value-proportional"},
    "inverse": {"kind": "inverse"},
    "uniform": {"control": "uniform"},
    "reversed": {"control": "reversed"},
    "shuffled": {"control": "shuffled"},
    "by-type": {"control": "by-type"},
    "published": {"dropout": "bert-guided"},
    "standard": {"dropout": 0.1},
    "none": {"dropout": 0.0},
    "gaussian": {"dropout": 0.1, "noise": "gaussian"},
    "gaussian-original": {"dropout": 0.1, "noise": "gaussian", "compat": "guided-dropout"},
}
"""Arms that are known by name, and their options."""

_SCHEDULE = frozenset(ScheduleConfig.model_fields) - {"compat"}
_FIXED = (
    (ROW_OPTIONS - {"stratified"})
    | {"dropout", "dropout_noise", "dropout_compat", "prefix", "row_file"}
)  # fmt: skip


class ArmConfig(ScheduleConfig):
    """How dropout acts in one arm: a schedule from Fisher scores, unless `dropout` is given."""

    dropout: float | str | None = None
    """In place of a schedule from Fisher scores: one probability everywhere, a schedule file, or
    a preset (bert-guided)."""
    noise: Literal["bernoulli", "gaussian"] = "bernoulli"
    """What dropout does: set entries to 0, or multiply them by Gaussian noise."""
    insert: bool = False
    """Put dropout where the model has none (LLaMA-class)."""

    @model_validator(mode="before")
    @classmethod
    def _one_source(cls, value: Any) -> Any:
        if isinstance(value, Mapping) and value.get("dropout") is not None:
            made = {"weighting", "high"} if value.get("compat") is not None else set()
            given = sorted((_SCHEDULE & set(value)) - made)
            if given:
                raise ValueError(f"dropout is given, and {given[0]} is an option of a schedule")
            if value.get("compat") is not None and value.get("noise") != "gaussian":
                raise ValueError("compat beside dropout says how noise gaussian is drawn")
        return value

    @field_validator("dropout", mode="before")
    @classmethod
    def _named_dropout(cls, value: object) -> object:
        if value == "none":
            raise ValueError("none is no probability: write 0")
        return named_dropout(value)

    @property
    def needs_fisher(self) -> bool:
        """Whether its schedule is made from Fisher scores."""
        return self.dropout is None

    def schedule(self, scores: Fisher) -> DropoutSchedule:
        """Its schedule from these scores."""
        options = self.model_dump(include=set(ScheduleConfig.model_fields))
        if self.compat is None:
            del options["compat"]
        return make_schedule(scores, **options)


class ComparisonConfig(TrainConfig):
    """Which arms are compared, on how much of the data, and how they are trained."""

    seeds: tuple[Seed, ...] = (0, 1, 2, 3, 4)
    """Seeds: first weights, order of data, dropout and choice of rows. Arms are paired by them."""
    keep_model: bool = False
    """Keep the trained models; without them a run is a few kilobytes."""
    arms: dict[str, ArmConfig] = Field(
        default_factory=lambda: _arms(("guided", "uniform", "standard", "none"))
    )
    """The arms: a list of known names (guided, guided-original, value-proportional, inverse,
    uniform, reversed, shuffled, by-type, published, standard, none, gaussian, gaussian-original),
    or NAME: {options of a schedule, or dropout, noise, insert}."""
    reference: str | None = None
    """The arm that the others are compared with (default: standard, or else the first)."""
    fractions: tuple[float, ...] = (100.0,)
    """Train on these percentages of the rows, drawn by seed: above 0, at most 100. A smaller one is
    part of a larger one."""
    test: Literal["official", "merged"] = "official"
    """official: the validation split (MNLI: matched, and mismatched as METRIC_mm). merged: train
    and validation are put together and cut anew by seed, 20 % to test on, as Sharma et al. 2024
    did (MNLI stays official there)."""
    metric: str | None = None
    """The metric that is compared (default: combined where the task has it, else its first)."""
    level: float = Field(0.95, gt=0, lt=1)
    """Coverage of the intervals over seeds; 1 - LEVEL is the error level of the tests."""
    power: float = Field(0.8, gt=0, lt=1)
    """The chance with which the smallest detectable difference would have been found."""
    fisher_elsewhere: bool = False
    """Take a Fisher that was computed at other weights of the same architecture (those after a
    first fine-tuning, where a model was saved without its masked language model)."""
    keep_as: str = Field("comparison", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Name of the result in the study."""

    @field_validator("arms", mode="before")
    @classmethod
    def _named_arms(cls, value: object) -> object:
        return _arms(value)

    @field_validator("arms")
    @classmethod
    def _distinct_arms(cls, value: dict[str, ArmConfig]) -> dict[str, ArmConfig]:
        if len(value) < 2:
            raise ValueError("a comparison needs two arms or more")
        seen: dict[str, str] = {}
        for name, arm in value.items():
            first = seen.setdefault(arm.model_dump_json(), name)
            if first != name:
                raise ValueError(f"the arms {first} and {name} are the same")
        return value

    @field_validator("fractions", mode="before")
    @classmethod
    def _one_fraction(cls, value: object) -> object:
        return (value,) if isinstance(value, int | float) else value

    @field_validator("fractions")
    @classmethod
    def _percentages(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if not value:
            raise ValueError("at least one is needed")
        outside = [fraction for fraction in value if not 0 < fraction <= 100]
        if outside:
            raise ValueError(f"{outside[0]:g}: a percentage lies above 0 and is at most 100")
        if len(set(value)) < len(value):
            raise ValueError("a percentage occurs twice")
        return tuple(sorted(value))

    @model_validator(mode="after")
    def _known_reference(self) -> Self:
        if self.reference is not None and self.reference not in self.arms:
            guess = nearest(self.reference, self.arms)
            raise ValueError(
                f"reference {self.reference!r} is none of the arms {', '.join(self.arms)}"
                + (f": did you mean {guess!r}?" if guess else "")
            )
        return self

    @model_validator(mode="after")
    def _one_subset(self) -> Self:
        return self  # stratified goes with fractions

    @model_validator(mode="after")
    def _dropout_agrees(self) -> Self:
        return self  # insert_dropout goes with the arms

    @model_validator(mode="after")
    def _chosen_here(self) -> Self:
        for name in sorted(_FIXED):
            if getattr(self, name) != TrainConfig.model_fields[name].default:
                raise ValueError(f"{name} is what a comparison chooses: use arms and fractions")
        return self

    @property
    def against(self) -> str:
        """The reference arm."""
        if self.reference is not None:
            return self.reference
        return "standard" if "standard" in self.arms else next(iter(self.arms))

    def training(self) -> dict[str, Any]:
        """The options of every run that are not at their default."""
        fields = TrainConfig.model_fields
        kept = [n for n in fields if n not in _FIXED and getattr(self, n) != fields[n].default]
        return {name: getattr(self, name) for name in kept if name != "insert_dropout"}


def _arms(value: Any) -> Any:
    """Arms by name with their options, from a list of known names or a mapping."""
    if isinstance(value, str):
        value = (value,)
    if isinstance(value, list | tuple):
        twice = next((name for name in value if list(value).count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"the arm {twice} occurs twice")
        value = dict.fromkeys(map(str, value))
    if not isinstance(value, Mapping):
        return value
    return {str(name): _arm(str(name), options) for name, options in value.items()}


def _arm(name: str, options: Any) -> Any:
    if isinstance(options, ArmConfig):
        return options
    if isinstance(options, int | float | str) and not isinstance(options, bool):
        return {"dropout": options}
    if options is None:
        if name not in ARMS:
            guess = nearest(name, ARMS)
            raise ValueError(
                f"unknown arm {name!r}"
                + (f": did you mean {guess!r}?" if guess else "")
                + f"; known: {', '.join(ARMS)}; for one of your own write {name}: {{dropout: 0.2}}"
            )
        options = ARMS[name]
    return options
