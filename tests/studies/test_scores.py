import numpy as np
import pytest

import landform as lf
from landform.errors import ConfigError
from landform.evaluation.points import Data
from landform.store.artifacts import MemoryStore
from landform.studies.scores import ScoreSource, check_training_options
from landform.training.options import TrainConfig
from landform.weights.checkpoint import resolve

TRAIN = TrainConfig(max_steps=3, batch_size=8, learning_rate=1e-3, new_head=True)


@pytest.fixture(scope="module")
def parts(tmp_path_factory, save_checkpoint, write_rows):
    root = tmp_path_factory.mktemp("scores")
    model = save_checkpoint(root / "bert")
    files = {
        "train": str(write_rows(root / "train.tsv", 30)),
        "validation": str(write_rows(root / "dev.tsv", 8, seed=1)),
    }
    return root, model, lf.load_task(files, text="sentence", label="label", name="toy")


def source(parts, rows=20, **options):
    root, model, task = parts
    return ScoreSource(
        model=resolve(model), task=task, split="train", rows=rows, queries=Data(task, "validation"),
        query_rows=(0, 1, 5), train=TRAIN, seed=4, place=root / "models", **options,
    )  # fmt: skip


@pytest.fixture(scope="module")
def trained(parts):
    """The model that `train` makes of the first 20 rows."""
    root, model, task = parts
    ids = root / "ids.txt"
    ids.write_text("\n".join(task.examples("train").ids[:20]))
    options = {**TRAIN.model_dump(exclude={"seeds"}), "row_file": ids, "eval_split": None}
    return lf.train(model, task, out=root / "runs", seeds=4, **options).paths[0]


def test_scores_are_those_of_the_model_trained_on_these_rows(parts, trained):
    found = source(parts)
    assert found.checkpoint.fingerprint == resolve(trained).fingerprint
    for strategy in ("identity", "ekfac"):
        factors = lf.fit_factors(trained, parts[2], strategy=strategy, rows=20)
        expected = lf.influence(factors, query_rows=[0, 1, 5], train_rows=20, measurement="margin")
        scores = found(strategy)
        assert scores.shape == (3, 20)
        np.testing.assert_allclose(scores, expected.values, rtol=1e-4, atol=1e-6)


def test_the_model_is_trained_once(parts, monkeypatch):
    first = source(parts).checkpoint
    from landform.training import work

    monkeypatch.setattr(work, "run_loop", None)
    assert source(parts).checkpoint.path == first.path


def test_other_rows_are_another_model_beside(parts):
    few, all_rows = source(parts, rows=10).checkpoint, source(parts, rows=30).checkpoint
    assert few.fingerprint != all_rows.fingerprint and few.path.parent != all_rows.path.parent


def test_a_given_model_is_scored_as_it_is(parts, trained):
    other = source(parts, scored=resolve(parts[1]), store=MemoryStore())
    assert other.checkpoint.path == parts[1]
    assert not np.allclose(other("identity"), source(parts)("identity"))


def test_options_that_the_study_decides():
    check_training_options(TRAIN, "lds")
    check_training_options(TrainConfig(perturb=0.1, perturb_seed=3), "lds")
    for option in (
        {"rows": 3},
        {"seeds": (3,)},
        {"engine": "ray"},
        {"perturb": 0.1},
        {"part": "1/2"},
        {"subset_seed": 3},
        {"cartography": True},
        {"eval_steps": 1, "keep_best": "loss"},
        {"max_new_tokens": 3},
    ):
        name = next(iter(option))
        with pytest.raises(ConfigError, match=f"lds: option train.{name}") as error:
            check_training_options(TrainConfig(**option), "lds")
        assert error.value.remedy
