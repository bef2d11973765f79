"""Sharpness: regions and climbs against quadratics with known maxima, then tiny models."""

import dataclasses
import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import landform as lf
from landform.errors import ConfigError
from landform.evaluation.field import Field
from landform.evaluation.points import Data, PointsConfig, PointsWork
from landform.geometry.ascent import Ascent, climb
from landform.geometry.regions import DEFAULT_EPSILON, Perturbation, RegionSpec, open_region
from landform.geometry.sharpness import SharpnessPlan, sharpness
from landform.results import from_parts, to_parts
from landform.store.artifacts import MemoryStore, Store
from landform.store.engines import run_plan
from landform.weights.checkpoint import resolve
from landform.weights.space import ParameterSpace

METHODS = tuple(DEFAULT_EPSILON)


# --- landscapes with known answers ----------------------------------------------------------------


class Quadratic:
    """L(w) = slope . (w - centre) + 1/2 (w - centre)' hessian (w - centre)."""

    def __init__(self, centre, slope, hessian):
        self.centre, self.slope, self.hessian = centre, slope, hessian
        self.flat = centre.clone()
        self.dropout, self.size = False, 1

    def value(self, v):
        return float(self.slope @ v + 0.5 * v @ self.hessian @ v)

    def loss(self, batches=None):
        return self.value(self.flat - self.centre)

    def gradient(self, batches=None):
        v = self.flat - self.centre
        return self.value(v), self.slope + self.hessian @ v


def quadratic(n, seed, convex=True):
    generator = torch.Generator().manual_seed(seed)
    root = torch.randn(n, n, generator=generator, dtype=torch.float64)
    hessian = root @ root.T if convex else root + root.T
    centre = torch.randn(n, generator=generator, dtype=torch.float64)
    return Quadratic(centre, torch.randn(n, generator=generator, dtype=torch.float64), hessian)


def space_of(n, dtype=torch.float64):
    return ParameterSpace(("first", "second"), ((n - 2,), (2,)), dtype)


def region_of(field, **options):
    spec = RegionSpec(**{"method": "box", "epsilon": 0.1, **options})
    return open_region(space_of(len(field.centre)), field.centre, spec)


def best_of(field, region, restarts=1, **ascent):
    found = [climb(field, region, Ascent(**ascent), restart) for restart in range(restarts)]
    return max(found, key=lambda c: c.loss)


@settings(max_examples=25)
@given(st.integers(0, 10**6), st.sampled_from([0.05, 0.5]))
def test_the_box_of_a_convex_quadratic_is_climbed_to_its_best_corner(seed, epsilon):
    field = quadratic(5, seed)
    region = region_of(field, epsilon=epsilon)
    corners = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=5)), dtype=torch.float64)
    reach = epsilon * (field.centre.abs() + 1)
    best = max(field.value(corner * reach) for corner in corners)
    # Corners are local maxima of a convex loss: only restarts find the best of them.
    found = best_of(field, region, restarts=60, steps=8)
    assert found.loss == pytest.approx(best, rel=1e-12)
    assert (found.u.abs() <= epsilon * (1 + 1e-12)).all()


def ball_maximum(slope, hessian, radius):
    """max over ||v|| <= r of slope.v + v'Hv/2 by the secular equation: (lambda I - H) v = slope
    with lambda >= lambda_max(H) and ||v|| = r (the trust-region problem of -L; no hard case)."""
    values, vectors = np.linalg.eigh(hessian)
    b = vectors.T @ slope
    if values[-1] < 0 and np.linalg.norm(b / values) <= radius:  # the top lies inside
        v = -b / values
        return float(b @ v + 0.5 * v @ (values * v))
    low = max(values[-1], 0.0)
    high = low + np.linalg.norm(b) / radius + 1.0
    for _ in range(200):
        middle = (low + high) / 2
        if np.linalg.norm(b / (middle - values)) > radius:
            low = middle
        else:
            high = middle
    v = b / (high - values)
    return float(b @ v + 0.5 * v @ (values * v))


