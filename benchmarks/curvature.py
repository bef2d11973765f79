"""Fisher diagonals, products with curvature matrices, masked surfaces: beside what they replace.

    python benchmarks/curvature.py --sst2 DIR

`make bench ARGS="--only curvature"` runs the same and writes the table. Both sides use the same
model and rows in one process, in turns; the guided-dropout loop and PyHessian's product are written
out here as they are there.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

from geometry import WORKPLACE, Row, alternating, bare, shown  # noqa: E402
from run import fine_tuned, matmul_rate  # noqa: E402

ROWS, SLOW_ROWS = 512, 100
"""Rows of a Fisher diagonal by landform, and by the loop: its time is the same for every row."""


def loop_fisher(model: Any, batches: list[Any]) -> tuple[list[Tensor], list[float]]:
    """The guided-dropout code: one example at a time, squares of all gradients kept by the hundred,
    and the mean of all squares of every example."""
    parameters = list(model.parameters())
    for parameter in parameters:
        parameter.requires_grad_(True)
    total: list[Tensor] = []
    block: list[list[Tensor]] = []
    means = []
    for number, batch in enumerate(batches, start=1):
        model.zero_grad()
        model(**batch.inputs, labels=batch.labels).loss.backward()
        squares = [p.grad.detach().cpu() ** 2 for p in parameters]
        means.append(torch.cat([s.flatten() for s in squares]).mean().item())
        block.append(squares)
        if len(block) == 100 or number == len(batches):
            sums = [torch.stack(same).sum(0) / len(batches) for same in zip(*block, strict=True)]
            total = [a + b for a, b in zip(total, sums, strict=True)] if total else sums
            block = []
    return total, means


def bench_fisher(model_path: Path, task: Any) -> list[Row]:
    """The diagonal on SST-2 sentences: time per example, memory, agreement."""
    import landform as lf
    from landform.evaluation.points import Data, DataConfig, prepare
    from landform.tasks.batching import cut_batches
    from landform.weights.checkpoint import load_model, load_tokenizer, resolve

    checkpoint = resolve(model_path)
    model: Any = load_model(checkpoint, "classification").eval()
    data = prepare(
        Data(task, "train"), checkpoint, model, load_tokenizer(checkpoint), DataConfig(rows=ROWS)
    )
    single = [cut_batches(data.encoded.take([i]), 1)[0] for i in range(SLOW_ROWS)]
    start = time.perf_counter()
    theirs, _ = loop_fisher(model, single)
    slow = (time.perf_counter() - start) / SLOW_ROWS
    times = []
    for rows in (SLOW_ROWS, ROWS):
        start = time.perf_counter()
        ours = lf.fisher(model_path, task, split="train", rows=rows)
        times.append(time.perf_counter() - start)
        if rows == SLOW_ROWS:
            worst = max(
                float((ours.diagonal[name] - f).abs().max() / f.max().clamp(min=1e-12))
                for (name, _), f in zip(model.named_parameters(), theirs, strict=True)
            )
    fast = times[1] / ROWS
    copy = sum(p.numel() for p in model.parameters()) * 4 / 2**20
    return [
        shown(
            {
                "what": f"Fisher diagonal, MiniLM, {ROWS} SST-2 sentences, the whole call",
                "landform": f"{1e3 * fast:.1f} ms an example",
                "peer": f"guided-dropout's loop, {SLOW_ROWS} of them: {1e3 * slow:.0f} ms",
                "ratio": f"{slow / fast:.1f} x faster",
                "notes": f"entries differ by at most {worst:.0e} of a tensor's largest; sums held: "
                f"{copy:.0f} MiB (the loop: up to {201 * copy / 1024:.0f} GiB)",
            }
        )
    ]


def _products(model: Any, worker: Any, v: Tensor) -> dict[str, Callable[[], Any]]:
    """The products to be compared: all of the mean loss over the rows of one batch."""
    (batch,) = worker.evaluator.data[0].batches
    parameters = list(model.parameters())
    for parameter in parameters:
        parameter.requires_grad_(True)
    parts = [part.clone() for part in worker.space.unflatten(v).values()]

    def gradient() -> tuple[Tensor, ...]:
        loss = torch.nn.functional.cross_entropy(model(**batch.inputs).logits, batch.labels)
        return torch.autograd.grad(loss, parameters, create_graph=True)

    held = gradient()

    kept, anew, ggn = (
        _operator(worker, *options)
        for options in (("hessian", 1e11), ("hessian", 0), ("ggn", 1e11))
    )
    made: dict[str, Callable[[], Any]] = {
        "kept peer": lambda: torch.autograd.grad(held, parameters, parts, retain_graph=True),
        "kept": lambda: kept.multiply(v),
        "anew peer": lambda: torch.autograd.grad(gradient(), parameters, parts),
        "anew": lambda: anew.multiply(v),
        "ggn": lambda: ggn.multiply(v),
    }
    return made | _curvlinops(model, batch, v)


def _operator(worker: Any, kind: str, memory: float) -> Any:
    """landform's operator; with `memory` it keeps the graphs of the first derivative."""
    from landform.curvature.operators import CurvatureOperator

    data, model = worker.evaluator.data[0], worker.evaluator.model
    return CurvatureOperator(model, worker.space, data, kind, memory=memory).__enter__()


