"""The index of training gradients: estimates without bias, and exact scores of what they choose."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import landform as lf
from landform.attribution.index import IndexStudy, Sketcher, build_index
from landform.attribution.measurement import Measurement
from landform.attribution.rows import Side
from landform.attribution.scoring import InfluenceWorker
from landform.errors import ConfigError, DataError, LandformError
from landform.store.artifacts import MemoryStore, Store
from small_cases import small_case, small_task

STRATEGIES = ("identity", "diagonal", "kfac", "ekfac")
DAMPING = {"damping": 1e-3}


@pytest.fixture(scope="module")
def case(tmp_path_factory: Any, save_checkpoint: Any) -> tuple[Path, Any]:
    path = tmp_path_factory.mktemp("model")
    checkpoint, _ = small_case("classification", "bert", path, save_checkpoint)
    return checkpoint, small_task("classification", train=40, validation=6)


@pytest.fixture(scope="module")
def fitted(case: tuple[Path, Any]) -> dict[str, Any]:
    # Batches of several widths; one layer of every shape, the last block's with a token per row.
    options: dict[str, Any] = {"labels": "empirical", "dtype": "float64", "token_budget": 64}
    return {name: lf.fit_factors(*case, strategy=name, **options) for name in STRATEGIES}


@pytest.fixture(scope="module")
def exact(fitted: dict[str, Any]) -> np.ndarray:
    return lf.influence(fitted["ekfac"], measurement="margin", **DAMPING).values


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("layer", ["*layer.0.intermediate.dense", "*layer.0.output.dense"])
def test_without_collisions_it_is_exact(case: tuple[Path, Any], strategy: str, layer: str) -> None:
    factors = lf.fit_factors(
        *case, strategy=strategy, labels="empirical", dtype="float64", include=(layer,)
    )
    entries = 24 * 17 if "intermediate" in layer else 16 * 25
    index = build_index(factors, size=entries, number="float32", **DAMPING)
    np.testing.assert_allclose(
        index.estimate(measurement="margin"),
        lf.influence(factors, measurement="margin", **DAMPING).values,
        rtol=1e-5,
        atol=1e-9,
    )
    folded = build_index(factors, size=entries // 5, number="float32", **DAMPING)
    assert abs(folded.estimate() - index.estimate()).max() > 1e-3 * abs(index.estimate()).max()


@pytest.mark.parametrize("strategy", ["identity", "ekfac"])
@pytest.mark.parametrize("size", [7, 100])  # less and more than the columns of a layer
def test_estimates_have_no_bias_and_the_variance_that_is_said(
    case: tuple[Path, Any], strategy: str, size: int
) -> None:
    factors, seeds = (
        lf.fit_factors(*case, strategy=strategy, dtype="float64", include=("*layer.0.*dense",)),
        100,
    )
    some: dict[str, Any] = {"queries": "train", "query_rows": 6}
    # The loss on both sides: the energy of a gradient is its self-influence.
    truth = lf.influence(factors, train_rows=8, **some, **DAMPING).values
    energy = np.diagonal(lf.influence(factors, queries="train", query_rows=8, **DAMPING).values)
    options: dict[str, Any] = {"train_rows": 8, "size": size, "share": 1, "number": "float32"}
    options |= DAMPING
    found = np.stack(
        [build_index(factors, seed=seed, **options).estimate(**some) for seed in range(seeds)]
    )
    spread = found.std(0)
    assert (abs(found.mean(0) - truth) / (spread / seeds**0.5)).max() < 4.5
    expected = np.sqrt((np.outer(energy[:6], energy[:8]) + truth**2) / size)
    ratio = spread / expected
    assert 0.6 < np.median(ratio) < 1.6
    assert ratio.max() < 4


@pytest.mark.parametrize("strategy", ["diagonal", "kfac", "ekfac"])
def test_a_share_of_the_directions_gives_their_part(fitted: dict[str, Any], strategy: str) -> None:
    factors = fitted[strategy]
    # So many buckets that no two directions meet: the estimate is the part itself.
    options: dict[str, Any] = {"size": 10**6, "number": "float32", "train_rows": 8, **DAMPING}
    index = build_index(factors, share=0.1, **options)
    options["size"] = 1000
    some = [np.abs(build_index(factors, share=x, **options).estimate()).sum() for x in (0.01, 0.5)]
    side = Side.of(factors, "validation", None, "queries")
    work = index._influence_work(side, Measurement.of("loss"), index.train.rows)
    worker = InfluenceWorker(work)
    asked = worker._capture(worker.work.queries, 0, 6, Measurement.of("loss"))
    given = worker._capture(worker.work.train, 0, 8, None)
    assert asked is not None
    assert given is not None
    expected = torch.zeros(6, 8, dtype=torch.float64)
    for number, layer in enumerate(factors.session().layers):
        q, b = (
            x.layers[number].block(0, layer.outputs, expected.new_zeros(len(x), *shape))
            for x in (asked, given)
            for shape in [x.layers[number].shape]
        )
        lambdas = factors.eigenvalues(layer.name)
        kept = lambdas.flatten().argsort(descending=True)[: math.ceil(0.1 * lambdas.numel())]
        weight = torch.zeros(lambdas.numel(), dtype=torch.float64)
        weight[kept] = 1 / (lambdas.flatten()[kept] + 1e-3)
        expected += (q.flatten(1) * weight) @ b.flatten(1).t()
    truth = expected[asked.order.argsort()][:, given.order.argsort()].numpy()
    error = np.abs(index.estimate() - truth)
    assert np.median(error) < 1e-6 * np.abs(truth).max()
    assert error.max() < 0.05 * np.abs(truth).max()  # a few directions do meet
    assert some[0] != pytest.approx(some[1])


def test_a_search_gives_exact_scores(fitted: dict[str, Any], exact: np.ndarray) -> None:
    index = build_index(fitted["ekfac"], size=64, **DAMPING)
    found = index.search(measurement="margin", k=3, candidates=5)
    assert found.scores is None
    assert found.best is not None
    for query, row, score in found.best.itertuples(index=False):
        assert score == pytest.approx(exact[query, row], rel=1e-9)
    assert found.best.groupby("query").size().tolist() == [6] * 6
    about = found.provenance["search"]
    assert 10 <= about["rescored"] <= 40
    assert -1 <= about["correlation"] <= 1
    full = lf.influence(fitted["ekfac"], measurement="margin", **DAMPING)
    for name in ("text_id", "label", "prediction", "loss", "value"):
        assert found.queries[name].tolist() == pytest.approx(full.queries[name].tolist())
    assert found.measurement == "margin"
    assert found.better == 1
    assert found.query_set == full.query_set == "small:validation"


def test_with_all_rows_as_candidates_nothing_is_missed(
    fitted: dict[str, Any], exact: np.ndarray
) -> None:
    found = build_index(fitted["ekfac"], size=16, **DAMPING).search(
        measurement="margin", k=4, candidates=40
    )
    full = lf.influence(fitted["ekfac"], measurement="margin", **DAMPING)
    for query in range(6):
        for harmful in (False, True):
            mine, theirs = (x.top(query, 4, harmful=harmful) for x in (found, full))
            assert mine.row.tolist() == theirs.row.tolist()
            np.testing.assert_allclose(mine.score, theirs.score, rtol=1e-9)


def test_good_sketches_find_what_counts(fitted: dict[str, Any], exact: np.ndarray) -> None:
    index = build_index(fitted["ekfac"], size=4096, **DAMPING)
    found = index.search(measurement="margin", k=3, candidates=6)
    assert found.best is not None
    hits = 0
    for query in range(6):
        order = np.argsort(-exact[query])
        kept = set(found.best[found.best["query"] == query].row)
        hits += len(kept & {*order[:3], *order[-3:]})
    assert hits >= 0.9 * 36
    assert found.provenance["search"]["correlation"] > 0.9


def test_estimates_alone(fitted: dict[str, Any]) -> None:
    index = build_index(fitted["ekfac"], size=32, **DAMPING)
    found = index.search(measurement="margin", k=2, exact=False)
    estimates = index.estimate(measurement="margin")
    best = found.top(3, 2)
    assert best.row.tolist() == np.argsort(-estimates[3])[:2].tolist()
    assert "rescored" not in found.provenance["search"]


def test_rows_and_other_splits(fitted: dict[str, Any]) -> None:
    rows = [31, 4, 17, 9]
    index = build_index(fitted["ekfac"], train="train", train_rows=rows, size=64, **DAMPING)
    assert len(index) == 4
    found = index.search(queries="train", query_rows=[9, 4], k=1, candidates=4)
    assert found.queries.row.tolist() == [9, 4]
    assert found.top(0, 1).row.tolist() == [9]  # nothing helps a row like itself
    assert found.top(1, 1).row.tolist() == [4]
    assert "4 training rows" in index.reading


def test_half_precision_keeps_what_matters(fitted: dict[str, Any]) -> None:
    short, long = (
        build_index(fitted["ekfac"], size=64, number=number, **DAMPING)
        for number in ("float16", "float32")
    )
    assert short.sketches.dtype == np.float16
    a, b = short.estimate(), long.estimate()
    assert abs(a - b).max() < 2e-3 * abs(b).max()
    assert short.nbytes == 40 * (64 * 2 + 4)


def test_an_index_is_found_again(
    fitted: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    factors, options = fitted["ekfac"], {"size": 32, "chunk_rows": 16, **DAMPING}
    store, captured = Store.open(tmp_path / "study"), []
    capture = Sketcher.capture

    def counting(self: Sketcher, data: Any, measurement: Any) -> Any:
        captured.append(data.size)
        if len(captured) == 2 and data.size == 16:
            raise KeyboardInterrupt
        return capture(self, data, measurement)

    monkeypatch.setattr(Sketcher, "capture", counting)
    with pytest.raises(KeyboardInterrupt):
        build_index(factors, store=store, **options)
    study = IndexStudy.of(factors, **options)
    assert study.forecast(store).evaluations == 24
    resumed = build_index(factors, store=store, **options)
    assert captured == [16, 16, 16, 8]
    again = build_index(factors, store=Store.open(tmp_path / "study"), **options)
    assert len(captured) == 4
    alone = build_index(factors, **options)
    for other in (resumed, again):
        np.testing.assert_array_equal(other.sketches, alone.sketches)
        np.testing.assert_array_equal(other.scale, alone.scale)


@pytest.mark.parametrize("change", [{"size": 33}, {"seed": 1}, {"damping": 2e-3}, {"share": 0.5}])
def test_what_makes_an_index_is_in_its_key(fitted: dict[str, Any], change: dict[str, Any]) -> None:
    store, options = MemoryStore(), {"size": 32, **DAMPING}
    first = build_index(fitted["ekfac"], store=store, **options)
    other = build_index(fitted["ekfac"], store=store, **{**options, **change})
    assert other.sketches.shape != first.sketches.shape or not np.allclose(
        other.sketches, first.sketches
    )


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"k": 0}, ConfigError, "k is 0"),
        ({"k": 5, "candidates": 4}, ConfigError, "candidates is 4"),
        ({"query_rows": []}, DataError, "queries: there are no rows"),
        ({"query_rows": [99]}, DataError, "no row 99"),
        ({"measurement": "margins"}, ConfigError, "did you mean 'margin'"),
    ],
)
def test_a_search_that_cannot_be(
    fitted: dict[str, Any], options: dict[str, Any], error: type[LandformError], message: str
) -> None:
    index = build_index(fitted["identity"], size=8)
    with pytest.raises(error, match=message):
        index.search(**options)


def test_an_index_that_cannot_be(fitted: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="size"):
        build_index(fitted["identity"], size=0)
    with pytest.raises(ConfigError, match="did you mean 'size'"):
        build_index(fitted["identity"], sizes=4)
    with pytest.raises(DataError, match="no rows"):
        build_index(fitted["identity"], train="train", train_rows=[])