@settings(max_examples=25)
@given(st.integers(0, 10**6), st.booleans(), st.sampled_from(["sam", "adaptive"]))
def test_the_ball_of_a_quadratic_is_climbed_to_the_secular_solution(seed, convex, method):
    field = quadratic(6, seed, convex)
    region = region_of(field, method=method, epsilon=0.3)
    scale = np.ones(6) if method == "sam" else field.centre.abs().numpy()
    best = ball_maximum(
        scale * field.slope.numpy(),
        scale[:, None] * field.hessian.numpy() * scale,
        0.3,
    )
    found = best_of(field, region, restarts=4, steps=200)
    assert found.loss == pytest.approx(best, rel=2e-3)
    assert found.loss <= best * (1 + 1e-9)
    v = region.weights * found.u
    assert torch.linalg.vector_norm(v / torch.tensor(scale)) <= 0.3 * (1 + 1e-9)


@pytest.mark.parametrize("optimizer", ["sign", "gradient", "adam"])
@pytest.mark.parametrize("method", ["box", "sam"])
def test_every_optimizer_climbs(method, optimizer):
    field = quadratic(8, 3)
    region = region_of(field, method=method, epsilon=0.2)
    best = best_of(field, region, restarts=8, steps=60).loss
    assert best_of(field, region, 8, steps=60, optimizer=optimizer).loss > 0.8 * best


def test_one_step_is_the_formula_of_each_method():
    field = quadratic(7, 5)
    w, g = field.centre, field.slope
    ends = {
        "box": 0.01 * (w.abs() + 1) * g.sign(),
        "sam": 0.01 * g / g.norm(),
        # Kwon et al. 2021: eps = rho T_w^2 g / ||T_w g||
        "adaptive": 0.01 * w.abs() ** 2 * g / (w.abs() * g).norm(),
        "adaptive-box": 0.01 * w.abs() * g.sign(),
    }
    gains = {
        "box": 0.01 * ((w.abs() + 1) * g).abs().sum(),
        "sam": 0.01 * g.norm(),
        "adaptive": 0.01 * (w.abs() * g).norm(),
        "adaptive-box": 0.01 * (w * g).abs().sum(),
    }
    for method, v in ends.items():
        region = region_of(field, method=method, epsilon=0.01)
        found = climb(field, region, Ascent(1))
        torch.testing.assert_close(region.weights * found.u, v)
        assert found.losses == pytest.approx((0.0, field.value(v)))
        assert found.first_order == pytest.approx(float(gains[method]))
        # It is the first-order rise indeed: no point of the region has a larger one.
        assert float(g @ v) == pytest.approx(found.first_order)


def test_eta_is_added_to_the_scale_of_the_adaptive_methods():
    field = quadratic(5, 1)
    region = region_of(field, method="adaptive", eta=0.25)
    torch.testing.assert_close(region.weights, field.centre.abs() + 0.25)


def test_the_originals_box_has_no_width_at_minus_one():
    field = quadratic(4, 0)
    field.centre[:] = torch.tensor([-1.0, -0.5, 0.0, 2.0])
    field.slope[:] = 1.0
    field.hessian.zero_()
    ours, theirs = region_of(field), region_of(field, compat=True)
    assert ours.weights.tolist() == [2.0, 1.5, 1.0, 3.0]
    assert theirs.weights.tolist() == [0.0, 0.5, 1.0, 3.0]  # nothing at -1, a third at -0.5
    sgd = Ascent(50, optimizer="sgd", learning_rate=0.1, keep="last")
    for region in (ours, theirs):
        found = climb(field, region, sgd)
        end = field.centre.clone()
        region.place(found.u, end)
        torch.testing.assert_close(end - field.centre, 0.1 * region.weights)


