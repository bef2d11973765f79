"""Dropout put into a model by schedule, and seen to act there.

Setting a probability is no proof that it acts: code may have copied it when the model was built, a
fused attention may read another attribute, an index may hit another module (in the code of Sharma
et al. 2024, run on a later transformers, 6 of 37 settings arrived, without an error). So the model
is run twice on a few tokens, as in training. In the first run every probability is a number of its
own: it shows in which calls of dropout a site acts (`nn.Dropout`, functional dropout, the dropout
argument of attention). In the second run the schedule is in place, and each of these calls must
have the probability that was asked for.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from landform.config import nearest
from landform.errors import ConfigError
from landform.training.noise import (
    Call,
    GaussianRate,
    noise_of,
    put_noise,
    remove_noise,
    watch,
)
from landform.training.schedules import (
    DropoutSchedule,
    check_probabilities,
    dropout_schedule,
    is_preset,
    make_schedule,
    read_schedule,
    write_schedule,
)
from landform.training.seeds import isolated_randomness
from landform.weights.sites import (
    HEAD,
    INSERTED,
    DropoutSite,
    copied_rates,
    dropout_sites,
    scheduled_sites,
)

__all__ = [
    "AppliedDropout",
    "DropoutCallback",
    "DropoutSchedule",
    "Noise",
    "apply_dropout",
    "dropout_in_force",
    "dropout_schedule",
    "make_schedule",
    "put_dropout",
    "read_schedule",
    "write_schedule",
]

Noise = Literal["bernoulli", "gaussian"]
Compat = Literal["guided-dropout"]
Schedule = Mapping[str, float] | DropoutSchedule | str | os.PathLike[str]


def apply_dropout(
    model: nn.Module,
    schedule: Schedule,
    *,
    noise: Noise = "bernoulli",
    insert: bool = False,
    compat: Compat | None = None,
    inputs: Mapping[str, Tensor] | None = None,
) -> dict[str, float]:
    """Set the dropout probabilities of a model, and return those in force: {site: p}.

    `schedule`: {site: p}, a schedule file, or the name of a preset. Sites that it does not name
    (the head's) keep theirs. `noise` "gaussian" multiplies by 1 + sqrt(p/(1-p)) eps in place of
    dropping; with fused attention its probabilities are then computed written out. `insert` allows
    dropout where the model has none (LLaMA-class). `compat` "guided-dropout", for noise gaussian:
    as the code of Sharma et al. 2024 has it, with p/(1-p) as the standard deviation and noise in
    evaluation too.

    The probabilities are seen in a forward pass in training mode on a few tokens (`inputs`: others,
    for models that take none). Random numbers, modes and gradients are left as they were.

    Raises `ConfigError`, with the model as it was before, for a site that the model does not have,
    for one that would have to be inserted when it may not, and where what acts is not what was
    asked for.
    """
    return put_dropout(
        model, schedule, noise=noise, insert=insert, compat=compat, inputs=inputs
    ).asked


def dropout_in_force(
    model: nn.Module, *, inputs: Mapping[str, Tensor] | None = None
) -> dict[str, float]:
    """{site: p} for every site that acts in a training forward pass; the model stays as it is.

    `inputs` is what the model is called with (default: a few tokens of its own vocabulary).
    """
    return put_dropout(model, None, inputs=inputs).in_force


@dataclass
class AppliedDropout:
    """What was put into a model, and how to take it out again."""

    asked: dict[str, float]
    """{site: p} in force, of the sites that the schedule names"""
    in_force: dict[str, float]
    """the same of every site that acts, those of the head among them"""
    undo: Callable[[], None] = field(repr=False)


def put_dropout(
    model: nn.Module,
    schedule: Schedule | None,
    *,
    noise: Noise = "bernoulli",
    insert: bool = False,
    compat: Compat | None = None,
    inputs: Mapping[str, Tensor] | None = None,
    all_sites: bool = False,
) -> AppliedDropout:
    """`apply_dropout` with all that is known after it; `schedule` None names no site.

    `all_sites`: sites that the schedule does not name get the noise as well, at the probability
    they have. Those of attention must then be seen to act as well: a kernel that draws its own
    dropout would go on without the noise.
    """
    if noise not in ("bernoulli", "gaussian"):
        raise ConfigError(f"unknown noise {noise!r}", remedy="use bernoulli or gaussian")
    if compat is not None and (compat != "guided-dropout" or noise != "gaussian"):
        raise ConfigError(
            f"compat {compat!r} with noise {noise}",
            remedy="compat is guided-dropout, and says how noise gaussian is drawn",
        )
    sites = {site.name: site for site in dropout_sites(model, insert=True)}
    wanted = _wanted(model, schedule, sites)
    _check_insertion(model, wanted, sites, insert)
    rates: dict[str, float] = dict(wanted)
    if all_sites:
        rates = {n: s.p for n, s in sites.items() if s.how != "insert"} | rates
    if noise == "gaussian":
        rates = {name: GaussianRate(p, compat is not None) for name, p in rates.items()}
    # Unlike a module of the head that this task does not use, attention is always run.
    noisy = [n for n, rate in rates.items() if noise == "gaussian" and rate > 0]
    must = (*wanted, *(n for n in noisy if n not in wanted and sites[n].kind == "attention"))
    changes = _Changes()
    try:
        places = _put(model, rates, sites, changes, inputs)
        in_force = _verify(model, rates, must, sites, places, inputs)
    except BaseException:
        changes.undo()
        raise
    return AppliedDropout({name: in_force[name] for name in wanted}, in_force, changes.undo)


# --- what is asked for --------------------------------------------------------------------------


def _wanted(
    model: nn.Module, schedule: Schedule | None, sites: Mapping[str, DropoutSite]
) -> dict[str, float]:
    """{site of the model: p}."""
    if schedule is None:
        return {}
    if isinstance(schedule, DropoutSchedule):
        schedule = schedule.probabilities
    if is_preset(schedule):
        return _preset(model, schedule, tuple(sites.values()))
    if isinstance(schedule, str | os.PathLike):
        schedule = read_schedule(schedule)
    wanted: dict[str, float] = {}
    names: dict[str, str] = {}
    for name, p in check_probabilities(schedule, "the schedule").items():
        site = _find(name, sites, type(model).__name__)
        if site in names:
            raise ConfigError(
                f"the schedule names {names[site]} and {name}, which are one dropout site of this "
                f"{type(model).__name__}: {site}",
                remedy="give one probability for it",
            )
        names[site], wanted[site] = name, p
    return wanted


def _find(name: str, sites: Mapping[str, DropoutSite], model: str) -> str:
    """The site of a name; a model wrapped once more or less has it with or without the wrapper."""
    if name in sites:
        return name
    fits = [site for site in sites if site.endswith(f".{name}") or name.endswith(f".{site}")]
    fits = [site for site in fits if sites[site].kind != HEAD]
    if len(fits) == 1:
        return fits[0]
    guess = nearest(name, sites)
    raise ConfigError(
        f"the schedule names {name}, which is no dropout site of this {model}",
        remedy=(f"did you mean {guess}? " if guess else "")
        + f"it has {len(sites)} sites (landform.dropout_sites(model)); the schedule of another "
        "architecture does not fit",
    )


def _preset(model: nn.Module, name: str, sites: Sequence[DropoutSite]) -> dict[str, float]:
    """The published values on the sites of the same type and layer of a BERT-like model."""
    published = dropout_schedule(name)
    mine = scheduled_sites([site for site in sites if site.how != "insert"])
    places = {path.split(".", 1)[1]: p for path, p in published.items()}
    found = {
        site.name: places[site.name.split(".", 1)[1]]
        for site in mine
        if site.name.split(".", 1)[-1] in places
    }
    if len(found) != len(places) or len(mine) != len(places):
        layers = len({site.layer for site in mine if site.layer})
        raise ConfigError(
            f"the preset {name} is for the {len(places)} dropout sites of a BERT of 12 layers; "
            f"this {type(model).__name__} has {len(mine)} sites in {layers} layers",
            remedy="make a schedule of the model's own Fisher: landform fisher, landform dropout",
        )
    return found


def _check_insertion(
    model: nn.Module,
    wanted: Mapping[str, float],
    sites: Mapping[str, DropoutSite],
    insert: bool,
) -> None:
    missing = [
        name
        for name in wanted
        if sites[name].how == "insert" and not hasattr(model.get_submodule(name), INSERTED)
    ]
    if missing and not insert:
        raise ConfigError(
            f"this {type(model).__name__} has no dropout after {missing[0]}"
            + (f" (nor in {len(missing) - 1} other places of the schedule)" if missing[1:] else ""),
            remedy="allow dropout to be inserted: insert=True, --insert-dropout",
        )


# --- putting it there ---------------------------------------------------------------------------


class _Changes:
    """What was done to a model, to be taken back in reverse."""

    def __init__(self) -> None:
        self.steps: list[Callable[[], None]] = []

    def undo(self) -> None:
        while self.steps:
            self.steps.pop()()

    def set(self, owner: Any, name: str, value: Any) -> None:
        before = getattr(owner, name)
        setattr(owner, name, value)
        self.steps.append(lambda: setattr(owner, name, before))


class InsertedDropout(nn.Dropout):
    """Dropout of the output of the module that it is a child of."""


class _DropOutput:
    """After a module ran: its inserted dropout."""

    def __call__(self, module: nn.Module, _: Any, output: Any) -> Any:
        return getattr(module, INSERTED)(output)


def _insert(module: nn.Module, changes: _Changes) -> None:
    # A child without parameters: the state dict keeps its names, and train() reaches it.
    inserted = InsertedDropout(0.0).train(module.training)
    module.add_module(INSERTED, inserted)
    handle = module.register_forward_hook(_DropOutput())

    def remove() -> None:
        handle.remove()
        delattr(module, INSERTED)

    changes.steps.append(remove)


def _holders(model: nn.Module, site: DropoutSite) -> list[tuple[Any, str]]:
    """The attributes that a site's probability is: one, or copies of it beside it."""
    if site.how == "insert":
        return [(getattr(model.get_submodule(site.name), INSERTED), "p")]
    path, _, name = site.name.rpartition(".")
    owner = model.get_submodule(path)
    if site.how == "attribute":
        return [(owner, name)]
    return [(getattr(owner, name), "p"), *((owner, copy) for copy in copied_rates(owner, name))]


def _put(
    model: nn.Module,
    rates: Mapping[str, float],
    sites: Mapping[str, DropoutSite],
    changes: _Changes,
    inputs: Mapping[str, Tensor] | None,
) -> dict[tuple[str, int], str]:
    """Put the rates there; returns which site acts in which call of which module."""
    for name in rates:
        if sites[name].how == "insert" and not hasattr(model.get_submodule(name), INSERTED):
            _insert(model.get_submodule(name), changes)
    present = {
        name: site
        for name, site in sites.items()
        if site.how != "insert" or hasattr(model.get_submodule(name), INSERTED)
    }
    places = _places(model, present, inputs)
    for name, rate in rates.items():
        for owner, attribute in _holders(model, sites[name]):
            changes.set(owner, attribute, rate)
        for path in dict.fromkeys(where for (where, _), site in places.items() if site == name):
            _hook(model.get_submodule(path), rate, changes)
    return places


def _hook(module: nn.Module, rate: float, changes: _Changes) -> None:
    before = noise_of(module)
    if isinstance(rate, GaussianRate):
        put_noise(module, always=rate if rate.original else None)
    elif before is not None:
        remove_noise(module)
    else:
        return

    def restore() -> None:
        remove_noise(module)
        if before is not None:
            put_noise(module, **before)

    changes.steps.append(restore)


def _places(
    model: nn.Module, sites: Mapping[str, DropoutSite], inputs: Mapping[str, Tensor] | None
) -> dict[tuple[str, int], str]:
    """{(module, number of its call): site}, from a run in which every site has its own number."""
    changes = _Changes()
    marks: dict[float, str] = {}
    try:
        for number, (name, site) in enumerate(sites.items(), 1):
            # A number that no one else would choose.
            mark = 0.2503071 + 0.5 * number / (len(sites) + 1)
            marks[mark] = name
            for owner, attribute in _holders(model, site):
                changes.set(owner, attribute, mark)
        calls = _run(model, inputs)
    finally:
        changes.undo()
    return {(call.module, call.number): marks[call.p] for call in calls if call.p in marks}


def _verify(
    model: nn.Module,
    rates: Mapping[str, float],
    must: Iterable[str],
    sites: Mapping[str, DropoutSite],
    places: Mapping[tuple[str, int], str],
    inputs: Mapping[str, Tensor] | None,
) -> dict[str, float]:
    """{site: p} in force. Raises `ConfigError` where that is not what was asked for."""
    acting = set(places.values())
    for name in must:
        if name not in acting:
            raise ConfigError(
                f"the dropout {name} was set, but acts nowhere in a training forward pass of this "
                f"{type(model).__name__}",
                remedy="leave it out of the schedule; where attention is neither eager nor sdpa, "
                "load the model with attn_implementation='sdpa' or 'eager'",
            )
    calls = {(call.module, call.number): call for call in _run(model, inputs)}
    in_force: dict[str, float] = {}
    for place, name in places.items():
        call = calls.get(place)
        found = 0.0 if call is None else call.p
        asked = rates.get(name)
        gaussian = isinstance(asked, GaussianRate)
        if asked is not None and (
            found != float(asked) or (call is not None and call.gaussian != gaussian)
        ):
            _refuse(name, asked, place[0], found, call)
        in_force[name] = found
    return {name: in_force[name] for name in sites if name in in_force}


def _refuse(name: str, asked: float, where: str, found: float, call: Call | None) -> None:
    kind = "Gaussian" if call is not None and call.gaussian else "Bernoulli"
    wanted = "Gaussian" if isinstance(asked, GaussianRate) else "Bernoulli"
    raise ConfigError(
        f"the dropout {name} was set to {float(asked):g} ({wanted}), but in a training forward "
        f"pass {where or 'the model'} drops with {found:g} ({kind})",
        remedy="another part of the code decides that probability: set it there, or leave the site "
        "out of the schedule",
    )


# --- a run in training mode on a few tokens -----------------------------------------------------


def _run(model: nn.Module, inputs: Mapping[str, Tensor] | None) -> list[Call]:
    """The calls of dropout of one forward pass in training mode."""
    given = dict(inputs) if inputs is not None else _few_tokens(model)
    try:
        with _as_in_training(model), watch(model) as calls:
            model(**given)
    except (RuntimeError, ValueError, TypeError, IndexError, KeyError, AttributeError) as error:
        if inputs is not None:
            raise
        raise ConfigError(
            f"dropout could not be verified: this {type(model).__name__} does not take a few "
            f"tokens alone ({type(error).__name__}: {error})",
            remedy="give inputs that it takes: apply_dropout(model, schedule, inputs=batch)",
        ) from error
    return calls


@contextmanager
def _as_in_training(model: nn.Module) -> Iterator[None]:
    modes = [(module, module.training) for module in model.modules()]
    # Layers that are left out at random would be missed.
    whole: list[tuple[Any, float]] = [
        (module, vars(module)["layerdrop"])
        for module in model.modules()
        if "layerdrop" in vars(module)
    ]
    try:
        model.train()
        for module, _ in whole:
            module.layerdrop = 0.0
        with isolated_randomness(), torch.no_grad():
            yield
    finally:
        for module, rate in whole:
            module.layerdrop = rate
        for module, mode in modes:
            module.training = mode


def _few_tokens(model: nn.Module) -> dict[str, Tensor]:
    """A row of a few tokens that are none of the special ones, and an end."""
    config: Any = model.config
    vocabulary = int(getattr(config, "vocab_size", 0) or 0)
    device = next(model.parameters()).device
    special = {getattr(config, f"{name}_token_id", None) for name in ("pad", "bos", "eos", "sep")}
    tokens = [i for i in range(min(vocabulary, 16)) if i not in special][:4] or [0]
    eos = getattr(config, "eos_token_id", None)
    ends = [eos] if isinstance(eos, int) and 0 <= eos < vocabulary else []
    given = {"input_ids": torch.tensor([tokens + ends], device=device)}
    arguments = inspect.signature(model.forward).parameters
    takes = "decoder_input_ids" in arguments or any(
        argument.kind is argument.VAR_KEYWORD for argument in arguments.values()
    )
    if getattr(config, "is_encoder_decoder", False) and takes:
        given["decoder_input_ids"] = given["input_ids"]
    return given


# --- anyone's Trainer ---------------------------------------------------------------------------


class DropoutCallback(TrainerCallback):
    """A schedule for a transformers Trainer: put there and verified when training begins, taken
    back when it ends.

        Trainer(model, ..., callbacks=[landform.DropoutCallback("schedule.json")])

    Takes the options of `apply_dropout`. `in_force` holds the probabilities of all sites.
    """

    def __init__(
        self,
        schedule: Schedule,
        *,
        noise: Noise = "bernoulli",
        insert: bool = False,
        compat: Compat | None = None,
        inputs: Mapping[str, Tensor] | None = None,
    ) -> None:
        self.schedule = schedule
        self.noise: Noise = noise
        self.insert, self.compat, self.inputs = insert, compat, inputs
        self.in_force: dict[str, float] = {}
        self._applied: AppliedDropout | None = None

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: Any = None,
        **_: Any,
    ) -> None:
        """Put the schedule into the model."""
        self.restore()
        self._applied = put_dropout(
            getattr(model, "module", model),  # as it lies inside of DataParallel
            self.schedule,
            noise=self.noise,
            insert=self.insert,
            compat=self.compat,
            inputs=self.inputs,
        )
        self.in_force = self._applied.in_force

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Take it back."""
        self.restore()

    def restore(self) -> None:
        """Take the schedule back; for a training that failed, which does not end by itself."""
        if self._applied is not None:
            self._applied.undo()
            self._applied = None
