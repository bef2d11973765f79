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
import pandas as pd
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
TRAIN, QUERIES = 24, 7  # fewer rows than dimensions leave eigenvalues that are rounding noise
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
    peer_options: dict[str, Any]
    _factors: dict[str, Any] = field(default_factory=dict)
    _peers: dict[str, Peer] = field(default_factory=dict)
    _brute: dict[str, dict[str, LayerCurvature]] = field(default_factory=dict)
    _gradients: dict[tuple[str, str], dict[str, Tensor]] = field(default_factory=dict)

    def factors(self, strategy: str) -> Any:
        if strategy not in self._factors:
            self._factors[strategy] = lf.fit_factors(
                self.checkpoint, self.task, strategy=strategy, labels="empirical",
                dtype="float64", token_budget=80,
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
                strategy=strategy, layers=self.factors(strategy).layers, **self.peer_options,
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
    assert error(ours.values.copy(), theirs["all_modules"]) < LIMIT
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


def test_scores_of_every_layer(case: Case) -> None:
    ours = lf.influence(case.factors("ekfac"), query_rows=QUERIES, per_module=True)
    theirs = case.peer("ekfac").scores(case.queries, compute_per_module_scores=True)
    assert ours.modules is not None and set(ours.modules) == set(theirs)
    for name, table in ours.modules.items():
        assert error(table.to_numpy().T.copy(), theirs[name]) < LIMIT


@pytest.mark.parametrize("aggregate", ["queries", "train", "both"])
def test_summed_gradients(case: Case, aggregate: str) -> None:
    ours = lf.influence(case.factors("ekfac"), query_rows=QUERIES, aggregate=aggregate)
    theirs = case.peer("ekfac").scores(
        case.queries,
        aggregate_query_gradients=aggregate != "train",
        aggregate_train_gradients=aggregate != "queries",
    )
    assert error(ours.values.copy(), theirs["all_modules"]) < LIMIT


def test_scores_of_every_token(case: Case) -> None:
    # kronfluence needs one width for all batches, and separate layers where some see no tokens.
    ours = lf.influence(case.factors("ekfac"), query_rows=QUERIES, per_token=True).tokens
    assert ours is not None
    width = max(batch.inputs["input_ids"].shape[1] for batch in case.train)
    theirs = case.peer("ekfac").scores(
        case.queries, width=width, compute_per_token_scores=True, compute_per_module_scores=True
    )
    tokens = torch.stack([v for v in theirs.values() if v.dim() == 3]).sum(0)
    rest = torch.stack([v for v in theirs.values() if v.dim() == 2] or [0 * tokens[..., 0]]).sum(0)
    found = torch.zeros(QUERIES, TRAIN, 1 + width, dtype=torch.float64)
    values = torch.from_numpy(ours.drop(columns=["example", "position"]).to_numpy().copy())
    at = torch.tensor(ours.example.tolist()), torch.tensor(ours.position.tolist())
    found[:, at[0], 1 + at[1]] = values.t()
    assert error(found, torch.cat([rest.unsqueeze(-1), tokens], -1)) < LIMIT


def test_a_query_of_low_rank(case: Case) -> None:
    # Ours is a randomised decomposition, theirs here a full one: they differ by its error.
    ours = lf.influence(case.factors("ekfac"), query_rows=QUERIES, query_rank=2)
    theirs = case.peer("ekfac").scores(case.queries, query_gradient_low_rank=2, use_full_svd=True)
    assert error(ours.values.copy(), theirs["all_modules"]) < 1e-4
    whole = lf.influence(case.factors("ekfac"), query_rows=QUERIES)
    assert error(ours.values.copy(), whole.values.copy()) > 1e-2


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


# --- where kronfluence is wrong -------------------------------------------------------------------


@pytest.fixture(scope="module")
def shared(tmp_path_factory: Any, write_rows: Any, word_tokenizer: Any) -> Case:
    """An ALBERT, whose two layers are one module used twice."""
    from transformers import AlbertConfig, AlbertForSequenceClassification

    folder: Path = tmp_path_factory.mktemp("shared")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AlbertForSequenceClassification(
            AlbertConfig(
                vocab_size=len(word_tokenizer), embedding_size=8, hidden_size=16,
                num_hidden_layers=2, num_attention_heads=2, intermediate_size=24,
                max_position_embeddings=32, num_labels=2,
            )
        )  # fmt: skip
        for parameter in model.parameters():
            if parameter.dim() > 1:
                nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder / "model")
    word_tokenizer.save_pretrained(folder / "model")
    (folder / "data").mkdir()
    write_rows(folder / "data" / "train.tsv", TRAIN, seed=1)
    write_rows(folder / "data" / "validation.tsv", QUERIES, seed=2)
    task = lf.load_task(str(folder / "data"), text="sentence", label="label", kind="classification")
    return Case(folder / "model", task, folder, {"shared": True})