def test_plain_sgd_takes_steps_of_the_learning_rate_in_the_parameters():
    field = quadratic(6, 2)
    field.hessian.zero_()
    found = climb(field, region_of(field), Ascent(3, optimizer="sgd", learning_rate=1e-4))
    torch.testing.assert_close(region_of(field).weights * found.u, 3e-4 * field.slope)


def test_p_coordinates_leave_all_others_untouched():
    field = quadratic(9, 4)
    region = region_of(field, coordinates=3)
    found = climb(field, region, Ascent(4))
    out = torch.empty_like(field.centre)
    region.place(found.u, out)
    moved = (out != field.centre).nonzero().squeeze(-1)
    assert len(moved) == 3 == region.dimension
    reach = 0.1 * (field.centre.abs() + 1)
    torch.testing.assert_close((out - field.centre).abs()[moved], reach[moved])
    # Another seed, other coordinates; the same seed, the same.
    others = {
        tuple(region_of(field, coordinates=3, seed=seed).chart.index.tolist()) for seed in range(5)
    }
    assert len(others) > 1
    again = region_of(field, coordinates=3).chart.index.tolist()
    assert again == moved.tolist()


@pytest.mark.parametrize("basis", ["dense", "sparse"])
def test_a_subspace_stays_in_its_span_and_its_box(basis):
    field = quadratic(12, 6)
    region = region_of(field, subspace=4, basis=basis)
    identity = torch.eye(4, dtype=torch.float64)
    columns = torch.zeros(4, 12, dtype=torch.float64)
    for row, z in zip(columns, identity, strict=True):
        region.chart.push(z, row)
    torch.testing.assert_close(columns @ columns.T, identity)
    inside = columns @ field.centre
    torch.testing.assert_close(inside, region.chart.pull(field.centre))
    torch.testing.assert_close(
        torch.linalg.pinv(columns.T) @ field.centre, inside
    )  # A^+ w as Keskar et al. have it
    found = climb(field, region, Ascent(6))
    out = torch.empty_like(field.centre)
    region.place(found.u, out)
    v = out - field.centre
    torch.testing.assert_close(columns.T @ (columns @ v), v)
    assert (columns @ v).abs().le(0.1 * (inside.abs() + 1) + 1e-12).all()
    best = max(
        field.value(columns.T @ (torch.tensor(c, dtype=torch.float64) * 0.1 * (inside.abs() + 1)))
        for c in itertools.product((-1.0, 1.0), repeat=4)
    )
    assert best_of(field, region, 8, steps=8).loss == pytest.approx(best)


def test_patterns_choose_what_moves():
    field = quadratic(9, 4)
    for options in ({"parameters": ("sec*",)}, {"exclude": ("first",)}):
        region = region_of(field, **options)
        out = torch.empty_like(field.centre)
        region.place(climb(field, region, Ascent(2)).u, out)
        assert (out != field.centre).tolist() == [False] * 7 + [True] * 2
        assert region.length == pytest.approx(float(field.centre[7:].norm()))
    with pytest.raises(ConfigError, match="no tensor matches"):
        region_of(field, parameters=("third",))


@given(st.integers(0, 10**6), st.sampled_from(METHODS), st.integers(1, 5))
def test_nothing_leaves_the_region(seed, method, restart):
    field = quadratic(5, seed, convex=False)
    region = region_of(field, method=method, epsilon=0.2)
    if region.norm == "gaussian":
        return
    for u in (region.start(restart), climb(field, region, Ascent(3, step_size=7), restart).u):
        order = np.inf if region.norm == "linf" else 2
        assert torch.linalg.vector_norm(u, ord=order) <= 0.2 * (1 + 1e-12)
        assert 0 < region.reach(u) <= 1 + 1e-12


