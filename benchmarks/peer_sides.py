"""The sides of the peers' table (`peers.py`): what each library does, on the same models and rows.

Every function prepares and returns the work that is timed (see `turns`). Peers are given what is
kind to them: models that are loaded already, and landform's own batches (sorted by length, hardly
any padding) wherever they take batches at all; landform's side is the call of a user, with loading
and tokenising, unless the table says otherwise.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

import influence as ekfac

Work = Callable[[], dict[str, Any]]
STEPS = 12
"""Lanczos steps of a largest eigenvalue where the peer has no rule to stop."""


# --- models and rows ------------------------------------------------------------------------------


def sst2_task(sst2: str) -> Any:
    """SST-2, its files already read."""
    import landform as lf

    task = lf.load_task("sst2", data_dir=sst2)
    task.examples("train"), task.examples("validation")
    return task


def opened(checkpoint: str, task: Any, rows: int, **options: Any) -> tuple[Any, Any]:
    """(model, batches) as landform has them; gradients flow to every parameter."""
    from landform.evaluation.points import Data, DataConfig, prepare
    from landform.weights.checkpoint import load_model, load_tokenizer, resolve

    source = resolve(checkpoint)
    model: Any = load_model(source, task.kind).eval()
    model.requires_grad_(True)
    data = prepare(
        Data(task, "validation"), source, model, load_tokenizer(source),
        DataConfig(rows=rows, **options),
    )  # fmt: skip
    return model, data


class Packed(nn.Module):
    """A classifier that takes one tensor (B, 3, T): ids, types, mask; as peers want to call it."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, packed: Tensor) -> Tensor:
        """Logits."""
        ids, types, mask = packed.unbind(1)
        logits: Tensor = self.model(input_ids=ids, token_type_ids=types, attention_mask=mask).logits
        return logits


def packed(batch: Any, width: int | None = None) -> Tensor:
    """A batch as `Packed` takes it, padded to `width`."""
    ids, mask = batch.inputs["input_ids"], batch.inputs["attention_mask"]
    types = batch.inputs.get("token_type_ids", torch.zeros_like(ids))
    table = torch.stack([ids, types, mask], 1)
    return functional.pad(table, (0, (width or table.shape[-1]) - table.shape[-1]))


def one_batch(data: Any) -> tuple[Tensor, Tensor]:
    """All rows as a single batch."""
    width = max(batch.inputs["input_ids"].shape[1] for batch in data.batches)
    rows = torch.cat([packed(batch, width) for batch in data.batches])
    return rows, torch.cat([batch.labels for batch in data.batches])


def eager(model: Any) -> Any:
    """Attention that can be differentiated twice and vectorised over."""
    model.set_attn_implementation("eager")
    return model


# --- EK-FAC influence -----------------------------------------------------------------------------


def landform_influence(checkpoint: str, sst2: str, rows: int, queries: int) -> Work:
    """`fit_factors` and `influence`."""
    return lambda: _scores(ekfac.run_landform(Path(checkpoint), Path(sst2), rows, queries))


def kronfluence_influence(checkpoint: str, sst2: str, rows: int, queries: int) -> Work:
    """kronfluence on landform's batches, all queries at once."""
    import kronfluence  # noqa: F401  imports are not timed

    return lambda: _scores(ekfac.run_batches(Path(checkpoint), Path(sst2), rows, queries))


def _scores(found: dict[str, Any]) -> dict[str, Any]:
    return {"scores": found["scores"]}


# --- products with curvature matrices -------------------------------------------------------------


def landform_products(checkpoint: str, sst2: str, rows: int, kind: str, count: int) -> Work:
    """`CurvatureOperator`, opened anew each time."""
    from landform.curvature.operators import CurvatureOperator, differentiable_attention
    from landform.weights.space import ParameterSpace

    model, data = opened(checkpoint, sst2_task(sst2), rows)
    space = ParameterSpace.of(model)
    vectors = _directions(space.numel, count)

    def work() -> dict[str, Any]:
        operator: Any = CurvatureOperator(model, space, data, kind, memory=4 * 2**30)  # type: ignore[arg-type]
        with differentiable_attention(), operator:
            products = [operator.multiply(v) for v in vectors]
        return _by_tensor(products[0], model)

    return work


