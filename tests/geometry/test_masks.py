"""Masks against selections made by sorting, one rule at a time; what is left of a direction."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fishers import make_fisher
from landform.errors import ConfigError, CurvatureError, NonFiniteError
from landform.geometry.masks import Mask, _lowest, masks_of, measure
from landform.geometry.surface import SurfaceConfig
from landform.weights.checkpoint import resolve
from landform.weights.points import Direction, MaskedDirection, moved_tensors, random_direction
from landform.weights.space import ParameterSpace


@pytest.fixture(scope="module")
def model(tiny_model):
    return tiny_model(dtype=torch.float64)


@pytest.fixture(scope="module")
def space(model):
    return ParameterSpace.of(model)


@pytest.fixture(scope="module")
def fisher(model):
    """Norms high, as in trained models; some entries exactly 0."""
    made = make_fisher(model, seed=3)
    diagonal = {n: v.float() * (20 if "LayerNorm" in n else 1) for n, v in made.diagonal.items()}
    first = next(iter(diagonal))
    diagonal[first][5:9] = 0
    return make_fisher(diagonal)


def chosen(mask, space):
    """{tensor: entries that the mask keeps}, flat."""
    kept = space.unflatten(mask.keep(space))
    return {name: value.reshape(-1).numpy() for name, value in kept.items()}


def by_sorting(values, share, top):
    """Which are chosen, by a stable sort of (value, place)."""
    order = sorted(range(len(values)), key=lambda i: (values[i], i))
    count = int(share * len(values) + 1e-9)
    picked = set(order[len(values) - count :] if top else order[:count])
    return np.array([i in picked for i in range(len(values))])


# --- which entries ------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.5, 0.2])
@pytest.mark.parametrize("kind", ["fisher-top", "fisher-bottom"])
@pytest.mark.parametrize("by", ["tensor", "matrix"])
def test_tensors_by_mean_fisher(space, fisher, kind, by, share):
    names = space.names if by == "tensor" else moved_tensors(space)
    means = [float(fisher.diagonal[name].double().mean()) for name in names]
    picked = dict(zip(names, by_sorting(means, share, kind == "fisher-top"), strict=True))
    found = chosen(Mask(kind, by, share, fisher=fisher), space)
    assert sum(picked.values()) == int(share * len(names))
    for name, value in found.items():
        assert value.all() == value.any() == picked.get(name, False), name


@pytest.mark.parametrize("one_axis", [False, True], ids=["matrices", "all"])
@pytest.mark.parametrize("kind", ["fisher-top", "fisher-bottom"])
def test_entries_over_the_whole_model(space, fisher, kind, one_axis):
    names = moved_tensors(space, one_axis)
    values = np.concatenate([fisher.diagonal[name].reshape(-1).numpy() for name in names])
    expected = by_sorting(values, 0.3, kind == "fisher-top")
    found = chosen(Mask(kind, "entry", 0.3, one_axis, fisher=fisher), space)
    np.testing.assert_array_equal(np.concatenate([found[name] for name in names]), expected)
    assert not any(found[name].any() for name in set(space.names) - set(names))


@pytest.mark.parametrize("kind", ["fisher-top", "fisher-bottom", "random"])
def test_entries_within_every_tensor(space, fisher, kind):
    found = chosen(Mask(kind, "entry-per-tensor", 0.25, fisher=fisher), space)
    for name in moved_tensors(space):
        values = fisher.diagonal[name].reshape(-1).numpy()
        assert found[name].sum() == int(0.25 * len(values))
        if kind != "random":
            expected = by_sorting(values, 0.25, kind == "fisher-top")
            np.testing.assert_array_equal(found[name], expected)


@pytest.mark.parametrize("by", ["tensor", "matrix", "entry", "entry-per-tensor"])
def test_halves_do_not_overlap_and_random_has_their_count(space, fisher, by):
    top, bottom, one, other = (
        Mask(kind, by, 0.5, fisher=fisher, seed=seed).keep(space)
        for kind, seed in (
            ("fisher-top", 0), ("fisher-bottom", 0), ("random", 1), ("random", 2),
        )
    )  # fmt: skip
    assert not (top & bottom).any()
    assert not torch.equal(one, other)
    if by in ("tensor", "matrix"):
        counts = [sum(bool(v.any()) for v in space.unflatten(m).values()) for m in (top, one)]
    else:
        counts = [int(m.sum()) for m in (top, one)]
    assert counts[0] == counts[1] and not torch.equal(top, one)
    whole = Mask("fisher-top", by, 1.0, fisher=fisher).keep(space)
    names = space.names if by == "tensor" else moved_tensors(space)
    assert int(whole.sum()) == sum(fisher.diagonal[name].numel() for name in names)


def test_ties_go_by_place(space):
    flat = make_fisher({n: torch.ones(s) for n, s in zip(space.names, space.shapes, strict=True)})
    top, bottom = (
        chosen(Mask(kind, "tensor", fisher=flat), space) for kind in ("fisher-top", "fisher-bottom")
    )
    half = len(space.names) // 2
    assert [n for n in space.names if bottom[n].any()] == list(space.names[:half])
    assert [n for n in space.names if top[n].any()] == list(space.names[-half:])


@given(
    st.lists(st.sampled_from([0.0, 1.0, 1.5, 2.0, 7.0]), min_size=1, max_size=30),
    st.integers(0, 30),
)
def test_the_lowest_of_many(values, count):
    count = min(count, len(values))
    order = sorted(range(len(values)), key=lambda i: (values[i], i))
    expected = np.isin(np.arange(len(values)), order[:count])
    np.testing.assert_array_equal(_lowest(np.array(values), count), expected)


def test_a_random_mask_is_the_same_anywhere(space):
    single = ParameterSpace(space.names, space.shapes, torch.float32)
    for by in ("tensor", "entry"):
        mask = Mask("random", by, 0.5, seed=4)
        assert torch.equal(mask.keep(space), mask.keep(single))


# --- what is left of a direction ----------------------------------------------------------------


def member(around, mask, match_norm=False, seed=5, one_axis=False):
    return MaskedDirection(Direction(around, seed, "filter", one_axis), mask, match_norm)


@pytest.fixture(scope="module")
def around(tmp_path_factory, save_checkpoint):
    return resolve(save_checkpoint(tmp_path_factory.mktemp("around") / "a"))


def test_a_masked_direction_is_the_whole_one_with_zeros(space, model, fisher, around):
    point = space.flatten(model)
    whole = random_direction(space, point, 5)
    mask = Mask("fisher-top", "entry", 0.4, fisher=fisher)
    kept = mask.keep(space)
    flat = member(around, mask).flat(space, lambda _: point)
    torch.testing.assert_close(flat[kept], whole[kept], rtol=0, atol=0)
    assert not flat[~kept].any()
    matched = member(around, mask, match_norm=True).flat(space, lambda _: point)
    torch.testing.assert_close(matched.norm(), whole.norm())
    torch.testing.assert_close(matched / matched.norm(), flat / flat.norm())
    # A row that is not masked has the norm of the row of the weights.
    rows = Mask("fisher-bottom", "matrix", 0.5, fisher=fisher)
    there = space.unflatten(member(around, rows).flat(space, lambda _: point))
    for name, tensor in space.unflatten(point).items():
        if there[name].any():
            torch.testing.assert_close(there[name].norm(dim=1), tensor.norm(dim=1))


@pytest.mark.parametrize("match_norm", [False, True], ids=["as left", "matched"])
def test_what_is_measured(space, model, fisher, around, match_norm):
    point = space.flatten(model)
    mask = Mask("fisher-top", "tensor", fisher=fisher)
    made = member(around, mask, match_norm)
    said = measure(made, space, lambda _: point)
    flat, whole = made.flat(space, lambda _: point), random_direction(space, point, 5)
    kept = chosen(mask, space)
    matrices, vectors = (
        [n for n, s in zip(space.names, space.shapes, strict=True) if kept[n].any() and len(s) > 1],
        [n for n, s in zip(space.names, space.shapes, strict=True) if kept[n].any() and len(s) < 2],
    )
    assert said["entries"] == sum(kept[n].size for n in matrices) == int((flat != 0).sum())
    assert said["of"] == space.numel and said["movable"] == int((whole != 0).sum())
    assert said["vectors"] == len(vectors) > len(matrices) > 0  # the confound: few entries move
    assert said["still"] == sum(kept[n].size for n in vectors)
    assert said["tensors"] == len(vectors) + len(matrices) == len(space.names) // 2
    assert said["norm"] == pytest.approx(float(flat.norm()), rel=1e-12)
    assert said["whole_norm"] == pytest.approx(float(whole.norm()), rel=1e-12)
    assert said["masked_norm"] <= said["whole_norm"]
    zeros = [int((fisher.diagonal[n] == 0).sum()) for n in matrices]
    assert said["unseen"] == sum(zeros)
    control = Mask("random", "entry", said["control_share"], seed=1).keep(space)
    assert int(control.sum()) == said["entries"]
    lengths = [
        float(whole[Mask("random", "entry", said["control_share"], seed=s).keep(space)].norm())
        for s in range(8)
    ]
    assert np.sqrt(np.mean(np.square(lengths))) == pytest.approx(said["control_norm"], rel=0.05)


def test_vectors_move_on_request(space, model, fisher, around):
    point = space.flatten(model)
    mask = Mask("fisher-top", "tensor", one_axis=True, fisher=fisher)
    said = measure(member(around, mask, one_axis=True), space, lambda _: point)
    assert said["still"] == 0 and said["vectors"] > 0
    flat = member(around, mask, one_axis=True).flat(space, lambda _: point)
    moved = {n for n, v in space.unflatten(flat).items() if v.any()}
    nonzero = {n for n, v in space.unflatten(point).items() if v.any()}  # a bias of 0 has no scale
    assert moved == {n for n, v in chosen(mask, space).items() if v.any()} & nonzero


def test_fingerprints_follow_the_rule_and_the_values(space, fisher, around):
    other = make_fisher({n: v + 1 for n, v in fisher.diagonal.items()})
    masks = [
        Mask("fisher-top", fisher=fisher),
        Mask("fisher-top", fisher=other),
        Mask("fisher-bottom", fisher=fisher),
        Mask("fisher-top", "entry", fisher=fisher),
        Mask("fisher-top", "entry", one_axis=True, fisher=fisher),
        Mask("fisher-top", share=0.4, fisher=fisher),
        Mask("random", seed=1),
        Mask("random", seed=2),
    ]
    keys = {
        member(around, mask, matched).fingerprint for mask in masks for matched in (False, True)
    }
    assert len(keys) == 16 and Direction(around, 5).fingerprint not in keys
    keyed = Mask("fisher-top", fisher=fisher, key=fisher.fingerprint)
    assert masks[0].fingerprint == keyed.fingerprint


# --- what is refused ----------------------------------------------------------------------------


def test_a_fisher_of_another_model(around, model):
    own = make_fisher(model, weights=around.fingerprint)
    own.check_weights(around)
    other = make_fisher(model, checkpoint="runs/other", weights="f" * 64)
    with pytest.raises(CurvatureError, match=r"(?s)of runs/other.*ffffffffffff.*not of .*/a"):
        other.check_weights(around)
    other.check_weights(around, elsewhere=True)
    make_fisher(model, weights=None).check_weights(around)
    config = SurfaceConfig(mask=("fisher-top",))
    with pytest.raises(CurvatureError, match=r"(?s)runs/other.*fisher_elsewhere"):
        masks_of(around, config, other, 0)
    with pytest.raises(ConfigError, match=r"(?s)there is none \(option fisher\).*landform fisher"):
        masks_of(around, config, None, 0)


def test_a_fisher_of_another_shape(space, model, tiny_model):
    wide = make_fisher(tiny_model(vocab_size=50))
    with pytest.raises(CurvatureError, match=r"word_embeddings.weight as \(50, 16\)"):
        Mask("fisher-top", fisher=wide).keep(space)
    part = make_fisher({n: v for n, v in make_fisher(model).diagonal.items() if "layer.1" not in n})
    with pytest.raises(CurvatureError, match=r"has no tensor .*layer\.1"):
        Mask("fisher-bottom", "entry", fisher=part).keep(space)
    spoiled = make_fisher(model)
    spoiled.diagonal[space.names[0]][0, 0] = float("nan")
    with pytest.raises(NonFiniteError, match=r"NaN or infinity in .*word_embeddings"):
        Mask("fisher-top", fisher=spoiled).keep(space)


def test_masks_that_leave_nothing(space, model, fisher, around):
    point = space.flatten(model)
    vectors = {n: v * (1 if v.dim() > 1 else 1e6) for n, v in fisher.diagonal.items()}
    mask = Mask("fisher-top", "tensor", 0.2, fisher=make_fisher(vectors))
    with pytest.raises(ConfigError, match=r"(?s)leaves nothing of a direction.*one_axis"):
        member(around, mask).flat(space, lambda _: point)
    for by in ("tensor", "entry", "entry-per-tensor"):
        with pytest.raises(ConfigError, match=r"mask_share: 1e-06 of .* is none"):
            Mask("fisher-top", by, 1e-6, fisher=fisher).keep(space)
