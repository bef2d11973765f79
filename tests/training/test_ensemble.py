"""Many retrainings at once are the runs of `train`, one by one."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
import transformers as hf

import landform as lf
from landform.embedded import encoder_path
from landform.errors import ConfigError, DataError, NonFiniteError
from landform.evaluation.points import Data
from landform.store.artifacts import MemoryStore
from landform.tasks.task import load_task
from landform.training import ensemble
from landform.training.ensemble import plan_retraining, retrain
from landform.training.options import TrainConfig
from landform.training.stacked import NotStackable, Single, Stack, check_stack, decayed
from landform.weights.checkpoint import load_model, resolve

QUICK = {"batch_size": 8, "learning_rate": 1e-3, "dropout": 0.0, "threads": 1, "max_steps": 6}


def logits_of_train(model, task, rows, seed, tmp_path, **options):
    ids = task.examples("train").ids
    listed = tmp_path / "rows.txt"
    listed.write_text("".join(f"{ids[row]}\n" for row in rows))
    run = lf.train(
        model, task, out=tmp_path / f"run{seed}-{len(rows)}", seeds=seed, row_file=listed,
        eval_split=None, **options,
    )  # fmt: skip
    log = lf.evaluate(run.paths[0], task, replicates=20).log
    return log[["logit_0", "logit_1"]].to_numpy()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"max_steps": None, "epochs": 1.5, "accumulation": 2, "schedule": "cosine"},
        {"clip": 0.05, "weight_decay": 0.5, "schedule": "constant", "perturb": 0.1},
        {"clip": 0.0, "warmup_ratio": 0.5, "head_seed": 7, "adam_epsilon": 1e-4},
    ],
)
def test_each_model_is_the_run_of_train_on_its_rows(pretrained, task, tmp_path, options):
    """Models of different sizes, so of different steps and batches, side by side in one pass."""
    options = {**QUICK, **options}
    subsets = [np.arange(0, 50, 2), np.arange(10, 49), np.array([3, 8, 40, 9, 1])]
    found = retrain(
        resolve(pretrained), task, subsets, seeds=(3, 5), queries=Data(task, "validation"),
        config=TrainConfig(**options), together=6,
    )  # fmt: skip
    assert found.shape == (3, 2, 20, 2) and found.dtype == np.float32
    for i, j in ((0, 0), (1, 1), (2, 0)):
        rows, seed = np.sort(subsets[i]), (3, 5)[j]
        expected = logits_of_train(pretrained, task, rows, seed, tmp_path, **options)
        np.testing.assert_allclose(found[i, j], expected, atol=2e-5)
    assert np.abs(found[:, 0] - found[:, 1]).max() > 1e-3  # seeds and subsets differ by more
    assert np.abs(found[0] - found[1]).max() > 1e-3


def test_each_model_of_the_embedded_study_is_the_run_of_train(tmp_path):
    task = load_task("embedded")
    rows = np.sort(np.random.default_rng(0).permutation(3000)[:1500])
    options = {**QUICK, "batch_size": 16, "max_steps": 4}
    found = retrain(
        resolve(encoder_path()), task, [rows, rows[:700]], seeds=(0,),
        queries=Data(task, "validation"), config=TrainConfig(**options), together=2,
    )  # fmt: skip
    for subset, logits in zip((rows, rows[:700]), found, strict=True):
        expected = logits_of_train(encoder_path(), task, subset, 0, tmp_path, **options)
        np.testing.assert_allclose(logits[0], expected, atol=2e-5)


def test_models_do_not_depend_on_their_company(pretrained, task):
    subsets = [np.arange(0, 30), np.arange(20, 50), np.arange(5, 50)]
    common = dict(
        seeds=(1, 2),
        queries=Data(task, "validation"),
        config=TrainConfig(**QUICK),
        query_rows=[4, 0],
    )
    alone = retrain(resolve(pretrained), task, subsets, together=1, **common)
    four = retrain(resolve(pretrained), task, subsets, together=4, **common)
    assert alone.shape == (3, 2, 2, 2)
    np.testing.assert_allclose(alone, four, atol=1e-5)


def test_masks_are_subsets(pretrained, task):
    mask = np.zeros(40, dtype=bool)
    mask[[3, 7, 20]] = True
    common = dict(
        seeds=(1,), queries=Data(task, "validation"), config=TrainConfig(**QUICK), rows=40
    )
    assert np.array_equal(
        retrain(resolve(pretrained), task, [mask], **common),
        retrain(resolve(pretrained), task, [np.array([20, 3, 7])], **common),
    )
    with pytest.raises(DataError, match="mask 0 has 40 entries, but there are 39"):
        retrain(resolve(pretrained), task, [mask], **{**common, "rows": 39})


@pytest.mark.parametrize(
    ("subset", "message"),
    [
        (np.array([], dtype=int), "subset 0 has no rows"),
        (np.array([1, 50]), "subset 0 asks for row 50, but there are 50"),
        (np.array([-1, 3]), "subset 0 asks for row -1"),
        (np.array([4, 2, 4]), "subset 0 lists row 4 twice"),
    ],
)
def test_subsets_that_do_not_fit(pretrained, task, subset, message):
    with pytest.raises(DataError, match=message):
        plan_retraining(
            resolve(pretrained), task, [subset], seeds=(0,), queries=Data(task, "validation"),
            config=TrainConfig(**QUICK),
        )  # fmt: skip


def test_options_that_do_not_fit(pretrained, task, files):
    common = dict(seeds=(0,), queries=Data(task, "validation"))
    subsets = [np.arange(5)]
    with pytest.raises(ConfigError, match="option rows chooses training rows"):
        retrain(resolve(pretrained), task, subsets, config=TrainConfig(rows=3), **common)
    for option in ({"part": "1/2"}, {"subset_seed": 1}, {"percent": 50.0}):
        name = next(iter(option))
        with pytest.raises(ConfigError, match=f"option {name} chooses training rows"):
            retrain(resolve(pretrained), task, subsets, config=TrainConfig(**option), **common)
    stops = TrainConfig(eval_steps=1, early_stop=1)
    with pytest.raises(ConfigError, match="early_stop"):
        retrain(resolve(pretrained), task, subsets, config=stops, **common)
    with pytest.raises(ConfigError, match="expected 1 or more"):
        retrain(resolve(pretrained), task, subsets, config=TrainConfig(), together=0, **common)
    with pytest.raises(ConfigError, match="nothing to train"):
        retrain(resolve(pretrained), task, [], config=TrainConfig(), **common)
    with pytest.raises(ConfigError, match="occurs twice"):
        retrain(
            resolve(pretrained), task, subsets, config=TrainConfig(), **{**common, "seeds": (1, 1)}
        )
    language = load_task(files, text="sentence", kind="causal-lm")
    with pytest.raises(ConfigError, match="one output vector per row"):
        retrain(
            resolve(pretrained), language, subsets, seeds=(0,), config=TrainConfig(),
            queries=Data(language, "validation"),
        )  # fmt: skip
    with pytest.raises(DataError, match="there is no row 20"):
        retrain(resolve(pretrained), task, subsets, config=TrainConfig(), query_rows=[20], **common)


def test_a_finished_group_is_not_trained_again(pretrained, task, monkeypatch):
    common = dict(
        seeds=(1, 2), queries=Data(task, "validation"), config=TrainConfig(**QUICK), together=2
    )
    subsets = [np.arange(0, 30), np.arange(20, 50)]
    store = MemoryStore()
    work, plan = plan_retraining(resolve(pretrained), task, subsets, **common)
    assert len(plan) == 2 and work.forecast(plan, store).evaluations == 4 * 6
    whole = retrain(resolve(pretrained), task, subsets, **common)
    first = plan.jobs[0]
    store.write(first.key, work().run(first))
    trained = []
    group = ensemble._Group
    monkeypatch.setattr(
        ensemble,
        "_Group",
        lambda worker, members: trained.append(members) or group(worker, members),
    )
    np.testing.assert_array_equal(
        retrain(resolve(pretrained), task, subsets, store=store, **common), whole
    )
    assert [len(members) for members in trained] == [2]
    # Other options and other rows are other models.
    for changes in (
        {"config": TrainConfig(**{**QUICK, "learning_rate": 2e-3})},
        {"split": "validation"},
    ):
        rows = [np.arange(0, 15), np.arange(5, 20)]
        _, jobs = plan_retraining(resolve(pretrained), task, rows, **{**common, **changes})
        assert not {job.key for job in jobs.jobs} & {job.key for job in plan.jobs}


def test_dropout_is_drawn_for_each_model(pretrained, task):
    """Equal models in one pass see different masks; the same group gives the same numbers."""
    config = TrainConfig(**{**QUICK, "dropout": 0.5, "head_seed": 1, "data_seed": 1})
    common = dict(queries=Data(task, "validation"), config=config, together=2)
    subsets = [np.arange(50)]
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    two = retrain(resolve(pretrained), task, subsets, seeds=(1, 2), **common)
    assert torch.equal(before, torch.random.get_rng_state())
    assert np.abs(two[0, 0] - two[0, 1]).max() > 1e-3
    np.testing.assert_array_equal(
        two, retrain(resolve(pretrained), task, subsets, seeds=(1, 2), **common)
    )


def test_a_model_that_cannot_be_stacked_is_trained_alone(pretrained, task, monkeypatch):
    common = dict(
        seeds=(1,), queries=Data(task, "validation"), config=TrainConfig(**QUICK), together=2
    )
    subsets = [np.arange(0, 30), np.arange(20, 50)]
    stacked = retrain(resolve(pretrained), task, subsets, **common)
    monkeypatch.setattr("landform.training.stacked._kind", lambda module: "")
    with pytest.warns(UserWarning, match="cannot be trained several at once"):
        alone = retrain(resolve(pretrained), task, subsets, **common)
    np.testing.assert_allclose(alone, stacked, atol=1e-5)


def test_a_diverged_model_is_named(pretrained, task):
    config = TrainConfig(**{**QUICK, "learning_rate": 1e30, "warmup_ratio": 0.0, "clip": 0.0})
    with pytest.raises(NonFiniteError, match=r"model \d of retraining"):
        retrain(
            resolve(pretrained), task, [np.arange(30), np.arange(20)], seeds=(0,), config=config,
            queries=Data(task, "validation"), together=2,
        )  # fmt: skip


def test_regression(pretrained, tmp_path):
    path = tmp_path / "r.tsv"
    path.write_text(
        "sentence\tscore\n" + "".join(f"good {'bad ' * (i % 4)}\t{i % 4}\n" for i in range(24))
    )
    task = load_task(
        {"train": str(path), "validation": str(path)},
        text="sentence",
        label="score",
        kind="regression",
    )
    found = retrain(
        resolve(pretrained), task, [np.arange(20)], seeds=(0,), queries=Data(task, "validation"),
        config=TrainConfig(**{**QUICK, "max_steps": 80, "learning_rate": 1e-2}),
    )  # fmt: skip
    assert found.shape == (1, 1, 24, 1)
    labels = np.arange(24) % 4
    assert ((found[0, 0, :, 0] - labels) ** 2).mean() < 0.5 * labels.var()


# --- stacking -----------------------------------------------------------------------------------

SMALL = {"vocab_size": 60, "pad_token_id": 0}
MODELS = {
    "bert": lambda: hf.BertForSequenceClassification(
        hf.BertConfig(
            hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24,
            **SMALL,
        )
    ),
    "roberta": lambda: hf.RobertaForSequenceClassification(
        hf.RobertaConfig(
            hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24,
            max_position_embeddings=40, vocab_size=60, pad_token_id=1,
        )
    ),
    "distilbert": lambda: hf.DistilBertForSequenceClassification(
        hf.DistilBertConfig(dim=16, n_layers=2, n_heads=2, hidden_dim=24, **SMALL)
    ),
    "gpt2": lambda: hf.GPT2ForSequenceClassification(
        hf.GPT2Config(
            n_embd=16, n_layer=2, n_head=2, n_positions=40, eos_token_id=3, bos_token_id=2, **SMALL
        )
    ),
}  # fmt: skip


def batch(rows=6, width=7):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        ids = torch.randint(5, 60, (rows, width))
    mask = torch.ones_like(ids)
    for row, length in enumerate((7, 4, 5, 7, 3, 6)):
        mask[row, length:] = 0
        ids[row, length:] = 0
    return {"input_ids": ids, "attention_mask": mask}


def make(name):
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = MODELS[name]()
        for p in model.parameters():
            if p.dim() > 1:
                torch.nn.init.normal_(p, std=0.3)
    return model


@pytest.mark.parametrize("name", MODELS)
def test_a_stack_is_its_models(name):
    check_stack(make(name), batch())


@pytest.mark.parametrize("name", MODELS)
def test_a_stack_in_double_precision(name):
    """The numbers of three models, and their gradients, to rounding."""
    models = [make(name).double().eval() for _ in range(3)]
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(2)
        for model in models:
            for p in model.parameters():
                p.add_(0.1 * torch.randn(p.shape))
    stack = Stack(models)
    stack.model.eval()
    inputs = batch()
    together = stack.logits(inputs)
    parts = [{n: v[2 * i : 2 * i + 2] for n, v in inputs.items()} for i in range(3)]
    together.square().sum().backward()
    for i, (model, part) in enumerate(zip(models, parts, strict=True)):
        raw = model(**part).logits
        torch.testing.assert_close(together[2 * i : 2 * i + 2], raw, rtol=1e-10, atol=1e-12)
        raw.square().sum().backward()
        single = Single(model)
        single.model.eval()
        single.logits(part).square().sum().backward()
        for p in model.parameters():
            expected = torch.zeros_like(p) if p.grad is None else p.grad
            where = stack.layout
            index = [id(q) for q in model.parameters()].index(id(p))
            name_ = [n for n, _ in model.named_parameters()][index]
            start = where.starts[where.names.index(name_)]
            cut = slice(start, start + p.numel())
            for found in (stack.gradient[i, cut], single.gradient[0, cut]):
                torch.testing.assert_close(found.view(p.shape), expected, rtol=1e-9, atol=1e-11)


def test_what_mixes_rows_is_found_out():
    class Mixing(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.table = torch.nn.Embedding(60, 4)

        def forward(self, input_ids, attention_mask):
            h = self.table(input_ids).mean(1)
            return type("Out", (), {"logits": h - h.mean(0)})()

    with pytest.raises(NotStackable, match="outputs"):
        check_stack(Mixing(), batch())


def test_the_rule_of_weight_decay_is_the_trainers(pretrained, gpt):
    for path, kind in ((pretrained, "classification"), (gpt, "causal-lm")):
        model = load_model(path, kind, new_head=True)
        assert decayed(model) == set(hf.Trainer.get_decay_parameter_names(None, model)) & {
            name for name, _ in model.named_parameters()
        }
        assert any("bias" not in n and n not in decayed(model) for n, _ in model.named_parameters())


def test_a_worker_elsewhere_gives_the_same(pretrained, task):
    """What an engine sends to another process is all that a worker there needs."""
    common = dict(
        seeds=(1, 2), queries=Data(task, "validation"), config=TrainConfig(**QUICK), together=2
    )
    subsets = [np.arange(0, 30), np.arange(20, 50)]
    work, plan = plan_retraining(resolve(pretrained), task, subsets, **common)
    store = MemoryStore()
    worker = pickle.loads(pickle.dumps(work))()
    for job in reversed(plan.jobs):
        store.write(job.key, worker.run(pickle.loads(pickle.dumps(job))))
    np.testing.assert_array_equal(
        work.collect(store), retrain(resolve(pretrained), task, subsets, **common)
    )


def test_watching_makes_no_other_models(pretrained, task):
    def keys(**options):
        _, plan = plan_retraining(
            resolve(pretrained), task, [np.arange(5)], seeds=(0,), config=TrainConfig(**options),
            queries=Data(task, "validation"),
        )  # fmt: skip
        return [job.key for job in plan.jobs]

    assert keys(eval_steps=1, keep_best="loss", cartography=True, save_steps=(1,)) == keys()
    assert keys(epochs=2) != keys()
