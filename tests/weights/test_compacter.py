"""Compacters and low-rank adapters: their matrices, how many numbers, what is shared, the disk."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import gelu

import landform as lf
from landform.errors import ConfigError, SpaceMismatchError
from landform.weights.adapters import output_projections
from landform.weights.checkpoint import (
    LoadConfig,
    check_same_architecture,
    draw_tuned,
    load_model,
    resolve,
)
from landform.weights.compacter import KroneckerLinear, Rule
from landform.weights.space import ParameterSpace
from landform.weights.tuning import TuningConfig, save_model, tune
from tuned import CAUSAL, SEQ2SEQ, call, each_family, family, generate, greedy, ids

SIZES = {"adapter_size": 8, "adapter_rank": 2}
KINDS: dict[str, dict[str, Any]] = {
    "shared": {"tuning": "compacter", "init_std": 0.5, **SIZES},
    "apart": {"tuning": "compacter", "init_std": 0.5, "phm_shared": False, **SIZES},
    "low-rank": {"tuning": "low-rank-adapter", **SIZES},
}
each_kind = pytest.mark.parametrize("kind", list(KINDS))
few = each_family("bert", "albert", "gpt2", "llama", "t5", "bart")


def adapted(name: str, kind: str, seed: int = 1, dtype: Any = torch.float64, **options: Any) -> Any:
    """A tuned model with biases, too, that are not zero."""
    model = family(name, dtype=dtype)
    torch.manual_seed(seed)
    tune(model, TuningConfig(**{**KINDS[kind], **options}), head=False)
    with torch.no_grad():
        for parameter, values in model.named_parameters():
            if parameter in model.landform_tuned:
                values += 0.1 * torch.randn_like(values)
    return model.eval()


def matrix(part: Any) -> Tensor:
    """W of one half of an adapter, by torch.kron or a sum over ranks, entry by entry."""
    if not isinstance(part, KroneckerLinear):
        left, right = part.left.weight.T, part.right.weight.T
        return sum(torch.outer(left[:, j], right[j]) for j in range(left.shape[1]))  # type: ignore[return-value]
    rule = (part.rule or part.shared[0]).weight
    made = torch.zeros(part.left.shape[0] * part.left.shape[1], len(part.bias)).to(rule)
    for a, left, right in zip(rule, part.left, part.right, strict=True):
        factor = sum(torch.outer(left[:, j], right[j]) for j in range(left.shape[1]))
        made += torch.kron(a.contiguous(), factor)
    return made


def bias(part: Any) -> Tensor:
    found: Tensor = part.bias if isinstance(part, KroneckerLinear) else part.right.bias
    return found


@each_kind
@few
def test_outputs_are_those_of_the_formula(name: str, kind: str) -> None:
    """a + gelu(a W + b) V + c behind every block, from the model without adapters."""
    model, plain = adapted(name, kind), family(name)
    for k in output_projections(plain):
        layer = model.get_submodule(k).adapter

        def hook(_: Any, __: Any, a: Tensor, layer: Any = layer) -> Tensor:
            hidden = a @ matrix(layer.down) + bias(layer.down)
            inner = 0.7978845608028654 * (hidden + 0.044715 * hidden**3)
            hidden = 0.5 * hidden * (1 + torch.tanh(inner))
            return a + hidden @ matrix(layer.up) + bias(layer.up)

        plain.get_submodule(k).register_forward_hook(hook)
    text = ids(2, 6)
    with torch.no_grad():
        torch.testing.assert_close(call(model, text), call(plain, text), rtol=1e-9, atol=1e-11)
        assert (call(model, text) - call(family(name), text)).abs().max() > 1e-3


@settings(max_examples=30, deadline=None)
@given(
    division=st.integers(1, 5),
    rows=st.integers(1, 4),
    columns=st.integers(1, 4),
    rank=st.integers(1, 3),
    seed=st.integers(0, 2**31),
)
def test_matrices_are_sums_of_kronecker_products(
    division: int, rows: int, columns: int, rank: int, seed: int
) -> None:
    torch.manual_seed(seed)
    p, q = division * rows, division * columns
    layer = KroneckerLinear(p, q, rank, division, None).double()
    layer.draw(0.0, 1.0)
    torch.nn.init.normal_(layer.bias)
    x = torch.randn(3, 2, p, dtype=torch.float64)
    wanted = torch.zeros(3, 2, q, dtype=torch.float64) + layer.bias
    assert layer.rule is not None
    for i in range(division):
        for r in range(p):
            for c in range(q):
                factor = layer.left[i, r % rows] @ layer.right[i, :, c % columns]
                a = layer.rule.weight[i, r // rows, c // columns]
                wanted[..., c] = wanted[..., c] + x[..., r] * a * factor
    torch.testing.assert_close(layer(x), wanted)


@each_kind
@each_family()
def test_counts_are_the_closed_formula(name: str, kind: str) -> None:
    """(2 k + 1) (d + r) for an adapter, n^3 for the rule of all matrices or of each."""
    model = adapted(name, kind)
    places = len(output_projections(family(name)))
    rules = {"shared": 1, "apart": 2 * places, "low-rank": 0}[kind]
    space = ParameterSpace.of(model)
    assert space.numel == places * (2 * 2 + 1) * (16 + 8) + rules * 4**3
    assert len(space.names) == places * 6 + rules
    assert set(space.names) == model.landform_tuned
    plain = dict(family(name).named_parameters())
    for parameter, values in model.named_parameters():
        assert values.requires_grad == (parameter in model.landform_tuned)
        if parameter not in model.landform_tuned:
            assert torch.equal(values, plain.pop(parameter))
    assert not plain
    feed_forward = list(output_projections(family(name)).values()).count("feed_forward")
    less = ParameterSpace.of(adapted(name, kind, adapter_placement="pfeiffer"))
    rules = min(rules, 2 * feed_forward)
    assert less.numel == feed_forward * (2 * 2 + 1) * (16 + 8) + rules * 4**3


def test_counts_are_those_of_the_paper() -> None:
    """Compacter++ of T5 base with its norms: 0.047 % of the model, as the paper's abstract says."""
    from transformers import T5Config, T5ForConditionalGeneration

    shape = {"d_model": 768, "d_kv": 64, "d_ff": 3072, "num_layers": 12, "num_heads": 12}
    wide = {"tuning": "compacter", "adapter_size": 24}

    def numel(**options: Any) -> int:
        with torch.device("meta"):
            model = T5ForConditionalGeneration(T5Config(**shape))
            tune(model, TuningConfig(**{**wide, **options}), head=False)
            return ParameterSpace.of(model).numel

    assert numel() == 60 * 3 * (768 + 24) + 64 == 142_624
    assert numel(phm_shared=False) == 142_560 + 120 * 64
    assert numel(tuning="low-rank-adapter") == 142_560
    plus = numel(adapter_placement="pfeiffer", train_also="*layer_norm*")
    assert plus == 24 * 3 * (768 + 24) + 64 + 62 * 768 == 104_704
    assert round(100 * plus / 222_903_552, 3) == 0.047


