"""landform beside the libraries of its field: same work, same machine, one run; a table, a figure.

    python benchmarks/run.py --only peers            or: make bench ARGS="--only peers"
    python benchmarks/peers.py --only average line   some of the rows, printed only

Each side runs in a process of its own with one thread, in turns with the others (`turns`,
`peer_sides`). The floor of a row is the arithmetic that its result needs at the rate of a float32
matrix product, or the bytes it must move at the rate of a copy, both measured in the same run.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import random
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

from turns import THREADS, Measured, in_turns, markdown, rates, relative  # noqa: E402

PACKAGES = {
    "kronfluence": "kronfluence", "bergson": "bergson", "dattri": "dattri",
    "curvlinops": "curvlinops-for-pytorch", "PyHessian": "pyhessian",
    "loss-landscapes": "loss-landscapes", "mergekit": "mergekit",
}  # fmt: skip
RECREATED = ("hessian-eigenthings", "connectivity scripts", "guided-dropout")
FIGURE = HERE.parent / "docs" / "images" / "benchmarks.png"
PICTURE = "![Time relative to landform, with the floors](../docs/images/benchmarks.png)"

Numbers = dict[str, np.ndarray]


@dataclass(frozen=True)
class Row:
    """One piece of work, and who does it."""

    what: str
    sides: dict[str, str]
    """{name: function of `peer_sides`}; landform is the first"""
    arguments: dict[str, Any]
    agree: Callable[[Numbers, Numbers], str]
    flop: float = 0.0
    """multiply-adds x 2 that the result needs"""
    moved: float = 0.0
    """bytes it must read and write, where that is the floor"""
    rounds: int = 3


# --- how far the numbers agree --------------------------------------------------------------------


def same(name: str, what: str) -> Callable[[Numbers, Numbers], str]:
    """The largest difference of one array, as a share of its largest entry."""

    def words(ours: Numbers, theirs: Numbers) -> str:
        known = np.isfinite(theirs[name])
        return f"{what} within {relative(ours[name][known], theirs[name][known]):.0e}"

    return words


def agree_scores(ours: Numbers, theirs: Numbers) -> str:
    """Correlation of all scores and of the worst query."""
    from influence import pearson

    least, whole = pearson(ours["scores"], theirs["scores"])
    return f"correlation {whole:.7f} (worst query {least:.6f})"


def agree_products(ours: Numbers, theirs: Numbers) -> str:
    """LayerNorm's weights apart: torch's forward mode, which curvlinops uses, is wrong there."""
    rest = relative(ours["others"], theirs["others"])
    norms = relative(ours["layer norms"], theirs["layer norms"])
    return f"within {rest:.0e}; LayerNorm weights {norms:.0e}"


def agree_trace(ours: Numbers, theirs: Numbers) -> str:
    """Random vectors differ, so in standard errors."""
    a, b, error = (float(x) for x in (ours["trace"], theirs["trace"], ours["error"]))
    other = float(theirs.get("error", np.asarray(error)))
    return f"{b:.4g} against {a:.4g}: {abs(a - b) / np.hypot(error, other):.1f} standard errors"


def agree_tensors(ours: Numbers, theirs: Numbers) -> str:
    """The worst tensor, relative to its largest entry."""
    worst = max(relative(ours[n], theirs[n]) for n in theirs if np.abs(theirs[n]).max() > 1e-12)
    return f"entries within {worst:.0e} of a tensor's largest"


def agree_factors(ours: Numbers, theirs: Numbers) -> str:
    """Covariances up to their scale; of refitted eigenvalues the sum, which no basis changes."""
    inputs, gradients = (
        max(
            relative(ours[n] / np.trace(ours[n]), theirs[n] / np.trace(theirs[n]))
            for n in theirs
            if n[0] == side
        )
        for side in "AS"
    )
    sums = max(
        abs(ours[n].sum(dtype=float) / theirs[n].sum(dtype=float) - 1)
        for n in theirs if n.startswith("lambda")
    )  # fmt: skip
    return (
        f"traces within {sums:.0e}, covariances of gradients {gradients:.0e}, "
        f"of inputs {inputs:.0e}"
    )


def agree_files(ours: Numbers, theirs: Numbers) -> str:
    """What is on the disk."""
    from safetensors.torch import load_file

    a, b = (load_file(Path(str(x["folder"])) / "model.safetensors") for x in (ours, theirs))
    if set(a) != set(b):
        return f"tensors differ: {sorted(set(a) ^ set(b))}"
    worst = max(float((a[n].double() - b[n].double()).abs().max()) for n in a)
    equal = sum(torch.equal(a[n], b[n]) for n in a)
    return f"{equal} of {len(a)} tensors bit for bit, entries within {worst:.0e}"


def agree_planes(ours: Numbers, theirs: Numbers) -> str:
    """Random directions differ: nothing to compare but the rule, which `invariance` looks at."""
    return f"directions are random ({ours['losses'].size} and {theirs['losses'].size} points)"


# --- the rows -------------------------------------------------------------------------------------


def causal_model(folder: Path) -> tuple[str, str]:
    """A LLaMA of 4 layers, 128 wide, with random weights, and 256 random texts of 8 to 64 words."""
    import transformers as hf
    from tokenizers import Tokenizer, models, pre_tokenizers

    texts = folder / "train.tsv"
    if not texts.exists():
        words = ["<pad>", "</s>", "<unk>", *[f"w{i}" for i in range(2000)]]
        table = {word: i for i, word in enumerate(words)}
        tokenizer = Tokenizer(models.WordLevel(table, unk_token="<unk>"))
        tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        torch.manual_seed(0)
        config = hf.LlamaConfig(
            vocab_size=len(words), hidden_size=128, intermediate_size=384, num_hidden_layers=4,
            num_attention_heads=4, max_position_embeddings=128, pad_token_id=0, eos_token_id=1,
            tie_word_embeddings=False,
        )  # fmt: skip
        hf.LlamaForCausalLM(config).save_pretrained(folder)
        hf.PreTrainedTokenizerFast(
            tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>",
            model_max_length=128, model_input_names=["input_ids", "attention_mask"],
        ).save_pretrained(folder)  # fmt: skip
        draw = random.Random(0)
        lines = [" ".join(draw.choices(words[3:], k=draw.randint(8, 64))) for _ in range(256)]
        texts.write_text("\n".join(["text", *lines]) + "\n")
    return str(folder), str(texts)


def tuned_encoder(folder: Path) -> Path:
    """The embedded study's encoder after 20 steps (kept in benchmarks/inputs between runs)."""
    import landform as lf
    from landform.embedded import encoder_path

    lf.train(
        encoder_path(), lf.load_task("embedded"), out=folder, seeds=(0,), rows=640, max_steps=20,
        eval_split=None,
    )  # fmt: skip
    return folder / "seed0"


