import json

import numpy as np
import pytest
import torch

import landform as lf
from landform.errors import CheckpointError, ConfigError, DataError, LabelError, NonFiniteError
from landform.evaluation.points import Data, PointsConfig, PointsWork, unpack
from landform.store.artifacts import MemoryStore
from landform.store.engines import run_plan
from landform.store.plan import Plan


@pytest.fixture
def task(tmp_path, write_rows):
    return lf.load_task(
        {"validation": str(write_rows(tmp_path / "dev.tsv", 40))}, text="sentence", label="label"
    )


@pytest.fixture
def checkpoint(tmp_path, save_checkpoint):
    return save_checkpoint(tmp_path / "model")


def by_hand(model, tokenizer, task):
    """Logits and losses, one unpadded example at a time, with the model's own loss."""
    examples = task.examples("validation")
    logits, losses = [], []
    for (text,), label in zip(examples.texts, examples.labels, strict=True):
        inputs = tokenizer(text, return_tensors="pt")
        with torch.no_grad():
            out = model(**inputs, labels=torch.tensor([label]))
        logits.append(out.logits[0].numpy())
        losses.append(float(out.loss))
    return np.stack(logits), np.array(losses), examples.labels


def test_log_and_metrics_against_one_example_at_a_time(
    checkpoint, task, tiny_model, word_tokenizer
):
    result = lf.evaluate(checkpoint, task, split="validation")
    logits, losses, labels = by_hand(tiny_model(dtype=torch.float32), word_tokenizer, task)
    np.testing.assert_allclose(result.log[["logit_0", "logit_1"]], logits, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(result.log.loss, losses, rtol=1e-4, atol=1e-5)
    assert result.log.label.tolist() == [task.label_names[y] for y in labels]
    assert result.log.prediction.tolist() == [task.label_names[y] for y in logits.argmax(-1)]
    assert result.metrics["accuracy"] == pytest.approx((logits.argmax(-1) == labels).mean())
    assert result.metrics["loss"] == pytest.approx(losses.mean(), rel=1e-5)
    low, high = result.intervals["accuracy"]
    assert low < result.metrics["accuracy"] < high
    assert json.dumps(result.to_json(), default=str)
    assert "accuracy" in result.reading


@pytest.mark.parametrize("budget", [1, 64, 4096])
def test_token_budget_changes_nothing_but_rounding(checkpoint, task, budget):
    one = lf.evaluate(checkpoint, task, dtype="float64", token_budget=30)
    two = lf.evaluate(checkpoint, task, dtype="float64", token_budget=budget)
    np.testing.assert_allclose(one.log.loss, two.log.loss, rtol=1e-12)
    assert one.log.text_id.tolist() == two.log.text_id.tolist()


def test_label_order_of_the_model_is_read_from_its_config(tmp_path, save_checkpoint, write_rows):
    names = {"id2label": {0: "neg", 1: "pos"}, "label2id": {"neg": 0, "pos": 1}}
    swapped = {"id2label": {0: "pos", 1: "neg"}, "label2id": {"pos": 0, "neg": 1}}
    one = save_checkpoint(tmp_path / "a", **names)
    two = save_checkpoint(tmp_path / "b", **swapped)
    rows = write_rows(tmp_path / "dev.tsv", 30)
    task = lf.load_task(str(rows), text="sentence", label="label", label_names=("neg", "pos"))
    first, second = (lf.evaluate(path, task).log for path in (one, two))
    np.testing.assert_allclose(first.logit_0, second.logit_1)
    assert (first.prediction == second.prediction).mean() == 0, "the same head, read in both orders"
    with pytest.raises(LabelError):
        lf.evaluate(save_checkpoint(tmp_path / "c"), task)  # LABEL_0, LABEL_1: order unknown
    given = lf.evaluate(tmp_path / "c", task, model_labels=("pos", "neg")).log
    np.testing.assert_allclose(given.loss, second.loss)


def test_store_is_reused_until_something_changes(
    tmp_path, checkpoint, task, save_checkpoint, monkeypatch
):
    from landform.evaluation import points

    ran = []
    original = points.PointsWorker.run
    monkeypatch.setattr(
        points.PointsWorker, "run", lambda s, j: ran.append(j.label) or original(s, j)
    )
    first = lf.evaluate(checkpoint, task, store=tmp_path / "study")
    again = lf.evaluate(checkpoint, task, store=tmp_path / "study")
    assert len(ran) == 1 and again.log.equals(first.log)
    lf.evaluate(checkpoint, task, store=tmp_path / "study", rows=20)
    assert len(ran) == 2
    save_checkpoint(checkpoint, seed=5)  # other weights under the old name
    other = lf.evaluate(checkpoint, task, store=tmp_path / "study")
    assert len(ran) == 3 and not np.allclose(other.log.loss, first.log.loss)


def test_subsets_and_reliability(tmp_path, checkpoint, write_rows):
    rows = write_rows(tmp_path / "dev.tsv", 40).read_text().splitlines()
    lines = [rows[0] + "\tgroup"] + [f"{r}\t{'ab'[i % 2]}" for i, r in enumerate(rows[1:])]
    (tmp_path / "g.tsv").write_text("\n".join(lines) + "\n")
    task = lf.load_task(
        str(tmp_path / "g.tsv"), text="sentence", label="label", subsets=(("group", "label"),)
    )
    result = lf.evaluate(checkpoint, task)
    log = result.log
    for name, n in (("a/0", 20), ("b/1", 20)):
        row = result.subsets[
            (result.subsets.subset == name) & (result.subsets.metric == "accuracy")
        ]
        part = log[(log.group == name[0]) & (log.label == name[2])]
        assert row.n.item() == len(part) == n
        assert row.value.item() == pytest.approx(part.correct.mean())
    table = result.reliability
    assert table["count"].sum() == 40
    filled = table[table["count"] > 0]
    assert (filled["count"] * filled.accuracy).sum() == pytest.approx(log.correct.sum())


@pytest.mark.parametrize(
    ("kind", "architecture"), [("masked-lm", "bert"), ("causal-lm", "gpt2"), ("seq2seq", "t5")]
)
def test_token_tasks_weigh_by_tokens(tmp_path, save_checkpoint, kind, architecture):
    path = save_checkpoint(tmp_path / "m", kind=kind, architecture=architecture)
    rows = [{"text": "w1 w2 w3 w4", "target": "w5"}, {"text": "w7 w8", "target": "w9 w1 w2"}]
    label = {"label": "target"} if kind == "seq2seq" else {}
    task = lf.load_task(rows, text="text", kind=kind, **label)
    if architecture != "bert":  # their forward takes no token types
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(path)
        tokenizer.model_input_names = ["input_ids", "attention_mask"]
        tokenizer.save_pretrained(path)
    result = lf.evaluate(path, task)
    log = result.log
    expected = (log.loss * log.tokens).sum() / log.tokens.sum()
    assert log.tokens.nunique() > 1 or kind == "masked-lm"
    assert result.metrics["loss"] == pytest.approx(expected)
    if kind == "causal-lm":  # the model's own mean loss over the tokens of each text alone
        model, tokenizer = lf.load_model(path, kind), lf.load_tokenizer(path)
        for (text,), loss in zip(task.examples("validation").texts, log.loss, strict=True):
            inputs = tokenizer(text, return_tensors="pt")
            with torch.no_grad():
                own = float(model(**inputs, labels=inputs["input_ids"]).loss)
            assert loss == pytest.approx(own, rel=1e-5)


def test_bad_requests_are_named(checkpoint, task):
    with pytest.raises(ConfigError, match="unknown option 'pionts'"):
        lf.evaluate(checkpoint, task, pionts=3)
    with pytest.raises(DataError, match="no split 'tset'"):
        lf.evaluate(checkpoint, task, split="tset")
    with pytest.raises(ConfigError, match="rows"):
        lf.evaluate(checkpoint, task, rows=0)
    with pytest.raises(ConfigError, match="device"):
        lf.evaluate(checkpoint, task, device="gpu7x")


def test_nan_weights_are_named(tmp_path, checkpoint, task):
    from safetensors.torch import load_file, save_file

    weights = load_file(checkpoint / "model.safetensors")
    weights["classifier.bias"][0] = float("nan")
    save_file(weights, checkpoint / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(NonFiniteError, match=r"classifier\.bias"):
        lf.evaluate(checkpoint, task)


def test_overflowing_loss_names_the_example(tmp_path, checkpoint, task):
    from safetensors.torch import load_file, save_file

    weights = load_file(checkpoint / "model.safetensors")
    weights["classifier.weight"].fill_(3e38)
    weights["classifier.weight"][0].neg_()
    save_file(weights, checkpoint / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(NonFiniteError, match="the loss of example"):
        lf.evaluate(checkpoint, task)


# --- points: mixes, cache ----------------------------------------------------------------------


def test_mixes_are_mixes_of_weights(tmp_path, save_checkpoint, task, tiny_model, word_tokenizer):
    paths = [save_checkpoint(tmp_path / f"s{i}", seed=i) for i in range(3)]
    work = PointsWork(
        tuple(lf.select([str(p) for p in paths])),
        (Data(task, "validation"),),
        PointsConfig(dtype="float64"),
    )
    mixes = [[0.2, 0.3, 0.5], [1.0, 0.0, 0.0], [0.0, -0.5, 1.5]]
    plan = Plan((work.mix_job([0, 1, 2], mixes, "plane"),))
    store = MemoryStore()
    run_plan(plan, work, store, progress=False)
    contents = store.read(plan.jobs[0].key)
    models = [tiny_model(seed=i, dtype=torch.float32).double() for i in range(3)]
    for weights, predictions in zip(
        mixes, unpack(contents, 0, task.examples("validation"), task.kind), strict=True
    ):
        mixed = tiny_model(seed=9)
        with torch.no_grad():
            for parts in zip(mixed.parameters(), *(m.parameters() for m in models), strict=True):
                parts[0].copy_(sum(w * p for w, p in zip(weights, parts[1:], strict=True)))
        _, losses, _ = by_hand(mixed, word_tokenizer, task)
        np.testing.assert_allclose(predictions.losses, losses, rtol=1e-9)


def test_cache_is_bounded_and_loads_each_checkpoint_once_when_it_fits(
    tmp_path, save_checkpoint, task
):
    paths = [save_checkpoint(tmp_path / f"s{i}", seed=i) for i in range(4)]
    checkpoints = tuple(lf.select([str(p) for p in paths]))
    pairs = [(i, j) for i in range(4) for j in range(i + 1, 4)]
    for memory, most in ((1.0, 4), (1e-9, 12)):
        work = PointsWork(checkpoints, (Data(task, "validation"),), PointsConfig(memory=memory))
        worker = work()
        for i, j in pairs:
            worker.run(work.line_job(i, j, (0.5,)))
        assert len(worker._points) <= max(2, worker.capacity)
        assert worker.loads <= most
        assert worker.evaluator.evaluations == len(pairs)
    assert worker.capacity == 2


def test_models_that_number_their_labels_differently_are_not_mixed(
    tmp_path, save_checkpoint, write_rows
):
    names = {"id2label": {0: "neg", 1: "pos"}, "label2id": {"neg": 0, "pos": 1}}
    swapped = {"id2label": {0: "pos", 1: "neg"}, "label2id": {"pos": 0, "neg": 1}}
    one = save_checkpoint(tmp_path / "a", **names)
    two = save_checkpoint(tmp_path / "b", **swapped)
    task = lf.load_task(
        str(write_rows(tmp_path / "dev.tsv", 10)),
        text="sentence",
        label="label",
        label_names=("neg", "pos"),
    )
    with pytest.raises(LabelError, match="cannot be mixed"):
        lf.interpolate(one, two, task)


def test_models_with_different_vocabularies_are_not_mixed(tmp_path, save_checkpoint, task):
    one, two = (save_checkpoint(tmp_path / name, seed=i) for i, name in enumerate("ab"))
    file = two / "tokenizer.json"
    text = file.read_text().replace('"w1":', '"x1":')
    assert text != file.read_text()
    file.write_text(text)
    with pytest.raises(CheckpointError, match="different vocabularies"):
        lf.interpolate(one, two, task)


def test_subsets_of_columns_that_share_values_stay_apart(checkpoint):
    rows = [
        {"text": f"w{i} w{i + 1}", "label": i % 2, "u": i % 2, "v": int(i < 6)} for i in range(10)
    ]
    task = lf.load_task(rows, text="text", label="label", subsets=(("u",), ("v",)))
    table = lf.evaluate(checkpoint, task).subsets
    sizes = table[table.metric == "accuracy"].set_index("subset").n.to_dict()
    assert sizes == {"0": 5, "1": 5, "v=1": 6, "v=0": 4}


@pytest.mark.filterwarnings("always")
def test_first_rows_of_a_sorted_file_are_warned_of(checkpoint):
    rows = [{"text": f"w{i} w{i + 1}", "label": int(i >= 6)} for i in range(10)]
    task = lf.load_task(rows, text="text", label="label", name="sorted")
    with pytest.warns(UserWarning, match="the first 5 rows have no example of 1"):
        lf.evaluate(checkpoint, task, rows=5)


def save_xlnet(path, word_tokenizer):
    """A classifier that reads the last position, be it padding or not."""
    from transformers import XLNetConfig, XLNetForSequenceClassification

    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = XLNetConfig(
            vocab_size=45, d_model=16, n_layer=1, n_head=2, d_inner=24, pad_token_id=0
        )
        model = XLNetForSequenceClassification(config)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(path)
    word_tokenizer.save_pretrained(path)
    return path


def test_outputs_that_depend_on_padding_are_refused(tmp_path, word_tokenizer, task):
    path = save_xlnet(tmp_path / "xlnet", word_tokenizer)
    with pytest.raises(CheckpointError, match=r"depend on padding .* changes by \d"):
        lf.evaluate(path, task)
    alone = lf.evaluate(path, task, token_budget=1)
    rows = [{"sentence": f"w{i} w{i + 1} w2", "label": i % 2} for i in range(6)]
    equal = lf.load_task(rows, text="sentence", label="label", name="equal")
    assert len(lf.evaluate(path, equal).log) == 6 and len(alone.log) == 40


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16"])
@pytest.mark.parametrize(
    ("kind", "architecture"),
    [("classification", "bert"), ("classification", "gpt2"), ("masked-lm", "bert"),
     ("causal-lm", "gpt2"), ("seq2seq", "t5")],
)  # fmt: skip
def test_rounding_is_no_dependence_on_padding(
    tmp_path, save_checkpoint, task, kind, architecture, dtype
):
    path = save_checkpoint(tmp_path / "model", kind=kind, architecture=architecture)
    if kind != "classification":
        texts = [t[0] for t in task.examples("validation").texts]
        rows = [{"sentence": text, "target": text[:5]} for text in texts]
        target = {"label": "target"} if kind == "seq2seq" else {}
        task = lf.load_task(rows, text="sentence", kind=kind, name="texts", **target)
    assert lf.evaluate(path, task, dtype=dtype).metrics["loss"] > 0


def test_the_padding_check_leaves_texts_of_one_token_alone(tmp_path, save_checkpoint):
    from tokenizers import processors
    from transformers import AutoTokenizer

    path = save_checkpoint(tmp_path / "gpt", kind="causal-lm", architecture="gpt2")
    tokenizer = AutoTokenizer.from_pretrained(path)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(single="$A")
    tokenizer.save_pretrained(path)
    rows = [{"text": "w1"}, {"text": "w2 w3 w4"}]
    task = lf.load_task(rows, text="text", kind="causal-lm", name="short")
    assert lf.evaluate(path, task).log.tokens.tolist() == [0, 2]


def test_the_padding_check_costs_two_rows(checkpoint, task, monkeypatch):
    from landform.evaluation import prepared
    from landform.weights.checkpoint import resolve

    sizes = []
    original = prepared.Objective.logits
    monkeypatch.setattr(
        prepared.Objective,
        "logits",
        lambda s, m, b: sizes.append(tuple(b.inputs["input_ids"].shape)) or original(s, m, b),
    )
    worker = PointsWork((resolve(checkpoint),), (Data(task, "validation"),), PointsConfig())()
    assert not sizes  # data are prepared when something is evaluated
    assert worker.evaluator.evaluations == 0
    assert [rows for rows, _ in sizes] == [1, 1] and sizes[1][1] == sizes[0][1] + 3


def test_a_decoder_with_two_padding_ids_reads_the_last_word(tmp_path, save_checkpoint, task):
    """Its config says 7, its tokenizer 0: a row of any length has the logits it has alone."""
    path = save_checkpoint(tmp_path / "gpt", architecture="gpt2", pad_token_id=7)
    together = lf.evaluate(path, task, dtype="float64", token_budget=4096)
    alone = lf.evaluate(path, task, dtype="float64", token_budget=1)
    np.testing.assert_allclose(together.log.logit_0, alone.log.logit_0, rtol=1e-10)
