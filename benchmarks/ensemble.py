"""Seconds per retraining of the embedded study: one by one, stacked, vmapped, in two processes.

`python benchmarks/ensemble.py` prints a table. Every way trains on the same halves of the rows
with the same options. Seconds are those of the median step, times the steps of a model and by the
models of a pass; those of `train` are of whole runs, whose first one warms up. Machines are shared
and noisy: read ratios.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

import landform as lf
from landform.embedded import STUDY, encoder_path
from landform.evaluation.points import Data
from landform.tasks.task import load_task
from landform.training import ensemble
from landform.training.ensemble import plan_retraining
from landform.training.options import TrainConfig
from landform.training.stacked import _Trained
from landform.weights.checkpoint import resolve

OPTIONS = {
    "max_steps": STUDY.steps,
    "batch_size": STUDY.batch_size,
    "learning_rate": STUDY.learning_rate,
    "warmup_ratio": STUDY.warmup,
    "weight_decay": STUDY.weight_decay,
    "dropout": 0.0,
    "device": "cpu",
}


class Vmapped(_Trained):
    """K models by `torch.func.vmap` over the model's own code, with the interface of a stack."""

    def __init__(self, models: Sequence[nn.Module]) -> None:
        super().__init__(models)
        self.model = models[0]
        # vmap has no rule for the fused attention and would run it row by row.
        self.model.set_attn_implementation("eager")  # type: ignore[operator]
        self.weights: dict[str, Tensor] = {}
        for name, parameter in self.model.named_parameters():
            weight = self.layout.view(self.flat, parameter).detach().requires_grad_()
            weight.grad = self.layout.view(self.gradient, parameter)
            self.weights[name] = weight

    def logits(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Raw outputs; the mask is made here, since the model would look into it."""
        inputs = dict(inputs)
        mask = inputs.pop("attention_mask")
        wide = (1.0 - mask[:, None, None].float()) * torch.finfo(torch.float32).min
        rows = {"attention_mask": wide, **inputs}
        parts = {k: v.view(len(self.flat), -1, *v.shape[1:]) for k, v in rows.items()}

        def one(weights: Mapping[str, Tensor], batch: Mapping[str, Tensor]) -> Tensor:
            return functional_call(self.model, dict(weights), kwargs=dict(batch)).logits

        raw: Tensor = vmap(one, randomness="different")(self.weights, parts)
        return raw.flatten(0, 1)


def step_seconds(models: type | None, together: int, steps: int) -> float:
    """Seconds of the median step of one model, where `together` share a pass."""
    task = load_task("embedded")
    draw = np.random.default_rng(0)
    subsets = [draw.permutation(3000)[:1500] for _ in range(together)]
    work, _ = plan_retraining(
        resolve(encoder_path()), task, subsets, seeds=(0,), queries=Data(task, "validation"),
        config=TrainConfig(**OPTIONS), together=together,
    )  # fmt: skip
    chosen = {"Stack": models, "Single": lambda model: models([model])} if models else {}
    with patch.multiple(ensemble, **chosen) if chosen else nullcontext():
        group = ensemble._Group(work(), work.members)
    seconds = []
    for step in range(steps):
        start = time.perf_counter()
        group.step(step)
        seconds.append(time.perf_counter() - start)
    return float(np.median(seconds[1:])) / together


def train_seconds(steps: int) -> float:
    """Seconds of one step of `train`."""
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for run in range(2):
            result = lf.train(
                encoder_path(), load_task("embedded"), out=Path(folder) / str(run), rows=1500,
                eval_split=None, resume_steps=0, **{**OPTIONS, "max_steps": steps},
            )  # fmt: skip
            found.append(float(result.runs.seconds[0]) / steps)
    return found[-1]


def two_processes(together: int, steps: int) -> float:
    """Seconds of a step of one model where two processes have a thread each."""
    command = [sys.executable, __file__, "--one", str(together), "--steps", str(steps)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    running = [
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    each = [float(process.communicate()[0].split()[-1]) for process in running]
    return float(np.mean(each)) / 2


def main() -> None:
    """Measure every way and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=25, help="steps that are timed")
    parser.add_argument("--together", type=int, nargs="+", default=[1, 4, 8, 16, 32])
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(step_seconds(None, arguments.one, arguments.steps))
        return
    steps, rows = arguments.steps, []
    base = train_seconds(max(steps, 20))
    rows.append(("`train`", 1, base))
    for together in arguments.together:
        rows.append(("stacked", together, step_seconds(None, together, steps)))
    for together in arguments.together:
        rows.append(("vmapped", together, step_seconds(Vmapped, together, steps)))
    for together in (1, 8):
        rows.append(("two processes", together, two_processes(together, steps)))
    print(f"{torch.get_num_threads()} threads, {STUDY.steps} steps of {STUDY.batch_size} rows\n")
    print("| way | models in a pass | seconds per model | times faster | 500 models, minutes |")
    print("|---|---|---|---|---|")
    for way, together, seconds in rows:
        model = seconds * STUDY.steps
        print(
            f"| {way} | {together} | {model:.2f} | {base / seconds:.1f} | {model * 500 / 60:.0f} |"
        )


if __name__ == "__main__":
    main()
