"""Lines and surfaces against the bare forward passes they contain; many models; two processes.

    python benchmarks/geometry.py --sst2 DIR

`make bench ARGS="--only geometry"` runs the same and writes the table.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

HERE = Path(__file__).resolve().parent
Row = dict[str, Any]
ROUNDS = 2


def alternating(*functions: Callable[[], Any]) -> list[float]:
    """Median seconds of each function; they take turns, so that a busy moment meets all of them."""
    times: list[list[float]] = [[] for _ in functions]
    for function in functions:
        function()
    for _ in range(ROUNDS):
        for kept, function in zip(times, functions, strict=True):
            start = time.perf_counter()
            function()
            kept.append(time.perf_counter() - start)
    return [statistics.median(kept) for kept in times]


def shown(row: Row) -> Row:
    """The row, said as soon as it is known: the whole takes half an hour."""
    print(row, file=sys.stderr, flush=True)
    return row


def bare(worker: Any, points: int) -> None:
    """The forward passes and nothing else: the model called on every batch, `points` times."""
    with torch.inference_mode():
        for _ in range(points):
            for data in worker.evaluator.data:
                for batch in data.batches:
                    worker.bound.model(**batch.inputs)


@contextmanager
def scratch() -> Iterator[Any]:
    """A study directory for one run."""
    from landform.store.artifacts import Store

    with tempfile.TemporaryDirectory() as folder:
        yield Store.open(Path(folder) / "study")


def overhead(name: str, work: Any, plan: Any, call: Callable[[], Any]) -> Row:
    """A plan run with an open worker, and a user's whole call, beside its bare forward passes."""
    from landform.store.engines import run_plan

    worker = work()
    points = round(sum(job.cost for job in plan.jobs))

    def run() -> None:
        with scratch() as store:
            run_plan(plan, lambda: worker, store, progress=False)

    forward, walked, whole = alternating(lambda: bare(worker, points), run, call)
    return shown(
        {
            "what": f"{name}: {points} points",
            "bare": f"{forward:.2f} s",
            "landform": f"{walked:.2f} s (+{100 * (walked / forward - 1):.1f} %)",
            "whole": f"{whole:.2f} s (+{100 * (whole / forward - 1):.1f} %)",
            "ratios": [walked / forward, whole / forward],
        }
    )


def bench_overhead(sst2: Path) -> list[Row]:
    """MiniLM on 512 SST-2 rows: a line of 10 points, a plane of 5 x 5."""
    import landform as lf
    from run import fine_tuned

    a, b = fine_tuned(sst2)
    task = lf.load_task("sst2", data_dir=str(sst2))
    options: dict[str, Any] = {"points": 10, "rows": 512}
    rows = [
        overhead(
            "line, MiniLM, 512 SST-2 rows",
            *line_plan(a, b, task, options),
            lambda: lf.interpolate(a, b, task, **options),
        )
    ]
    plane: dict[str, Any] = {"size": 5, "extent": (-0.5, 1.5), "rows": 512}
    models = [a, b, perturbed(a, WORKPLACE / "third")]
    rows.append(
        overhead(
            "plane, MiniLM, 512 SST-2 rows",
            *plane_plan(task, models, plane),
            lambda: lf.surface(task, through=models, **plane),
        )
    )
    return rows


def line_plan(a: Path, b: Path, task: Any, options: dict[str, Any]) -> tuple[Any, Any]:
    """What a line is made of: the work, and the jobs of its ends and its interior."""
    from landform.geometry.line import InterpolateConfig, line_work
    from landform.store.plan import Plan

    config = InterpolateConfig.parse(options)
    work = line_work(a, b, task, "validation", (), config)
    ends = [work.point_job(0), work.point_job(1)]
    return work, Plan((*ends, work.line_job(0, 1, config.ts[1:-1])))


def plane_plan(task: Any, models: list[Path], options: dict[str, Any]) -> tuple[Any, Any]:
    """What a plane is made of: the work, and one job for each cell."""
    from landform.geometry.surface import SurfaceStudy
    from landform.store.plan import Plan

    study = SurfaceStudy.of(task, through=models, options=options)
    with scratch() as store:
        span = study.span(store, study._executor(store, progress=False))
    grid = study.grid(span)
    return study.work, Plan(study.job(span, grid, cell) for cell in grid.cells)


WORKPLACE = HERE / "inputs"


