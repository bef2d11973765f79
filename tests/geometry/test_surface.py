import json

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import landform as lf
from fishers import make_fisher
from landform.errors import ConfigError, CurvatureError, SpaceMismatchError
from landform.evaluation.points import Evaluator, PointsWork
from landform.geometry.grid import Grid, evaluate_cells, regular, with_coordinate
from landform.results import from_parts, to_parts
from landform.weights.checkpoint import resolve
from landform.weights.points import Direction
from landform.weights.space import ParameterSpace

FOUR = {"size": 5, "replicates": 20, "dtype": "float64"}


@pytest.fixture(scope="module")
def place(tmp_path_factory, save_checkpoint, write_rows):
    root = tmp_path_factory.mktemp("surface")
    for name, seed in zip("abcd", (1, 2, 3, 4), strict=True):
        save_checkpoint(root / name, seed=seed)
    write_rows(root / "dev.tsv", 10)
    write_rows(root / "ood.tsv", 7, seed=3)
    return root


@pytest.fixture(scope="module")
def task(place):
    return load(place / "dev.tsv")


@pytest.fixture(scope="module")
def models(place):
    return [place / name for name in "abc"]


@pytest.fixture(scope="module")
def plane(models, task):
    return lf.surface(task, through=models, **FOUR)


@pytest.fixture
def evaluations(monkeypatch):
    """Forward passes over the data since the test began."""
    passes = []
    real = Evaluator.run

    def counted(self, where="the model"):
        passes.append(where)
        return real(self, where)

    monkeypatch.setattr(Evaluator, "run", counted)
    return passes


def load(file, **options):
    return lf.load_task(str(file), text="sentence", label="label", **options)


def state(tiny_model, seed):
    """The weights on the disk, in float64."""
    return tiny_model(seed=seed, dtype=torch.float32).double().state_dict()


def flat(weights):
    return torch.cat([w.reshape(-1) for w in weights.values() if w.is_floating_point()]).numpy()


def at(tiny_model, like, point):
    """The model at a flat point, in the order of the state dict `like`."""
    parts, start = {}, 0
    for name, tensor in like.items():
        if tensor.is_floating_point():
            size = tensor.numel()
            parts[name] = torch.tensor(point[start : start + size]).view_as(tensor)
            start += size
    model = tiny_model(seed=7)
    model.load_state_dict({**like, **parts})
    return model


def loss_and_accuracy(model, task, tokenizer):
    """One example at a time: no padding, no batches."""
    losses, right = [], []
    examples = task.examples("validation")
    for (text,), label in zip(examples.texts, examples.labels, strict=True):
        with torch.no_grad():
            out = model(**tokenizer(text, return_tensors="pt"), labels=torch.tensor([label]))
        losses.append(float(out.loss))
        right.append(int(out.logits.argmax()) == label)
    return np.mean(losses), np.mean(right)


def save_mix(path, place, weights):
    """A checkpoint sum_m weights[m] m, written as float32."""
    from transformers import AutoModelForSequenceClassification as Model

    models = {name: Model.from_pretrained(place / name).state_dict() for name in weights}
    mixed = Model.from_pretrained(place / "a")
    total = {
        key: sum(w * models[name][key].double() for name, w in weights.items()).float()
        for key, tensor in mixed.state_dict().items()
        if tensor.is_floating_point()
    }
    mixed.load_state_dict(total, strict=False)
    mixed.save_pretrained(path)
    for file in place.joinpath("a").glob("token*"):
        path.joinpath(file.name).write_bytes(file.read_bytes())
    return path


# --- the plane --------------------------------------------------------------------------------


def test_every_cell_against_a_model_moved_by_hand(plane, task, tiny_model, word_tokenizer):
    """theta = a + g u1 + h u2 with Gram-Schmidt by numpy, loaded and run one text at a time."""
    like = state(tiny_model, 1)
    a, b, c = (flat(state(tiny_model, seed)) for seed in (1, 2, 3))
    v1, v2 = b - a, c - a
    r = v2 @ v1 / (v1 @ v1)
    u2 = v2 - r * v1
    s = np.linalg.norm(u2) / np.linalg.norm(v1)
    assert r < 1
    assert plane.unit == pytest.approx(np.linalg.norm(v1), rel=1e-12)
    assert plane.models["a"] == (0, 0) and plane.models["b"] == (1, 0)
    assert plane.models["c"] == pytest.approx((r, s), rel=1e-7)
    assert plane.x == pytest.approx([-0.5, 0, r, 1, 1.5], rel=1e-7)
    assert plane.y == pytest.approx([-0.5 * s, 0, 0.5 * s, s, 1.5 * s])
    assert plane.evaluations == len(plane.table) == 25
    for row in plane.table.itertuples():
        model = at(tiny_model, like, a + row.x * v1 + row.y / s * u2)
        loss, accuracy = loss_and_accuracy(model, task, word_tokenizer)
        assert row.loss == pytest.approx(loss, rel=1e-6)
        assert row.accuracy == pytest.approx(accuracy)
        assert row.loss_low <= row.loss <= row.loss_high and row.evaluated


