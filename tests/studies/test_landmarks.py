"""Basins by landmarks: on planted structures they are those of all pairs, for fewer lines."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

import landform as lf
from landform.errors import ConfigError, SpaceMismatchError
from landform.evaluation.points import PointsWorker
from landform.geometry.basins import cluster
from landform.geometry.landmarks import (
    cluster_by_landmarks,
    farthest_points,
    medoid_landmarks,
    partners,
)
from landform.results import from_parts, to_parts
from landform.store.artifacts import MemoryStore, Store
from landform.studies.connect import ConnectionStudy


def planted(sizes, seed=0, inside=0.02, across=0.3, scatter=0.5):
    """Gaps of groups: small within, large between."""
    random = np.random.default_rng(seed)
    labels = np.repeat(np.arange(len(sizes)), sizes)
    random.shuffle(labels)
    n = len(labels)
    same = labels[:, None] == labels
    gaps = np.where(same, inside, across) * random.uniform(1 - scatter, 1 + scatter, (n, n))
    gaps = np.triu(gaps, 1)
    names = [f"m{i}" for i in range(n)]
    return pd.DataFrame(gaps + gaps.T, names, names), labels


# --- choosing ------------------------------------------------------------------------------------


def test_farthest_points_against_a_loop():
    x = np.random.default_rng(0).normal(size=(20, 5))
    chosen, distances = farthest_points(x, 6)
    squares = ((x[:, None] - x) ** 2).sum(-1)
    assert chosen[0] == squares.sum(axis=1).argmin()
    for k in range(1, 6):
        nearest = [min(np.linalg.norm(x[i] - x[c]) for c in chosen[:k]) for i in range(20)]
        assert chosen[k] == np.argmax(nearest)
    np.testing.assert_allclose(distances, np.sqrt(squares[:, chosen]), atol=1e-12)
    assert sorted(farthest_points(x, 20)[0]) == list(range(20))
    assert sorted(farthest_points(np.zeros((4, 2)), 4)[0]) == [0, 1, 2, 3]
    with pytest.raises(ConfigError, match="21 landmarks of 20"):
        farthest_points(x, 21)


# --- dividing ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("sizes", "number"), [((12, 8), 4), ((20, 6, 5), 7), ((15,), 3)])
def test_planted_basins_by_landmarks_are_those_of_all_pairs(sizes, number):
    for seed in range(3):
        gaps, labels = planted(sizes, seed)
        floors = pd.DataFrame(0.03, gaps.index, gaps.columns)
        whole = cluster(gaps, noise_floor=floors.to_numpy())
        # One landmark of each group at least, as a traversal of far apart groups finds.
        firsts = [int(np.flatnonzero(labels == g)[0]) for g in range(len(sizes))]
        others = [i for i in range(len(labels)) if i not in firsts][: number - len(firsts)]
        columns = [gaps.index[i] for i in [*firsts, *others]]
        found = cluster_by_landmarks(gaps[columns], floors[columns])
        pd.testing.assert_series_equal(found.basins, whole.basins)
        assert found.n_basins == len(sizes) and found.names == tuple(gaps.index)
        if len(sizes) > 1:
            r = np.corrcoef(found.centroid_difference, whole.centroid_difference)[0, 1]
            assert r > 0.95
        assert f"by {number} landmarks" in found.note


def too_many(sizes, inside, number, draws=30):
    """In how many draws landmarks (None: all lines) find more basins than were planted."""
    count = 0
    for seed in range(draws):
        gaps, labels = planted(sizes, seed, inside, scatter=0.8)
        floors = pd.DataFrame(0.02, gaps.index, gaps.columns)
        random = np.random.default_rng(100 + seed)
        firsts = [int(random.choice(np.flatnonzero(labels == g))) for g in range(len(sizes))]
        others = [i for i in random.permutation(len(labels)) if i not in firsts]
        columns = gaps.index[[*firsts, *others][:number]]
        found = cluster_by_landmarks(gaps[columns], floors[columns])
        count += found.n_basins > len(sizes)
    return count


def test_few_landmarks_divide_what_is_one_where_gaps_scatter():
    """A weakness that docs/connect.md counts: a few gaps drawn at random look like groups."""
    assert too_many((10, 6), 0.02, 4, draws=8) == 0
    assert too_many((10, 6), 0.05, 4, draws=8) >= 2
    assert too_many((16,), 0.04, 4, draws=8) >= 4
    assert too_many((16,), 0.04, None, draws=8) <= 1


def test_all_checkpoints_as_landmarks_are_the_whole_matrix():
    gaps, _ = planted((6, 4), 1)
    floors = pd.DataFrame(0.03, gaps.index, gaps.columns)
    whole = cluster(gaps, noise_floor=floors.to_numpy())
    found = cluster_by_landmarks(gaps, floors)
    pd.testing.assert_series_equal(found.basins, whole.basins)
    # The extension of the embedding is exact for landmarks.
    np.testing.assert_allclose(found.embedding, whole.embedding, atol=1e-9)
    np.testing.assert_allclose(found.centroid_distances, whole.centroid_distances, atol=1e-9)


def test_medoids_and_partners():
    gaps, labels = planted((7, 5), 2)
    columns = list(gaps.columns[:5])
    basins = pd.Series(labels, gaps.index)
    for basin, medoid in enumerate(medoid_landmarks(gaps[columns], basins)):
        members = basins.index[basins == basin]
        sums = {c: gaps.loc[members, c].sum() for c in columns if basins[c] == basin}
        assert medoid == min(sums, key=sums.get)
    pairs = partners(basins, columns, seed=0)
    assert pairs == partners(basins, columns, seed=0) != partners(basins, columns, seed=1)
    assert len(set(map(frozenset, pairs))) == len(pairs) <= 12 - 5
    assert all(basins[a] == basins[b] and not {a, b} & set(columns) for a, b in pairs)
    assert {name for pair in pairs for name in pair} == set(gaps.index) - set(columns)
    assert partners(basins[["m0"]], ["m0"], 0) == partners(basins[:2], [], 0)[:0] == ()


# --- a study -------------------------------------------------------------------------------------


def permuted(model, seed):
    """The same function far away: feed-forward units in another order, heads changed places."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for layer in model.bert.encoder.layer:
            order = torch.randperm(24, generator=generator)
            half = torch.arange(16).roll(8)
            inner, outer = layer.intermediate.dense, layer.output.dense
            inner.weight.copy_(inner.weight[order])
            inner.bias.copy_(inner.bias[order])
            outer.weight.copy_(outer.weight[:, order])
            attention = layer.attention
            for part in (attention.self.query, attention.self.key, attention.self.value):
                part.weight.copy_(part.weight[half])
                part.bias.copy_(part.bias[half])
            attention.output.dense.weight.copy_(attention.output.dense.weight[:, half])
    return model