def perturbed(path: Path, out: Path) -> Path:
    """A third model: the first with noise."""
    from landform.weights.checkpoint import load_model, load_tokenizer

    model = load_model(path)
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * parameter.std(correction=0) * torch.randn_like(parameter))
    model.save_pretrained(out)
    load_tokenizer(path).save_pretrained(out)
    return out


def tiny_models(folder: Path, count: int) -> Path:
    """`count` models of two layers, 32 wide, over the embedded study's words, with random weights;
    what they cost does not depend on what they learned."""
    from transformers import AutoConfig, AutoModelForSequenceClassification

    from landform.embedded import encoder_path
    from landform.weights.checkpoint import load_tokenizer

    config = AutoConfig.from_pretrained(encoder_path())
    config.update(
        {
            "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
            "num_attention_heads": 2, "id2label": {0: "entailment", 1: "non-entailment"},
            "label2id": {"entailment": 0, "non-entailment": 1},
        }
    )  # fmt: skip
    tokenizer = load_tokenizer(encoder_path())
    for seed in range(count):
        torch.manual_seed(seed)
        model = AutoModelForSequenceClassification.from_config(config)
        model.save_pretrained(folder / f"m{seed}")
        tokenizer.save_pretrained(folder / f"m{seed}")
    return folder


_MANY = """
import sys, time
import landform as lf
import landform.studies.connect
def peak():
    status = open("/proc/self/status").read()
    return int(status.split("VmHWM:")[1].split()[0])
root, engine, workers, models = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
task = lf.load_task("embedded")
task.examples("validation")
before, start = peak(), time.perf_counter()
paths = [f"{root}/m{i}" for i in range(models)]
s = lf.connect(paths, task, points=10, rows=512, engine=engine, workers=workers,
               store=f"{root}/study-{engine}-{workers}-{models}", replicates=200,
               token_budget=16384)
print(s.evaluations, len(s.pairs), time.perf_counter() - start, before, peak())
"""


def bench_many(_: Path) -> list[Row]:
    """100 tiny models, all pairs, 10 points, 512 rows: evaluations, time, memory; and two Ray
    workers against one, on 20 of them."""
    rows = []
    with tempfile.TemporaryDirectory(dir=WORKPLACE) as folder:
        tiny_models(Path(folder), 100)
        for engine, workers, models in (("local", 1, 100), ("ray", 1, 20), ("ray", 2, 20)):
            out = subprocess.run(
                [sys.executable, "-c", _MANY, folder, engine, str(workers), str(models)],
                check=True, capture_output=True, text=True,
            ).stdout.split()  # fmt: skip
            evaluations, pairs = int(out[0]), int(out[1])
            rows.append(
                shown(
                    {
                        "what": f"{models} tiny models, {pairs:,} pairs x 10 points x 512 rows",
                        "engine": engine if engine == "local" else f"Ray, {workers} worker(s)",
                        "evaluations": f"{evaluations:,} (every pair anew: {10 * pairs:,})",
                        "seconds": float(out[2]),
                        "memory": f"{int(out[4]) / 2**20:.2f} GiB (libraries "
                        f"{int(out[3]) / 2**20:.2f})",
                    }
                )
            )
    return rows


def measure(sst2: Path) -> dict[str, Any]:
    """Both tables as numbers."""
    sys.path.insert(0, str(HERE))
    WORKPLACE.mkdir(exist_ok=True)
    return {"overhead": bench_overhead(sst2), "many": bench_many(sst2)}


def table(numbers: dict[str, Any]) -> str:
    """Both tables as Markdown."""
    lines = [
        "|  | bare forward passes | points, kept in a study | a user's whole call |",
        "|---|---|---|---|",
    ]
    for row in numbers["overhead"]:
        lines.append(f"| {row['what']} | {row['bare']} | {row['landform']} | {row['whole']} |")
    lines += ["", "|  | engine | evaluations | seconds | peak memory |", "|---|---|---|---|---|"]
    for row in numbers["many"]:
        lines.append(
            f"| {row['what']} | {row['engine']} | {row['evaluations']} | {row['seconds']:.0f} "
            f"| {row['memory']} |"
        )
    one, two = (r["seconds"] for r in numbers["many"][1:])
    lines += ["", f"Two Ray workers are {one / two:.2f} times as fast as one."]
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sst2", type=Path, required=True)
    print(table(measure(parser.parse_args().sst2)))
