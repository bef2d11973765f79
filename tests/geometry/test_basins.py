"""The choice of basins, on gaps whose division is known."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

from landform.errors import ConfigError, DataError
from landform.geometry.basins import cluster
from landform.results import from_parts, to_parts

WITHIN, CROSS = (0.004, 0.003), (0.07, 0.02)


def mirrored(square):
    upper = np.triu(square, 1)
    return upper + upper.T


def blocks(sizes, seed, within=WITHIN, cross=CROSS):
    """Gaps of groups of these sizes in random order, and the groups."""
    random = np.random.default_rng(seed)
    labels = random.permutation(np.repeat(range(len(sizes)), sizes))
    n = len(labels)
    small, large = (np.abs(random.normal(*size, size=(n, n))) for size in (within, cross))
    return mirrored(np.where(labels[:, None] == labels, small, large)), labels


def same_division(found, labels):
    pairs = set(zip(found.basins.tolist(), list(labels), strict=True))
    return len(pairs) == len(set(labels)) == found.n_basins


@pytest.mark.parametrize("floor", [None, 0.0, 0.002, 0.005, 0.01])
def test_the_published_shape_is_found_exactly(floor):
    """12 and 88 checkpoints, gaps .07 +- .02 across and .004 +- .003 within."""
    for seed in range(3):
        gaps, labels = blocks((12, 88), seed)
        found = cluster(gaps, noise_floor=floor)
        assert same_division(found, labels)
        assert found.basins.value_counts().to_dict() == {0: 88, 1: 12}
        assert found.confidence > 0.75
        assert found.method == "eigengap"


@pytest.mark.parametrize(
    "sizes", [(10, 8, 6), (4, 4), (2, 1), (2, 2), (5, 2, 1), (6, 1, 1), (1, 47), (2, 1, 1, 1, 1)]
)
@pytest.mark.parametrize("floor", [0.002, 0.01])
def test_other_divisions_and_basins_of_one(sizes, floor):
    for seed in range(4):
        gaps, labels = blocks(sizes, seed, cross=(0.07, 0.008))
        found = cluster(gaps, noise_floor=floor)
        assert same_division(found, labels), found.note
        assert found.silhouette > 0.8


@pytest.mark.parametrize("n", [2, 3, 4, 8, 25])
def test_large_unstructured_gaps_are_basins_of_one(n):
    for seed in range(5):
        gaps = mirrored(np.random.default_rng(seed).uniform(0.14, 0.34, (n, n)))
        found = cluster(gaps, noise_floor=0.01)
        assert found.n_basins == n, found.note
        assert found.confidence > 0.9
        assert found.basins.tolist() == list(range(n))
        assert "its own basin" in found.note


@pytest.mark.parametrize("n", [2, 3, 4, 8, 25])
def test_noise_is_one_basin(n):
    """Gaps spread as noise makes them: a few above the floor, which is their 95th percentile."""
    for seed in range(5):
        random = np.random.default_rng(seed)
        gaps = mirrored(0.01 / 1.75 * random.gamma(6, 1 / 6, (n, n)))
        found = cluster(gaps, noise_floor=0.01)
        assert found.n_basins == 1, found.note
        assert found.confidence > 0.8
        assert found.silhouette is None
        assert found.centroid_difference is None
        assert found.note.startswith("one basin")


@pytest.mark.parametrize("n", [2, 3, 10])
def test_constant_gaps(n):
    gaps = 1 - np.eye(n)
    assert cluster(0.2 * gaps, noise_floor=0.01).n_basins == n
    assert cluster(0.009 * gaps, noise_floor=0.01).n_basins == 1
    assert cluster(0.0 * gaps, noise_floor=0.01).n_basins == 1
    assert cluster(0.0 * gaps, noise_floor=0.0).n_basins == 1
    assert cluster(0.2 * gaps, noise_floor=0.0).n_basins == n


def test_the_floor_is_the_unit():
    gaps = mirrored(np.random.default_rng(0).uniform(0.14, 0.34, (6, 6)))
    assert cluster(gaps, noise_floor=0.4).n_basins == 1
    per_pair = np.full((6, 6), 0.01)
    per_pair[0, 1] = per_pair[1, 0] = 0.4  # this pair alone is within its noise
    found = cluster(gaps, noise_floor=per_pair)
    assert found.n_basins == 5
    assert found.basins[["0", "1"]].tolist() == [0, 0]


def test_one_checkpoint_and_identical_checkpoints():
    alone = cluster(np.zeros((1, 1)))
    assert alone.n_basins == 1 and alone.basins.tolist() == [0]
    gaps, labels = blocks((5, 3), 0)
    gaps = np.vstack([gaps, gaps[:1]])
    gaps = np.hstack([gaps, np.append(gaps[:, 0], 0.0)[:, None][: len(gaps)]])
    gaps[0, -1] = gaps[-1, 0] = gaps[-1, -1] = 0.0
    found = cluster(gaps, noise_floor=0.001)
    assert same_division(found, [*labels, labels[0]])


def test_a_cloud_without_groups_is_said_to_be_one():
    """Points spread over a square: whatever is chosen, it is not called clear."""
    doubtful = 0
    for seed in range(6):
        points = 0.2 * np.random.default_rng(seed).random((40, 2))
        gaps = np.linalg.norm(points[:, None] - points, axis=2)
        found = cluster(gaps, noise_floor=0.01)
        doubtful += found.confidence < 0.5
        assert ("low confidence" in found.note or "not clearly" in found.note) == (
            found.confidence < 0.5
        )
    assert doubtful == 6


def test_a_few_hard_pairs_do_not_move_members():
    gaps, labels = blocks((12, 20), 7)
    first, second = np.flatnonzero(labels == 0)[:2], np.flatnonzero(labels == 1)[:2]
    gaps[first[0], second[0]] = gaps[second[0], first[0]] = 0.004
    gaps[first[0], first[1]] = gaps[first[1], first[0]] = 0.05
    assert same_division(cluster(gaps, noise_floor=0.005), labels)


# --- numbering, centroids, result ----------------------------------------------------------------


def test_numbering_is_by_size_then_first_member():
    labels = np.array([1, 0, 0, 2, 2, 3, 3, 3])
    gaps = np.where(labels[:, None] == labels, 0.0, 0.2)
    found = cluster(pd.DataFrame(gaps, index=list("abcdefgh"), columns=list("abcdefgh")))
    assert found.names == tuple("abcdefgh")
    assert found.basins.to_dict() == dict(zip("abcdefgh", [3, 1, 1, 2, 2, 0, 0, 0], strict=True))


def test_order_of_checkpoints_does_not_matter():
    gaps, _ = blocks((7, 4, 2), 1)
    order = np.random.default_rng(0).permutation(13)
    first, second = cluster(gaps), cluster(gaps[np.ix_(order, order)])
    assert first.basins.to_numpy()[order].tolist() == second.basins.tolist()
    np.testing.assert_allclose(first.eigenvalues, second.eigenvalues, atol=1e-12)


def test_centroid_difference_is_positive_near_the_largest_basin():
    gaps, labels = blocks((4, 9), 2)
    found = cluster(gaps)
    assert same_division(found, labels)
    assert (found.centroid_difference > 0).tolist() == (found.basins == 0).tolist()
    centroids = found.embedding.groupby(found.basins.to_numpy()).mean()
    for basin in (0, 1):
        distance = np.linalg.norm(found.embedding - centroids.loc[basin].to_numpy(), axis=1)
        np.testing.assert_allclose(found.centroid_distances[f"basin_{basin}"], distance)
    np.testing.assert_allclose(
        found.centroid_difference,
        found.centroid_distances["basin_1"] - found.centroid_distances["basin_0"],
    )


def test_spectrum_by_hand():
    """Two checkpoints with affinity a: lambda = 0 and 1 - (1 - a) / (1 + a)."""
    found = cluster([[0.0, 0.3], [0.3, 0.0]], scale=0.3)
    a = np.exp(-0.5)
    assert found.eigenvalues == pytest.approx((0.0, 1 - (1 - a) / (1 + a)), abs=1e-12)
    assert found.n_basins == 1  # its eigengap is .76, that of two basins .24
    assert found.eigengap == pytest.approx(1 - (1 - a) / (1 + a))
    two = cluster([[0.0, 0.3], [0.3, 0.0]], scale=0.2)
    a = np.exp(-1.125)
    assert two.n_basins == 2
    assert two.eigengap == pytest.approx((1 - a) / (1 + a))
    # The first component of the embedding is constant.
    assert np.ptp(found.embedding["component_0"]) == pytest.approx(0.0, abs=1e-12)


def test_number_and_scale_as_asked():
    gaps, labels = blocks((10, 8, 6), 0)
    for k in (1, 2, 3, 24):
        found = cluster(gaps, n_basins=k)
        assert found.n_basins == found.basins.nunique() == k
        assert found.method == "given"
    assert same_division(cluster(gaps, n_basins=3), labels)
    fixed = cluster(gaps, scale=0.02)
    assert fixed.scale == 0.02 and same_division(fixed, labels)
    assert cluster(gaps, scale=5.0).n_basins == 1  # everything is alike at that scale
    both = cluster(gaps, scale=0.02, n_basins=2)
    assert both.scale == 0.02 and both.n_basins == 2


def test_result_can_be_kept():
    found = cluster(blocks((4, 2), 0)[0])
    tables, record = to_parts(found)
    back = from_parts(tables, json.loads(json.dumps(record)))
    assert back.note == found.note and back.eigenvalues == found.eigenvalues
    pd.testing.assert_series_equal(back.basins, found.basins)
    pd.testing.assert_frame_equal(back.embedding, found.embedding)


# --- the original's choice -----------------------------------------------------------------------


def test_compat_is_the_originals_choice():
    from sklearn.cluster import KMeans, SpectralClustering
    from sklearn.manifold import spectral_embedding

    gaps, labels = blocks((3, 9), 4)
    found = cluster(gaps, compat=True)
    assert (found.method, found.scale, found.n_basins) == ("compat", 1.0, 2)
    affinity = np.exp(-(gaps**2) / 2)
    assert affinity.min() > 0.98
    expected = SpectralClustering(2, affinity="precomputed", random_state=42).fit(affinity).labels_
    assert same_division(found, expected)
    assert same_division(found, labels)
    # x = ||w - c1|| - ||w - c2|| with k-means centres in the embedding of two components.
    rows = spectral_embedding(affinity, n_components=2, drop_first=False, random_state=42)
    fitted = KMeans(2, random_state=42).fit(rows)
    order = np.argsort(-np.bincount(fitted.labels_))
    distances = np.linalg.norm(rows[:, None] - fitted.cluster_centers_[order], axis=2)
    np.testing.assert_allclose(found.centroid_distances, distances, atol=1e-10)
    np.testing.assert_allclose(found.centroid_difference, distances[:, 1] - distances[:, 0])


def test_compat_needs_its_own_choices():
    gaps = blocks((3, 3), 0)[0]
    for options in ({"n_basins": 3}, {"scale": 0.1}):
        with pytest.raises(ConfigError, match="compat"):
            cluster(gaps, compat=True, **options)
    with pytest.raises(ConfigError, match="three"):
        cluster(np.zeros((2, 2)), compat=True)


def test_self_affinity_makes_basins_of_one_visible():
    """At fine scales a Laplacian without self-affinities can lose one checkpoint among 48."""
    from sklearn.cluster import SpectralClustering

    gaps, labels = blocks((1, 47), 0, cross=(0.07, 0.008))
    affinity = np.exp(-(gaps**2) / (2 * 0.01**2))
    theirs = SpectralClustering(2, affinity="precomputed", random_state=0).fit(affinity).labels_
    assert min(np.bincount(theirs)) > 1
    for scale in (0.005, 0.01, 0.02, 0.05, 1.0):
        assert same_division(cluster(gaps, scale=scale, n_basins=2), labels)


# --- bad input -----------------------------------------------------------------------------------


def test_bad_gaps_name_the_pair():
    names = ["s0", "s1", "s2"]
    good = pd.DataFrame(0.1 * (1 - np.eye(3)), index=names, columns=names)
    for value, match in ((np.nan, "not finite"), (-0.1, "negative"), (0.3, "mirror")):
        bad = good.copy()
        bad.loc["s0", "s2"] = value
        with pytest.raises(DataError, match=f"'s0' and 's2'.*{match}"):
            cluster(bad)
    bad = good.copy()
    bad.loc["s1", "s1"] = 0.1
    with pytest.raises(DataError, match=r"'s1' and 's1'.*diagonal"):
        cluster(bad)
    with pytest.raises(DataError, match="same names"):
        cluster(good[["s1", "s0", "s2"]])
    with pytest.raises(DataError, match="same name"):
        cluster(good.set_axis(["a", "a", "b"]).set_axis(["a", "a", "b"], axis=1))
    for shape in ((0, 0), (2, 3), (4,)):
        with pytest.raises(DataError, match="shape"):
            cluster(np.zeros(shape))
    with pytest.raises(DataError, match="not numbers"):
        cluster([["a", "b"], ["c", "d"]])


@pytest.mark.parametrize(
    "options",
    [
        {"n_basins": 0},
        {"n_basins": 4},
        {"n_basins": 1.5},
        {"scale": 0.0},
        {"scale": float("nan")},
        {"scale": "big"},
        {"noise_floor": -0.1},
        {"noise_floor": float("nan")},
        {"noise_floor": [0.1, 0.2, 0.3]},
    ],
)
def test_bad_options(options):
    with pytest.raises(ConfigError, match=next(iter(options))):
        cluster(0.1 * (1 - np.eye(3)), **options)


def test_low_ridges_everywhere_are_not_called_noise():
    """Six fine-tunes of MiniLM on pairs of questions: gaps of .05 to .1 nats, floors of .03."""
    random = np.random.default_rng(0)
    gaps = mirrored(random.uniform(0.05, 0.1, (6, 6)))
    found = cluster(gaps, noise_floor=0.031)
    assert found.n_basins == 1
    assert "ridges above the noise" in found.note
    few = mirrored(random.uniform(0.0, 0.034, (6, 6)))
    assert "hardly a gap" in cluster(few, noise_floor=0.031).note
