"""The study that tests scores by retraining on parts of the rows."""

from __future__ import annotations

import numpy as np
import pytest

import landform as lf
from landform.attribution.lds import LinearDatamodelling, linear_datamodelling_score
from landform.errors import ConfigError, DataError
from landform.store.artifacts import Store
from landform.store.study import load_results
from landform.studies import lds as module
from landform.studies.lds import LdsStudy, lds, make_masks, split_method
from landform.studies.study_file import StudyFile
from landform.training.schedules import write_schedule
from landform.weights.checkpoint import load_model, load_tokenizer

ROWS, QUERIES = 24, 6


@pytest.fixture(scope="module")
def model(save_checkpoint, tmp_path_factory):
    return save_checkpoint(tmp_path_factory.mktemp("lds") / "model", seed=3)


@pytest.fixture(scope="module")
def task(write_rows, tmp_path_factory):
    folder = tmp_path_factory.mktemp("rows")
    return lf.load_task(
        {
            "train": str(write_rows(folder / "train.tsv", ROWS, seed=1)),
            "validation": str(write_rows(folder / "validation.tsv", QUERIES, seed=2)),
        },
        text="sentence",
        label="label",
    )


OPTIONS = {
    "masks": 8,
    "retrainings": 2,
    "replicates": 40,
    "train": {"max_steps": 3, "batch_size": 6, "learning_rate": 1e-3, "threads": 1, "dropout": 0.0},
}


def stand_in(method: str) -> np.ndarray:
    return np.random.default_rng(len(method)).normal(size=(QUERIES, ROWS))


def test_masks_have_equal_sizes_and_grow_by_new_ones():
    masks = make_masks(25, 10, 0.5, seed=1)
    assert masks.dtype == bool and (masks.sum(1) == 12).all()
    assert np.array_equal(make_masks(25, 4, 0.5, seed=1), masks[:4])
    assert not np.array_equal(make_masks(25, 4, 0.5, seed=2), masks[:4])
    assert len({mask.tobytes() for mask in masks}) == 10
    with pytest.raises(ConfigError, match="0 of 25 rows"):
        make_masks(25, 4, 0.01, seed=1)


def test_methods_name_their_labels():
    assert split_method("ekfac") == ("ekfac", "true")
    assert split_method("kfac", "empirical") == ("kfac", "empirical")
    assert split_method("ekfac:sampled", "empirical") == ("ekfac", "sampled")
    with pytest.raises(ConfigError, match="did you mean 'ekfac'"):
        split_method("ekfaq")
    with pytest.raises(ConfigError, match="unknown labels 'empiric'"):
        split_method("ekfac:empiric")


@pytest.mark.parametrize("measurement", ["margin", "loss"])
def test_the_truth_is_what_retrained_models_say(model, task, tmp_path, measurement):
    """One mask and seed, trained by `train` and asked one query at a time."""
    study = LdsStudy.of(model, task, **{**OPTIONS, "measurement": measurement})
    store = Store.open(tmp_path / "s")
    targets = study.targets(store)
    assert targets.shape == (8, 2, QUERIES)
    rows = np.flatnonzero(study.masks[3])
    listed = tmp_path / "rows.txt"
    listed.write_text("".join(f"{task.examples('train').ids[r]}\n" for r in rows))
    run = lf.train(
        model, task, out=tmp_path / "o", seeds=101, row_file=listed, eval_split=None,
        **OPTIONS["train"],
    )  # fmt: skip
    trained, tokenizer = load_model(run.paths[0]).eval(), load_tokenizer(run.paths[0])
    examples = task.examples("validation")
    for q, (text, label) in enumerate(zip(examples.texts, examples.labels, strict=True)):
        z = trained(**tokenizer(text[0], return_tensors="pt")).logits[0].double().log_softmax(-1)
        wanted = z[label] if measurement == "loss" else z[label] - z[1 - label]
        assert targets[3, 1, q] == pytest.approx(wanted.item(), abs=1e-4)


def test_result_and_what_is_kept(model, task, tmp_path, monkeypatch):
    options = {**OPTIONS, "methods": ["identity", "ekfac:sampled"], "keep_as": "mine"}
    study = LdsStudy.of(model, task, **options)
    assert study.forecast(None).evaluations == 8 * 2 * 3
    store = Store.open(tmp_path / "s")
    r = study.run(store, scores_of=stand_in)
    assert isinstance(r, LinearDatamodelling)
    assert r.table.method.tolist() == ["identity", "ekfac:sampled"]
    wanted = linear_datamodelling_score(stand_in("identity"), study.masks, study.targets(store))
    assert r.table.lds[0] == pytest.approx(wanted.mean())
    assert (r.masks, r.retrainings, r.fraction) == (8, 2, 0.5)
    assert np.isfinite(r.reliability) and set(r.timings) >= {"retraining", "scores of identity"}
    assert load_results(store)["mine"].table.equals(r.table)
    # Nothing is trained again, with more masks only the new ones are.
    monkeypatch.setattr(
        module, "run_plan", lambda plan, work, kept, **_: None if not plan.missing(kept) else 1 / 0
    )
    assert LdsStudy.of(model, task, **options).run(store, scores_of=stand_in).table.equals(r.table)
    more = LdsStudy.of(model, task, **{**options, "masks": 12})
    assert more.forecast(store).evaluations == 4 * 2 * 3


