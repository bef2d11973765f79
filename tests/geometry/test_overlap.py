"""Where two curves are both good, against a fine grid and by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from landform.geometry.overlap import NUMBERS, overlap_numbers, overlap_regions

KEEP = 0.9


def numbers(a, b, x=None, keep=KEEP):
    x = np.linspace(0, 1, len(a)) if x is None else x
    return {k: float(v) for k, v in overlap_numbers(a, b, x, keep).items()}


def test_by_hand():
    # a falls from 1 at x = 0.5 to 0 at 1; b rises from 0 to 1 over [0, 0.25].
    x = np.array([0.0, 0.25, 0.5, 0.75, 1.0])
    found = numbers([1, 1, 1, 0.5, 0], [0, 1, 1, 1, 1], x)
    assert found["reach_a"] == pytest.approx(0.55)  # 1 - 2 (x - 0.5) = 0.9
    assert found["reach_b"] == pytest.approx(0.225)  # 4 x = 0.9
    assert found["width"] == pytest.approx(0.325)
    assert found["margin"] == pytest.approx(0.325)
    assert found["crossing"] == pytest.approx(0.25) and found["crossing_kept"] == 1
    assert found["area"] == pytest.approx(0.25 / 2 + 0.25 + 0.5 / 2)
    assert (found["best_x"], found["best_kept"]) == (0.25, 1)


def test_a_gap_is_a_negative_margin():
    found = numbers([1, 0, 0], [0, 0, 1])
    assert found["width"] == 0
    assert found["margin"] == pytest.approx(0.05 - 0.95)
    assert found["area"] == 0
    found = numbers([1, 0], [0, 1])  # they cross in the middle of their only segment
    assert (found["crossing"], found["crossing_kept"]) == (0.5, 0.5)
    assert (found["best_x"], found["best_kept"]) == (0.5, 0.5)
    assert found["area"] == pytest.approx(0.25)


def test_nothing_is_lost():
    found = numbers([1, 1, 1], [1, 1, 1])
    assert (found["width"], found["margin"], found["area"]) == (1, 1, 1)
    assert np.isnan(found["crossing"])  # one never falls below the other


def test_a_dip_divides_the_region():
    x = np.linspace(0, 1, 5)
    a, b = np.array([1, 1, 0.4, 1, 1]), np.ones(5)
    found = numbers(a, b, x)
    regions = overlap_regions(a, b, x, KEEP)
    assert len(regions) == 2
    assert (regions["stop"] - regions["start"]).sum() == pytest.approx(found["width"])
    assert found["margin"] == found["reach_a"] < found["width"]


def test_a_curve_that_is_bad_from_the_start_reaches_nowhere():
    found = numbers([0.5, 1, 1], [1, 1, 0.5])
    assert (found["reach_a"], found["reach_b"], found["margin"]) == (0, 1, -1)


def test_unknown_curves_have_no_numbers():
    a = np.array([[np.nan] * 3, [1, 0.5, 0]])
    found = overlap_numbers(a, np.array([0, 0.5, 1]), np.linspace(0, 1, 3), KEEP)
    assert all(np.isnan(found[name][0]) for name in NUMBERS)
    assert not np.isnan(found["width"][1])


VALUES = st.lists(st.integers(-50, 120).map(lambda k: k / 100), min_size=4, max_size=4)


@given(a=VALUES, b=VALUES, gaps=st.lists(st.floats(0.05, 1), min_size=3, max_size=3))
def test_against_a_fine_grid(a, b, gaps):
    x = np.concatenate([[0], np.cumsum(gaps)]) / sum(gaps)
    a, b = np.array(a), np.array(b)
    a[0] = b[-1] = 1.0
    found = numbers(a, b, x)
    n = 20001
    fine = (np.arange(n) + 0.5) / n
    fa, fb = np.interp(fine, x, a), np.interp(fine, x, b)
    good = (fa >= KEEP) & (fb >= KEEP)
    assert found["width"] == pytest.approx(good.mean(), abs=3e-3)
    regions = overlap_regions(a, b, x, KEEP)
    assert (regions["stop"] - regions["start"]).sum() == pytest.approx(found["width"], abs=1e-9)
    first_bad = fine[np.flatnonzero(fa < KEEP)[0]] if (fa < KEEP).any() else 1.0
    last_bad = fine[np.flatnonzero(fb < KEEP)[-1]] if (fb < KEEP).any() else 0.0
    assert found["margin"] == pytest.approx(first_bad - last_bad, abs=3e-3)
    assert found["area"] == pytest.approx(np.minimum(fa, fb).mean(), abs=1e-4)
    assert found["best_kept"] == pytest.approx(np.minimum(fa, fb).max(), abs=2e-3)
    at = found["best_x"]
    assert min(np.interp(at, x, a), np.interp(at, x, b)) == pytest.approx(found["best_kept"])
    if not np.isnan(found["crossing"]):
        at = found["crossing"]
        assert np.interp(at, x, a) == pytest.approx(np.interp(at, x, b), abs=1e-6)
        before = fine[fine < at - 1e-3]
        above = np.interp(before, x, a) >= np.interp(before, x, b) - 1e-6
        assert above.all() or a[0] <= b[0]


@given(a=VALUES, b=VALUES)
def test_the_line_the_other_way_round(a, b):
    one, two = numbers(a, b), numbers(b[::-1], a[::-1])
    for name in ("width", "margin", "area", "best_kept"):
        assert one[name] == pytest.approx(two[name], abs=1e-9)
    assert one["reach_a"] == pytest.approx(1 - two["reach_b"])
    many = overlap_numbers(np.array([a, b]), np.array([b, a]), np.linspace(0, 1, 4), KEEP)
    assert many["width"][0] == pytest.approx(one["width"])
