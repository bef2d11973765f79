"""The lines of an axis in one table; study files of a grid that run as they are written."""

import json

import numpy as np
import pytest
import yaml

import landform as lf
from landform.cli.app import run
from landform.config import read_yaml
from landform.errors import ConfigError, StoreError
from landform.results import from_parts, to_parts
from landform.store.artifacts import Store
from landform.studies.axes import EXPERIMENTS, Axes, AxisPair, axis_lines, collect_axes
from landform.studies.grid import AXES, METHODS, GridConfig, plan_grid, read_grid, write_grid
from landform.studies.study_file import describe_study, read_study
from landform.tasks.task import load_task
from landform.training.schedules import write_schedule

QUICK = {"points": 3, "replicates": 30}


@pytest.fixture(scope="module")
def place(tmp_path_factory, save_checkpoint, write_rows, tiny_model, word_tokenizer):
    root = tmp_path_factory.mktemp("axes")
    for i in range(3):
        save_checkpoint(root / "runs" / f"seed{i}", seed=i)
    for i in range(2):
        tiny_model(seed=5 + i).float().bert.save_pretrained(root / f"base{i}")
        word_tokenizer.save_pretrained(root / f"base{i}")
    for name, classes in (("one", 2), ("two", 3)):
        write_rows(root / f"{name}-train.tsv", 24, seed=classes, classes=classes)
        write_rows(root / f"{name}-dev.tsv", 18, seed=7, classes=classes)
    return root


@pytest.fixture(scope="module")
def task(place):
    return load_task(place / "one-dev.tsv", name="one", text="sentence", label="label")


def described(place, name):
    files = {
        "train": str(place / f"{name}-train.tsv"),
        "validation": str(place / f"{name}-dev.tsv"),
    }
    return {"files": files, "text": ["sentence"], "label": "label"}


# --- the table -----------------------------------------------------------------------------------


def test_every_number_is_that_of_the_line(place, task, tmp_path):
    runs = [place / "runs" / f"seed{i}" for i in range(3)]
    pairs = [("x", runs[0], runs[1]), ("y", runs[0], runs[2])]
    store = Store.open(tmp_path / "study")
    found = axis_lines("seed", pairs, task, store=store, **QUICK)
    assert found.table["value"].tolist() == ["x", "y"] and found.axes == ("seed",)
    assert found.table["pair"].tolist() == ["seed0 - seed1", "seed0 - seed2"]
    assert set(found.table["experiment"]) == {"itp_diff_seed"}
    for row, (_, a, b) in zip(found.table.to_dict("records"), pairs, strict=True):
        line = lf.interpolate(a, b, task, store=store, **QUICK)
        summary = line.summary.iloc[0]
        for name in ("barrier_height", "barrier_low", "metric_drop", "chord_area_high", "better"):
            assert row[name] == summary[name], name
        assert row["distance"] == line.distance and row["points"] == 3
        accuracy = line.table["accuracy"]
        assert (row["metric_a"], row["metric_b"]) == (accuracy.iloc[0], accuracy.iloc[-1])
    # A line is kept as `interpolate` keeps it.
    assert "interpolate-seed-seed0-seed1-one-validation" in list(store.results())
    again = from_parts(*to_parts(found))
    assert again.table.equals(found.table) and found.to_json()["axes"] == ["seed"]
    assert "2 pairs on one:validation (seed)" in found.reading


