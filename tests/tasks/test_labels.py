"""Label reconciliation: by name or not at all, and merging against brute force."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from landform.errors import ConfigError, LabelError
from landform.tasks.labels import LabelMap, reconcile

HF = ("entailment", "neutral", "contradiction")
GOOGLE = ("contradiction", "entailment", "neutral")
HANS = ("entailment", "non-entailment")
GROUPS = {"entailment": ("entailment",), "non-entailment": ("neutral", "contradiction")}


def test_google_and_hugging_face_orders_are_reconciled_by_name() -> None:
    found = reconcile(HF, GOOGLE)
    assert found.columns == ((1,), (2,), (0,)) and found.source == "names"
    logits = torch.tensor([[10.0, 20.0, 30.0]])  # contradiction, entailment, neutral
    assert found(logits).tolist() == [[20.0, 30.0, 10.0]]  # entailment, neutral, contradiction
    assert reconcile(HF, {"0": "CONTRADICTION", "1": "Entailment", "2": "NEUTRAL"}) == found
    assert reconcile(HF, {2: "neutral", 0: "contradiction", 1: "entailment"}) == found


@settings(max_examples=50, deadline=None)
@given(st.permutations(range(5)))
def test_any_order_is_undone(order: list[int]) -> None:
    names = tuple("abcde")
    found = reconcile(names, [names[index] for index in order])
    # Output j of the model carries the number of the task's label that it stands for.
    assert found(torch.tensor(order)).tolist() == [0, 1, 2, 3, 4]


def test_the_same_order_is_the_identity_and_copies_nothing() -> None:
    found = reconcile(("negative", "positive"), ("NEG", "POS"))
    logits = torch.randn(3, 2)
    assert found.is_identity and found(logits) is logits


def test_names_match_whatever_case_and_separators_and_synonyms() -> None:
    for model in (("ENTAILMENT", "not_entailment"), ("entailment", "Not Entailment")):
        assert reconcile(HANS, model, groups=GROUPS).columns == ((0,), (1,))
    swapped = reconcile(("not_entailment", "entailment"), HANS)
    assert swapped.columns == ((1,), (0,))
    assert reconcile(("-1", "1"), ("1", "-1")).columns == ((1,), (0,))


def test_bare_numbers_on_both_sides_match_by_index() -> None:
    for model in (("LABEL_0", "LABEL_1", "LABEL_2"), ("0", "1", "2")):
        found = reconcile(("0", "1", "2"), model)
        assert found.source == "indices" and found.is_identity
    # The number in the label counts, not the place where it stands.
    assert reconcile(("0", "1"), ("LABEL_1", "LABEL_0")).columns == ((1,), (0,))
    cycle = reconcile(("0", "1", "2"), ("LABEL_1", "LABEL_2", "LABEL_0"))
    assert cycle.columns == ((2,), (0,), (1,))


@pytest.mark.parametrize("model", [("LABEL_0", "LABEL_1", "LABEL_2"), ("0", "1", "2")])
def test_an_order_that_the_model_does_not_name_is_never_assumed(model: tuple[str, ...]) -> None:
    with pytest.raises(LabelError) as caught:
        reconcile(HF, model)
    assert "order cannot be known" in str(caught.value)
    assert "model_labels=" in str(caught.value.remedy)
    with pytest.raises(LabelError, match="entailment") as caught:
        reconcile(HANS, model, groups=GROUPS)
    assert "'contradiction'" in str(caught.value.remedy)


def test_given_names_say_the_order() -> None:
    found = reconcile(HF, ("LABEL_0", "LABEL_1", "LABEL_2"), given=GOOGLE)
    assert found.columns == ((1,), (2,), (0,)) and found.source == "given"
    merged = reconcile(HANS, ("LABEL_0", "LABEL_1", "LABEL_2"), groups=GROUPS, given=GOOGLE)
    assert merged.columns == ((1,), (2, 0)) and merged.source == "given"
    with pytest.raises(LabelError, match="2 model labels were given"):
        reconcile(HF, ("LABEL_0", "LABEL_1", "LABEL_2"), given=("a", "b"))
    with pytest.raises(LabelError, match="config says"):
        reconcile(HF, GOOGLE, given=HF)


def test_codes_against_names_are_refused() -> None:
    with pytest.raises(LabelError) as caught:
        reconcile(("0", "1"), ("negative", "positive"))
    assert "label_names=" in str(caught.value.remedy)
    # Ratings 1 to 5 are names, not the indices 0 to 4.
    with pytest.raises(LabelError, match="order cannot be known"):
        reconcile(("1", "2"), ("LABEL_0", "LABEL_1"))


@pytest.mark.parametrize(
    ("task", "model", "groups", "expected"),
    [
        (("a", "b"), ("a", "c"), None, ["'b'", "'c'", "model_labels"]),
        (("a", "b"), HF, None, ["2 labels in the task, 3 in the model", "label_groups"]),
        (HF, ("entailment", "neutral"), None, ["'contradiction'"]),
        (HANS, (*HF, "other"), GROUPS, ["'other'", "gathers"]),
        (HF, ("LABEL_0", "LABEL_1"), None, ["3 labels in the task, 2 in the model"]),
        (HF, ("LABEL_0",), None, ["1 in the model"]),
        (("a", "A"), ("a", "b"), None, ["the task has the labels 'a' and 'A'"]),
        (("a", "b"), ("neg", "negative"), None, ["the model has the labels"]),
        ((), HF, None, ["labels of the task: (none)"]),
        (HF, (), None, ["labels of the model: (none)"]),
        (("a", "b"), {0: "a", 2: "b"}, None, ["id2label"]),
    ],
)
def test_label_sets_that_do_not_fit_are_listed(
    task: tuple[str, ...], model: tuple[str, ...], groups: None, expected: list[str]
) -> None:
    with pytest.raises(LabelError) as caught:
        reconcile(task, model, groups=groups)
    assert caught.value.remedy
    for part in expected:
        assert part in str(caught.value)


@pytest.mark.parametrize("model", [HF, GOOGLE])
def test_merging_against_brute_force(model: tuple[str, ...]) -> None:
    logits = torch.tensor(
        [[0.3, -1.2, 2.0], [1.0, 1.5, -0.5], [0.9, 1.0, 0.8]], dtype=torch.float64
    )
    brute = {
        "max": max,
        "sum": lambda n, c: n + c,
        "logsumexp": lambda n, c: math.log(math.exp(n) + math.exp(c)),
    }
    for merge, function in brute.items():
        found = reconcile(HANS, model, groups=GROUPS, merge=merge)  # type: ignore[arg-type]
        for row, merged in zip(logits.tolist(), found(logits).tolist(), strict=True):
            z = dict(zip(model, row, strict=True))
            expected = [z["entailment"], function(z["neutral"], z["contradiction"])]
            assert merged == pytest.approx(expected, abs=1e-12)


def test_what_the_merges_mean() -> None:
    logits = torch.randn(200, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    collapsed = (logits.argmax(-1) != 1).long()  # Google order: entailment is output 1
    by_max = reconcile(HANS, GOOGLE, groups=GROUPS, merge="max")
    assert torch.equal(by_max(logits).argmax(-1), collapsed)
    added = reconcile(HANS, GOOGLE, groups=GROUPS, merge="logsumexp")(logits).softmax(-1)
    p = logits.softmax(-1)
    assert torch.allclose(added[:, 1], p[:, 0] + p[:, 2])
    assert not torch.equal(added.argmax(-1), collapsed)  # the two really differ


@pytest.mark.parametrize("merge", ["max", "sum", "logsumexp"])
def test_gradients_flow_and_extra_dimensions_pass(merge: str) -> None:
    found = reconcile(HANS, GOOGLE, groups=GROUPS, merge=merge)  # type: ignore[arg-type]
    logits = torch.randn(2, 4, 3, dtype=torch.float64, requires_grad=True)
    assert found(logits).shape == (2, 4, 2)
    assert torch.autograd.gradcheck(found, (logits,))


def test_wrong_widths_and_maps_are_refused() -> None:
    with pytest.raises(LabelError, match="last dimension"):
        reconcile(HF, GOOGLE)(torch.zeros(2, 2))
    with pytest.raises(LabelError, match="every output"):
        LabelMap(((0,), (0,)))
    with pytest.raises(LabelError, match="every output"):
        LabelMap(((0,), ()))
    with pytest.raises(ConfigError, match="mean"):
        LabelMap(((0,), (1,)), "mean")  # type: ignore[arg-type]
