"""The objective's contract, for every kind of task, on models with attention, in float64.

Results must not change when padding is added, when the batch split changes, when examples are
reordered, or when labels are masked (-100); and they must be what a loop over the definition gives.
"""

import dataclasses
import math
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from landform.errors import DataError, LabelError
from landform.tasks.batching import IGNORED, Encoded, collate, cut_batches, encode, longest_input
from landform.tasks.labels import LabelMap
from landform.tasks.objective import Objective
from landform.tasks.task import Examples

KINDS = {
    "classification": ["bert", "gpt2"],
    "regression": ["bert"],
    "token-classification": ["bert"],
    "masked-lm": ["bert"],
    "causal-lm": ["gpt2"],
    "seq2seq": ["t5"],
}
CASES = [(kind, architecture) for kind, names in KINDS.items() for architecture in names]
TEXTS = ["w1 w2 w3", "w4 w5 w6 w7 w8 w9 w10", "w3 w3", "w11 w12 w13 w14 w15", "w20 w1 w30 w2"]


def make_examples(kind: str) -> Examples:
    n = len(TEXTS)
    texts = tuple((text,) for text in TEXTS)
    labels = {
        "classification": np.array([0, 1, 2, 1, 0]),
        "regression": np.array([0.5, -1.0, 2.0, 0.0, 3.5]),
        "token-classification": tuple(tuple(i % 3 for i, _ in enumerate(t.split())) for t in TEXTS),
        "masked-lm": None,
        "causal-lm": None,
        "seq2seq": ("w1 w2", "w3", "w5 w6 w7 w8", "w9 w1", "w2"),
    }[kind]
    if kind == "token-classification":
        texts = tuple(tuple(text.split()) for text in TEXTS)
    return Examples(tuple(f"r{i}" for i in range(n)), texts, labels, pd.DataFrame(index=range(n)))


def objective_of(kind: str) -> Objective:
    labels = None
    if kind in ("classification", "token-classification"):
        labels = LabelMap(
            ((2,), (0,), (1,)), "max", "names"
        )  # the model orders its labels differently
    return Objective(kind, labels)


@pytest.fixture(params=CASES, ids=lambda case: "-".join(case))
def setting(request, tiny_model, word_tokenizer):
    kind, architecture = request.param
    changes = (
        {"num_labels": 1 if kind == "regression" else 3}
        if "lm" not in kind and kind != "seq2seq"
        else {}
    )
    model = tiny_model(kind, architecture, **changes)
    encoded = encode(make_examples(kind), word_tokenizer, kind, max_length=16)
    if architecture != "bert":
        for row in encoded.rows:
            row.pop("token_type_ids")
    return SimpleNamespace(kind=kind, model=model, encoded=encoded, objective=objective_of(kind))


def evaluate(setting, batches):
    """Per-example sums and counts in the order of the examples."""
    n = len(setting.encoded)
    sums, counts = torch.zeros(n, dtype=torch.float64), torch.zeros(n, dtype=torch.float64)
    with torch.no_grad():
        for batch in batches:
            logits = setting.objective.logits(setting.model, batch)
            losses = setting.objective.losses(logits, setting.objective.targets(batch))
            sums[batch.rows] = losses.sums
            counts[batch.rows] = losses.counts
    return sums, counts


def one_by_one(setting):
    rows = setting.encoded.rows
    return evaluate(setting, [collate([row], [i], pad_id=0) for i, row in enumerate(rows)])


