"""Eigenvalues, trace and density: known spectra, whole matrices, and what a run leaves behind."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import landform as lf
from dense_curvature import dense
from landform.curvature import lanczos, spectrum_jobs
from landform.curvature.lanczos import Lanczos, Quadrature, deflated_trace, density
from landform.curvature.spectrum import SpectrumStudy
from landform.errors import ConfigError, NonFiniteError
from landform.geometry.spectrum_path import spectrum_study
from landform.results import from_parts, to_parts
from landform.store.artifacts import Store
from landform.weights.checkpoint import load_model
from landform.weights.space import ParameterSpace
from text_models import save_text_model

LIKE = torch.empty(0, dtype=torch.float64)


def matrix_of(values: Any, seed: int = 0) -> torch.Tensor:
    """A symmetric matrix with these eigenvalues."""
    generator = torch.Generator().manual_seed(seed)
    size = len(values)
    q, _ = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64))
    return q @ torch.diag(torch.as_tensor(values, dtype=torch.float64)) @ q.t()


def products(matrix: torch.Tensor) -> Any:
    return lambda vectors: [matrix @ v for v in vectors]


def run_lanczos(matrix: torch.Tensor, top: int, bottom: int = 0, **options: Any) -> Lanczos:
    found = Lanczos.start(len(matrix), top, bottom, like=LIKE, **{"held": 14, "seed": 0, **options})
    while found.steps < 400 and not found.done(1e-9):
        found.step(products(matrix))
    assert found.done(1e-9)
    return found


# --- Lanczos --------------------------------------------------------------------------------------

SPECTRA = {
    "separate": [9.0, 4.0, 2.5, 1.0, *np.linspace(-0.4, 0.4, 30), -1.5, -3.0],
    "several times": [5.0, 5.0, 5.0, 1.0, *np.linspace(-0.2, 0.2, 20), -2.0, -2.0],
    "low rank": [3.0, 2.0, *np.zeros(25), -1.0],
    "all the same": [2.0] * 12,
    "all but one": [2.0] * 12 + [1.0],
    "two values": [0.0] * 20 + [1.0] * 20 + [2.0],
    "zero": [0.0] * 9,
}


@pytest.mark.parametrize("name", SPECTRA)
@pytest.mark.parametrize("held", [9, 14, 60])
def test_both_ends_of_a_known_spectrum(name: str, held: int) -> None:
    values = np.sort(np.array(SPECTRA[name]))
    matrix = matrix_of(values)
    found = run_lanczos(matrix, 4, 3, held=held)
    eigenvalues, residuals = found.estimates()
    expected = np.r_[values[::-1][:4], values[:3][::-1]]
    np.testing.assert_allclose(eigenvalues, expected, atol=1e-8)
    vectors = found.vectors()
    torch.testing.assert_close(vectors @ vectors.t(), torch.eye(7).double(), rtol=0, atol=1e-9)
    true = torch.linalg.vector_norm(
        matrix @ vectors.t() - vectors.t() * torch.from_numpy(eigenvalues), dim=0
    )
    assert float(true.max()) < 1e-7
    assert (np.abs(true.numpy() - residuals) < 1e-7).all()


# One vector's Krylov space holds one vector of every eigenspace: of equal eigenvalues it finds the
# others only where it is exhausted ("several times" above). So these are distinct.
@settings(max_examples=25)
@given(
    st.lists(st.integers(-1000, 1000), min_size=6, max_size=16, unique=True),
    st.integers(0, 5),
)
def test_any_spectrum(values: list[int], seed: int) -> None:
    found = run_lanczos(matrix_of(values, seed), 2, 1, seed=seed)
    ordered = sorted(values, reverse=True)
    scale = max(map(abs, values))
    np.testing.assert_allclose(
        found.estimates()[0], [ordered[0], ordered[1], ordered[-1]], atol=1e-4 * scale
    )


def test_residuals_bound_the_error_before_convergence() -> None:
    values = np.linspace(0, 1, 60) ** 3
    matrix = matrix_of(values)
    found = Lanczos.start(60, 3, 0, held=20, seed=1, like=LIKE)
    for _ in range(8):
        found.step(products(matrix))
    eigenvalues, residuals = found.estimates()
    for value, residual in zip(eigenvalues, residuals, strict=True):
        assert np.abs(values - value).min() <= residual * (1 + 1e-9)
    assert residuals.max() > 1e-6 and not found.done(1e-9)


# --- trace and density ----------------------------------------------------------------------------


def test_hutch_plus_plus_is_exact_on_low_rank() -> None:
    matrix = matrix_of([5.0, -2.0, 1.0, *[0.0] * 40])
    exact, rest = deflated_trace(products(matrix), 43, sketch=4, probes=4, seed=0, like=LIKE)
    assert exact == pytest.approx(4.0, abs=1e-9)
    np.testing.assert_allclose(rest, 0, atol=1e-9)


@pytest.mark.parametrize("size", [21, 23])  # blocks that end with the vector, and that do not
def test_inner_products_of_many_blocks(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    """Real models have many blocks, the matrices of these tests one."""
    monkeypatch.setattr(lanczos, "BLOCK", 7)
    a, b = (torch.randn(size, generator=torch.Generator().manual_seed(k)) for k in (0, 1))
    expected = float(a.double().numpy() @ b.double().numpy())
    assert lanczos._dot(a, b) == pytest.approx(expected, rel=1e-13)


def test_signs_are_the_draws_of_every_version() -> None:
    """Traces and densities that studies keep, and go on from, rest on them."""
    drawn = torch.randint(0, 2, (1001,), generator=torch.Generator().manual_seed(5))
    assert torch.equal(lanczos.signs(1001, 5, LIKE), (2 * drawn - 1).to(LIKE))


def test_traces_are_unbiased_and_their_errors_right() -> None:
    values = np.r_[20.0, 5.0, np.linspace(-1, 1, 40)]
    matrix, truth = matrix_of(values), 25.0
    for sketch, probes in ((0, 400), (4, 400)):
        exact, rest = deflated_trace(
            products(matrix), len(values), sketch=sketch, probes=probes, seed=3, like=LIKE
        )
        error = rest.std(ddof=1) / np.sqrt(probes)
        assert abs(exact + rest.mean() - truth) < 4 * error
        # Rademacher: variance 2 (||A||_F^2 - sum_i A_ii^2), far less of what is left of A.
        if not sketch:
            spread = rest.std()
            variance = 2 * float(matrix.square().sum() - matrix.diagonal().square().sum())
            assert rest.var(ddof=1) == pytest.approx(variance, rel=0.3)
        else:
            assert rest.std() < 0.5 * spread


def test_quadrature_has_the_moments_of_its_probe() -> None:
    values = np.r_[4.0, -2.0, np.linspace(-1, 1, 38)]
    matrix = matrix_of(values)
    found = Quadrature.start(40, [0, 1], LIKE)
    starts = [v.clone() for v in found.current]
    for _ in range(7):
        found.step(products(matrix))
    for start, (nodes, weights) in zip(starts, found.nodes(), strict=True):
        assert weights.sum() == pytest.approx(1.0, abs=1e-12)
        vector = start
        for power in range(14):  # exact up to degree 2 m - 1
            moment = float(start @ vector)
            assert (weights * nodes**power).sum() == pytest.approx(moment, rel=1e-9, abs=1e-10)
            vector = matrix @ vector


def test_an_exhausted_quadrature_is_the_spectrum() -> None:
    matrix = matrix_of([3.0, 3.0, 1.0, 0.0, 0.0])
    found = Quadrature.start(5, [4], LIKE)
    while found.open:
        found.step(products(matrix))
    nodes, weights = found.nodes()[0]
    np.testing.assert_allclose(nodes, [0, 1, 3], atol=1e-9)
    assert found.steps == 3 and weights.sum() == pytest.approx(1)


def test_densities_sum_to_one_wherever_they_lie() -> None:
    nodes = [(np.array([-3.0, 0.0, 900.0]), np.array([0.1, 0.8, 0.1]))]
    for width in (0.001, 0.01, 0.3):
        grid, curves, sigma = density(nodes, width=width)
        step = grid[1] - grid[0]
        assert curves.sum() * step == pytest.approx(1.0)
        assert (grid * curves[0]).sum() * step == pytest.approx(89.7, rel=1e-3)
        assert sigma == pytest.approx(903 * width)
        near = np.abs(grid - 900) < 4 * sigma
        if width < 0.1:
            assert curves[0][near].sum() * step == pytest.approx(0.1, rel=1e-3)


# --- checkpoints ----------------------------------------------------------------------------------

SIZES = {
    "hidden_size": 4, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 5,
    "max_position_embeddings": 16,
}  # fmt: skip
EXACT: dict[str, Any] = {"dtype": "float64", "rows": 9, "tolerance": 1e-7, "steps": 300}
PAIRS: dict[str, Any] = {"rows": 9, "top": 2, "steps": 20}
QUICK: dict[str, Any] = {**PAIRS, "probes": 4, "density_steps": 6}


@pytest.fixture(scope="module")
def place(tmp_path_factory: Any, save_checkpoint: Any, write_rows: Any) -> Path:
    root: Path = tmp_path_factory.mktemp("spectrum")
    for seed in (0, 1):
        save_checkpoint(root / f"seed{seed}", seed=seed, **SIZES)
    write_rows(root / "dev.tsv", 20)
    return root


@pytest.fixture(scope="module")
def task(place: Path) -> Any:
    files = {"validation": str(place / "dev.tsv")}
    return lf.load_task(files, text="sentence", label="label")


def whole(place: Path, task: Any, operator: str) -> np.ndarray:
    """The matrix at seed0, from its definition."""
    from landform.evaluation.points import PointsConfig
    from landform.tasks.batching import encode
    from landform.weights.checkpoint import load_tokenizer

    model = load_model(place / "seed0", "classification", PointsConfig(dtype="float64"))
    tokens = encode(
        task.examples("validation", rows=9),
        load_tokenizer(place / "seed0"),
        "classification",
        max_length=16,
    )
    rows = [{"input_ids": row["input_ids"], "labels": row["labels"]} for row in tokens.rows]
    space = ParameterSpace.of(model)
    return dense("classification", operator, model, rows, space=space).numpy()


@pytest.mark.parametrize("operator", ["hessian", "ggn", "empirical-fisher"])
def test_a_checkpoint_against_its_whole_matrix(place: Path, task: Any, operator: str) -> None:
    truth = np.linalg.eigvalsh(whole(place, task, operator))
    bottom = 2 if operator == "hessian" else 0
    found = lf.spectrum(
        place / "seed0", task, operator=operator, top=4, bottom=bottom, probes=60, **EXACT
    )
    assert found.converged and found.parameters == len(truth)
    np.testing.assert_allclose(found.eigenvalues, truth[::-1][:4], rtol=1e-6)
    np.testing.assert_allclose(found.smallest, truth[:bottom], rtol=1e-6)
    error = max(found.trace_error, 1e-8 * abs(truth.sum()))
    assert abs(found.trace - truth.sum()) < 4 * error
    table = found.density
    step = table["eigenvalue"].iloc[1] - table["eigenvalue"].iloc[0]
    assert float(table["density"].sum() * step) == pytest.approx(1.0)
    assert (table["low"] <= table["density"]).all() and (table["density"] <= table["high"]).all()
    weights = found.quadrature.groupby("probe")["weight"].sum()
    np.testing.assert_allclose(weights, 1.0)
    assert (found.table["residual"] <= 1e-6 * np.abs(truth).max()).all()
    assert (found.table["low"] <= found.table["eigenvalue"]).all()
    assert found.table["data_error"].notna().all()
    assert "largest eigenvalue" in found.reading
    again = from_parts(*to_parts(found))
    np.testing.assert_array_equal(again.eigenvalues, found.eigenvalues)
    assert found.to_json()["eigenvalues"] == found.eigenvalues.tolist()


def test_the_fisher_is_another_name_and_is_computed_once(
    place: Path, task: Any, tmp_path: Path
) -> None:
    store = Store.open(tmp_path / "study")
    one = lf.spectrum(place / "seed0", task, operator="ggn", store=store, **QUICK)
    study = SpectrumStudy.of(place / "seed0", task, operator="fisher", **QUICK)
    assert study.forecast(store).evaluations == 0
    other = study.run(store)
    np.testing.assert_array_equal(one.eigenvalues, other.eigenvalues)
    assert (one.operator, other.operator) == ("ggn", "fisher")


@pytest.mark.parametrize("stop", [5, 17, 28])
def test_a_killed_run_goes_on_to_the_same_numbers(
    place: Path, task: Any, tmp_path: Path, monkeypatch: Any, stop: int
) -> None:
    options: dict[str, Any] = {**QUICK, "top": 2, "held": 6, "tolerance": 1e-6, "steps": 15}
    expected = lf.spectrum(place / "seed0", task, **options)
    monkeypatch.setattr(spectrum_jobs, "KEEP_SECONDS", 0.0)
    operator, done = spectrum_jobs.CurvatureOperator, [0]
    multiply = operator.multiply_all

    def counting(self: Any, vectors: Any, *rest: Any) -> Any:
        done[0] += len(vectors)
        if done[0] > stop > 0:
            raise KeyboardInterrupt
        return multiply(self, vectors, *rest)

    monkeypatch.setattr(operator, "multiply_all", counting)
    with pytest.raises(KeyboardInterrupt):
        lf.spectrum(place / "seed0", task, store=tmp_path / "study", **options)
    first, done[0] = done[0], 0
    monkeypatch.setattr(operator, "multiply_all", counting)
    limit, stop = stop, 0
    found = lf.spectrum(place / "seed0", task, store=tmp_path / "study", **options)
    total = 15 + 2 + 4 + 12
    # What a step had begun, and the trace, which is one piece, are done again.
    assert done[0] <= total - limit + 4 and first > limit
    for name in ("table", "density", "quadrature"):
        assert getattr(found, name).equals(getattr(expected, name)), name
    assert (found.trace, found.trace_error) == (expected.trace, expected.trace_error)
    # Nothing is left that was kept only to go on from.
    left = [p for p in (tmp_path / "study" / "artifacts").rglob("*-state/*") if p.is_dir()]
    assert not left


def test_a_subspace_and_the_one_split_there_is(place: Path, task: Any) -> None:
    found = lf.spectrum(place / "seed0", task, exclude=("*embeddings*",), trace="none",
                        density_probes=0, **PAIRS)  # fmt: skip
    assert found.parameters < 300 and np.isnan(found.trace) and not len(found.density)
    with pytest.warns(UserWarning, match="'validation' only, no 'train'"):
        other = lf.spectrum(place / "seed0", task, split="train", top=1, trace="none",
                            density_probes=0, rows=9, steps=3)  # fmt: skip
    assert not other.converged and "NOT converged" in other.reading


# --- along a path ---------------------------------------------------------------------------------


def middle_of(place: Path, target: Path) -> Path:
    """A checkpoint half way between the two."""
    shutil.copytree(place / "seed0", target)
    a, b = (load_file(place / f"seed{seed}" / "model.safetensors") for seed in (0, 1))
    mean = {name: (a[name] + b[name]) / 2 for name in a}
    save_file(mean, target / "model.safetensors", metadata={"format": "pt"})
    return target


def test_a_line_has_the_spectra_of_its_ends(place: Path, task: Any, tmp_path: Path) -> None:
    store = Store.open(tmp_path / "study")
    options = {name: value for name, value in QUICK.items() if name != "density_steps"}
    found = lf.spectrum_along_path(
        place / "seed0", place / "seed1", task, points=3, store=store, **options
    )
    assert found.table["t"].tolist() == [0, 0.5, 1]
    for seed, row in ((0, 0), (1, 2)):
        alone = lf.spectrum(place / f"seed{seed}", task, store=store, **QUICK)
        values = found.table.iloc[row]
        assert (values.eigenvalue, values.trace) == (alone.eigenvalues[0], alone.trace)
        assert values.loss == pytest.approx(alone.loss)
    alone = lf.spectrum(middle_of(place, tmp_path / "middle"), task, **QUICK)
    values = found.table.iloc[1]
    assert values.loss == pytest.approx(alone.loss, rel=1e-5)
    assert values.eigenvalue == pytest.approx(alone.eigenvalues[0], rel=1e-2)
    assert (found.table["loss_low"] <= found.table["loss"]).all()
    assert len(found.eigenvalues) == 6 and "along the line" in found.reading
    again = from_parts(*to_parts(found))
    assert again.eigenvalues.equals(found.eigenvalues)


# --- bad input ------------------------------------------------------------------------------------


def test_the_interval_of_a_trace_knows_how_few_its_vectors_are(place: Path, task: Any) -> None:
    # Student's t at 97.5 %: 12.7062 of 2 vectors, 2.3646 of 8; 1.96 would cover two in three.
    for probes, vectors, reach in ((6, 2, 12.7062), (24, 8, 2.3646)):
        options = {**PAIRS, "probes": probes, "density_probes": 0}
        q = lf.spectrum(place / "seed0", task, **options)
        assert q.trace_vectors == vectors and q.trace_error > 0
        assert q.trace_high - q.trace == pytest.approx(reach * q.trace_error, rel=1e-4)
        assert q.trace - q.trace_low == pytest.approx(reach * q.trace_error, rel=1e-4)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"operator": "hesian"}, "operator"),
        ({"top": 100_000, "held": 200_000}, "100,000 eigenvalues, but .* has [0-9,]+ parameters"),
        ({"top": 30}, "held 40 is too few|too few"),
        ({"parameters": ("nothing*",)}, "no tensor matches"),
        ({"dtype": "bfloat16"}, "too few digits"),
        ({"probes": 2}, "probes 2"),
        ({"top": 0, "trace": "none", "density_probes": 0}, "nothing to compute"),
        ({"replicates": 50}, "replicates belongs to a path"),
        ({"top": 20, "held": 40, "parameters": ("classifier.bias",)}, "the matrix has 2 rows"),
    ],
    ids=[
        "operator",
        "top",
        "held",
        "parameters",
        "dtype",
        "probes",
        "nothing",
        "replicates",
        "subspace",
    ],
)
def test_bad_options_are_named(place: Path, task: Any, options: Any, words: str) -> None:
    options = {"rows": 9, **options}
    if options.get("top") == 30:
        options["held"] = 31
    with pytest.raises(ConfigError, match=words):
        lf.spectrum(place / "seed0", task, **options)


def test_weights_that_are_not_finite_are_named(
    place: Path, task: Any, tmp_path: Path, save_checkpoint: Any
) -> None:
    path = save_checkpoint(tmp_path / "broken", **SIZES)
    tensors = load_file(path / "model.safetensors")
    tensors["classifier.weight"][0, 0] = float("nan")
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(NonFiniteError, match=r"classifier\.weight"):
        lf.spectrum(path, task, **QUICK)


def test_paths_and_points_do_not_mix(place: Path, task: Any) -> None:
    one, two = str(place / "seed0"), str(place / "seed1")
    with pytest.raises(ConfigError, match="points belongs to a path"):
        spectrum_study([one], task, options={"points": 3})
    with pytest.raises(ConfigError, match="3 checkpoints"):
        spectrum_study([one, two, one], task, options={})
    with pytest.raises(ConfigError, match="nothing to follow"):
        spectrum_study([one, two], task, options={"top": 0, "trace": "none"})
    for other in ({"width": 0.1}, {"density_steps": 6}, {"density_probes": 3}):
        with pytest.raises(ConfigError, match=f"{next(iter(other))} belongs to one checkpoint"):
            spectrum_study([one, two], task, options=other)
    spectrum_study([one, two], task, options={"density_probes": 0})


# --- what is not known, not needed, or not counted ------------------------------------------------


def test_an_unknown_error_over_examples_leaves_no_interval(
    place: Path, task: Any, monkeypatch: Any
) -> None:
    def unknown(self: Any, vectors: Any, quotients: Any = None) -> Any:
        return [torch.full((self.data.size,), float("nan"), dtype=torch.float64) for _ in vectors]

    monkeypatch.setattr(spectrum_jobs.CurvatureOperator, "quadratic_forms", unknown)
    options = {**PAIRS, "top": 1, "trace": "none", "density_probes": 0}
    found = lf.spectrum(place / "seed0", task, **options)
    assert found.table[["data_error", "low", "high", "share"]].isna().all(axis=None)
    assert found.table["example"].tolist() == [None]
    assert "error over examples unknown" in found.reading and "nan" not in found.reading
    assert from_parts(*to_parts(found)).table["example"].isna().all()
    found.plot()


def test_the_loss_of_answers_generates_none(tmp_path: Path) -> None:
    save_text_model(tmp_path / "model")
    (tmp_path / "dev.tsv").write_text("text\tanswer\nw1 w2\tw3\nw4 w5\tw6\n")
    files = {"validation": str(tmp_path / "dev.tsv")}
    given = lf.load_task(files, kind="seq2seq", text="text", label="answer", metrics="exact_match")
    study = SpectrumStudy.of(tmp_path / "model", given)
    (loss,) = (job for job in study.plan.jobs if job.kind == "mix")
    assert "generation" not in loss.spec
    assert given.metrics  # the task that was given is as it was


def test_the_forecast_counts_the_copies_of_second_differences(
    place: Path, task: Any, monkeypatch: Any
) -> None:
    from landform.evaluation import points
    from landform.store.artifacts import MemoryStore

    monkeypatch.setattr(points, "_peak_memory", lambda: 0)
    options = {**QUICK, "graphs": 0.0}
    memory = {}
    for operator in ("hessian", "ggn"):
        study = SpectrumStudy.of(place / "seed0", task, operator=operator, **options)
        memory[operator] = study.forecast(MemoryStore()).memory
    size = lf.spectrum(place / "seed0", task, **{**options, "top": 1, "steps": 1}).parameters
    assert memory["hessian"] - memory["ggn"] == 3 * 8 * size


def test_inner_products_of_long_rows_are_those_of_float64() -> None:
    from landform.curvature.lanczos import COLUMNS, _gram

    rows = torch.randn(3, 2 * COLUMNS + 5, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(_gram(rows), rows.double() @ rows.double().t())
