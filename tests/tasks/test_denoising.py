"""Losses without labels: what is hidden, what is asked for, and that nothing else decides it."""

from __future__ import annotations

import copy
import random
from collections import Counter
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import landform as lf
from landform.errors import CheckpointError, ConfigError, DataError
from landform.evaluation.evaluate import EvaluateConfig
from landform.evaluation.points import Data, PointsWork
from landform.tasks.batching import IGNORED, encode
from landform.tasks.corruption import Noise, sentinels_of
from landform.weights.checkpoint import resolve
from span_models import WORDS, save_llama, save_t5, sentinel_tokenizer

EOS, FIRST = 1, 3
"""ids of </s> and of <extra_id_0>"""


def texts(n: int = 12, seed: int = 0, most: int = 20) -> list[str]:
    draw = random.Random(seed)
    return [" ".join(draw.choices(WORDS, k=draw.randint(1, most))) for _ in range(n)]


def task_of(rows: list[str], kind: str = "denoising", **options: Any) -> lf.Task:
    return lf.load_task([{"text": row} for row in rows], text="text", kind=kind, **options)


def encoded(rows: list[str], seed: int = 0, **options: Any) -> Any:
    examples = task_of(rows, **options).examples("validation")
    return encode(examples, sentinel_tokenizer(), "seq2seq", max_length=64, mask_seed=seed)


def restored(row: dict[str, list[int]], sentinels: set[int]) -> list[int]:
    """The text of an input and its target: every sentinel stands for what follows it there."""
    hidden: dict[int, list[int]] = {}
    at = -1
    for token in row["labels"][:-1]:
        if token in sentinels:
            at = token
            assert at not in hidden, "a sentinel occurs twice in a target"
            hidden[at] = []
        else:
            hidden[at].append(token)
    whole: list[int] = []
    for token in row["input_ids"]:
        whole += hidden.pop(token) if token in sentinels else [token]
    assert all(not rest for rest in hidden.values()), "the target holds what is hidden nowhere"
    return whole


@pytest.mark.parametrize("variant", ["spans", "guided-dropout"])
def test_input_and_target_give_back_the_text(variant: str) -> None:
    rows, tokenizer = texts(40), sentinel_tokenizer()
    sentinels = set(sentinels_of(tokenizer))
    made = encoded(rows, denoising=variant)
    whole = tokenizer(rows)["input_ids"]
    for row, ids in zip(made.rows, whole, strict=True):
        assert set(row) == {"input_ids", "labels"}
        assert restored(row, sentinels) == ids
        assert row["input_ids"][-1] == row["labels"][-1] == EOS
        # Sentinels in their own order; the target of spans ends with one more than the input has.
        used = [token for token in row["input_ids"] if token in sentinels]
        final = [FIRST + len(used)] if variant == "spans" else []
        assert used == list(range(FIRST, FIRST + len(used)))
        assert [token for token in row["labels"] if token in sentinels] == [*used, *final]


def test_the_example_of_the_paper() -> None:
    """Figure 2 of Raffel et al. 2020: the same two spans, written as there."""

    class Fixed(Noise):
        def spans(self, length: int, generator: random.Random) -> list[tuple[int, int]]:
            return [(2, 4), (8, 9)]

    rows = [" ".join(WORDS[:10])]
    examples = task_of(rows).examples("validation")
    object.__setattr__(examples, "noise", Fixed(0.15, 3.0, "spans"))
    row = encode(examples, sentinel_tokenizer(), "seq2seq", max_length=64).rows[0]
    words = sentinel_tokenizer().convert_ids_to_tokens
    given = "w0 w1 <extra_id_0> w4 w5 w6 w7 <extra_id_1> w9 </s>"
    assert words(row["input_ids"]) == given.split()
    target = "<extra_id_0> w2 w3 <extra_id_1> w8 <extra_id_2> </s>"
    assert words(row["labels"]) == target.split()


@given(
    length=st.integers(1, 300),
    rate=st.floats(0.01, 0.95),
    span=st.floats(1, 12),
    seed=st.integers(0, 2**32),
)
def test_spans_have_the_density_and_do_not_touch(
    length: int, rate: float, span: float, seed: int
) -> None:
    noise = Noise(rate, span, "spans")
    spans = noise.spans(length, random.Random(seed))
    hidden = sum(stop - start for start, stop in spans)
    assert hidden == max(min(round(rate * length), length - 1), 1)
    assert (
        len(spans)
        == noise.count(length)
        == min(max(round(hidden / span), 1), hidden, length - hidden + 1)
    )
    assert spans[0][0] >= 0 and spans[-1][1] <= length
    assert all(start < stop for start, stop in spans)
    assert all(a[1] < b[0] for a, b in pairwise(spans))


