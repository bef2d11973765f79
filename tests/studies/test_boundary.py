"""The boundary between two tasks: the ends exactly, every point by brute force, the numbers."""

import numpy as np
import pytest
import torch

import landform as lf
from landform.errors import CheckpointError, ConfigError, LabelError, SpaceMismatchError
from landform.evaluation.points import Evaluator, PointsWork
from landform.store.artifacts import MemoryStore, Store
from landform.studies.boundary import BoundaryStudy, task_boundaries, task_boundary
from landform.tasks.task import load_task
from landform.weights.checkpoint import load_model, load_tokenizer, resolve
from landform.weights.points import Grafted, head_tensors
from landform.weights.space import ParameterSpace

QUICK = {"points": 4, "replicates": 50, "dtype": "float64"}


def labels(count):
    names = {i: f"{i}" for i in range(count)}
    return {
        "num_labels": count,
        "id2label": names,
        "label2id": {name: i for i, name in names.items()},
    }


@pytest.fixture(scope="module")
def place(tmp_path_factory, save_checkpoint, write_rows):
    """Models of a task with 3 labels (a) and one with 2 (b), of several seeds; rows of both."""
    root = tmp_path_factory.mktemp("boundary")
    for i in range(2):
        save_checkpoint(root / f"a{i}", seed=i, **labels(3))
        save_checkpoint(root / f"b{i}", seed=10 + i, **labels(2))
    write_rows(root / "a.tsv", 24, seed=1, classes=3)
    write_rows(root / "b.tsv", 20, seed=2)
    return root


@pytest.fixture(scope="module")
def tasks(place):
    return [
        load_task(place / f"{n}.tsv", name=n, text="sentence", label="label") for n in ("a", "b")
    ]


# --- grafts --------------------------------------------------------------------------------------


def test_a_graft_is_a_body_under_another_head(place):
    a, b = resolve(place / "a0"), resolve(place / "b0")
    model, other = load_model(a), load_model(b)
    space = ParameterSpace.of(model)
    flat = Grafted(b, a).flat(space, {a.fingerprint: space.flatten(model)}.__getitem__)
    found = space.unflatten(flat)
    bodies, heads = dict(other.named_parameters()), dict(model.named_parameters())
    for name in space.names:
        wanted = heads if name.startswith("classifier.") else bodies
        assert torch.equal(found[name], wanted[name]), name
    assert Grafted(b, a).spec == f"{b.spec} with the head of {a.spec}"
    prints = [Grafted(b, a), Grafted(a, b), Grafted(b, a, "all")]
    assert len({member.fingerprint for member in prints}) == 3


