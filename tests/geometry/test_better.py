"""Points better than both ends: by hand, by brute force, and chance not sold as improvement."""

import numpy as np
import pytest

import landform as lf
from landform.evaluation.points import Data, PointsConfig
from landform.geometry.better import better_than_ends, count_better, headline, say_better
from landform.geometry.curves import convexity_gap
from landform.tasks.metrics import Predictions

TS = (0.0, 0.25, 0.5, 0.75, 1.0)


@pytest.fixture
def data(tmp_path, write_rows):
    """Two data sets of other examples."""
    tasks = [
        lf.load_task(
            str(write_rows(tmp_path / f"{name}.tsv", 30, seed=seed)),
            text="sentence",
            label="label",
            name=name,
        )
        for seed, name in enumerate(("dev", "ood"))
    ]
    return [Data(task, "validation") for task in tasks]


def right(correct):
    """Predictions of two classes with these correctnesses."""
    hit = np.asarray(correct, bool)
    labels = np.arange(len(hit)) % 2
    chosen = np.where(hit, labels, 1 - labels)
    losses = np.where(hit, 0.1, 2.0)
    return Predictions(np.eye(2)[chosen], labels, losses, np.ones(len(hit)))


def curve(*accuracies, n=100):
    """Predictions whose first share of examples is right."""
    return [right(np.arange(n) < round(a * n)) for a in accuracies]


def test_margins_by_hand(data):
    table = better_than_ends(data[:1], [curve(0.5, 0.6, 0.7, 0.4, 0.65)], TS, PointsConfig())
    assert table.t.tolist() == [0.25, 0.5, 0.75]
    np.testing.assert_allclose(table.margin, [-0.05, 0.05, -0.25])
    np.testing.assert_allclose(table.value, [0.6, 0.7, 0.4])
    assert table.better.tolist() == [False, True, False]
    assert set(table.metric) == {"accuracy"} == {headline(data[0].task)}
    assert count_better(table, "dev:validation") == {"better": 1, "clearly_better": 1}
    assert say_better(table) == (
        "accuracy beats both ends at 1 of 3 inner points (t = 0.5), all of them beyond chance"
    )


def test_replicates_by_loops(data):
    random = np.random.default_rng(0)
    points = [right(random.random(40) < 0.7) for _ in TS]
    config = PointsConfig(replicates=60)
    table = better_than_ends(data[:1], [points], TS, config)
    hits = np.stack([(p.logits.argmax(-1) == p.labels) for p in points]).astype(float)
    drawn = []
    generator = np.random.default_rng(config.seed)
    for _ in range(60):
        rows = generator.integers(0, 40, size=40)
        means = hits[:, rows].mean(axis=1)
        drawn.append([means[k] - max(means[0], means[-1]) for k in (1, 2, 3)])
    drawn = np.array(drawn)
    np.testing.assert_allclose(table.share, (drawn > 0).mean(axis=0))
    np.testing.assert_allclose(table.margin_low, np.quantile(drawn, 0.025, axis=0))
    np.testing.assert_allclose(table.margin_high, np.quantile(drawn, 0.975, axis=0))
    away = (drawn - table.margin.to_numpy()) / drawn.std(axis=0)
    bound = table.margin - np.quantile(away.max(axis=1), 0.95) * drawn.std(axis=0)
    np.testing.assert_allclose(table.bound, bound)


def test_losses_are_better_when_lower(data, monkeypatch):
    monkeypatch.setattr("landform.geometry.better.headline", lambda task: "loss")
    table = better_than_ends(data[:1], [curve(0.5, 0.6, 0.9, 0.4, 0.7)], TS, PointsConfig())
    assert table.better.tolist() == [False, True, False]
    np.testing.assert_allclose(table.margin, [-0.19, 0.38, -0.57], atol=1e-12)


