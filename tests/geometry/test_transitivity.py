"""Triangle statistics against loops over triples, written out as in the original script."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from landform.errors import ConfigError, DataError
from landform.evaluation.intervals import resample_counts
from landform.geometry.transitivity import transitivity


def random_gaps(n, seed, integers=False):
    random = np.random.default_rng(seed)
    upper = random.integers(0, 4, (n, n)) * 1.0 if integers else random.uniform(0, 1, (n, n)) ** 3
    upper = np.triu(upper, 1)
    return upper + upper.T


def brute(d, tolerance=1e-10):
    """Every unordered triple, each of its three sides as the direct way."""
    rows = []
    for triple in combinations(range(len(d)), 3):
        for b in triple:
            a, c = (i for i in triple if i != b)
            excess = d[a, c] - (d[a, b] + d[b, c])
            if excess > tolerance:
                rows.append((a, b, c, excess))
    return rows


def original(d):
    """The script: N^3 ordered triples, and its clustering coefficient."""
    n = len(d)
    satisfied, differences, percents, numerator, denominator = 0, [], [], 0.0, 0.0
    k = d.sum(axis=-1)
    for i in range(n):
        for j in range(n):
            for m in range(n):
                numerator += d[i, j] * d[j, m] * d[m, i]
                detour = d[i, j] + d[j, m]
                if detour + 1e-10 >= d[i, m]:
                    satisfied += 1
                else:
                    differences.append(d[i, m] - detour)
                    percents.append(100 * (d[i, m] - detour) / (detour + 1e-10))
        denominator += k[i] * (k[i] - 1)
    return {
        "triples": n**3,
        "satisfied": satisfied,
        "violations": len(differences),
        "total": sum(differences),
        "mean": np.mean(differences) if differences else 0.0,
        "mean_percent": np.mean(percents) if percents else 0.0,
        "numerator": numerator,
        "denominator": denominator,
        "clustering_coefficient": numerator / denominator,
    }


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("integers", [False, True])
def test_triples_and_the_originals_figures_against_loops(seed, integers):
    d = random_gaps(9, seed, integers)
    found = transitivity(d, compat="connectivity")
    rows = brute(d)
    assert rows, "the case is empty"
    assert found.triples == 84 and found.violations == len(rows)
    assert found.share == pytest.approx(len(rows) / 84)
    excess = [row[3] for row in rows]
    assert found.total == pytest.approx(sum(excess)) and found.mean == pytest.approx(
        np.mean(excess)
    )
    percent = [100 * e / d[a, c] for a, _, c, e in rows]
    assert found.mean_percent == pytest.approx(np.mean(percent))
    named = set(zip(found.table.a, found.table.b, found.table.c, strict=True))
    assert named == {(str(a), str(b), str(c)) for a, b, c, _ in rows}
    assert found.table.excess.is_monotonic_decreasing
    expected = original(d)
    assert found.compat == pytest.approx(expected, rel=1e-9)
    # Each unordered triple is met twice there, repeated checkpoints never violate.
    assert found.compat["violations"] == 2 * found.violations
    assert found.compat["total"] == pytest.approx(2 * found.total)


@given(st.integers(3, 7), st.integers(0, 10**6))
def test_a_triple_breaks_on_one_side_at_most(n, seed):
    found = transitivity(random_gaps(n, seed), replicates=20)
    assert found.violations <= found.triples and 0 <= found.share <= 1
    assert len({frozenset(row) for row in found.table[["a", "b", "c"]].to_numpy()}) == len(
        found.table
    )
    if found.violations:
        assert (found.table.percent > 0).all() and (found.table.percent <= 100).all()


@given(st.integers(3, 8), st.integers(0, 10**6))
def test_distances_of_points_break_nothing(n, seed):
    points = np.random.default_rng(seed).normal(size=(n, 3))
    d = np.linalg.norm(points[:, None] - points, axis=-1)
    found = transitivity((d + d.T) / 2, replicates=20, compat="connectivity")
    assert found.violations == found.compat["violations"] == 0
    assert (found.share, found.total, found.mean, found.share_high) == (0, 0, 0, 0)
    assert "0 of" in found.reading


def test_names_tolerance_and_noise():
    table = pd.DataFrame(
        [[0, 0.01, 0.5], [0.01, 0, 0.02], [0.5, 0.02, 0]], index=list("xyz"), columns=list("xyz")
    )
    found = transitivity(table, noise_floor=np.full((3, 3), 0.1))
    assert found.table.loc[0, ["a", "b", "c"]].tolist() == ["x", "y", "z"]
    assert found.table.loc[0, ["direct", "detour", "excess"]].tolist() == pytest.approx(
        [0.5, 0.03, 0.47]
    )
    assert found.clear == 1 and "1 of them by more than noise" in found.reading
    assert transitivity(table, noise_floor=0.48).clear == 0
    assert transitivity(table, tolerance=0.47001).violations == 0
    assert transitivity(table).clear is None
    assert found.to_json()["worst"][0]["b"] == "y"


def test_the_interval_resamples_checkpoints():
    """By a sum over all triples of resampled checkpoints, replicate by replicate."""
    d = random_gaps(7, 1)
    found = transitivity(d, replicates=50, seed=3, level=0.9)
    broken = {frozenset(row[:3]) for row in brute(d)}
    shares = []
    for c in resample_counts(7, 50, 3):
        weights = {t: np.prod(c[list(t)]) for t in combinations(range(7), 3)}
        whole = sum(weights.values())
        if whole:
            shares.append(sum(w for t, w in weights.items() if frozenset(t) in broken) / whole)
    assert [found.share_low, found.share_high] == pytest.approx(np.quantile(shares, [0.05, 0.95]))


def test_two_checkpoints_make_no_triple():
    found = transitivity([[0, 1], [1, 0]])
    assert found.triples == found.violations == 0 and np.isnan(found.share)
    assert "make no triple" in found.reading and not len(found.table)
    assert transitivity(np.ones((3, 3)) - np.eye(3)).violations == 0


def test_a_hundred_checkpoints_are_quick():
    """A loop in Python over a million triples takes minutes."""
    import time

    start = time.perf_counter()
    found = transitivity(random_gaps(100, 0), compat="connectivity", replicates=100)
    assert found.compat["triples"] == 10**6 and found.triples == 161_700
    assert time.perf_counter() - start < 10


def test_bad_gaps_and_options():
    with pytest.raises(DataError, match="mirror image"):
        transitivity([[0, 1, 2], [1, 0, 1], [3, 1, 0]])
    with pytest.raises(DataError, match="not finite"):
        transitivity([[0, np.nan], [np.nan, 0]])
    with pytest.raises(ConfigError, match="tolerance"):
        transitivity(random_gaps(3, 0), tolerance=-1)
    with pytest.raises(ConfigError, match="compat"):
        transitivity(random_gaps(3, 0), compat="tf")
