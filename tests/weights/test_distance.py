import json
import math

import numpy as np
import pytest
import torch

from landform.errors import CheckpointError, SpaceMismatchError
from landform.weights.distance import distance, euclidean, gram, off_line
from landform.weights.space import ParameterSpace


@pytest.fixture
def pair(tmp_path, save_checkpoint):
    return [save_checkpoint(tmp_path / f"s{i}", seed=i) for i in (1, 2)]


def test_against_the_definition(pair, tiny_model):
    a, b = (
        ParameterSpace.of(m).flatten(m).double()
        for m in (tiny_model(seed=s, dtype=torch.float32) for s in (1, 2))
    )
    result = distance(*map(str, pair))
    assert result.l2 == pytest.approx(float((a - b).norm()), rel=1e-12)
    assert result.rms == pytest.approx(float((a - b).square().mean().sqrt()), rel=1e-12)
    assert result.cosine == pytest.approx(float(a @ b / a.norm() / b.norm()), rel=1e-12)
    assert result.parameters == a.numel()
    assert json.dumps(result.to_json())


@pytest.mark.parametrize("by", ["tensor", "sublayer", "layer", "block", "head"])
def test_groups_add_up(pair, by):
    result = distance(*map(str, pair), by=by)
    assert math.sqrt((result.table.l2**2).sum()) == pytest.approx(result.l2, rel=1e-12)
    assert result.table.parameters.sum() == result.parameters


def test_cosine_from_an_origin(tmp_path, pair, save_checkpoint, tiny_model):
    origin = save_checkpoint(tmp_path / "origin", seed=3)
    o, a, b = (
        ParameterSpace.of(m).flatten(m).double()
        for m in (tiny_model(seed=s, dtype=torch.float32) for s in (3, 1, 2))
    )
    result = distance(*map(str, pair), origin=str(origin))
    assert result.cosine == pytest.approx(
        float((a - o) @ (b - o) / (a - o).norm() / (b - o).norm())
    )


def test_a_model_is_at_distance_zero_from_itself(pair):
    result = distance(str(pair[0]), str(pair[0]))
    assert result.l2 == 0 and result.cosine == pytest.approx(1)


def test_float64_accumulation():
    # 2^20 differences of 1e-4 around weights of 1: float32 sums would lose digits.
    a = torch.ones(1 << 20)
    b = a + 1e-4
    exact = math.sqrt(sum([float(b[0] - a[0]) ** 2] * (1 << 20)))
    assert euclidean(a, b) == pytest.approx(exact, rel=1e-9)


def test_other_architecture_and_missing(tmp_path, pair, save_checkpoint):
    other = save_checkpoint(tmp_path / "wide", num_labels=3)
    with pytest.raises(SpaceMismatchError, match=r"classifier"):
        distance(str(pair[0]), str(other))
    with pytest.raises(CheckpointError):
        distance(str(pair[0]), str(tmp_path / "none"))


def test_origin_saved_with_another_head(tmp_path, pair, tiny_model, word_tokenizer):
    """The pre-trained model is a bare encoder or a masked LM: its head is not the classifier's."""
    base = tiny_model(seed=3, dtype=torch.float32)
    base.bert.save_pretrained(tmp_path / "base")
    a, b = (tiny_model(seed=s, dtype=torch.float32) for s in (1, 2))
    space = ParameterSpace.of(a)
    o = space.flatten(base).double()
    for name, view in space.unflatten(o.float()).items():
        if name.startswith("classifier"):
            start = space.offsets[space.names.index(name)]
            o[start : start + view.numel()] = 0  # what the origin lacks counts from zero
    x, y = space.flatten(a).double() - o, space.flatten(b).double() - o
    result = distance(*map(str, pair), origin=str(tmp_path / "base"))
    assert result.cosine == pytest.approx(float(x @ y / x.norm() / y.norm()), rel=1e-10)


def test_inner_products_against_numpy():
    """More entries than one block has, and vectors so close to a line that products lose it."""
    generator = torch.Generator().manual_seed(0)
    o, a, b = (torch.randn(600_001, generator=generator) for _ in range(3))
    exact = [x.double().numpy() for x in (o, a, b)]
    differences = np.stack([exact[1] - exact[0], exact[2] - exact[0]])
    np.testing.assert_allclose(gram([a, b], origin=o), differences @ differences.T, rtol=1e-12)
    np.testing.assert_allclose(gram([o, a, b]), np.stack(exact) @ np.stack(exact).T, rtol=1e-12)
    far = differences[1] - 0.3 * differences[0]
    assert off_line(o, a, b, 0.3) == pytest.approx(np.linalg.norm(far), rel=1e-12)
    near = (o + 0.3 * (a.double() - o) + 1e-9 * b).double()
    assert off_line(o.double(), a.double(), near, 0.3) == pytest.approx(
        1e-9 * float(b.double().norm()), rel=1e-5
    )