class Costs:
    """Floors: multiply-adds x 2 of MiniLM's matrix products on the true tokens of some rows."""

    def __init__(self, checkpoint: Path, task: Any) -> None:
        from landform.weights.checkpoint import load_model

        self.checkpoint, self.task = checkpoint, task
        self.model: Any = load_model(checkpoint, "classification")
        self.entries = sum(p.numel() for p in self.model.parameters())

    def forward(self, rows: int, split: str = "validation") -> float:
        """One forward pass."""
        from landform.tasks.batching import encode
        from landform.weights.checkpoint import load_tokenizer
        from run import forward_flops

        examples = self.task.examples(split, rows=rows)
        tokenizer = load_tokenizer(self.checkpoint)
        encoded = encode(examples, tokenizer, self.task.kind, max_length=512)
        return forward_flops(self.model.config, encoded.lengths)

    def product(self, rows: int, count: float, kind: str) -> float:
        """`count` products: of a matrix product's forward pass (1 unit) the gradient costs 2, a
        Hessian's two passes back and forth 6, those of a Gauss-Newton matrix or a Fisher 4; what
        does not depend on the vector is needed once."""
        once, each = (3, 6) if kind == "hessian" else (1, 4)
        return (once + each * count) * self.forward(rows)


def influence_flops(checkpoint: Path, sst2: Path, rows: int, queries: int) -> float:
    """See `influence.floor_flops`."""
    import influence

    return sum(
        influence.floor_flops(*influence._prepared(checkpoint, sst2, rows, queries)).values()
    )


