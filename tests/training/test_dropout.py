"""Dropout put into a model is what acts when the model is trained, on every architecture."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import landform as lf
from dropout_models import MODELS, SDPA, few_tokens, make_model
from landform.errors import ConfigError
from landform.training.dropout import put_dropout
from landform.training.noise import GaussianRate, _noisy_attention, watch
from landform.weights.sites import HEAD, dropout_sites, scheduled_sites

CASES = [(name, "eager") for name in MODELS] + [(name, "sdpa") for name in SDPA]
IDS = [f"{name}-{attention}" for name, attention in CASES]


def schedule_of(model):
    sites = scheduled_sites(dropout_sites(model))
    return {site.name: 0.02 * (i + 1) for i, site in enumerate(sites)}


def build(name, attention):
    return make_model(name, attention=attention if name in SDPA else None)


def state(model):
    return (
        {name: (site.p, site.how) for name, site in named(model).items()},
        [module.training for module in model.modules()],
        [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()],
        list(model.state_dict()),
    )


def named(model):
    return {site.name: site for site in dropout_sites(model)}


@pytest.mark.parametrize(("name", "attention"), CASES, ids=IDS)
def test_what_is_asked_for_acts(name, attention):
    model = build(name, attention)
    keys, x = list(model.state_dict()), few_tokens(model)
    with torch.no_grad():
        before = model(**x).logits
    g = schedule_of(model)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    assert lf.apply_dropout(model, g, insert=True) == g
    assert torch.equal(torch.rand(3), expected)  # nobody's random numbers were drawn
    assert not model.training and all(p.grad is None for p in model.parameters())
    assert list(model.state_dict()) == keys
    with torch.no_grad():
        assert torch.equal(model(**x).logits, before)
    # Looked at anew, by nothing but the values that reach the kernels.
    model.train()
    with watch(model) as calls, torch.no_grad():
        model(**x)
    assert set(g.values()) <= {call.p for call in calls}
    head = {site.p for site in dropout_sites(model) if site.kind in (HEAD, "position")}
    unscored = {s.p for s in dropout_sites(model) if not s.tensors}
    assert {call.p for call in calls} <= set(g.values()) | head | unscored
    found = lf.dropout_in_force(model)
    assert {n: p for n, p in found.items() if n in g} == g and model.training


@pytest.mark.parametrize(("name", "attention"), CASES, ids=IDS)
def test_gaussian_noise_acts_and_is_quiet_in_evaluation(name, attention):
    model = build(name, attention)
    x, before = few_tokens(model), state(model)
    with torch.no_grad():
        plain = model(**x).logits
    g = schedule_of(model)
    applied = put_dropout(model, g, noise="gaussian", insert=True)
    assert applied.asked == g
    with torch.no_grad():
        assert torch.equal(model(**x).logits, plain)
        model.train()
        with watch(model) as calls:
            model(**x)
    by_noise = {call.p for call in calls if call.gaussian}
    assert by_noise == set(g.values())
    model.eval()
    applied.undo()
    assert state(model) == before


@pytest.mark.parametrize("name", ["bert", "t5", "bart", "llama"])
@pytest.mark.parametrize("compat", [None, "guided-dropout"])
def test_scheduled_twice(name, compat):
    """Gaussian, then Bernoulli: no trace of the first, in evaluation neither."""
    model = make_model(name)
    g, x = schedule_of(model), few_tokens(model)
    lf.apply_dropout(model, g, noise="gaussian", insert=True, compat=compat)
    half = {site: p / 2 for site, p in g.items()}
    assert lf.apply_dropout(model, half, insert=True) == half
    with torch.no_grad():
        assert torch.equal(model(**x).logits, model(**x).logits)
        model.train()
        with watch(model) as calls:
            model(**x)
    assert not any(call.gaussian for call in calls)


@pytest.mark.parametrize("noise", ["bernoulli", "gaussian"])
def test_what_fails_leaves_the_noise_that_was_there(noise):
    model = make_model("bert")
    g = schedule_of(model)
    lf.apply_dropout(model, g, noise="gaussian", compat="guided-dropout")
    # A number that another hook overrules after the first look.
    dropout = model.bert.embeddings.dropout
    with pytest.raises(ConfigError, match=r"embeddings\.dropout was set"):
        handle = dropout.register_forward_pre_hook(lambda m, _: setattr(m, "p", 0.3))
        lf.apply_dropout(model, {name: p / 2 for name, p in g.items()}, noise=noise)
    handle.remove()
    dropout.p = GaussianRate(g["bert.embeddings.dropout"], original=True)
    model.train()
    with watch(model) as calls, torch.no_grad():
        model(**few_tokens(model))
    assert {call.p for call in calls if call.gaussian} == set(g.values())


# --- noise -------------------------------------------------------------------------------------


@pytest.mark.parametrize("p", [0.1, 0.5])
def test_deviation_of_gaussian_noise(p):
    """1 + sqrt(p / (1 - p)) eps: mean 1, variance that of dropout."""
    model = make_model("bert")
    site = "bert.encoder.layer.0.output.dropout"
    lf.apply_dropout(model, {site: p}, noise="gaussian")
    module = model.get_submodule(site).train()
    ones = torch.ones(200_000)
    torch.manual_seed(0)
    factor = module(ones)
    assert factor.mean().item() == pytest.approx(1, abs=0.01)
    assert factor.std().item() == pytest.approx((p / (1 - p)) ** 0.5, rel=0.01)
    assert F.dropout(ones, p).std().item() == pytest.approx(factor.std().item(), rel=0.02)
    assert torch.equal(module.eval()(ones), ones)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_the_original_noise(attention):
    """Standard deviation p / (1 - p), and noise in evaluation: the faults of the paper's code."""
    model = make_model("bert", attention=attention)
    g = {site: 0.1 for site in schedule_of(model)}
    lf.apply_dropout(model, g, noise="gaussian", compat="guided-dropout")
    module = model.get_submodule("bert.encoder.layer.0.output.dropout").eval()
    torch.manual_seed(0)
    assert module(torch.ones(200_000)).std().item() == pytest.approx(1 / 9, rel=0.01)
    with watch(model) as calls, torch.no_grad():
        model(**few_tokens(model))
    assert sum(call.gaussian for call in calls) == len(g)  # all of them, attention too
    a, b = (model(**few_tokens(model)).logits for _ in range(2))
    assert not torch.equal(a, b)


