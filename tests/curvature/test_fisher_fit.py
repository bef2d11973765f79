"""The Fisher diagonal against its definition, in float64, on every family of models."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import spearmanr

import landform as lf
from fisher_brute import Brute, brute_fisher
from landform.curvature import squares
from landform.curvature.fisher import ALONE, Fisher
from landform.curvature.fisher_fit import FisherStudy, _Run
from landform.curvature.fisher_pass import FisherPass, _Asked
from landform.curvature.moments import DIVISIONS
from landform.curvature.parts import Norm
from landform.curvature.squares import Tokens, add_tokens
from landform.errors import ConfigError, DataError, NonFiniteError, StoreError
from landform.store.study import open_store
from landform.tasks.batching import IGNORED, cut_batches
from landform.weights.checkpoint import load_model, load_tokenizer, resolve
from landform.weights.tuning import TuningConfig, save_model, tune
from small_cases import small_case, small_task
from tuned import family

# name -> (kind of task, changes of the config)
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "bert-classifier": ("classification", {}),
    "bert-masked": ("masked-lm", {}),
    "roberta-masked": ("masked-lm", {}),
    "distilbert": ("classification", {}),
    "distilbert-masked": ("masked-lm", {}),
    "electra": ("classification", {}),
    "albert": ("classification", {}),
    "deberta": ("classification", {}),
    "gpt2": ("causal-lm", {}),
    "gpt2-classifier": ("classification", {}),
    "llama": ("causal-lm", {}),
    "llama-tied": ("causal-lm", {"tie_word_embeddings": True}),
    "opt": ("causal-lm", {}),
    "t5": ("seq2seq", {}),
    "t5-gated": ("seq2seq", {}),
    "bart": ("seq2seq", {}),
}
# What these look up once for the whole batch, behind their modules' backs.
TAKEN_ALONE = {"deberta": ("rel_embeddings", "pos_key_proj", "pos_query_proj")}
CLASSES = {
    "bert-masked": ("bert", "BertForMaskedLM"),
    "roberta-masked": ("roberta", "RobertaForMaskedLM"),
    "distilbert-masked": ("distilbert", "DistilBertForMaskedLM"),
    "bert-classifier": ("bert", None),
    "llama-tied": ("llama", None),
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: Any, word_tokenizer: Any) -> Any:
    """Factory: `saved(name)` -> (directory, task), made once."""
    folder = tmp_path_factory.mktemp("models")
    made: dict[str, tuple[Path, Any]] = {}

    def make(name: str) -> tuple[Path, Any]:
        if name not in made:
            kind, options = MODELS[name]
            task = small_task(kind) if kind != "masked-lm" else long_texts()
            made[name] = _save(folder / name, name, kind, options, word_tokenizer), task
        return made[name]

    return make


def long_texts() -> Any:
    """Texts of which several tokens are masked."""
    import pandas as pd

    generator = np.random.default_rng(2)
    texts = [
        " ".join(f"w{word}" for word in generator.integers(0, 40, size))
        for size in (3, 26, 14, 8, 20, 11, 17, 24, 5)
    ]
    texts[3] += " unknown w1"  # RoBERTa's padding here: rows that are never trained
    return lf.load_task({"train": pd.DataFrame({"text": texts})}, text="text", kind="masked-lm")


def _save(place: Path, name: str, kind: str, options: dict[str, Any], tokenizer: Any) -> Path:
    import transformers as hf

    base, class_name = CLASSES.get(name, (name, None))
    if kind == "classification":
        options = options | {"id2label": {0: "a", 1: "b", 2: "c"}}
        options |= {"label2id": {"a": 0, "b": 1, "c": 2}}
    model = family(base, seed=3, **options)
    if class_name is not None:
        with torch.random.fork_rng():
            torch.manual_seed(3)
            model = getattr(hf, class_name)(model.config)
            for parameter in model.parameters():
                if parameter.dim() > 1:
                    torch.nn.init.normal_(parameter, std=0.3)
    with torch.no_grad():  # norms and biases that are not ones and zeros
        generator = torch.Generator().manual_seed(1)
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator).to(parameter)
    model.save_pretrained(place)
    tokenizer.save_pretrained(place)
    return place


def _switch() -> Any:
    """A mixture of experts, of which a token takes one."""
    import transformers as hf

    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2}
    config = hf.SwitchTransformersConfig(
        vocab_size=45, pad_token_id=0, decoder_start_token_id=0, eos_token_id=3, num_experts=8,
        num_sparse_encoder_layers=1, num_sparse_decoder_layers=1, **sizes,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = hf.SwitchTransformersForConditionalGeneration(config)
        for parameter in model.parameters():
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


def assert_same(found: Fisher, brute: Brute, tolerance: float = 1e-10) -> None:
    """Diagonal, sums by tensor, traces and covariance are those of the definition."""
    assert list(found.diagonal) == brute.names
    scale = max(float(value.max()) for value in brute.diagonal.values())
    for name, expected in brute.diagonal.items():
        assert found.diagonal[name].shape == expected.shape
        torch.testing.assert_close(
            found.diagonal[name], expected, rtol=tolerance, atol=tolerance * scale, msg=name
        )
    summary, sums, n = found.summary, brute.sums.numpy(), len(brute.sums)
    np.testing.assert_allclose(
        summary.tensors.total, sums.sum(0) / brute.terms, rtol=1e-9, atol=1e-12 * scale
    )
    np.testing.assert_allclose(summary.traces.trace, sums.sum(1), rtol=1e-9)
    assert summary.traces.tokens.tolist() == brute.tokens
    assert (summary.examples, summary.terms) == (n, brute.terms)
    terms = np.array(brute.tokens) if summary.reduction == "token" else np.ones(n)
    rest = sums - np.outer(terms, sums.sum(0) / brute.terms)
    covariance = n / (n - 1) * rest.T @ rest / brute.terms**2
    np.testing.assert_allclose(
        summary.covariance.to_numpy(), covariance, rtol=1e-7, atol=1e-10 * covariance.max()
    )


@pytest.mark.parametrize("name", list(MODELS))
def test_every_family_is_the_one_example_loop(saved: Any, name: str) -> None:
    path, task = saved(name)
    found = lf.fisher(path, task, dtype="float64", token_budget=40, chunk_rows=4)
    assert_same(found, brute_fisher(path, task))
    for row in found.summary.tensors.itertuples():
        expected = any(word in row.name for word in TAKEN_ALONE.get(name, ()))
        assert (row.way == ALONE) == expected, row.name


# --- what is squared ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["bert-masked", "gpt2", "t5", "bert-classifier"])
@pytest.mark.parametrize("reduction", ["sum", "token"])
def test_reductions(saved: Any, name: str, reduction: str) -> None:
    path, task = saved(name)
    found = lf.fisher(path, task, dtype="float64", reduction=reduction, token_budget=64)
    assert_same(found, brute_fisher(path, task, reduction=reduction))


@pytest.mark.parametrize("kind", ["token-classification", "regression"])
def test_other_kinds_of_tasks(tmp_path: Path, save_checkpoint: Any, kind: str) -> None:
    path, task = small_case(kind, "bert", tmp_path / "model", save_checkpoint)
    assert_same(lf.fisher(path, task, dtype="float64"), brute_fisher(path, task))


@pytest.mark.parametrize("kind", ["classification", "regression"])
def test_the_true_fisher_is_the_sum_over_labels(
    tmp_path: Path, save_checkpoint: Any, kind: str
) -> None:
    path, task = small_case(kind, "bert", tmp_path / "model", save_checkpoint)
    found = lf.fisher(path, task, dtype="float64", estimator="true", token_budget=40)
    assert found.summary.estimator == "true (exact)"
    assert_same(found, brute_fisher(path, task, true=True))


def test_sampled_labels_belong_to_the_example(saved: Any) -> None:
    path, task = saved("bert-masked")
    runs = [
        lf.fisher(path, task, dtype="float64", estimator="sampled", seed=seed, token_budget=budget)
        for seed, budget in ((5, 30), (5, 1), (6, 30))
    ]
    assert_close(runs[0], runs[1])
    assert runs[0].summary.trace != pytest.approx(runs[2].summary.trace, rel=1e-3)
    true = lf.fisher(path, task, dtype="float64", estimator="true", seed=5)
    assert true.summary.estimator == "true (sampled)"
    assert_close(true, runs[0])


def test_sampled_labels_have_the_true_fisher_as_their_mean(saved: Any) -> None:
    path, task = saved("bert-classifier")
    exact = lf.fisher(path, task, dtype="float64", estimator="true").summary
    drawn = [
        lf.fisher(path, task, dtype="float64", estimator="sampled", seed=seed).summary.trace
        for seed in range(12)
    ]
    error = np.std(drawn, ddof=1) / len(drawn) ** 0.5
    assert abs(np.mean(drawn) - exact.trace) < 4 * error


def assert_close(a: Fisher, b: Fisher, tolerance: float = 1e-9) -> None:
    scale = max(float(value.max()) for value in a.diagonal.values())
    for name, value in a.diagonal.items():
        torch.testing.assert_close(
            value, b.diagonal[name], rtol=tolerance, atol=tolerance * scale, msg=name
        )


# --- nothing but the examples decides -------------------------------------------------------------


@pytest.mark.parametrize("name", ["bert-classifier", "bert-masked", "gpt2", "t5"])
def test_padding_and_batches_do_not_matter(saved: Any, name: str) -> None:
    path, task = saved(name)
    alone = lf.fisher(path, task, dtype="float64", token_budget=1)
    for options in ({"token_budget": 4096}, {"token_budget": 50, "chunk_rows": 5}):
        assert_close(alone, lf.fisher(path, task, dtype="float64", **options))


def test_the_order_of_examples_does_not_matter(saved: Any) -> None:
    import pandas as pd

    path, task = saved("bert-classifier")
    rows = task.examples("train")
    table = pd.DataFrame({"text": [t[0] for t in rows.texts], "label": list(rows.labels)})
    options = {"text": "text", "label": "label", "label_names": ("a", "b", "c")}
    back = lf.load_task({"train": table[::-1].reset_index(drop=True)}, **options)
    forth = lf.load_task({"train": table}, **options)
    runs = [lf.fisher(path, t, dtype="float64", chunk_rows=4) for t in (forth, back)]
    assert_close(*runs)
    np.testing.assert_allclose(
        runs[0].summary.covariance, runs[1].summary.covariance, rtol=1e-6, atol=1e-12
    )


def test_masked_labels_carry_nothing(saved: Any) -> None:
    """Positions without a label add nothing; an example without any has no gradient and counts."""
    path, task = saved("bert-masked")
    study = FisherStudy.of(path, task, dtype="float64")
    work = FisherPass(study.checkpoint, study.data, study.config, "empirical", "mean")
    data = work.prepare(study.examples)
    rows = [dict(row) for row in data.encoded.rows]
    rows[2]["labels"] = [IGNORED] * len(rows[2]["labels"])
    encoded = replace(data.encoded, rows=tuple(rows))
    data = replace(data, encoded=encoded, batches=tuple(cut_batches(encoded, 60)))
    before = work.prepare(study.examples)
    norms, tokens = work.add(data)
    whole, _ = work.add(before)
    assert not norms[2].any() and tokens[2] == 0
    others = [row for row in range(len(rows)) if row != 2]
    np.testing.assert_allclose(norms[others], whole[others], rtol=1e-9, atol=1e-12 * whole.max())


@pytest.mark.filterwarnings("ignore:.* were cut")
def test_a_batch_without_any_scored_token_is_no_accident(tmp_path: Path, saved: Any) -> None:
    path, _ = saved("gpt2")
    file = tmp_path / "corpus.csv"
    file.write_text("text\nw1\nw2\nw3 w4 w5\n")
    task = lf.load_task({"train": file}, text="text", kind="causal-lm")
    found = lf.fisher(path, task, dtype="float64", max_length=3)
    assert_same(found, brute_fisher(path, task, max_length=3))


# --- guesses are compared before they are used ----------------------------------------------------


def test_a_part_that_is_not_what_it_looks_like_is_taken_alone(
    saved: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, task = saved("llama-tied")
    normed = Norm.normed
    monkeypatch.setattr(Norm, "normed", lambda self, x: 1.01 * normed(self, x))
    found = lf.fisher(path, task, dtype="float64")
    alone = found.summary.tensors.name[found.summary.tensors.way == ALONE]
    assert len(alone) == 5 and all("norm" in name for name in alone)
    assert_same(found, brute_fisher(path, task))
    assert "5 tensors one example at a time" in found.reading


def test_half_precision_hides_nothing_small(saved: Any) -> None:
    """The rounding of bfloat16 is larger than these tensors' share of the gradient."""
    path, task = saved("deberta")
    found = lf.fisher(path, task, dtype="bfloat16")
    alone = {row.name for row in found.summary.tensors.itertuples() if row.way == ALONE}
    names = set(found.diagonal)
    assert alone == {n for n in names if any(word in n for word in TAKEN_ALONE["deberta"])}
    brute = brute_fisher(path, task)
    for name in alone:
        whole = float(brute.diagonal[name].sum())
        if name.endswith("weight"):  # a key's bias has no gradient but rounding
            assert float(found.diagonal[name].sum()) == pytest.approx(whole, rel=0.3), name


