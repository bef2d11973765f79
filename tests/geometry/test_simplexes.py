"""Volumes, cliques, and complexes of low loss."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import landform as lf
from landform.errors import ConfigError, NonFiniteError, SpaceMismatchError, StoreError
from landform.geometry.descent import Descent
from landform.geometry.simplexes import ComplexConfig, ComplexShape, FittedComplex, fit_complex
from landform.geometry.volumes import log_volume, maximal_cliques, simplex_volume, total_volume


def squared(points):
    points = np.asarray(points, dtype=float)
    return ((points[:, None] - points[None]) ** 2).sum(-1)


# --- volumes ------------------------------------------------------------------------------------


def test_known_volumes():
    assert simplex_volume(squared([[0, 0], [3, 4]])) == pytest.approx(5)
    assert simplex_volume(squared([[0, 0], [3, 0], [0, 4]])) == pytest.approx(6)
    corner = [[0, 0, 0], [1, 0, 0], [0, 2, 0], [0, 0, 3]]
    assert simplex_volume(squared(corner)) == pytest.approx(1)
    regular = np.ones((4, 4)) - np.eye(4)
    assert simplex_volume(regular) == pytest.approx(math.sqrt(2) / 12)
    assert simplex_volume(squared([[0, 0], [1, 1], [2, 2]])) == pytest.approx(0, abs=1e-7)
    with pytest.raises(ConfigError, match="squared distances"):
        simplex_volume(np.zeros((2, 3)))


@given(m=st.integers(2, 6), seed=st.integers(0, 1000))
def test_against_the_gram_determinant(m, seed):
    """V = sqrt(det(E E^T)) / (m - 1)!, E the edges from one vertex: another derivation."""
    points = np.random.default_rng(seed).normal(size=(m, 9))
    edges = points[1:] - points[0]
    expected = math.sqrt(np.linalg.det(edges @ edges.T)) / math.factorial(m - 1)
    assert simplex_volume(squared(points)) == pytest.approx(expected, rel=1e-8)


@pytest.mark.parametrize("squares", [False, True])
def test_total_is_over_the_largest_cliques(squares):
    points = np.random.default_rng(0).normal(size=(5, 8))
    cliques = [(0, 1, 2), (1, 2, 3), (3, 4)]
    parts = [simplex_volume(squared(points[list(c)])) for c in cliques[:2]]
    expected = sum(v**2 if squares else v for v in parts)
    assert total_volume(squared(points), cliques, squares=squares) == pytest.approx(expected)


@pytest.mark.parametrize("squares", [False, True])
@pytest.mark.parametrize("cliques", [[(0, 1), (1, 2), (2, 3)], [(0, 1, 2), (0, 2, 3)]])
def test_gradient_of_the_log_volume_against_autograd_on_the_vectors(squares, cliques):
    w = torch.randn(4, 11, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    w.requires_grad_(True)
    total = torch.zeros((), dtype=torch.float64)
    for clique in cliques:
        points = w[list(clique)]
        edges = points[1:] - points[0]
        square = torch.linalg.det(edges @ edges.T) / math.factorial(len(clique) - 1) ** 2
        total = total + (square if squares else square.sqrt())
    expected = torch.log(total + 1e-4)
    (slope,) = torch.autograd.grad(expected, w)
    distances = squared(w.detach().numpy())
    volume, value, coefficients = log_volume(distances, cliques, squares=squares)
    assert volume == pytest.approx(total.item()) and value == pytest.approx(expected.item())
    np.testing.assert_allclose(coefficients @ w.detach().numpy(), slope.numpy(), atol=1e-9)


def test_a_flat_simplex_pulls_nowhere():
    _, value, coefficients = log_volume(np.zeros((3, 3)), [(0, 1, 2)])
    assert value == pytest.approx(math.log(1e-4)) and not coefficients.any()


# --- cliques ------------------------------------------------------------------------------------


@given(n=st.integers(1, 7), seed=st.integers(0, 500))
def test_cliques_against_all_subsets(n, seed):
    matrix = np.triu(np.random.default_rng(seed).random((n, n)) < 0.6, 1)
    matrix = matrix | matrix.T
    subsets = [[v for v in range(n) if mask >> v & 1] for mask in range(1, 1 << n)]
    cliques = {tuple(s) for s in subsets if all(matrix[i, j] for i in s for j in s if i != j)}
    expected = sorted(c for c in cliques if not any(set(c) < set(d) for d in cliques))
    assert list(maximal_cliques(matrix)) == expected


def test_connectors_link_everything_and_bases_stay_apart():
    shape = ComplexShape.of(3, 2)
    assert shape.cliques(0) == ((0, 3), (1, 3), (2, 3))
    assert shape.cliques(1) == ((0, 3, 4), (1, 3, 4), (2, 3, 4))
    np.testing.assert_allclose(shape.start(1), [[0.25] * 4])
    random = np.random.default_rng(0)
    drawn = np.array([shape.draw(random, 1) for _ in range(3000)])
    np.testing.assert_allclose(drawn.sum(1), 1)
    assert ((drawn[:, :3] > 0).sum(1) == 1).all()
    # Dirichlet(1, 1, 1) in a clique chosen among three: means 1/9, 1/9, 1/9, 1/3, 1/3.
    np.testing.assert_allclose(drawn.mean(0), [1 / 9] * 3 + [1 / 3] * 2, atol=0.02)


def test_an_adjacency_of_ones_own():
    ring = [[1, 0, 1, 1], [0, 1, 1, 1], [1, 1, 1, 0], [1, 1, 0, 1]]
    assert ComplexShape.of(2, 2, ring).cliques(1) == ((0, 2), (0, 3), (1, 2), (1, 3))
    with pytest.raises(ConfigError, match="expected 4 rows of 4"):
        ComplexShape.of(2, 2, np.eye(3))
    with pytest.raises(ConfigError, match="symmetric"):
        ComplexShape.of(2, 2, np.triu(np.ones((4, 4), dtype=int)))


# --- the loop on a formula ----------------------------------------------------------------------


class Valley:
    """5 (y - (1 - x^2))^2: (-1, 0) and (1, 0) lie in it, the line between them does not."""

    size = 1

    def __init__(self):
        self.flat = torch.zeros(2, dtype=torch.float64)

    def batches(self, rows):
        return rows

    def gradient(self, batches):
        x, y = self.flat.tolist()
        off = y - (1 - x * x)
        return 5 * off**2, 10 * off * torch.tensor([2 * x, 1.0], dtype=torch.float64)


def test_a_connector_finds_the_valley():
    fixed = [torch.tensor([-1.0, 0.0]).double(), torch.tensor([1.0, 0.0]).double()]
    config = ComplexConfig(connectors=1, steps=400, learning_rate=0.02, volume_weight=0.0)
    descent = Descent(Valley(), fixed, ComplexShape.of(2, 1), config)
    while descent.step < descent.total:
        descent.advance()
    x, y = descent.free[0].tolist()
    assert abs(x) < 0.1 and 0.9 < y < 1.6  # two straight edges under the top of the parabola
    assert descent.history[0]["loss"] > 0 and descent.history[-1]["learning_rate"] < 1e-4


def test_volume_weight_makes_it_larger():
    fixed = [torch.tensor([-1.0, 0.0]).double(), torch.tensor([1.0, 0.0]).double()]
    found = []
    for weight in (0.0, 0.5):
        config = ComplexConfig(connectors=1, steps=300, learning_rate=0.02, volume_weight=weight)
        descent = Descent(Valley(), fixed, ComplexShape.of(2, 1), config)
        while descent.step < descent.total:
            descent.advance()
        points = [*(p.numpy() for p in fixed), descent.free[0].numpy()]
        found.append(total_volume(squared(points), [(0, 2), (1, 2)]))
    assert found[1] > found[0] + 0.1


# --- complexes of models ------------------------------------------------------------------------


@pytest.fixture
def task(tmp_path, write_rows):
    files = {
        "train": str(write_rows(tmp_path / "train.tsv", 24)),
        "validation": str(write_rows(tmp_path / "dev.tsv", 12, seed=1)),
    }
    return lf.load_task(files, text="sentence", label="label", name="toy")


@pytest.fixture
def bases(tmp_path, save_checkpoint):
    return [save_checkpoint(tmp_path / f"s{i}", seed=i) for i in (1, 2, 3)]


QUICK = {"steps": 4, "batch_size": 8, "learning_rate": 1e-3, "dtype": "float64", "seed": 3}


def test_a_complex_fitted_evaluated_saved_and_loaded(tmp_path, bases, task):
    found = fit_complex(bases, task, connectors=2, samples_per_step=2, **QUICK)
    fit = found.fit
    assert fit.names == ("s1", "s2", "s3", "connector1", "connector2")
    assert fit.cliques == ((0, 3, 4), (1, 3, 4), (2, 3, 4))
    assert fit.history.step.tolist() == list(range(1, 9))
    assert fit.history.vertex.tolist() == ["connector1"] * 4 + ["connector2"] * 4
    assert (fit.history.volume >= 0).all()
    # A fresh optimizer and schedule for every vertex.
    np.testing.assert_allclose(fit.history.learning_rate[:4], fit.history.learning_rate[4:])
    space = found.vertices[0].space
    vectors = [space.flatten(lf.load_model(b)).double().numpy() for b in bases]
    vectors += [v.values.numpy() for v in found.vertices]
    triangles = [simplex_volume(squared([vectors[i] for i in c])) for c in fit.cliques]
    assert fit.volume == pytest.approx(sum(triangles), rel=1e-6)
    assert fit.volume_squared == pytest.approx(sum(v**2 for v in triangles), rel=1e-6)
    done = found.evaluate(task, samples=3)
    assert done.samples.groupby("clique").size().tolist() == [3, 3, 3]
    assert done.control.shape[0] == 3 and done.vertices.name.tolist() == list(fit.names)
    own = lf.evaluate(bases[1], task, dtype="float64").metrics["loss"]
    assert done.vertices.loss[1] == own
    assert "9 random points" in done.reading
    again = FittedComplex.load(found.save(tmp_path / "kept"))
    assert again.fit.cliques == fit.cliques and again.fit.adjacency == fit.adjacency
    assert again.evaluate(task, samples=3).samples.equals(done.samples)


def test_a_stopped_complex_goes_on_to_the_same(tmp_path, bases, task, monkeypatch):
    options = {**QUICK, "connectors": 2, "save_every": 3, "volume_weight": 1e-2}
    whole = fit_complex(bases[:2], task, **options)
    advance, count = Descent.advance, [0]

    def stop(self):
        count[0] += 1
        if count[0] == 6:  # in the second stage, beyond the states of steps 3 and 6
            raise KeyboardInterrupt
        return advance(self)

    monkeypatch.setattr(Descent, "advance", stop)
    with pytest.raises(KeyboardInterrupt):
        fit_complex(bases[:2], task, store=tmp_path / "study", **options)
    count[0] = -100
    rest = fit_complex(bases[:2], task, store=tmp_path / "study", **options)
    assert count[0] == -100 + 5  # from step 3
    for one, other in zip(whole.vertices, rest.vertices, strict=True):
        assert torch.equal(one.values, other.values)
    assert rest.fit.history.equals(whole.fit.history)


def test_a_simplex_around_one_checkpoint(bases, task):
    with pytest.raises(ConfigError, match="noise"):
        fit_complex(bases[:1], task, **QUICK)
    found = fit_complex(bases[:1], task, connectors=2, noise=0.01, **QUICK)
    assert found.fit.cliques == ((0, 1, 2),) and found.fit.volume > 0
    assert not len(found.evaluate(task, samples=2).control)


def test_bad_complexes(tmp_path, bases, task, save_checkpoint):
    with pytest.raises(ConfigError, match="no checkpoints"):
        fit_complex([], task)
    with pytest.raises(ConfigError, match="twice"):
        fit_complex([bases[0], bases[0]], task)
    twin = save_checkpoint(tmp_path / "twin", seed=1)
    with pytest.raises(ConfigError, match="same weights"):
        fit_complex([bases[0], twin], task, **QUICK)
    three = save_checkpoint(tmp_path / "three", num_labels=3)
    with pytest.raises(SpaceMismatchError, match="labels"):
        fit_complex([bases[0], three], task, **QUICK)
    with pytest.raises(ConfigError, match="connectors"):
        fit_complex(bases, task, connectors=0)
    with pytest.raises(NonFiniteError, match=r"step 2[\s\S]*lower learning_rate"):
        fit_complex(bases, task, **{**QUICK, "learning_rate": 1e300, "warmup_ratio": 0})
    found = fit_complex(bases[:2], task, **{**QUICK, "steps": 1})
    found.save(tmp_path / "kept")
    with pytest.raises(StoreError, match="other weights"):
        FittedComplex.load(tmp_path / "kept", [bases[0], bases[2]])
