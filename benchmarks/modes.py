"""Mode connectivity of tuned models: lines, generated answers, steps of curves, training dynamics.

    python benchmarks/modes.py --sst2 DIR

`make bench ARGS="--only modes"` runs the same and writes the table. Every row compares a thing with
the bare arithmetic it contains, in turns, in one process.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

from geometry import Row, line_plan, overhead, shown  # noqa: E402
from run import WORK, fine_tuned, minilm  # noqa: E402

STEPS = 10
"""Steps whose median is taken, of a curve and of plain training; two before are not counted."""


def in_turns(rounds: int, **functions: Callable[[int], Any]) -> dict[str, float]:
    """Median seconds of every function(round), which take turns; two rounds are not counted."""
    times: dict[str, list[float]] = {name: [] for name in functions}
    for number in range(rounds + 2):
        for name, function in functions.items():
            start = time.perf_counter()
            function(number)
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(kept[2:]) for name, kept in times.items()}


def adapters(sst2: Path) -> tuple[Path, Path]:
    """Two short adapter tunings of MiniLM (kept in benchmarks/inputs between runs)."""
    import landform as lf

    task = lf.load_task("sst2", data_dir=str(sst2))
    lf.train(
        minilm(), task, out=WORK / "adapters", seeds=(0, 1), rows=640, max_steps=40,
        eval_split=None, max_length=64, tuning="adapter", adapter_size=24, learning_rate=1e-3,
    )  # fmt: skip
    return WORK / "adapters" / "seed0", WORK / "adapters" / "seed1"


def bench_lines(ends: dict[str, tuple[Path, Path]], task: Any) -> list[Row]:
    """26 points between two models, with cached ends and without, beside bare forward passes."""
    import landform as lf

    options: dict[str, Any] = {"points": 26, "rows": 256}
    return [
        overhead(
            f"26 points, {method}, MiniLM, 256 SST-2 rows",
            *line_plan(a, b, task, options),
            lambda a=a, b=b: lf.interpolate(a, b, task, **options),
        )
        for method, (a, b) in ends.items()
    ]


def plain_step(end: Path, rows: Any) -> Callable[[int], None]:
    """Training as anyone writes it: collate, forward, backward, AdamW."""
    from landform.tasks.batching import collate
    from landform.weights.checkpoint import load_model

    model: Any = load_model(end, "classification")
    own = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(own, lr=1e-5)

    def step(number: int) -> None:
        batch = collate(rows(number), range(32), pad_id=0)
        logits = model(**batch.inputs).logits
        torch.nn.functional.cross_entropy(logits, batch.labels).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def bench_curves(ends: dict[str, tuple[Path, Path]], task: Any) -> list[Row]:
    """A step of fitting a Bezier curve beside a plain training step on the same rows."""
    from landform.geometry.descent import FitWorker
    from landform.geometry.fitting import CurveConfig, curve_work
    from landform.store.artifacts import MemoryStore
    from landform.store.progress import Track

    table = []
    for method, (a, b) in ends.items():
        config = CurveConfig(steps=1000, batch_size=32, rows=640, token_budget=1 << 20)
        fit = FitWorker(curve_work(a, b, task, "train", config), MemoryStore(), Track()).loop
        encoded = fit.landscape.data.encoded.rows
        step = plain_step(a, lambda k, fit=fit, kept=encoded: [kept[i] for i in fit.rows(k)])
        times = in_turns(STEPS, plain=step, curve=lambda _, fit=fit: fit.advance())
        table.append(
            shown({
                "what": f"one step of a Bezier curve, {method}, MiniLM, 32 SST-2 rows",
                "bare": f"{times['plain']:.3f} s",
                "landform": f"{times['curve']:.3f} s",
                "ratio": times["curve"] / times["plain"],
            })
        )  # fmt: skip
    return table


def t5(folder: Path) -> tuple[Path, Any]:
    """A random T5 (v1.1, 4 + 4 layers, 256 wide) with a word tokenizer, and made-up questions."""
    import transformers as hf
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    import landform as lf

    words = [f"w{i}" for i in range(2000)]
    special = ["<pad>", "</s>", "<unk>", "<extra_id_0>"]
    inner = Tokenizer(
        models.WordLevel({w: i for i, w in enumerate([*special, *words])}, unk_token="<unk>")
    )
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    inner.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    tokenizer = hf.PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", eos_token="</s>", unk_token="<unk>",
        additional_special_tokens=["<extra_id_0>"], model_max_length=512,
    )  # fmt: skip
    torch.manual_seed(0)
    config = hf.T5Config(
        vocab_size=len(special) + len(words), d_model=256, d_kv=64, d_ff=512, num_layers=4,
        num_heads=4, feed_forward_proj="gated-gelu", tie_word_embeddings=False,
        decoder_start_token_id=0, eos_token_id=1, pad_token_id=0,
    )  # fmt: skip
    hf.T5ForConditionalGeneration(config).save_pretrained(folder / "t5")
    tokenizer.save_pretrained(folder / "t5")
    drawn = random.Random(0)
    lines = [
        " ".join(drawn.choice(words) for _ in range(drawn.randint(8, 40))) + "\tw1 w2"
        for _ in range(64)
    ]
    (folder / "made-up_dev.tsv").write_text("\n".join(lines) + "\n")
    task = lf.load_task(str(folder), kind="text-to-text", metrics=("exact_match",))
    return folder / "t5", task


def bench_generation() -> list[Row]:
    """Loss and 16 generated tokens for 64 questions: landform's batches, transformers' `generate`
    on the same batches, and row by row."""
    from landform.evaluation.points import Data, PointsConfig, PointsWork
    from landform.weights.checkpoint import resolve

    with tempfile.TemporaryDirectory() as place:
        end, task = t5(Path(place))
        config = PointsConfig(max_new_tokens=16, token_budget=2048)
        worker = PointsWork((resolve(end),), (Data(task, "validation"),), config)()
        model, batches = worker.bound.model, worker.evaluator.data[0].batches

        def apart(inputs: Any, labels: Any) -> None:
            with torch.inference_mode():
                model(**inputs, labels=labels)
                model.generate(**inputs, max_new_tokens=16, do_sample=False, num_beams=1)

        def batched(_: int) -> None:
            for batch in batches:
                apart(batch.inputs, batch.labels)

        def single(_: int) -> None:
            for batch in batches:
                for i in range(len(batch)):
                    length = int(batch.inputs["attention_mask"][i].sum())
                    cut = {name: v[i : i + 1, :length] for name, v in batch.inputs.items()}
                    apart(cut, batch.labels[i : i + 1])

        times = in_turns(
            1, landform=lambda _: worker.evaluator.run(), batched=batched, single=single
        )
    return [
        shown({
            "what": "loss and 16 tokens each for 64 questions, T5 of 4 + 4 layers, 256 wide",
            "bare": f"row by row {times['single']:.2f} s, generate in batches "
            f"{times['batched']:.2f} s",
            "landform": f"{times['landform']:.2f} s",
            "ratio": times["landform"] / times["batched"],
        })
    ]  # fmt: skip


def bench_dynamics(sst2: Path) -> list[Row]:
    """Training with a record after each of two epochs: what it costs beside the passes it makes."""
    import landform as lf

    task = lf.load_task("sst2", data_dir=str(sst2))
    times: dict[bool, list[float]] = {False: [], True: []}
    options: dict[str, Any] = {"rows": 640, "epochs": 2, "max_length": 64, "eval_split": None}
    for _ in range(2):
        for recorded in times:
            with tempfile.TemporaryDirectory() as out:
                start = time.perf_counter()
                lf.train(minilm(), task, out=out, cartography=recorded, **options)
                times[recorded].append(time.perf_counter() - start)
                run = Path(out) / "seed0"
                if recorded:
                    evaluate = time.perf_counter()
                    passes(run, task, run / "train_rows.txt")
                    pure = 2 * (time.perf_counter() - evaluate)
    without, whole = min(times[False]), min(times[True])
    return [
        shown({
            "what": "2 epochs of 640 SST-2 rows, MiniLM, training dynamics recorded",
            "bare": f"training {without:.1f} s + two passes {pure:.1f} s",
            "landform": f"{whole:.1f} s",
            "ratio": whole / (without + pure),
        })
    ]  # fmt: skip


def passes(run: Path, task: Any, chosen: Path) -> None:
    """One bare forward pass over the rows that a run was trained on."""
    from landform.evaluation.points import Data, PointsConfig, prepare
    from landform.weights.checkpoint import load_model, load_tokenizer, resolve

    examples = task.examples("train")
    ids = set(chosen.read_text().split())
    rows = [i for i, name in enumerate(examples.ids) if name in ids]
    checkpoint, config = resolve(run), PointsConfig(max_length=64, token_budget=4096)
    model: Any = load_model(checkpoint, "classification")
    data = Data(task, "train")
    prepared = prepare(
        data, checkpoint, model, load_tokenizer(checkpoint), config, examples.take(rows)
    )
    with torch.inference_mode():
        for batch in prepared.batches:
            model(**batch.inputs)


def measure(sst2: Path) -> dict[str, Any]:
    """All rows as numbers."""
    import landform as lf

    WORK.mkdir(exist_ok=True)
    task = lf.load_task("sst2", data_dir=str(sst2))
    ends = {"full": fine_tuned(sst2), "adapter": adapters(sst2)}
    return {
        "lines": bench_lines(ends, task),
        "rest": [*bench_curves(ends, task), *bench_generation(), *bench_dynamics(sst2)],
    }


def table(numbers: dict[str, Any]) -> str:
    """Both tables as Markdown."""
    lines = [
        "|  | bare forward passes | points, kept in a study | a user's whole call |",
        "|---|---|---|---|",
    ]
    for row in numbers["lines"]:
        lines.append(f"| {row['what']} | {row['bare']} | {row['landform']} | {row['whole']} |")
    lines += ["", "|  | beside | landform | ratio |", "|---|---|---|---|"]
    for row in numbers["rest"]:
        lines.append(f"| {row['what']} | {row['bare']} | {row['landform']} | {row['ratio']:.2f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sst2", type=Path, required=True)
    print(table(measure(parser.parse_args().sst2)))