def causal_flops(model: str, texts: str, rows: int, strategy: str) -> float:
    """Forward and backward; for scores the gradients and all pairs of them, for EK-FAC half a Gram
    matrix a side, a decomposition, one rotation of tokens, gradients and their squares."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(model)
    lines = Path(texts).read_text().splitlines()[1 : rows + 1]
    tokens = sum(len(line.split()) for line in lines)
    d, inner = config.hidden_size, config.intermediate_size
    shapes = config.num_hidden_layers * [*[(d, d)] * 4, *[(d, inner)] * 2, (inner, d)]
    entries = sum(a * b for a, b in shapes)
    passes = 6 * tokens * (entries + d * config.vocab_size)
    if strategy == "identity":
        return passes + rows * rows * entries
    sides = sum(tokens * (a * a + b * b) + 10 / 3 * (a**3 + b**3) for a, b in shapes)
    turned = sum(2 * tokens * (a * a + b * b + a * b) for a, b in shapes)
    return passes + sides + turned + 2 * rows * entries


def encoder_flops(checkpoint: Path, rows: int, queries: int) -> float:
    """Gradients of the linear layers of the embedded study's encoder, and their products."""
    import landform as lf

    costs = Costs(checkpoint, lf.load_task("embedded"))
    entries = sum(m.weight.numel() for m in costs.model.modules() if isinstance(m, torch.nn.Linear))
    passes = 3 * (costs.forward(rows, "train") + costs.forward(queries))
    return passes + 2 * rows * queries * entries


def rows(sst2: Path) -> dict[str, Row]:
    """All rows, by name."""
    import landform as lf
    from run import WORK, fine_tuned

    a, b = fine_tuned(sst2)
    costs = Costs(a, lf.load_task("sst2", data_dir=str(sst2)))
    model, texts = causal_model(WORK / "causal")
    one = {"checkpoint": str(a), "sst2": str(sst2)}
    two = {"a": str(a), "b": str(b), "sst2": str(sst2)}
    causal = {"model": model, "texts": texts, "rows": 128}
    encoder = tuned_encoder(WORK / "embedded")
    small = {"checkpoint": str(encoder), "rows": 32, "queries": 8}
    size = (a / "model.safetensors").stat().st_size
    made = {
        "influence": Row(
            "EK-FAC factors and influence, MiniLM, 64 x 16 SST-2 rows",
            {"landform": "landform_influence", "kronfluence": "kronfluence_influence"},
            {**one, "rows": 64, "queries": 16}, agree_scores,
            influence_flops(a, sst2, 64, 16), rounds=1,
        ),
        "factors": Row(
            "EK-FAC factors, true labels, random LLaMA (0.8 M), 128 texts",
            {"landform": "landform_causal", "bergson": "bergson_causal"},
            {**causal, "strategy": "ekfac"}, agree_factors,
            causal_flops(**causal, strategy="ekfac"),
        ),
        "gradients": Row(
            "all products of 128 gradients, random LLaMA (0.8 M)",
            {"landform": "landform_causal", "bergson": "bergson_causal"},
            {**causal, "strategy": "identity"}, same("scores", "scores"),
            causal_flops(**causal, strategy="identity"),
        ),
        "grad-dot": Row(
            "products of 32 x 8 gradients, the embedded encoder (0.6 M)",
            {"landform": "landform_gradients", "dattri": "dattri_gradients"},
            small, same("scores", "scores"), encoder_flops(encoder, 32, 8), rounds=2,
        ),
        "fisher": Row(
            "Fisher diagonal, MiniLM, 24 SST-2 rows",
            {"landform": "landform_fisher", "guided-dropout": "loop_fisher"},
            {**one, "rows": 24}, agree_tensors, 3 * costs.forward(24) + 2 * 24 * costs.entries,
        ),
        "eigenvalue": Row(
            "largest Hessian eigenvalue, MiniLM, 16 SST-2 rows",
            {"landform": "landform_spectrum", "hessian-eigenthings": "eigenthings_eigenvalue",
             "PyHessian": "pyhessian_eigenvalue"},
            {**one, "rows": 16, "top": 1}, same("largest", "value"),
            costs.product(16, 12, "hessian"), rounds=1,
        ),
        "trace": Row(
            "Hessian trace, 8 random vectors, MiniLM, 16 SST-2 rows",
            {"landform": "landform_spectrum", "hessian-eigenthings": "eigenthings_trace",
             "PyHessian": "pyhessian_trace", "curvlinops": "curvlinops_trace"},
            {**one, "rows": 16, "trace": "hutchinson", "probes": 8}, agree_trace,
            costs.product(16, 8, "hessian"), rounds=2,
        ),
        "density": Row(
            "Hessian density, 15 Lanczos steps, MiniLM, 16 SST-2 rows",
            {"landform": "landform_spectrum", "PyHessian": "pyhessian_density"},
            {**one, "rows": 16, "density_probes": 1, "density_steps": 15},
            same("largest", "largest node"), costs.product(16, 15, "hessian"), rounds=1,
        ),
        "line": Row(
            "line of 11 points, MiniLM, 64 SST-2 rows",
            {"landform": "landform_line", "loss-landscapes": "package_line"},
            {**two, "rows": 64, "points": 11}, same("losses", "losses"), 11 * costs.forward(64),
        ),
        "padded line": Row(
            "line of 5 points, MiniLM, 16 SST-2 rows",
            {"landform": "landform_line", "connectivity scripts": "padded_line"},
            {**two, "rows": 16, "points": 5}, same("losses", "losses"), 5 * costs.forward(16),
        ),
        "plane": Row(
            "random plane, filter-normalised, 5 x 5 points, MiniLM, 64 SST-2 rows",
            {"landform": "landform_plane", "loss-landscapes": "package_plane"},
            {"a": str(a), "sst2": str(sst2), "rows": 64, "size": 5}, agree_planes,
            25 * costs.forward(64), rounds=2,
        ),
        "average": Row(
            f"average of two checkpoints of {size / 2**20:.0f} MiB, written as a third",
            {"landform": "landform_average", "mergekit": "mergekit_average"},
            two, agree_files, moved=3 * size,
        ),
    }  # fmt: skip
    kinds = {"hessian": "Hessian", "ggn": "Gauss-Newton", "empirical-fisher": "empirical Fisher"}
    products = {
        f"product {kind}": Row(
            f"3 {name} products, MiniLM, 16 SST-2 rows",
            {"landform": "landform_products", "curvlinops": "curvlinops_products"},
            {**one, "rows": 16, "kind": kind, "count": 3}, agree_products,
            costs.product(16, 3, kind),
        )
        for kind, name in kinds.items()
    }  # fmt: skip
    return {**made, **products}


