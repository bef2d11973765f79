"""The objective's contract, for every kind of task, on models with attention, in float64.

Results must not change when padding is added, when the batch split changes, when examples are
reordered, or when labels are masked (-100); and they must be what a loop over the definition gives.
"""

import copy
import dataclasses
import math
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from landform.errors import ConfigError, DataError, LabelError
from landform.tasks.answers import TARGET_LENGTH
from landform.tasks.batching import (
    IGNORED,
    LONGEST,
    Encoded,
    collate,
    cut_batches,
    encode,
    fit_to_model,
    longest_input,
    position_limit,
    set_padding,
)
from landform.tasks.labels import LabelMap
from landform.tasks.objective import Objective
from landform.tasks.task import Examples

KINDS = {
    "classification": ["bert", "gpt2", "gpt2-other-pad", "llama-no-tokenizer-pad"],
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


def llama(**changes):
    """A decoder classifier of another kind than GPT-2, random, in float64."""
    from transformers import LlamaConfig, LlamaForSequenceClassification

    options = dict(
        vocab_size=45, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=32, num_labels=3,
    )  # fmt: skip
    return randomised(LlamaForSequenceClassification(LlamaConfig(**{**options, **changes})))


def randomised(model):
    """Weights large enough that mistakes with padding show, the same in every run."""
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        if "norm" not in name.lower():
            torch.nn.init.normal_(parameter, std=0.3, generator=generator)
    return model.double().eval()


def without_pad(tokenizer, eos="[SEP]"):
    """The tokenizer as decoders have it: an end token and no padding token."""
    other = copy.deepcopy(tokenizer)
    other.pad_token, other.eos_token = None, eos
    return other


@pytest.fixture(params=CASES, ids=lambda case: "-".join(case))
def setting(request, tiny_model, word_tokenizer):
    kind, architecture = request.param
    changes = (
        {"num_labels": 1 if kind == "regression" else 3}
        if "lm" not in kind and kind != "seq2seq"
        else {}
    )
    tokenizer = word_tokenizer
    if architecture == "llama-no-tokenizer-pad":
        # Rows end with the end token, which must not be taken for padding.
        model, tokenizer = llama(pad_token_id=0), without_pad(word_tokenizer)
    elif architecture == "gpt2-other-pad":
        model = tiny_model(kind, "gpt2", **changes, pad_token_id=3)
    else:
        model = tiny_model(kind, architecture, **changes)
    encoded = encode(make_examples(kind), tokenizer, kind, max_length=16)
    encoded = fit_to_model(encoded, model, tokenizer, "here")
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
    pad = setting.encoded.pad_id
    return evaluate(setting, [collate([row], [i], pad_id=pad) for i, row in enumerate(rows)])


def test_padding_changes_nothing(setting):
    rows = setting.encoded.rows
    pad = setting.encoded.pad_id
    padded = [collate([row], [i], pad_id=pad, length=16) for i, row in enumerate(rows)]
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
    rows = [setting.encoded.rows[i] for i in order]
    shuffled = [collate(rows, order, pad_id=setting.encoded.pad_id)]
    for got, expected in zip(evaluate(setting, shuffled), one_by_one(setting), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


def test_masked_labels_carry_no_loss(setting):
    """Masking positions removes exactly their terms; masking all leaves sums and counts of zero."""
    batch = collate(setting.encoded.rows, range(len(TEXTS)), pad_id=setting.encoded.pad_id)
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
        batch = collate([row], [i], pad_id=setting.encoded.pad_id)
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
    batch = collate(setting.encoded.rows, range(len(TEXTS)), pad_id=setting.encoded.pad_id)
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
    batch = collate(setting.encoded.rows, range(len(TEXTS)), pad_id=setting.encoded.pad_id)
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
    batch = collate(setting.encoded.rows, range(len(TEXTS)), pad_id=setting.encoded.pad_id)
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
    batch = collate(setting.encoded.rows, range(len(TEXTS)), pad_id=setting.encoded.pad_id)
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


def test_cut_targets_are_counted(word_tokenizer):
    """Targets have 2, 1, 4, 2, 1 words and two special tokens; a row cut twice counts once."""
    examples = make_examples("seq2seq")
    texts = tuple((" ".join(["w1"] * n),) for n in (1, 1, 1, 9, 1))
    short = dataclasses.replace(examples, texts=texts)
    for length, expected in ((6, {3}), (5, {2, 3}), (4, {2, 3}), (3, {0, 2, 3})):
        encoded = encode(short, word_tokenizer, "seq2seq", max_length=length)
        assert encoded.truncated == len(expected), length
        assert max(len(row["labels"]) for row in encoded.rows) <= length


def test_masks_of_another_seed_hide_other_tokens_of_the_same_text(word_tokenizer, tiny_model):
    encoded = encode(make_examples("masked-lm"), word_tokenizer, "masked-lm", max_length=16)
    model = tiny_model("masked-lm")
    fitted = fit_to_model(encoded, model, word_tokenizer, "here")
    assert fitted.drawn(1, 0) == fitted.rows[1], "the seed that the rows were masked with"
    hidden = set()
    for seed in range(20):
        row = fitted.drawn(1, seed)
        assert row == fitted.drawn(1, seed) and set(row) == set(fitted.rows[1])
        original = word_tokenizer(TEXTS[1])["input_ids"]
        restored = [
            y if y != IGNORED else x
            for x, y in zip(*map(row.get, ("input_ids", "labels")), strict=True)
        ]
        assert restored == original
        hidden.add(tuple(row["labels"]))
    assert len(hidden) > 3
    small = dataclasses.replace(fitted.masking, vocabulary=99)
    again = fit_to_model(dataclasses.replace(fitted, masking=small), model, word_tokenizer, "here")
    assert again.masking.vocabulary == 45, "random tokens are tokens of the model"
    plain = encode(make_examples("causal-lm"), word_tokenizer, "causal-lm", max_length=16)
    assert plain.drawn(0, 5) == plain.rows[0]


def test_word_labels_sit_on_first_tokens(word_tokenizer):
    encoded = encode(
        make_examples("token-classification"), word_tokenizer, "token-classification", max_length=16
    )
    assert encoded.rows[0]["labels"] == [IGNORED, 0, 1, 2, IGNORED]


def test_longest_input(word_tokenizer, tiny_model):
    model = tiny_model()
    assert longest_input(word_tokenizer, model, None) == 32
    assert longest_input(word_tokenizer, model, 8) == 8
    with pytest.raises(DataError, match="more than the model can take"):
        longest_input(word_tokenizer, model, 64)


FAMILIES = {
    "Roberta": 20 - 2,
    "RobertaPreLayerNorm": 20 - 2,
    "XLMRoberta": 20 - 2,
    "Camembert": 20 - 2,
    "Data2VecText": 20 - 2,
    "MPNet": 20 - 2,
    "Bart": 20,  # its table has the two extra rows on top of what the config says
    "Bert": 20,
}


def family_model(family, **changes):
    import transformers

    if family == "Bart":
        sizes = dict(d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
                     decoder_attention_heads=2, encoder_ffn_dim=24, decoder_ffn_dim=24,
                     eos_token_id=3)  # fmt: skip
    else:
        sizes = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
                     intermediate_size=24)  # fmt: skip
    options = {"vocab_size": 45, "pad_token_id": 1, "max_position_embeddings": 20, "num_labels": 3}
    config = getattr(transformers, f"{family}Config")(**{**options, **sizes, **changes})
    return randomised(getattr(transformers, f"{family}ForSequenceClassification")(config))


@pytest.mark.parametrize("family", FAMILIES)
def test_long_texts_are_cut_where_the_position_table_ends(word_tokenizer, family):
    """At the limit the model runs, one token further it does not: the limit is exact."""
    model = family_model(family)
    texts = ((" ".join(["w1"] * 30),), ("w2 w3",))
    examples = Examples(("a", "b"), texts, np.array([0, 1]), pd.DataFrame(index=range(2)))
    length = longest_input(word_tokenizer, model, None)
    assert length == FAMILIES[family]
    encoded = encode(examples, word_tokenizer, "classification", max_length=length)
    encoded = fit_to_model(encoded, model, word_tokenizer, "here")
    assert encoded.truncated == 1 and encoded.pad_id == 1
    objective = Objective("classification")
    (batch,) = cut_batches(encoded, 1000)
    assert torch.isfinite(objective.logits(model, batch)).all()
    rows = [{**encoded.rows[0], "input_ids": [2] + [7] * (length - 1) + [3]}]
    rows[0].pop("token_type_ids", None)
    with pytest.raises((IndexError, RuntimeError)):
        model(**collate(rows, [0], pad_id=1).inputs)


# --- what models take --------------------------------------------------------------------------


def test_one_padding_id_for_model_and_batches(word_tokenizer):
    """The model's own, else the tokenizer's, else its end token, else 0; never one out of range."""
    none = without_pad(word_tokenizer)
    nothing = copy.deepcopy(none)
    nothing.eos_token = None
    outside = copy.deepcopy(none)
    outside.add_special_tokens({"pad_token": "<pad>"})
    assert outside.pad_token_id == 45
    for own, tokenizer, expected in (
        (7, word_tokenizer, 7),
        (7, none, 7),
        (None, word_tokenizer, 0),
        (None, none, 3),
        (None, nothing, 0),
        (-1, none, 3),
        (None, outside, 3),
    ):
        model = llama()
        model.config.pad_token_id = own
        assert set_padding(model, tokenizer) == expected == model.config.pad_token_id
        encoded = encode(make_examples("classification"), tokenizer, "classification", max_length=9)
        assert fit_to_model(encoded, model, tokenizer, "here").pad_id == expected


def pair_examples():
    texts = (("w1 w2", "w3"), ("w4", "w5 w6 w7"))
    return Examples(("a", "b"), texts, np.array([0, 1]), pd.DataFrame(index=range(2)))


@pytest.mark.parametrize(
    ("family", "segments", "kept"),
    [("Bert", 2, True), ("Bert", 1, False), ("Roberta", 1, False), ("Roberta", 2, True)],
)
def test_segments_are_kept_where_the_model_has_all_of_them(word_tokenizer, family, segments, kept):
    model = family_model(family, type_vocab_size=segments)
    encoded = encode(pair_examples(), word_tokenizer, "classification", max_length=16)
    encoded = fit_to_model(encoded, model, word_tokenizer, "here")
    (batch,) = cut_batches(encoded, 1000)
    assert ("token_type_ids" in batch.inputs) == kept
    assert torch.isfinite(Objective("classification").logits(model, batch)).all()


def test_decoders_see_words_and_nothing_else(word_tokenizer, tiny_model):
    """GPT-2 would add the embeddings of tokens 0 and 1 for the segments of a pair."""
    for model in (tiny_model("classification", "gpt2"), llama(pad_token_id=0)):
        encoded = encode(pair_examples(), word_tokenizer, "classification", max_length=16)
        assert "token_type_ids" in encoded.rows[0]
        encoded = fit_to_model(encoded, model, word_tokenizer, "here")
        assert set(encoded.rows[0]) == {"input_ids", "labels"}
        expected = [model(torch.tensor([row["input_ids"]])).logits[0] for row in encoded.rows]
        (batch,) = cut_batches(encoded, 1000)
        torch.testing.assert_close(
            Objective("classification").logits(model, batch), torch.stack(expected)[batch.rows]
        )


def test_inputs_that_the_model_does_not_name_are_dropped(word_tokenizer, tiny_model):
    rows = ({"input_ids": [2, 3], "offsets": [0, 1], "labels": 0},)
    encoded = Encoded(rows, "classification", 0, 0)
    fitted = fit_to_model(encoded, tiny_model(), word_tokenizer, "here")
    assert fitted.rows == ({"input_ids": [2, 3], "labels": 0},)


def test_a_token_outside_the_vocabulary_is_named(word_tokenizer, tiny_model):
    encoded = encode(pair_examples(), word_tokenizer, "classification", max_length=16)
    with pytest.raises(DataError, match="here: token id 12 is outside the model's vocabulary of 9"):
        fit_to_model(encoded, tiny_model(vocab_size=9), word_tokenizer, "here")


@pytest.mark.parametrize("where", ["hidden", "second"])
def test_a_target_outside_the_vocabulary_is_named(word_tokenizer, tiny_model, where):
    """Where a mask stands for it, or a second reference holds it, the inputs do not show it."""
    row = {"input_ids": [2, 3], "labels": [IGNORED, 12 if where == "hidden" else 5]}
    answers = None if where == "hidden" else (((5,), (12, 5)),)
    kind = "masked-lm" if where == "hidden" else "seq2seq"
    encoded = Encoded((row,), kind, 0, 0, answers=answers)
    with pytest.raises(DataError, match="token id 12 is outside"):
        fit_to_model(encoded, tiny_model(vocab_size=9), word_tokenizer, "here")


@pytest.mark.parametrize("asked", [None, LONGEST, LONGEST + 1])
def test_a_model_without_positions_has_a_longest_target(asked):
    """T5 counts no positions: a million new tokens were generated one by one."""
    model = SimpleNamespace(config=SimpleNamespace(), named_modules=lambda: ())
    if asked == LONGEST + 1:
        with pytest.raises(DataError, match="max_new_tokens 65537 is more than the model can take"):
            position_limit(model, asked, "max_new_tokens")
    else:
        assert position_limit(model, asked, "max_new_tokens") == (asked or TARGET_LENGTH)


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


def test_margins_are_the_log_odds_of_the_gold_label() -> None:
    logits = torch.tensor([[2.0, 0.5, -1.0], [0.0, 3.0, 1.0]], dtype=torch.float64)
    targets = torch.tensor([0, 2])
    probability = logits.softmax(-1)[torch.arange(2), targets]
    odds = (probability / (1 - probability)).log()
    assert torch.allclose(Objective("classification").margins(logits, targets), odds)
    tokens = Objective("token-classification").margins(
        logits.expand(1, 2, 3), torch.tensor([[0, IGNORED]])
    )
    assert torch.allclose(tokens, odds[:1])
    with pytest.raises(ConfigError, match="margin"):
        Objective("regression").margins(logits[:, 0], targets)
