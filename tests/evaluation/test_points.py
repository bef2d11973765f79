"""What a mix job depends on besides the weights that it names."""

import json

import pytest
import torch

import landform as lf
from landform.errors import SpaceMismatchError
from landform.evaluation.points import Data, PointsConfig, PointsWork
from landform.weights.checkpoint import resolve


@pytest.fixture
def task(tmp_path, write_rows):
    return lf.load_task(
        {"validation": str(write_rows(tmp_path / "dev.tsv", 20))}, text="sentence", label="label"
    )


def test_the_config_that_runs_a_mix_is_part_of_its_key(tmp_path, save_checkpoint, task):
    """A mix of b and c in the model of a is another job than one in a model of another function."""
    one, two = (save_checkpoint(tmp_path / name, seed=1) for name in "ab")
    kept = json.loads((two / "config.json").read_text())

    def job(**changes):
        (two / "config.json").write_text(json.dumps({**kept, **changes}))
        pair = (resolve(two), resolve(one))
        work = PointsWork(pair, (Data(task, "validation"),), PointsConfig())
        return work.mix_job([1], [[1.0]], "one")

    assert job(layer_norm_eps=1e-3).key != job().key
    assert job(hidden_dropout_prob=0.4).key == job().key


def test_other_buffers_are_refused(tmp_path, save_checkpoint, task, monkeypatch):
    """Running statistics are not mixed: those of the first model would silently stand for all."""
    from landform.evaluation import points

    paths = [save_checkpoint(tmp_path / name, seed=seed) for seed, name in enumerate("ab")]
    scales = {"a": 1.0, "b": 1.0}
    load = points.load_model

    def with_buffer(checkpoint, *args, **options):
        model = load(checkpoint, *args, **options)
        model.bert.register_buffer("running_mean", torch.full((3,), scales[checkpoint.path.name]))
        return model

    monkeypatch.setattr(points, "load_model", with_buffer)
    lf.interpolate(*paths, task, points=3)
    scales["b"] = 2.0
    with pytest.raises(SpaceMismatchError, match=r"bert\.running_mean has other values"):
        lf.interpolate(*paths, task, points=3)