# --- measure, tell --------------------------------------------------------------------------------


def version(name: str) -> str:
    """`name` with its version, or that it was made again here."""
    if name in RECREATED:
        return f"{name} (re-created)"
    if name == "landform":
        return name
    try:
        return f"{name} {importlib.metadata.version(PACKAGES[name])}"
    except importlib.metadata.PackageNotFoundError:
        return f"{name} (not installed)"


def measure(sst2: Path, only: list[str] | None = None, rounds: int = 3) -> dict[str, Any]:
    """The table as numbers; `rounds`: turns of a side at most."""
    from run import WORK

    WORK.mkdir(exist_ok=True)
    torch.set_num_threads(THREADS)
    found = []
    for name, row in rows(sst2).items():
        if only and name not in only:
            continue
        print(f"  {name} ...", file=sys.stderr, flush=True)
        before = rates()
        sides = {side: f"peer_sides.{function}" for side, function in row.sides.items()}
        got = in_turns(sides, row.arguments, min(row.rounds, rounds))
        flop, copied = np.mean([before, rates()], axis=0)
        floor = row.moved / copied if row.moved else row.flop / flop
        found.append(told(row, got, floor) | {"name": name, "rates": [float(flop), float(copied)]})
        print(f"  {json.dumps(found[-1], default=str)}", file=sys.stderr, flush=True)
    return {"rows": found}


def told(row: Row, got: dict[str, Measured], floor: float) -> dict[str, Any]:
    """What is kept of one row."""
    ours = next(iter(got.values()))
    agreement = {}
    for name, side in list(got.items())[1:]:
        failed = ours.error or side.error
        agreement[name] = (
            f"failed: {failed[:80]}" if failed else row.agree(ours.numbers, side.numbers)
        )
    return {
        "what": row.what, "floor": floor, "agreement": agreement,
        "products": {
            n: int(s.numbers["products"]) for n, s in got.items() if "products" in s.numbers
        },
        "sides": {version(name): side.to_json() for name, side in got.items()},
        "names": list(got),
    }  # fmt: skip


