"""Numbers of tuned models do not depend on padding, batches, order or hidden labels."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import landform as lf
from landform.errors import DataError
from landform.weights.checkpoint import load_model
from landform.weights.tuning import TuningConfig, save_model, tune
from tuned import call, family, ids

METHODS = {
    "adapter": {"adapter_size": 3, "init_std": 0.5},
    "compacter": {"adapter_size": 8, "init_std": 0.5},
    "low-rank-adapter": {"adapter_size": 3},
    "lora": {"lora_rank": 2},
    "prefix": {"prefix_length": 3, "prefix_hidden": 4, "init_std": 1.0},
    "prompt": {"prompt_length": 3, "init_std": 1.0},
    "bitfit": {},
}
each_method = pytest.mark.parametrize("method", list(METHODS))


def tuned_checkpoint(path: Any, base: Any, method: str, kind: str, seed: int = 0) -> Any:
    """A checkpoint of a method, with weights that are far from those it starts with."""
    model: Any = load_model(base, kind)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        headed = kind == "classification"
        tune(model, TuningConfig(tuning=method, **METHODS[method]), head=headed)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name in model.landform_tuned:
                    parameter.add_(torch.randn_like(parameter) * 0.3)
    save_model(model, path, base)
    return path


@each_method
@pytest.mark.parametrize(
    ("kind", "architecture"),
    [("classification", "bert"), ("classification", "gpt2"), ("causal-lm", "gpt2")],
    ids=["bert", "gpt2", "gpt2-lm"],
)
def test_batches_padding_and_order_change_nothing(
    method: str,
    kind: str,
    architecture: str,
    tmp_path: Any,
    save_checkpoint: Any,
    write_rows: Any,
    word_tokenizer: Any,
) -> None:
    base = save_checkpoint(tmp_path / "base", kind=kind, architecture=architecture)
    path = tuned_checkpoint(tmp_path / "tuned", base, method, kind)
    rows = write_rows(tmp_path / "rows.tsv", 12)
    header, *lines = rows.read_text().splitlines()
    (tmp_path / "back.tsv").write_text("\n".join([header, *lines[::-1]]) + "\n")
    options: dict[str, Any] = {"text": "sentence"}
    options |= {"label": "label"} if kind == "classification" else {"kind": "causal-lm"}

    def log(file: str, budget: int) -> Any:
        task = lf.load_task({"validation": str(tmp_path / file)}, **options)
        result = lf.evaluate(path, task, dtype="float64", token_budget=budget, replicates=20)
        return result.log.set_index("text").sort_index()

    together = log("rows.tsv", 400)
    assert (together["tokens"] > 0).all()
    numbers = [c for c in together if c == "loss" or c.startswith("logit")]
    for other in (log("rows.tsv", 1), log("rows.tsv", 60), log("back.tsv", 60)):
        np.testing.assert_allclose(other[numbers], together[numbers], rtol=1e-9, atol=1e-11)


def test_tokens_without_labels_have_no_loss() -> None:
    """-100 at a token is what its absence from the sum would be, in a model with a prompt too."""
    for method in ("prefix", "prompt"):
        model = family("gpt2")
        tune(model, TuningConfig(tuning=method, **METHODS[method]), head=False)
        text = ids(1, 7)
        labels = text.clone()
        labels[:, :4] = -100
        with torch.no_grad():
            loss = model(input_ids=text, labels=labels).loss
            logits = call(model, text)[0, 3:6]
        wanted = torch.nn.functional.cross_entropy(logits, text[0, 4:])
        torch.testing.assert_close(loss, wanted.to(loss))


def test_inputs_are_cut_where_a_prompt_leaves_room(
    tmp_path: Any, save_checkpoint: Any, write_rows: Any
) -> None:
    base = save_checkpoint(tmp_path / "base", max_position_embeddings=10)
    path = tuned_checkpoint(tmp_path / "tuned", base, "prompt", "classification")
    task = lf.load_task(
        {"validation": str(write_rows(tmp_path / "rows.tsv", 12))}, text="sentence", label="label"
    )
    with pytest.warns(UserWarning, match="longer than 7 tokens and were cut"):
        result = lf.evaluate(path, task, replicates=20)
    assert result.log["tokens"].max() <= 7
    with pytest.raises(DataError, match=r"max_length 8 .* \(7 tokens\)"):
        lf.evaluate(path, task, max_length=8)
