"""Reading a kronfluence folder, which is written here by hand: nothing else has to be installed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import landform as lf
from landform.curvature.kronfluence import import_kronfluence
from landform.errors import ConfigError, CurvatureError
from small_cases import small_case

ROWS = 9


def write_folder(folder: Path, factors: Any, **arguments: Any) -> Path:
    """What kronfluence would have written: sums and counts, basis, Lambda."""
    folder.mkdir(parents=True)
    strategy = factors.config.strategy
    about = {"strategy": strategy, "use_empirical_fisher": True, "covariance_max_examples": None}
    (folder / "factor_arguments.json").write_text(json.dumps({**about, **arguments}))
    size = {"type": "Dataset", "dataset_size": ROWS, "indices": None}
    (folder / "covariance_dataset_metadata.json").write_text(json.dumps(size))
    files: dict[str, dict[str, torch.Tensor]] = {}
    for name in factors.layers:
        for side, word in (("A", "activation"), ("S", "gradient")):
            if strategy not in ("kfac", "ekfac"):
                continue
            total = 7 * factors._covariance(side, name)
            files.setdefault(f"{word}_covariance", {})[name] = total
            count = files.setdefault(f"num_{word}_covariance_processed", {})
            count[name] = torch.tensor([7])
            vectors = files.setdefault(f"{word}_eigenvectors", {})
            vectors[name] = factors.vectors[f"{side}/{name}"].clone()
            values = files.setdefault(f"{word}_eigenvalues", {})
            values[name] = factors.values[f"{side}/{name}"].clone()
        if strategy in ("diagonal", "ekfac"):
            squares = files.setdefault("lambda_matrix", {})
            squares[name] = ROWS * factors.squares[name]
            files.setdefault("num_lambda_processed", {})[name] = torch.tensor([ROWS])
    for name, tensors in files.items():
        save_file({n: t.contiguous() for n, t in tensors.items()}, folder / f"{name}.safetensors")
    return folder


@pytest.fixture(scope="module")
def case(tmp_path_factory: Any, save_checkpoint: Any) -> tuple[Path, Any]:
    return small_case("classification", "bert", tmp_path_factory.mktemp("model"), save_checkpoint)


@pytest.fixture(scope="module")
def fitted(case: tuple[Path, Any]) -> dict[str, Any]:
    options: dict[str, Any] = {"labels": "empirical", "dtype": "float64"}
    names = ("identity", "diagonal", "kfac", "ekfac")
    return {name: lf.fit_factors(*case, strategy=name, **options) for name in names}


@pytest.fixture
def folder(fitted: dict[str, Any], tmp_path: Path) -> Path:
    return write_folder(tmp_path / "factors_x", fitted["ekfac"])


def scores(factors: Any) -> np.ndarray:
    return lf.influence(factors, damping=1e-3).values


@pytest.mark.parametrize("strategy", ["identity", "diagonal", "kfac", "ekfac"])
def test_what_was_written_scores_the_same(
    case: tuple[Path, Any], fitted: dict[str, Any], tmp_path: Path, strategy: str
) -> None:
    folder = write_folder(tmp_path / "factors_x", fitted[strategy])
    found = import_kronfluence(folder, *case, strategy=strategy, dtype="float64")
    assert found.labels == "empirical"
    assert found.rows == ROWS
    np.testing.assert_allclose(scores(found), scores(fitted[strategy]), rtol=1e-10)


def test_covariances_without_a_basis_are_decomposed(
    case: tuple[Path, Any], fitted: dict[str, Any], tmp_path: Path
) -> None:
    folder = write_folder(tmp_path / "factors_x", fitted["kfac"])
    for file in folder.glob("*eigen*"):
        file.unlink()
    found = import_kronfluence(folder, *case, strategy="kfac", dtype="float64")
    np.testing.assert_allclose(scores(found), scores(fitted["kfac"]), rtol=1e-9)


def test_parts_are_put_together(
    case: tuple[Path, Any], fitted: dict[str, Any], folder: Path
) -> None:
    for name in ("lambda_matrix", "num_lambda_processed"):
        whole = load_file(folder / f"{name}.safetensors")
        (folder / f"{name}.safetensors").unlink()
        for module, layers in enumerate((list(whole)[:5], list(whole)[5:])):
            for data, (share, count) in enumerate(((0.25, 2), (0.75, ROWS - 2))):
                part = {
                    n: torch.tensor([count]) if name.startswith("num") else share * whole[n]
                    for n in layers
                }
                end = f"_data_partition{data}_module_partition{module}"
                save_file(part, folder / f"{name}{end}.safetensors")
    arguments = json.loads((folder / "factor_arguments.json").read_text())
    arguments |= {"lambda_data_partitions": 2, "lambda_module_partitions": 2}
    (folder / "factor_arguments.json").write_text(json.dumps(arguments))
    found = import_kronfluence(folder, *case, dtype="float64")
    assert found.rows == ROWS
    np.testing.assert_allclose(scores(found), scores(fitted["ekfac"]), rtol=1e-9)
    (folder / "lambda_matrix_data_partition1_module_partition0.safetensors").unlink()
    with pytest.raises(CurvatureError, match=r"data_partition1_module_partition0.* is missing"):
        import_kronfluence(folder, *case)


def test_modules_that_were_called_otherwise(
    case: tuple[Path, Any], fitted: dict[str, Any], folder: Path
) -> None:
    for file in folder.glob("*.safetensors"):
        save_file({f"inner.{n}": t for n, t in load_file(file).items()}, file)
    with pytest.raises(CurvatureError, match=r"has not the layers.*inner\."):
        import_kronfluence(folder, *case)
    for names in ({"inner.": ""}, lambda name: name.removeprefix("inner.")):
        found = import_kronfluence(folder, *case, names=names, dtype="float64")
        np.testing.assert_allclose(scores(found), scores(fitted["ekfac"]), rtol=1e-10)


def test_fingerprints_follow_the_files(case: tuple[Path, Any], folder: Path) -> None:
    first = import_kronfluence(folder, *case).fingerprint
    assert import_kronfluence(folder, *case).fingerprint == first
    file = folder / "lambda_matrix.safetensors"
    save_file({n: 2 * t for n, t in load_file(file).items()}, file)
    assert import_kronfluence(folder, *case).fingerprint != first


def _truncate(folder: Path) -> None:
    file = folder / "lambda_matrix.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def _wrong_shape(folder: Path) -> None:
    file = folder / "activation_eigenvectors.safetensors"
    tensors = load_file(file)
    tensors["classifier"] = torch.eye(4)
    save_file(tensors, file)


def _not_finite(folder: Path) -> None:
    file = folder / "lambda_matrix.safetensors"
    tensors = load_file(file)
    tensors["classifier"][0, 0] = torch.nan
    save_file(tensors, file)


def _lost_layer(folder: Path) -> None:
    file = folder / "lambda_matrix.safetensors"
    tensors = load_file(file)
    del tensors["classifier"]
    save_file(tensors, file)


def _not_a_layer(folder: Path) -> None:
    for file in folder.glob("*.safetensors"):
        tensors = load_file(file)
        tensors["bert.embeddings.LayerNorm"] = tensors.pop("classifier")
        save_file(tensors, file)


def _other_strategy(folder: Path) -> None:
    (folder / "factor_arguments.json").write_text('{"strategy": "diagonal"}')


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_truncate, "lambda_matrix.safetensors is damaged"),
        (_wrong_shape, r"activation_eigenvectors.*classifier has the shape \(4, 4\).*\(17, 17\)"),
        (_not_finite, "lambda_matrix.*classifier are not finite"),
        (_lost_layer, "classifier is in only one of"),
        (_not_a_layer, "LayerNorm cannot be looked at: no curvature for LayerNorm"),
        (_other_strategy, "these factors are diagonal"),
        (lambda f: (f / "gradient_eigenvalues.safetensors").unlink(), "gradient_eigenvalues.* mis"),
        (lambda f: (f / "factor_arguments.json").unlink(), "no factor folder"),
        (lambda f: (f / "factor_arguments.json").write_text("{"), "cannot be read"),
        (shutil.rmtree, "there is no such directory"),
    ],
)
def test_what_is_wrong_is_named(
    case: tuple[Path, Any], folder: Path, damage: Any, message: str
) -> None:
    damage(folder)
    with pytest.raises(CurvatureError, match=message):
        import_kronfluence(folder, *case)


def test_the_folder_above_is_understood(case: tuple[Path, Any], folder: Path) -> None:
    with pytest.raises(CurvatureError, match="factors_x"):
        import_kronfluence(folder.parent, *case)


def test_rows_and_labels_are_those_of_the_folder(case: tuple[Path, Any], folder: Path) -> None:
    with pytest.raises(CurvatureError, match="fitted on 9 rows, small:validation has 5"):
        import_kronfluence(folder, *case, split="validation")
    with pytest.raises(ConfigError, match="labels"):
        import_kronfluence(folder, *case, labels="true")
    with pytest.raises(ConfigError, match="device"):
        import_kronfluence(folder, *case, device="nowhere")