def test_several_data_sets_and_what_is_collected(place, task, tmp_path):
    runs = [place / "runs" / f"seed{i}" for i in range(3)]
    other = load_task(place / "one-train.tsv", name="other", text="sentence", label="label")
    first = axis_lines("step", [("1", runs[0], runs[1])], task, also=[other], **QUICK)
    assert first.table["data"].tolist() == ["one:validation", "other:validation"]
    from landform.store.study import publish

    stores = [Store.open(tmp_path / name) for name in ("s", "t")]
    publish(stores[0], "axes-step", first)
    second = axis_lines(
        "seed", [AxisPair(value="1", a=str(runs[0]), b=str(runs[2]))], task, **QUICK
    )
    publish(stores[1], "axes-seed", second)
    publish(stores[1], "axes-step-again", first)
    both = collect_axes([tmp_path / "s", tmp_path / "t"])
    assert both.table["axis"].tolist() == ["seed", "step", "step"]  # each once, in their order
    publish(stores[0], "axes", both)
    assert len(collect_axes([tmp_path / "s"]).table) == 2  # what was collected is not collected
    with pytest.raises(StoreError, match="no axis is kept"):
        Store.open(tmp_path / "empty")
        collect_axes([tmp_path / "empty"])


def test_axes_that_cannot_be(place, task):
    with pytest.raises(ConfigError, match="axis seed: no pairs"):
        axis_lines("seed", [], task)
    with pytest.raises(ConfigError, match="unknown option 'pointz'"):
        axis_lines("seed", [("x", "a", "b")], task, pointz=3)


# --- the grid ------------------------------------------------------------------------------------


def grid(place, *tasks, **options):
    train = {"max_steps": 5, "batch_size": 8, **options.pop("train", {})}
    given = {name: described(place, name) for name in tasks or ("one",)}
    return GridConfig.parse(
        {"model": str(place / "base0"), "tasks": given, "train": train, "points": 3, **options}
    )


OPTIONS = {
    "init-std": {"train": {"tuning": "adapter", "adapter_size": 4}},
    "pretraining": {"models": {"early": "base0", "late": "base1"}},
    "rate-batch": {"learning_rates": (1e-4, 1e-3), "batch_sizes": (4, 8)},
    "perturb": {"perturbs": (0.0, 0.1)},
    "step": {"steps": (2, 4)},
}


@pytest.mark.parametrize("axis", AXES)
def test_every_axis_is_a_study_file_that_can_be_run(place, axis, tmp_path):
    options = dict(OPTIONS.get(axis, {}))
    if axis == "pretraining":
        options["models"] = {k: str(place / v) for k, v in options["models"].items()}
    tasks = ("one", "two") if axis in ("boundary", "pretraining") else ("one",)
    if axis == "domain":
        config = grid(place, "one")
        twin = {"one": described(place, "one"), "twin": described(place, "one")}
        config = GridConfig.parse({**config.model_dump(), "tasks": twin, "axes": [axis]})
    else:
        config = grid(place, *tasks, axes=[axis], **options)
    out = tmp_path / "studies"
    paths = write_grid(plan_grid(config, out), out)
    assert paths
    for path in paths:
        assert str(tmp_path) not in path.read_text()  # paths start from the file
        rows = describe_study(read_study(path))
        said = [row["forecast"] for row in rows]
        assert any("steps to do" in text for text in said), said
        assert run(["run", str(path), "--dry-run"]) == 0
        content = read_yaml(path)
        last = content["steps"][-1]
        assert next(iter(last)) in ("axes", "boundary"), last
    assert axis in EXPERIMENTS and not (out / "study").exists()


