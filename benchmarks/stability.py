"""How far the numbers can be trusted: number formats, batches, threads, coverage of intervals.

    python benchmarks/stability.py --sst2 DIR [--write]

Measured on two fine-tunes of MiniLM on SST-2 (those of the other benchmarks). `--write` puts the
tables between the marks of docs/limitations.md. What is compared with float64 is compared with
landform's own numbers in float64: rounding is measured here; that the formulas are right is what
the tests are for.
"""

from __future__ import annotations

import argparse
import platform
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

import landform as lf
from landform.geometry.curves import curve_statistics
from landform.geometry.line import InterpolateConfig, line_work, walk_line
from landform.store.study import open_store
from run import HERE, fine_tuned

PAGE = HERE.parent / "docs" / "limitations.md"


def line_losses(runs: Any, task: lf.Task, split: str, **options: Any) -> np.ndarray:
    """(points, rows) losses along the line between the two fine-tunes, float64."""
    config = InterpolateConfig(**options)
    work = line_work(*runs, task, split, (), config)
    walk = walk_line(work, config, open_store(None))
    return np.stack([np.asarray(p.losses, dtype=np.float64) for p in walk.points[0]])


def number_formats(runs: Any, task: lf.Task, rows: int) -> pd.DataFrame:
    """What the format, the batches and the threads change in the losses of a line of 5 points."""
    common = {"rows": rows, "points": 5}
    exact = line_losses(runs, task, "validation", dtype="float64", **common)
    barrier = float(lf.barrier_height(exact.mean(axis=1)))
    ways: list[tuple[str, dict[str, Any], int]] = [
        ("float32", {}, 1),
        ("float32, batches of 256 tokens", {"token_budget": 256}, 1),
        ("float32, batches of 8,192 tokens", {"token_budget": 8192}, 1),
        ("float32, 2 threads", {}, 2),
        ("bfloat16", {"dtype": "bfloat16"}, 1),
        ("float16", {"dtype": "float16"}, 1),
    ]
    found = []
    for name, options, threads in ways:
        torch.set_num_threads(threads)
        losses = line_losses(runs, task, "validation", **common, **options)
        torch.set_num_threads(1)
        height = float(lf.barrier_height(losses.mean(axis=1)))
        found.append(
            {
                "weights and arithmetic": name,
                "largest error of an example's loss": np.abs(losses - exact).max(),
                "of a point's mean loss": np.abs(losses.mean(1) - exact.mean(1)).max(),
                f"of the barrier ({barrier:.4f})": abs(height - barrier),
            }
        )
    return pd.DataFrame(found)


def relative(a: np.ndarray, b: np.ndarray) -> float:
    """The largest difference, as a share of the largest entry of `b`."""
    return float(np.abs(a - b).max() / np.abs(b).max())


def estimators(run: Path, task: lf.Task, rows: int) -> pd.DataFrame:
    """Fisher, influence and spectrum in float32 beside the same in float64."""
    found: list[tuple[str, float]] = []
    single, double = (
        lf.fisher(run, task, rows=rows, dtype=dtype).by("sublayer").to_numpy()
        for dtype in ("float32", "float64")
    )
    error = float(np.abs(single / double - 1).max())
    found.append(("Fisher diagonal: scores of sub-layers, relative", error))

    scores = {}
    for name, options in (
        ("float64", {"dtype": "float64"}),
        ("float32", {}),
        ("float32, decompositions too", {"eigen_dtype": "float32"}),
    ):
        factors = lf.fit_factors(run, task, rows=rows, **options)
        scores[name] = lf.influence(
            factors, queries="validation", query_rows=16, train_rows=rows, measurement="margin"
        ).values
    for name in ("float32", "float32, decompositions too"):
        rank = np.corrcoef(np.ravel(scores[name]), np.ravel(scores["float64"]))[0, 1]
        found.append((f"EK-FAC scores, {name}: 1 - correlation with float64", float(1 - rank)))

    tops = {
        dtype: lf.spectrum(
            run, task, rows=64, top=3, probes=6, density_probes=0, dtype=dtype, tolerance=1e-4
        )
        for dtype in ("float32", "float64")
    }
    values = [np.asarray(tops[dtype].eigenvalues[:3]) for dtype in ("float32", "float64")]
    found.append(("three largest eigenvalues of the Hessian, relative", relative(*values)))
    traces = [tops[dtype].trace for dtype in ("float32", "float64")]
    found.append(("trace of the Hessian (same probes), relative", abs(traces[0] / traces[1] - 1)))
    return pd.DataFrame(found, columns=["float32 against float64", "error"])