def test_a_module_that_is_used_twice(shared: Case) -> None:
    """Pairwise scores: kronfluence counts the last use only. Its self-influence is right."""
    factors, brute, peer = shared.factors("ekfac"), shared.brute("ekfac"), shared.peer("ekfac")
    exact = pairwise_scores(brute, shared.gradients("queries"), shared.gradients("train"))
    total = torch.stack([*exact.values()]).sum(0)
    ours = lf.influence(factors, query_rows=QUERIES, per_module=True)
    assert error(ours.values.copy(), total) < LIMIT
    theirs = peer.scores(shared.queries, compute_per_module_scores=True)
    assert ours.modules is not None
    twice = {name for name in factors.layers if ".albert_layer_groups." in name}
    assert len(twice) == 6
    for name, table in ours.modules.items():
        mine = table.to_numpy().T.copy()
        assert error(mine, exact[name]) < LIMIT
        assert (error(theirs[name], exact[name]) > 0.05) == (name in twice)

    alone = torch.stack([*self_scores(brute, shared.gradients("train")).values()]).sum(0)
    assert error(lf.self_influence(factors).values.copy(), alone) < LIMIT
    assert error(peer.self_scores(), alone) < LIMIT


def test_factors_of_a_module_that_is_used_twice(shared: Case) -> None:
    ours, theirs, brute = (
        shared.factors("ekfac"), shared.peer("ekfac").factors(), shared.brute("ekfac")
    )  # fmt: skip
    for name in ours.layers:
        count = int(theirs["num_gradient_covariance_processed"][name])
        assert count == brute[name].rows
        peers = theirs["gradient_covariance"][name] / count
        assert error(ours.gradient_covariance(name), peers) < LIMIT
        assert error(ours.gradient_covariance(name), brute[name].s) < LIMIT
        assert error(ours.activation_covariance(name), brute[name].a) < LIMIT


@pytest.fixture(scope="module")
def tagger(tmp_path_factory: Any, save_checkpoint: Any) -> Case:
    """Token classification in which the first half of every text carries no label."""
    folder: Path = tmp_path_factory.mktemp("tagger")
    names = {"id2label": {0: "a", 1: "b", 2: "c"}, "label2id": {"a": 0, "b": 1, "c": 2}}
    checkpoint = save_checkpoint(folder / "model", kind="token-classification", **names)
    generator = np.random.default_rng(0)
    splits = {}
    for split, rows in (("train", TRAIN), ("validation", QUERIES)):
        texts = [
            [f"w{i}" for i in generator.integers(0, 40, generator.integers(2, 12))]
            for _ in range(rows)
        ]
        tags = [
            [-100] * (len(words) // 2)
            + generator.integers(0, 3, len(words) - len(words) // 2).tolist()
            for words in texts
        ]
        splits[split] = pd.DataFrame({"text": pd.Series(texts), "label": pd.Series(tags)})
    task = lf.load_task(
        splits, text="text", label="label", kind="token-classification", name="tagger",
        label_names=("a", "b", "c"),
    )  # fmt: skip
    return Case(checkpoint, task, folder, {})


def test_labels_that_are_masked(tagger: Case) -> None:
    """With the mask of padding both are right: a text's tokens count, labelled or not.

    Told to count labelled positions only (`mask="labels"`), kronfluence leaves the others out of
    the activation covariance and out of the count of the gradient covariance, but not out of its
    sum: the gradients of unlabelled tokens, which attention makes non-zero, stay in.
    """
    ours, brute = tagger.factors("ekfac"), tagger.brute("ekfac")
    masked = Peer(
        tagger.session.model, tagger.objective, tagger.train, tagger.folder / "labels",
        layers=ours.layers, mask="labels",
    ).factors()  # fmt: skip
    theirs = tagger.peer("ekfac").factors()
    labelled = sum(int((batch.labels >= 0).sum()) for batch in tagger.train)
    tokens = sum(int(batch.inputs["attention_mask"].sum()) for batch in tagger.train)
    assert labelled < 0.6 * tokens
    for name in ours.layers:
        assert error(ours.activation_covariance(name), brute[name].a) < LIMIT
        assert error(ours.gradient_covariance(name), brute[name].s) < LIMIT
        assert brute[name].rows == tokens == int(theirs["num_gradient_covariance_processed"][name])
        assert error(theirs["gradient_covariance"][name] / tokens, brute[name].s) < LIMIT
        # told of labels: the sum is over all tokens, the count over those with a label
        assert int(masked["num_gradient_covariance_processed"][name]) == labelled
        assert error(masked["gradient_covariance"][name] / tokens, brute[name].s) < LIMIT
        assert error(masked["gradient_covariance"][name] / labelled, brute[name].s) > 0.3
        assert float(masked["activation_covariance"][name][-1, -1]) == labelled  # bias: its 1s

    exact = pairwise_scores(brute, tagger.gradients("queries"), tagger.gradients("train"))
    total = torch.stack([*exact.values()]).sum(0)
    found = lf.influence(ours, query_rows=QUERIES).values.copy()
    assert error(found, total) < LIMIT
    assert error(tagger.peer("ekfac").scores(tagger.queries)["all_modules"], total) < LIMIT
