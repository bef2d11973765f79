"""EK-FAC influence on SST-2: kronfluence and landform on the same rows, one after the other.

    python benchmarks/influence.py --sst2 DIR            512 training rows x 128 queries, float32
    python benchmarks/influence.py --rows 64 --queries 16   a smaller one
    python benchmarks/influence.py --full --device cuda  67 k rows x 872 queries, BERT-base's shape,
                                                         random weights, bfloat16 and TF32

Three sides, each in a child process of its own, with empirical labels and minus the margin:

    padded      kronfluence as in its GLUE example: inputs padded to 128 tokens, 128 training rows
                and 100 queries in a batch
    batches     kronfluence on the very batches of landform: sorted by length, no padding to speak
                of, all queries held at once, so that one pass over the training rows is enough
    landform    `fit_factors` and `influence`, with the loading of the model and the tokenising

The floor is the arithmetic that the exact result needs (one pass over every row, true tokens, no
gradient that is known to be 0) at the rate of a float32 matrix product measured in the same run.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

HERE = Path(__file__).resolve().parent
WIDTH = 128
"""tokens that the peer's example pads its inputs to"""
TRAIN_BATCH, QUERY_BATCH = 128, 100
"""its default batch sizes"""
PHASES = ("covariance", "eigendecomposition", "lambda", "queries", "scores")
SIDES = {
    "padded": "kronfluence, padded to 128 as in its GLUE example",
    "batches": "kronfluence, the batches of landform",
    "landform": "landform",
}
PUBLISHED = {"bfloat16": 1222.4, "float32": 5088.0}
"""seconds of kronfluence on SST-2 with BERT-base, one A100 of 80 GB"""
PEAKS = {
    "H200": {"bfloat16": 989e12, "float32": 494e12},
    "H100": {"bfloat16": 989e12, "float32": 494e12},
    "A100": {"bfloat16": 312e12, "float32": 156e12},
}
"""FLOP/s of dense tensor-core products (float32: TF32), from the makers' data sheets"""


def peak_memory() -> float:
    """GiB that this process has held at most (VmHWM)."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 2**20


# --- the sides, each in a process of its own ------------------------------------------------------


@contextmanager
def clock(seconds: dict[str, float], phase: str) -> Iterator[None]:
    """Add the seconds of the block to a phase."""
    start = time.perf_counter()
    yield
    seconds[phase] = seconds.get(phase, 0.0) + time.perf_counter() - start


def run_landform(checkpoint: Path, sst2: Path, rows: int, queries: int) -> dict[str, Any]:
    """Seconds by phase and the scores (queries, rows)."""
    import landform as lf

    task = lf.load_task("sst2", data_dir=str(sst2))
    task.examples("train", rows=rows)  # reading the file is no part of either side
    start = time.perf_counter()
    factors = lf.fit_factors(
        checkpoint, task, strategy="ekfac", labels="empirical", rows=rows, max_length=WIDTH
    )
    found = lf.influence(factors, query_rows=queries, measurement="margin", damping=1e-8)
    total = time.perf_counter() - start
    seconds = {name: found.timings[name] for name in PHASES}
    return {"seconds": seconds, "total": total, "scores": found.values}


def run_padded(checkpoint: Path, sst2: Path, rows: int, queries: int) -> dict[str, Any]:
    """kronfluence as in its GLUE example; its search for a batch size is left out (it would run
    the factors twice)."""
    from transformers import default_data_collator

    from landform.weights.checkpoint import load_model, load_tokenizer

    tokenizer = load_tokenizer(checkpoint)

    def encoded(split: str, count: int) -> list[dict[str, Any]]:
        examples = _examples(sst2, split, count)
        texts = [text for (text,) in examples.texts]
        table = tokenizer(texts, padding="max_length", max_length=WIDTH, truncation=True)
        table["labels"] = [int(label) for label in examples.labels]
        return [{name: table[name][i] for name in table} for i in range(count)]

    return _run_kronfluence(
        load_model(checkpoint),
        encoded("train", rows),
        encoded("validation", queries),
        collate=default_data_collator,
        batch_sizes=(min(TRAIN_BATCH, rows), min(QUERY_BATCH, queries)),
    )


def run_batches(checkpoint: Path, sst2: Path, rows: int, queries: int) -> dict[str, Any]:
    """kronfluence on landform's batches: its data loader hands them over one by one."""
    session, train, asked = _prepared(checkpoint, sst2, rows, queries)
    sides = [
        [{**batch.inputs, "labels": batch.labels} for batch in data.batches]
        for data in (train, asked)
    ]
    found = _run_kronfluence(
        session.model, *sides, collate=_first, batch_sizes=(1, 1), accumulate=len(asked.batches)
    )
    orders = [torch.cat([b.rows for b in data.batches]).argsort() for data in (asked, train)]
    found["scores"] = found["scores"][orders[0].numpy()][:, orders[1].numpy()]
    return found