def table(numbers: dict[str, Any]) -> str:
    """The table as Markdown: a line for every peer of every row."""
    titles = [
        "work", "landform", "beside it", "peer / landform", "peak memory, landform and peer",
        "agreement", "landform / floor",
    ]  # fmt: skip
    lines = []
    for row in numbers["rows"]:
        sides = list(row["sides"].items())
        ours = sides[0][1]
        for name, (label, side) in list(zip(row["names"], sides, strict=True))[1:]:
            whole = ours["seconds"] and side["seconds"]
            lines.append([
                row["what"], clock(ours["seconds"]), f"{label}: {clock(side['seconds'])}",
                ratio(side["seconds"] / ours["seconds"]) if whole else "",
                f"{ours['peak']:.2f}, {side['peak']:.2f} GiB" if whole else "",
                row["agreement"][name],
                f"{ours['seconds'] / row['floor']:.1f} ({clock(row['floor'])})" if whole else "",
            ])  # fmt: skip
    return markdown(titles, lines) + (
        "\n\nSeconds of processor time with one thread a side, medians of the turns "
        "(`results/peers.json` has each of them, and what the clock said). "
        f"Memory is the peak of the process; {memory_note(numbers)}."
    )


def memory_note(numbers: dict[str, Any]) -> str:
    """What there was before the work."""
    before = [side["before"] for row in numbers["rows"] for side in row["sides"].values()]
    known = [x for x in before if np.isfinite(x)]
    return f"{min(known):.1f} to {max(known):.1f} GiB of it are libraries, model and rows"


def clock(seconds: float | None) -> str:
    """Seconds for a person."""
    if seconds is None:
        return "failed"
    return f"{1e3 * seconds:.0f} ms" if seconds < 0.95 else f"{seconds:.1f} s"


def ratio(value: float) -> str:
    """Bold where the peer is faster by more than a busy machine's noise."""
    text = f"{value:.1f} x" if value >= 1 else f"{value:.2f} x"
    return f"**{text}**" if value < 0.9 else text


def draw(numbers: dict[str, Any], path: Path) -> None:
    """Times relative to landform's, one line of the picture for each piece of work."""
    import matplotlib.pyplot as plt

    lines = [row for row in numbers["rows"] if row["sides"]["landform"]["seconds"]]
    names = sorted({name for row in lines for name in row["names"][1:]})
    colours = dict(zip(names, plt.get_cmap("tab10").colors, strict=False))  # type: ignore[attr-defined]
    markers = dict(zip(names, "osD^vP*Xph", strict=False))
    figure, axes = plt.subplots(figsize=(9, 0.42 * len(lines) + 1.6), layout="constrained")
    for y, row in enumerate(reversed(lines)):
        sides = list(row["sides"].values())
        ours = sides[0]["seconds"]
        floor = row["floor"] / ours
        axes.plot([floor, 1], [y, y], color="0.8", lw=5, solid_capstyle="butt", zorder=1)
        axes.plot([floor], [y], marker="|", ms=13, mew=1.6, color="0.45", zorder=2)
        for name, side in list(zip(row["names"], sides, strict=True))[1:]:
            if side["seconds"]:
                axes.plot(
                    side["seconds"] / ours, y, markers[name], color=colours[name], ms=8, zorder=3
                )
    axes.axvline(1, color="black", lw=1.2)
    axes.set_yticks(range(len(lines)), [row["what"] for row in reversed(lines)], fontsize=8)
    axes.set_xscale("log")
    axes.set_ylim(-0.6, len(lines) - 0.4)
    axes.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
    axes.set_xlabel("time relative to landform (right of 1: the peer takes longer)")
    axes.grid(axis="x", color="0.92", zorder=0)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.tick_params(axis="y", length=0)
    handles = [
        *[
            axes.plot([], [], markers[n], color=colours[n], label=version(n), ms=8)[0]
            for n in names
        ],
        axes.plot([], [], color="black", lw=1.2, label="landform")[0],
        axes.plot([], [], "|", color="0.45", ms=13, mew=1.6, label="floor: arithmetic or bytes")[0],
    ]
    figure.legend(handles=handles, loc="outside upper center", ncols=4, frameon=False, fontsize=8)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> None:
    """Measure some rows and print them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sst2", type=Path, default=HERE.parents[1] / "shared" / "data" / "sst2")
    parser.add_argument("--only", nargs="+", help="names of rows")
    parser.add_argument("--rounds", type=int, default=3, help="turns of a side at most")
    parser.add_argument("--figure", type=Path, help="where to draw them")
    arguments = parser.parse_args()
    numbers = measure(arguments.sst2, arguments.only, arguments.rounds)
    print(table(numbers))
    if arguments.figure:
        draw(numbers, arguments.figure)


if __name__ == "__main__":
    main()