@pytest.fixture(scope="module")
def place(tmp_path_factory, tiny_model, word_tokenizer, write_rows):
    """One good model in three places of weight space, with three close neighbours in each."""
    import torch

    root = tmp_path_factory.mktemp("landmarks")
    for group in "abc":
        for copy in range(4):
            model = tiny_model(seed=0, dtype=torch.float32)
            with torch.no_grad():
                model.classifier.weight.mul_(6)
            if group != "a":
                permuted(model, ord(group))
            generator = torch.Generator().manual_seed(10 * ord(group) + copy)
            with torch.no_grad():
                for p in model.parameters():
                    p.add_(1e-3 * torch.randn(p.shape, generator=generator))
            model.save_pretrained(root / "runs" / f"{group}{copy}")
            word_tokenizer.save_pretrained(root / "runs" / f"{group}{copy}")
    write_rows(root / "rows.tsv", 150)
    rows = lf.load_task(str(root / "rows.tsv"), text="sentence", label="label")
    log = lf.evaluate(root / "runs" / "a0", rows).log
    lines = [f"{text}\t{said}" for text, said in zip(log.text, log.prediction, strict=True)]
    (root / "dev.tsv").write_text("\n".join(["sentence\tlabel", *lines]) + "\n")
    return root


def task_of(root):
    return lf.load_task(str(root / "dev.tsv"), text="sentence", label="label")


OPTIONS = {"points": 5, "replicates": 100}


@pytest.fixture(scope="module")
def found(place):
    runs, task = [f"{place}/runs/*"], task_of(place)
    store = place / "few"
    whole = lf.connect(runs, task, store=place / "all", **OPTIONS)
    few = lf.connect(runs, task, landmarks=4, store=store, **OPTIONS)
    return whole, few


