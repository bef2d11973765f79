"""Elastic weight consolidation: its gradient, once a step; strength 0; a resumed run."""

import json

import pytest
import torch
from transformers import Trainer, TrainingArguments

import landform as lf
from fishers import make_fisher
from landform.errors import ConfigError, CurvatureError
from landform.training import loop
from landform.training.consolidation import ConsolidationCallback, common_tensors
from landform.weights.checkpoint import load_model, resolve

OPTIONS = {
    "max_steps": 12, "batch_size": 8, "learning_rate": 1e-2, "log_steps": 4, "threads": 1,
}  # fmt: skip


@pytest.fixture(scope="module")
def fisher(pretrained, tmp_path_factory):
    """A Fisher of the pre-trained masked language model, as a file."""
    found = resolve(pretrained)
    made = make_fisher(load_model(found, "masked-lm"), weights=found.fingerprint)
    return made.save(tmp_path_factory.mktemp("fisher") / "fisher.safetensors")


def weights(path):
    return {name: value.clone() for name, value in load_model(path).state_dict().items()}


def run(pretrained, task, out, **options):
    """Weights and history of a short run."""
    found = lf.train(pretrained, task, out=out, **{**OPTIONS, **options})
    return weights(found.paths[0]), found.history


def away(state, start):
    """Largest distance of a tensor of the body from its start."""
    return max(
        float((state[name] - start[name]).abs().max())
        for name in start
        if name in state and "position_ids" not in name
    )


@pytest.fixture(scope="module")
def body(pretrained):
    """The tensors of the encoder at the start."""
    state = load_model(resolve(pretrained), "masked-lm").state_dict()
    return {name: value for name, value in state.items() if name.startswith("bert.")}


# --- the gradient -------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_gradient_is_that_of_the_penalty(tiny_model, dtype):
    model, start = (tiny_model(seed=seed, dtype=dtype) for seed in (1, 2))
    squares = make_fisher(model)
    callback = ConsolidationCallback(squares, 3.0, anchor=start)
    callback.on_train_begin(None, _State(), None, model=model)
    anchor = dict(start.named_parameters())
    penalty = 1.5 * sum(
        (squares.diagonal[n].to(dtype) * (p - anchor[n].detach()).square()).sum()
        for n, p in model.named_parameters()
        if not n.startswith("classifier")
    )
    penalty.backward()
    expected = {n: None if p.grad is None else p.grad.clone() for n, p in model.named_parameters()}
    given = {n: torch.randn_like(p) for n, p in model.named_parameters()}
    for name, p in model.named_parameters():
        p.grad = None if name == "bert.pooler.dense.bias" else given[name].clone()
    callback.on_pre_optimizer_step(None, _State(), None)
    tolerance = {"rtol": 1e-12, "atol": 1e-12} if dtype == torch.float64 else {}
    for name, p in model.named_parameters():
        before = 0 if name == "bert.pooler.dense.bias" else given[name]
        more = 0 if expected[name] is None else expected[name]
        torch.testing.assert_close(p.grad, before + more, **tolerance)
    logs = {"loss": 1.0}
    callback.on_log(None, _State(), None, logs=logs)
    assert logs["penalty"] == pytest.approx(penalty.item(), rel=1e-6)
    assert penalty.item() > 1


def test_small_importance_acts_on_weights_in_half_precision(tiny_model):
    """1e-8 is 0 in float16; its pull is not, with a strength to match."""
    model = tiny_model(dtype=torch.float16)
    squares = make_fisher({n: torch.full(p.shape, 1e-8) for n, p in model.named_parameters()})
    callback = ConsolidationCallback(squares, 1e8)
    callback.on_train_begin(None, _State(), None, model=model)
    weight = model.bert.embeddings.word_embeddings.weight
    with torch.no_grad():
        weight.add_(0.25)
    away = weight.detach() - callback.terms["bert.embeddings.word_embeddings.weight"].anchor
    callback.on_pre_optimizer_step(None, _State(), None)
    assert weight.grad.dtype == torch.float16
    torch.testing.assert_close(weight.grad, away, rtol=2e-3, atol=0)
    assert away.abs().min() > 0.2