def curvlinops_products(checkpoint: str, sst2: str, rows: int, kind: str, count: int) -> Work:
    """curvlinops' operator of the same name."""
    import curvlinops

    names = {"hessian": "Hessian", "ggn": "GGN", "empirical-fisher": "EF"}
    model, data = opened(checkpoint, sst2_task(sst2), rows)
    wrapped = Packed(eager(model))
    batches = [(packed(batch), batch.labels) for batch in data.batches]
    vectors = _directions(sum(p.numel() for p in model.parameters()), count)

    def work() -> dict[str, Any]:
        operator = getattr(curvlinops, f"{names[kind]}LinearOperator")(
            wrapped, nn.CrossEntropyLoss(), list(wrapped.parameters()), batches,
            check_deterministic=False,
        )  # fmt: skip
        products = [operator @ v for v in vectors]
        return _by_tensor(products[0], model)

    return work


def _directions(size: int, count: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    drawn = [torch.randn(size, generator=generator) for _ in range(count)]
    return [v / v.norm() for v in drawn]


def _by_tensor(product: Tensor, model: nn.Module) -> dict[str, Any]:
    """The product's norm scales, LayerNorm's weights apart: see `peers.agree_products`."""
    sizes = [p.numel() for p in model.parameters()]
    parts = dict(zip([n for n, _ in model.named_parameters()], product.split(sizes), strict=True))
    norms = [part for name, part in parts.items() if name.endswith("LayerNorm.weight")]
    others = [part for name, part in parts.items() if not name.endswith("LayerNorm.weight")]
    return {"layer norms": torch.cat(norms).numpy(), "others": torch.cat(others).numpy()}


# --- eigenvalues, trace, density ------------------------------------------------------------------


def landform_spectrum(checkpoint: str, sst2: str, rows: int, **options: Any) -> Work:
    """`lf.spectrum` with what is asked for and nothing else."""
    import landform as lf
    import landform.curvature.spectrum

    task = sst2_task(sst2)
    plain = {"top": 0, "trace": "none", "density_probes": 0, "rows": rows}

    def work() -> dict[str, Any]:
        found = lf.spectrum(checkpoint, task, **{**plain, **options})
        numbers: dict[str, Any] = {"products": found.steps + found.trace_products}
        if options.get("top"):
            numbers["largest"] = found.eigenvalues[0]
        if "trace" in options:
            numbers |= {"trace": found.trace, "error": found.trace_error}
        if "density_probes" in options:
            numbers["largest"] = found.quadrature["eigenvalue"].max()
        return numbers

    return work


def _pyhessian(checkpoint: str, sst2: str, rows: int) -> Callable[[], Any]:
    """PyHessian's object: it differentiates once and keeps the graph of its one batch."""
    from pyhessian import hessian

    model, data = opened(checkpoint, sst2_task(sst2), rows)
    wrapped, batch = Packed(eager(model)), one_batch(data)
    return lambda: hessian(wrapped, nn.CrossEntropyLoss(), data=batch, cuda=False)


def pyhessian_eigenvalue(checkpoint: str, sst2: str, rows: int, **_: Any) -> Work:
    """Power iteration until two values in a row differ by less than 1e-3."""
    make = _pyhessian(checkpoint, sst2, rows)
    torch.manual_seed(0)
    return lambda: {"largest": make().eigenvalues(maxIter=100, tol=1e-3, top_n=1)[0][0]}


def pyhessian_trace(checkpoint: str, sst2: str, rows: int, probes: int, **_: Any) -> Work:
    """Hutchinson's estimates, as many as asked for."""
    make = _pyhessian(checkpoint, sst2, rows)
    torch.manual_seed(0)

    def work() -> dict[str, Any]:
        found = np.array(make().trace(maxIter=probes, tol=0))
        return {"trace": found.mean(), "error": found.std(ddof=1) / np.sqrt(len(found))}

    return work


def pyhessian_density(checkpoint: str, sst2: str, rows: int, density_steps: int, **_: Any) -> Work:
    """Lanczos quadrature from one vector."""
    make = _pyhessian(checkpoint, sst2, rows)
    torch.manual_seed(0)
    return lambda: {"largest": np.max(make().density(iter=density_steps, n_v=1)[0])}


def curvlinops_trace(checkpoint: str, sst2: str, rows: int, probes: int, **_: Any) -> Work:
    """`hutchinson_trace` of its Hessian."""
    from curvlinops import HessianLinearOperator, hutchinson_trace

    model, data = opened(checkpoint, sst2_task(sst2), rows)
    wrapped = Packed(eager(model))
    batches = [(packed(batch), batch.labels) for batch in data.batches]
    operator = HessianLinearOperator(
        wrapped, nn.CrossEntropyLoss(), list(wrapped.parameters()), batches,
        check_deterministic=False,
    )  # fmt: skip
    torch.manual_seed(0)
    return lambda: {"trace": float(hutchinson_trace(operator, probes, "rademacher"))}


def _eigenthings(checkpoint: str, sst2: str, rows: int) -> tuple[Any, Tensor]:
    from recreated import equal_batches

    model, data = opened(checkpoint, sst2_task(sst2), rows)
    wrapped, batch = Packed(eager(model)), one_batch(data)
    parameters = list(wrapped.parameters())
    product = equal_batches(
        lambda b: functional.cross_entropy(wrapped(b[0]), b[1]), [batch], parameters
    )
    return product, torch.cat([p.detach().flatten() for p in parameters])


def eigenthings_eigenvalue(checkpoint: str, sst2: str, rows: int, **_: Any) -> Work:
    """pytorch-hessian-eigenthings, re-created: Lanczos of a fixed number of steps."""
    from recreated import lanczos_largest

    product, like = _eigenthings(checkpoint, sst2, rows)
    start = torch.randn(like.shape, generator=torch.Generator().manual_seed(0))
    return lambda: {"largest": lanczos_largest(product, start, STEPS)[0], "products": STEPS}


def eigenthings_trace(checkpoint: str, sst2: str, rows: int, probes: int, **_: Any) -> Work:
    """pytorch-hessian-eigenthings, re-created: Hutchinson."""
    from recreated import hutchinson

    product, like = _eigenthings(checkpoint, sst2, rows)
    return lambda: dict(zip(("trace", "error"), hutchinson(product, like, probes), strict=True))


# --- a diagonal Fisher ----------------------------------------------------------------------------


def landform_fisher(checkpoint: str, sst2: str, rows: int) -> Work:
    """`lf.fisher`."""
    import landform as lf
    import landform.curvature.fisher_fit

    task = sst2_task(sst2)

    def work() -> dict[str, Any]:
        found = lf.fisher(checkpoint, task, split="validation", rows=rows)
        return {name: values.numpy() for name, values in found.diagonal.items()}

    return work


def loop_fisher(checkpoint: str, sst2: str, rows: int) -> Work:
    """The guided-dropout code's loop, re-created in `curvature`."""
    from curvature import loop_fisher as loop
    from landform.tasks.batching import cut_batches

    model, data = opened(checkpoint, sst2_task(sst2), rows)
    single = [cut_batches(data.encoded.take([i]), 1)[0] for i in range(rows)]

    def work() -> dict[str, Any]:
        total, _ = loop(model, single)
        names = [name for name, _ in model.named_parameters()]
        return {name: values.numpy() for name, values in zip(names, total, strict=True)}

    return work


# --- lines and planes -----------------------------------------------------------------------------


def landform_line(a: str, b: str, sst2: str, rows: int, points: int) -> Work:
    """`lf.interpolate`."""
    import landform as lf
    import landform.geometry.line

    task = sst2_task(sst2)
    options: dict[str, Any] = {"points": points, "rows": rows}
    return lambda: {"losses": lf.interpolate(a, b, task, **options).table.loss.to_numpy()}


def padded_line(a: str, b: str, sst2: str, rows: int, points: int) -> Work:
    """The loop of connectivity scripts, re-created in `baseline`."""
    from baseline import walk_line

    examples = sst2_task(sst2).examples("validation", rows=rows)
    texts = [text for (text,) in examples.texts]
    labels = [int(label) for label in examples.labels]
    return lambda: {"losses": walk_line(a, b, texts, labels, points=points, batch_size=32)[0]}


class _MeanLoss:
    """loss-landscapes' metric on landform's batches; it has no loader of its own."""

    def __init__(self, data: Any) -> None:
        self.data = data

    def __call__(self, wrapper: Any) -> float:
        total, count = 0.0, 0
        with torch.no_grad():
            for batch in self.data.batches:
                logits = wrapper.modules[0](**batch.inputs).logits
                total += float(functional.cross_entropy(logits, batch.labels, reduction="sum"))
                count += len(batch.labels)
        return total / count


def package_line(a: str, b: str, sst2: str, rows: int, points: int) -> Work:
    """loss-landscapes' `linear_interpolation`: its steps leave out the first end."""
    import loss_landscapes

    task = sst2_task(sst2)
    (start, data), (end, _) = (opened(name, task, rows) for name in (a, b))

    def work() -> dict[str, Any]:
        found = loss_landscapes.linear_interpolation(
            start, end, _MeanLoss(data), steps=points - 1, deepcopy_model=True
        )
        return {"losses": np.concatenate([[np.nan], found])}

    return work


def landform_plane(a: str, sst2: str, rows: int, size: int) -> Work:
    """`lf.surface` around a model."""
    import landform as lf
    import landform.geometry.surface

    task = sst2_task(sst2)

    def work() -> dict[str, Any]:
        found = lf.surface(task, around=a, rows=rows, size=size, extent=(-0.2, 0.2))
        return {"losses": found.table.loss.to_numpy()}

    return work


def package_plane(a: str, sst2: str, rows: int, size: int) -> Work:
    """loss-landscapes' `random_plane` with filter normalisation."""
    import loss_landscapes

    model, data = opened(a, sst2_task(sst2), rows)

    def work() -> dict[str, Any]:
        found = loss_landscapes.random_plane(
            model, _MeanLoss(data), distance=5, steps=size, normalization="filter",
            deepcopy_model=True,
        )  # fmt: skip
        return {"losses": found}

    return work


# --- averages on disk -----------------------------------------------------------------------------


def landform_average(a: str, b: str, sst2: str) -> Work:
    """What `landform average --out` writes, without the evaluation that goes with it."""
    from landform.geometry.average import AverageStudy

    task = sst2_task(sst2)
    folder = Path(tempfile.mkdtemp())

    def work() -> dict[str, Any]:
        shutil.rmtree(folder, ignore_errors=True)
        AverageStudy.of((a, b), task, options={}).save(folder)
        return _weights(folder)

    return work


def mergekit_average(a: str, b: str, sst2: str) -> Work:
    """mergekit's linear merge, weights 1 and 1."""
    del sst2
    from mergekit.config import MergeConfiguration
    from mergekit.merge import run_merge
    from mergekit.options import MergeOptions

    folder = Path(tempfile.mkdtemp())
    config = MergeConfiguration.model_validate(
        {
            "merge_method": "linear", "dtype": "float32", "base_model": a,
            "models": [{"model": name, "parameters": {"weight": 1.0}} for name in (a, b)],
        }
    )  # fmt: skip

    def work() -> dict[str, Any]:
        shutil.rmtree(folder, ignore_errors=True)
        options = MergeOptions(quiet=True, write_model_card=False, copy_tokenizer=True)
        run_merge(config, str(folder), options)
        return _weights(folder)

    return work


def _weights(folder: Path) -> dict[str, Any]:
    """Where they are: reading them is no part of the work, so only the path is given back."""
    return {"folder": np.array(str(folder))}


# --- a causal language model ----------------------------------------------------------------------


def landform_causal(model: str, texts: str, rows: int, strategy: str) -> Work:
    """`fit_factors`; for `identity` also `influence` of all rows with all rows."""
    import landform as lf
    import landform.attribution.influence
    import landform.curvature.factors

    task = lf.load_task({"train": texts}, kind="causal-lm", text="text", name="words")
    task.examples("train", rows=rows)

    def work() -> dict[str, Any]:
        factors = lf.fit_factors(
            model, task, strategy=strategy, labels="empirical", rows=rows, eigen_dtype="float32",
            exclude=("lm_head",),
        )  # fmt: skip
        if strategy == "identity":
            return {"scores": lf.influence(factors, queries="train", query_rows=rows).values}
        return {
            f"{kind} {name}": values(name).numpy()
            for name in factors.layers
            for kind, values in (
                ("A", factors.activation_covariance),
                ("S", factors.gradient_covariance),
                ("lambda", factors.squares.__getitem__),
            )
        }

    return work


def bergson_causal(model: str, texts: str, rows: int, strategy: str) -> Work:
    """bergson's collectors on the same token ids."""
    from bergson.config.config import HessianConfig, IndexConfig, PreprocessConfig
    from bergson.data import allocate_batches
    from bergson.gradients import GradientProcessor
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer

    lines = Path(texts).read_text().splitlines()[1 : rows + 1]
    ids = AutoTokenizer.from_pretrained(model)(lines)["input_ids"]
    data = Dataset.from_dict({"input_ids": ids, "labels": ids, "length": [len(x) for x in ids]})
    loaded: Any = AutoModelForCausalLM.from_pretrained(model).eval()
    loaded.requires_grad_(False)
    loaded.get_input_embeddings().requires_grad_(True)
    folder = Path(tempfile.mkdtemp())
    config = IndexConfig(run_path=str(folder / "run"), token_batch_size=4096)
    batches = allocate_batches(data["length"][:], config.token_batch_size)

    def gradients() -> dict[str, Any]:
        from bergson import CollectorComputer, InMemoryCollector

        collector = InMemoryCollector(
            model=loaded.base_model, cfg=config, processor=GradientProcessor(), data=data,
            preprocess_cfg=PreprocessConfig(),
        )  # fmt: skip
        CollectorComputer(
            model=loaded, data=data, collector=collector, batches=batches, cfg=config
        ).run_with_collector_hooks()
        flat = torch.cat(list(collector.gradients.values()), 1)
        return {"scores": (flat @ flat.T).numpy()}

    def factors() -> dict[str, Any]:
        from bergson.hessians.hessian_approximations import fit_factored_hessians
        from safetensors.torch import load_file

        path = config.partial_run_path
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir(parents=True)
        fit_factored_hessians(
            loaded, data, config,
            HessianConfig(method="kfac", ev_correction=True, use_dataset_labels=True),
            target_modules=None, attention_cfgs={}, batches=batches, path=str(path),
            do_eigendecomposition=True,
        )  # fmt: skip
        kinds = {"A": "activation", "S": "gradient", "lambda": "eigenvalue_correction"}
        return {
            f"{kind} model.{name}": values.numpy()
            for kind, folder_name in kinds.items()
            for name, values in load_file(
                path / f"{folder_name}_sharded" / "shard_0.safetensors"
            ).items()
        }

    config.partial_run_path.mkdir(parents=True, exist_ok=True)
    return gradients if strategy == "identity" else factors


# --- gradient products of a classifier ------------------------------------------------------------


def landform_gradients(checkpoint: str, rows: int, queries: int) -> Work:
    """`influence` with identity factors."""
    import landform as lf
    import landform.attribution.influence
    import landform.curvature.factors

    task = lf.load_task("embedded")
    task.examples("train", rows=rows), task.examples("validation", rows=queries)

    def work() -> dict[str, Any]:
        factors = lf.fit_factors(
            checkpoint, task, strategy="identity", labels="empirical", rows=rows
        )
        return {"scores": lf.influence(factors, query_rows=queries).values}

    return work


def dattri_gradients(checkpoint: str, rows: int, queries: int) -> Work:
    """dattri's Grad-Dot: TracIn with one checkpoint and weight 1."""
    from dattri.algorithm.tracin import TracInAttributor
    from dattri.task import AttributionTask
    from torch.utils.data import DataLoader, TensorDataset

    import landform as lf

    task = lf.load_task("embedded")
    loaders = []
    for split, count in (("train", rows), ("validation", queries)):
        model, data = _opened_split(checkpoint, task, split, count)
        inputs, labels = one_batch(data)
        order = torch.cat([batch.rows for batch in data.batches]).argsort()
        loaders.append(
            DataLoader(TensorDataset(inputs[order], labels[order]), batch_size=64, shuffle=False)
        )
    wrapped = Packed(eager(model))
    layers = [
        f"{name}.{part}"
        for name, module in wrapped.named_modules()
        if isinstance(module, nn.Linear)
        for part in ("weight", "bias")
    ]

    def loss(parameters: Any, row: Any) -> Tensor:
        # One example at a time: dattri vectorises over them, which a mask made of data breaks.
        ids, types, mask = row[0].unbind(0)
        wide = (1.0 - mask[None, None, None].float()) * torch.finfo(torch.float32).min
        inputs = {"input_ids": ids[None], "token_type_ids": types[None], "attention_mask": wide}
        named = {name.removeprefix("model."): value for name, value in parameters.items()}
        logits = torch.func.functional_call(model, named, kwargs=inputs).logits
        return functional.cross_entropy(logits, row[1][None])

    attribution = AttributionTask(loss, wrapped, wrapped.state_dict())

    def work() -> dict[str, Any]:
        side = TracInAttributor(
            attribution, weight_list=torch.ones(1), normalized_grad=False, layer_name=layers
        )
        # Without this gradients are projected to 512 random directions, which no argument stops.
        side.projector_kwargs = None
        return {"scores": side.attribute(*loaders).T.numpy()}

    return work


def _opened_split(checkpoint: str, task: Any, split: str, rows: int) -> tuple[Any, Any]:
    from landform.evaluation.points import Data, DataConfig, prepare
    from landform.weights.checkpoint import load_model, load_tokenizer, resolve

    source = resolve(checkpoint)
    model: Any = load_model(source, task.kind).eval()
    model.requires_grad_(True)
    tokenizer = load_tokenizer(source)
    return model, prepare(Data(task, split), source, model, tokenizer, DataConfig(rows=rows))
