"""Metrics against scikit-learn, SciPy and rouge_score, and replicates against repeated rows."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics as sk

from landform.errors import (
    ConfigError,
    DataError,
    LabelError,
    MissingExtraError,
    NonFiniteError,
)
from landform.tasks import metrics as module
from landform.tasks import text_metrics
from landform.tasks.metrics import (
    METRICS,
    CalibrationError,
    Metric,
    Predictions,
    best_of,
    get_metric,
    normalize_answer,
    reliability,
    softmax,
)

CLASS_METRICS = ("accuracy", "macro_f1", "matthews", "ece", "brier")
REGRESSION_METRICS = ("pearson", "spearman")
TEXT_METRICS = ("exact_match", "token_f1", "rouge_l")
ANSWER_METRICS = ("answer_accuracy", "answer_f1", "answer_matthews", "answer_pearson")
TOKEN_METRICS = ("loss", "perplexity", "token_accuracy")
WORDS = ("the", "cat", "a", "sat", "Mat", "on", "mat.", "!")


def classes(size: int, count: int, seed: int = 0) -> Predictions:
    rng = np.random.default_rng(seed)
    labels = rng.integers(count, size=size)
    logits = rng.normal(size=(size, count)) * 2
    logits[np.arange(size), labels] += 1.0
    losses = -np.log(softmax(logits)[np.arange(size), labels])
    return Predictions(logits, labels, losses, np.ones(size))


def regression(size: int, seed: int = 0, ties: bool = False) -> Predictions:
    rng = np.random.default_rng(seed)
    y = rng.normal(size=size)
    x = y + rng.normal(size=size)
    if ties:
        x, y = np.round(x), np.round(y)
    return Predictions(x[:, None], y, (x - y) ** 2, np.ones(size))


def tokens(size: int, seed: int = 0) -> Predictions:
    rng = np.random.default_rng(seed)
    lengths = rng.integers(0, 20, size=size).astype(float)
    lengths[0] = 5
    return Predictions(
        None,
        None,
        rng.exponential(size=size),
        lengths,
        correct=np.floor(lengths * rng.random(size)),
    )


def texts(size: int, seed: int = 0) -> Predictions:
    rng = np.random.default_rng(seed)

    def sentence() -> str:
        return " ".join(rng.choice(WORDS, size=rng.integers(0, 5)))

    return Predictions(
        None,
        None,
        np.ones(size),
        np.ones(size),
        texts=tuple(sentence() for _ in range(size)),
        references=tuple(tuple(sentence() for _ in range(1 + i % 3)) for i in range(size)),
    )


def labels_as_text(size: int, seed: int = 0) -> Predictions:
    """Texts that are often the label, sometimes another one, none, or in another case."""
    rng = np.random.default_rng(seed)
    known = ("acceptable", "unacceptable", "Neither")
    gold = rng.choice(known, size=size)
    given = np.where(rng.random(size) < 0.5, gold, rng.choice((*known, "neither", "?"), size=size))
    gold[: min(size, 2)] = known[: min(size, 2)]
    return Predictions(
        None,
        None,
        np.ones(size),
        np.ones(size),
        texts=tuple(f" {text}" for text in given),
        references=tuple((str(g), "NEITHER")[: 1 + i % 2] for i, g in enumerate(gold)),
    )


def numbers_as_text(size: int, seed: int = 0, unreadable: int = 4) -> Predictions:
    rng = np.random.default_rng(seed)
    y = rng.integers(1, 6, size=size).astype(float)
    x = y + rng.normal(size=size)
    given = [f"{value:.4f}" for value in x]
    for i in rng.permutation(size)[: min(unreadable, max(size - 3, 0))]:
        given[i] = str(rng.choice(["five", "", "nan", "inf"]))
    return Predictions(
        None,
        None,
        np.ones(size),
        np.ones(size),
        texts=tuple(given),
        references=tuple((f"{value:g}", "x") for value in y),
    )


def make(metric: str, size: int, seed: int) -> Predictions:
    if metric == "answer_pearson":
        return numbers_as_text(size, seed)
    if metric in ANSWER_METRICS:
        return labels_as_text(size, seed)
    if metric in REGRESSION_METRICS:
        return regression(size, seed, ties=seed % 2 == 0)
    if metric in TEXT_METRICS:
        return texts(size, seed)
    if metric in TOKEN_METRICS:
        return tokens(size, seed)
    return classes(size, 2 if metric in ("f1", "combined") else 3, seed)


# --- the list ---------------------------------------------------------------------------------


def test_every_metric_of_the_list_is_there_under_its_own_name() -> None:
    expected = {
        *CLASS_METRICS,
        *REGRESSION_METRICS,
        *TEXT_METRICS,
        *TOKEN_METRICS,
        "f1",
        "combined",
    }
    assert set(METRICS) == expected | {*ANSWER_METRICS, "combined"}
    judged = {name for name, metric in METRICS.items() if metric.reads_texts}
    assert judged == {*TEXT_METRICS, *ANSWER_METRICS}
    for name, metric in METRICS.items():
        assert isinstance(metric, Metric)
        assert metric.name == name
        assert get_metric(name) is metric
        assert metric.higher_is_better is (name not in {"loss", "perplexity", "ece", "brier"})


def test_an_unknown_name_gets_the_nearest_one() -> None:
    with pytest.raises(ConfigError, match="did you mean 'accuracy'") as caught:
        get_metric("acuracy")
    assert "'acuracy'" in caught.value.what


# --- parity -----------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
def test_class_metrics_agree_with_scikit_learn(seed: int) -> None:
    for count in (2, 3, 5):
        p = classes(97, count, seed)
        predicted = p.logits.argmax(1)
        expected = {
            "accuracy": sk.accuracy_score(p.labels, predicted),
            "macro_f1": sk.f1_score(p.labels, predicted, average="macro"),
            "matthews": sk.matthews_corrcoef(p.labels, predicted),
            "loss": sk.log_loss(p.labels, softmax(p.logits)),
            "brier": sk.brier_score_loss(p.labels, softmax(p.logits), scale_by_half=False),
        }
        if count == 2:
            expected["f1"] = sk.f1_score(p.labels, predicted)
        for name, value in expected.items():
            assert METRICS[name].aggregate(p) == pytest.approx(value, abs=1e-12), name


@pytest.mark.parametrize("kind", ["classes", "scores"])
def test_combined_is_the_mean_of_the_two_metrics_that_glue_reports(kind: str) -> None:
    p = classes(61, 2, 5) if kind == "classes" else regression(61, 5)
    first, second = ("accuracy", "f1") if kind == "classes" else ("pearson", "spearman")
    counts = np.random.default_rng(0).multinomial(61, [1 / 61] * 61, size=7)
    for drawn in (None, counts):
        expected = METRICS[first].aggregate(p, drawn) / 2 + METRICS[second].aggregate(p, drawn) / 2
        np.testing.assert_allclose(METRICS["combined"].aggregate(p, drawn), expected, rtol=1e-12)
    assert METRICS["combined"].per_example(p) is None
    with pytest.raises(DataError, match="'f1' is defined for 2 classes"):
        METRICS["combined"].aggregate(classes(9, 3))


@pytest.mark.parametrize("seed", range(3))
def test_macro_f1_averages_the_classes_that_occur_as_scikit_learn_does(seed: int) -> None:
    p = classes(6, 8, seed)
    expected = sk.f1_score(p.labels, p.logits.argmax(1), average="macro", zero_division=0)
    assert METRICS["macro_f1"].aggregate(p) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("ties", [False, True])
def test_correlations_agree_with_scipy(ties: bool) -> None:
    p = regression(83, 3, ties)
    x = p.logits[:, 0]
    pearson, spearman = METRICS["pearson"], METRICS["spearman"]
    assert pearson.aggregate(p) == pytest.approx(scipy.stats.pearsonr(x, p.labels)[0], abs=1e-12)
    assert spearman.aggregate(p) == pytest.approx(scipy.stats.spearmanr(x, p.labels)[0], abs=1e-12)
    flat = Predictions(x, p.labels, p.losses, p.tokens)
    assert pearson.aggregate(flat) == pearson.aggregate(p)


def test_rouge_l_is_rouge_score_with_the_best_reference() -> None:
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rougeL"])
    p = texts(40, 1)
    expected = [
        scorer.score_multi(list(refs), text)["rougeL"].fmeasure
        for text, refs in zip(p.texts, p.references, strict=True)
    ]
    values = METRICS["rouge_l"].per_example(p)
    np.testing.assert_allclose(values, expected, atol=1e-15)
    assert 0 < METRICS["rouge_l"].aggregate(p) < 1
    assert METRICS["rouge_l"].aggregate(p) == pytest.approx(np.mean(expected), abs=1e-12)


def test_rouge_l_by_hand() -> None:
    # "police killed the gunman" and "the gunman kill police": the longest common subsequence is
    # "the gunman", so recall and precision are 2/4.
    p = answers(("the gunman kill police", ("police killed the gunman", "xyz")), ("?!", ("a",)))
    np.testing.assert_allclose(METRICS["rouge_l"].per_example(p), [0.5, 0.0])


def test_rouge_l_without_its_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    text_metrics._rouge.cache_clear()
    for name in [m for m in sys.modules if m.split(".")[0] == "rouge_score"]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, "rouge_score", None)
    monkeypatch.setitem(sys.modules, "rouge_score.rouge_scorer", None)
    with pytest.raises(MissingExtraError, match=r"landform\[rouge\]"):
        METRICS["rouge_l"].aggregate(texts(3))


# --- hand examples ----------------------------------------------------------------------------


def probabilities(rows: list[list[float]], labels: list[int]) -> Predictions:
    with np.errstate(divide="ignore"):
        logits = np.maximum(np.log(np.array(rows)), -1000.0)
    return Predictions(logits, np.array(labels), np.ones(len(rows)), np.ones(len(rows)))


def test_ece_by_hand() -> None:
    # Bin 9 (0.9 to 1): confidences .95 and 1, both right; bin 6: .62 right, .66 wrong, .68 wrong.
    p = probabilities(
        [[0.95, 0.05], [0.0, 1.0], [0.62, 0.38], [0.66, 0.34], [0.32, 0.68]], [0, 1, 0, 1, 0]
    )
    expected = (abs(2 - 1.95) + abs(1 - 1.96)) / 5
    assert METRICS["ece"].aggregate(p) == pytest.approx(expected, abs=1e-12)
    table = reliability(p)
    assert table.columns.tolist() == ["bin", "lower", "upper", "count", "confidence", "accuracy"]
    assert table["bin"].tolist() == list(range(10))
    assert table["count"].tolist() == [0, 0, 0, 0, 0, 0, 3, 0, 0, 2]
    row = table.iloc[6]
    np.testing.assert_allclose(row[["lower", "upper"]].astype(float), [0.6, 0.7])
    np.testing.assert_allclose([row["confidence"], row["accuracy"]], [1.96 / 3, 1 / 3])
    assert table.loc[0, ["confidence", "accuracy"]].isna().all()


def test_the_bin_of_an_edge_is_the_upper_one_and_one_is_in_the_last() -> None:
    p = probabilities([[0.5, 0.5], [0.0, 1.0]], [0, 1])
    assert reliability(p)["count"].tolist() == [0, 0, 0, 0, 0, 1, 0, 0, 0, 1]
    assert reliability(p, bins=2)["count"].tolist() == [0, 2]


def test_the_first_of_tied_logits_is_the_prediction() -> None:
    p = probabilities([[0.5, 0.5], [0.5, 0.5]], [0, 1])
    assert METRICS["accuracy"].per_example(p).tolist() == [1.0, 0.0]
    # Confidence .5, accuracy .5.
    assert METRICS["ece"].aggregate(p) == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("bins", [1, 3, 10, 15])
def test_ece_is_the_weighted_gap_of_the_reliability_diagram(bins: int) -> None:
    p = classes(211, 3, 5)
    table = reliability(p, bins).dropna()
    gaps = (table["accuracy"] - table["confidence"]).abs()
    expected = float((gaps * table["count"]).sum() / table["count"].sum())
    assert CalibrationError(bins).aggregate(p) == pytest.approx(expected, abs=1e-12)
    confidence = softmax(p.logits).max(1)
    inside = [
        int(((confidence >= low) & (confidence < high)).sum())
        for low, high in zip(np.arange(bins) / bins, np.arange(1, bins + 1) / bins, strict=True)
    ]
    assert reliability(p, bins)["count"].tolist() == inside


@pytest.mark.parametrize("bins", [0, -1, 2.5, True])
def test_absurd_bins_are_refused(bins: object) -> None:
    with pytest.raises(ConfigError, match="bins"):
        reliability(classes(4, 2), bins)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="bins"):
        CalibrationError(bins)  # type: ignore[arg-type]


def test_loss_is_the_mean_over_tokens_not_over_examples() -> None:
    p = Predictions(None, None, np.array([1.0, 4.0]), np.array([3.0, 1.0]))
    assert METRICS["loss"].aggregate(p) == pytest.approx(7 / 4)
    assert METRICS["perplexity"].aggregate(p) == pytest.approx(np.exp(7 / 4))
    counts = np.array([[2.0, 0.0], [1.0, 2.0]])
    np.testing.assert_allclose(METRICS["loss"].aggregate(p, counts), [1.0, 11 / 5])
    assert METRICS["loss"].per_example(p).tolist() == [1.0, 4.0]
    np.testing.assert_allclose(METRICS["perplexity"].per_example(p), np.exp([1.0, 4.0]))


def test_an_example_without_tokens_counts_for_nothing() -> None:
    p = Predictions(
        None, None, np.array([2.0, np.nan]), np.array([3.0, 0.0]), correct=np.array([1.0, 0.0])
    )
    assert METRICS["loss"].aggregate(p) == 2.0
    assert METRICS["loss"].per_example(p).tolist() == [2.0, 0.0]
    assert METRICS["token_accuracy"].aggregate(p) == pytest.approx(1 / 3)
    np.testing.assert_allclose(METRICS["token_accuracy"].per_example(p), [1 / 3, np.nan])


def test_token_accuracy_pools_the_tokens() -> None:
    p = Predictions(None, None, np.zeros(2), np.array([8.0, 2.0]), correct=np.array([4.0, 2.0]))
    assert METRICS["token_accuracy"].aggregate(p) == pytest.approx(0.6)
    assert METRICS["token_accuracy"].per_example(p).tolist() == [0.5, 1.0]


def answers(*rows: tuple[str, tuple[str, ...]]) -> Predictions:
    size = len(rows)
    return Predictions(
        None,
        None,
        np.zeros(size),
        np.ones(size),
        texts=tuple(text for text, _ in rows),
        references=tuple(references for _, references in rows),
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("  The  Cat\tsat. ", "cat sat"),
        ("a.n apple", "apple"),
        ("theatre, another", "theatre another"),
        ("don't!", "dont"),
        ("The", ""),
        ("“quoted” text", "“quoted” text"),
    ],
)
def test_answers_are_normalised_as_squad_does(text: str, expected: str) -> None:
    assert normalize_answer(text) == expected


def test_exact_match_and_token_f1_by_hand() -> None:
    p = answers(
        ("The cat.", ("dog", "cat")),
        ("a black cat", ("the cat sat",)),
        ("cat cat dog", ("cat", "cat cat")),
        ("", ("the",)),
        ("", ("cat",)),
        ("fish", ("",)),
    )
    assert METRICS["exact_match"].per_example(p).tolist() == [1, 0, 0, 1, 0, 0]
    # Row 1: {black, cat} and {cat, sat} share one word; row 2: two of "cat" in 3 + 2 words.
    np.testing.assert_allclose(METRICS["token_f1"].per_example(p), [1, 0.5, 0.8, 1, 0, 0])
    assert METRICS["token_f1"].aggregate(p) == pytest.approx(3.3 / 6)


def test_answer_accuracy_knows_no_case_and_takes_any_reference() -> None:
    p = answers((" Yes ", ("no", "yes")), ("no", ("yes",)), ("the yes", ("yes",)))
    assert METRICS["answer_accuracy"].per_example(p).tolist() == [1, 0, 0]


@pytest.mark.parametrize("seed", range(3))
def test_answer_f1_is_scikit_learns_over_the_labels_that_occur(seed: int) -> None:
    p = labels_as_text(30, seed)
    gold = [first for first, *_ in p.references]
    given = [text.strip() for text in p.texts]
    expected = sk.f1_score(gold, given, average="macro", labels=np.unique(gold))
    assert METRICS["answer_f1"].aggregate(p) == pytest.approx(expected, abs=1e-12)
    right = [float(g == t) for g, t in zip(gold, given, strict=True)]
    assert METRICS["answer_f1"].per_example(p).tolist() == right


@pytest.mark.parametrize("seed", range(3))
def test_answer_matthews_is_scikit_learns_of_acceptable_or_not(seed: int) -> None:
    p = labels_as_text(30, seed)
    gold = [first == "acceptable" for first, *_ in p.references]
    given = [text.strip() == "acceptable" for text in p.texts]
    expected = sk.matthews_corrcoef(gold, given)
    assert METRICS["answer_matthews"].aggregate(p) == pytest.approx(expected, abs=1e-12)
    right = [float(g == t) for g, t in zip(gold, given, strict=True)]
    assert METRICS["answer_matthews"].per_example(p).tolist() == right


def test_answer_pearson_is_scipys_of_the_numbers() -> None:
    p = numbers_as_text(30, 1, unreadable=0)
    x, y = [float(t) for t in p.texts], [float(first) for first, *_ in p.references]
    expected = scipy.stats.pearsonr(x, y)[0]
    assert METRICS["answer_pearson"].aggregate(p) == pytest.approx(expected, abs=1e-12)
    products = scipy.stats.zscore(x) * scipy.stats.zscore(y)
    np.testing.assert_allclose(METRICS["answer_pearson"].per_example(p), products, atol=1e-12)


def test_a_text_that_is_no_number_stands_for_the_mean_of_the_others() -> None:
    p = answers(("1", ("1",)), ("four", ("4",)), ("3", ("2",)), ("-inf", ("0",)))
    expected = scipy.stats.pearsonr([1, 2, 3, 2], [1, 4, 2, 0])[0]
    assert METRICS["answer_pearson"].aggregate(p) == pytest.approx(expected, abs=1e-12)
    assert np.isnan(METRICS["answer_pearson"].aggregate(answers(("a", ("1",)), ("b", ("2",)))))
    with pytest.raises(DataError, match="reference of row 1 is no number: 'two'"):
        METRICS["answer_pearson"].aggregate(answers(("1", ("1",)), ("2", ("two",))))


# --- degenerate samples -----------------------------------------------------------------------


def test_single_class_samples_follow_scikit_learn() -> None:
    right = probabilities([[0.9, 0.1]] * 4, [0] * 4)
    assert METRICS["matthews"].aggregate(right) == 0.0 == sk.matthews_corrcoef([0] * 4, [0] * 4)
    assert METRICS["f1"].aggregate(right) == 0.0
    assert METRICS["macro_f1"].aggregate(right) == 1.0 == sk.f1_score([0], [0], average="macro")
    constant = probabilities([[0.9, 0.1]] * 4, [0, 1, 0, 1])
    assert METRICS["matthews"].aggregate(constant) == 0.0


@pytest.mark.parametrize("name", REGRESSION_METRICS)
def test_a_constant_side_has_no_correlation(name: str) -> None:
    y = np.array([1.0, 2.0, 3.0])
    for x in (np.full(3, 0.1), np.full(3, 1e300)):
        p = Predictions(x, y, np.zeros(3), np.ones(3))
        assert np.isnan(METRICS[name].aggregate(p))
    p = Predictions(np.array([0.1, 0.1, 0.7]), y, np.zeros(3), np.ones(3))
    counts = np.array([[2.0, 1, 0], [0, 0, 3], [1, 0, 2], [1, 1, 1]])
    values = METRICS[name].aggregate(p, counts)
    assert np.isnan(values[:2]).all()
    np.testing.assert_allclose(values[2], 1.0)
    assert np.isfinite(values[3])


def test_pearson_of_a_replicate_survives_an_outlier_and_huge_values() -> None:
    x = np.array([0.0, 1e-6, 3e-6, 1e9, -1e9, 2e9])
    y = np.array([0.0, 2.0, 1.0, 5.0, 6.0, 7.0])
    counts = np.array([[2.0, 3, 1, 0, 0, 0], [1, 1, 1, 1, 1, 1]])
    expected = [
        scipy.stats.pearsonr(np.repeat(x, c.astype(int)), np.repeat(y, c.astype(int)))[0]
        for c in counts
    ]
    p = Predictions(x, y, np.zeros(6), np.ones(6))
    np.testing.assert_allclose(METRICS["pearson"].aggregate(p, counts), expected, rtol=1e-9)
    huge = Predictions(x * 1e290, y, np.zeros(6), np.ones(6))
    np.testing.assert_allclose(METRICS["pearson"].aggregate(huge, counts), expected, rtol=1e-9)


def test_pearson_of_a_replicate_far_from_the_bulk_does_not_cancel() -> None:
    x = np.array([0.1, 0.1 + 1e-9, 0.1 + 3e-9, 7.1, 7.2, 7.3, 7.4])
    y = np.array([0.0, 2.0, 1.0, 5.0, 6.0, 7.0, 8.0])
    counts = np.array([[2.0, 3, 1, 0, 0, 0, 0], [7, 0, 0, 0, 0, 0, 0], [0, 0, 0, 3, 0, 0, 0]])
    p = Predictions(x, y, np.zeros(7), np.ones(7))
    values = METRICS["pearson"].aggregate(p, counts)
    drawn = counts[0].astype(int)
    expected = scipy.stats.pearsonr(np.repeat(x, drawn), np.repeat(y, drawn))[0]
    np.testing.assert_allclose(values, [expected, np.nan, np.nan], rtol=1e-9)


# --- properties of every metric ---------------------------------------------------------------


def repeated(p: Predictions, counts: np.ndarray) -> Predictions:
    return p.take(np.repeat(np.arange(len(p)), counts))


@pytest.mark.parametrize("name", sorted(METRICS))
@given(data=st.data())
def test_a_replicate_equals_the_literally_repeated_rows(name: str, data: st.DataObject) -> None:
    size = data.draw(st.integers(1, 12), label="size")
    p = make(name, size, data.draw(st.integers(0, 50), label="seed"))
    row = st.lists(st.integers(0, 4), min_size=size, max_size=size).filter(any)
    counts = np.array(data.draw(st.lists(row, min_size=1, max_size=3), label="counts"))
    metric = METRICS[name]
    values = metric.aggregate(p, counts.astype(float))
    assert values.shape == (len(counts),)
    expected = [metric.aggregate(repeated(p, c)) for c in counts]
    np.testing.assert_allclose(values, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", REGRESSION_METRICS)
def test_correlations_of_replicates_agree_with_scipy_on_repeated_rows(name: str) -> None:
    function = {"pearson": scipy.stats.pearsonr, "spearman": scipy.stats.spearmanr}[name]
    rng = np.random.default_rng(7)
    for ties in (False, True):
        p = regression(60, 9, ties)
        counts = rng.multinomial(60, np.full(60, 1 / 60), size=20)
        x, y = p.logits[:, 0], p.labels
        expected = [function(np.repeat(x, c), np.repeat(y, c))[0] for c in counts]
        np.testing.assert_allclose(METRICS[name].aggregate(p, counts), expected, atol=1e-12)


def test_spearman_in_chunks_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    p = regression(30, 1, ties=True)
    counts = np.random.default_rng(0).multinomial(30, np.full(30, 1 / 30), size=11).astype(float)
    whole = METRICS["spearman"].aggregate(p, counts)
    monkeypatch.setattr(module.Spearman, "_chunk", 90)
    np.testing.assert_array_equal(METRICS["spearman"].aggregate(p, counts), whole)
    assert METRICS["spearman"].aggregate(p, counts[:0]).shape == (0,)


@pytest.mark.parametrize("name", sorted(METRICS))
def test_the_order_of_rows_does_not_matter(name: str) -> None:
    metric = METRICS[name]
    p = make(name, 25, 11)
    order = np.random.default_rng(1).permutation(25)
    assert metric.aggregate(p.take(order)) == pytest.approx(metric.aggregate(p), rel=1e-12)
    values = metric.per_example(p)
    if values is not None:
        # Standardised numbers are summed in another order; all others are the very same.
        slack = 1e-12 if name == "answer_pearson" else 0
        np.testing.assert_allclose(metric.per_example(p.take(order)), values[order], 0, slack)


@pytest.mark.parametrize("name", sorted(METRICS))
def test_counts_of_one_give_the_aggregate_itself(name: str) -> None:
    p = make(name, 25, 12)
    value = METRICS[name].aggregate(p)
    assert isinstance(value, float)
    np.testing.assert_allclose(
        METRICS[name].aggregate(p, np.ones((2, 25))), [value] * 2, rtol=1e-12
    )


@pytest.mark.parametrize(
    "name",
    [
        "accuracy",
        "brier",
        "exact_match",
        "token_f1",
        "rouge_l",
        "answer_accuracy",
        "answer_pearson",
    ],
)
def test_the_mean_of_per_example_values_is_the_aggregate(name: str) -> None:
    p = make(name, 25, 13)
    values = METRICS[name].per_example(p)
    assert values.shape == (25,)
    assert values.dtype == np.float64
    assert values.mean() == pytest.approx(METRICS[name].aggregate(p), rel=1e-12)


@pytest.mark.parametrize("name", ["f1", "macro_f1", "matthews", "pearson", "spearman", "ece"])
def test_what_has_no_per_example_value_says_so(name: str) -> None:
    assert METRICS[name].per_example(make(name, 10, 0)) is None


# --- bad input --------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_non_finite_numbers_are_refused_with_their_row(bad: float) -> None:
    p = classes(5, 3)
    p.logits[3, 1] = bad
    for name in CLASS_METRICS:
        with pytest.raises(NonFiniteError, match="logits of row 3"):
            METRICS[name].aggregate(p)
    r = regression(5)
    r.logits[2, 0] = bad
    for name in REGRESSION_METRICS:
        with pytest.raises(NonFiniteError, match="logits of row 2"):
            METRICS[name].aggregate(r)
    t = tokens(5)
    t.losses[0] = bad
    with pytest.raises(NonFiniteError, match="losses of row 0"):
        METRICS["loss"].aggregate(t)


@pytest.mark.parametrize("label", [-100, -1, 3])
def test_a_label_outside_the_head_is_refused_with_its_row(label: int) -> None:
    p = classes(5, 3)
    p.labels[2] = label
    for name in CLASS_METRICS:
        with pytest.raises(LabelError, match=f"label {label} of row 2 .* classes 0 to 2"):
            METRICS[name].aggregate(p)


def test_predictions_of_another_kind_are_refused() -> None:
    with pytest.raises(DataError, match="'macro_f1'"):
        METRICS["f1"].aggregate(classes(5, 3))
    with pytest.raises(DataError, match=r"logits have shape \(5, 1\)"):
        METRICS["accuracy"].aggregate(regression(5))
    with pytest.raises(DataError, match=r"logits have shape \(5, 3\)"):
        METRICS["pearson"].aggregate(classes(5, 3))
    p = classes(5, 3)
    with pytest.raises(LabelError, match="labels are float64"):
        METRICS["accuracy"].aggregate(Predictions(p.logits, p.labels * 1.0, p.losses, p.tokens))
    with pytest.raises(DataError, match=r"labels have shape \(4,\)"):
        METRICS["accuracy"].aggregate(Predictions(p.logits, p.labels[:4], p.losses, p.tokens))
    for name, missing in (
        ("accuracy", "logits"),
        ("pearson", "logits"),
        ("exact_match", "texts"),
        ("token_accuracy", "correct"),
    ):
        empty = Predictions(None, None, np.ones(2), np.ones(2))
        with pytest.raises(DataError, match=f"'{name}' needs {missing}"):
            METRICS[name].aggregate(empty)


def test_wrong_token_counts_and_references_are_refused() -> None:
    over = Predictions(None, None, np.zeros(2), np.ones(2), correct=np.array([1.0, 2.0]))
    with pytest.raises(DataError, match="row 1 has 2 tokens right of 1"):
        METRICS["token_accuracy"].aggregate(over)
    negative = Predictions(None, None, np.zeros(2), np.array([1.0, -1.0]))
    with pytest.raises(DataError, match="tokens of row 1"):
        METRICS["loss"].aggregate(negative)
    with pytest.raises(DataError, match="row 1 has no reference"):
        METRICS["exact_match"].aggregate(answers(("a", ("a",)), ("b", ())))
    short = Predictions(None, None, np.zeros(2), np.ones(2), texts=("a",), references=(("a",),) * 2)
    with pytest.raises(DataError, match="1 texts and 2 references for 2 examples"):
        METRICS["token_f1"].aggregate(short)


@pytest.mark.parametrize("name", sorted(METRICS))
def test_no_rows_and_counts_of_the_wrong_shape_are_refused(name: str) -> None:
    p = make(name, 4, 0)
    with pytest.raises(DataError, match="no predictions"):
        METRICS[name].aggregate(p.take([]))
    for counts in (np.ones(4), np.ones((2, 3))):
        with pytest.raises(DataError, match="counts have shape"):
            METRICS[name].aggregate(p, counts)


def test_take_by_mask_and_by_index() -> None:
    p = texts(5)
    mask = np.array([True, False, False, True, False])
    assert p.take(mask).texts == (p.texts[0], p.texts[3]) == p.take([0, 3]).texts
    assert len(p.take(mask)) == 2
    c = classes(5, 3)
    np.testing.assert_array_equal(c.take([4, 4]).logits, c.logits[[4, 4]])


@pytest.mark.parametrize(
    ("values", "higher", "place"),
    [
        ([np.nan, 1.0, 2.0], True, 2),
        ([np.nan, 2.0, 1.0], False, 2),
        ([3.0, np.nan, 3.0], True, 0),
        ([-np.inf, np.nan], True, 0),
        ([np.nan, np.nan], False, 0),
    ],
    ids=["higher", "lower", "first-of-equal", "infinite", "nothing-else"],
)
def test_the_best_of_values_is_never_nan(values, higher, place):
    assert best_of(values, higher=higher) == place


def test_metrics_of_the_unit_interval_have_such_values():
    texts, references = ("1", "x y", "4"), (("1",), ("2 x",), ("9",))
    p = Predictions(
        logits=np.array([[0.0, 9.0], [9.0, 0.0], [1.0, 0.0]]),
        labels=np.array([1, 1, 0]),
        losses=np.ones(3),
        tokens=np.full(3, 2),
        texts=texts,
        references=references,
        correct=np.array([0, 1, 2]),
    )
    for metric in (m for m in METRICS.values() if m.unit_interval):
        values = metric.per_example(p)
        assert values is not None and (values >= 0).all() and (values <= 1).all(), metric.name
    assert not get_metric("answer_pearson").unit_interval and not get_metric("loss").unit_interval