def test_better_on_all_is_better_on_each(data):
    first, second = curve(0.5, 0.8, 0.9, 0.9, 0.5), curve(0.5, 0.4, 0.8, 0.45, 0.5, n=80)
    table = better_than_ends(data, [first, second], TS, PointsConfig())
    every = table[table.data == "all"]
    assert every.better.tolist() == [False, True, False] and every.clear.tolist()[1]
    for column in ("margin", "bound", "share"):
        each = [table[table.data == d.name][column].to_numpy() for d in data]
        np.testing.assert_allclose(every[column], np.minimum(*each))
    assert say_better(table).startswith(
        "on every data set metrics beat both ends at 1 of 3 inner points (t = 0.5)"
    )
    lower = better_than_ends(data, [second, curve(0.9, 0.4, 0.4, 0.4, 0.9)], TS, PointsConfig())
    assert say_better(lower).endswith("both ends at no inner point")


def test_chance_is_not_sold_as_improvement(data):
    """24 points of equal true accuracy: nearly always one is above both ends, seldom clearly."""
    random = np.random.default_rng(3)
    ts = np.linspace(0, 1, 26)
    better = clear = 0
    for _ in range(40):
        # Neighbouring points agree on most examples, as points of a line do.
        shared, own = random.random(120), random.random((26, 120))
        points = [right(np.where(own[k] < 0.1, own[k] * 10, shared) < 0.8) for k in range(26)]
        table = better_than_ends(data[:1], [points], ts, PointsConfig(replicates=100))
        better += table.better.any()
        clear += table.clear.any()
    assert better >= 33 and clear <= 6  # 2 of 40 at a level of 0.95


def test_no_inside_and_no_doubt(data):
    assert say_better(better_than_ends(data[:1], [curve(0.5, 0.6)], (0, 1), PointsConfig())) == ""
    same = better_than_ends(data[:1], [curve(1, 1, 1, 1, 1)], TS, PointsConfig())
    assert not same.better.any() and not same.clear.any()
    alone = better_than_ends(data[:1], [curve(0, 1, 1, 1, 0, n=1)], TS, PointsConfig())
    assert alone.better.all() and not alone.clear.any()  # one example proves nothing


def test_lines_and_paths_carry_the_table(tmp_path, data, save_checkpoint):
    ends = [save_checkpoint(tmp_path / f"s{i}", seed=i) for i in (1, 2)]
    tasks = [item.task for item in data]
    line = lf.interpolate(*ends, tasks[0], also=[tasks[1]], points=5)
    assert list(dict.fromkeys(line.better.data)) == ["dev:validation", "ood:validation", "all"]
    rows = line.table[line.table.data == "dev:validation"].accuracy.to_numpy()
    expected = rows[1:-1] - max(rows[0], rows[-1])
    np.testing.assert_allclose(line.better.margin[:3], expected)
    assert line.summary.better.tolist()[0] == int((expected > 0).sum())
    assert {"better", "clearly_better"} <= set(line.summary)
    assert "both ends" in line.reading and len(line.to_json()["better"]) == 9
    walked = lf.walk(ends, tasks[0], points=5)
    assert set(walked.better.path) == {"curve", "line"}
    np.testing.assert_allclose(walked.better.margin, [*expected, *expected], atol=1e-12)
    assert "; along it " in walked.reading and len(walked.to_json()["better"]) == 6
    assert walked.barrier_height >= 0 and convexity_gap(line.table.loss[:5]) >= 0


def test_what_is_not_known_on_one_data_set_is_not_known_on_all(data, monkeypatch):
    from landform.geometry import better

    whole = better._one

    def one(item, points, ts, config):
        table = whole(item, points, ts, config)
        if item is data[1]:
            table.loc[0, ["margin", "bound"]] = np.nan
        return table

    monkeypatch.setattr(better, "_one", one)
    points = curve(0.5, 0.8, 0.9, 0.9, 0.5)
    table = better_than_ends(data, [points, points], TS, PointsConfig())
    every = table[table.data == "all"]
    assert every[["margin", "bound"]].isna().all(axis=1).tolist() == [True, False, False]
    assert every.better.dtype == bool and every.clear.dtype == bool