def test_arrays_have_a_row_for_every_y(plane):
    losses = plane.values["loss"]
    assert losses.shape == (len(plane.y), len(plane.x))
    assert set(plane.values) == {"loss", "accuracy"}
    for row in plane.table.itertuples():
        assert losses[plane.y.index(row.y), plane.x.index(row.x)] == row.loss
    np.testing.assert_array_equal(plane.grid("loss"), losses)
    assert (plane.grid("loss_low") <= losses).all()
    with pytest.raises(ConfigError, match="no f1 of dev:validation"):
        plane.grid("f1")
    with pytest.raises(ConfigError, match="no loss of ood"):
        plane.grid("loss", "ood")


def test_the_cells_of_the_models_are_the_models(plane, models, task):
    for name, path in zip("abc", models, strict=True):
        x, y = plane.models[name]
        row = plane.table[(plane.table.x == x) & (plane.table.y == y)].iloc[0]
        alone = lf.evaluate(path, task, dtype="float64", replicates=20)
        assert row.loss == alone.metrics["loss"] and row.accuracy == alone.metrics["accuracy"]
        assert (row.loss_low, row.loss_high) == alone.intervals["loss"]


def test_the_bottom_row_is_the_line_from_a_to_b(plane, models, task):
    line = lf.interpolate(*models[:2], task, positions=(0, plane.x[2], 1), dtype="float64")
    row = plane.values["loss"][plane.y.index(0)]
    np.testing.assert_allclose(row[1:4], line.table.loss, rtol=1e-12)


def test_swap_rule(tmp_path, place, task):
    """b1 is the nearer one of two models in one direction: else the third would stand beyond it."""
    far = save_mix(tmp_path / "far", place, {"a": -1.0, "b": 2.0, "c": 0.3, "d": -0.3})
    both = [
        lf.surface(task, through=order, **{**FOUR, "size": 3, "extent": (0, 2)})
        for order in ([place / "a", place / "b", far], [place / "a", far, place / "b"])
    ]
    for found, swapped in zip(both, (True, False), strict=True):
        assert found.provenance["span"]["swapped"] == swapped
        assert found.models["a"] == (0, 0) and found.models["far"] == (1, 0)
        assert 0 < found.models["b"][0] < 1 and found.models["b"][1] > 0
    assert both[0].names == ("a", "b", "far") and both[1].names == ("a", "far", "b")
    assert both[0].x == both[1].x and both[0].unit == both[1].unit
    np.testing.assert_allclose(both[0].values["loss"], both[1].values["loss"], rtol=1e-12)


def test_several_data_sets_and_metrics(place, models):
    task = load(place / "dev.tsv", metrics=["accuracy", "ece", "f1"])
    other = load(place / "ood.tsv", name="ood")
    options = {**FOUR, "size": 3, "extent": (0, 2)}
    both = lf.surface(task, through=models, also=[other], **options)
    alone = lf.surface(other, through=models, **options)
    assert both.data == ("dev:validation", "ood:validation")
    assert set(both.values) == {"loss", "accuracy", "ece", "f1"}
    np.testing.assert_array_equal(both.grid("loss", "ood:validation"), alone.values["loss"])
    with pytest.raises(ConfigError, match="no ece of ood"):
        both.grid("ece", "ood:validation")
    with pytest.raises(ConfigError, match="two data sets are called dev"):
        lf.surface(task, through=models, also=[task])


def test_padding_and_batches_do_not_matter(plane, models, task):
    alone = lf.surface(task, through=models, token_budget=1, **FOUR)
    np.testing.assert_allclose(alone.values["loss"], plane.values["loss"], rtol=1e-12)


def test_language_models(tmp_path, save_checkpoint, write_rows):
    paths = [
        save_checkpoint(tmp_path / f"g{i}", kind="causal-lm", architecture="gpt2", seed=i)
        for i in range(3)
    ]
    text = lf.load_task(
        str(write_rows(tmp_path / "text.tsv", 6)), text="sentence", kind="causal-lm"
    )
    found = lf.surface(text, through=paths, **{**FOUR, "size": 3, "extent": (0, 2)})
    assert np.isfinite(found.values["loss"]).all()
    expected = lf.evaluate(paths[1], text, dtype="float64").metrics["loss"]
    assert found.values["loss"][0, found.x.index(1.0)] == expected