def test_padding_changes_nothing(setting):
    rows = setting.encoded.rows
    padded = [collate([row], [i], pad_id=0, length=16) for i, row in enumerate(rows)]
    for got, expected in zip(evaluate(setting, padded), one_by_one(setting), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("budget", [1, 12, 25, 1000])
def test_batch_split_changes_nothing(setting, budget):
    batches = cut_batches(setting.encoded, budget)
    assert sorted(int(r) for b in batches for r in b.rows) == list(range(len(TEXTS)))
    for got, expected in zip(evaluate(setting, batches), one_by_one(setting), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


def test_order_changes_nothing(setting):
    order = [3, 0, 4, 2, 1]
    shuffled = [collate([setting.encoded.rows[i] for i in order], order, pad_id=0)]
    for got, expected in zip(evaluate(setting, shuffled), one_by_one(setting), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


def test_masked_labels_carry_no_loss(setting):
    """Masking positions removes exactly their terms; masking all leaves sums and counts of zero."""
    batch = collate(setting.encoded.rows, range(len(TEXTS)), pad_id=0)
    targets = setting.objective.targets(batch)
    logits = setting.objective.logits(setting.model, batch)
    if setting.kind == "regression":  # no score means "masked": -100 is a number like any other
        losses = setting.objective.losses(logits, torch.full_like(targets, IGNORED))
        torch.testing.assert_close(losses.sums, (logits + 100).square())
        return
    full = setting.objective.position_losses(logits, targets)
    masked = targets.clone().view(-1)
    kept = torch.arange(masked.numel()) % 2 == 0
    masked[~kept] = IGNORED
    masked = masked.view(targets.shape)
    losses = setting.objective.losses(logits, masked)
    valid = (masked != IGNORED).double()
    expected = (full * valid).reshape(len(TEXTS), -1).sum(-1)
    torch.testing.assert_close(losses.sums, expected)
    torch.testing.assert_close(losses.counts, valid.reshape(len(TEXTS), -1).sum(-1))
    nothing = setting.objective.losses(logits, torch.full_like(targets, IGNORED))
    assert not nothing.sums.any() and not nothing.counts.any()
    gradient = setting.objective.output_gradient(logits, masked)
    assert not gradient[masked == IGNORED].any()


def test_loss_is_the_definition(setting):
    """A loop over examples and positions, straight from the table in the docstring."""
    sums, counts = one_by_one(setting)
    for i, row in enumerate(setting.encoded.rows):
        batch = collate([row], [i], pad_id=0)
        with torch.no_grad():
            raw = setting.model(**setting.objective.arguments(setting.model, batch)).logits[0]
        labels = row["labels"]
        if setting.kind == "regression":
            terms = [(float(raw[0]) - labels) ** 2]
        elif setting.kind == "classification":
            terms = [_cross_entropy(raw[[2, 0, 1]], labels)]
        elif setting.kind == "causal-lm":
            terms = [_cross_entropy(raw[t], labels[t + 1]) for t in range(len(labels) - 1)]
        else:
            columns = [2, 0, 1] if setting.kind == "token-classification" else slice(None)
            terms = [
                _cross_entropy(raw[t][columns], y) for t, y in enumerate(labels) if y != IGNORED
            ]
        assert float(sums[i]) == pytest.approx(sum(terms), rel=1e-10)
        assert float(counts[i]) == len(terms) > 0


def _cross_entropy(logits, label):
    z = [float(v) for v in logits]
    return math.log(sum(math.exp(v) for v in z)) - z[label]


@pytest.mark.parametrize("weighting", ["none", "example", "position"])
def test_output_gradient_is_autograd(setting, weighting):
    batch = collate(setting.encoded.rows, range(len(TEXTS)), pad_id=0)
    targets = setting.objective.targets(batch)
    logits = setting.objective.logits(setting.model, batch).detach().requires_grad_()
    generator = torch.Generator().manual_seed(0)
    weights = {
        "none": None,
        "example": torch.rand(len(TEXTS), generator=generator, dtype=torch.float64),
        "position": torch.rand(targets.shape, generator=generator, dtype=torch.float64),
    }[weighting]
    positions = setting.objective.position_losses(logits, targets)
    if weights is None:
        total = positions.sum()
    else:
        total = (
            weights.reshape(*weights.shape, *[1] * (positions.dim() - weights.dim())) * positions
        ).sum()
    (expected,) = torch.autograd.grad(total, logits)
    torch.testing.assert_close(
        setting.objective.output_gradient(logits, targets, weights),
        expected,
        rtol=1e-10,
        atol=1e-12,
    )


def test_label_distribution_has_the_loss_as_its_negative_log(setting):
    batch = collate(setting.encoded.rows, range(len(TEXTS)), pad_id=0)
    targets = setting.objective.targets(batch)
    logits = setting.objective.logits(setting.model, batch)
    distribution = setting.objective.label_distribution(logits)
    positions = setting.objective.position_losses(logits, targets)
    if setting.kind == "regression":
        # up to the constant log sqrt(pi) of a normal with variance 1/2
        expected = positions + 0.5 * math.log(math.pi)
        torch.testing.assert_close(-distribution.log_prob(targets), expected)
        return
    valid = targets != IGNORED
    torch.testing.assert_close(
        -distribution.log_prob(targets.clamp(min=0))[valid], positions[valid]
    )


def test_sampled_targets_follow_the_model_and_skip_masked_positions(setting):
    batch = collate(setting.encoded.rows, range(len(TEXTS)), pad_id=0)
    targets = setting.objective.targets(batch)
    logits = setting.objective.logits(setting.model, batch).detach()
    generator = torch.Generator().manual_seed(0)
    draws = torch.stack(
        [setting.objective.sample_targets(logits, targets, generator) for _ in range(400)]
    )
    if setting.kind == "regression":
        assert float((draws.mean(0) - logits).abs().max()) < 0.15
        assert float((draws.var(0) - 0.5).abs().max()) < 0.15
        return
    assert bool((draws[:, targets == IGNORED] == IGNORED).all())
    probability = logits.softmax(-1)
    valid = targets != IGNORED
    frequency = torch.stack([(draws == c).double().mean(0) for c in range(logits.shape[-1])], -1)
    assert float((frequency - probability)[valid].abs().max()) < 0.12


def test_mean_divides_sums_by_counts_once(setting):
    sums, counts = one_by_one(setting)
    batch = collate(setting.encoded.rows, range(len(TEXTS)), pad_id=0)
    losses = setting.objective.losses(
        setting.objective.logits(setting.model, batch), setting.objective.targets(batch)
    )
    torch.testing.assert_close(losses.mean(), sums.sum() / counts.sum())
    weights = torch.tensor([1.0, 0.0, 2.0, 0.5, 1.0], dtype=torch.float64)
    torch.testing.assert_close(
        losses.mean(weights), (weights * sums).sum() / (weights * counts).sum()
    )


# --- encoding ----------------------------------------------------------------------------------


def test_masks_depend_on_text_and_seed_only(word_tokenizer):
    examples = make_examples("masked-lm")
    first = encode(examples, word_tokenizer, "masked-lm", max_length=16)
    again = encode(examples.take([4, 2, 0]), word_tokenizer, "masked-lm", max_length=16)
    assert again.rows[0] == first.rows[4] and again.rows[2] == first.rows[0]
    other = encode(examples, word_tokenizer, "masked-lm", max_length=16, mask_seed=1)
    assert other.rows != first.rows
    for row, text in zip(first.rows, TEXTS, strict=True):
        hidden = [i for i, label in enumerate(row["labels"]) if label != IGNORED]
        assert len(hidden) == max(1, round(0.15 * len(text.split())))
        assert all(0 < i <= len(text.split()) for i in hidden), "special tokens are never hidden"
        original = word_tokenizer(text)["input_ids"]
        assert all(row["labels"][i] == original[i] for i in hidden)


def test_mask_kinds_are_80_10_10(word_tokenizer):
    n = 600
    draw = np.random.default_rng(0).integers(40, size=(n, 20))
    texts = tuple((" ".join(f"w{word}" for word in row),) for row in draw)
    examples = Examples(tuple(map(str, range(n))), texts, None, pd.DataFrame(index=range(n)))
    encoded = encode(examples, word_tokenizer, "masked-lm", max_length=32, mask_rate=0.5)
    kinds = {"mask": 0, "kept": 0, "random": 0}
    for row in encoded.rows:
        for token, label in zip(row["input_ids"], row["labels"], strict=True):
            if label != IGNORED:
                kinds["mask" if token == 4 else "kept" if token == label else "random"] += 1
    total = sum(kinds.values())
    assert kinds["mask"] / total == pytest.approx(0.8, abs=0.03)
    assert kinds["kept"] / total == pytest.approx(0.1, abs=0.03)


def test_batches_keep_the_token_budget_and_pad_little(word_tokenizer):
    generator = np.random.default_rng(0)
    rows = tuple(
        {"input_ids": [1] * int(k), "labels": 0} for k in generator.integers(3, 30, size=200)
    )
    encoded = Encoded(rows, "classification", 0, 0)
    batches = cut_batches(encoded, 128)
    for batch in batches:
        assert batch.inputs["input_ids"].numel() <= 128
    padded = sum(b.inputs["input_ids"].numel() for b in batches)
    assert padded < 1.1 * encoded.lengths.sum()
    assert len(cut_batches(encoded, 1)) == 200, "a row longer than the budget still gets its batch"


def test_truncation_is_counted(word_tokenizer):
    examples = make_examples("classification")
    assert encode(examples, word_tokenizer, "classification", max_length=16).truncated == 0
    short = encode(examples, word_tokenizer, "classification", max_length=6)
    assert short.truncated == 2  # those with 7 and 5 words and two special tokens
    assert short.lengths.max() == 6


def test_word_labels_sit_on_first_tokens(word_tokenizer):
    encoded = encode(
        make_examples("token-classification"), word_tokenizer, "token-classification", max_length=16
    )
    assert encoded.rows[0]["labels"] == [IGNORED, 0, 1, 2, IGNORED]


def test_longest_input(word_tokenizer, tiny_model):
    config = tiny_model().config
    assert longest_input(word_tokenizer, config, None) == 32
    assert longest_input(word_tokenizer, config, 8) == 8
    with pytest.raises(DataError, match="more than the model can take"):
        longest_input(word_tokenizer, config, 64)
    roberta = SimpleNamespace(model_type="roberta", max_position_embeddings=20)
    assert longest_input(word_tokenizer, roberta, None) == 18


def test_nothing_to_encode(word_tokenizer):
    with pytest.raises(DataError, match="no examples"):
        encode(
            make_examples("classification").take([]), word_tokenizer, "classification", max_length=8
        )


def test_regression_needs_one_output():
    task = SimpleNamespace(kind="regression", name="stsb")
    with pytest.raises(LabelError, match="3 outputs"):
        Objective.of(task, ("a", "b", "c"))


def test_objective_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        objective_of("regression").kind = "classification"