def test_the_best_iterate_counts_not_the_last():
    n = 4
    # A bump: the first, long step jumps over it, later ones come back and leave again.
    field = quadratic(n, 0)
    calls = iter([0.0, 5.0, 3.0, 1.0])
    field.gradient = lambda batches=None: (next(calls), field.slope)
    field.loss = lambda batches=None: next(calls)
    region = region_of(field, method="sam")
    found = climb(field, region, Ascent(3))
    assert found.loss == 5.0 and found.losses == (0.0, 5.0, 3.0, 1.0)
    torch.testing.assert_close(found.u, 0.1 * field.slope / field.slope.norm())
    calls = iter([0.0, 5.0, 3.0, 1.0])
    assert climb(field, region, Ascent(3, keep="last")).loss == 1.0


def test_a_peak_stays_where_it_is():
    field = quadratic(5, 8)
    field.hessian.neg_()
    field.slope.zero_()
    for method in ("box", "sam"):
        region = region_of(field, method=method)
        found = climb(field, region, Ascent(5))
        assert found.loss == 0.0 and not found.u.any()
        assert region.reach(found.u) == 0.0


@pytest.mark.parametrize("method", METHODS)
def test_relative_radii_have_one_length(method):
    field = quadratic(2000, 9)
    region = region_of(field, method=method, epsilon=0.05, scale="relative")
    assert region.spread == pytest.approx(0.05)
    if region.norm == "linf":
        v = region.weights * region.radius
    else:  # a random direction: the mean square length
        v = region.weights * region.draw(0) * (0.05 if region.norm == "gaussian" else 1)
        v = region.weights * region.draw(0)
        if region.norm == "l2":
            v = v / np.sqrt(2000)
    assert float(v.norm() / field.centre.norm()) == pytest.approx(0.05, rel=0.06)
    own = region_of(field, method=method, epsilon=region.radius)
    assert own.radius == region.radius and own.spread == pytest.approx(0.05)


# --- invariance to rescaling ----------------------------------------------------------------------


class Network(torch.nn.Module):
    """relu(x A) B: A -> c A, B -> B / c leaves the function as it is."""

    def __init__(self, rescale=1.0):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        a, b = (torch.randn(5, 5, generator=generator, dtype=torch.float64) for _ in range(2))
        self.a, self.b = torch.nn.Parameter(a * rescale), torch.nn.Parameter(b / rescale)
        self.x = torch.randn(20, 5, generator=generator, dtype=torch.float64)
        self.y = torch.randn(20, 5, generator=generator, dtype=torch.float64)

    def forward(self):
        return (torch.relu(self.x @ self.a) @ self.b - self.y).square().mean()


class ModuleField(Quadratic):
    def __init__(self, module):
        self.module, self.space = module, ParameterSpace.of(module)
        self.bound = self.space.bind(module)
        self.flat, self.centre = self.bound.flat, self.bound.flat.clone()
        self.dropout, self.size = False, 20

    def loss(self, batches=None):
        return float(self.module().detach())

    def gradient(self, batches=None):
        loss = self.module()
        slopes = torch.autograd.grad(loss, list(self.module.parameters()))
        return float(loss.detach()), torch.cat([slope.reshape(-1) for slope in slopes])


@pytest.mark.parametrize(
    ("method", "invariant"),
    [("adaptive", True), ("adaptive-box", True), ("sam", False), ("box", False)],
)
def test_only_adaptive_sharpness_ignores_the_scale_of_two_layers(method, invariant):
    found = []
    for rescale in (1.0, 8.0):
        field = ModuleField(Network(rescale))
        region = open_region(field.space, field.centre, RegionSpec(method, 0.1))
        found.append(climb(field, region, Ascent(15)).loss)
    assert (found[1] == pytest.approx(found[0], rel=1e-9)) == invariant


# --- on tiny models -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def place(tmp_path_factory, save_checkpoint, write_rows):
    root = tmp_path_factory.mktemp("sharp")
    save_checkpoint(root / "a")
    write_rows(root / "dev.tsv", 22)
    write_rows(root / "train.tsv", 18, seed=1)
    return root


@pytest.fixture(scope="module")
def task(place):
    files = {"validation": str(place / "dev.tsv"), "train": str(place / "train.tsv")}
    return lf.load_task(files, text="sentence", label="label", name="small")


