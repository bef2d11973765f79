"""The usual way to walk a line between two checkpoints, kept as a baseline to measure against.

This is how research scripts on linear mode connectivity do it: every pair starts from the disk,
with three model loads (the third is the model that moves); every point is a whole state dict mixed
on the host and loaded into the model; the inputs are tokenised again for each pair and padded to
the longest sequence the model can take; and both endpoints are evaluated again in each pair they
belong to.
The arithmetic is sound, so its losses are the ones a faster way must reproduce.

Nothing here uses landform. Two things are kinder than the scripts it stands for: the attention
kernel is whatever the installed transformers picks by default, and a point's loss is summed in
double precision.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from os import PathLike

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoModelForSequenceClassification, AutoTokenizer

__all__ = ["evaluate_padded", "mixed_state", "padded_batches", "walk_line"]

Text = str | tuple[str, ...]
"""One sentence, or a pair of them."""

Batch = tuple[dict[str, Tensor], Tensor]
"""The model's inputs, each (n, max_length), and the labels (n,)."""


@contextmanager
def _timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    seconds[stage] = seconds.get(stage, 0.0) + time.perf_counter() - start


def _load(path: str | PathLike[str], device: str) -> nn.Module:
    model: nn.Module = AutoModelForSequenceClassification.from_pretrained(path)
    return model.to(device).eval()


def padded_batches(
    path: str | PathLike[str],
    texts: Sequence[Text],
    labels: Sequence[int],
    batch_size: int,
    max_length: int,
    device: str,
) -> list[Batch]:
    """Batches in the order of the rows, each row padded or cut to `max_length` tokens."""
    tokenizer = AutoTokenizer.from_pretrained(path)
    batches = []
    for start in range(0, len(texts), batch_size):
        rows = [(text,) if isinstance(text, str) else text for text in texts[start:][:batch_size]]
        columns = [list(column) for column in zip(*rows, strict=True)]
        inputs = tokenizer(
            *columns,
            padding="max_length",
            truncation=True,
            max_length=max_length,
            return_tensors="pt",
        )
        answers = torch.as_tensor(labels[start:][:batch_size], dtype=torch.long)
        on_device = {name: value.to(device) for name, value in inputs.items()}
        batches.append((on_device, answers.to(device)))
    return batches


def mixed_state(
    a: nn.Module, b: nn.Module, t: float, template: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """A new state dict on the host: parameters (1 - t) a + t b, buffers as in `template`."""
    state = {name: value.detach().cpu().clone() for name, value in template.items()}
    from_b = dict(b.named_parameters(remove_duplicate=False))
    for name, value in a.named_parameters(remove_duplicate=False):
        if name in state:
            state[name] = (1 - t) * value.detach().cpu() + t * from_b[name].detach().cpu()
    return state


@torch.no_grad()
def evaluate_padded(model: nn.Module, batches: Sequence[Batch]) -> tuple[float, float]:
    """Mean cross-entropy (nats) and accuracy over all rows, each row counting once."""
    total, right, count = 0.0, 0, 0
    for inputs, labels in batches:
        logits = model(**inputs).logits
        total += functional.cross_entropy(logits, labels, reduction="none").double().sum().item()
        right += int((logits.argmax(-1) == labels).sum().item())
        count += len(labels)
    return total / count, right / count


def walk_line(
    path_a: str | PathLike[str],
    path_b: str | PathLike[str],
    texts: Sequence[Text],
    labels: Sequence[int],
    points: int = 10,
    batch_size: int = 128,
    max_length: int = 512,
    *,
    device: str = "cpu",
) -> tuple[list[float], list[float], dict[str, float]]:
    """Losses, accuracies and seconds of one pair, from A (t = 0) to B (t = 1), ends included.

    `labels` are indices into the model's logits. The seconds are divided into `load` (three
    models), `tokenise`, `mix` (building and loading the state dicts) and `evaluate`, with their
    sum as `total`. The scripts this stands for use batches of 512; take the largest that memory
    allows.
    """
    if points < 2:
        raise ValueError(f"a line has at least its two ends; points={points}")
    if len(texts) != len(labels) or not texts:
        raise ValueError(f"{len(texts)} texts and {len(labels)} labels")
    seconds: dict[str, float] = {}
    with _timed(seconds, "load"):
        a, b, walker = _load(path_a, "cpu"), _load(path_b, "cpu"), _load(path_a, device)
        template = a.state_dict()
    with _timed(seconds, "tokenise"):
        batches = padded_batches(path_a, texts, labels, batch_size, max_length, device)
    losses, accuracies = [], []
    for k in range(points):
        with _timed(seconds, "mix"):
            walker.load_state_dict(mixed_state(a, b, k / (points - 1), template))
        with _timed(seconds, "evaluate"):
            loss, accuracy = evaluate_padded(walker, batches)
        losses.append(loss)
        accuracies.append(accuracy)
    seconds["total"] = sum(seconds.values())
    return losses, accuracies, seconds