def roberta(seed, count):
    import transformers as hf

    config = hf.RobertaConfig(
        vocab_size=45, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=24, max_position_embeddings=40, pad_token_id=0, num_labels=count,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return hf.RobertaForSequenceClassification(config)


def test_the_last_layer_or_the_whole_head(tmp_path):
    a, b = roberta(0, 3), roberta(1, 2)
    names = tuple(name for name, _ in a.named_parameters())
    out = ("classifier.out_proj.weight", "classifier.out_proj.bias")
    assert head_tensors(a, names, "last") == out
    dense = ("classifier.dense.weight", "classifier.dense.bias")
    assert head_tensors(a, names, "all") == (*dense, *out)
    a.save_pretrained(tmp_path / "a"), b.save_pretrained(tmp_path / "b")
    one, two = resolve(tmp_path / "a"), resolve(tmp_path / "b")
    space = ParameterSpace.of(a)
    for part, moved in (("last", b), ("all", a)):
        flat = Grafted(two, one, part).flat(space, lambda _: space.flatten(a))
        found = space.unflatten(flat)
        assert torch.equal(found[dense[0]], moved.classifier.dense.weight)
        assert torch.equal(found[out[0]], a.classifier.out_proj.weight)
        assert torch.equal(
            found["roberta.embeddings.word_embeddings.weight"],
            b.roberta.embeddings.word_embeddings.weight,
        )


def test_models_without_a_head_of_their_own(tiny_model):
    model = tiny_model(kind="causal-lm", architecture="gpt2")
    names = tuple(name for name, _ in model.named_parameters())
    with pytest.raises(ConfigError, match=r"has no head beside its body\n.*--also"):
        head_tensors(model, names)


def test_bodies_that_differ_are_named(tmp_path, place, save_checkpoint):
    save_checkpoint(tmp_path / "wide", seed=3, intermediate_size=32, **labels(2))
    a, wide = resolve(place / "a0"), resolve(tmp_path / "wide")
    space = ParameterSpace.of(load_model(a))
    with pytest.raises(SpaceMismatchError, match=r"intermediate_size is 24 in .* and 32 in"):
        Grafted(wide, a).flat(space, lambda _: None)


# --- every point ---------------------------------------------------------------------------------


def by_hand(place, own, other, x_own, rows, task):
    """Accuracy of the model x_own * own + (1 - x_own) * other under the head of `own`."""
    model, body = load_model(place / own).double(), load_model(place / other).double()
    tensors = dict(body.named_parameters())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not name.startswith("classifier."):
                parameter.copy_(x_own * parameter + (1 - x_own) * tensors[name])
    tokenizer, right, loss = load_tokenizer(place / own), 0, 0.0
    examples = task.examples("validation")
    for (text,), label in zip(examples.texts, examples.labels, strict=True):
        logits = model(**tokenizer(text, return_tensors="pt")).logits[0]
        right += int(logits.argmax()) == label
        loss += float(-logits.log_softmax(-1)[label])
    return right / len(examples), loss / len(examples)


def test_every_point_by_brute_force(place, tasks):
    found = task_boundary(place / "a0", place / "b0", *tasks, **QUICK)
    for side, own, other, task in (("a", "a0", "b0", tasks[0]), ("b", "b0", "a0", tasks[1])):
        part = found.table[found.table["task"] == side]
        assert part["x"].tolist() == pytest.approx([0, 1 / 3, 2 / 3, 1])
        for row in part.itertuples():
            share = 1 - row.x if side == "a" else row.x
            accuracy, loss = by_hand(place, own, other, share, 0, task)
            assert row.value == pytest.approx(accuracy, abs=1e-12), (side, row.x)
            assert row.loss == pytest.approx(loss, abs=1e-9), (side, row.x)


@pytest.mark.parametrize("part", ["last", "all"])
def test_the_ends_are_the_checkpoints_own_evaluations(place, tasks, part):
    options = {"points": 3, "replicates": 20, "head": part}
    found = task_boundary(place / "a0", place / "b0", *tasks, **options)
    for side, name, x, task in (("a", "a0", 0, tasks[0]), ("b", "b0", 1, tasks[1])):
        own = lf.evaluate(place / name, task, replicates=20)
        row = found.table[(found.table["task"] == side) & (found.table["x"] == x)].iloc[0]
        assert row.value == own.metrics["accuracy"] and row.loss == own.metrics["loss"]
        assert found.summary[f"own_{side}"].iloc[0] == own.metrics["accuracy"]


def test_what_is_kept(place, tasks):
    found = task_boundary(place / "a0", place / "b0", *tasks, **QUICK, keep=0.5)
    row = found.summary.iloc[0]
    chance = np.bincount(tasks[0].examples("validation").labels).max() / 24
    assert row.floor_a == chance and row.floor_b == 0.5
    part = found.table[found.table["task"] == "a"]
    if row.own_a > row.floor_a:
        wanted = (part.value - chance) / (row.own_a - chance)
        assert part.kept.to_numpy() == pytest.approx(wanted.to_numpy())
    other = task_boundary(place / "a0", place / "b0", *tasks, **QUICK, floor="other")
    assert other.summary["floor_a"].iloc[0] == part.value.iloc[-1]
    assert found.to_json()["summary"] and found.reading


@pytest.fixture(scope="module")
def answered(place, write_rows, tmp_path_factory):
    """Two tasks whose labels are what b0 and b1 say, so that each is right on its own."""
    folder = tmp_path_factory.mktemp("answered")
    rows = load_task(write_rows(folder / "x.tsv", 40, seed=5), text="sentence", label="label")
    found = []
    for name in ("b0", "b1"):
        model, tokenizer = load_model(place / name), load_tokenizer(place / name)
        lines = ["sentence\tlabel"]
        for (text,) in rows.examples("validation").texts:
            said = model(**tokenizer(text, return_tensors="pt")).logits.argmax()
            lines.append(f"{text}\t{int(said)}")
        assert len({line[-1] for line in lines[1:]}) == 2
        (folder / f"{name}.tsv").write_text("\n".join(lines) + "\n")
        found.append(
            load_task(
                folder / f"{name}.tsv", text="sentence", label="label", label_names=("0", "1")
            )
        )
    return found


def test_the_same_model_on_both_sides_loses_nothing(place, answered):
    task = answered[0]
    found = task_boundary(place / "b0", place / "b0", task, task, points=3, replicates=30)
    assert found.width == found.margin == 1 and "x = 0 to 1: width 1 [1, 1]" in found.reading


def test_each_is_right_at_its_own_end(place, answered):
    found = task_boundary(place / "b0", place / "b1", *answered, points=5, replicates=100)
    row = found.summary.iloc[0]
    assert row.own_a == row.own_b == 1
    kept = {side: part["kept"].to_numpy() for side, part in found.table.groupby("task")}
    assert kept["a"][0] == kept["b"][-1] == 1 and min(kept["a"][-1], kept["b"][0]) < 0.95
    for name in ("width", "margin", "area", "best_kept"):
        assert row[f"{name}_low"] <= row[name] <= row[f"{name}_high"], name
    assert ("nowhere do both" in found.reading) == (found.width == 0)


# --- kept, resumed, together ---------------------------------------------------------------------


def test_points_are_kept_and_a_killed_study_goes_on(place, tasks, tmp_path, monkeypatch):
    wanted = task_boundary(place / "a0", place / "b0", *tasks, **QUICK)
    passes = []
    real = Evaluator.run

    def counted(self, where="the model"):
        passes.append(where)
        if len(passes) == 5:
            raise KeyboardInterrupt
        return real(self, where)

    monkeypatch.setattr(Evaluator, "run", counted)
    store = Store.open(tmp_path / "study")
    with pytest.raises(KeyboardInterrupt):
        task_boundary(place / "a0", place / "b0", *tasks, store=store, **QUICK)
    found = task_boundary(place / "a0", place / "b0", *tasks, store=store, **QUICK)
    assert found.table.equals(wanted.table) and found.summary.equals(wanted.summary)
    assert len(passes) == 5 + 4  # of 8 points, 4 were finished before the kill
    task_boundary(place / "a0", place / "b0", *tasks, store=store, **{**QUICK, "keep": 0.5})
    assert len(passes) == 9  # another threshold needs no evaluation
    kept = lf.evaluate(place / "a0", tasks[0], store=store, dtype="float64")
    assert kept.metrics["accuracy"] == found.summary["own_a"].iloc[0] and len(passes) == 9


def test_several_pairs(place, tasks):
    pairs = [(place / "a0", place / "b0"), (place / "a1", place / "b1")]
    store = MemoryStore()
    both = task_boundaries(pairs, *tasks, labels=("early", "late"), store=store, **QUICK)
    assert both.table["label"].tolist() == ["early", "late"]
    for k, pair in enumerate(pairs):
        one = task_boundary(*pair, *tasks, store=store, **QUICK)
        for name in one.summary:
            np.testing.assert_equal(both.table[name].iloc[k], one.summary[name].iloc[0])
        curves = both.curves[both.curves["label"] == both.table["label"].iloc[k]]
        assert curves["value"].tolist() == one.table["value"].tolist()
    same = [task_boundary(*pairs[0], *tasks, store=store, **QUICK)] * 2
    assert same[0].table.equals(same[1].table)
    again = task_boundaries([pairs[0], pairs[0]], *tasks, labels=("x", "y"), store=store, **QUICK)
    changes = again.table.filter(like="_change").to_numpy(float)
    assert np.nan_to_num(changes).any() == 0  # a pair against itself
    assert "early" in both.reading and both.to_json()["table"]


def test_what_it_takes_is_known_before(place, tasks):
    study = BoundaryStudy.of([(place / "a0", place / "b0")], *tasks, options=QUICK)
    store = MemoryStore()
    assert study.forecast(store).evaluations == 8
    study.run(store)
    assert study.forecast(store).evaluations == 0


# --- tuned models --------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["adapter", "lora"])
def test_adapters_are_grafted_too(tmp_path, tiny_model, word_tokenizer, tasks, method):
    base = tmp_path / "base"
    tiny_model(seed=6).float().bert.save_pretrained(base)
    word_tokenizer.save_pretrained(base)
    options = {"tuning": method, "max_steps": 2, "batch_size": 8, "threads": 1}
    options |= {"learning_rate": 1e-2, "eval_split": None, "split": "validation"}
    runs = [
        lf.train(base, task, out=tmp_path / task.name, seeds=(i,), **options).paths[0]
        for i, task in enumerate(tasks)
    ]
    found = task_boundary(*runs, *tasks, points=3, replicates=20)
    for side, run, x, task in (("a", runs[0], 0, tasks[0]), ("b", runs[1], 1, tasks[1])):
        own = lf.evaluate(run, task, replicates=20).metrics
        row = found.table[(found.table["task"] == side) & (found.table["x"] == x)].iloc[0]
        assert (row.value, row.loss) == (own["accuracy"], own["loss"])
    a, b = map(resolve, runs)
    space = ParameterSpace.of(load_model(a))
    assert len(space.names) < 60  # what was tuned, and nothing else
    flat = Grafted(b, a).flat(space, lambda _: space.flatten(load_model(a)))
    tensors, views = dict(load_model(b).named_parameters()), space.unflatten(flat)
    for name in space.names:
        if "classifier" not in name:
            assert torch.equal(views[name], tensors[name]), name


# --- what cannot be ------------------------------------------------------------------------------


def test_tasks_that_are_answered_in_words(place, tasks, tmp_path):
    (tmp_path / "t.tsv").write_text("sentence\tanswer\nw1 w2\tw3\n")
    words = load_task(
        tmp_path / "t.tsv", kind="seq2seq", text="sentence", label="answer", name="words"
    )
    with pytest.raises(ConfigError, match=r"no head of their own to keep\n.*--also"):
        task_boundary(place / "a0", place / "b0", tasks[0], words)


def test_tasks_and_models_that_do_not_go_together(place, tasks, tmp_path, save_checkpoint):
    with pytest.raises(LabelError, match="a0"):
        task_boundary(place / "a0", place / "b0", tasks[1], tasks[0], **QUICK)
    save_checkpoint(tmp_path / "wide", seed=3, intermediate_size=32, **labels(2))
    with pytest.raises(SpaceMismatchError, match="intermediate_size"):
        task_boundary(place / "a0", tmp_path / "wide", *tasks)
    with pytest.raises(ConfigError, match="unknown option 'keeps'"):
        task_boundary(place / "a0", place / "b0", *tasks, keeps=0.5)
    with pytest.raises(ConfigError, match="option keep"):
        task_boundary(place / "a0", place / "b0", *tasks, keep=1.5)
    with pytest.raises(CheckpointError, match="no such directory"):
        task_boundary(place / "a0", place / "nobody/here", *tasks)
    pair = (place / "a0", place / "b0")
    with pytest.raises(ConfigError, match="option labels: 1 names"):
        task_boundaries([pair, pair], *tasks, labels=("x",))
    with pytest.raises(ConfigError, match="no pair of models"):
        task_boundaries([], *tasks)


def test_another_vocabulary(place, tasks, tmp_path, word_tokenizer):
    import shutil

    shutil.copytree(place / "b0", tmp_path / "b")
    path = tmp_path / "b" / "tokenizer.json"
    path.write_text(path.read_text().replace('"w7"', '"w8x"'))
    with pytest.raises(CheckpointError, match="different vocabularies"):
        task_boundary(place / "a0", tmp_path / "b", *tasks)


def test_no_chance_level(place, tasks):
    by_loss = load_task(
        place / "b.tsv", name="b", text="sentence", label="label", metrics=("ece", "accuracy")
    )
    with pytest.raises(ConfigError, match="no chance level of ece"):
        task_boundary(place / "a0", place / "b0", tasks[0], by_loss, **QUICK)
    found = task_boundary(place / "a0", place / "b0", tasks[0], by_loss, floor="other", **QUICK)
    assert found.metric_b == "ece"


def test_a_worker_reads_the_other_model_only_where_it_is_needed(place, tasks):
    study = BoundaryStudy.of([(place / "a0", place / "b0")], *tasks, options=QUICK)
    side = study.sides(0)[0]
    assert isinstance(side.work, PointsWork) and len(side.work.checkpoints) == 1
    worker = side.work()
    assert worker.loads == 1