def measure(place, task, **options):
    steps = {} if "compat" in options else {"steps": 4}
    return sharpness(place / "a", task, **{"dtype": "float64", **steps, **options})


def open_field(place, task):
    work = PointsWork(
        (resolve(place / "a"),), (Data(task, "validation"),), PointsConfig(dtype="float64")
    )
    return Field(work())


@pytest.mark.parametrize("method", ["box", "sam", "adaptive", "adaptive-box"])
def test_the_value_is_that_of_the_best_point_found(place, task, method):
    found = measure(place, task, method=method, epsilon=0.02, restarts=2)
    field = open_field(place, task)
    base = field.loss()
    assert found.loss == pytest.approx(base, rel=1e-12)
    region = open_region(field.space, field.flat.clone(), RegionSpec(method, 0.02))
    climbs = [climb(field, region, Ascent(4), restart) for restart in (0, 1)]
    best = max(climbs, key=lambda c: c.loss)
    assert found.maximum == pytest.approx(best.loss, rel=1e-10)
    assert found.value == pytest.approx(100 * (best.loss - base) / (1 + base), rel=1e-9)
    assert found.value_low < found.value < found.value_high
    assert found.table.columns.tolist() == ["restart", "step", "loss"]
    assert found.table.loss.max() == pytest.approx(found.maximum, rel=1e-10)
    assert found.table.restart.tolist() == [0] * 5 + [1] * 5
    assert found.first_order == pytest.approx(climbs[0].first_order)
    assert found.distance == pytest.approx(region.distance(best.u))
    assert found.dimension == field.space.numel
    for text in (found.method, "0.02", "first order"):
        assert text in found.reading


@pytest.mark.parametrize("method", ["average", "adaptive-average"])
def test_averages_are_means_over_draws_in_both_directions(place, task, method):
    found = measure(place, task, method=method, epsilon=0.05, draws=3)
    field = open_field(place, task)
    centre = field.flat.clone()
    scale = torch.ones_like(centre) if method == "average" else centre.abs()
    spec = RegionSpec(method, 0.05)
    losses = []
    for number in range(3):
        step = Perturbation(resolve(place / "a"), spec, number).flat(
            field.space, lambda key: centre
        )
        drawn = (step / scale)[scale > 0]
        assert not step[scale == 0].any()
        assert float(drawn.std()) == pytest.approx(0.05, rel=0.05)
        for side in (1, -1):
            field.flat.copy_(centre + side * step)
            losses.append(field.loss())
    assert found.maximum == pytest.approx(np.mean(losses), rel=1e-9)
    assert found.table.loss.tolist() == pytest.approx(losses, rel=1e-9)
    assert found.value_low < found.value < found.value_high
    assert found.first_order == 0 and np.isnan(found.reach)
    assert "mean" in found.reading


def test_the_interval_is_a_bootstrap_of_the_value(place, task):
    from landform.evaluation.evaluate import evaluate
    from landform.evaluation.intervals import resample_counts

    store = MemoryStore()
    found = sharpness(place / "a", task, dtype="float64", steps=3, store=store, replicates=200)
    plan = SharpnessPlan.of(
        [place / "a"], task, "validation", [{"dtype": "float64", "steps": 3, "replicates": 200}]
    )
    (job,) = plan._mixes(plan._planned, 0, 0)
    there = store.read(job.key).tensors["0.losses"][0]
    here = evaluate(place / "a", task, dtype="float64", store=store).log.loss.to_numpy()
    values = []
    for counts in resample_counts(22, 200, 0):
        f, m = (counts @ losses / counts.sum() for losses in (here, there))
        values.append(100 * (m - f) / (1 + f))
    low, high = np.quantile(values, [0.025, 0.975])
    assert (found.value_low, found.value_high) == pytest.approx((low, high), rel=1e-9)


