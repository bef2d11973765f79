"""The statistic against scipy and a simulation, its intervals, and the files it reads."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file
from scipy.stats import spearmanr

from landform.attribution.lds import (
    LinearDatamodelling,
    linear_datamodelling,
    linear_datamodelling_score,
    read_margins,
    read_masks,
    reliability,
)
from landform.errors import ConfigError, DataError, NonFiniteError
from landform.evaluation.intervals import percentile_interval, resample_counts
from landform.results import from_parts, to_parts


def world(masks=60, rows=40, queries=12, runs=4, noise=1.0, seed=0):
    """Scores that are true, masks, and targets = sum of kept scores + noise of every run."""
    draw = np.random.default_rng(seed)
    scores = draw.normal(size=(queries, rows))
    kept = np.stack([draw.permutation(rows) < rows // 2 for _ in range(masks)])
    sums = kept @ scores.T
    return scores, kept, sums[:, None] + noise * draw.normal(size=(masks, runs, queries))


def test_it_is_the_spearman_of_sums_with_targets():
    scores, kept, targets = world(noise=4.0)
    found = linear_datamodelling_score(scores, kept, targets)
    for q, value in enumerate(found):
        sums = [sum(scores[q, i] for i in range(40) if mask[i]) for mask in kept]
        assert value == pytest.approx(spearmanr(sums, targets[:, :, q].mean(1))[0], abs=1e-12)
    assert 0.3 < found.mean() < 1
    np.testing.assert_allclose(linear_datamodelling_score(-scores, kept, targets), -found)
    perfect = linear_datamodelling_score(scores, kept, kept @ scores.T * 3 + 7)
    np.testing.assert_allclose(perfect, 1.0)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 4)), min_size=3, max_size=9))
def test_ties_share_their_mean_rank(pairs):
    predicted, truth = np.array(pairs, dtype=float).T
    # A mask that keeps the rows below m adds up the steps of the prediction.
    scores = np.diff(np.concatenate([[0.0], predicted]))[None]
    kept = np.tril(np.ones((len(predicted), len(predicted))))
    found = linear_datamodelling_score(scores, kept, truth[:, None])[0]
    if np.ptp(predicted) == 0 or np.ptp(truth) == 0:
        assert math.isnan(found)
    else:
        assert found == pytest.approx(spearmanr(predicted, truth)[0], abs=1e-12)


def test_a_replicate_is_the_score_of_its_resample():
    """Weighted ranks against writing every resampled mask out."""
    from landform.attribution.lds import _correlations
    from landform.evaluation.intervals import resample_counts

    scores, kept, targets = world(masks=15, queries=3, noise=3.0)
    scores, targets = np.round(scores * 8), np.round(targets * 8)  # sums that no order rounds
    counts = resample_counts(15, 5, 3)
    found = _correlations(kept @ scores.T, targets.mean(1), counts)
    for r, count in enumerate(counts.astype(int)):
        rows = np.repeat(np.arange(15), count)
        np.testing.assert_allclose(
            found[:, r], linear_datamodelling_score(scores, kept[rows], targets[rows]), atol=1e-12
        )


def test_table_and_paired_differences():
    scores, kept, targets = world(noise=6.0)
    draw = np.random.default_rng(1)
    methods = {
        "good": scores,
        "alike": scores + 0.05 * draw.normal(size=scores.shape),
        "random": draw.normal(size=scores.shape),
    }
    r = linear_datamodelling(
        methods, kept, targets, task="toy", text_ids=[f"t{i}" for i in range(12)], replicates=300
    )
    assert r.table.method.tolist() == ["good", "alike", "random"]
    np.testing.assert_allclose(
        r.table.lds, [linear_datamodelling_score(v, kept, targets).mean() for v in methods.values()]
    )
    assert (r.table.low < r.table.lds).all() and (r.table.lds < r.table.high).all()
    low, high = r.table.set_index("method").loc["random", ["low", "high"]]
    assert low < 0 < high
    assert r.differences[["method", "other"]].to_numpy().tolist() == [
        ["good", "alike"], ["good", "random"], ["alike", "random"],
    ]  # fmt: skip
    # The two methods err alike, so their difference is known far better than each of them.
    first = r.differences.iloc[0]
    assert first.high - first.low < 0.3 * (r.table.high[0] - r.table.low[0])
    assert r.per_query.columns.tolist() == ["query", "text_id", "method", "lds"]
    assert len(r.per_query) == 36 and r.per_query.text_id[13] == "t1"
    assert (r.masks, r.retrainings, r.fraction) == (60, 4, 0.5)
    assert "toy" in r.reading and "random" in r.reading
    assert isinstance(from_parts(*to_parts(r)), LinearDatamodelling)
    assert r.to_json()["methods"][0]["method"] == "good"


def test_the_interval_knows_both_masks_and_queries():
    """Over many worlds, 95 % intervals must hold the score of an endless world."""
    draw = np.random.default_rng(0)
    rows, hits = 30, 0
    strength = 1.0

    def make(masks, queries):
        truth = draw.normal(size=(queries, rows))
        # Queries differ in how well their scores are known: they are a sample too.
        guess = truth + draw.gamma(1.0, strength, size=(queries, 1)) * draw.normal(
            size=(queries, rows)
        )
        kept = draw.random((masks, rows)) < 0.5
        return guess, kept, kept @ truth.T

    wanted = linear_datamodelling_score(*make(2000, 400)).mean()
    for seed in range(40):
        guess, kept, targets = make(25, 15)
        r = linear_datamodelling({"m": guess}, kept, targets, replicates=200, seed=seed)
        hits += r.table.low[0] <= wanted <= r.table.high[0]
    assert hits >= 35


def test_reliability_and_the_ceiling():
    scores, kept, targets = world(masks=400, queries=30, runs=4, noise=5.0)
    r = linear_datamodelling({"true": scores}, kept, targets, replicates=20)
    halves = [
        spearmanr(targets[:, list(a), q].mean(1), targets[:, list(b), q].mean(1))[0]
        for a, b in (((0, 1), (2, 3)), ((0, 2), (1, 3)), ((0, 3), (1, 2)))
        for q in range(30)
    ]
    assert r.reliability == pytest.approx(np.mean(halves), abs=1e-12)
    # The true scores do as well as can be expected, and no better.
    assert r.ceiling == pytest.approx(r.table.lds[0], abs=0.02)
    assert math.isnan(reliability(targets[:, :1])) and math.isnan(reliability(targets[:, 0]))
    assert 0 < reliability(targets[:, :3]) < 1


def test_queries_that_never_change_are_left_out():
    scores, kept, targets = world(masks=10, queries=3)
    targets[:, :, 1] = 2.0
    r = linear_datamodelling({"m": scores}, kept, targets, replicates=20)
    assert np.isnan(r.per_query.lds).tolist() == [False, True, False]
    assert r.table.lds[0] == pytest.approx(np.nanmean(r.per_query.lds))
    with pytest.raises(DataError, match="m: no query has both"):
        linear_datamodelling({"m": np.zeros_like(scores)}, kept, targets, replicates=20)


def test_differences_are_paired_where_a_method_has_no_value_in_some_replicates():
    """A replicate without a value was taken out of one method's list only: all later ones were
    subtracted from those of other resamples."""
    scores, kept, targets = world(masks=8, queries=1)
    kept[:, 0] = np.arange(8) == 3  # row 0 is in one mask: a third of the replicates lack it
    rare = np.zeros_like(scores)
    rare[:, 0] = 1.0
    found = linear_datamodelling({"rare": rare, "all": scores}, kept, targets, replicates=200)
    differences = []
    for counts in resample_counts(8, 200, 0).astype(int):
        masks, truth = (np.repeat(x, counts, axis=0) for x in (kept, targets))
        one, other = (linear_datamodelling_score(x, masks, truth)[0] for x in (rare, scores))
        differences.append(one - other)
    known = np.array(differences)[np.isfinite(differences)]
    assert 100 < len(known) < 180
    low, high = percentile_interval(known, 0.95)
    assert found.differences[["low", "high"]].iloc[0].tolist() == pytest.approx([low, high])


def test_what_does_not_fit_is_named():
    scores, kept, targets = world(masks=5, queries=3)
    for values, masks, truth, message in (
        (scores[:, :39], kept, targets, "39 training rows, the masks of 40"),
        (scores[:2], kept, targets, "2 queries, the targets of 3"),
        (scores, kept[:4], targets, "4 masks, but targets of 5"),
        (scores, kept[:2], targets[:2], "too few"),
        (scores, kept * 2, targets, "other numbers than 0 and 1"),
        (scores[0], kept, targets, "scores have the shape"),
    ):
        with pytest.raises(DataError, match=message):
            linear_datamodelling_score(values, masks, truth)
    targets[2, 1, 0] = np.nan
    with pytest.raises(NonFiniteError, match=r"the targets hold nan at \(2, 1, 0\)"):
        linear_datamodelling_score(scores, kept, targets)
    with pytest.raises(ConfigError, match="no methods"):
        linear_datamodelling({}, kept, targets)


def test_files_in_every_format(tmp_path):
    masks = np.array([[1, 0, 1], [0, 1, 1]], dtype=np.int8)
    margins = np.array([[0.5, -1.0], [2.0, 3.0]], dtype=np.float32)
    for name, array in (("masks", masks), ("margins", margins)):
        np.save(tmp_path / f"{name}.npy", array)
        np.savez(tmp_path / f"{name}.npz", **{name: array, "other": array[:1]})
        save_file({"anything": array}, tmp_path / f"{name}.safetensors")
        np.savetxt(tmp_path / f"{name}.csv", array, delimiter=",")
        torch.save(torch.from_numpy(array), tmp_path / f"{name}.pt")
    for ending in ("npy", "npz", "safetensors", "csv", "pt"):
        found = read_masks(tmp_path / f"masks.{ending}")
        assert found.dtype == bool and np.array_equal(found, masks)
        np.testing.assert_array_equal(read_margins(tmp_path / f"margins.{ending}"), margins)


def test_pickles_need_to_be_allowed(tmp_path):
    margins = np.ones((4, 2), dtype=np.float32)
    torch.save(margins, tmp_path / "margins.pt")  # what is published: numpy inside torch's pickle
    with pytest.raises(ConfigError, match="can run code") as error:
        read_margins(tmp_path / "margins.pt")
    assert "allow_pickle" in str(error.value)
    assert read_margins(tmp_path / "margins.pt", allow_pickle=True).shape == (4, 2)


def test_files_that_cannot_be_read_are_named(tmp_path):
    np.save(tmp_path / "x.npy", np.arange(6).reshape(2, 3))
    with pytest.raises(DataError, match="is not a table of masks"):
        read_masks(tmp_path / "x.npy")
    with pytest.raises(DataError, match="there is no such file"):
        read_masks(tmp_path / "y.npy")
    with pytest.raises(DataError, match=r"ending in \.txt"):
        read_masks(tmp_path / "y.txt")
    whole = (tmp_path / "x.npy").read_bytes()
    (tmp_path / "x.npy").write_bytes(whole[:-5])
    with pytest.raises(DataError, match=r"x\.npy cannot be read"):
        read_masks(tmp_path / "x.npy")
    np.savez(tmp_path / "two.npz", a=np.ones(2), b=np.ones(2))
    with pytest.raises(DataError, match="holds a, b"):
        read_margins(tmp_path / "two.npz")