@pytest.mark.parametrize("kind", ["bool", "float", "causal", "gqa", "plain"])
def test_attention_written_out_is_attention(kind):
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 4, 5, 8, dtype=torch.float64) for _ in range(3))
    options = {}
    if kind == "bool":
        options["attn_mask"] = torch.rand(2, 1, 5, 5) > 0.3
        options["attn_mask"][..., 0] = True
    if kind == "float":
        options["attn_mask"] = torch.randn(2, 1, 5, 5, dtype=torch.float64)
    if kind == "causal":
        options["is_causal"] = True
    if kind == "gqa":
        k, v, options = k[:, :2], v[:, :2], {"enable_gqa": True, "scale": 0.3}
    expected = F.scaled_dot_product_attention(q, k, v, **options)
    found = _noisy_attention(q, k, v, **options, rate=GaussianRate(0.0))
    assert torch.allclose(found, expected, atol=1e-12)


def test_noise_under_gradient_checkpointing_and_in_copies():
    """What is computed again in the backward pass has the same noise."""
    model = make_model("bert")
    lf.apply_dropout(model, {n: 0.3 for n in schedule_of(model)}, noise="gaussian")
    copied = pickle.loads(pickle.dumps(copy.deepcopy(model)))
    gradients = []
    for each, checkpointed in ((model, False), (copied, True)):
        if checkpointed:
            each.gradient_checkpointing_enable({"use_reentrant": False})
        each.train()
        torch.manual_seed(1)
        each(**few_tokens(each), labels=torch.tensor([1])).loss.backward()
        gradients.append([p.grad for p in each.parameters()])
    assert all(torch.allclose(a, b) for a, b in zip(*gradients, strict=True))


# --- what is broken is seen ---------------------------------------------------------------------


