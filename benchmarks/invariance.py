"""What must not change a number, and does it: landform and its peers, side by side.

    python benchmarks/invariance.py            prints both tables
    python benchmarks/run.py --only invariance --write

The same ten examples are padded further, cut into other batches and put in another order; a random
vector is multiplied, factors are fitted, scores are computed, on tiny models with attention in
float64. A cell is the largest change relative to the largest entry: 1e-15 is rounding, 0.1 means
that a tenth of the number is an accident of batching. In the causal language model padded positions
have the label -100, so its columns of padding are those of masked labels too.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import logging
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

from peers import version  # noqa: E402
from turns import markdown, relative  # noqa: E402

WORDS = ["<pad>", "</s>", "<unk>", *[f"w{i}" for i in range(40)]]
SHAPE: dict[str, Any] = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24,
    "max_position_embeddings": 64, "vocab_size": len(WORDS), "pad_token_id": 0,
}  # fmt: skip


@dataclass(frozen=True)
class Layout:
    """How the ten examples are handed over."""

    extra: int = 0
    """padding beyond the longest example of a batch"""
    sizes: tuple[int, ...] = (10,)
    backwards: bool = False


LAYOUTS = {
    "+1": Layout(1), "+8": Layout(8), "+24": Layout(24), "5+5": Layout(sizes=(5, 5)),
    "9+1": Layout(sizes=(9, 1)), "order": Layout(backwards=True),
}  # fmt: skip


# --- models and examples --------------------------------------------------------------------------


def make(folder: Path, kind: str) -> tuple[Path, list[list[int]], list[int]]:
    """(checkpoint, token ids of ten examples, labels). Lengths differ in the language model only,
    so that a classifier's batches can be cut as they are meant to be."""
    import transformers as hf
    from tokenizers import Tokenizer, models, pre_tokenizers

    torch.manual_seed(1)
    if kind == "classification":
        names = {"id2label": {0: "a", 1: "b", 2: "c"}, "label2id": {"a": 0, "b": 1, "c": 2}}
        model: Any = hf.BertForSequenceClassification(hf.BertConfig(**SHAPE, **names))
    else:
        model = hf.LlamaForCausalLM(hf.LlamaConfig(**SHAPE, eos_token_id=1))
    for parameter in model.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=0.3)
    path = folder / kind
    model.save_pretrained(path)
    table = {word: i for i, word in enumerate(WORDS)}
    tokenizer = Tokenizer(models.WordLevel(table, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    hf.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>",
        model_max_length=64, model_input_names=["input_ids", "attention_mask"],
    ).save_pretrained(path)  # fmt: skip
    draw = np.random.default_rng(0)
    lengths = [8] * 10 if kind == "classification" else [4, 5, 6, 7, 8, 9, 10, 11, 12, 12]
    ids = [draw.integers(3, len(WORDS), n).tolist() for n in lengths]
    return path, ids, [i % 3 for i in range(10)]


def batches(
    ids: Sequence[list[int]], labels: Sequence[int], kind: str, layout: Layout
) -> list[tuple[Tensor, Tensor]]:
    """[(ids and mask (B, 2, T), labels (B,) or, flat, those of every next token)]"""
    order = list(range(len(ids)))[:: -1 if layout.backwards else 1]
    made, start = [], 0
    for size in layout.sizes:
        chosen = order[start : start + size]
        start += size
        width = max(len(ids[i]) for i in chosen) + layout.extra
        rows = torch.tensor([ids[i] + [0] * (width - len(ids[i])) for i in chosen])
        lengths = torch.tensor([len(ids[i]) for i in chosen])
        mask = (torch.arange(width) < lengths[:, None]).long()
        given = torch.tensor([labels[i] for i in chosen])
        if kind != "classification":
            given = rows.masked_fill(mask == 0, -100)[:, 1:].flatten()
        made.append((torch.stack([rows, mask], 1), given))
    return made


class Flat(nn.Module):
    """(B, 2, T) to logits: one row for each label."""

    def __init__(self, path: Path, kind: str) -> None:
        super().__init__()
        import transformers as hf

        classes = (hf.AutoModelForCausalLM, hf.AutoModelForSequenceClassification)
        self.model: Any = classes[kind == "classification"].from_pretrained(
            path, dtype=torch.float64, attn_implementation="eager"
        )
        self.eval()

    def forward(self, rows: Tensor) -> Tensor:
        """Logits of the rows, or of every position that has a next token."""
        ids, mask = rows.unbind(1)
        logits: Tensor = self.model(input_ids=ids, attention_mask=mask).logits
        return logits if logits.dim() == 2 else logits[:, :-1].flatten(0, 1)


# --- landform -------------------------------------------------------------------------------------


def landform(path: Path, ids: Any, labels: Any, kind: str) -> dict[str, Callable[[Layout], Any]]:
    """Every estimator through its public function, and the operators of products."""
    import landform as lf
    from landform.curvature.operators import CurvatureOperator, differentiable_attention
    from landform.evaluation.points import Data, DataConfig, prepare
    from landform.weights.checkpoint import load_model, load_tokenizer, resolve
    from landform.weights.space import ParameterSpace

    def task(layout: Layout) -> tuple[Any, dict[str, Any]]:
        order = list(range(10))[:: -1 if layout.backwards else 1]
        texts = [" ".join(WORDS[token] for token in ids[i]) for i in order]
        rows = [
            {"text": text, **({"label": labels[i]} if kind == "classification" else {})}
            for i, text in zip(order, texts, strict=True)
        ]
        named: dict[str, Any] = {}
        if kind == "classification":
            named = {"label": "label", "label_names": ["a", "b", "c"]}
        widest = max(map(len, ids)) + layout.extra
        options = {"dtype": "float64", "token_budget": layout.sizes[0] * widest}
        return lf.load_task({"train": rows}, text="text", kind=kind, name="ten", **named), options

    def product(operator: str) -> Callable[[Layout], Any]:
        def compute(layout: Layout) -> Any:
            made, options = task(layout)
            with padded(layout.extra), differentiable_attention():
                source, config = resolve(path), DataConfig(**options)
                model: Any = load_model(source, kind, config).eval()  # type: ignore[arg-type]
                data = prepare(Data(made, "train"), source, model, load_tokenizer(source), config)
                space = ParameterSpace.of(model)
                with CurvatureOperator(model, space, data, operator) as a:  # type: ignore[arg-type]
                    return a.multiply(vector(space.numel))

        return compute

    def diagonal(layout: Layout) -> Any:
        made, options = task(layout)
        with padded(layout.extra):
            found = lf.fisher(path, made, **options).diagonal
        return torch.cat([values.double().flatten() for values in found.values()])

    def scores(layout: Layout) -> Any:
        made, options = task(layout)
        with padded(layout.extra):
            factors = lf.fit_factors(path, made, labels="empirical", **options)
            found = lf.influence(factors, queries="train", damping=1e-2).values
        return np.asarray(found)[::-1, ::-1] if layout.backwards else found

    operators = {
        "Hessian": "hessian",
        "Gauss-Newton": "ggn",
        "empirical Fisher": "empirical-fisher",
    }
    return {
        **{f"{name} product": product(kind_of) for name, kind_of in operators.items()},
        "Fisher diagonal": diagonal,
        "EK-FAC influence": scores,
    }


@contextlib.contextmanager
def padded(extra: int) -> Iterator[None]:
    """Batches of landform with `extra` more padding than they need."""
    from landform.tasks import batching

    plain = batching.collate

    def wider(rows: Any, positions: Any, *, pad_id: int, length: int | None = None) -> Any:
        width = max(len(row["input_ids"]) for row in rows) if length is None else length
        return plain(rows, positions, pad_id=pad_id, length=width + extra)

    with patch.object(batching, "collate", wider):
        yield


def vector(size: int) -> Tensor:
    """The vector that is multiplied."""
    return torch.randn(size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


# --- peers ----------------------------------------------------------------------------------------


def curvlinops(path: Path, ids: Any, labels: Any, kind: str) -> dict[str, Callable[[Layout], Any]]:
    """Its matrix-free operators, and K-FAC on the linear layers of the classifier."""
    import curvlinops as peer

    def product(name: str, linear: bool = False, **options: Any) -> Callable[[Layout], Any]:
        def compute(layout: Layout) -> Any:
            model = Flat(path, kind)
            parameters = list(model.parameters())
            if linear:
                parameters = [
                    p for m in model.modules() if isinstance(m, nn.Linear) for p in m.parameters()
                ]
            operator = getattr(peer, f"{name}LinearOperator")(
                model, nn.CrossEntropyLoss(), parameters, batches(ids, labels, kind, layout),
                check_deterministic=False, **options,
            )  # fmt: skip
            return operator @ vector(sum(p.numel() for p in parameters))

        return compute

    found = {
        "Hessian product": product("Hessian"),
        "Gauss-Newton product": product("GGN"),
        "empirical Fisher product": product("EF"),
    }
    if kind == "classification":
        found["K-FAC product"] = product("KFAC", linear=True, fisher_type="empirical")
    return found


def pyhessian(path: Path, ids: Any, labels: Any, kind: str) -> dict[str, Callable[[Layout], Any]]:
    """Its product over a loader."""

    def compute(layout: Layout) -> Any:
        from pyhessian import hessian

        model = Flat(path, kind)
        side = hessian(
            model, nn.CrossEntropyLoss(), dataloader=batches(ids, labels, kind, layout), cuda=False
        )
        # Without gradients at hand it finds no parameters.
        side.params = list(model.parameters())
        sizes = [p.numel() for p in side.params]
        parts = vector(sum(sizes)).split(sizes)
        _, product = side.dataloader_hv_product(
            [x.view_as(p) for x, p in zip(parts, side.params, strict=True)]
        )
        return torch.cat([x.detach().flatten() for x in product])

    return {"Hessian product": compute}


def eigenthings(path: Path, ids: Any, labels: Any, kind: str) -> dict[str, Callable[[Layout], Any]]:
    """Its product, re-created: batches count the same."""

    def compute(layout: Layout) -> Any:
        from recreated import equal_batches

        model = Flat(path, kind)
        parameters = list(model.parameters())
        product = equal_batches(
            lambda batch: functional.cross_entropy(model(batch[0]), batch[1]),
            batches(ids, labels, kind, layout), parameters,
        )  # fmt: skip
        return product(vector(sum(p.numel() for p in parameters)))

    return {"Hessian product": compute}


def kronfluence(path: Path, ids: Any, labels: Any, kind: str) -> dict[str, Callable[[Layout], Any]]:
    """EK-FAC scores, with the attention mask that its task may give."""
    if kind != "classification":
        return {}

    def compute(layout: Layout) -> Any:
        import influence

        def items(chosen: Layout) -> list[dict[str, Tensor]]:
            return [
                {"input_ids": rows[:, 0], "attention_mask": rows[:, 1], "labels": given}
                for rows, given in batches(ids, labels, kind, chosen)
            ]

        found = influence._run_kronfluence(
            Flat(path, kind).model, items(layout), items(Layout()), collate=influence._first,
            batch_sizes=(1, 1), dtype=torch.float64,
        )["scores"]  # fmt: skip
        return found[:, ::-1] if layout.backwards else found

    return {"EK-FAC influence": compute}


def bergson(path: Path, ids: Any, labels: Any, kind: str) -> dict[str, Callable[[Layout], Any]]:
    """K-FAC covariances of gradients, with the labels of the data."""
    del labels
    if kind == "classification":
        return {}

    def compute(layout: Layout) -> Any:
        found = bergson_covariances(path, ids, layout, sampled=False)
        return torch.cat([found[name].flatten() for name in sorted(found)])

    return {"K-FAC covariances": compute}


def bergson_covariances(
    path: Path, ids: Sequence[list[int]], layout: Layout, *, sampled: bool
) -> dict[str, Tensor]:
    """S of every layer, summed over positions."""
    from bergson import CollectorComputer, GradientProcessor
    from bergson.collector.collector import fwd_bwd_hessian_factory
    from bergson.config.config import HessianConfig, IndexConfig
    from bergson.hessians.kfac import CovarianceCollector
    from datasets import Dataset

    model = Flat(path, "causal-lm").model.requires_grad_(False)
    model.get_input_embeddings().requires_grad_(True)
    order = list(range(len(ids)))[:: -1 if layout.backwards else 1]
    width = max(map(len, ids)) + layout.extra
    rows = [ids[i] + [0] * (width - len(ids[i])) * bool(layout.extra) for i in order]
    given = [ids[i] + [-100] * (len(row) - len(ids[i])) for i, row in zip(order, rows, strict=True)]
    data = Dataset.from_dict({"input_ids": rows, "labels": given})
    cut = [int(x) for x in np.cumsum((0, *layout.sizes))]
    with tempfile.TemporaryDirectory() as folder:
        config = IndexConfig(run_path=f"{folder}/run")
        config.partial_run_path.mkdir(parents=True)
        collector = CovarianceCollector(
            model=model.base_model, path=folder, dtype=torch.float64, processor=GradientProcessor()
        )
        computer = CollectorComputer(
            model=model, data=data, collector=collector, cfg=config,
            batches=[list(range(a, min(b, len(ids)))) for a, b in pairwise(cut)],
        )  # fmt: skip
        chosen = HessianConfig(method="kfac", use_dataset_labels=not sampled)
        computer.forward_backward = fwd_bwd_hessian_factory(config, chosen)
        computer.run_with_collector_hooks()
    return dict(collector.S_cov_dict)


SIDES = {
    "landform": landform, "curvlinops": curvlinops, "PyHessian": pyhessian,
    "hessian-eigenthings": eigenthings, "kronfluence": kronfluence, "bergson": bergson,
}  # fmt: skip


def changes() -> list[dict[str, Any]]:
    """One row for every estimator of every side, with its relative changes."""
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for kind in ("classification", "causal-lm"):
            case = (*make(Path(folder), kind), kind)
            for name, side in SIDES.items():
                try:
                    estimators = side(*case)
                except ImportError as error:
                    estimators = {f"not run ({error})": None}  # type: ignore[dict-item]
                for what, estimate in estimators.items():
                    cells = cells_of(estimate) if estimate else {}
                    found.append({"kind": kind, "side": name, "what": what, "cells": cells})
                    print(f"  {json.dumps(found[-1])}", file=sys.stderr, flush=True)
    return found


def cells_of(estimate: Callable[[Layout], Any]) -> dict[str, float | str]:
    """The change by each layout; where the estimator fails, how."""
    cells: dict[str, float | str] = {}
    try:
        base = np.asarray(estimate(Layout()))
    except Exception as error:  # a peer may fail in any way
        return dict.fromkeys(LAYOUTS, f"{type(error).__name__}")
    for name, layout in LAYOUTS.items():
        try:
            cells[name] = relative(np.asarray(estimate(layout)), base)
        except Exception as error:
            cells[name] = type(error).__name__
    return cells


# --- the other checks -----------------------------------------------------------------------------


def _python(code: str, **environment: str) -> str:
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True,
        env={**os.environ, "PYTHONWARNINGS": "ignore", **environment},
    )  # fmt: skip
    lines = run.stdout.strip().splitlines() or run.stderr.strip().splitlines()
    return lines[-1] if lines else "(nothing)"


def check_sampled_labels(draws: int = 200) -> tuple[str, str]:
    """bergson: the trace of k_proj's gradient factor with labels drawn from the model."""
    with tempfile.TemporaryDirectory() as folder:
        path, ids, _ = make(Path(folder), "causal-lm")
        one = [ids[2]]
        means = []
        for extra in (0, 8, 24):
            torch.manual_seed(0)
            layout = Layout(extra, (1,))
            traces = [
                sum(
                    float(s.trace())
                    for n, s in bergson_covariances(path, one, layout, sampled=True).items()
                    if n.endswith("k_proj")
                )
                for _ in range(draws)
            ]
            means.append(np.mean(traces))
    ratios = ", ".join(f"x {mean / means[0]:.2f}" for mean in means[1:])
    return (
        f"padded by 8 and by 24: {ratios} ({draws} draws; 0.26.1 grew by x 2.15 and x 3.5)",
        "padding draws no label",
    )


_HANDLERS = (
    "import logging, sys; root = logging.getLogger(); mine = logging.NullHandler(); "
    "root.addHandler(mine); import {0}; "
    "print('kept' if root.handlers == [mine] else 'replaced')"
)
_DONOR = """
import sys, json, logging
from pathlib import Path
from mergekit.config import MergeConfiguration
from mergekit.merge import run_merge
from mergekit.options import MergeOptions
folder = sys.argv[1] if len(sys.argv) > 1 else {folder!r}
names = [folder + "/" + n for n in ("a", "b", "c")]
config = MergeConfiguration.model_validate({{"merge_method": "linear", "dtype": "float32",
    "models": [{{"model": n, "parameters": {{"weight": 1.0}}}} for n in names]}})
out = folder + "/out-{seed}"
run_merge(config, out, MergeOptions(quiet=True, write_model_card=False, copy_tokenizer=False))
print(json.loads(Path(out + "/config.json").read_text())["max_position_embeddings"])
"""
_UNKNOWN = (
    "from mergekit.config import MergeConfiguration as C; "
    "C.model_validate({'merge_method': 'linear', 'dtpye': 'float32', 'models': "
    "[{'model': 'a', 'parameters': {'weight': 1.0}}]}); print('accepted without a word')"
)


def check_donor() -> tuple[str, str]:
    """mergekit and landform: whose config an average of three models gets."""
    from transformers import AutoModelForCausalLM

    import landform as lf
    from landform.geometry.average import AverageStudy

    with tempfile.TemporaryDirectory() as folder:
        path, ids, _ = make(Path(folder), "causal-lm")
        for name, positions in (("a", 100), ("b", 200), ("c", 300)):
            model = AutoModelForCausalLM.from_pretrained(path)
            model.config.max_position_embeddings = positions
            model.save_pretrained(f"{folder}/{name}")
            for file in ("tokenizer.json", "tokenizer_config.json"):
                (Path(folder) / name / file).write_bytes((path / file).read_bytes())
        theirs = [
            _python(_DONOR.format(folder=folder, seed=seed), PYTHONHASHSEED=str(seed))
            for seed in range(4)
        ]
        rows = [{"text": " ".join(WORDS[i] for i in row)} for row in ids]
        task = lf.load_task({"validation": rows}, kind="causal-lm", text="text", name="ten")
        try:
            AverageStudy.of([f"{folder}/{n}" for n in "abc"], task, options={}).save(f"{folder}/o")
            ours = json.loads(Path(f"{folder}/o/config.json").read_text())
            own = f"the first model's: {ours['max_position_embeddings']}"
        except Exception as error:
            own = f"refused: {str(error).splitlines()[0][:90]}"
    return f"max_position_embeddings {', '.join(theirs)}", own


def check_bergson_classifier() -> str:
    """bergson: an encoder with a pooler and a head through its collector."""
    from bergson import GradientCollector, GradientProcessor
    from bergson.config.config import IndexConfig
    from datasets import Dataset

    with tempfile.TemporaryDirectory() as folder:
        path, ids, labels = make(Path(folder), "classification")
        model = Flat(path, "classification")
        data = Dataset.from_dict({"input_ids": ids, "labels": labels})
        collector = GradientCollector(
            model=model.model, data=data, processor=GradientProcessor(),
            cfg=IndexConfig(run_path=f"{folder}/run"),
        )  # fmt: skip
        ((rows, given),) = batches(ids, labels, "classification", Layout())
        try:
            with collector.with_batch(rows[:, 1].bool()):
                functional.cross_entropy(model(rows), given).backward()
        except Exception as error:
            return (
                f"{type(error).__name__}: {str(error).splitlines()[0][:70]}"
                if str(error)
                else (type(error).__name__)
            )
    return "runs"


def check_dattri_sequences() -> str:
    """dattri: its EK-FAC on a model whose layers see (B, T, d)."""
    from dattri.algorithm.influence_function import IFAttributorEKFAC
    from dattri.task import AttributionTask
    from torch.utils.data import DataLoader, TensorDataset

    with tempfile.TemporaryDirectory() as folder:
        path, ids, labels = make(Path(folder), "classification")
        model = Flat(path, "classification").float()
        ((rows, given),) = batches(ids, labels, "classification", Layout())

        def loss(parameters: Any, row: Any) -> Tensor:
            logits = torch.func.functional_call(model, parameters, (row[0],))
            return functional.cross_entropy(logits, row[1])

        side = IFAttributorEKFAC(
            AttributionTask(loss, model, model.state_dict()), device="cpu", damping=1e-3
        )
        try:
            side.cache(DataLoader(TensorDataset(rows, given), batch_size=10))
        except Exception as error:
            return f"{type(error).__name__}: {str(error).splitlines()[0][:70]}"
    return "runs"


def check_filters() -> tuple[str, str]:
    """loss-landscapes: what filter normalisation makes of a matrix and of a vector."""
    from loss_landscapes.model_interface.model_parameters import ModelParameters

    from landform.weights.points import _scaled

    torch.manual_seed(0)
    point, drawn = ([torch.randn(6, 5), torch.randn(7)] for _ in range(2))
    ours = [_scaled(d, p, "filter") for d, p in zip(drawn, point, strict=True)]
    theirs = ModelParameters([d.clone() for d in drawn])
    theirs.filter_normalize_(ModelParameters(point))
    matrix = relative(ours[0], theirs[0])
    signs = relative(theirs[1].abs(), point[1].abs())
    kept = float(ours[1].norm() / point[1].norm())
    return (
        f"matrices as landform (within {matrix:.0e}); of a bias every entry becomes its own size "
        f"(within {signs:.0e}), so only signs are random",
        f"a bias keeps its Gaussian shape: norm of d by norm of w {kept:.6f}",
    )


def checks() -> list[list[str]]:
    """[what, peer, found in the peer now, landform] of every other check."""
    from landform.errors import ConfigError
    from landform.studies.study_file import read_study

    def unknown() -> str:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "s.yaml"
            file.write_text("dtpye: float32\nsteps: []\n")
            try:
                read_study(file)
            except ConfigError as error:
                return f"refused: {str(error).splitlines()[0].split('s.yaml')[-1][:80]}"
        return "accepted"

    asked: list[tuple[str, str, Callable[[], Any]]] = [
        ("labels drawn at padded positions", "bergson", check_sampled_labels),
        ("a classifier through the collector", "bergson",
         lambda: (check_bergson_classifier(), "any classifier or language model")),
        ("import leaves the program's logging alone", "bergson",
         lambda: tuple(_python(_HANDLERS.format(name)) for name in ("bergson", "landform"))),
        ("a misspelt key of the config", "mergekit", lambda: (_python(_UNKNOWN), unknown())),
        ("donor of config and tokenizer, four hash seeds", "mergekit", check_donor),
        ("EK-FAC of layers that see sequences", "dattri",
         lambda: (check_dattri_sequences(), "as any other model")),
        ("filter normalisation of vectors", "loss-landscapes", check_filters),
    ]  # fmt: skip
    found = []
    for what, peer, check in asked:
        try:
            theirs, ours = check()
        except Exception as error:
            theirs, ours = f"not run: {type(error).__name__}: {error}"[:120], ""
        found.append([what, peer, str(theirs), str(ours)])
        print(f"  {found[-1]}", file=sys.stderr, flush=True)
    return found


# --- tell -----------------------------------------------------------------------------------------


def measure(sst2: Path) -> dict[str, Any]:
    """Both tables; no data of anyone's is needed."""
    del sst2
    logging.disable(logging.WARNING)
    importlib.import_module("landform")
    return {"changes": changes(), "checks": checks()}


def table(numbers: dict[str, Any]) -> str:
    """Both tables as Markdown."""

    def cell(value: float | str) -> str:
        if isinstance(value, str):
            return value
        return f"**{value:.2g}**" if value > 1e-6 else f"{value:.0e}"

    titles = ["model", "estimate", "side", *LAYOUTS]
    models = {"classification": "classifier", "causal-lm": "causal LM, -100"}
    lines = [
        [models[row["kind"]], row["what"], version(row["side"]),
         *[cell(row["cells"].get(name, "")) for name in LAYOUTS]]
        for row in sorted(numbers["changes"], key=lambda r: (r["kind"], r["what"]))
    ]  # fmt: skip
    others = [[what, version(peer), theirs, ours] for what, peer, theirs, ours in numbers["checks"]]
    return "\n\n".join([
        markdown(titles, lines),
        markdown(["check", "peer", "what the peer does now", "landform"], others),
    ])  # fmt: skip


if __name__ == "__main__":
    print(table(measure(HERE)))