def test_a_kept_result_comes_back_whole(plane):
    back = from_parts(*to_parts(plane))
    assert back.models == plane.models and back.x == plane.x
    np.testing.assert_array_equal(back.values["loss"], plane.values["loss"])
    assert json.loads(json.dumps(plane.to_json()))["models"]["b"] == [1, 0]
    low, high = plane.table.loss.min(), plane.table.loss.max()
    assert f"lowest {low:.4g} [" in plane.reading and "plane through a, b, c" in plane.reading
    assert high >= plane.table.loss[0]


# --- random directions --------------------------------------------------------------------------


@pytest.mark.parametrize("normalise", ["filter", "none"])
def test_random_directions_by_hand(place, task, tiny_model, word_tokenizer, normalise):
    options = {**FOUR, "size": 3, "seed": 5, "normalise": normalise}
    found = lf.surface(task, around=place / "a", directions="random", **options)
    assert found.mode == "random" and found.models == {"a": (0, 0)}
    assert found.x == found.y == (-1, 0, 1)
    model = tiny_model(seed=1, dtype=torch.float32).double()
    space = ParameterSpace.of(model)
    centre = space.flatten(model)
    seeds = [int(s) for s in np.random.SeedSequence(5).generate_state(2)]
    d1, d2 = (
        Direction(resolve(place / "a"), seed, normalise).flat(space, lambda _: centre)
        for seed in seeds
    )
    for row in found.table.itertuples():
        point = centre + row.x * d1 + row.y * d2
        model.load_state_dict(space.unflatten(point), strict=False)
        loss, accuracy = loss_and_accuracy(model, task, word_tokenizer)
        assert row.loss == pytest.approx(loss, rel=1e-10)
        assert row.accuracy == pytest.approx(accuracy)
    said = found.provenance["span"]
    assert found.unit == pytest.approx(float(d1.norm())) == pytest.approx(said["lengths"][0])
    assert said["cosine"] == pytest.approx(float(d1 @ d2 / d1.norm() / d2.norm()))
    assert 0 < abs(said["cosine"]) < 0.2
    assert "random directions around a" in found.reading