@few
def test_the_shared_rule_is_one_tensor_with_the_sum_of_all_gradients(name: str) -> None:
    model, apart = adapted(name, "shared"), adapted(name, "apart")
    (rule,) = {m for m in model.modules() if isinstance(m, Rule)}
    (named,) = [n for n in ParameterSpace.of(model).names if "rule" in n]
    # On the body, where there is one: whatever stands beside it is taken for a head.
    body = model.base_model_prefix
    assert named == f"{body}.phm_rule.weight" if hasattr(model, body) else "phm_rule.weight"
    # The same model with a rule of its own in every matrix: all of them the shared one.
    tensors = dict(apart.named_parameters())
    for parameter, values in model.named_parameters():
        if parameter != named:
            tensors[parameter].data = values.data
    rules = [values for parameter, values in tensors.items() if ".rule." in parameter]
    assert len(rules) == 2 * len(output_projections(family(name)))
    for values in rules:
        values.data = rule.weight.data.clone()
    for each in (model, apart):
        call(each, ids(2, 6)).pow(2).sum().backward()
    total = torch.stack([values.grad for values in rules]).sum(0)
    assert rule.weight.grad is not None
    torch.testing.assert_close(rule.weight.grad, total, rtol=1e-9, atol=1e-9)
    # Through a point of the space as well, as gradients on lines and curves are taken.
    space = ParameterSpace.of(model)
    flat = space.flatten(model).requires_grad_()
    inputs = {"input_ids": ids(2, 6)}
    if model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = torch.tensor([[0, 7, 9]]).expand(2, -1)
    space.call(model, flat, **inputs).logits.pow(2).sum().backward()
    assert flat.grad is not None
    torch.testing.assert_close(space.unflatten(flat.grad)[named], total, rtol=1e-9, atol=1e-9)