def _curvlinops(model: Any, batch: Any, v: Tensor) -> dict[str, Callable[[], Any]]:
    try:
        from curvlinops import GGNLinearOperator, HessianLinearOperator
    except ImportError:
        return {}
    from collections import UserDict

    class Logits(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = model

        def forward(self, inputs: Any) -> Tensor:
            logits: Tensor = self.inner(**inputs).logits
            return logits

    wrapped, loss = Logits(), torch.nn.CrossEntropyLoss()

    def of(kind: Any) -> Any:
        return kind(
            wrapped,
            loss,
            list(wrapped.parameters()),
            [(UserDict(batch.inputs), batch.labels)],
            check_deterministic=False,
            batch_size_fn=lambda inputs: len(inputs["input_ids"]),
        )

    hessian, ggn = of(HessianLinearOperator), of(GGNLinearOperator)
    return {"curvlinops": lambda: hessian @ v, "curvlinops ggn": lambda: ggn @ v}


def bench_products(model_path: Path, task: Any) -> list[Row]:
    """Hessian- and GGN-vector products on the same 64 rows in one batch."""
    from landform.curvature.operators import differentiable_attention
    from landform.evaluation.points import Data, PointsConfig, PointsWork
    from landform.weights.checkpoint import resolve

    config = PointsConfig(rows=64, token_budget=1 << 20)
    worker = PointsWork((resolve(model_path),), (Data(task, "validation"),), config)()
    model: Any = worker.evaluator.model.eval()
    v = torch.randn(worker.space.numel, generator=torch.Generator().manual_seed(0))
    with differentiable_attention():
        products = _products(model, worker, v / v.norm())
        seconds = dict(zip(products, alternating(*products.values()), strict=True))
        own = PointsWork(
            (resolve(model_path),), (Data(task, "validation"),), PointsConfig(rows=64)
        )()
        cut = _operator(own, "hessian", 1e11)
        seconds |= {"own": alternating(lambda: cut.multiply(v))[0]}
    pairs = [
        ("Hessian, one batch, first graph kept", "kept", "kept peer", "PyHessian's product"),
        ("the same in landform's batches (by length)", "own", "kept peer", "PyHessian's product"),
        ("Hessian, one batch, graph made anew", "anew", "anew peer", "PyHessian over a loader"),
        ("Hessian, one batch, graph made anew", "anew", "curvlinops", "curvlinops"),
        ("Gauss-Newton, one batch", "ggn", "curvlinops ggn", "curvlinops"),
    ]
    return [
        shown(
            {
                "what": f"product, MiniLM, 64 SST-2 rows: {what}",
                "landform": f"{seconds[ours]:.2f} s",
                "peer": f"{peer}: {seconds[theirs]:.2f} s",
                "ratio": f"{seconds[theirs] / seconds[ours]:.2f} x as fast",
                "notes": "",
            }
        )
        for what, ours, theirs, peer in pairs
        if theirs in seconds
    ]


def bench_surface(
    model_path: Path, task: Any, size: int, rows: int, grid: dict[str, Any]
) -> list[Row]:
    """A masked surface of size x size cells beside as many bare evaluations."""
    import landform as lf
    from landform.geometry.surface import SurfaceStudy
    from landform.store.artifacts import Store

    fisher = lf.fisher(model_path, task, split="train", rows=64)
    options = {"rows": rows, "mask": "fisher-top", **grid}
    study = SurfaceStudy.of(task, around=model_path, fisher=fisher, options=options)
    worker = study.work()

    def surface() -> None:
        with tempfile.TemporaryDirectory(dir=WORKPLACE) as folder:
            study.run(Store.open(folder))

    plain, ours = alternating(lambda: bare(worker, size * size), surface)
    return [
        shown(
            {
                "what": f"{size} x {size} masked surface, MiniLM, {rows} SST-2 rows, in a study",
                "landform": f"{ours:.1f} s",
                "peer": f"{size * size} bare evaluations: {plain:.1f} s",
                "ratio": f"{100 * (ours / plain - 1):+.1f} %",
                "notes": "opening, directions, mask, intervals and the files of all cells included",
            }
        )
    ]


def measure(sst2: Path) -> dict[str, Any]:
    """The table as numbers."""
    import landform as lf

    WORKPLACE.mkdir(exist_ok=True)
    torch.set_num_threads(1)
    path, _ = fine_tuned(sst2)
    task = lf.load_task("sst2", data_dir=str(sst2))
    rate = matmul_rate()
    rows = bench_fisher(path, task) + bench_products(path, task)
    # Two surfaces: what is spent once and what a cell costs beside its forward passes follow.
    rows += bench_surface(path, task, 16, 16, {"compat": "guided-dropout"})
    rows += bench_surface(path, task, 7, 128, {"size": 7})
    return {"rows": rows, "matmul": rate}


def table(numbers: dict[str, Any]) -> str:
    """The table as Markdown."""
    lines = ["| what | landform | beside it | ratio | notes |", "|---|---|---|---|---|"]
    for row in numbers["rows"]:
        cells = (row[key] for key in ("what", "landform", "peer", "ratio", "notes"))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--sst2", type=Path, required=True, help="GLUE's SST-2 folder")
    print(table(measure(parser.parse_args().sst2)))
