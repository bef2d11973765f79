"""Products with curvature matrices, against whole matrices formed from their definitions."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch

from dense_curvature import dense, make_data
from landform.curvature.operators import CurvatureOperator
from landform.errors import ConfigError, DataError, NonFiniteError
from landform.weights.space import ParameterSpace

SMALL: dict[str, Any] = {
    "bert": {
        "hidden_size": 4, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 5,
        "max_position_embeddings": 12, "vocab_size": 14,
    },
    "gpt2": {"n_embd": 4, "n_layer": 1, "n_head": 2, "n_positions": 12, "n_inner": 5,
             "vocab_size": 14},
    "t5": {"d_model": 4, "d_kv": 2, "d_ff": 5, "num_layers": 1, "num_decoder_layers": 1,
           "num_heads": 2, "vocab_size": 14, "relative_attention_num_buckets": 4},
}  # fmt: skip
ARCHITECTURES = {
    "classification": "bert", "regression": "bert", "token-classification": "bert",
    "masked-lm": "bert", "causal-lm": "gpt2", "seq2seq": "t5",
}  # fmt: skip
TEXTS = ([5, 6, 7, 8], [9, 5, 10, 11, 6, 12, 7], [13, 8, 5], [6, 6, 9, 11, 10], [12, 7])
BATCHES = ([3, 0, 1], [2, 4])


def rows_of(kind: str) -> list[dict[str, Any]]:
    if kind == "classification":
        labels: Any = [0, 2, 1, 1, 0]
    elif kind == "regression":
        labels = [0.5, -1.0, 2.0, 0.1, 0.0]
    elif kind == "seq2seq":  # two references, one, three, ...
        labels = [[[6, 3], [7, 8, 3]], [[9, 3]], [[5, 3], [6, 3], [7, 3]], [[8, 8, 3]], [[10, 3]]]
    elif kind == "token-classification":
        labels = [[-100, 0, 1, -100], [0, 1, 2, 1, -100, 0, 2], [-100] * 3, [2] * 5, [1, -100]]
    else:  # of the third example nothing is scored
        labels = [text if k != 2 else [-100] * len(text) for k, text in enumerate(TEXTS)]
        labels = [[y if t % 2 else -100 for t, y in enumerate(row)] for row in labels]
    return [{"input_ids": x, "labels": y} for x, y in zip(TEXTS, labels, strict=True)]


@pytest.fixture(scope="session")
def model_of(tiny_model: Any) -> Any:
    @cache
    def make(kind: str) -> Any:
        name = ARCHITECTURES[kind]
        labels = {"classification": 3, "token-classification": 3, "regression": 1}
        more = {"num_labels": labels[kind]} if kind in labels else {}
        return tiny_model(kind, name, **SMALL[name], **more)

    return make


def random(size: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(size, generator=generator, dtype=torch.float64)


CASES = [
    *((kind, "hessian", "mean") for kind in ARCHITECTURES),
    *((kind, "ggn", "mean") for kind in ("classification", "regression", "causal-lm", "seq2seq")),
    *((kind, "empirical-fisher", "mean") for kind in ("classification", "regression", "seq2seq")),
    *(("causal-lm", "empirical-fisher", r) for r in ("mean", "sum", "token")),
    ("seq2seq", "empirical-fisher", "token"),
]


@pytest.mark.parametrize(
    ("kind", "operator", "reduction"), CASES, ids=["-".join(case) for case in CASES]
)
def test_products_are_those_of_the_whole_matrix(
    model_of: Any, kind: str, operator: str, reduction: str
) -> None:
    model, rows = model_of(kind), rows_of(kind)
    space = ParameterSpace.of(model)
    matrix = dense(kind, operator, model, rows, space=space, reduction=reduction)
    data = make_data(kind, rows, BATCHES)
    vectors = [random(space.numel, seed) for seed in (1, 2)]
    with CurvatureOperator(model, space, data, operator, reduction=reduction) as a:
        found = a.multiply_all(vectors)
        quotients = [float(v @ product) for v, product in zip(vectors, found, strict=True)]
        forms = a.quadratic_forms(vectors, quotients)
    # T5 takes its softmax and its norms in float32, whatever the dtype of the model.
    digits = 1e-5 if kind == "seq2seq" else 1e-10
    tolerance = digits * float(matrix.abs().max()) * space.numel**0.5
    for v, product, form in zip(vectors, found, forms, strict=True):
        torch.testing.assert_close(product, matrix @ v, rtol=0, atol=tolerance)
        # By second differences for the Hessian, exactly for the others.
        loose = 1e-5 if operator == "hessian" else digits
        loose = 0.02 if (kind, operator) == ("seq2seq", "hessian") else loose
        assert float(form.sum()) / a.denominator == pytest.approx(float(v @ matrix @ v), rel=loose)


def test_the_true_fisher_is_the_gauss_newton_matrix(model_of: Any) -> None:
    """E over the model's own labels of g g^T, label by label."""
    model, rows = model_of("classification"), rows_of("classification")
    space = ParameterSpace.of(model)
    point, total = space.flatten(model), 0.0
    for row in rows:
        inputs = {"input_ids": torch.tensor([row["input_ids"]])}

        def scores(flat: Any, inputs: Any = inputs) -> Any:
            return space.call(model, flat, **inputs).logits[0].log_softmax(-1)

        slopes = torch.autograd.functional.jacobian(scores, point)
        total = total + slopes.t() @ torch.diag(scores(point).exp()) @ slopes / len(rows)
    v = random(space.numel)
    with CurvatureOperator(model, space, make_data("classification", rows, BATCHES), "fisher") as a:
        torch.testing.assert_close(a.multiply(v), total @ v, rtol=1e-9, atol=1e-12)