def test_random_directions_have_a_seed(place, task):
    options = {**FOUR, "size": 3}
    one, again, other = (
        lf.surface(task, around=place / "a", seed=seed, **options) for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(one.values["loss"], again.values["loss"])
    moved = one.values["loss"] != other.values["loss"]
    assert moved.sum() == 8 and not moved[1, 1]


# --- the grid -----------------------------------------------------------------------------------


def test_the_default_grid_hits_the_models():
    axis = regular(13, (-0.5, 1.5), (0.0, 1.0))
    assert axis[3] == 0.0 and axis[9] == 1.0
    assert axis == pytest.approx(np.linspace(-0.5, 1.5, 13))
    assert set(regular(5, (-0.5, 1.5), (0.0, 1.0))) < set(axis)


def test_range_and_density_as_the_originals_say_it(models, task):
    found = lf.surface(task, through=models, range=1, density=2, **{**FOUR, "size": None})
    assert len(found.y) == 5 and found.y[2] == 0
    assert found.x[0] == -1 and found.x[-1] == 1


@given(
    places=st.lists(st.floats(-0.5, 1.5), min_size=1, max_size=1),
    quarters=st.integers(1, 12),
)
def test_a_coordinate_for_the_third_model(places, quarters):
    size, r = 4 * quarters + 1, round(places[0], 9)
    axis = regular(size, (-0.5, 1.5), (0.0, 1.0))
    found = with_coordinate(axis, r, (0.0, 1.0), "c")
    assert r in found and 0.0 in found and 1.0 in found
    assert found[0] == -0.5 and found[-1] == 1.5
    assert list(found) == sorted(set(found)) and len(found) in (size, size + 1)
    # Nothing but one coordinate changed, and that by no more than half a step.
    gone = set(axis) - set(found)
    assert len(gone) <= 1 and all(abs(g - r) <= 1 / (size - 1) + 1e-9 for g in gone)


def test_a_column_beside_a_model_comes_in_addition():
    axis = regular(5, (-0.5, 1.5), (0.0, 1.0))
    assert with_coordinate(axis, 0.45, (0.0, 1.0), "c") == (-0.5, 0.0, 0.45, 1.0, 1.5)
    assert with_coordinate(axis, 0.1, (0.0, 1.0), "c") == (-0.5, 0.0, 0.1, 0.5, 1.0, 1.5)
    assert with_coordinate(axis, -0.4, (0.0, 1.0), "c") == (-0.5, -0.4, 0.0, 0.5, 1.0, 1.5)
    assert with_coordinate(axis, 0.5, (0.0, 1.0), "c") == axis


# --- coarse to fine -----------------------------------------------------------------------------


def analytic(f, size, levels, tolerance=0.1):
    axis = regular(size, (-0.5, 1.5), (0.0, 1.0))
    columns = with_coordinate(axis, 0.43, (0.0, 1.0), "c")
    third = (columns.index(0.43), axis.index(1.0))
    grid = Grid(columns, axis, ((columns.index(0.0), axis.index(0.0)), third))
    calls = []

    def evaluate(cells):
        calls.extend(cells)
        return np.array([[f(columns[i], axis[j])] * 2 for i, j in cells])

    values, done = evaluate_cells(grid, evaluate, levels=levels, tolerance=tolerance)
    assert len(calls) == len(set(calls)) == done.sum()
    truth = np.array([[f(x, y) for x in columns] for y in axis])
    return values[..., 0], done, truth


def bowl(x, y):
    return 0.1 + (x - 0.4) ** 2 + 2 * (y - 0.3) ** 2 + 0.5 * (x - 0.4) * (y - 0.3)


def ridge(x, y):
    return 0.1 * (x + y) + np.exp(-(((x - 0.62) / 0.12) ** 2))


@pytest.mark.parametrize("f", [bowl, ridge])
@pytest.mark.parametrize("levels", [0, 1, 2])
def test_coarse_to_fine_agrees_with_the_whole_grid(f, levels):
    values, done, truth = analytic(f, 49, levels)
    np.testing.assert_array_equal(values[done], truth[done])
    height = truth - truth.min()
    # A tenth of the height above the lowest cell is allowed; estimates are from the coarser grid,
    # so a cell beside a sharp turn may be off by somewhat more.
    assert (np.abs(values - truth) <= 0.2 * height + 1e-9).all()
    assert done.all() if levels == 0 else 0.05 < done.mean() < 0.8


def test_coarse_to_fine_spends_its_evaluations_on_the_ridge():
    _, done, _ = analytic(ridge, 49, 2, tolerance=0.05)
    shares = done.mean(0)
    near = [abs(x - 0.62) < 0.25 for x in np.linspace(-0.5, 1.5, 49)]
    assert shares[near].mean() > 0.7 > 0.3 > shares[np.invert(near)].mean()


def test_a_flat_surface_needs_the_coarse_grid_alone():
    values, done, truth = analytic(lambda x, y: 3 * x - y + 0.5 * x * y, 25, 2)
    np.testing.assert_allclose(values, truth, atol=1e-9)
    assert done.sum() == 9 * 9  # every fourth, the end, and the models' own rows and columns


def test_too_few_coordinates_to_tell_are_all_evaluated():
    grid = Grid((0.0, 0.5, 1.0), (0.0, 0.5, 1.0), ((0, 0),))
    _, done = evaluate_cells(grid, lambda cells: np.ones((len(cells), 2)), levels=1)
    assert done.all()


def test_refined_surface_of_models(models, task):
    options = {**FOUR, "size": 13, "seed": 0, "extent": (-0.1, 0.1)}
    whole = lf.surface(task, around=models[0], **options)
    part = lf.surface(task, around=models[0], refine=1, tolerance=0.2, **options)
    done = part.table.evaluated
    assert part.evaluations == done.sum() < 169 == whole.evaluations and part.saved > 0
    np.testing.assert_array_equal(part.table[done].loss, whole.table[done].loss)
    height = whole.table.loss_high - whole.table.loss.min()
    assert ((part.table.loss - whole.table.loss).abs() <= 2 * 0.2 * height).all()
    assert f"{part.evaluations} evaluations in place of 169" in part.reading


# --- what is kept -------------------------------------------------------------------------------


def test_interrupted_and_gone_on(tmp_path, models, task, plane, evaluations, monkeypatch):
    stop = Evaluator.run

    def interrupted(self, where="the model"):
        if len(evaluations) == 11:
            raise KeyboardInterrupt
        return stop(self, where)

    monkeypatch.setattr(Evaluator, "run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        lf.surface(task, through=models, store=tmp_path / "study", **FOUR)
    monkeypatch.setattr(Evaluator, "run", stop)
    found = lf.surface(task, through=models, store=tmp_path / "study", **FOUR)
    assert len(evaluations) == 25  # 11, and the 14 that were missing
    for one, other in ((found.table, plane.table), (found.points, plane.points)):
        assert one.equals(other)


def test_a_truncated_cell_is_computed_again(tmp_path, models, task, plane, evaluations):
    lf.surface(task, through=models, store=tmp_path / "study", **FOUR)
    cell = next((tmp_path / "study" / "artifacts" / "mix").glob("*/*.safetensors"))
    cell.write_bytes(cell.read_bytes()[:-9])
    found = lf.surface(task, through=models, store=tmp_path / "study", **FOUR)
    assert len(evaluations) == 26 and found.table.equals(plane.table)


def test_nothing_is_opened_for_a_finished_surface(tmp_path, models, task, monkeypatch):
    options = {**FOUR, "store": tmp_path / "study"}
    first = lf.surface(task, through=models, **options)

    def opened(self):
        raise AssertionError("a worker was opened")

    monkeypatch.setattr(PointsWork, "__call__", opened)
    again = lf.surface(task, through=models, **options)
    assert again.table.equals(first.table) and again.evaluations == 25


def test_cells_are_shared_between_sizes(tmp_path, models, task, evaluations):
    for size, after in ((5, 25), (9, 81)):
        lf.surface(task, through=models, store=tmp_path / "s", **{**FOUR, "size": size})
        assert len(evaluations) == after


def test_the_models_are_read_once_in_little_memory(models, task, monkeypatch):
    opened = []
    real = PointsWork.__call__
    monkeypatch.setattr(PointsWork, "__call__", lambda self: opened.append(real(self)) or opened[0])
    lf.surface(task, through=models, refine=1, memory=1e-9, **FOUR)
    assert len(opened) == 1 and opened[0].loads == 3


def test_other_processes_give_the_same(tmp_path, models, task, plane, pickled_engine):
    options = {**FOUR, "store": tmp_path / "study"}
    lf.surface(task, through=models, **{**options, "size": 3, "extent": (0, 2)})
    found = lf.surface(task, through=models, engine="ray", workers=2, **options)
    assert {kind for stage in pickled_engine for kind in stage} == {"mix"}
    np.testing.assert_allclose(found.values["loss"], plane.values["loss"], rtol=1e-12)


# --- what is refused ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"size": 12}, "size 12 .* over -0.5 to 1.5 misses the models.*0 or 1.*9, 13, 17"),
        ({"size": 12, "extent": (-1.0, 2.0)}, r"misses the models.*10, 13, 16"),
        ({"extent": (0.2, 1.5)}, "leaves the model at 0 outside"),
        ({"extent": (-1.0, 0.9)}, "leaves the model at 1 outside"),
        ({"extent": (1.5, -0.5)}, "the smaller one first"),
        ({"extent": (0.0, float("inf"))}, "finite"),
        ({"size": 1}, "size"),
        ({"size": 2}, "size"),
        ({"range": 1.0, "extent": (-1.0, 1.0)}, "extent and range say the same"),
        ({"size": 9, "density": 4}, "size and density say the same"),
        ({"range": 0.5}, "leaves the model at 1 outside"),
        ({"range": -2.0}, "range"),
        ({"density": 3.7}, "misses the models"),
        ({"tolerance": 0.0, "refine": 1}, "tolerance"),
        ({"directions": "random"}, "directions around one model"),
        ({"normalise": "filter"}, "directions around one model"),
    ],
)
def test_grids_that_miss_the_models(models, task, options, says, evaluations):
    with pytest.raises(ConfigError, match=f"(?s){says}"):
        lf.surface(task, through=models, **options)
    assert not evaluations


