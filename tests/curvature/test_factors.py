"""Factors against brute force, and what a store may and may not reuse."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import landform as lf
from brute_force import apply_operator, curvature
from landform.curvature import factors as factors_module
from landform.curvature.factors import FactorsStudy
from landform.curvature.fitting import FactorsWorker
from landform.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    LabelError,
    NonFiniteError,
    StoreError,
)
from landform.evaluation.points import Data
from landform.store.artifacts import Store
from small_cases import CASES, small_case, small_task


@pytest.fixture(scope="module")
def cases(tmp_path_factory: Any, save_checkpoint: Any) -> Any:
    made: dict[tuple[str, str], Any] = {}

    def case(kind: str, architecture: str) -> tuple[Path, Any]:
        if (kind, architecture) not in made:
            path = tmp_path_factory.mktemp(f"{kind}-{architecture}")
            made[kind, architecture] = small_case(kind, architecture, path, save_checkpoint)
        return made[kind, architecture]

    return case


def fit(case: tuple[Path, Any], **options: Any) -> Any:
    return lf.fit_factors(*case, **{"dtype": "float64", "labels": "empirical", **options})


def brute(factors: Any, labels: str = "empirical") -> dict[str, Any]:
    session = factors.session()
    data = session.prepare(Data(factors.task, "train"), factors.examples)
    return curvature(
        factors.config.strategy,
        session.model,
        data.objective,
        data.batches,
        list(factors.layers),
        labels=labels,
    )


def close(a: torch.Tensor, b: torch.Tensor, tolerance: float = 1e-10) -> bool:
    return bool((a - b).abs().max() <= tolerance * b.abs().max())


@pytest.mark.parametrize(("kind", "architecture"), CASES)
def test_covariances_are_means_over_real_tokens(cases: Any, kind: str, architecture: str) -> None:
    factors = fit(cases(kind, architecture), strategy="kfac")
    for name, expected in brute(factors).items():
        assert close(factors.activation_covariance(name), expected.a), name
        assert close(factors.gradient_covariance(name), expected.s), name


@pytest.mark.parametrize("labels", ("empirical", "true"))
@pytest.mark.parametrize("strategy", ("diagonal", "kfac", "ekfac"))
@pytest.mark.parametrize(("kind", "architecture"), CASES[:3])
def test_curvatures_act_like_those_of_the_definition(
    cases: Any, kind: str, architecture: str, strategy: str, labels: str
) -> None:
    """Eigenvectors are not unique: the operator Q [(Q^T X Q) o Lambda] Q^T is."""
    factors = fit(cases(kind, architecture), strategy=strategy, labels=labels)
    for name, expected in brute(factors, labels).items():
        probe = torch.randn(expected.values.shape, dtype=torch.float64)
        left = factors.vectors.get(f"S/{name}", torch.eye(len(probe), dtype=torch.float64))
        right = factors.vectors.get(f"A/{name}", torch.eye(probe.shape[1], dtype=torch.float64))
        mine = apply_operator(left, right, factors.eigenvalues(name), probe)
        assert close(mine, expected.operator(probe), 1e-9), name


@pytest.mark.filterwarnings("ignore:small:UserWarning")
def test_no_eigenvalue_is_negative(cases: Any) -> None:
    factors = fit(cases("classification", "bert"), strategy="kfac", dtype="float32", rows=2)
    assert min(float(values.min()) for values in factors.values.values()) >= 0
    assert any(float(values.min()) < 1e-12 for values in factors.values.values())


def test_sampled_labels_are_the_expectation_in_the_long_run(cases: Any) -> None:
    # Equal rows would have equal draws, so there are many rows rather than many seeds.
    many = cases("classification", "bert")[0], small_task("classification", train=1200)
    options = {"strategy": "diagonal", "token_budget": 4096}
    exact = fit(many, labels="true", **options)
    draws, other, again = (fit(many, labels="sampled", seed=seed, **options) for seed in (3, 4, 3))
    assert draws.labels == "sampled"
    for name, square in exact.squares.items():
        # Layer sums: 1200 draws leave some ten per cent of noise in single entries.
        for fitted in (draws, other):
            mean = float(fitted.squares[name].sum())
            assert mean == pytest.approx(float(square.sum()), rel=0.1), name
        assert (again.squares[name] == draws.squares[name]).all()
        assert (other.squares[name] != draws.squares[name]).any()


def test_true_labels_are_sampled_where_there_are_many(cases: Any) -> None:
    factors = fit(cases("causal-lm", "gpt2"), strategy="diagonal", labels="true")
    assert factors.labels == "true (sampled)"
    sampled = fit(cases("causal-lm", "gpt2"), strategy="diagonal", labels="sampled")
    name = factors.layers[0]
    assert (factors.squares[name] == sampled.squares[name]).all()


def test_summary_says_what_was_seen(cases: Any) -> None:
    summary = fit(cases("classification", "bert"), strategy="ekfac").summary()
    assert 0.3 < summary.share < 0.95
    assert f"{100 * summary.share:.1f} % of the parameters" in summary.reading
    assert set(summary.spectra.factor) == {"activation", "gradient", "lambda"}
    for _, curve in summary.spectra.groupby(["module", "factor"]):
        assert (np.diff(curve.eigenvalue) <= 0).all() and curve["quantile"].iloc[0] == 0
        assert len(curve) <= 200
    assert list(summary.timings) == ["covariance", "eigendecomposition", "lambda"]
    assert fit(cases("classification", "bert"), strategy="identity").summary().spectra.empty


# --- stores -------------------------------------------------------------------------------------


@pytest.fixture
def counted(monkeypatch: Any) -> list[str]:
    """Names of the jobs that are really computed."""
    done: list[str] = []
    run = FactorsWorker.run
    monkeypatch.setattr(
        FactorsWorker, "run", lambda self, job: done.append(job.kind) or run(self, job)
    )
    return done


def test_factors_are_found_again_and_shared_between_strategies(
    cases: Any, tmp_path: Path, counted: list[str]
) -> None:
    case = cases("classification", "bert")
    first = fit(case, strategy="ekfac", store=tmp_path)
    assert counted == ["covariance", "eigenbasis", "squares"]
    counted.clear()
    again = fit(case, strategy="ekfac", store=tmp_path)
    kfac = fit(case, strategy="kfac", store=tmp_path)
    assert counted == []
    assert all((again.squares[n] == first.squares[n]).all() for n in first.layers)
    scores = lf.influence(again, damping=1e-3).values
    assert (scores == lf.influence(first, damping=1e-3).values).all()
    assert close(
        kfac.eigenvalues("classifier"), fit(case, strategy="kfac").eigenvalues("classifier")
    )


@pytest.mark.filterwarnings("ignore:small:UserWarning")
def test_whatever_changes_makes_other_factors(
    cases: Any, tmp_path: Path, counted: list[str], save_checkpoint: Any
) -> None:
    case = cases("classification", "bert")
    fit(case, strategy="diagonal", store=tmp_path)
    counted.clear()
    for options in (
        {"labels": "true"},
        {"rows": 5},
        {"exclude": ("classifier",)},
        {"dtype": "float32"},
        {"max_length": 6},
    ):
        fit(case, strategy="diagonal", store=tmp_path, **options)
        assert counted == ["squares"], options
        counted.clear()
    other = small_case("classification", "bert", tmp_path / "other", save_checkpoint, seed=1)
    fit((other[0], case[1]), strategy="diagonal", store=tmp_path)
    fit((case[0], small_task("classification", seed=1)), strategy="diagonal", store=tmp_path)
    assert counted == ["squares", "squares"]


def test_a_killed_fit_goes_on_after_its_last_chunk(
    cases: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    case, options = cases("classification", "bert"), {"strategy": "ekfac", "chunk_rows": 2}
    straight = fit(case, **options)
    run, done = FactorsWorker.run, list[str]()

    def stopping(self: Any, job: Any) -> Any:
        if len(done) == 8:  # five chunks of covariances, the basis, two of the eigenvalues
            raise KeyboardInterrupt
        done.append(job.label)
        return run(self, job)

    monkeypatch.setattr(FactorsWorker, "run", stopping)
    with pytest.raises(KeyboardInterrupt):
        fit(case, store=tmp_path, **options)
    monkeypatch.setattr(
        FactorsWorker, "run", lambda self, job: done.append(job.label) or run(self, job)
    )
    resumed = fit(case, store=tmp_path, **options)
    assert len(done) == len(set(done)) == 11
    for name in straight.layers:
        assert (resumed.squares[name] == straight.squares[name]).all()
    assert close(resumed.squares["classifier"], fit(case, strategy="ekfac").squares["classifier"])
    kinds = {path.name for path in (tmp_path / "artifacts").iterdir() if any(path.iterdir())}
    assert kinds == {"eigenbasis", "lambda"}  # the chunks are gone


def test_chunks_that_another_process_cleared_away(
    cases: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    """Two fits at once: the other one makes the total and clears the chunks, between our last
    chunk and our sum. Its total is ours; where nobody made one, the fault stays a fault."""
    case, options = cases("classification", "bert"), {"strategy": "ekfac", "chunk_rows": 2}
    straight = fit(case, **options)
    merge, other = factors_module._merge, []

    def overtaken(parts: Any) -> Any:
        if not other:
            other.append(None)  # the other process merges undisturbed
            other.append(fit(case, store=tmp_path, **options))
        return merge(parts)

    monkeypatch.setattr(factors_module, "_merge", overtaken)
    found = fit(case, store=tmp_path, **options)
    assert len(other) == 2
    for name in straight.layers:
        assert (found.squares[name] == straight.squares[name]).all()
        assert (found.vectors[f"A/{name}"] == other[1].vectors[f"A/{name}"]).all()

    def gone(parts: Any) -> Any:
        raise StoreError("no such chunk")

    monkeypatch.setattr(factors_module, "_merge", gone)
    with pytest.raises(StoreError, match="no such chunk"):
        fit(case, store=tmp_path / "another", **options)


def test_a_damaged_factor_file_is_named(cases: Any, tmp_path: Path) -> None:
    case = cases("classification", "bert")
    fit(case, strategy="diagonal", store=tmp_path)
    (file,) = (tmp_path / "artifacts" / "lambda").glob("*/tensors.safetensors")
    data = bytearray(file.read_bytes())
    data[-5] ^= 1  # same size, other bytes
    file.write_bytes(bytes(data))
    with pytest.raises(StoreError, match=r"tensors\.safetensors"):
        fit(case, strategy="diagonal", store=tmp_path)
    file.write_bytes(bytes(data[:-100]))  # truncated: as good as absent
    whole = fit(case, strategy="diagonal", store=tmp_path)
    assert close(whole.squares["classifier"], fit(case, strategy="diagonal").squares["classifier"])


def test_the_forecast_counts_rows_that_remain(cases: Any, tmp_path: Path) -> None:
    case = cases("classification", "bert")
    study = FactorsStudy.of(*case, dtype="float64", strategy="ekfac", labels="empirical")
    assert study.forecast().evaluations == 18
    study.run(store=tmp_path)
    assert study.forecast(Store.open(tmp_path)).evaluations == 0


# --- bad input ----------------------------------------------------------------------------------


def test_bad_input_is_named(cases: Any, tmp_path: Path, save_checkpoint: Any) -> None:
    checkpoint, task = cases("classification", "bert")
    empty = lf.load_task(
        {"train": pd.DataFrame({"text": ["w1"], "label": [0]})},
        text="text",
        label="label",
        label_names=("a", "b", "c"),
    )
    for options, error, message in (
        ({"strategy": "efkac"}, ConfigError, "ekfac"),
        ({"labels": "gold"}, ConfigError, "empirical"),
        ({"split": "tset"}, DataError, "tset"),
        ({"rows": 0}, ConfigError, "rows"),
        ({"include": ("*.nothing",)}, ConfigError, r"\*\.nothing"),
        ({"chunk_row": 5}, ConfigError, "did you mean 'chunk_rows'"),
    ):
        with pytest.raises(error, match=message):
            lf.fit_factors(checkpoint, task, **options)
    with pytest.raises(DataError, match="validation"):
        lf.influence(lf.fit_factors(checkpoint, empty, strategy="identity"))
    with pytest.raises(CheckpointError):
        lf.fit_factors(tmp_path / "nowhere", task)
    two = lf.load_task(
        {"train": pd.DataFrame({"text": ["w1", "w2"], "label": ["x", "y"]})},
        text="text",
        label="label",
    )
    with pytest.raises(LabelError):
        lf.fit_factors(checkpoint, two)


def test_a_layer_that_is_not_finite_is_named(cases: Any, tmp_path: Path, monkeypatch: Any) -> None:
    checkpoint, task = cases("classification", "bert")
    name = "bert.encoder.layer.1.output.dense"
    factors = fit((checkpoint, task), strategy="kfac")
    layer = next(x for x in factors.session().layers if x.name == name)

    def poison(module: Any, inputs: Any, output: torch.Tensor) -> torch.Tensor:
        if output.requires_grad:
            output.register_hook(lambda g: g * float("nan"))
        return output

    from landform.curvature.session import Session

    opened = factors.session()
    monkeypatch.setattr(Session, "open", classmethod(lambda cls, *a: opened))
    handle = layer.module.register_forward_hook(poison)
    try:
        for strategy in ("kfac", "diagonal"):
            opened.kept.clear()
            with pytest.raises(NonFiniteError, match=r"layer bert\.encoder\.layer\.\d"):
                fit((checkpoint, task), strategy=strategy)
    finally:
        handle.remove()


def test_weights_that_are_not_finite_are_named(
    tmp_path: Path, tiny_model: Any, word_tokenizer: Any
) -> None:
    model = tiny_model("classification", "bert", dtype=torch.float32, num_labels=3)
    with torch.no_grad():
        model.bert.encoder.layer[0].output.dense.weight[0, 0] = float("nan")
    model.config.id2label = {0: "a", 1: "b", 2: "c"}
    model.save_pretrained(tmp_path)
    word_tokenizer.save_pretrained(tmp_path)
    with pytest.raises(NonFiniteError, match=r"encoder\.layer\.0\.output\.dense\.weight"):
        lf.fit_factors(tmp_path, small_task("classification"))


def test_a_store_is_not_confused_by_a_copy_of_the_study(cases: Any, tmp_path: Path) -> None:
    case = cases("classification", "bert")
    first = fit(case, strategy="diagonal", store=tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    second = fit(case, strategy="diagonal", store=tmp_path / "b")
    assert first.fingerprint == second.fingerprint
