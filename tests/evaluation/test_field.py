"""Loss and gradient at a point, against autograd on the whole data set in float64."""

import numpy as np
import pytest
import torch

import landform as lf
from landform.errors import NonFiniteError
from landform.evaluation.field import Field
from landform.evaluation.points import Data, PointsConfig, PointsWork
from landform.weights.checkpoint import resolve
from landform.weights.points import Vertex


@pytest.fixture
def task(tmp_path, write_rows):
    return lf.load_task(
        {"validation": str(write_rows(tmp_path / "dev.tsv", 23))}, text="sentence", label="label"
    )


@pytest.fixture
def open_field(tmp_path, save_checkpoint, task):
    path = save_checkpoint(tmp_path / "a")

    def open_(made=(), **options):
        config = PointsConfig(**{"dtype": "float64", **options})
        work = PointsWork((resolve(path),), (Data(task, "validation"),), config, tuple(made))
        return Field(work())

    return open_


def brute_force(field):
    """Mean loss of single, unpadded rows, by autograd on the flat vector."""
    flat = field.flat.clone().requires_grad_(True)
    total = torch.zeros((), dtype=torch.float64)
    for row in field.data.encoded.rows:
        inputs = {k: torch.tensor([v]) for k, v in row.items() if k != "labels"}
        logits = field.space.call(field.bound.model, flat, **inputs).logits
        total = total + torch.nn.functional.cross_entropy(logits, torch.tensor([row["labels"]]))
    mean = total / field.size
    return mean.item(), torch.autograd.grad(mean, flat)[0]


@pytest.mark.parametrize("budget", [1, 30, 4096])
def test_loss_and_gradient_are_those_of_single_rows(open_field, budget):
    field = open_field(token_budget=budget)
    loss, gradient = brute_force(field)
    found, slope = field.gradient()
    assert found == pytest.approx(loss, abs=1e-12)
    assert field.loss() == pytest.approx(loss, abs=1e-12)
    torch.testing.assert_close(slope, gradient, rtol=1e-9, atol=1e-12)
    # A second call starts from nothing.
    torch.testing.assert_close(field.gradient()[1], gradient, rtol=1e-9, atol=1e-12)


def test_it_follows_the_model_when_that_is_moved(open_field):
    field = open_field()
    start = field.flat.clone()
    before, slope = field.gradient()
    step = 1e-4 * slope / slope.norm()
    expected = float(slope @ step)
    field.flat.copy_(start + step)
    assert field.loss() - before == pytest.approx(expected, rel=1e-2)


def test_batches_of_chosen_rows(open_field):
    field = open_field(token_budget=25)
    rows = np.array([5, 2, 19, 2])
    whole = {i: field.loss(field.batches([i])) for i in set(rows.tolist())}
    assert field.loss(field.batches(rows)) == pytest.approx(np.mean([whole[i] for i in rows]))
    assert field.evaluations == pytest.approx((3 + 4) / 23)


def test_dropout_only_when_asked_for(open_field, monkeypatch):
    field = open_field()
    assert field.loss() == field.loss()
    noisy = Field(field.worker, dropout=True)
    assert noisy.loss() != noisy.loss()


def test_a_loss_that_is_no_number_is_an_error(open_field):
    field = open_field()
    field.flat.mul_(float("inf"))
    with pytest.raises(NonFiniteError, match="dev"):
        field.loss()


def test_a_vertex_takes_part_in_mixes(open_field):
    field = open_field()
    values = torch.randn(field.space.numel, dtype=torch.float64)
    vertex = Vertex("bend", field.space, values)
    worker = open_field(made=[vertex]).worker
    torch.testing.assert_close(worker.point(vertex.fingerprint), values)
    worker._move([worker.point(vertex.fingerprint), field.flat, values], [0.25, 0.5, 0.25])
    torch.testing.assert_close(worker.bound.flat, 0.5 * values + 0.5 * field.flat)
