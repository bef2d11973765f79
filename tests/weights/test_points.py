"""Members of mixes that are not checkpoints: vertices and random directions."""

import pickle

import numpy as np
import pytest
import torch

from landform.errors import SpaceMismatchError
from landform.weights.checkpoint import resolve
from landform.weights.points import Direction, Vertex, random_direction
from landform.weights.space import ParameterSpace


@pytest.fixture
def model(tiny_model):
    return tiny_model(dtype=torch.float64)


def test_filters_have_the_length_of_those_of_the_point(model):
    space = ParameterSpace.of(model)
    point = space.flatten(model)
    direction = space.unflatten(random_direction(space, point, 3))
    for name, tensor in space.unflatten(point).items():
        drawn = direction[name]
        if tensor.dim() == 1:
            assert not drawn.any(), name
        else:
            torch.testing.assert_close(drawn.norm(dim=1), tensor.norm(dim=1))
            # Every filter is scaled by itself: a direction scaled as one whole tensor is not this.
            assert torch.nn.functional.cosine_similarity(drawn, tensor).abs().max() < 0.95


def test_filters_of_gpt2_are_columns(tmp_path):
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(vocab_size=11, n_positions=8, n_embd=8, n_layer=1, n_head=2, n_inner=12)
    model = GPT2LMHeadModel(config)
    model.save_pretrained(tmp_path / "gpt2")
    space = ParameterSpace.of(model)
    point = space.flatten(model)
    direction = space.unflatten(
        Direction(resolve(tmp_path / "gpt2"), 3).flat(space, lambda _: point)
    )
    for name, tensor in space.unflatten(point).items():
        if tensor.dim() > 1:
            # Conv1D keeps its matrix as (in, out): what one output unit reads is a column.
            axis = 1 if name.startswith(("transformer.wte", "transformer.wpe")) else 0
            torch.testing.assert_close(direction[name].norm(dim=axis), tensor.norm(dim=axis))


def test_tensors_and_nothing_normalised(model):
    space = ParameterSpace.of(model)
    point = space.flatten(model)
    whole = space.unflatten(random_direction(space, point, 3, normalise="tensor", one_axis=True))
    raw = space.unflatten(random_direction(space, point, 3, normalise="none"))
    name = space.names[0]
    there = space.unflatten(point)
    torch.testing.assert_close(whole[name].norm(), there[name].norm())
    assert not torch.allclose(whole[name].norm(dim=1), there[name].norm(dim=1))
    bias = next(n for n, s in zip(space.names, space.shapes, strict=True) if len(s) == 1)
    torch.testing.assert_close(whole[bias].norm(), there[bias].norm())
    assert abs(float(raw[name].std()) - 1) < 0.1 and not raw[bias].any()


def test_one_seed_is_one_direction_whatever_the_number_format(model):
    space = ParameterSpace.of(model)
    point = space.flatten(model)
    small = ParameterSpace(space.names, space.shapes, torch.float32)
    a = random_direction(space, point, 5)
    b = random_direction(small, point.float(), 5)
    torch.testing.assert_close(a.float(), b, rtol=1e-5, atol=1e-7)
    assert not torch.allclose(a, random_direction(space, point, 6))


def test_fingerprints_follow_what_decides_the_vector(tmp_path, save_checkpoint, model):
    around = resolve(save_checkpoint(tmp_path / "a"))
    other = resolve(save_checkpoint(tmp_path / "b", seed=1))
    keys = {
        d.fingerprint
        for d in (
            Direction(around, 0),
            Direction(around, 1),
            Direction(other, 0),
            Direction(around, 0, "tensor"),
            Direction(around, 0, one_axis=True),
        )
    }
    assert len(keys) == 5
    space = ParameterSpace.of(model)
    values = torch.arange(space.numel, dtype=torch.float32)
    moved = values.clone()
    moved[7] += 1
    vertex = Vertex("bend", space, values)
    assert vertex.fingerprint != Vertex("bend", space, moved).fingerprint
    assert vertex.fingerprint == Vertex("other name", space, values.clone()).fingerprint
    again = pickle.loads(pickle.dumps(vertex))
    assert again.fingerprint == vertex.fingerprint
    np.testing.assert_array_equal(again.flat(space, lambda key: values), values)


def test_a_vertex_of_another_space_is_refused(model):
    space = ParameterSpace.of(model)
    part = space.subspace(["classifier.*"])
    vertex = Vertex("bend 1", part, torch.zeros(part.numel))
    with pytest.raises(SpaceMismatchError, match="bend 1"):
        vertex.flat(space, lambda key: torch.zeros(0))