@each_kind
def test_first_weights(kind: str) -> None:
    """Glorot's uniform distribution with gain sqrt 2 for every factor; zero biases; A normal."""
    model = family("bert", hidden_size=64)
    options = {**KINDS[kind], "adapter_size": 32, "adapter_rank": 1}
    options |= {"init_std": 0.3, "init_mean": 1.0} if kind != "low-rank" else {}
    torch.manual_seed(0)
    tune(model, TuningConfig(**options), head=False)
    tensors = {n: p.detach() for n, p in model.named_parameters() if n in model.landform_tuned}
    for name, values in tensors.items():
        if name.endswith("bias"):
            assert not values.any()
        elif "rule" in name:
            assert abs(float(values.mean()) - 1.0) < 0.2 and 0.2 < float(values.std()) < 0.4
        else:
            _check_glorot(values, 64 if ".down.left" in name or ".up.right" in name else 32, kind)


def _check_glorot(values: Tensor, entries: int, kind: str) -> None:
    fans = 1 + (entries if kind == "low-rank" else entries // 4)
    bound = (2 * 6 / fans) ** 0.5
    assert 0.7 * bound < float(values.abs().max()) <= bound
    assert values.numel() == entries


@pytest.mark.parametrize(
    ("kind", "std", "least", "most"),
    [("shared", 1e-4, 1e-9, 1e-6), ("apart", 0.01, 1e-5, 1e-3), ("low-rank", None, 0.02, 0.2)],
    ids=["paper", "opendelta", "low-rank"],
)
def test_how_near_the_identity_they_start(
    kind: str, std: float | None, least: float, most: float
) -> None:
    """Of a unit normal input of width 768; what docs/tuning.md says of it."""
    model = family("gpt2", n_embd=768, n_layer=1)
    options = {**KINDS[kind], "adapter_size": 24, "adapter_rank": 1}
    options |= {} if std is None else {"init_std": std}
    torch.manual_seed(0)
    tune(model, TuningConfig(**options), head=False)
    a = torch.randn(100, 768, dtype=torch.float64)
    with torch.no_grad():
        moved = model.transformer.h[0].mlp.c_proj.adapter(a) - a
    share = float(moved.norm() / a.norm())
    assert least <= share <= most, share


@each_kind
@each_family()
def test_they_come_back_from_disk(name: str, kind: str, tmp_path: Path) -> None:
    family(name, dtype=torch.float32).save_pretrained(tmp_path / "base")
    task = None if name in CAUSAL + SEQ2SEQ else "classification"
    model: Any = load_model(tmp_path / "base", task)
    tune(model, TuningConfig(**KINDS[kind]), head=task is not None)
    save_model(model, tmp_path / "tuned", tmp_path / "base")
    kept = load_file(tmp_path / "tuned" / "adapter_model.safetensors")
    rules = 2 * len(output_projections(family(name)))
    assert sum("rule" in n for n in kept) == {"shared": 1, "apart": rules, "low-rank": 0}[kind]
    read: Any = load_model(tmp_path / "tuned")
    space = ParameterSpace.of(read)
    assert space == ParameterSpace.of(model)
    assert torch.equal(space.flatten(read), space.flatten(model))
    text = ids(2, 6)
    with torch.no_grad():
        assert torch.equal(call(read, text), call(model.eval(), text))
    again: Any = draw_tuned(resolve(tmp_path / "tuned"), seed=3)
    assert ParameterSpace.of(again) == space
    assert not torch.equal(space.flatten(again), space.flatten(read))


@each_kind
@each_family("gpt2", "t5")
def test_generation_runs_through_them(name: str, kind: str) -> None:
    model = adapted(name, kind)
    text = ids(2, 5)
    mask = torch.ones_like(text)
    torch.testing.assert_close(generate(model, text, mask, 4), greedy(model, text, mask, 4))


@each_kind
def test_a_copy_has_matrices_of_its_own(kind: str) -> None:
    model = adapted("bert", kind)
    text = ids(2, 6)
    twin = copy.deepcopy(model)
    with torch.no_grad():
        before = call(model, text)
        space = ParameterSpace.of(twin)
        space.bind(twin).move_to(torch.zeros(space.numel, dtype=torch.float64))
        torch.testing.assert_close(call(twin, text), call(family("bert"), text))
        assert torch.equal(call(model, text), before)


@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_activations(activation: str) -> None:
    model = adapted("gpt2", "low-rank", adapter_activation=activation)
    adapter = model.transformer.h[0].mlp.c_proj.adapter
    a = torch.randn(3, 16, dtype=torch.float64)
    f = {"relu": torch.relu, "gelu": gelu}[activation]
    wanted = a + f(a @ matrix(adapter.down) + bias(adapter.down)) @ matrix(adapter.up)
    torch.testing.assert_close(adapter(a), wanted + bias(adapter.up))


# --- runs, lines, errors -------------------------------------------------------------------------


@pytest.fixture
def task(tmp_path: Path) -> Any:
    """Texts of words of one half of the vocabulary or of the other, which is the label."""
    for name, rows in (("train", 24), ("dev", 15)):
        lines = ["sentence\tlabel"]
        for row in range(rows):
            half = [f"w{20 * (row % 2) + (3 * row + 7 * k) % 20}" for k in range(3 + row % 4)]
            lines.append(f"{' '.join(half)}\t{row % 2}")
        (tmp_path / f"{name}.tsv").write_text("\n".join(lines) + "\n")
    files = {"train": str(tmp_path / "train.tsv"), "validation": str(tmp_path / "dev.tsv")}
    return lf.load_task(files, text="sentence", label="label", name="toy")


@each_kind
def test_training_lowers_the_loss_and_lines_end_at_their_ends(
    kind: str, task: Any, save_checkpoint: Any, tmp_path: Path
) -> None:
    base = save_checkpoint(tmp_path / "base")
    options = {**KINDS[kind], "max_steps": 40, "batch_size": 8, "learning_rate": 3e-2}
    options |= {"save_steps": 0, "threads": 1, "eval_split": None, "dropout": 0.0}
    runs = lf.train(base, task, out=tmp_path / "runs", seeds=(0, 1), **options).paths
    known: dict[str, Any] = {"split": "train", "dtype": "float64", "replicates": 20}
    places = [f"{run}{step}" for step in ("@0", "") for run in runs]
    losses = [lf.evaluate(place, task, **known).metrics["loss"] for place in places]
    starts, ends = losses[:2], losses[2:]
    assert all(end < start - 0.1 for start, end in zip(starts, ends, strict=True)), losses
    line = lf.interpolate(*runs, task, points=3, **known)
    assert line.table["loss"].iloc[[0, -1]].tolist() == pytest.approx(ends, rel=1e-12)
    # The middle is the model whose tensors, the shared rule among them, are the means.
    double = LoadConfig(dtype="float64")
    models: list[Any] = [load_model(run, config=double) for run in runs]
    space = ParameterSpace.of(models[0])
    flats = [space.flatten(model) for model in models]
    assert not torch.equal(*flats)
    space.bind(models[0]).lerp(*flats, 0.5)
    save_model(models[0], tmp_path / "middle", base)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "middle" / name).write_bytes((Path(str(base)) / name).read_bytes())
    middle = lf.evaluate(tmp_path / "middle", task, **known).metrics["loss"]
    assert middle == pytest.approx(line.table["loss"].iloc[1], rel=1e-9)


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("shared", {"init_std": 1e-4}),
        ("shared", {}),
        ("apart", {"init_std": 0.01}),
        ("low-rank", {}),
    ],
    ids=["paper", "shared", "opendelta", "low-rank"],
)
def test_they_learn_by_themselves(kind: str, changes: dict[str, Any]) -> None:
    """Without a head, and starting next to the identity: a language model learns 3 sentences."""
    model = family("gpt2", dtype=torch.float32)
    torch.manual_seed(0)
    tune(model, TuningConfig(**{**KINDS[kind], **changes}), head=False)
    text = ids(3, 8)
    tuned = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(tuned, lr=2e-2)
    first = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    losses = []
    for _ in range(80):
        loss = model(input_ids=text, labels=text).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.6 * losses[0], losses[::20]
    with torch.no_grad():  # not by their biases alone
        for name, values in first.items():
            parameter = model.get_parameter(name)
            assert not torch.equal(parameter, values)
            if not name.endswith("bias"):
                parameter.copy_(values)
        assert model(input_ids=text, labels=text).loss > losses[-1] + 0.3