VARIANTS = {
    "padding": {"batches": BATCHES, "extra": 3},
    "one batch": {"batches": ([0, 1, 2, 3, 4],)},
    "rows alone": {"batches": ([0], [1], [2], [3], [4])},
    "order": {"batches": ([4, 1], [0, 2, 3])},
}


@pytest.mark.parametrize("operator", ["hessian", "ggn", "empirical-fisher"])
@pytest.mark.parametrize("kind", ["classification", "causal-lm"])
def test_padding_batches_order_and_masked_rows_change_nothing(
    model_of: Any, kind: str, operator: str
) -> None:
    model, rows = model_of(kind), rows_of(kind)
    space = ParameterSpace.of(model)
    v = random(space.numel)

    def product(data: Any) -> torch.Tensor:
        with CurvatureOperator(model, space, data, operator) as a:
            return a.multiply(v)

    expected = product(make_data(kind, rows, BATCHES))
    for how in VARIANTS.values():
        found = product(make_data(kind, rows, **how))
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
    ignored: Any = -100 if kind == "classification" else [-100] * 4
    more = [*rows, {"input_ids": [5, 6, 7, 13], "labels": ignored}]
    found = product(make_data(kind, more, ([3, 0, 1, 5], [2, 4])))
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


def test_a_subspace_is_a_block_of_the_matrix(model_of: Any) -> None:
    model, rows = model_of("classification"), rows_of("classification")
    whole = ParameterSpace.of(model)
    part = whole.subspace(["*attention*"], ["*.bias"])
    matrix = dense("classification", "hessian", model, rows, space=part)
    v = random(part.numel)
    frozen = model.bert.embeddings.word_embeddings.weight
    with CurvatureOperator(model, part, make_data("classification", rows, BATCHES)) as a:
        assert not frozen.requires_grad
        torch.testing.assert_close(a.multiply(v), matrix @ v, rtol=1e-9, atol=1e-12)
    assert frozen.requires_grad


@pytest.mark.parametrize("operator", ["hessian", "ggn"])
def test_kept_graphs_give_the_same_numbers_to_the_last_bit(model_of: Any, operator: str) -> None:
    model, rows = model_of("classification"), rows_of("classification")
    space, data = ParameterSpace.of(model), make_data("classification", rows, BATCHES)
    v = random(space.numel)
    with CurvatureOperator(model, space, data, operator) as plain:
        expected = plain.multiply(v)
    with CurvatureOperator(model, space, data, operator, memory=2**30) as a:
        found = [a.multiply(v) for _ in range(3)]
        assert len(a._graphs) == 2
    for product in found:
        assert torch.equal(product, expected)
    # A budget for one of the two batches keeps one.
    with CurvatureOperator(model, space, data, operator) as a:
        each = a._graph_bytes(data.batches[0])
        a.memory = 1.1 * each
        assert torch.equal(a.multiply(v), expected) and len(a._graphs) == 1
    # A single batch needs its graph anyway: kept unmeasured, but never without a budget.
    one = make_data("classification", rows, [[3, 0, 1, 2, 4]])
    for memory, kept in ((1.0, 1), (0.0, 0)):
        with CurvatureOperator(model, space, one, operator, memory=memory) as a:
            a.multiply(v)
            assert len(a._graphs) == kept


def test_dropout_is_off_and_weights_stay(model_of: Any) -> None:
    model = model_of("classification")
    model.train()
    space, before = ParameterSpace.of(model), ParameterSpace.of(model).flatten(model)
    data = make_data("classification", rows_of("classification"), BATCHES)
    v = random(space.numel)
    with CurvatureOperator(model, space, data) as a:
        assert torch.equal(a.multiply(v), a.multiply(v))
        a.quadratic_forms([v])
    assert torch.equal(space.flatten(model), before)
    model.eval()


def test_standard_error_is_that_of_a_ratio(model_of: Any) -> None:
    """Against the jackknife over examples of different numbers of tokens."""
    model, rows = model_of("causal-lm"), rows_of("causal-lm")
    space, data = ParameterSpace.of(model), make_data("causal-lm", rows, BATCHES)
    v = random(space.numel)
    with CurvatureOperator(model, space, data, "ggn") as a:
        form = a.quadratic_forms([v])[0]
        error = a.standard_error(form)
    kept = a.shares > 0
    q, n = form[kept], a.shares[kept]
    left_out = torch.stack([(q.sum() - q[i]) / (n.sum() - n[i]) for i in range(len(q))])
    jackknife = ((len(q) - 1) / len(q) * (left_out - left_out.mean()).square().sum()).sqrt()
    assert error == pytest.approx(float(jackknife), rel=0.5)
    same = torch.ones(5, dtype=torch.float64)
    a.shares, a.denominator = same, 5.0
    spread = torch.arange(5.0).double()
    assert a.standard_error(spread) == pytest.approx(float(spread.std() / 5**0.5))


def test_bad_input_is_named(model_of: Any) -> None:
    model, rows = model_of("classification"), rows_of("classification")
    space, data = ParameterSpace.of(model), make_data("classification", rows, BATCHES)
    with pytest.raises(ConfigError, match="did you mean 'hessian'"):
        CurvatureOperator(model, space, data, "hesian")  # type: ignore[arg-type]
    silent = [{**row, "labels": -100} for row in rows]
    with pytest.raises(DataError, match="toy: no position"):
        CurvatureOperator(model, space, make_data("classification", silent, BATCHES))
    broken = model.classifier.bias.detach().clone()
    with torch.no_grad():
        model.classifier.bias.fill_(float("nan"))
    try:
        with CurvatureOperator(model, space, data) as a, pytest.raises(NonFiniteError, match="row"):
            a.multiply(random(space.numel))
    finally:
        with torch.no_grad():
            model.classifier.bias.copy_(broken)