def _first(items: Sequence[Any]) -> Any:
    return items[0]


def _examples(sst2: Path, split: str, rows: int) -> Any:
    import landform as lf

    return lf.load_task("sst2", data_dir=str(sst2)).examples(split, rows=rows)


def _prepared(checkpoint: Path, sst2: Path, rows: int, queries: int) -> tuple[Any, Any, Any]:
    """(session, training rows, queries) as landform batches them."""
    import landform as lf
    from landform.curvature.factors import FactorsConfig
    from landform.curvature.session import Session
    from landform.evaluation.points import Data
    from landform.weights.checkpoint import resolve

    task = lf.load_task("sst2", data_dir=str(sst2))
    data = Data(task, "train")
    session = Session.open(resolve(checkpoint), data, FactorsConfig(max_length=WIDTH))
    train = session.prepare(data, task.examples("train", rows=rows))
    asked = session.prepare(Data(task, "validation"), task.examples("validation", rows=queries))
    return session, train, asked


def _run_kronfluence(
    model: nn.Module,
    train: list[Any],
    queries: list[Any],
    *,
    collate: Any,
    batch_sizes: tuple[int, int],
    accumulate: int = 1,
    dtype: torch.dtype = torch.float32,
) -> dict[str, Any]:
    """EK-FAC scores; `dtype` is that of all but the decompositions, which are float64."""
    from kronfluence.analyzer import Analyzer, prepare_model
    from kronfluence.arguments import FactorArguments, ScoreArguments
    from kronfluence.utils.dataset import DataLoaderKwargs

    task = _classification()
    seconds: dict[str, float] = {}
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        analyzer = Analyzer(
            "sst2", prepare_model(model, task), task, disable_tqdm=True, output_dir=folder
        )
        analyzer.set_dataloader_kwargs(DataLoaderKwargs(collate_fn=collate))
        factor_types = (
            "activation_covariance",
            "gradient_covariance",
            "per_sample_gradient",
            "lambda",
        )
        arguments = FactorArguments(
            strategy="ekfac",
            use_empirical_fisher=True,
            **{f"{name}_dtype": dtype for name in factor_types},
        )
        score_types = ("per_sample_gradient", "precondition", "score")
        score_arguments = ScoreArguments(
            query_gradient_accumulation_steps=accumulate,
            **{f"{name}_dtype": dtype for name in score_types},
        )
        common = {"factors_name": "ekfac", "dataset": train, "factor_args": arguments}
        with clock(seconds, "covariance"):
            analyzer.fit_covariance_matrices(**common, per_device_batch_size=batch_sizes[0])
        with clock(seconds, "eigendecomposition"):
            analyzer.perform_eigendecomposition(factors_name="ekfac", factor_args=arguments)
        with clock(seconds, "lambda"):
            analyzer.fit_lambda_matrices(**common, per_device_batch_size=batch_sizes[0])
        with clock(seconds, "scores"):
            analyzer.compute_pairwise_scores(
                scores_name="ekfac",
                factors_name="ekfac",
                score_args=score_arguments,
                query_dataset=queries,
                train_dataset=train,
                per_device_query_batch_size=batch_sizes[1],
                per_device_train_batch_size=batch_sizes[0],
            )
        total = time.perf_counter() - start
        scores = analyzer.load_pairwise_scores("ekfac")["all_modules"].numpy()
    return {"seconds": seconds, "total": total, "scores": scores}