def test_influence_sees_low_rank_adapters(task: Any, save_checkpoint: Any, tmp_path: Path) -> None:
    """They are linear layers, as the head is; compacters are not."""
    base = save_checkpoint(tmp_path / "base")
    options = {"max_steps": 2, "batch_size": 8, "threads": 1, "eval_split": None}
    seen = {}
    for kind in ("shared", "low-rank"):
        out = tmp_path / kind
        (run,) = lf.train(base, task, out=out, **KINDS[kind], **options).paths
        seen[kind] = lf.fit_factors(run, task, strategy="identity").layers
    assert not any("adapter" in name for name in seen["shared"])
    assert sum("adapter" in name for name in seen["low-rank"]) % 4 == 0
    assert any("adapter.down.left" in name for name in seen["low-rank"])


def test_what_does_not_divide() -> None:
    with pytest.raises(ConfigError, match="phm_division 4 does not divide adapter_size 6"):
        TuningConfig.parse({"tuning": "compacter", "adapter_size": 6})
    model = family("bert")
    before = {n: p.clone() for n, p in model.named_parameters()}
    config = TuningConfig(tuning="compacter", adapter_size=6, phm_division=3)
    with pytest.raises(
        ConfigError,
        match=r"phm_division 3 does not divide the width of the model, 16\n.*width \(16\) and "
        r"adapter_size \(6\): 2 or",
    ):
        tune(model, config, head=False)
    assert {n: p.shape for n, p in model.named_parameters()} == {
        n: p.shape for n, p in before.items()
    }
    assert not any(hasattr(module, "adapter") for module in model.modules())


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (
            {"tuning": "adapter", "phm_division": 2},
            "phm_division is an option of",
        ),
        ({"tuning": "low-rank-adapter", "phm_shared": False}, "phm_shared is an option of"),
        ({"tuning": "low-rank-adapter", "init_std": 0.1}, "init_std is an option of"),
        ({"tuning": "adapter", "adapter_rank": 2}, "adapter_rank is an .* low-rank-adapter, not"),
        ({"tuning": "compacter", "phm_division": 0}, "phm_division"),
        ({"tuning": "compacter", "adapter_rank": 0}, "adapter_rank"),
        ({"tuning": "compactor"}, "tuning"),
    ],
    ids=["division", "shared", "std", "rank", "no division", "no rank", "name"],
)
def test_options_that_do_not_belong(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        TuningConfig.parse(options)


def test_models_that_have_adapters_are_refused() -> None:
    for kind in KINDS:
        with pytest.raises(ConfigError, match="has an adapter already"):
            tune(adapted("bert", kind), TuningConfig(**KINDS[kind]), head=False)


def test_other_kinds_are_named(tmp_path: Path) -> None:
    base = tmp_path / "base"
    family("bert", dtype=torch.float32).save_pretrained(base)

    def saved(name: str, **options: Any) -> Any:
        model: Any = load_model(base, "classification")
        tune(model, TuningConfig(**options), head=True)
        save_model(model, tmp_path / name, base, resolve(base).fingerprint)
        return resolve(tmp_path / name)

    one = saved("one", **KINDS["shared"])
    check_same_architecture(one, saved("two", **{**KINDS["shared"], "init_std": 1e-4}))
    for name, says in {
        "apart": "two kinds of compacter: phm_shared is True in",
        "low-rank": "two tuning methods: .*one is compacter, .*low-rank is low-rank-adapter",
    }.items():
        with pytest.raises(SpaceMismatchError, match=says):
            check_same_architecture(one, saved(name, **KINDS[name]))
    relu = saved("relu", **KINDS["shared"], adapter_activation="relu")
    with pytest.raises(SpaceMismatchError, match=r"activation is 'gelu_new' in .* 'relu'"):
        check_same_architecture(one, relu)
    ranked = saved("ranked", **{**KINDS["shared"], "adapter_rank": 1})
    with pytest.raises(SpaceMismatchError, match=r"adapter_rank is 2 in .* and 1 in"):
        check_same_architecture(one, ranked)
