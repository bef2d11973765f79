"""Surface pickles: F is indexed [x, y], landform's grids [y, x]."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

from landform.errors import ConfigError, DataError, NonFiniteError
from landform.exchange.surfaces import read_surfaces, write_surfaces
from landform.results import from_parts, to_parts

G = np.linspace(-1.0, 2.0, 7)
S = 0.5
LOCATIONS = {"w0": (0, 0), "w1": (1, 0), "w2": (0.5, S)}


def height(x: Any, y: Any) -> Any:
    """No symmetry between x and y."""
    return x**2 + 3 * y + 0.1 * x * y


def original(folder: Path, metric: str = "loss", scale: float = 1.0, **changes: Any) -> Path:
    """A pickle as interpolate_2d writes it."""
    values = torch.zeros(7, 7)
    for i, g in enumerate(G):
        for j, h in enumerate(G):
            values[i, j] = scale * height(g, S * h)
    grid_x, grid_y = np.meshgrid(G, G)
    parts = {"X": grid_x, "Y": S * grid_y, "F": values, "locations": LOCATIONS, **changes}
    path = folder / f"mnli_test_99_44_73_2_{metric}_surface.pkl"
    content = ((parts["X"], parts["Y"], parts["F"]), parts["locations"])
    path.write_bytes(pickle.dumps(content))
    return path


def test_the_first_index_of_the_file_is_x(tmp_path):
    surface = read_surfaces([original(tmp_path)], allow_pickle=True)
    assert surface.values["loss"].shape == (len(surface.y), len(surface.x)) == (7, 7)
    np.testing.assert_allclose(surface.x, G)
    np.testing.assert_allclose(surface.y, S * G)
    for row, y in enumerate(surface.y):
        for column, x in enumerate(surface.x):
            assert surface.values["loss"][row, column] == pytest.approx(height(x, y), abs=1e-6)
    assert surface.models == {"99": (0, 0), "44": (1, 0), "73": (0.5, S)}
    assert surface.data == ("mnli:test",) and np.isnan(surface.unit)


def test_quantities_of_one_plane_come_together(tmp_path):
    files = [original(tmp_path), original(tmp_path, "acc", 0.1), original(tmp_path, "ece", 0.2)]
    surface = read_surfaces(files[::-1], allow_pickle=True)
    assert list(surface.values) == ["loss", "accuracy", "ece"]
    np.testing.assert_allclose(surface.values["ece"], 0.2 * surface.values["loss"], atol=1e-6)


def test_an_imported_surface_is_read_kept_and_drawn(tmp_path):
    surface = read_surfaces([original(tmp_path)], allow_pickle=True)
    assert "plane through 99, 44, 73" in surface.reading
    tables, record = to_parts(surface)
    assert from_parts(tables, record).models == surface.models
    surface.plot()
    plt.close("all")


def test_a_grid_that_misses_the_models_can_be_read(tmp_path):
    grid_x, grid_y = np.meshgrid(np.linspace(-2, 2, 8), np.linspace(-2, 2, 8))
    path = original(tmp_path, X=grid_x, Y=S * grid_y, F=torch.rand(8, 8))
    surface = read_surfaces([path], allow_pickle=True)
    assert "plane through" in surface.reading
    surface.plot()
    plt.close("all")


def test_written_surfaces_are_the_originals_form(tmp_path):
    surface = read_surfaces([original(tmp_path), original(tmp_path, "acc")], allow_pickle=True)
    written = write_surfaces(surface, tmp_path / "out")
    assert [path.name for path in written] == [
        "mnli_test_99_44_73_2_loss_surface.pkl",
        "mnli_test_99_44_73_2_acc_surface.pkl",
    ]
    (grid_x, _, values), locations = pickle.loads(written[0].read_bytes())
    assert torch.is_tensor(values) and values[2, 5] == pytest.approx(
        height(G[2], S * G[5]), abs=1e-6
    )
    np.testing.assert_array_equal(grid_x, np.meshgrid(G, G)[0])
    assert locations == {name: pytest.approx(place) for name, place in LOCATIONS.items()}
    again = read_surfaces(written, allow_pickle=True)
    np.testing.assert_array_equal(again.values["loss"], surface.values["loss"])
    assert again.models == surface.models and again.data == surface.data


# --- bad input -----------------------------------------------------------------------------------


def test_a_pickle_not_asked_for(tmp_path):
    for paths in ([original(tmp_path)], str(original(tmp_path))):
        with pytest.raises(DataError, match="only when asked for"):
            read_surfaces(paths)


def test_a_truncated_surface(tmp_path):
    path = original(tmp_path)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(DataError, match=r"loss_surface\.pkl is truncated, damaged"):
        read_surfaces([path], allow_pickle=True)
    path = original(tmp_path, F=torch.zeros(7, 6))
    with pytest.raises(DataError, match=r"shape \(7, 6\), expected \(7, 7\)"):
        read_surfaces([path], allow_pickle=True)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"X": np.zeros((7, 7))}, "do not rise"),
        ({"X": np.random.default_rng(0).normal(size=(7, 7))}, "not a grid"),
        ({"X": 3.0}, "expected a grid"),
        ({"F": [[1], [2, 3]]}, "does not hold a surface"),
        ({"locations": {}}, "0 models on the plane"),
        ({"locations": 3}, "does not hold a surface"),
    ],
)
def test_other_things_are_no_surfaces(tmp_path, changes, said):
    with pytest.raises(DataError, match=said):
        read_surfaces([original(tmp_path, **changes)], allow_pickle=True)


def test_nan_is_named_with_its_place(tmp_path):
    values = torch.zeros(7, 7)
    values[1, 6] = float("nan")
    with pytest.raises(NonFiniteError, match=r"the value at \(-0\.5, 1\) is nan"):
        read_surfaces([original(tmp_path, F=values)], allow_pickle=True)


def test_files_of_two_planes_disagree(tmp_path):
    other = dict(LOCATIONS, w2=(0.6, S))
    files = [original(tmp_path), original(tmp_path, "acc", locations=other)]
    with pytest.raises(DataError, match="are of different planes") as caught:
        read_surfaces(files, allow_pickle=True)
    assert all(str(file) in str(caught.value) for file in files)


def test_the_loss_is_needed_and_each_quantity_once(tmp_path):
    with pytest.raises(DataError, match="no file holds the loss"):
        read_surfaces([original(tmp_path, "acc")], allow_pickle=True)
    with pytest.raises(DataError, match="given twice"):
        read_surfaces([original(tmp_path)] * 2, allow_pickle=True)
    with pytest.raises(ConfigError, match="no surface files"):
        read_surfaces([])