def _classification() -> Any:
    """The task of a classifier for kronfluence: summed cross-entropy, minus the summed margin."""
    from kronfluence.task import Task

    names = ("input_ids", "token_type_ids", "attention_mask")

    class Classification(Task):  # type: ignore[misc]
        def outputs(self, batch: dict[str, Tensor], model: nn.Module) -> Tensor:
            found: Tensor = model(**{n: batch[n] for n in names if n in batch}).logits
            return found

        def compute_train_loss(
            self, batch: dict[str, Tensor], model: nn.Module, sample: bool = False
        ) -> Tensor:
            logits = self.outputs(batch, model)
            labels = batch["labels"]
            if sample:
                labels = logits.detach().softmax(-1).multinomial(1).squeeze(1)
            return nn.functional.cross_entropy(logits, labels, reduction="sum")

        def compute_measurement(self, batch: dict[str, Tensor], model: nn.Module) -> Tensor:
            logits, gold = self.outputs(batch, model), batch["labels"].unsqueeze(1)
            others = logits.scatter(1, gold, -torch.inf).logsumexp(1)
            return (others - logits.gather(1, gold).squeeze(1)).sum()

        def get_attention_mask(self, batch: dict[str, Tensor]) -> Tensor:
            return batch["attention_mask"]

    return Classification()


RUN = {"padded": run_padded, "batches": run_batches, "landform": run_landform}


def side(name: str, arguments: argparse.Namespace) -> None:
    """Run one side in this process; leave its numbers in arguments.result."""
    if name == "landform":
        import landform.attribution.influence
        import landform.curvature.factors  # noqa: F401  imports are no part of either side
    else:
        import kronfluence  # noqa: F401
    before = peak_memory()
    found = RUN[name](arguments.checkpoint, arguments.sst2, arguments.rows, arguments.queries)
    np.save(arguments.result.with_suffix(".npy"), found.pop("scores"))
    found |= {"libraries": before, "peak": peak_memory()}
    arguments.result.write_text(json.dumps(found))


# --- the floor ------------------------------------------------------------------------------------


def floor_flops(session: Any, train: Any, asked: Any) -> dict[str, float]:
    """FLOP by phase of the exact result, from shapes and true counts of tokens.

    Gram matrices count their half; a decomposition 10/3 n^3 (reduction and back-transformation);
    layers with one input share its Gram matrix, its decomposition and its rotation; tokens without
    any gradient (all but the first in a classifier's last block) count in the Gram matrix only.
    """
    layers, groups = session.layers, session.groups
    seen, live = _counts(session, train)
    q_seen, q_live = _counts(session, asked)
    leaders = sorted(set(groups))
    widest = {i: max(n for n, g in zip(live, groups, strict=True) if g == i) for i in leaders}
    q_widest = {i: max(n for n, g in zip(q_live, groups, strict=True) if g == i) for i in leaders}
    inputs, outputs = [x.columns for x in layers], [x.outputs for x in layers]
    each = range(len(layers))

    def forward_backward(data: Any, counts: list[int]) -> float:
        config = session.model.config
        lengths = torch.cat([b.inputs["attention_mask"].sum(-1) for b in data.batches]).double()
        attention = 4 * float(lengths.square().sum()) * config.hidden_size
        products = sum(4 * counts[i] * inputs[i] * outputs[i] for i in each)
        return products + 3 * attention * config.num_hidden_layers

    def rotation(leading: dict[int, int], counts: list[int]) -> float:
        rows = sum(2 * leading[i] * inputs[i] ** 2 for i in leaders)
        return rows + sum(2 * counts[i] * outputs[i] ** 2 for i in each)

    def gradients(counts: list[int]) -> float:
        return sum(2 * counts[i] * inputs[i] * outputs[i] for i in each)

    sizes = [inputs[i] for i in leaders] + outputs
    entries = sum(inputs[i] * outputs[i] for i in each)
    return {
        "covariance": forward_backward(train, seen)
        + sum(seen[i] * inputs[i] ** 2 for i in leaders)
        + sum(live[i] * outputs[i] ** 2 for i in each),
        "eigendecomposition": sum(10 / 3 * n**3 for n in sizes),
        "lambda": rotation(widest, live) + gradients(live) + 2 * train.size * entries,
        "queries": forward_backward(asked, q_seen)
        + rotation(q_widest, q_live)
        + gradients(q_live)
        + asked.size * entries,
        "scores": gradients(live) + 2 * train.size * asked.size * entries,
    }


def _counts(session: Any, data: Any) -> tuple[list[int], list[int]]:
    """For each layer the rows of its input, and those of them whose gradient is not 0."""
    seen, live = [0] * len(session.layers), [0] * len(session.layers)

    def visit(number: int, uses: list[Any]) -> None:
        for use in uses:
            gradients = use.gradients()
            seen[number] += len(gradients)
            live[number] += int(gradients.ne(0).any(-1).sum())

    with session.capture(data.objective) as capture:
        for batch in data.batches:
            logits = capture.forward(batch)
            targets = data.objective.targets(batch)
            gradient = data.objective.output_gradient(logits.detach(), targets)
            capture.backward(logits, [gradient], visit)
    return seen, live