def test_scaled_gradients_are_refused(tiny_model):
    class Arguments:
        fp16, max_grad_norm = True, 0.0

    model = tiny_model(dtype=torch.float32)
    callback = ConsolidationCallback(make_fisher(model), 1.0)
    with pytest.raises(ConfigError, match="gradients are scaled until they are clipped"):
        callback.on_train_begin(Arguments, _State(), None, model=model)
    Arguments.max_grad_norm = 1.0
    callback.on_train_begin(Arguments, _State(), None, model=model)


def test_an_anchor_is_copied_once(tiny_model):
    model = tiny_model(dtype=torch.float32)
    squares = make_fisher(model)
    given = ConsolidationCallback(squares, 1.0, anchor=model)
    given.on_train_begin(None, _State(), None, model=model)
    own = ConsolidationCallback(squares, 1.0)
    own.on_train_begin(None, _State(), None, model=model)
    for name, term in given.terms.items():
        assert term.anchor is given.anchor[name]
        assert term.anchor.data_ptr() != term.parameter.data_ptr()
        assert own.terms[name].anchor.data_ptr() != term.parameter.data_ptr()


class _State:
    global_step = 0
    log_history = ()


@pytest.mark.parametrize("accumulation", [1, 3])
def test_once_a_step_in_a_trainer_of_your_own(tiny_model, tmp_path, accumulation):
    model = tiny_model(dtype=torch.float32)
    start = {n: p.detach().clone() for n, p in model.named_parameters()}
    squares = make_fisher(model)
    seen = []

    class Before(lf.ConsolidationCallback):
        def on_pre_optimizer_step(self, args, state, control, model=None, **named):
            before = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
            super().on_pre_optimizer_step(args, state, control, model=model, **named)
            for name, old in before.items():
                p = dict(model.named_parameters())[name]
                pull = 0.0
                if not name.startswith("classifier"):
                    pull = 2.0 * squares.diagonal[name] * (p.detach() - start[name])
                torch.testing.assert_close(p.grad, old + pull)
            seen.append(sum(float(g.square().sum()) for g in before.values()) ** 0.5)

    rows = [
        {"input_ids": torch.randint(5, 45, (6,)), "labels": torch.tensor(i % 2)} for i in range(12)
    ]
    arguments = TrainingArguments(
        output_dir=str(tmp_path), max_steps=4, per_device_train_batch_size=2, learning_rate=0.05,
        gradient_accumulation_steps=accumulation, max_grad_norm=0.01, use_cpu=True, optim="sgd",
        report_to="none", logging_steps=2, save_strategy="no", disable_tqdm=True,
    )  # fmt: skip
    trainer = Trainer(model, arguments, train_dataset=rows, callbacks=[Before(squares, 2.0)])
    trainer.train()
    assert len(seen) == 4
    # What was clipped is the gradient of the data alone.
    assert max(seen) < 0.0101
    assert [row["penalty"] > 0 for row in trainer.state.log_history if "loss" in row] == [True] * 2


def test_a_head_is_no_part_of_it_and_neither_is_what_is_not_trained(pretrained, tiny_model):
    model = tiny_model(dtype=torch.float32)
    squares = make_fisher(model)
    names = common_tensors(squares, model)
    assert names and all(name.startswith("bert.") for name in names)
    model.bert.embeddings.requires_grad_(False)
    assert not any("embeddings" in name for name in common_tensors(squares, model))
    gpt = tiny_model("causal-lm", "gpt2", dtype=torch.float32)
    assert "transformer.wte.weight" in common_tensors(make_fisher(gpt), gpt)


# --- runs ---------------------------------------------------------------------------------------


def test_strength_0_is_the_plain_run_bit_for_bit(pretrained, task, fisher, tmp_path):
    plain, before = run(pretrained, task, tmp_path / "plain")
    none, after = run(pretrained, task, tmp_path / "none", ewc=fisher, ewc_strength=0)
    assert all(torch.equal(plain[name], none[name]) for name in plain)
    assert list(before.loss) == list(after.loss) and "penalty" not in after


def test_a_large_strength_keeps_tensors_at_their_start(pretrained, task, fisher, body, tmp_path):
    free, _ = run(pretrained, task, tmp_path / "free")
    held, history = run(pretrained, task, tmp_path / "held", ewc=fisher, ewc_strength=1e6)
    assert away(held, body) < 0.3 * away(free, body)
    assert (history.penalty.dropna() > 0).all() and history.penalty.notna().sum() == 3
    # The head moves as it likes.
    assert float((held["classifier.weight"] - free["classifier.weight"]).abs().max()) > 0