class Copied(nn.Module):
    """Attention that copied its probability when it was built, as older transformers' do."""

    def __init__(self, attribute: str) -> None:
        super().__init__()
        self.dropout = nn.Dropout(0.1)
        setattr(self, attribute, self.dropout.p)
        self.attribute = attribute

    def forward(self, x):
        p = getattr(self, self.attribute) if self.training else 0.0
        return F.scaled_dot_product_attention(x, x, x, dropout_p=p)


class Host(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, x):
        return self.inner(self.weight * x)


X = {"x": torch.randn(1, 1, 4, 8)}


def test_a_copied_probability_is_set_with_its_module():
    model = Host(Copied("dropout_prob"))
    assert lf.apply_dropout(model, {"inner.dropout": 0.4}, inputs=X) == {"inner.dropout": 0.4}
    assert model.inner.dropout_prob == 0.4 == model.inner.dropout.p


@pytest.mark.parametrize("noise", ["bernoulli", "gaussian"])
def test_a_probability_that_acts_nowhere(noise):
    model = Host(Copied("hidden"))
    with pytest.raises(ConfigError, match=r"inner\.dropout was set, but acts nowhere"):
        lf.apply_dropout(model, {"inner.dropout": 0.4}, noise=noise, inputs=X)
    assert model.inner.dropout.p == 0.1 == model.inner.hidden


def test_a_probability_that_someone_else_decides():
    """Set, seen to act, and overruled when it matters."""

    class Stubborn(nn.Module):
        def __init__(self):
            super().__init__()
            self.dropout = nn.Dropout(0.1)

        def forward(self, x):
            p = self.dropout.p
            return F.dropout(x, 0.25 if p > 0.9 else p, self.training)

    model = Host(Stubborn())
    with pytest.raises(ConfigError, match=r"inner\.dropout was set to 0\.95 .* inner drops with 0"):
        lf.apply_dropout(model, {"inner.dropout": 0.95}, inputs=X)
    assert model.inner.dropout.p == 0.1
    assert lf.apply_dropout(model, {"inner.dropout": 0.4}, inputs=X) == {"inner.dropout": 0.4}


def test_dropout_that_is_switched_off():
    class Quiet(nn.Module):
        def __init__(self):
            super().__init__()
            self.dropout = nn.Dropout(0.1)

        def forward(self, x):
            return F.dropout(x, self.dropout.p, training=False)

    with pytest.raises(ConfigError, match="acts nowhere"):
        lf.apply_dropout(Host(Quiet()), {"inner.dropout": 0.2}, inputs=X)


def test_noise_ends_with_a_module_that_fails():
    model = make_model("bert")
    lf.apply_dropout(model, {n: 0.3 for n in schedule_of(model)}, noise="gaussian")
    model.train()
    with pytest.raises(IndexError):
        model(input_ids=torch.tensor([[1000]]))
    with pytest.raises(RuntimeError):
        model.bert.encoder.layer[0].attention.self(torch.ones(1, 2, 5))
    rate = GaussianRate(0.5)
    assert set(F.dropout(torch.ones(100), rate).tolist()) == {0.0, 2.0}  # Bernoulli outside


def test_layers_that_are_left_out_at_random_are_seen():
    model = make_model("bart", encoder_layerdrop=0.9, decoder_layerdrop=0.9)
    g = schedule_of(model)
    assert lf.apply_dropout(model, g) == g
    assert model.model.encoder.layerdrop == 0.9


# --- errors -------------------------------------------------------------------------------------


def test_a_site_that_does_not_exist():
    model = make_model("bert")
    before = state(model)
    with pytest.raises(ConfigError, match=r"(?s)layer\.7.*did you mean bert\.encoder\.l") as e:
        lf.apply_dropout(model, {"bert.encoder.layer.7.attention.self.dropout": 0.1})
    assert "no dropout site of this BertForSequenceClassification" in str(e.value)
    assert state(model) == before
    with pytest.raises(ConfigError, match="no dropout site of this GPT2"):
        lf.apply_dropout(make_model("gpt2"), lf.dropout_schedule("bert-guided"))


def test_two_names_of_one_site():
    model = make_model("bert")
    before = state(model)
    twice = {"bert.embeddings.dropout": 0.1, "embeddings.dropout": 0.3}
    with pytest.raises(
        ConfigError, match=r"bert\.embeddings\.dropout and embeddings\.dropout"
    ) as e:
        lf.apply_dropout(model, twice)
    assert "one dropout site" in str(e.value) and state(model) == before