def test_an_even_grid_misses_the_centre(models, task, evaluations):
    with pytest.raises(ConfigError, match=r"(?s)size 12 .* over -1 to 1 misses.*11, 13"):
        lf.surface(task, around=models[0], size=12)
    assert not evaluations


def test_models_that_span_no_plane(tmp_path, place, models, task, evaluations):
    a, b, _ = models
    with pytest.raises(ConfigError, match=r"are the same model"):
        lf.surface(task, through=[a, b, a])
    copies = save_mix(tmp_path / "copy", place, {"a": 1.0})
    tensors = load_file(copies / "model.safetensors")
    save_file(tensors, copies / "model.safetensors", metadata={"format": "pt", "by": "hand"})
    assert resolve(copies).fingerprint != resolve(a).fingerprint
    for order in ([a, b, copies], [a, copies, b], [b, a, copies]):
        with pytest.raises(ConfigError, match=r"and .* are the same model"):
            lf.surface(task, through=order)
    for t in (0.5, 0.25, 3.0, -1.0):
        mixed = save_mix(tmp_path / f"mix{t}", place, {"a": 1 - t, "b": t})
        with pytest.raises(ConfigError, match="lie on one line"):
            lf.surface(task, through=[a, b, mixed])
    assert not evaluations


def test_a_third_model_outside_of_the_grid(tmp_path, place, models, task):
    behind = save_mix(tmp_path / "behind", place, {"a": 2.0, "b": -0.9, "c": -0.1})
    with pytest.raises(ConfigError, match=r"leaves behind outside.*x = -0\.9"):
        lf.surface(task, through=[*models[:2], behind])


