"""The numbers of kronfluence 1.0.1, in float64: factors and scores of every strategy.

Both sides see the same padded batches of the same rows, and the data's labels. A third side, brute
force from the definitions, says who is right where kronfluence is wrong. Eigenvectors are never
compared (they are not unique): covariances, and operators made of vectors and eigenvalues, are.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import landform as lf
from brute_force import (
    LayerCurvature,
    apply_operator,
    curvature,
    pairwise_scores,
    per_example_gradients,
    self_scores,
)
from landform.evaluation.points import Data
from landform.tasks.batching import Batch
from landform.tasks.objective import Objective
from landform.tasks.task import Task
from peer import Peer

pytest.importorskip("kronfluence", reason="the peer is a development package: see the Makefile")

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*GradScaler.*:FutureWarning"),
]

STRATEGIES = ("identity", "diagonal", "kfac", "ekfac")
DAMPINGS = (1e-8, None)
TRAIN, QUERIES = 12, 7
LIMIT = 1e-9


def error(found: Any, expected: Any) -> float:
    """The largest difference, relative to the largest expected value."""
    found, expected = torch.as_tensor(found), torch.as_tensor(expected)
    assert found.shape == expected.shape
    return float((found - expected).abs().max() / expected.abs().max())


@dataclass
class Case:
    """One checkpoint and its task, and all that was computed of them, once."""

    checkpoint: Path
    task: Task
    folder: Path
    options: dict[str, Any]
    _factors: dict[str, Any] = field(default_factory=dict)
    _peers: dict[str, Peer] = field(default_factory=dict)
    _brute: dict[str, dict[str, LayerCurvature]] = field(default_factory=dict)
    _gradients: dict[tuple[str, str], dict[str, Tensor]] = field(default_factory=dict)

    def factors(self, strategy: str) -> Any:
        if strategy not in self._factors:
            self._factors[strategy] = lf.fit_factors(
                self.checkpoint, self.task, strategy=strategy, labels="empirical",
                dtype="float64", token_budget=80, **self.options,
            )  # fmt: skip
        return self._factors[strategy]

    @cached_property
    def session(self) -> Any:
        return self.factors("identity").session()

    def _prepared(self, split: str, rows: int) -> Any:
        return self.session.prepare(Data(self.task, split), self.task.examples(split, rows=rows))

    @cached_property
    def objective(self) -> Objective:
        found: Objective = self._prepared("train", 1).objective
        return found

    @cached_property
    def train(self) -> list[Batch]:
        return list(self._prepared("train", TRAIN).batches)

    @cached_property
    def queries(self) -> list[Batch]:
        return list(self._prepared("validation", QUERIES).batches)

    def peer(self, strategy: str) -> Peer:
        if strategy not in self._peers:
            self._peers[strategy] = Peer(
                self.session.model, self.objective, self.train, self.folder / strategy,
                strategy=strategy, layers=self.factors(strategy).layers,
            )  # fmt: skip
        return self._peers[strategy]

    def brute(self, strategy: str) -> dict[str, LayerCurvature]:
        if strategy not in self._brute:
            layers = self.factors(strategy).layers
            self._brute[strategy] = curvature(
                strategy, self.session.model, self.objective, self.train, layers
            )
        return self._brute[strategy]

    def gradients(self, side: str, measurement: str = "loss") -> dict[str, Tensor]:
        if (side, measurement) not in self._gradients:
            self._gradients[side, measurement] = per_example_gradients(
                self.session.model,
                self.objective,
                self.train if side == "train" else self.queries,
                self.factors("identity").layers,
                measurement=measurement,
            )
        return self._gradients[side, measurement]


@pytest.fixture(
    scope="module", params=["bert classifier", "gpt2 language model", "gpt2 classifier"]
)
def case(request: Any, tmp_path_factory: Any, save_checkpoint: Any, write_rows: Any) -> Case:
    architecture, _, what = request.param.partition(" ")
    kind = "causal-lm" if what == "language model" else "classification"
    folder: Path = tmp_path_factory.mktemp("case")
    options = {} if kind == "causal-lm" else {"num_labels": 3}
    checkpoint = save_checkpoint(folder / "model", kind=kind, architecture=architecture, **options)
    data = folder / "data"
    data.mkdir()
    write_rows(data / "train.tsv", TRAIN, seed=1, classes=3)
    write_rows(data / "validation.tsv", QUERIES, seed=2, classes=3)
    label = None if kind == "causal-lm" else "label"
    task = lf.load_task(str(data), text="sentence", label=label, kind=kind)
    return Case(checkpoint, task, folder, {})


def test_both_sides_see_several_padded_batches(case: Case) -> None:
    for batches in (case.train, case.queries):
        assert len(batches) > 1
        assert any(int(b.inputs["attention_mask"].min()) == 0 for b in batches)
    rows = torch.cat([b.rows for b in case.train]).tolist()
    assert rows != sorted(rows) == list(range(TRAIN))


def test_every_linear_layer_is_compared(case: Case) -> None:
    linear = [
        name
        for name, module in case.session.model.named_modules()
        if isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"
    ]
    assert set(linear) - set(case.factors("ekfac").layers) <= {"lm_head"}
    assert len(case.factors("ekfac").layers) >= 8


# --- factors --------------------------------------------------------------------------------------


def test_covariances_and_counts(case: Case) -> None:
    ours, theirs, brute = case.factors("kfac"), case.peer("kfac").factors(), case.brute("kfac")
    for name in ours.layers:
        for what, mine, exact in (
            ("activation", ours.activation_covariance(name), brute[name].a),
            ("gradient", ours.gradient_covariance(name), brute[name].s),
        ):
            count = int(theirs[f"num_{what}_covariance_processed"][name])
            assert count == brute[name].rows
            assert error(mine, theirs[f"{what}_covariance"][name] / count) < LIMIT
            assert error(mine, exact) < LIMIT


@pytest.mark.parametrize("strategy", ["diagonal", "kfac", "ekfac"])
def test_lambda_in_its_basis(case: Case, strategy: str) -> None:
    ours, theirs, brute = (
        case.factors(strategy), case.peer(strategy).factors(), case.brute(strategy)
    )  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    for name in ours.layers:
        values = ours.eigenvalues(name)
        probe = torch.randn(3, *values.shape, dtype=values.dtype, generator=generator)
        if strategy == "diagonal":
            mine, peers = values * probe, theirs["lambda_matrix"][name] / TRAIN * probe
            assert int(theirs["num_lambda_processed"][name]) == TRAIN
        else:
            left, right = ours.vectors[f"S/{name}"], ours.vectors[f"A/{name}"]
            mine = apply_operator(left, right, values, probe)
            left = theirs["gradient_eigenvectors"][name]
            right = theirs["activation_eigenvectors"][name]
            other = torch.outer(
                theirs["gradient_eigenvalues"][name], theirs["activation_eigenvalues"][name]
            )
            if strategy == "ekfac":
                assert int(theirs["num_lambda_processed"][name]) == TRAIN
                other = theirs["lambda_matrix"][name] / TRAIN
            peers = apply_operator(left, right, other, probe)
        assert error(mine, peers) < LIMIT
        assert error(mine, brute[name].operator(probe)) < LIMIT


# --- scores ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("damping", DAMPINGS)
@pytest.mark.parametrize("measurement", ["loss", "margin"])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_pairwise_scores(
    case: Case, strategy: str, measurement: str, damping: float | None
) -> None:
    ours = lf.influence(
        case.factors(strategy), query_rows=QUERIES, measurement=measurement, damping=damping
    )
    assert ours.values.shape == (QUERIES, TRAIN)
    theirs = case.peer(strategy).scores(case.queries, measurement=measurement, damping=damping)
    assert error(ours.values.copy(), theirs) < LIMIT
    exact = pairwise_scores(
        case.brute(strategy),
        case.gradients("queries", measurement),
        case.gradients("train"),
        damping=damping,
        relative_damping=0.1 if damping is None else None,
    )
    assert error(ours.values.copy(), torch.stack([*exact.values()]).sum(0)) < LIMIT


@pytest.mark.parametrize("damping", DAMPINGS)
@pytest.mark.parametrize("measurement", ["loss", "margin"])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_self_influence(case: Case, strategy: str, measurement: str, damping: float | None) -> None:
    ours = lf.self_influence(case.factors(strategy), measurement=measurement, damping=damping)
    theirs = case.peer(strategy).self_scores(measurement=measurement, damping=damping)
    assert error(ours.values.copy(), theirs) < LIMIT
    exact = self_scores(
        case.brute(strategy),
        case.gradients("train"),
        case.gradients("train", measurement),
        damping=damping,
        relative_damping=0.1 if damping is None else None,
    )
    assert error(ours.values.copy(), torch.stack([*exact.values()]).sum(0)) < LIMIT


def test_a_positive_score_is_helpful(case: Case) -> None:
    # A small step down the gradient of one row lowers the loss of the queries that it helps.
    scores = lf.influence(case.factors("identity"), query_rows=QUERIES).values
    model, step = case.session.model, 1e-7
    gradients = case.gradients("train")

    def losses() -> Tensor:
        found = torch.empty(QUERIES, dtype=torch.float64)
        with torch.no_grad():
            for batch in case.queries:
                targets = case.objective.targets(batch)
                z = case.objective.logits(model, batch)
                found[batch.rows] = case.objective.losses(z, targets).sums
        return found

    before = losses()
    moved = []
    with torch.no_grad():
        for name, g in gradients.items():
            module = model.get_submodule(name)
            weight = g[0] if module.bias is None else g[0, :, :-1]
            weight = weight if isinstance(module, nn.Linear) else weight.t()
            moved.append((module.weight, module.weight.clone()))
            module.weight -= step * weight
            if module.bias is not None:
                moved.append((module.bias, module.bias.clone()))
                module.bias -= step * g[0, :, -1]
    try:
        fall = (before - losses()) / step
    finally:
        with torch.no_grad():
            for parameter, old in moved:
                parameter.copy_(old)
    np.testing.assert_allclose(scores[:, 0], fall, rtol=1e-3, atol=1e-3 * np.abs(scores).max())