@pytest.mark.parametrize(("length", "rate", "span"), [(6, 0.5, 1.5), (7, 0.3, 2.0), (5, 0.4, 1.0)])
def test_every_choice_of_spans_is_equally_likely(length: int, rate: float, span: float) -> None:
    noise = Noise(rate, span, "spans")
    hidden, count = round(rate * length), noise.count(length)
    possible = set()
    for places in combinations(range(length), hidden):
        runs = 1 + sum(b - a > 1 for a, b in pairwise(places))
        if runs == count:
            possible.add(places)
    draw, n = random.Random(0), 300 * len(possible)
    found = Counter(
        tuple(i for start, stop in noise.spans(length, draw) for i in range(start, stop))
        for _ in range(n)
    )
    assert set(found) == possible
    expected = n / len(possible)
    chi_square = sum((found[places] - expected) ** 2 / expected for places in possible)
    assert chi_square < len(possible) + 4 * (2 * len(possible)) ** 0.5


def test_single_tokens_of_the_original_are_a_plain_sample() -> None:
    noise = Noise(0.4, 3.0, "guided-dropout")
    draw = random.Random(0)
    found = Counter(tuple(noise.spans(5, draw)) for _ in range(3000))
    possible = {tuple((i, i + 1) for i in pair) for pair in combinations(range(5), 2)}
    assert set(found) == possible
    assert all(abs(count - 300) < 90 for count in found.values())


def test_the_draw_depends_on_seed_and_tokens_alone() -> None:
    rows = texts(30, seed=3)
    first, same, other = encoded(rows), encoded(rows), encoded(rows, seed=1)
    assert first.rows == same.rows and first.rows != other.rows
    backwards = encoded(rows[::-1])
    assert backwards.rows == first.rows[::-1]
    assert encoded(rows[4:5]).rows[0] == first.rows[4]
    assert [first.drawn(i, 0) for i in range(30)] == list(first.rows)


def test_every_epoch_draws_anew_and_keeps_the_lengths() -> None:
    rows = texts(30, seed=5)
    made, whole = encoded(rows), sentinel_tokenizer()(rows)["input_ids"]
    sentinels = set(sentinels_of(sentinel_tokenizer()))
    epochs = [[made.drawn(i, f"0 {epoch}") for i in range(30)] for epoch in range(3)]
    assert epochs[0] != epochs[1] != epochs[2]
    for drawn in epochs:
        for row, ids, fixed in zip(drawn, whole, made.rows, strict=True):
            assert restored(row, sentinels) == ids
            assert len(row["input_ids"]) == len(fixed["input_ids"])
            assert len(row["labels"]) == len(fixed["labels"])


def test_density_of_a_corpus() -> None:
    rows = [" ".join(random.Random(i).choices(WORDS, k=50)) for i in range(40)]
    made = encoded(rows)
    spans = round(round(0.15 * 50) / 3)
    for row in made.rows:
        assert len(row["input_ids"]) == 50 - 8 + spans + 1
        assert len(row["labels"]) == 8 + spans + 2
    dense = encoded(rows, noise_density=0.5, mean_span=5)
    assert {len(row["input_ids"]) for row in dense.rows} == {25 + 5 + 1}


# --- what is refused ------------------------------------------------------------------------------


def test_a_tokenizer_without_sentinels(word_tokenizer: Any) -> None:
    examples = task_of(["w1 w2"]).examples("validation")
    with pytest.raises(DataError, match="no sentinels") as caught:
        encode(examples, word_tokenizer, "seq2seq", max_length=32)
    assert "masked-lm" in (caught.value.remedy or "")