@pytest.mark.parametrize("method", ["box", "adaptive", "average"])
def test_padding_batches_and_order_change_nothing(place, task, tmp_path, method):
    whole = measure(place, task, method=method, draws=2)
    alone = measure(place, task, method=method, draws=2, token_budget=1)
    rows = (place / "dev.tsv").read_text().splitlines()
    (tmp_path / "dev.tsv").write_text("\n".join([rows[0], *rows[:0:-1]]) + "\n")
    turned = lf.load_task(str(tmp_path / "dev.tsv"), text="sentence", label="label")
    other = measure(place, turned, method=method, draws=2)
    for found in (alone, other):
        assert found.value == pytest.approx(whole.value, rel=1e-6)
        assert found.loss == pytest.approx(whole.loss, rel=1e-12)


def test_masked_labels_change_nothing(tmp_path, save_checkpoint):
    import pandas as pd

    path = save_checkpoint(tmp_path / "tags", kind="token-classification", num_labels=3)
    words = [["w1", "w2", "w3"], ["w4", "w5"]]
    names = {"model_labels": ("a", "b", "c")}
    values = []
    for extra in (False, True):
        rows = [(w, [0, 1, 2][: len(w)]) for w in words]
        if extra:  # positions without a label, behind a text that is otherwise the same
            rows.append((["w7", "w8", "w9", "w10"], [-100] * 4))
        table = pd.DataFrame({"text": [r[0] for r in rows], "label": [r[1] for r in rows]})
        found = lf.load_task(
            {"validation": table},
            kind="token-classification",
            text="text",
            label="label",
            label_names=("a", "b", "c"),
            name="tags",
        )
        values.append(sharpness(path, found, dtype="float64", steps=3, **names).value)
    assert values[1] == pytest.approx(values[0], rel=1e-9)


def test_the_maximum_is_never_below_the_loss(place, task):
    # In float32 with a region of the size of the rounding, ups and downs are noise.
    found = sharpness(place / "a", task, epsilon=1e-9, steps=2, restarts=3)
    assert found.maximum >= found.loss and found.value >= 0


def test_seeds_decide_and_nothing_else(place, task):
    options = {"restarts": 2, "coordinates": 40, "batch_rows": 6}
    torch.manual_seed(1)
    first = measure(place, task, **options)
    torch.manual_seed(2)
    again = measure(place, task, **options)
    other = measure(place, task, **options, seed=1)
    assert again.value == first.value and again.table.equals(first.table)
    assert other.value != first.value


def test_a_resumed_run_is_the_same(place, task, tmp_path):
    options = [{"dtype": "float64", "steps": 3, "restarts": 3}]
    plan = SharpnessPlan.of([place / "a"], task, "validation", options)
    whole, part = MemoryStore(), Store.open(tmp_path / "study")
    plan.run(whole)
    climbs = [job for job in plan.plan.jobs if job.kind == "climb"]
    assert len(climbs) == 3

    class Killed(Exception):
        pass

    def stop(job, contents):
        if job == climbs[1]:
            raise Killed

    from landform.geometry.sharpness_jobs import SharpnessWork

    work = SharpnessWork(plan._points(part), plan._climbing)
    with pytest.raises(Killed):
        run_plan(plan.plan, work, part, progress=False, on_result=stop)
    assert [job.key in part for job in climbs] == [True, True, False]
    plan.run(part)
    a, b = (plan.collect(store, 0, 0) for store in (whole, part))
    assert a.table.equals(b.table)
    assert dataclasses.replace(a, table=None) == dataclasses.replace(b, table=None)
    assert not plan.plan.missing(part)
    for job in climbs:
        x, y = (store.read(job.key).tensors["point"] for store in (whole, part))
        np.testing.assert_array_equal(x, y)