def test_a_batch_that_goes_another_way_is_taken_alone(saved: Any) -> None:
    path, task = saved("bert-classifier")
    study = FisherStudy.of(path, task, dtype="float64", token_budget=40)
    work = FisherPass(study.checkpoint, study.data, study.config, "empirical", "mean")
    data = work.prepare(study.examples)
    expected, _ = work.add(data)
    totals = {name: total.clone() for name, total in work.totals.items()}
    for total in work.totals.values():
        total.zero_()
    work.ways = tuple(
        frozenset({("example", 9)}) if number % 2 else ways for number, ways in enumerate(work.ways)
    )
    norms, _ = work.add(data)
    np.testing.assert_allclose(norms, expected, rtol=1e-9, atol=1e-12 * expected.max())
    for name, total in totals.items():
        torch.testing.assert_close(work.totals[name], total, rtol=1e-9, atol=1e-12, msg=name)


def test_a_norm_that_needs_more_than_rows_is_taken_alone(
    saved: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, task = saved("llama-tied")

    def normed(self: Norm, x: torch.Tensor) -> torch.Tensor:
        raise TypeError("forward() missing 1 required positional argument: 'gate'")

    monkeypatch.setattr(Norm, "normed", normed)
    found = lf.fisher(path, task, dtype="float64")
    alone = found.summary.tensors.name[found.summary.tensors.way == ALONE]
    assert len(alone) == 5 and all("norm" in name for name in alone)
    assert_same(found, brute_fisher(path, task))


def test_experts_that_the_comparison_does_not_reach(tmp_path: Path, word_tokenizer: Any) -> None:
    _switch().save_pretrained(tmp_path / "switch")
    word_tokenizer.save_pretrained(tmp_path / "switch")
    task = small_task("seq2seq", train=30)
    found = lf.fisher(tmp_path / "switch", task, token_budget=40)
    brute = brute_fisher(tmp_path / "switch", task, dtype="float32")  # its router knows no other
    for name, expected in brute.diagonal.items():
        scale = float(expected.max())
        torch.testing.assert_close(
            found.diagonal[name], expected, rtol=2e-3, atol=1e-4 * scale + 1e-12, msg=name
        )
    experts = found.summary.tensors[found.summary.tensors.name.str.contains("expert_")]
    assert len(experts) == 32 and (experts.total > 0).sum() > 16
    assert (experts.way == ALONE).all()


SIZES = {"lora": {"lora_rank": 2}, "adapter": {"adapter_size": 3}, "prompt": {"prompt_length": 4}}


@pytest.mark.parametrize("method", ["lora", "adapter", "bitfit", "prompt"])
def test_of_a_tuned_model_the_tuned_tensors(saved: Any, tmp_path: Path, method: str) -> None:
    base, task = saved("bert-classifier")
    checkpoint = resolve(base)
    torch.manual_seed(0)
    options = SIZES.get(method, {})
    model = tune(
        load_model(checkpoint, "classification"), TuningConfig(tuning=method, **options), head=True
    )
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.2 * torch.randn_like(parameter)
    save_model(model, tmp_path / method, base, checkpoint.fingerprint)
    load_tokenizer(checkpoint).save_pretrained(tmp_path / method)
    found = lf.fisher(tmp_path / method, task, dtype="float64")
    brute = brute_fisher(tmp_path / method, task)
    assert_same(found, brute)
    assert not any(name.endswith("query.weight") for name in found.diagonal)


# --- two exact ways of one sum --------------------------------------------------------------------


@given(
    counts=st.lists(st.integers(0, 5), min_size=1, max_size=5),
    shape=st.tuples(st.integers(1, 7), st.integers(1, 7)),
    slab=st.sampled_from([1, 10, 1 << 20]),
)
def test_all_ways_of_squaring_a_matrix_agree(
    counts: list[int], shape: tuple[int, int], slab: int
) -> None:
    generator = torch.Generator().manual_seed(sum(counts))
    owners = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    left, right = (
        torch.randn(len(owners), width, generator=generator, dtype=torch.float64) for width in shape
    )
    each = torch.zeros(len(counts), *shape, dtype=torch.float64)
    each.index_add_(0, owners, left[:, :, None] * right[:, None, :])
    tokens, sizes = Tokens(left, right, owners), torch.tensor(counts)
    ways = [add_tokens]
    if len(owners):
        ways += [
            lambda total, norms, t: squares._add_pairs(total, norms, t, sizes),
            lambda total, norms, t: squares._add_slabs(total, norms, t, counts),
            lambda total, norms, t: squares._add_blocks(total, norms, t, sizes),
        ]
    held = squares.SLAB
    try:
        squares.SLAB = slab
        for way in ways:
            total = torch.zeros(shape, dtype=torch.float64)
            norms = torch.zeros(len(counts), dtype=torch.float64)
            way(total, norms, tokens)
            torch.testing.assert_close(total, each.square().sum(0))
            torch.testing.assert_close(norms, each.square().sum((1, 2)))
    finally:
        squares.SLAB = held


# --- stopping and going on ------------------------------------------------------------------------


def many(rows: int) -> Any:
    return small_task("classification", train=rows)


def test_stability_is_the_correlation_of_two_halves(saved: Any) -> None:
    path, _ = saved("bert-classifier")
    found = lf.fisher(path, many(21), dtype="float64", chunk_rows=8).summary
    sums = brute_fisher(path, many(21)).sums.numpy()
    entries = found.tensors.entries.to_numpy()
    for examples in (8, 16, 21):
        correlations = []
        for division in range(DIVISIONS):
            halves = np.zeros((2, sums.shape[1]))
            for row in range(examples):
                bit = np.random.default_rng([0, row // 2]).integers(0, 2, DIVISIONS)[division]
                halves[(bit + row) % 2] += sums[row]
            correlations.append(spearmanr(*(halves / entries)).statistic)
        (row,) = found.stability[
            (found.stability.groups == "tensor") & (found.stability.examples == examples)
        ].itertuples()
        # Key biases have no gradient but rounding: their places are drawn by lot.
        assert row.correlation == pytest.approx(np.median(correlations), abs=0.03)
        assert row.low <= row.correlation <= row.high
    assert set(found.stability.groups) == {"tensor", "sublayer"}


def test_a_stable_order_ends_the_run(saved: Any) -> None:
    path, _ = saved("bert-classifier")
    options: dict[str, Any] = {"dtype": "float64", "chunk_rows": 6}
    stopped = lf.fisher(path, many(60), stable=0.3, **options)
    assert stopped.summary.examples == 12
    assert (stopped.summary.stability.correlation > 0.3).all()
    assert_close(stopped, lf.fisher(path, many(60), rows=12, **options), 1e-12)
    assert lf.fisher(path, many(18), stable=0.99999, **options).summary.examples == 18


@pytest.mark.parametrize("where", ["store", "out"])
def test_a_killed_run_goes_on_to_the_same_bits(
    saved: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    path, task = saved("bert-masked")
    options: dict[str, Any] = {"chunk_rows": 2, "token_budget": 30}
    whole = lf.fisher(path, task, **options)
    place = tmp_path / "kept"
    add, calls = FisherPass.add, []

    def dies(self: FisherPass, data: Any) -> Any:
        calls.append(data.size)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return add(self, data)

    monkeypatch.setattr(FisherPass, "add", dies)
    with pytest.raises(KeyboardInterrupt):
        lf.fisher(path, task, **{where: place}, **options)
    study = place if where == "store" else next(iter(tmp_path.glob("kept.*.partial")), tmp_path)
    # One copy, whatever the number of chunks.
    assert len(list((study / "artifacts" / "fisher-sums").iterdir())) == 1
    again = lf.fisher(path, task, **{where: place}, **options)
    assert calls == [2, 2, 2, 2, 2, 1]
    for name, value in whole.diagonal.items():
        assert torch.equal(value, again.diagonal[name]), name
    for table in ("tensors", "covariance", "traces", "stability"):
        assert getattr(whole.summary, table).equals(getattr(again.summary, table)), table
    if where == "out":
        assert not study.exists()
        kept = lf.load_fisher(place)
        assert kept.fingerprint == whole.fingerprint
    else:
        assert not list((study / "artifacts" / "fisher-sums").iterdir())
        assert lf.fisher(path, task, store=place, **options).fingerprint == whole.fingerprint
        assert len(calls) == 6
        assert (study / "results" / FisherStudy.of(path, task, **options).result_name).is_dir()


def test_sums_that_another_process_takes_away_are_none(
    saved: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, task = saved("bert-masked")
    study = FisherStudy.of(path, task, chunk_rows=2)
    store = open_store(tmp_path / "study")
    whole = study.fisher()
    keep = _Run._keep

    def dies(self: _Run) -> None:
        keep(self)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(_Run, "_keep", dies)
        with pytest.raises(KeyboardInterrupt):
            study.fisher(store=store)
    read = type(store).read

    def late(self: Any, key: str, **options: Any) -> Any:
        self.remove(key)
        return read(self, key, **options)

    with monkeypatch.context() as patch:
        patch.setattr(type(store), "read", late)
        assert study.fisher(store=store).fingerprint == whole.fingerprint


def test_sums_that_a_kill_left_behind_the_result_are_removed(
    saved: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, task = saved("bert-masked")
    study = FisherStudy.of(path, task, chunk_rows=2)
    with monkeypatch.context() as patch:
        patch.setattr(type(open_store(tmp_path / "study")), "remove", lambda self, key: None)
        study.fisher(store=tmp_path / "study")
    sums = tmp_path / "study" / "artifacts" / "fisher-sums"
    assert list(sums.iterdir())
    study.fisher(store=tmp_path / "study")
    assert not list(sums.iterdir())


def test_two_runs_for_one_file_keep_their_sums_apart(
    saved: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, task = saved("bert-masked")

    def dies(self: _Run, progress: bool) -> Fisher:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(_Run, "to_the_end", dies)
        # As if a first chunk had been kept: a folder without sums would go with the error.
        patch.setattr("landform.curvature.fisher_fit._holds_sums", lambda folder: True)
        for seed in (0, 1):
            with pytest.raises(KeyboardInterrupt):
                lf.fisher(path, task, seed=seed, out=tmp_path / "f")
    assert len(list(tmp_path.glob("f.*.partial"))) == 2
    lf.fisher(path, task, seed=1, out=tmp_path / "f")
    assert len(list(tmp_path.glob("f.*.partial"))) == 1


def test_two_equal_runs_do_not_harm_one_another(
    saved: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both kept their sums in one folder, and whoever ended first removed it under the other."""
    path, task = saved("bert-masked")
    whole = _Run.to_the_end

    def twice(self: _Run, progress: bool) -> Fisher:
        with pytest.raises(StoreError, match="another process is computing "):
            FisherStudy.of(path, task).fisher(out=tmp_path / "f")
        assert len(list(tmp_path.glob("f.*.partial"))) == 1
        return whole(self, progress)

    monkeypatch.setattr(_Run, "to_the_end", twice)
    lf.fisher(path, task, out=tmp_path / "f")
    assert [entry.name for entry in tmp_path.iterdir() if entry.name.startswith("f")] == ["f"]


def test_the_file_may_be_read_by_whom_others_of_ours_may(saved: Any, tmp_path: Path) -> None:
    path, task = saved("bert-classifier")
    (tmp_path / "other").touch()
    lf.fisher(path, task, out=tmp_path / "f")
    assert (tmp_path / "f").stat().st_mode == (tmp_path / "other").stat().st_mode


def test_another_split_than_was_asked_for_is_said(saved: Any) -> None:
    path, task = saved("bert-classifier")
    only = replace(task, parts={"validation": task.parts["validation"]})
    with pytest.warns(UserWarning, match="has the split 'validation' only, no 'train'") as said:
        FisherStudy.of(path, only)
    assert len(said) == 1


def test_another_option_is_another_result(saved: Any, tmp_path: Path) -> None:
    path, task = saved("bert-masked")
    kept = [
        lf.fisher(path, task, store=tmp_path / "study", **options).fingerprint
        for options in ({}, {"rows": 5}, {"estimator": "sampled"}, {"seed": 1}, {})
    ]
    assert len(set(kept)) == 4 and kept[0] == kept[-1]


# --- bad input ------------------------------------------------------------------------------------


def test_bad_input_is_named(saved: Any, tmp_path: Path) -> None:
    path, task = saved("bert-classifier")
    with pytest.raises(DataError, match="max_length 1000 is more than the model can take"):
        lf.fisher(path, task, max_length=1000)
    with pytest.raises(ConfigError, match="estimator"):
        lf.fisher(path, task, estimator="guess")
    with pytest.raises(ConfigError, match="rows"):
        lf.fisher(path, task, rows=0)
    with pytest.raises(ConfigError, match="stable"):
        lf.fisher(path, task, stable=1.5)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        lf.fisher(path, task, max_length=5, chunk_rows=3)
    (message,) = [str(w.message) for w in said if "were cut" in str(w.message)]
    assert "examples are longer than 5 tokens" in message


def test_gradients_that_are_not_finite_name_the_example(
    saved: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, task = saved("bert-classifier")
    study = FisherStudy.of(path, task)
    work = FisherPass(study.checkpoint, study.data, study.config, "empirical", "mean")
    columns = _Asked.columns
    monkeypatch.setattr(_Asked, "columns", lambda *a: [1e30 * column for column in columns(*a)])
    with pytest.raises(NonFiniteError, match=r"gradient of example .* in tensor"):
        work.add(work.prepare(study.examples))


def test_the_scores_go_by_sublayer_and_layer(saved: Any) -> None:
    path, task = saved("bert-classifier")
    found = lf.fisher(path, task)
    layers = found.by("layer")
    assert {"embeddings", "bert.encoder.layer.0", "bert.encoder.layer.1", "pooler"} <= set(
        layers.index
    )
    assert "bert.encoder.layer.1.attention.self.dropout" in found.by("sublayer").index
    assert len(found.by("tensor")) == len(found.diagonal)
    by_hand = found.diagonal["bert.pooler.dense.weight"].double().mean()
    assert found.by("tensor")["bert.pooler.dense.weight"] == pytest.approx(float(by_hand), rel=1e-6)