def test_more_spans_than_sentinels_names_the_text() -> None:
    rows = ["w1 w2", " ".join(WORDS)]
    examples = task_of(rows, noise_density=0.5, mean_span=1).examples("validation")
    with pytest.raises(DataError, match=r"validation-1: 40 tokens .* need 21 .* has 20") as caught:
        encode(examples, sentinel_tokenizer(), "seq2seq", max_length=64)
    assert "mean_span" in (caught.value.remedy or "")
    encode(examples, sentinel_tokenizer(21), "seq2seq", max_length=64)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"kind": "masked-lm", "mean_span": 2}, "mean_span goes with kind='denoising'"),
        ({"kind": "denoising", "mask_rate": 0.3}, "mask_rate goes with kind='masked-lm'"),
        ({"kind": "denoising", "noise_density": 1.0}, "noise_density"),
        ({"kind": "denoising", "mean_span": 0.5}, "mean_span"),
        ({"kind": "masked-lm", "mask_rate": 0.0}, "mask_rate"),
        ({"kind": "denoising", "label": "text2"}, "has no labels"),
        ({"kind": "denoising", "text": ("text", "text2")}, "one text per row"),
    ],
    ids=["span-of-mlm", "rate-of-t5", "density-1", "span-below-1", "rate-0", "label", "pair"],
)
def test_options_that_do_not_agree(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        lf.load_task([{"text": "a", "text2": "b"}], **{"text": "text", **options})


def test_metrics_of_generated_text_do_not_fit(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="exact_match"):
        lf.evaluate(save_t5(tmp_path / "t5"), task_of(["w1 w2 w3"], metrics="exact_match"))


# --- the loss ------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", ["spans", "guided-dropout"])
def test_evaluate_is_the_loss_of_the_model_itself(tmp_path: Path, variant: str) -> None:
    import transformers as hf

    rows, path = texts(10, seed=2), save_t5(tmp_path / "t5")
    found = lf.evaluate(path, task_of(rows, denoising=variant), dtype="float64", seed=3)
    model = hf.T5ForConditionalGeneration.from_pretrained(path).double().eval()
    losses, tokens = [], []
    for row in encoded(rows, seed=3, denoising=variant).rows:
        ids, labels = (torch.tensor([row[name]]) for name in ("input_ids", "labels"))
        with torch.no_grad():
            losses.append(float(model(input_ids=ids, labels=labels).loss))
        tokens.append(labels.shape[1])
    np.testing.assert_allclose(found.log["loss"], losses, rtol=1e-10)
    np.testing.assert_array_equal(found.log["tokens"], tokens)
    assert found.metrics["loss"] == pytest.approx(np.average(losses, weights=tokens), rel=1e-10)
    assert "label" not in found.log or not found.log["label"].any()


ARCHITECTURES = ("bert", "gpt2", "llama", "t5")
KIND_OF = {"bert": "masked-lm", "gpt2": "causal-lm", "llama": "causal-lm", "t5": "denoising"}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: Any, save_checkpoint: Any, word_tokenizer: Any) -> Any:
    root = tmp_path_factory.mktemp("models")
    without_pad = copy.deepcopy(word_tokenizer)
    without_pad.pad_token, without_pad.eos_token = None, "[SEP]"
    save_checkpoint(root / "bert", kind="masked-lm")
    save_checkpoint(root / "gpt2", kind="causal-lm", architecture="gpt2", pad_token_id=None)
    without_pad.save_pretrained(root / "gpt2")
    save_t5(root / "t5")
    save_llama(root / "llama", without_pad)
    return root


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_padding_batches_and_order_change_nothing(checkpoints: Path, architecture: str) -> None:
    rows, kind = texts(9, seed=1), KIND_OF[architecture]
    data = [{"text": row, "n": str(i)} for i, row in enumerate(rows)]
    options: dict[str, Any] = {"text": "text", "id": "n", "kind": kind}
    task = lf.load_task(data, **options)
    moved = lf.load_task(data, **options, shuffle_seed=4)
    assert moved.examples("validation").ids != task.examples("validation").ids
    place = checkpoints / architecture
    alone = lf.evaluate(place, task, dtype="float64", token_budget=1)
    expected = alone.log.set_index("text_id")
    for other, budget in ((task, 45), (task, 4096), (moved, 64)):
        found = lf.evaluate(place, other, dtype="float64", token_budget=budget)
        log = found.log.set_index("text_id").loc[expected.index]
        np.testing.assert_allclose(log["loss"], expected["loss"], rtol=0, atol=1e-10)
        np.testing.assert_array_equal(log["tokens"], expected["tokens"])
        assert found.metrics["loss"] == pytest.approx(alone.metrics["loss"], abs=1e-10)


@pytest.mark.parametrize("architecture", ["bert", "t5"])
def test_a_text_without_tokens_adds_nothing(checkpoints: Path, architecture: str) -> None:
    rows, kind = texts(5, seed=1), KIND_OF[architecture]
    place = checkpoints / architecture
    plain = lf.evaluate(place, task_of(rows, kind), dtype="float64")
    more = lf.evaluate(place, task_of([*rows, ""], kind, empty_text=True), dtype="float64")
    assert more.log["tokens"].tolist()[-1] == 0
    assert more.metrics["loss"] == pytest.approx(plain.metrics["loss"], abs=1e-12)


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_decoders_are_asked_for_the_real_end_token(checkpoints: Path, architecture: str) -> None:
    """Padded with the end token, whose real occurrences keep their loss."""
    rows = ["w1 w2", " ".join(WORDS[:9]), "w3 [SEP] w4"]
    log = lf.evaluate(checkpoints / architecture, task_of(rows, "causal-lm"), dtype="float64").log
    # [CLS] words [SEP]: every token but the first is predicted, the end token too.
    assert log["tokens"].tolist() == [3, 10, 4]
    alone = [
        lf.evaluate(checkpoints / architecture, task_of([row], "causal-lm"), dtype="float64")
        for row in rows
    ]
    np.testing.assert_allclose(log["loss"], [found.metrics["loss"] for found in alone], atol=1e-10)