def test_which_models(tmp_path, place, models, task, save_checkpoint):
    for through, says in (
        (models[:1], "names 1 model: a plane"),
        (models[:2], "names 2 models: a plane"),
        ([*models, place / "d"], "names 4 models"),
        (str(place / "[ab]"), "names 2 models"),
    ):
        with pytest.raises(ConfigError, match=says):
            lf.surface(task, through=through)
    with pytest.raises(ConfigError, match="exclude each other"):
        lf.surface(task, through=models, around=models[0])
    with pytest.raises(ConfigError, match="a surface of what"):
        lf.surface(task)
    with pytest.raises(ConfigError, match="around names 4 models"):
        lf.surface(task, around=str(place / "[a-d]"))
    three = save_checkpoint(tmp_path / "three", num_labels=3)
    with pytest.raises(SpaceMismatchError, match=r"a has 2 labels, that of .*three 3"):
        lf.surface(task, through=[*models[:2], three])


# --- masked directions and several pairs --------------------------------------------------------


@pytest.fixture(scope="module")
def fisher(place, tiny_model):
    model = tiny_model(seed=1, dtype=torch.float32)
    found = make_fisher(model, seed=2, weights=resolve(place / "a").fingerprint)
    for name, value in found.diagonal.items():
        if "LayerNorm" in name:
            value *= 20
    return found


MASKS = ("none", "fisher-top", "fisher-bottom", "random")


@pytest.fixture(scope="module")
def masked(place, task, fisher):
    options = {**FOUR, "mask": MASKS, "pairs": 2, "seed": 3}
    return lf.landscape(task, around=place / "a", fisher=fisher, **options)


@pytest.mark.parametrize("match_norm", [False, True], ids=["as left", "matched"])
def test_masked_directions_by_hand(place, task, tiny_model, word_tokenizer, fisher, match_norm):
    """theta_0 + M (x d1 + y d2) with the mask by sorting, the model run one text at a time."""
    options = {**FOUR, "size": 3, "seed": 5, "mask_by": "matrix", "match_norm": match_norm}
    found = lf.surface(
        task, around=place / "a", fisher=fisher, mask="fisher-top", mask_share=0.3, **options
    )
    model = tiny_model(seed=1, dtype=torch.float32).double()
    space = ParameterSpace.of(model)
    centre = space.flatten(model)
    means = {n: float(v.double().mean()) for n, v in fisher.diagonal.items() if v.dim() > 1}
    kept = sorted(means, key=means.get)[-int(0.3 * len(means)) :]
    directions = []
    for seed in np.random.SeedSequence(5).generate_state(2):
        whole = Direction(resolve(place / "a"), int(seed)).flat(space, lambda _: centre)
        parts = {n: v * (n in kept) for n, v in space.unflatten(whole).items()}
        d = space.flatten(parts)
        directions.append(d * whole.norm() / d.norm() if match_norm else d)
    for row in found.table.itertuples():
        point = centre + row.x * directions[0] + row.y * directions[1]
        model.load_state_dict(space.unflatten(point), strict=False)
        loss, _ = loss_and_accuracy(model, task, word_tokenizer)
        assert row.loss == pytest.approx(loss, rel=1e-9)
    assert found.directions.norm.tolist() == pytest.approx([float(d.norm()) for d in directions])
    assert found.unit == pytest.approx(float(directions[0].norm()))
    assert found.directions.entries.tolist() == [sum(fisher.diagonal[n].numel() for n in kept)] * 2
    assert found.mask == "fisher-top by matrix" and "(fisher-top by matrix)" in found.reading
    assert f"moves {found.directions.entries[0]:,} of" in found.notes[0]
    assert "--mask random --mask-by entry --mask-share" in found.notes[1]


def test_the_centre_is_the_plain_loss_under_every_mask(masked, place, task):
    plain = lf.evaluate(place / "a", task, dtype="float64", replicates=20).metrics["loss"]
    for surface in masked.surfaces:
        assert surface.values["loss"][2, 2] == plain
    rings = masked.profile[masked.profile.radius == 0]
    assert (rings.loss == plain).all() and (rings.low == rings.high).all() and len(rings) == 4


