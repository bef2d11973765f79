"""The embedded study: eight seeds of a small encoder, in and out of domain, connected; the plane
through three of them and a bent path between two; what training said of every row, and what is
forgotten on the way to another model; the Fisher information of the first of them by layer, and the
loss around it where only a part of its parameters moves; and which training rows it owes its
answers to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from landform.embedded import STUDY, encoder_path
from landform.errors import ConfigError
from landform.studies.study_file import StudyFile

__all__ = ["demo_study"]


def demo_study(out: Path, *, seeds: int | None = None, **changes: Any) -> StudyFile:
    """The embedded study as a study file, to be kept in the directory `out`.

    The training pairs leave open whether the model should learn a heuristic (word overlap means
    entailment) or the grammar; the split `heuristics` tells the two apart. `changes` replace
    training options.
    """
    if seeds is not None and seeds < 2:
        raise ConfigError(
            f"option seeds: {seeds} runs cannot be connected", remedy="use 2 seeds or more"
        )
    chosen = STUDY.seeds if seeds is None else tuple(range(seeds))
    train = {
        "model": str(encoder_path()),
        "task": "embedded",
        "out": "runs",
        "seeds": chosen,
        "max_steps": STUDY.steps,
        "batch_size": STUDY.batch_size,
        "learning_rate": STUDY.learning_rate,
        "warmup_ratio": STUDY.warmup,
        "weight_decay": STUDY.weight_decay,
        "dropout": STUDY.dropout,
        "cartography": True,
        **changes,
    }
    runs = [f"runs/seed{seed}" for seed in chosen]
    steps = [
        {"train": train},
        {"evaluate": {"checkpoints": runs, "task": "embedded:heuristics"}},
        {
            "connect": {
                "checkpoints": runs,
                "task": "embedded",
                "also": ["embedded:heuristics"],
                "points": 10,
            }
        },
        *_ground(runs),
        *_surroundings(runs[0]),
        {
            "influence": {
                "checkpoint": runs[0],
                "task": "embedded",
                "queries": ["validation", "heuristics"],
                "query_rows": 128,
                "measurement": "margin",
            }
        },
        {"report": {"title": "The embedded study"}},
    ]
    return StudyFile.of({"study": ".", "steps": steps}, base=out, where="the embedded study")


def _ground(runs: list[str]) -> list[dict[str, Any]]:
    """A plane through the first, the middle and the last run; between the first two of these a path
    round what lies there, and what becomes of the training rows on the line."""
    data = {"task": "embedded", "also": ["embedded:heuristics"]}
    first, middle, last = runs[0], runs[len(runs) // 2], runs[-1]
    steps: list[dict[str, Any]] = []
    if len(runs) > 2:
        plane = {"through": [first, middle, last], "size": 9, "extent": [-0.5, 1.5]}
        steps.append({"surface": {**data, **plane}})
    steps.append({"curve": {"a": first, "b": middle, "steps": 60, **data}})
    steps.append({"cartography": {"runs": first, "task": "embedded"}})
    ends = {"a": first, "b": middle, "cartography": first}
    steps.append({"knowledge": {**ends, "task": "embedded"}})
    return steps


def _surroundings(run: str) -> list[dict[str, Any]]:
    """How much the loss depends on every parameter of one run, and the loss around it: everything
    moved, the half of the entries of high or of low Fisher information, and a random half."""
    masks = ["none", "fisher-top", "fisher-bottom", "random"]
    grid = {"size": 7, "range": 1.0, "rows": 256, "mask_by": "entry"}
    fisher = "fisher.safetensors"
    return [
        {"fisher": {"checkpoint": run, "task": "embedded", "rows": 512, "out": fisher}},
        {"surface": {"around": run, "task": "embedded", "fisher": fisher, "mask": masks, **grid}},
    ]