def test_landmark_basins_are_the_basins_of_all_pairs(found):
    whole, few = found
    assert whole.basins.tolist() == np.repeat([0, 1, 2], 4).tolist(), whole.clustering.note
    pd.testing.assert_series_equal(few.basins, whole.basins)
    landmarks = few.landmarks
    assert {name[0] for name in landmarks.names[:3]} == set("abc"), "far apart"
    assert {name[0] for name in landmarks.medoids} == set("abc")
    # 12 ends, 6 lines among landmarks, 4 x 8 to them, at most 8 more (pairs may choose each other).
    lines = len(few.pairs)
    assert 38 < lines <= 46 and few.evaluations == 12 + lines * 3
    assert whole.evaluations == landmarks.evaluations_of_all_pairs == 12 + 66 * 3
    assert few.evaluations < 0.75 * whole.evaluations
    # The walked lines are the same lines.
    both = few.pairs.merge(whole.pairs, on=["data", "a", "b"])
    assert len(both) == lines
    np.testing.assert_allclose(both.convexity_gap_x, both.convexity_gap_y, atol=1e-6)


def test_basins_are_verified_by_other_lines(found):
    whole, few = found
    lines = few.landmarks.lines
    assert set(lines.kind) == {"medoid", "member", "across"}
    assert (lines.kind == "medoid").sum() == 9
    assert few.landmarks.share("across") == 1.0
    for row in lines.itertuples():
        assert row.gap == pytest.approx(whole.gaps.loc[row.a, row.b], abs=1e-6)
        assert row.above == (row.gap > row.noise_floor)
        assert (row.kind == "across") == (few.basins[row.a] != few.basins[row.b])
    assert "4 landmarks; above the noise floor are" in few.reading
    assert few.transitivity is None and few.gaps.isna().to_numpy().any()
    assert json.dumps(few.to_json(), default=str)
    again = from_parts(*to_parts(few))
    pd.testing.assert_frame_equal(again.landmarks.lines, lines)
    assert again.reading == few.reading


def test_named_landmarks_and_forecasts(place, found):
    runs, task = [f"{place}/runs/*"], task_of(place)
    options = {**OPTIONS, "landmark_names": ("a1", "b0", "c2", "c1")}
    study = ConnectionStudy.of(runs, task, **options)
    assert study.forecast(MemoryStore()).evaluations == 12 + (38 + 8) * 3
    free = ConnectionStudy.of(runs, task, landmarks=4, **OPTIONS)
    assert free.forecast(MemoryStore()).evaluations == 12 + (38 + 8) * 3
    assert free.forecast(Store.open(place / "few")).evaluations == 0
    named = lf.connect(runs, task, **options)
    assert named.landmarks.names == ("a1", "b0", "c2", "c1")
    pd.testing.assert_series_equal(named.basins, found[0].basins)


def test_a_stopped_study_goes_on(place, found, tmp_path, monkeypatch):
    runs, task = [f"{place}/runs/*"], task_of(place)
    ran, original = [], PointsWorker.run

    def run(self, job):
        if len(ran) in stops:
            stops.remove(len(ran))
            raise KeyboardInterrupt
        ran.append(job.key)
        return original(self, job)

    stops = {5, 20, 51}  # among the points, in the star, among the lines that verify
    monkeypatch.setattr(PointsWorker, "run", run)
    for _ in range(3):
        with pytest.raises(KeyboardInterrupt):
            lf.connect(runs, task, landmarks=4, store=tmp_path / "s", **OPTIONS)
    again = lf.connect(runs, task, landmarks=4, store=tmp_path / "s", **OPTIONS)
    assert not stops and len(ran) == len(set(ran))
    pd.testing.assert_frame_equal(again.pairs, found[1].pairs)
    pd.testing.assert_frame_equal(again.landmarks.lines, found[1].landmarks.lines)


def test_bad_landmarks(place, tmp_path, save_checkpoint):
    runs, task = [f"{place}/runs/*"], task_of(place)
    for options, says in [
        ({"landmarks": 1}, "greater than or equal to 2"),
        ({"landmarks": 13}, "landmarks is 13, but there are 12"),
        ({"landmarks": 2, "basins": 3}, "2 landmarks cannot show 3 basins"),
        ({"landmarks": 3, "compat": "connectivity"}, "option compat does not go"),
        ({"landmarks": 3, "pairs": [("a0", "a1")]}, "option pairs does not go"),
        ({"landmark_names": ("a0",)}, "1 landmarks cannot show"),
        ({"landmark_names": ("a0", "z9")}, "no checkpoint is called 'z9'"),
        ({"landmark_names": ("a0", "b1"), "landmarks": 3}, "landmark_names has 2"),
    ]:
        with pytest.raises(ConfigError, match=says):
            lf.connect(runs, task, **options)
    other = save_checkpoint(tmp_path / "other", num_labels=3)
    with pytest.raises(SpaceMismatchError, match="other"):
        lf.connect([*runs, other], task, landmarks=2, **OPTIONS)