def test_a_schedule_of_no_site():
    model = make_model("bert")
    with pytest.raises(ConfigError, match="the schedule names no site"):
        lf.apply_dropout(model, {})
    assert len(lf.dropout_in_force(model)) == len(schedule_of(model)) + 1  # the head's


def test_gaussian_noise_everywhere_has_to_reach_attention():
    """A kernel that draws its own dropout is not seen, whatever the probability is."""
    from transformers import AttentionInterface

    def kernel(module, query, key, value, mask, dropout=0.0, **_):
        keep = torch.rand(query.shape[0]) >= dropout
        return (query * keep.view(-1, 1, 1, 1)).transpose(1, 2), None

    AttentionInterface.register("landform_test", kernel)
    model = make_model("bert")
    model.set_attn_implementation("landform_test")
    with pytest.raises(ConfigError, match=r"attention\.self\.dropout was set, but acts nowhere"):
        put_dropout(model, None, noise="gaussian", all_sites=True)
    for site in (s for s in dropout_sites(model) if s.kind == "attention"):
        model.get_submodule(site.name).p = 0.0
    found = put_dropout(model, None, noise="gaussian", all_sites=True)
    assert set(found.in_force.values()) == {0.1} and not found.asked


def test_a_model_without_dropout():
    model = make_model("llama")
    before, g = state(model), schedule_of(model)
    with pytest.raises(ConfigError, match=r"no dropout after model\.embed_tokens .* 4 other") as e:
        lf.apply_dropout(model, g)
    assert "--insert-dropout" in str(e.value) and state(model) == before
    there = {name: p for name, p in g.items() if name.endswith("attention_dropout")}
    assert lf.apply_dropout(model, there) == there


def test_inserted_dropout_leaves_no_trace_on_disk(tmp_path):
    model = make_model("llama")
    lf.apply_dropout(model, schedule_of(model), insert=True)
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path).eval()
    assert list(again.state_dict()) == list(model.state_dict())
    x = few_tokens(model)
    assert torch.equal(again(**x).logits, model(**x).logits)
    copied = copy.deepcopy(model).train()
    a, b = (copied(**x).logits for _ in range(2))
    assert not torch.equal(a, b)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"noise": "pink"}, "unknown noise"),
        ({"compat": "guided-dropout"}, "with noise bernoulli"),
        ({"noise": "gaussian", "compat": "plm"}, "compat is guided-dropout"),
    ],
    ids=["noise", "bernoulli", "compat"],
)
def test_options_that_do_not_agree(options, message):
    with pytest.raises(ConfigError, match=message):
        lf.apply_dropout(make_model("bert"), {"bert.embeddings.dropout": 0.1}, **options)


def test_a_model_that_takes_something_else():
    class Odd(nn.Module):
        config = type("C", (), {"vocab_size": 9})()

        def __init__(self):
            super().__init__()
            self.drop, self.weight = nn.Dropout(0.1), nn.Parameter(torch.ones(1))

        def forward(self, pixels):
            return self.drop(self.weight * pixels)

    with pytest.raises(ConfigError, match=r"(?s)could not be verified.*inputs="):
        lf.apply_dropout(Odd(), {"drop": 0.2})
    found = lf.apply_dropout(Odd(), {"drop": 0.2}, inputs={"pixels": torch.ones(3)})
    assert found == {"drop": 0.2}


def test_a_wrapped_model_takes_the_schedule_of_what_it_wraps():
    """The Fisher of a masked-LM model names sites that a LoRA model has one level deeper."""
    from peft import LoraConfig, get_peft_model

    g = schedule_of(make_model("bert-mlm"))
    model = get_peft_model(make_model("bert"), LoraConfig(target_modules=["query"], r=2))
    found = lf.apply_dropout(model, g)
    assert {name.removeprefix("base_model.model."): p for name, p in found.items()} == g
    t5 = schedule_of(make_model("t5"))
    assert list(lf.apply_dropout(make_model("t5-classifier"), t5).values()) == list(t5.values())
