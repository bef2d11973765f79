"""T5 and BART trained on text-to-text tasks: every tuning method, resumed runs, lines between."""

import warnings

import pytest
import torch

import landform as lf
from landform.errors import ConfigError, CurvatureError
from landform.training import loop
from landform.weights.checkpoint import load_model
from text_models import ROWS, save_text_model, text_tokenizer, toy_folder

pytestmark = pytest.mark.filterwarnings("ignore:.*generated answers were cut")
OPTIONS = {
    "max_steps": 6, "batch_size": 2, "learning_rate": 1e-2, "log_steps": 2, "threads": 1,
    "max_new_tokens": 4, "schedule": "constant", "warmup_ratio": 0.0,
}  # fmt: skip


def load(folder, **options):
    return lf.load_task(folder, kind="text-to-text", **{"metrics": "token_f1", **options})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return toy_folder(tmp_path_factory.mktemp("data") / "toy")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    place = tmp_path_factory.mktemp("models")
    return {family: save_text_model(place / family, family) for family in ("t5-v1.1", "bart")}


METHODS = {
    "full": ("t5-v1.1", {}),
    "adapter": ("t5-v1.1", {"tuning": "adapter", "adapter_size": 3}),
    "lora": ("t5-v1.1", {"tuning": "lora", "lora_rank": 2}),
    "prefix": ("t5-v1.1", {"tuning": "prefix", "prefix_length": 2, "prefix_hidden": 4}),
    "prompt": ("t5-v1.1", {"tuning": "prompt", "prompt_length": 2}),
    "compacter": ("t5-v1.1", {"tuning": "compacter", "adapter_size": 8}),
    "bart-bitfit": ("bart", {"tuning": "bitfit"}),
    "bart-adapter": ("bart", {"tuning": "adapter", "adapter_size": 3}),
}


@pytest.mark.parametrize("method", METHODS)
def test_a_line_of_tuned_models_reproduces_the_evaluation_of_both(method, folder, models, tmp_path):
    family, options = METHODS[method]
    task = load(folder)
    runs = lf.train(models[family], task, out=tmp_path, seeds=(0, 1), **{**OPTIONS, **options})
    line = lf.interpolate(*runs.paths, task, points=3, max_new_tokens=4)
    for path, row, seed in zip(runs.paths, (0, -1), (0, 1), strict=True):
        alone = lf.evaluate(path, task, max_new_tokens=4)
        for name in ("loss", "token_f1"):
            assert line.table[name].iloc[row] == alone.metrics[name]
            kept = runs.runs[f"validation/{name}"].iloc[seed]
            assert kept == pytest.approx(alone.metrics[name], rel=1e-4), "as during training"
    assert line.table.loss.nunique() == 3
    assert list(alone.log.prediction) == [without_a_cache(runs.paths[1], row[0], 4) for row in ROWS]


def without_a_cache(path, text, limit):
    """Greedy decoding of one text by whole forward passes."""
    model, tokenizer = load_model(path), text_tokenizer()
    source = tokenizer(f" [toy] {text}", return_tensors="pt")
    ids = torch.tensor([[model.config.decoder_start_token_id]])
    with torch.no_grad():
        for _ in range(limit):
            chosen = model(**source, decoder_input_ids=ids).logits[:, -1:].argmax(-1)
            ids = torch.cat([ids, chosen], dim=1)
            if int(chosen) == tokenizer.eos_token_id:
                break
    return tokenizer.decode(ids[0, 1:], skip_special_tokens=True).strip()


def test_training_learns_the_answers(folder, models, tmp_path):
    options = {**OPTIONS, "max_steps": 100, "batch_size": 5, "eval_steps": 50, "dropout": 0.0}
    options["max_new_tokens"] = 8
    task = load(folder, references="first")
    runs = lf.train(models["t5-v1.1"], task, out=tmp_path, **options)
    scores = runs.history["validation/token_f1"].dropna()
    assert scores.iloc[-1] > 0.9
    result = lf.evaluate(runs.paths[0], task, max_new_tokens=8)
    assert result.metrics["token_f1"] == scores.iloc[-1]
    assert result.provenance["generations_cut"] == 0


def test_without_generated_metrics_only_the_loss_is_evaluated(folder, models, tmp_path):
    options = {**OPTIONS, "max_new_tokens": 0}
    runs = lf.train(models["t5-v1.1"], load(folder), out=tmp_path, **options)
    assert [c for c in runs.runs if "/" in c] == ["validation/loss"]


def weights(path):
    return {name: tensor.clone() for name, tensor in load_model(path).state_dict().items()}


def test_a_stopped_run_draws_the_same_references_and_ends_the_same(
    folder, models, tmp_path, monkeypatch
):
    task = load(folder)
    # Batches of 2 of 5 rows: steps 4 to 9 lie in the second to fourth epoch.
    options = {**OPTIONS, "max_steps": 9, "resume_steps": 2}
    whole = lf.train(models["t5-v1.1"], task, out=tmp_path / "whole", **options)

    class Killed(BaseException):
        pass

    step_end = loop._Companion.on_step_end

    def on_step_end(self, args, state, control, **kwargs):
        step_end(self, args, state, control, **kwargs)
        if state.global_step == 5:
            raise Killed

    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(loop._Companion, "on_step_end", on_step_end)
        lf.train(models["t5-v1.1"], task, out=tmp_path / "part", **options)
    rest = lf.train(models["t5-v1.1"], task, out=tmp_path / "part", **options)
    one, two = weights(whole.paths[0]), weights(rest.paths[0])
    assert all(torch.equal(one[name], two[name]) for name in one)
    first = lf.train(
        models["t5-v1.1"], load(folder, references="first"), out=tmp_path / "first", **options
    )
    other = weights(first.paths[0])
    assert any(not torch.equal(one[name], other[name]) for name in one)


def test_t5_has_no_biases_to_tune(folder, models, tmp_path):
    with pytest.raises(ConfigError, match="bias"):
        lf.train(models["t5-v1.1"], load(folder), out=tmp_path, tuning="bitfit", **OPTIONS)


def test_layers_are_not_captured_over_several_references(folder, models):
    with pytest.raises(CurvatureError, match="references='first'"):
        lf.fit_factors(models["t5-v1.1"], load(folder), split="train", strategy="diagonal")


def test_influence_names_the_answers_of_rows(folder, models):
    task = load(folder, references="first")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        factors = lf.fit_factors(models["t5-v1.1"], task, split="train", strategy="diagonal")
        found = lf.influence(factors, queries="validation", train="train")
    assert found.top(query=0, k=len(ROWS)).label.tolist()