def test_the_seed_of_the_evaluation_chooses_what_is_hidden(checkpoints: Path) -> None:
    task = task_of(texts(6, seed=1))
    found = [lf.evaluate(checkpoints / "t5", task, seed=seed).metrics["loss"] for seed in (0, 0, 1)]
    assert found[0] == found[1] != found[2]


def test_kept_evaluations_know_seed_and_noise(checkpoints: Path, tmp_path: Path) -> None:
    """A study never gives the answer to another corruption of the same texts."""
    rows, store = texts(6, seed=1), tmp_path / "study"
    cases = [{}, {"noise_density": 0.3}, {"mean_span": 1.0}, {"denoising": "guided-dropout"}]
    found = [
        lf.evaluate(checkpoints / "t5", task_of(rows, **case), store=store, seed=seed).metrics[
            "loss"
        ]
        for case in cases
        for seed in (0, 1)
    ]
    assert len(set(found)) == len(found)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_masked_labels_carry_no_loss(checkpoints: Path, architecture: str) -> None:
    """Without the labels at every second position exactly their terms are gone."""
    task = task_of(texts(6, seed=1), KIND_OF[architecture])
    config = EvaluateConfig(dtype="float64", token_budget=64)
    work = PointsWork((resolve(checkpoints / architecture),), (Data(task, "validation"),), config)
    worker = work()
    data, model = worker.evaluator.data[0], worker.bound.model
    for batch in data.batches:
        with torch.no_grad():
            logits, targets = data.objective.logits(model, batch), data.objective.targets(batch)
        every = data.objective.position_losses(logits, targets)
        kept = torch.arange(targets.numel()).view(targets.shape) % 2 == 0
        found = data.objective.losses(logits, targets.masked_fill(~kept, IGNORED))
        torch.testing.assert_close(found.sums, (every * kept).sum(-1))
        torch.testing.assert_close(
            found.counts, (kept & (targets != IGNORED)).sum(-1).to(found.counts)
        )


def test_an_encoder_is_no_causal_model(tmp_path: Path, save_checkpoint: Any) -> None:
    """BERT loads as a causal model and sees the token that it is asked for."""
    place = save_checkpoint(tmp_path / "bert", kind="masked-lm")
    with pytest.raises(CheckpointError, match="no causal language model") as caught:
        lf.evaluate(place, task_of(texts(4), "causal-lm"))
    assert "masked-lm" in (caught.value.remedy or "")


# --- masked language modelling ------------------------------------------------------------------


def test_mask_rate(word_tokenizer: Any) -> None:
    rows = [" ".join(random.Random(i).choices(WORDS, k=20)) for i in range(30)]
    usual, dense = (task_of(rows, "masked-lm", mask_rate=rate) for rate in (0.15, 0.4))
    for task, hidden in ((usual, 3), (dense, 8)):
        made = encode(task.examples("validation"), word_tokenizer, "masked-lm", max_length=32)
        counts = {sum(label != IGNORED for label in row["labels"]) for row in made.rows}
        assert counts == {hidden}
    # The usual rate is what was always hidden: results made before stay those of the same data.
    assert usual.noise is None
    assert usual.fingerprint("validation") == task_of(rows, "masked-lm").fingerprint("validation")
    assert usual.fingerprint("validation") != dense.fingerprint("validation")


def test_texts_longer_than_the_model(checkpoints: Path) -> None:
    long = task_of([" ".join(WORDS), "w1 w2"], "masked-lm")
    with pytest.raises(DataError, match=r"max_length 64 is more than the model can take \(32"):
        lf.evaluate(checkpoints / "bert", long, max_length=64)
    with pytest.warns(UserWarning, match="1 of 2 examples are longer than 32 tokens and were cut"):
        lf.evaluate(checkpoints / "bert", long)
    with pytest.warns(UserWarning, match="1 of 2 examples are longer than 16 tokens"):
        found = lf.evaluate(checkpoints / "t5", task_of([" ".join(WORDS), "w1 w2"]), max_length=16)
    # 15 tokens of text and </s>; 2 of the 15 are hidden in one span.
    assert found.log["tokens"].tolist()[0] == 2 + 1 + 2


def test_a_short_training_on_denoising(checkpoints: Path, tmp_path: Path) -> None:
    rows = [{"text": text} for text in texts(16, seed=8)]
    task = lf.load_task({"train": rows, "validation": rows[:4]}, text="text", kind="denoising")
    found = lf.train(
        checkpoints / "t5", task, out=tmp_path / "runs", epochs=2, batch_size=8, learning_rate=1e-3
    )
    assert np.isfinite(found.runs["train_loss"]).all()