def test_pairs_share_their_seeds_and_not_their_numbers(masked, place, task, fisher):
    assert masked.masks == ("none", *(f"{kind} by tensor" for kind in MASKS[1:]))
    assert len(masked.surfaces) == 8 and masked.evaluations == 8 * 25
    # A pair alone, and pairs of another number of pairs, are the same surfaces.
    alone = lf.surface(task, around=place / "a", fisher=fisher, mask="fisher-top", seed=3, **FOUR)
    assert alone.table.equals(masked.surface("fisher-top").table)
    plain = lf.surface(task, around=place / "a", seed=3, **FOUR)
    assert plain.table.equals(masked.surface("none").table)
    assert not masked.surface("none", 1).table.equals(plain.table)
    seeds = masked.directions.groupby("pair")["seed"].unique()
    assert [len(s) for s in seeds] == [2, 2] and not set(seeds[0]) & set(seeds[1])
    # Random masks differ between pairs; those by Fisher do not.
    counts = masked.directions.groupby("mask")["entries"].nunique()
    assert counts["fisher-top by tensor"] == 1 and counts["none"] == 1
    with pytest.raises(ConfigError, match=r"no surface of mask 'fisher', pair 0"):
        masked.surface("fisher")
    with pytest.raises(ConfigError, match=r"pairs 0 to 1"):
        masked.surface("none", 2)


def test_profiles_by_hand(masked):
    for mask in masked.masks:
        losses = np.stack([masked.surface(mask, k).values["loss"] for k in (0, 1)])
        rows = masked.profile[masked.profile["mask"] == mask].set_index("radius")
        assert rows.index.tolist() == pytest.approx([0, 0.5, 0.5**0.5, 1.0])  # whole rings only
        x, y = np.meshgrid(masked.surfaces[0].x, masked.surfaces[0].y)
        for radius, row in rows.iterrows():
            there = losses[:, np.isclose(np.hypot(x, y), radius)]
            assert row.cells == there.shape[1] == (1 if radius == 0 else 4)
            means = there.mean(1)
            assert (row.low, row.high) == pytest.approx((means.min(), means.max()))
            assert row.loss == pytest.approx(means.mean())
            assert (row.cell_low, row.cell_high) == (there.min(), there.max())
        lines = np.concatenate([losses[:, 2, :], losses[:, :, 2]])
        axes = masked.axes[masked.axes["mask"] == mask]
        np.testing.assert_allclose(axes.loss, lines.mean(0))
        np.testing.assert_allclose(axes[["low", "high"]], np.stack([lines.min(0), lines.max(0)]).T)


def test_a_landscape_is_kept_and_said(masked, tmp_path):
    back = from_parts(*to_parts(masked))
    assert (
        back.profile.equals(masked.profile) and back.surface("random", 1).mask == "random by tensor"
    )
    assert (
        back.reading == masked.reading and "2 pairs of random directions around a" in back.reading
    )
    said = json.loads(json.dumps(masked.to_json(), default=str))
    assert len(said["surfaces"]) == 8 and said["summary"][0]["mask"] == "none"
    assert masked.provenance["fisher"]["checkpoint"] == "runs/seed0"
    vectors = [
        note for note in masked.notes if "vectors (biases, norms), which do not move" in note
    ]
    assert vectors and "selected for nothing" in vectors[0]
    assert masked.summary.share[0] > masked.summary.share[1]
    statistics = lf.landscape_statistics(masked, radii=(0.6,), levels=(0.5,), above=1.0)
    assert len(statistics) == 8 and statistics.name[1] == "none, pair 1"