# --- side by side ---------------------------------------------------------------------------------


def fine_tuned(sst2: Path) -> Path:
    """MiniLM, fine-tuned on 6,400 rows of SST-2 (kept in benchmarks/inputs between runs)."""
    import landform as lf
    from run import WORK, minilm

    task = lf.load_task("sst2", data_dir=str(sst2))
    lf.train(
        minilm(), task, out=WORK / "influence", seeds=(0,), rows=6400, epochs=1,
        eval_split=None, max_length=WIDTH,
    )  # fmt: skip
    return WORK / "influence" / "seed0"


def pearson(a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
    """(smallest correlation of a query's scores, correlation of all scores)."""
    each = [np.corrcoef(x, y)[0, 1] for x, y in zip(a, b, strict=True)]
    return float(np.min(each)), float(np.corrcoef(a.ravel(), b.ravel())[0, 1])


def measure(
    sst2: Path,
    rows: int = 512,
    queries: int = 128,
    sides: Sequence[str] = tuple(SIDES),
    checkpoint: Path | None = None,
) -> dict[str, Any]:
    """Run the sides one after the other; everything that the table is made of."""
    from run import matmul_rate

    checkpoint = checkpoint or fine_tuned(sst2)
    found: dict[str, Any] = {}
    scores: dict[str, np.ndarray] = {}
    rates = [matmul_rate()]
    with tempfile.TemporaryDirectory() as folder:
        for name in sides:
            print(f"  {name} ...", file=sys.stderr, flush=True)
            result = Path(folder) / f"{name}.json"
            subprocess.run(
                [
                    sys.executable, __file__, "--side", name, "--result", str(result),
                    "--checkpoint", str(checkpoint), "--sst2", str(sst2),
                    "--rows", str(rows), "--queries", str(queries),
                ],
                check=True, env={**os.environ, "PYTHONWARNINGS": "ignore"},
            )  # fmt: skip
            found[name] = json.loads(result.read_text())
            scores[name] = np.load(result.with_suffix(".npy"))
            rates.append(matmul_rate())
    flops = floor_flops(*_prepared(checkpoint, sst2, rows, queries))
    agreement = {
        name: pearson(scores["landform"], other)
        for name, other in scores.items()
        if name != "landform" and "landform" in scores
    }
    return {
        "rows": rows,
        "queries": queries,
        "sides": found,
        "flops": flops,
        "rate": float(np.mean(rates)),
        "rates": rates,
        "pearson": agreement,
    }


def table(numbers: dict[str, Any]) -> str:
    """The measurement as Markdown."""
    head = ["seconds", *PHASES, "total", "peak memory", "correlation with landform's scores"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for name, one in numbers["sides"].items():
        spent = [f"{one['seconds'][p]:.1f}" if p in one["seconds"] else "in scores" for p in PHASES]
        memory = f"{one['peak']:.1f} GiB (libraries {one['libraries']:.1f})"
        least, whole = numbers["pearson"].get(name, (1.0, 1.0))
        agreement = "" if name == "landform" else f"{whole:.7f}, least of a query {least:.7f}"
        cells = [SIDES[name], *spent, f"**{one['total']:.1f}**", memory, agreement]
        lines.append("| " + " | ".join(cells) + " |")
    rate, flops = numbers["rate"], numbers["flops"]
    floors = [f"{flops[p] / rate:.1f}" for p in PHASES]
    floor = sum(flops.values()) / rate
    cells = ["arithmetic floor", *floors, f"**{floor:.1f}**", "", ""]
    lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", *_summary(numbers, floor)])


def _summary(numbers: dict[str, Any], floor: float) -> list[str]:
    sides = numbers["sides"]
    lines = [
        f"{numbers['rows']} training rows x {numbers['queries']} queries; float32 matrix product "
        f"{numbers['rate'] / 1e9:.0f} GFLOP/s (mean of the run)."
    ]
    if "landform" in sides:
        ours = sides["landform"]["total"]
        for name in ("padded", "batches"):
            if name in sides:
                ratio = sides[name]["total"] / ours
                lines.append(f"* landform is {ratio:.1f} times faster than {SIDES[name]}.")
        lines.append(f"* landform takes {ours / floor:.1f} times the arithmetic floor.")
    return lines


# --- the full problem on a GPU ------------------------------------------------------------------


def full(arguments: argparse.Namespace) -> None:
    """SST-2 with random weights of BERT-base's shape; timing and the share of the device's peak."""
    from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification

    import landform as lf
    from run import WORK, minilm

    on_gpu = arguments.device.startswith("cuda")
    task = lf.load_task("sst2", data_dir=str(arguments.sst2))
    rows = arguments.rows or (len(task.examples("train")) if on_gpu else 64)
    queries = arguments.queries or (len(task.examples("validation")) if on_gpu else 16)
    shape = {} if on_gpu else {"num_hidden_layers": 2, "hidden_size": 128, "intermediate_size": 512}
    heads = {} if on_gpu else {"num_attention_heads": 2}
    folder = WORK / ("bert-base" if on_gpu else "bert-small")
    tokenizer = AutoTokenizer.from_pretrained(minilm())
    names = dict(enumerate(task.label_names))
    config = BertConfig(
        vocab_size=len(tokenizer), id2label=names, label2id={v: k for k, v in names.items()},
        **shape, **heads,
    )  # fmt: skip
    torch.manual_seed(0)
    BertForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    torch.set_float32_matmul_precision("high")  # float32 products in TF32 where there is such
    where: dict[str, Any] = {
        "device": arguments.device,
        "max_length": WIDTH,
        "token_budget": 16384 if on_gpu else 1024,
    }
    for dtype in arguments.dtypes:
        start = time.perf_counter()
        factors = lf.fit_factors(
            folder, task, strategy="ekfac", labels="empirical", rows=rows, dtype=dtype, **where
        )
        found = lf.influence(factors, query_rows=queries, measurement="margin", damping=1e-8)
        total = time.perf_counter() - start
        _say_full(factors, found, dtype, total, rows, queries)


def _say_full(factors: Any, found: Any, dtype: str, total: float, rows: int, queries: int) -> None:
    from landform.evaluation.points import Data

    session, task = factors.session(), factors.task
    train = session.prepare(Data(task, "train"), task.examples("train", rows=rows))
    asked = session.prepare(Data(task, "validation"), task.examples("validation", rows=queries))
    flops = floor_flops(session, train, asked)
    done = sum(flops.values())
    on_gpu = session.device.type == "cuda"
    device = torch.cuda.get_device_name() if on_gpu else "CPU"
    print(f"\n{dtype} on {device}: {rows} x {queries}, {total:.1f} s, {done / 1e12:.3g} TFLOP")
    for phase in PHASES:
        seconds = found.timings[phase]
        print(f"  {phase:20s} {seconds:8.2f} s  {flops[phase] / seconds / 1e12:8.2f} TFLOP/s")
    peak = next((p[dtype] for name, p in PEAKS.items() if name in device and dtype in p), None)
    if peak is not None:
        print(f"  share of the device's peak: {100 * done / total / peak:.0f} %")
    if on_gpu:
        print(f"  peak GPU memory: {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB")
        torch.cuda.reset_peak_memory_stats()
        if dtype in PUBLISHED:
            ratio = PUBLISHED[dtype] / total
            print(f"  kronfluence's published {PUBLISHED[dtype]:.0f} s (A100): {ratio:.1f} times")


def parse() -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--sst2", type=Path, default=HERE.parents[1] / "shared" / "data" / "sst2",
                        help="folder with SST-2's train.tsv and dev.tsv")  # fmt: skip
    parser.add_argument("--rows", type=int, help="training rows (default: 512; --full: all)")
    parser.add_argument("--queries", type=int, help="queries (default: 128; --full: all)")
    parser.add_argument("--sides", nargs="+", choices=list(SIDES), default=list(SIDES))
    parser.add_argument("--full", action="store_true", help="the full problem, landform alone")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtypes", nargs="+", default=["bfloat16", "float32"])
    parser.add_argument("--side", choices=list(SIDES), help=argparse.SUPPRESS)
    parser.add_argument("--checkpoint", type=Path, help="a classifier (default: made here)")
    parser.add_argument("--result", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    """Measure and print."""
    arguments = parse()
    if arguments.side:
        side(arguments.side, arguments)
    elif arguments.full:
        full(arguments)
    else:
        options = {"rows": arguments.rows, "queries": arguments.queries}
        numbers = measure(
            arguments.sst2, sides=arguments.sides, checkpoint=arguments.checkpoint,
            **{name: value for name, value in options.items() if value},
        )  # fmt: skip
        print(table(numbers))


if __name__ == "__main__":
    main()