def test_a_file_is_run_and_collected(place, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("LANDFORM_PROGRESS", "0")
    out = tmp_path / "studies"
    few = {"train": {"max_steps": 1}, "evaluate": False}
    plans = plan_grid(grid(place, axes=["split"], **few), out)
    plans += plan_grid(grid(place, "one", "two", axes=["boundary"], **few), out)
    for path in write_grid(plans, out):
        assert run(["run", str(path)]) == 0, capsys.readouterr().err
    all_of_them = ["--collect", str(out / "study"), "--store", str(out / "all")]
    assert run(["grid", *all_of_them, "--json"]) == 0
    captured = capsys.readouterr().out
    kept = json.loads(captured[captured.index("{\n") :])
    rows = [row for row in kept["table"] if row["data"] == "one:validation"]
    assert [row["value"] for row in rows] == 2 * ["other half, one seed"] + [
        "one half, other seeds"
    ]
    assert kept["axes"] == ["split"]
    assert list(Store.open(out / "all").results()) == ["axes"]
    names = list(Store.open(out / "study" / "one-two-boundary").results())
    assert sum(name.startswith("boundary-") for name in names) == 2
    halves = [
        set((out / f"runs/one/half{k}/seed0/train_rows.txt").read_text().split()) for k in (1, 2)
    ]
    assert not halves[0] & halves[1] and len(halves[0] | halves[1]) == 24


def test_what_differs_along_an_axis(place, tmp_path):
    def trained(axis, **options):
        (plan,) = plan_grid(grid(place, axes=[axis], **options), tmp_path)
        return [step["train"] for step in plan.content["steps"] if "train" in step]

    assert [t.get("head_seed") for t in trained("order")] == [0]
    (init,) = trained("init", seeds=(3, 4))
    assert (init["data_seed"], init["dropout_seed"], "head_seed" in init) == (3, 3, False)
    assert [t["init_std"] for t in trained("init-std", **OPTIONS["init-std"])] == [0.02, 0.08]
    assert [t.get("perturb", 0) for t in trained("perturb")] == [0, 0.05]
    assert [t["save_steps"] for t in trained("step")] == [[1, 3, 5]]
    cells = trained("rate-batch", **OPTIONS["rate-batch"])
    assert len({(t["learning_rate"], t["batch_size"]) for t in cells}) == 4
    assert [t["part"] for t in trained("split")] == ["1/2", "2/2"]
    assert {t["part_by"] for t in trained("split", part_by="contiguous")} == {"contiguous"}
    tunings = [t["tuning"] for t in trained("tuning")]
    assert tunings == [method.removesuffix("++") for method in METHODS]
    originals = ["compacter", "compacter++", "low_rank_adapter"]  # as its templates name them
    of_all, of_blocks, low_rank = trained("tuning", methods=originals)
    assert of_all["out"].endswith("/compacter") and of_blocks["out"].endswith("/compacter++")
    assert of_blocks == {
        **of_all, "adapter_placement": "pfeiffer", "out": of_blocks["out"]
    }  # fmt: skip
    assert (of_all["tuning"], of_all["phm_shared"], of_all["learning_rate"]) == (
        "compacter", False, 3e-3,
    )  # fmt: skip
    assert (low_rank["tuning"], low_rank["adapter_size"]) == ("low-rank-adapter", 24)
    (prompt,) = trained("tuning", methods=["prompt"])
    assert (prompt["prompt_length"], prompt["learning_rate"]) == (100, 3e-2)
    (lora,) = trained("tuning", methods={"lora": {"lora_modules": ["query"]}})
    assert (lora["lora_rank"], lora["lora_modules"]) == (8, ["query"])


def test_a_grid_in_a_file(place, tmp_path):
    (tmp_path / "rates").mkdir()
    write_schedule(tmp_path / "rates" / "guided.json", {"dropout": 0.0, "other": 0.1})
    (tmp_path / "grid.yaml").write_text(
        yaml.safe_dump(
            {
                "model": "base0",
                "tasks": {"one": {**described(place, "one"), "files": {"train": "t.tsv"}}},
                "axes": "seed",
                "seeds": [1, 2, 3],
                "train": {
                    "row_file": "rows.txt",
                    "ewc": "f.safetensors",
                    "ewc_strength": 2.0,
                    "dropout": "rates/guided.json",
                },
            }
        )
    )
    (tmp_path / "base0").mkdir()
    config = read_grid(tmp_path / "grid.yaml")
    (plan,) = plan_grid(config, tmp_path / "out" / "deep")
    assert plan.content["tasks"]["one"]["files"]["train"] == "../../t.tsv"
    step = plan.content["steps"][0]["train"]
    assert step["model"] == "../../base0"
    # Options of training start from the grid's file, wherever the command runs.
    assert (step["row_file"], step["ewc"]) == ("../../rows.txt", "../../f.safetensors")
    assert step["dropout"] == {"dropout": 0.0, "other": 0.1}
    assert len(plan.content["steps"][-1]["axes"]["pairs"]) == 3
    hub = GridConfig.parse({"model": "org/name@main", "tasks": ["sst2"], "axes": ["seed"]})
    (plan,) = plan_grid(hub, tmp_path)
    assert plan.content["steps"][0]["train"]["model"] == "org/name@main"
    assert plan.content["tasks"] == {"sst2": {"task": "sst2"}}


GLUE = ("cola", "mnli", "mrpc", "qnli", "qqp", "rte", "sst2", "stsb")


def test_the_templates_of_the_original(tmp_path):
    """Its 8 GLUE tasks x its methods, full tuning and both spellings of the low-rank adapter."""
    config = GridConfig.parse({"model": "roberta-base", "tasks": GLUE, "axes": ["tuning"]})
    plans = plan_grid(config, tmp_path)
    assert [plan.name for plan in plans] == [f"{name}-tuning" for name in GLUE]
    assert all(len(plan.content["steps"]) == len(METHODS) + 2 for plan in plans)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"axes": ["sed"]}, "axes"),
        ({"axes": ["init-std"]}, "tuning full has no first weights"),
        ({"axes": ["step"], "train": {"max_steps": None, "epochs": 1}}, "axis step: which steps"),
        ({"axes": ["pretraining"]}, "which pre-trained models"),
        ({"axes": ["boundary"]}, "compares two tasks, and there is only one"),
        ({"seeds": [1]}, "at least 2 items"),
        ({"seeds": [1, 1]}, "a seed occurs twice"),
        ({"axes": ["tuning"], "methods": {"compacter": {"adapter_size": 6}}}, "4 does not divide"),
        ({"methods": ["adaptor"]}, "unknown tuning method 'adaptor'"),
        ({"train": {"seeds": [3]}}, "not train.seeds"),
        ({"axes": ["perturb"], "train": {"tuning": "adapter"}}, "axis perturb: .* tuning adapter"),
        ({"axes": ["tuning"], "train": {"perturb": 0.1}}, "axis tuning: train.perturb"),
        ({"axes": ["tuning"], "methods": {"lora": {"adapter_size": 3}}}, "adapter_size is an opt"),
    ],
    ids=["axis", "std", "step", "models", "tasks", "seed", "twice", "compacter", "name", "seeds",
         "noise", "noisy", "options"],
)  # fmt: skip
def test_grids_that_cannot_be(place, tmp_path, options, says):
    with pytest.raises(ConfigError, match=says):
        plan_grid(grid(place, **options), tmp_path)
    assert not list(tmp_path.iterdir())


def test_heads_that_cannot_be_mixed(tmp_path):
    config = GridConfig.parse({"model": "m", "tasks": ["mnli", "sst2"], "axes": ["domain"]})
    with pytest.raises(ConfigError, match=r"mnli and sst2 have other labels .*\n.*boundary"):
        plan_grid(config, tmp_path)


def test_axes_may_be_infinite_nowhere(place, task):
    runs = [place / "runs" / f"seed{i}" for i in range(2)]
    found = axis_lines("seed", [("x", *runs)], task, **QUICK)
    assert isinstance(found, Axes)
    numbers = found.table.select_dtypes("number").to_numpy(float)
    assert np.isfinite(numbers).all()


@pytest.mark.parametrize(
    "options",
    [
        {"axes": ["perturb"], "perturbs": (0.1, 0.1000000001)},
        {"axes": ["rate-batch"], "learning_rates": (1e-4, 1.0000001e-4)},
    ],
    ids=["perturbs", "rates"],
)
def test_two_variants_of_one_name_are_refused(place, tmp_path, options):
    with pytest.raises(ConfigError, match="two variants of one would both be called"):
        plan_grid(grid(place, **options), tmp_path)