def test_the_librarys_own_scores(model, task, tmp_path):
    methods = ["identity", "ekfac", "ekfac:empirical", "ekfac:true"]
    r = lds(
        model, task, store=tmp_path / "s", methods=methods, query_rows=4, rows=20,
        base_seeds=(0, 1), damping=1e-4, **OPTIONS,
    )  # fmt: skip
    values = r.table.set_index("method").lds
    assert np.isfinite(values).all() and values["ekfac"] == values["ekfac:true"]
    assert values["ekfac"] != values["ekfac:empirical"] and values["ekfac"] != values["identity"]
    assert r.per_query["query"].nunique() == 4


def test_the_models_that_are_scored_can_be_given(model, task, tmp_path):
    options = {**OPTIONS, "methods": "identity", "query_rows": 4}
    own = lds(model, task, store=tmp_path / "a", base_seeds=7, **options)
    run = lf.train(model, task, out=tmp_path / "o", seeds=7, eval_split=None, **OPTIONS["train"])
    given = lds(model, task, scored=run.paths[0], **options)
    np.testing.assert_allclose(own.table.lds, given.table.lds)


def test_files_of_a_step_start_from_its_study_file(model, task, tmp_path, monkeypatch):
    (tmp_path / "files").mkdir()
    write_schedule(tmp_path / "files" / "rates.json", {"dropout": 0.2})
    rows = {name: str(path) for name, path in task.config.files.items()}
    content = {
        "study": "study",
        "tasks": {"toy": {"files": rows, "text": "sentence", "label": "label"}},
        "steps": [
            {
                name: {
                    "model": str(model),
                    "task": "toy",
                    "train": {"max_steps": 3, "dropout": "files/rates.json"},
                    **options,
                }
            }
            for name, options in (
                ("lds", {"mask_file": "files/masks.npy"}),
                ("counterfactual", {"sizes": [4]}),
            )
        ],
    }
    np.save(tmp_path / "files" / "masks.npy", make_masks(ROWS, 8, 0.5, 0))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    file = StudyFile.of(content, base=tmp_path, where="a study")
    for step in file.steps:
        step.check(file)
        assert step.study(file).config.train.dropout == {"dropout": 0.2}
    assert file.steps[0].study(file).masks.shape == (8, ROWS)


def test_published_files_take_the_place_of_training(model, task, tmp_path):
    study = LdsStudy.of(model, task, **OPTIONS)
    store = Store.open(tmp_path / "s")
    own = study.run(store, scores_of=stand_in)
    np.save(tmp_path / "masks.npy", study.masks)
    np.save(tmp_path / "margins.npy", study.targets(store).mean(1))
    files = {"mask_file": tmp_path / "masks.npy", "margin_file": tmp_path / "margins.npy"}
    scoring = {"replicates": 40, "train": OPTIONS["train"]}
    published = LdsStudy.of(model, task, **scoring, **files)
    assert len(published.plan) == 0 and published.forecast().evaluations == 0
    r = published.run(scores_of=stand_in)
    np.testing.assert_allclose(r.table.lds, own.table.lds)
    assert np.isnan(r.reliability) and r.retrainings == 0
    with pytest.raises(DataError, match="of 8 masks and 6 queries, the study of 8 and 5"):
        LdsStudy.of(model, task, **scoring, **files, query_rows=5)
    with pytest.raises(DataError, match="masks of 24 rows, but there are 20"):
        LdsStudy.of(model, task, **scoring, **files, rows=20)
    with pytest.raises(ConfigError, match="needs the mask_file"):
        LdsStudy.of(model, task, **OPTIONS, margin_file=files["margin_file"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"methods": ["ekfac", "nothing"]}, "unknown strategy 'nothing'"),
        ({"methods": []}, "at least one"),
        ({"masks": 2}, "masks"),
        ({"train": {"rows": 4}}, r"train\.rows has no meaning here"),
        ({"fraction": 0.001}, "keep some"),
        ({"methodz": 1}, "did you mean 'methods'"),
    ],
)
def test_bad_options(model, task, options, message):
    with pytest.raises(ConfigError, match=message):
        LdsStudy.of(model, task, **{**OPTIONS, **options})