def test_an_interrupted_masked_landscape_goes_on(
    tmp_path, place, task, fisher, masked, evaluations, monkeypatch
):
    options = {**FOUR, "mask": MASKS, "pairs": 2, "seed": 3, "store": tmp_path / "study"}
    real = Evaluator.run

    def interrupted(self, where="the model"):
        if len(evaluations) == 60:
            raise KeyboardInterrupt
        return real(self, where)

    monkeypatch.setattr(Evaluator, "run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        lf.landscape(task, around=place / "a", fisher=fisher, **options)
    monkeypatch.setattr(Evaluator, "run", real)
    saved = fisher.save(tmp_path / "f.safetensors")
    found = lf.landscape(task, around=place / "a", fisher=saved, **options)
    assert len(evaluations) == 8 * 24 + 1  # the centre once for all
    assert found.profile.equals(masked.profile) and found.directions.equals(masked.directions)
    for one, other in zip(found.surfaces, masked.surfaces, strict=True):
        assert one.table.equals(other.table)


def test_masked_tokens_are_the_same_in_every_cell(tmp_path, save_checkpoint, write_rows):
    path = save_checkpoint(tmp_path / "m", kind="masked-lm")
    text = lf.load_task(
        str(write_rows(tmp_path / "text.tsv", 12)), text="sentence", kind="masked-lm"
    )
    # Directions of nearly no length: what differs between cells could only be the masked tokens.
    options = {**FOUR, "size": 3, "range": 1e-9}
    found = lf.surface(text, around=path, **options)
    np.testing.assert_allclose(found.values["loss"], found.values["loss"][1, 1], rtol=1e-6)
    wide = {**FOUR, "size": 3}
    one, again, other = (lf.surface(text, around=path, seed=s, **wide) for s in (0, 0, 1))
    assert one.table.equals(again.table)
    assert one.values["loss"][1, 1] != other.values["loss"][1, 1]  # another seed, other tokens
    whole, split = one, lf.surface(text, around=path, seed=0, token_budget=1, **wide)
    np.testing.assert_allclose(split.values["loss"], whole.values["loss"], rtol=1e-12)


def test_the_grid_of_the_guided_dropout_code(place, task, fisher):
    found = lf.surface(
        task, around=place / "a", fisher=fisher, mask="fisher-bottom", compat="guided-dropout",
        rows=2, replicates=20,
    )  # fmt: skip
    np.testing.assert_allclose(found.x, np.linspace(-1.5, 1.5, 16), atol=1e-12)
    assert found.x == found.y and 0.0 not in found.x and found.models == {"a": (0, 0)}
    names = list(fisher.diagonal)
    means = sorted(names, key=lambda n: float(fisher.diagonal[n].double().mean()))
    moved = [n for n in means[: len(names) // 2] if fisher.diagonal[n].dim() > 1]
    assert found.directions.entries[0] == sum(fisher.diagonal[n].numel() for n in moved)
    assert "in the cells nearest to the centre" in found.reading
    assert lf.landscape_statistics(found).cells[0] == 4
    for name, value in (("match_norm", True), ("one_axis", True), ("mask_by", "entry")):
        with pytest.raises(ConfigError, match=f"compat guided-dropout means {name}"):
            lf.surface(task, around=place / "a", compat="guided-dropout", **{name: value})


def test_statistics_of_a_known_bowl():
    axis = tuple(np.linspace(-1.5, 1.5, 16).round(12))
    x, y = np.meshgrid(axis, axis)
    losses = 2 + 3 * x**2 + 5 * y**2
    table = pd.DataFrame({"data": "t", "x": x.ravel(), "y": y.ravel(), "loss": losses.ravel()})
    bowl = lf.Surface(
        ("m",), ("t",), "masked-lm", "random", axis, axis, 1.0,
        table.assign(loss_low=np.nan, loss_high=np.nan, evaluated=True),
        pd.DataFrame([{"name": "m", "x": 0.0, "y": 0.0}]), 256, {},
    )  # fmt: skip
    (row,) = lf.landscape_statistics(bowl).to_dict("records")
    assert (row["curvature_low"], row["curvature_high"]) == pytest.approx((6, 10))
    assert row["centre"] == pytest.approx(2.08) and row["cells"] == 4
    assert row["lowest"] == losses.min() and row["share>5"] == (losses > 5).mean()
    assert row["r<0.8"] == pytest.approx(losses[np.hypot(x, y) < 0.8].mean())
    # The mean over a ring is 2 + 4 r^2, and the rings around r = 0.5 are close together.
    assert row["reaches 3"] == pytest.approx(0.5, abs=0.01)
    beyond = lf.landscape_statistics(bowl, levels=(99.0, 1.0))
    assert beyond[["reaches 99", "reaches 1"]].isna().all(axis=None)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"mask": "fisher-top"}, r"there is none \(option fisher\)"),
        ({"mask": ("none", "none")}, "name each mask once"),
        ({"mask": ("none", "random")}, r"landform\.landscape"),
        ({"pairs": 2}, r"landform\.landscape"),
        ({"mask": "top"}, "mask"),
        ({"mask_share": 0.0}, "mask_share"),
        ({"mask_share": 1.5}, "mask_share"),
        ({"pairs": 0}, "pairs"),
        ({"mask": "random", "mask_share": 1e-4}, "mask_share: 0.0001 of .* tensors is none"),
    ],
    ids=lambda value: None if isinstance(value, str) else "-".join(map(str, value)),
)
def test_masks_that_cannot_be(place, task, options, says, evaluations):
    with pytest.raises(ConfigError, match=f"(?s){says}"):
        lf.surface(task, around=place / "a", **options)
    assert not evaluations


def test_a_fisher_of_another_model_or_shape(place, task, fisher, tiny_model, models, evaluations):
    with pytest.raises(CurvatureError, match=r"not of .*b"):
        lf.surface(task, around=place / "b", fisher=fisher, mask="fisher-top")
    wide = make_fisher(tiny_model(vocab_size=50))
    with pytest.raises(CurvatureError, match=r"word_embeddings.weight as \(50, 16\)"):
        lf.surface(task, around=place / "a", fisher=wide, mask="fisher-top", fisher_elsewhere=True)
    assert not evaluations
    others: list[dict] = [{"mask": "random"}, {"pairs": 2}, {"one_axis": True}]
    for options in ({"fisher": fisher}, *others):
        with pytest.raises(ConfigError, match="directions around one model"):
            lf.surface(task, through=models, **options)
