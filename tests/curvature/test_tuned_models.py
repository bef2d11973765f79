"""Influence on tuned models: over what was trained, and nothing else, against autograd by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import landform as lf
from landform.curvature.layers import find_layers
from landform.errors import CurvatureError
from landform.evaluation.points import Data
from landform.weights.checkpoint import load_model, load_tokenizer, resolve
from landform.weights.tuning import TuningConfig, save_model, tune
from small_cases import small_case, small_task

METHODS: dict[str, dict[str, Any]] = {
    "lora": {"tuning": "lora", "lora_rank": 2},
    "adapter": {"tuning": "adapter", "adapter_size": 3},
    "bitfit": {"tuning": "bitfit"},
    "matrices": {"tuning": "bitfit", "train_also": ("*.query.weight",)},
}


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: Any, save_checkpoint: Any) -> Any:
    """Factory: `tuned(method)` -> (directory, task), with every trained tensor moved."""
    folder = tmp_path_factory.mktemp("tuned")
    base, task = small_case("classification", "bert", folder / "base", save_checkpoint)
    made: dict[str, Path] = {}

    def make(method: str) -> tuple[Path, Any]:
        if method not in made:
            made[method] = _save(base, folder / method, METHODS[method])
        return made[method], task

    return make


def _save(base: Path, place: Path, options: dict[str, Any]) -> Path:
    checkpoint = resolve(base)
    torch.manual_seed(0)
    model = tune(load_model(checkpoint, "classification"), TuningConfig(**options), head=True)
    with torch.no_grad():  # B of LoRA starts at 0, which would leave A without a gradient
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.2 * torch.randn_like(parameter)
    save_model(model, place, base, checkpoint.fingerprint)
    load_tokenizer(checkpoint).save_pretrained(place)
    return place


def by_hand(factors: Any, split: str) -> torch.Tensor:
    """(N, P) gradients of every row's loss by all trained tensors of the layers, row by row."""
    session = factors.session()
    model, data = session.model, Data(factors.task, split)
    wanted = [
        parameter
        for name, parameter in model.named_parameters()
        if name in model.landform_tuned and name.rpartition(".")[0] in factors.layers
    ]
    tokenizer, rows = session.tokenizer, []
    examples = data.examples(None)
    for texts, label in zip(examples.texts, examples.labels, strict=True):
        for parameter in wanted:
            parameter.requires_grad_(True)
        logits = model(**tokenizer(*texts, return_tensors="pt")).logits
        loss = F.cross_entropy(logits, torch.tensor([label]), reduction="sum")
        rows.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, wanted)]))
    return torch.stack(rows).detach()


@pytest.mark.parametrize("method", METHODS)
def test_plain_products_are_those_of_the_trained_tensors(tuned: Any, method: str) -> None:
    checkpoint, task = tuned(method)
    factors = lf.fit_factors(checkpoint, task, strategy="identity", dtype="float64")
    scores = lf.influence(factors).values
    expected = by_hand(factors, "validation") @ by_hand(factors, "train").t()
    assert scores == pytest.approx(expected.numpy(), rel=1e-9, abs=1e-9)
    own = lf.self_influence(factors).values
    assert own == pytest.approx(by_hand(factors, "train").square().sum(1).numpy(), rel=1e-9)


@pytest.mark.parametrize("method", METHODS)
def test_the_diagonal_is_that_of_the_trained_tensors(tuned: Any, method: str) -> None:
    checkpoint, task = tuned(method)
    factors = lf.fit_factors(
        checkpoint, task, strategy="diagonal", labels="empirical", dtype="float64"
    )
    scores = lf.influence(factors, damping=1e-2).values
    train, queries = by_hand(factors, "train"), by_hand(factors, "validation")
    weight = 1 / (train.square().mean(0) + 1e-2)
    assert scores == pytest.approx(((queries * weight) @ train.t()).numpy(), rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("method", METHODS)
def test_rotated_strategies_give_all_of_it_back_without_damping(tuned: Any, method: str) -> None:
    """A large damping leaves plain products over it: rotations have lost nothing."""
    checkpoint, task = tuned(method)
    for strategy in ("kfac", "ekfac"):
        factors = lf.fit_factors(checkpoint, task, strategy=strategy, dtype="float64")
        scores = lf.influence(factors, damping=1e9).values * 1e9
        expected = by_hand(factors, "validation") @ by_hand(factors, "train").t()
        assert scores == pytest.approx(expected.numpy(), rel=1e-6, abs=1e-6)


def test_layers_of_which_only_the_bias_is_trained_are_that_column(tuned: Any) -> None:
    checkpoint, task = tuned("bitfit")
    factors = lf.fit_factors(checkpoint, task, strategy="ekfac", dtype="float64")
    layers = {layer.name: layer for layer in factors.session().layers}
    query = layers["bert.encoder.layer.0.attention.self.query"]
    assert (query.inputs, query.columns, query.parameters) == (0, 1, 16)
    assert layers["classifier"].inputs == 16  # the head is trained as a whole
    coverage = factors.coverage.set_index("name")
    assert coverage.loc["bert.encoder.layer.0.attention.self.query", "parameters"] == 16
    assert coverage.loc["bert.embeddings.word_embeddings", "status"] == "frozen"
    # The biases of the norms are trained too, and are what is missing.
    missing = coverage.parameters[coverage.status == "no curvature for LayerNorm"].sum()
    trained = coverage.parameters[coverage.status != "frozen"].sum()
    assert factors.summary().share == pytest.approx(1 - missing / trained)
    assert "of the trained parameters" in factors.reading


def test_the_share_of_an_adapter_is_of_what_was_trained(tuned: Any) -> None:
    checkpoint, task = tuned("adapter")
    summary = lf.fit_factors(checkpoint, task, strategy="identity").summary()
    assert summary.share == 1.0
    assert (
        lf.mislabel(lf.self_influence(lf.fit_factors(checkpoint, task, strategy="identity")))
        .table["score"]
        .is_monotonic_decreasing
    )


def test_nothing_to_look_at_is_an_error(tiny_model: Any) -> None:
    model = tiny_model()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("LayerNorm" in name)
    with pytest.raises(CurvatureError, match="no layer to look at"):
        find_layers(model)


def test_padding_changes_nothing_where_only_biases_are_trained(tuned: Any) -> None:
    checkpoint, _ = tuned("bitfit")
    task = small_task("classification")
    values = [
        lf.influence(
            lf.fit_factors(checkpoint, task, dtype="float64", token_budget=budget), damping=1e-2
        ).values
        for budget in (1, 10**6)
    ]
    assert values[0] == pytest.approx(values[1], rel=1e-8)
