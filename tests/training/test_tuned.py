"""Training of tuned models: seeds, first weights, kills, kept steps, optimizers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import landform as lf
from landform.errors import ConfigError, EngineError
from landform.weights.checkpoint import load_model, resolve
from landform.weights.space import ParameterSpace

METHODS: dict[str, dict[str, Any]] = {
    "adapter": {"adapter_size": 4, "init_std": 0.1},
    "compacter": {"adapter_size": 8, "init_std": 0.1},
    "low-rank-adapter": {"adapter_size": 4},
    "lora": {"lora_rank": 2},
    "prefix": {"prefix_length": 3, "prefix_hidden": 4, "init_std": 0.3},
    "prompt": {"prompt_length": 3, "init_std": 0.3},
    "bitfit": {},
}
SHORT: dict[str, Any] = {
    "max_steps": 4, "batch_size": 8, "learning_rate": 1e-2, "save_steps": (0, 2), "threads": 1,
    "eval_split": None,
}  # fmt: skip
each_method = pytest.mark.parametrize("method", list(METHODS))


def weights(path: Any) -> dict[str, Any]:
    return dict(load_file(resolve(path).path / "adapter_model.safetensors"))


def train(pretrained: Any, task: Any, out: Any, method: str, **options: Any) -> Any:
    options = {**SHORT, "tuning": method, **METHODS[method], **options}
    return lf.train(pretrained, task, out=out, **options)


def same(a: dict[str, Any], b: dict[str, Any]) -> bool:
    assert a.keys() == b.keys()
    return all(torch.equal(a[name], b[name]) for name in a)


@each_method
def test_runs_move_what_is_tuned_and_keep_their_steps(
    method: str, pretrained: Any, task: Any, tmp_path: Any
) -> None:
    run = train(pretrained, task, tmp_path / "out", method).paths[0]
    start, middle, end = (weights(f"{run}{step}") for step in ("@0", "@2", ""))
    assert not same(start, middle) and not same(middle, end)
    moved = {name for name in start if not torch.equal(start[name], end[name])}
    # This encoder was saved without a pooler: what was drawn is trained, as the head is.
    assert any("pooler" in name for name in moved) and any("classifier" in n for n in moved)
    base = dict(load_model(pretrained, "classification", new_head=True).named_parameters())
    tuned: Any = load_model(f"{run}@2")
    assert ParameterSpace.of(tuned).names == ParameterSpace.of(load_model(run)).names
    for name, values in tuned.named_parameters():
        plain = name.replace(".base_layer.", ".")
        if name not in tuned.landform_tuned and plain in base:
            assert torch.equal(values, base[plain])
    curve = lf.interpolate(f"{run}@2", run, task, split="train", points=3, replicates=20)
    assert len(curve.table) == 3


@each_method
def test_head_seed_fixes_all_first_weights(
    method: str, pretrained: Any, task: Any, tmp_path: Any
) -> None:
    one, two = train(pretrained, task, tmp_path / "a", method, seeds=(0, 1), head_seed=7).paths
    assert same(weights(f"{one}@0"), weights(f"{two}@0"))
    assert not same(weights(one), weights(two))  # order and dropout are their own
    three = train(pretrained, task, tmp_path / "b", method, data_seed=0, head_seed=8).paths[0]
    first, other = weights(f"{one}@0"), weights(f"{three}@0")
    # Everything that is drawn changes with the seed; the rest begins where the base is.
    changed = {name for name in first if not torch.equal(first[name], other[name])}
    drawn = {"adapter": ".adapter.", "lora": "lora_A", "prefix": "prefix", "prompt": "prompt"}
    assert "classifier.weight" in {name.removeprefix("base_model.model.") for name in changed}
    if method in drawn:
        mine = {name for name in first if drawn[method] in name}
        assert mine and mine <= changed


def test_first_deviation_is_the_option(pretrained: Any, task: Any, tmp_path: Any) -> None:
    """The same draws, four times as large."""
    runs = [
        train(pretrained, task, tmp_path / str(std), "adapter", init_std=std, save_steps=0).paths[0]
        for std in (0.02, 0.08)
    ]
    small, large = (weights(f"{run}@0") for run in runs)
    for name in small:
        factor = 4.0 if ".adapter." in name else 1.0
        torch.testing.assert_close(small[name] * factor, large[name])


@each_method
def test_an_interrupted_run_goes_on_and_ends_the_same(
    method: str, pretrained: Any, task: Any, tmp_path: Any, monkeypatch: Any
) -> None:
    from landform.training import loop

    options = {"max_steps": 9, "save_steps": (3, 8), "resume_steps": 3, "optimizer": "adafactor"}
    whole = train(pretrained, task, tmp_path / "whole", method, **options).paths[0]

    class Stopped(Exception):
        pass

    end = loop._Companion.on_step_end

    def stop(self: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        end(self, args, state, control, **kwargs)
        if state.global_step == 7:
            raise Stopped

    with monkeypatch.context() as patch, pytest.raises(EngineError, match="Stopped"):
        patch.setattr(loop._Companion, "on_step_end", stop)
        train(pretrained, task, tmp_path / "again", method, **options)
    steps: list[int] = []
    original = loop._LandformTrainer.compute_loss

    def spy(self: Any, *args: Any, **kwargs: Any) -> Any:
        steps.append(self.state.global_step)
        return original(self, *args, **kwargs)

    monkeypatch.setattr(loop._LandformTrainer, "compute_loss", spy)
    result = train(pretrained, task, tmp_path / "again", method, **options)
    assert steps == [6, 7, 8]
    for step in ("@3", "@8", ""):
        assert same(weights(f"{whole}{step}"), weights(f"{result.paths[0]}{step}"))


def test_adafactor_is_that_of_transformers(pretrained: Any, task: Any, tmp_path: Any) -> None:
    """One step with a fixed learning rate: no relative step, no scaling, no warm-up."""
    from transformers.optimization import Adafactor

    options = {"optimizer": "adafactor", "max_steps": 3, "save_steps": (0, 1, 2), "clip": 0.0}
    options |= {"schedule": "constant", "warmup_ratio": 0.0, "weight_decay": 0.0, "dropout": 0.0}
    run = train(pretrained, task, tmp_path / "out", "adapter", **options).paths[0]
    model: Any = load_model(f"{run}@0")
    tuned = [p for n, p in model.named_parameters() if n in model.landform_tuned]
    optimizer = Adafactor(tuned, lr=1e-2, relative_step=False, scale_parameter=False)
    states = [weights(f"{run}@{step}") for step in (0, 1, 2)] + [weights(run)]
    batches = _gradients(pretrained, task, tmp_path, options)
    names = [n for n, _ in model.named_parameters() if n in model.landform_tuned]
    for gradients, after in zip(batches, states[1:], strict=True):
        for name, parameter in zip(names, tuned, strict=True):
            parameter.grad = gradients[name]
        optimizer.step()
        for name, parameter in zip(names, tuned, strict=True):
            torch.testing.assert_close(parameter.detach(), after[name], rtol=1e-5, atol=1e-7)


def _gradients(pretrained: Any, task: Any, tmp_path: Any, options: Any) -> list[dict[str, Any]]:
    """Gradients of every step of the same run, as its optimizer met them."""
    from landform.training import loop

    seen: list[dict[str, Any]] = []
    original = loop._LandformTrainer.create_optimizer

    def watched(self: Any, *args: Any) -> Any:
        optimizer = original(self, *args)
        named = {n: p for n, p in self.model.named_parameters() if p.requires_grad}
        optimizer.register_step_pre_hook(
            lambda *_: seen.append({n: p.grad.clone() for n, p in named.items()})
        )
        return optimizer

    loop._LandformTrainer.create_optimizer = watched
    try:
        train(pretrained, task, tmp_path / "again", "adapter", **options)
    finally:
        loop._LandformTrainer.create_optimizer = original
    return seen


def test_prompts_and_prefixes_learn(pretrained: Any, task: Any, tmp_path: Any) -> None:
    for method in ("prefix", "prompt"):
        run = train(
            pretrained, task, tmp_path / method, method, max_steps=60, learning_rate=3e-2
        ).paths[0]
        start, end = (
            lf.evaluate(f"{run}{step}", task, split="train", replicates=20).metrics["loss"]
            for step in ("@0", "")
        )
        assert end < start - 0.01


def test_options_of_other_methods_are_refused(pretrained: Any, task: Any, tmp_path: Any) -> None:
    with pytest.raises(ConfigError, match="prompt_length is an option of tuning prompt"):
        lf.train(pretrained, task, out=tmp_path / "o", tuning="prefix", prompt_length=3)
    with pytest.raises(ConfigError, match="adapter_size is an option of tuning adapter"):
        lf.train(pretrained, task, out=tmp_path / "o", adapter_size=3)
    assert not (tmp_path / "o").exists()


def test_noise_that_a_tuned_run_does_not_keep(pretrained: Any, task: Any, tmp_path: Any) -> None:
    with pytest.raises(ConfigError, match="perturb changes tensors that tuning adapter does not"):
        train(pretrained, task, tmp_path / "out", "adapter", perturb=0.1)
    assert not (tmp_path / "out").exists()
    # What the message says to do: the noisy model is kept whole, and tuned.
    options = {"perturb": 0.1, "save_steps": 0, "max_steps": 1}
    noisy = lf.train(pretrained, task, out=tmp_path / "n", **{**SHORT, **options}).paths[0] + "@0"
    run = train(noisy, task, tmp_path / "t", "adapter").paths[0]
    start, plain = (dict(load_model(m, new_head=True).named_parameters()) for m in (noisy, run))
    name = "bert.encoder.layer.0.attention.self.query.weight"
    assert torch.equal(start[name], plain[name])
    before = dict(load_model(pretrained, "classification", new_head=True).named_parameters())
    assert not torch.equal(before[name], plain[name])


def test_training_starts_from_whole_models(pretrained: Any, task: Any, tmp_path: Any) -> None:
    import numpy as np

    from landform.evaluation.points import Data
    from landform.training.ensemble import retrain
    from landform.training.options import TrainConfig

    run = train(pretrained, task, tmp_path / "out", "lora").paths[0]
    for tuning in ({}, {"tuning": "adapter"}):
        with pytest.raises(ConfigError, match=r"is a tuned model \(lora\)") as error:
            lf.train(run, task, out=tmp_path / "again", **SHORT, **tuning)
        assert "landform merge" in str(error.value.remedy)
    assert not (tmp_path / "again").exists()
    with pytest.raises(ConfigError, match="is a tuned model"):
        retrain(
            resolve(run), task, [np.arange(5)], seeds=(0,), config=TrainConfig(),
            queries=Data(task, "validation"),
        )  # fmt: skip
    merged = lf.merge(run, out=tmp_path / "merged")
    assert lf.train(merged.destination, task, out=tmp_path / "again", **SHORT).paths
