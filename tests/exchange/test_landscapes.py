"""HDF5 surfaces: the layout of the guided-dropout code, its three surfaces, and what is no such
file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import landform as lf
from connectivity_results import make_surface
from landform.errors import ConfigError, DataError, MissingExtraError, NonFiniteError, StoreError
from landform.exchange.landscapes import read_landscape, write_directions, write_landscape
from landform.weights.space import ParameterSpace

h5py = pytest.importorskip("h5py")

SHIPPED = Path(__file__).parents[3] / "shared" / "data" / "guided_dropout_surfaces"

# What is known of them: file, lowest, highest, mean, centre, r < 0.45, 0.8, 1.2, radius at 3, 5,
# 8, share above 5, curvature at the centre (lowest and highest that were quoted)
TABLE = [
    ("bert", 2.158, 29.29, 16.89, 2.1615, 3.966, 8.592, 11.741, 0.26, 0.37, 0.47, 0.95, 59, 62),
    ("bert_fisher_top", 2.099, 11.62, 8.82, 2.1027, 2.252, 4.316, 7.230, 0.53, 0.65, 0.79, 0.88,
     3.9, 4.6),
    ("bert_fisher_bottom", 2.134, 27.73, 14.75, 2.1407, 2.990, 7.157, 10.295, 0.34, 0.45, 0.56,
     0.94, 28, 28.5),
]  # fmt: skip


def written(path: Path, **changes) -> Path:
    """A file as theirs: 4 columns, 3 rows, the loss 10 y + x; a change of None leaves out."""
    x, y = np.linspace(-1.5, 1.5, 4), np.linspace(-1.0, 1.0, 3)
    parts = {
        "dir_file": "dir_res12.h5",
        "xcoordinates": x,
        "ycoordinates": y,
        "train_loss": np.array([20 + 10 * b + a for b in y for a in x]),
        **changes,
    }
    with h5py.File(path, "w") as file:
        for key, value in parts.items():
            if value is not None:
                file[key] = value
    return path


def test_x_runs_fastest(tmp_path):
    surface = read_landscape(written(tmp_path / "surf_res12.h5"))
    assert surface.mode == "random" and surface.models == {"surf_res12": (0, 0)}
    for j, y in enumerate(surface.y):
        for i, x in enumerate(surface.x):
            assert surface.values["loss"][j, i] == pytest.approx(20 + 10 * y + x)
    assert surface.provenance["dir_file"] == "dir_res12.h5" and np.isnan(surface.unit)
    assert "loss" in surface.reading and "in the cells nearest to the centre" in surface.reading
    square = read_landscape(
        written(tmp_path / "square.h5", train_loss=np.arange(12.0).reshape(3, 4)), name="m"
    )
    assert square.names == ("m",) and square.values["loss"][1, 0] == 4


@pytest.mark.skipif(not SHIPPED.is_dir(), reason="the shipped surfaces are not here")
@pytest.mark.parametrize("row", TABLE, ids=[row[0] for row in TABLE])
def test_statistics_of_the_shipped_surfaces(row):
    name, lowest, highest, mean, centre, *rest = row
    inside, radii, share, curvature = rest[:3], rest[3:6], rest[6], rest[7:]
    surface = read_landscape(SHIPPED / f"surf_res256_{name}.h5")
    assert surface.values["loss"].shape == (16, 16) and surface.x[0] == -1.5
    (found,) = lf.landscape_statistics(surface).to_dict("records")
    assert found["lowest"] == pytest.approx(lowest, abs=5e-4)
    assert found["highest"] == pytest.approx(highest, abs=5e-3)
    assert found["mean"] == pytest.approx(mean, abs=5e-3)
    assert found["centre"] == pytest.approx(centre, abs=5.1e-5) and found["cells"] == 4
    for r, value in zip((0.45, 0.8, 1.2), inside, strict=True):
        assert found[f"r<{r}"] == pytest.approx(value, abs=6e-4)
    for level, radius in zip((3, 5, 8), radii, strict=True):
        assert found[f"reaches {level}"] == pytest.approx(radius, abs=0.0101)
    assert found["share>5"] == pytest.approx(share, abs=0.0051)
    assert found["curvature_low"] >= curvature[0] - 0.5
    assert found["curvature_high"] <= curvature[1] + 0.1


def test_a_row_that_is_known():
    if not SHIPPED.is_dir():
        pytest.skip("the shipped surfaces are not here")
    surface = read_landscape(SHIPPED / "surf_res256_bert_fisher_top.h5")
    row = surface.values["loss"][np.isclose(surface.y, -0.1)][0]
    quoted = "9.66 9.95 10.36 9.64 5.45 2.76 2.23 2.11 2.10 2.21 2.72 6.64 9.59 9.98 10.27 10.39"
    np.testing.assert_allclose(row, [float(v) for v in quoted.split()], atol=0.0051)


# --- what landform writes -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def place(tmp_path_factory, save_checkpoint, write_rows):
    root = tmp_path_factory.mktemp("landscapes")
    for i in range(2):
        save_checkpoint(root / f"seed{i}", seed=i)
    write_rows(root / "dev.tsv", 6)
    return root


@pytest.fixture(scope="module")
def task(place):
    return lf.load_task(str(place / "dev.tsv"), text="sentence", label="label")


@pytest.fixture(scope="module")
def fisher(place, task):
    return lf.fisher(place / "seed0", task, split="validation")


OPTIONS = {"size": 3, "replicates": 20, "seed": 4}


def test_written_and_read_again(tmp_path, place, task):
    surface = lf.surface(task, around=place / "seed0", extent=(-0.5, 0.5), **OPTIONS)
    path = write_landscape(surface, tmp_path / "out" / "surf_seed0.h5")
    back = read_landscape(path)
    assert back.x == surface.x and back.provenance["dir_file"] == "dir_seed0.h5"
    np.testing.assert_array_equal(back.values["loss"], surface.values["loss"])
    with h5py.File(path) as file:
        assert sorted(file) == ["dir_file", "train_loss", "xcoordinates", "ycoordinates"]
        assert file["train_loss"].shape == (9,) and file["train_loss"].dtype == np.float64
        assert file["dir_file"][()] == b"dir_seed0.h5"
    again = write_landscape(back, path, dir_file="mine.h5")  # in place of the one that is there
    assert again == path and read_landscape(path).provenance["dir_file"] == "mine.h5"
    assert [p.name for p in path.parent.iterdir()] == ["surf_seed0.h5"]


def test_directions_are_drawn_again(tmp_path, place, task, fisher, tiny_model):
    found = lf.landscape(
        task, around=place / "seed0", fisher=fisher, mask=("none", "fisher-top", "random"),
        mask_by="entry", pairs=2, **OPTIONS,
    )  # fmt: skip
    model = tiny_model(seed=0, dtype=torch.float32)
    space = ParameterSpace.of(model)
    for mask in found.masks:
        surface = found.surface(mask, 1)
        path = write_directions(surface, tmp_path / "dir.h5", around=place / "seed0", fisher=fisher)
        with h5py.File(path) as file:
            assert sorted(file) == ["xdirection", "ydirection"]
            for axis, said in zip("xy", surface.directions.itertuples(), strict=True):
                held = file[f"{axis}direction"]
                tensors = [held[str(k)][()] for k in range(len(space.names))]
                assert [t.shape for t in tensors] == list(space.shapes)
                norm = np.sqrt(sum((t.astype(float) ** 2).sum() for t in tensors))
                assert norm == pytest.approx(said.norm, rel=1e-5)
                assert sum(np.count_nonzero(t) for t in tensors) == said.entries


def test_directions_of_another_model_or_fisher(tmp_path, place, task, fisher):
    surface = lf.surface(
        task, around=place / "seed0", fisher=fisher, mask="fisher-bottom", **OPTIONS
    )
    target = tmp_path / "dir.h5"
    with pytest.raises(ConfigError, match=r"is not around .*seed1"):
        write_directions(surface, target, around=place / "seed1", fisher=fisher)
    with pytest.raises(ConfigError, match=r"there is none \(option fisher\)"):
        write_directions(surface, target, around=place / "seed0")
    other = lf.fisher(place / "seed0", task, split="validation", rows=3)
    with pytest.raises(ConfigError, match="not the one that the surface was masked by"):
        write_directions(surface, target, around=place / "seed0", fisher=other)
    imported = read_landscape(written(tmp_path / "theirs.h5"))
    with pytest.raises(ConfigError, match="only random surfaces that landform made"):
        write_directions(imported, target, around=place / "seed0")
    assert not target.exists()


def test_a_fault_of_drawing_is_no_fault_of_the_disk(tmp_path, place, task, monkeypatch):
    surface = lf.surface(task, around=place / "seed0", **OPTIONS)

    class Large:
        def flat(self, *_):
            raise RuntimeError("out of memory")

    monkeypatch.setattr("landform.exchange.landscapes._members", lambda *_: (Large(), Large()))
    with pytest.raises(RuntimeError, match="out of memory"):
        write_directions(surface, tmp_path / "dir.h5", around=place / "seed0")
    assert not list(tmp_path.iterdir())


# --- what is refused ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "error", "says"),
    [
        (
            {"train_loss": np.arange(11.0)},
            DataError,
            r"has shape \(11,\), expected \(12,\)",
        ),
        ({"train_loss": np.zeros((4, 3))}, DataError, r"has shape \(4, 3\)"),
        ({"train_loss": None}, DataError, "has no train_loss: it holds dir_file"),
        ({"train_loss": np.array(["a"] * 12, dtype="S1")}, DataError, "does not hold numbers"),
        ({"train_loss": np.full(12, np.nan)}, NonFiniteError, r"the loss at \(-1.5, -1\) is nan"),
        ({"xcoordinates": np.ones((2, 2))}, DataError, "xcoordinates is no list"),
        ({"ycoordinates": np.array([0.0, 1.0, 0.5])}, DataError, "ycoordinates does not rise"),
        ({"xcoordinates": np.array([0, np.inf, 2, 3])}, DataError, "xcoordinates is no list"),
    ],
    ids=["short", "turned", "missing", "text", "nan", "square", "falls", "infinite"],
)
def test_files_that_are_no_surface(tmp_path, changes, error, says):
    with pytest.raises(error, match=says):
        read_landscape(written(tmp_path / "surf.h5", **changes))


def test_damaged_and_foreign_files(tmp_path):
    file = written(tmp_path / "surf.h5")
    for name, content in {
        "cut": file.read_bytes()[:900],
        "text": b"loss\n2.1\n",
        "no": b"",
    }.items():
        damaged = tmp_path / f"{name}.h5"
        damaged.write_bytes(content)
        with pytest.raises(DataError, match=f"{name}.h5 is truncated, damaged or not HDF5"):
            read_landscape(damaged)
    with pytest.raises(StoreError, match=r"cannot read .*none\.h5"):
        read_landscape(tmp_path / "none.h5")
    with h5py.File(tmp_path / "dir.h5", "w") as content:
        content["xdirection/0"], content["ydirection/0"] = np.ones(3), np.ones(3)
    with pytest.raises(DataError, match="holds directions, no surface"):
        read_landscape(tmp_path / "dir.h5")


def test_a_plane_through_models_has_no_such_file(tmp_path):
    with pytest.raises(ConfigError, match="a plane through models"):
        write_landscape(make_surface(5), tmp_path / "surf.h5")
    assert not list(tmp_path.iterdir())


def test_without_h5py_the_extra_is_named(tmp_path, monkeypatch):
    file = written(tmp_path / "surf.h5")
    monkeypatch.setitem(__import__("sys").modules, "h5py", None)
    with pytest.raises(MissingExtraError, match=r"(?s)h5py.*landform\[convert\]"):
        read_landscape(file)