def coverage(runs: Any, task: lf.Task, rows: int, draws: int) -> pd.DataFrame:
    """How often 95 % intervals hold the truth, when real losses are the population.

    The losses of `rows` training sentences at 11 points of the line are taken as all there is;
    samples of n rows are drawn from them with replacement, and each gets its intervals.
    """
    population = line_losses(runs, task, "train", rows=rows, points=11)
    mean = population.mean(axis=1)
    truth = (mean[0], float(lf.barrier_height(mean)), float(lf.convexity_gap(mean)))
    random = np.random.default_rng(0)
    found = []
    for n in (50, 200, 800):
        held, floors, widths, sees = np.zeros(3), [], [], 0
        for _ in range(draws):
            sample = population[:, random.integers(0, population.shape[1], n)]
            s = curve_statistics(sample[None], replicates=500)
            intervals = (
                (s.loss_low[0, 0], s.loss_high[0, 0]),
                (s.barrier_low[0], s.barrier_high[0]),
                (s.gap_low[0], s.gap_high[0]),
            )
            held += [low <= t <= high for t, (low, high) in zip(truth, intervals, strict=True)]
            widths.append(s.barrier_high[0] - s.barrier_low[0])
            floors.append(s.noise_floor[0])
            sees += bool(s.convexity_gap[0] > s.noise_floor[0])
        found.append(
            {
                "rows": n,
                "loss at an end": held[0] / draws,
                f"barrier ({truth[1]:.3f})": held[1] / draws,
                f"convexity gap ({truth[2]:.3f})": held[2] / draws,
                "width of the barrier's interval": np.median(widths),
                "noise floor": np.median(floors),
                "ridge seen above it": sees / draws,
            }
        )
    return pd.DataFrame(found)


def cell(value: Any) -> str:
    """A number as a reader wants it."""
    if not isinstance(value, float):
        return str(value)
    return f"{value:.1e}" if abs(value) < 1e-3 else f"{value:.3f}"


def markdown(table: pd.DataFrame) -> str:
    """A table in Markdown."""
    lines = ["| " + " | ".join(map(str, table.columns)) + " |", "|---" * table.shape[1] + "|"]
    lines += ["| " + " | ".join(map(cell, row)) + " |" for row in table.to_numpy(object).tolist()]
    return "\n".join(lines)


def write(name: str, text: str) -> None:
    """Put a table between the marks `<!-- NAME -->` of the page."""
    page = PAGE.read_text(encoding="utf-8")
    start, end = f"<!-- {name} -->\n", f"<!-- /{name} -->"
    head, rest = page.split(start, 1)
    PAGE.write_text(head + start + text + "\n" + end + rest.split(end, 1)[1], encoding="utf-8")


def main() -> None:
    """Measure, print, and with --write put the tables where they belong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sst2", type=Path, required=True, help="folder of GLUE's SST-2")
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--only", nargs="+", choices=("formats", "estimators", "coverage"))
    parser.add_argument("--rows", type=int, default=512)
    parser.add_argument("--population", type=int, default=3000)
    parser.add_argument("--draws", type=int, default=400)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    task = lf.load_task("sst2", data_dir=str(arguments.sst2))
    runs = fine_tuned(arguments.sst2)
    print(f"torch {torch.__version__}, {platform.machine()}, one thread")
    parts = {
        "formats": lambda: number_formats(runs, task, arguments.rows),
        "estimators": lambda: estimators(runs[0], task, 128),
        "coverage": lambda: coverage(runs, task, arguments.population, arguments.draws),
    }
    for name in arguments.only or parts:
        text = markdown(parts[name]())
        print(f"\n{text}", flush=True)
        if arguments.write:
            write(name, text)


if __name__ == "__main__":
    main()