def test_measured_on_rows_that_were_not_climbed_on(place, task):
    same = measure(place, task, epsilon=0.01)
    held = measure(place, task, epsilon=0.01, climb_split="train")
    assert same.climbed == same.data == "small:validation"
    assert held.climbed == "small:train, 18 rows" and "climbed on" in held.reading
    assert held.loss == same.loss and held.maximum != same.maximum
    few = measure(place, task, epsilon=0.01, climb_rows=5)
    assert few.climbed == "small:validation, 5 rows"
    # What is climbed on decides which point counts, so the climb is that of the other rows.
    direct = sharpness(place / "a", task, split="train", dtype="float64", steps=4, epsilon=0.01)
    assert held.table.loss.tolist() == pytest.approx(direct.table.loss.tolist(), rel=1e-9)


def test_compat_is_one_pass_of_noisy_sgd_to_the_last_point(place, task):
    found = measure(place, task, compat="connectivity", batch_rows=8)
    assert found.epsilon == 1e-5 and len(found.table) == 3 + 1  # 22 rows in batches of 8
    assert "|w_i + 1|" in found.normalisation
    assert found.maximum == pytest.approx(found.table.loss.iloc[-1], rel=1e-9)
    again = measure(place, task, compat="connectivity", batch_rows=8)
    assert again.value == found.value
    # lr T g is far from the walls of the box: what the report of the originals' bug says.
    assert found.reach < 0.5
    wide = measure(place, task, compat="connectivity", batch_rows=8, epsilon=1e-2)
    wider = measure(place, task, compat="connectivity", batch_rows=8, epsilon=1e-1)
    assert wide.value == pytest.approx(wider.value, rel=1e-3)


def test_a_region_around_zeros_is_refused(place, task):
    with pytest.raises(ConfigError, match="no width"):
        measure(place, task, method="adaptive", parameters=("*LayerNorm.bias",))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"epsilon": 0.0}, "epsilon"),
        ({"epsilon": -1e-3}, "epsilon"),
        ({"epsilon": float("inf")}, "epsilon"),
        ({"steps": 0}, "steps"),
        ({"restarts": 0}, "restarts"),
        ({"coordinates": 10**9}, "may move"),
        ({"subspace": 10**9}, "may move"),
        ({"subspace": 100, "memory": 1e-3}, "sparse"),
        ({"coordinates": 3, "subspace": 3}, "exclude each other"),
        ({"subspace": 3, "method": "adaptive"}, "coordinates"),
        ({"method": "boxes"}, "method"),
        ({"scale": "relative"}, "epsilon"),
        ({"compat": "connectivity", "method": "sam"}, "compat"),
        ({"compat": "connectivity", "restarts": 2}, "restarts"),
        ({"dtype": "bfloat16"}, "float32"),
        ({"parameters": ("nothing.*",)}, "no tensor matches"),
        ({"climb_split": "never"}, "never"),
        ({"epsilom": 1.0}, "epsilon"),
    ],
)
def test_bad_options(place, task, options, says, monkeypatch):
    climbed = []
    monkeypatch.setattr("landform.geometry.sharpness_jobs.climb", lambda *a: climbed.append(a))
    with pytest.raises(lf.errors.LandformError, match=says) as caught:
        sharpness(place / "a", task, **options)
    assert caught.value.remedy and not climbed


def test_it_can_be_kept_and_read_again(place, task):
    found = measure(place, task)
    again = from_parts(*to_parts(found))
    assert again.table.equals(found.table) and again.reading == found.reading
    assert found.to_json()["value"] == found.value


def test_a_point_that_measures_lower_does_not_count(place, task):
    plan = SharpnessPlan.of([place / "a"], task, "validation", [{}])
    here, weights = np.ones(22), np.ones(22)
    records = [{"loss": 3.0, "moved": True}, {"loss": 2.0, "moved": True}]
    lower, higher = here[None] - 1e-7, here[None] + 1e-7
    assert plan._best(records, [lower, lower], weights, here) is None
    assert plan._best(records, [lower, higher], weights, here) == 1
    held = SharpnessPlan.of([place / "a"], task, "validation", [{"climb_split": "train"}])
    assert held._best(records, [lower, higher], weights, here) == 0