def test_a_stopped_run_goes_on_to_the_same_weights(pretrained, task, fisher, tmp_path, monkeypatch):
    options = {"ewc": fisher, "ewc_strength": 50.0, "resume_steps": 5}
    whole, history = run(pretrained, task, tmp_path / "whole", **options)
    step_end = loop._Companion.on_step_end

    def killed(self, args, state, control, **named):
        step_end(self, args, state, control, **named)
        if state.global_step == 8:
            raise KeyboardInterrupt

    monkeypatch.setattr(loop._Companion, "on_step_end", killed)
    with pytest.raises(KeyboardInterrupt):
        run(pretrained, task, tmp_path / "part", **options)
    monkeypatch.setattr(loop._Companion, "on_step_end", step_end)
    assert list((tmp_path / "part" / ".seed0.partial").glob("state-5"))
    resumed, again = run(pretrained, task, tmp_path / "part", **options)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert list(history.penalty) == pytest.approx(list(again.penalty), nan_ok=True, abs=0)


def test_a_run_is_known_by_what_the_fisher_holds(pretrained, task, fisher, tmp_path):
    options = {"max_steps": 2, "ewc": fisher, "ewc_strength": 1.0}
    run(pretrained, task, tmp_path / "out", **options)
    copy = tmp_path / "copy.safetensors"
    copy.write_bytes(fisher.read_bytes())
    again = lf.train(pretrained, task, out=tmp_path / "out", **{**OPTIONS, **options, "ewc": copy})
    assert list(again.runs.reused) == [True]
    record = json.loads((tmp_path / "out" / "seed0" / "landform.json").read_text())
    assert record["identity"]["ewc"]["strength"] == 1.0
    with pytest.raises(ConfigError, match=r"ewc\.strength was 1\.0, now 2\.0"):
        run(pretrained, task, tmp_path / "out", **{**options, "ewc_strength": 2.0})


# --- bad input ----------------------------------------------------------------------------------


def test_a_fisher_of_another_model_is_refused(pretrained, task, tiny_model, tmp_path):
    found = resolve(pretrained)
    elsewhere = make_fisher(load_model(found, "masked-lm"), checkpoint="other")
    path = elsewhere.save(tmp_path / "elsewhere.safetensors")
    with pytest.raises(CurvatureError, match=r"ewc.*of other, at other weights"):
        run(pretrained, task, tmp_path / "out", ewc=path, ewc_strength=1)
    narrow = make_fisher(tiny_model(dtype=torch.float32), weights=found.fingerprint)
    path = narrow.save(tmp_path / "narrow.safetensors")
    with pytest.raises(CurvatureError, match=r"embeddings.*\(45, 16\).*\(\d+, 32\)"):
        run(pretrained, task, tmp_path / "out", ewc=path, ewc_strength=1)
    foreign = make_fisher({"w": torch.ones(3)}, weights=found.fingerprint)
    path = foreign.save(tmp_path / "foreign.safetensors")
    with pytest.raises(CurvatureError, match="no tensor in common"):
        run(pretrained, task, tmp_path / "out", ewc=path, ewc_strength=1)
    assert not (tmp_path / "out").exists()


def test_options_that_cannot_be(pretrained, task, fisher, tmp_path, tiny_model):
    with pytest.raises(ConfigError, match="ewc needs ewc_strength"):
        run(pretrained, task, tmp_path / "out", ewc=fisher)
    with pytest.raises(ConfigError, match="ewc_strength needs ewc"):
        run(pretrained, task, tmp_path / "out", ewc_strength=1)
    with pytest.raises(ConfigError, match="ewc_strength"):
        run(pretrained, task, tmp_path / "out", ewc=fisher, ewc_strength=-1)
    with pytest.raises(ConfigError, match="strength -1"):
        ConsolidationCallback(fisher, -1)
    callback = ConsolidationCallback(fisher, 1)
    resumed = _State()
    resumed.global_step = 3
    with pytest.raises(ConfigError, match="resumed") as caught:
        callback.on_train_begin(None, resumed, None, model=tiny_model())
    assert "anchor" in caught.value.remedy
