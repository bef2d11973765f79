"""One valid file for every reader, and how it is read: what the fuzzing starts from."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

__all__ = ["READERS", "Specimen"]


@dataclass(frozen=True)
class Specimen:
    """file: what is mutated; read: reads it, and what lies around it."""

    file: Path
    read: Callable[[], Any]
    checked: bool = False
    """A checksum stands for the whole of it: it is read as it was, or not at all."""


def rows(n: int = 6) -> list[dict[str, Any]]:
    return [{"sentence": f"w{i} w{2 * i} w3", "label": i % 2, "uid": f"r{i}"} for i in range(n)]


def table_task(path: Path) -> Callable[[], Any]:
    import landform as lf

    def read() -> Any:
        task = lf.load_task(path, text="sentence", label="label", name="fuzzed")
        return task.examples("validation").fingerprint

    return read


def csv(folder: Path, **_: Any) -> Specimen:
    path = folder / "dev.csv"
    text = "sentence,label,uid\n" + "".join(
        f'"{r["sentence"]}, ""x""",{r["label"]},{r["uid"]}\n' for r in rows()
    )
    path.write_text(text)
    return Specimen(path, table_task(path))


def tsv(folder: Path, **_: Any) -> Specimen:
    path = folder / "dev.tsv"
    lines = ["sentence\tlabel\tuid", *("\t".join(map(str, r.values())) for r in rows())]
    path.write_text("\n".join(lines) + "\n")
    return Specimen(path, table_task(path))


def jsonl(folder: Path, **_: Any) -> Specimen:
    path = folder / "dev.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in rows()))
    return Specimen(path, table_task(path))


def json_table(folder: Path, **_: Any) -> Specimen:
    path = folder / "dev.json"
    path.write_text(json.dumps(rows()))
    return Specimen(path, table_task(path))


def parquet(folder: Path, **_: Any) -> Specimen:
    path = folder / "dev.parquet"
    pd.DataFrame(rows()).to_parquet(path)
    return Specimen(path, table_task(path))


def corpus(folder: Path, **_: Any) -> Specimen:
    import landform as lf

    path = folder / "corpus.txt"
    path.write_text("".join(f"w{i} w1 w2\n" for i in range(6)))
    return Specimen(
        path,
        lambda: lf.load_task(path, kind="masked-lm", name="c").examples("validation").fingerprint,
    )


def answers(folder: Path, **_: Any) -> Specimen:
    import landform as lf
    from text_models import toy_folder

    toy = toy_folder(folder / "toy")
    (path,) = toy.glob("*_dev.tsv")
    options: dict[str, Any] = {"kind": "text-to-text", "metrics": ("exact_match",)}
    return Specimen(path, lambda: lf.load_task(toy, **options).examples("validation").fingerprint)


def study_yaml(folder: Path, place: Path, **_: Any) -> Specimen:
    from landform.studies.study_file import read_study

    for name in ("train.tsv", "dev.tsv", "corpus.txt", "pretrained"):
        (folder / name).symlink_to(place / name)
    path = folder / "study.yaml"
    path.write_text((place / "dropout.yaml").read_text() + "  - report: {title: x}\n")
    return Specimen(path, lambda: repr(read_study(path)))


def task_yaml(folder: Path, place: Path, **_: Any) -> Specimen:
    from landform.cli.common import read_task

    path = folder / "task.yaml"
    text = "files: {validation: dev.tsv}\ntext: [sentence]\nlabel: label\nfilters: {g: [a]}\n"
    path.write_text(text + "label_groups: {a: [b, c]}\nsubsets: [[g, label]]\n")
    return Specimen(path, lambda: repr(read_task(str(path))))


def _store(folder: Path) -> Any:
    from landform.store.artifacts import Contents, Store

    store = Store.open(folder / "study")
    contents = Contents(
        {"x": np.arange(6.0)}, {"t": pd.DataFrame({"a": [1, 2]})}, {"r": {"b": [1, None]}}
    )
    store.write("part/abc", contents, {"n": 1})
    return store


def _artifact(name: str) -> Callable[..., Specimen]:
    def make(folder: Path, **_: Any) -> Specimen:
        store = _store(folder)

        def read() -> Any:
            "part/abc" in store  # noqa: B015  # never raises
            found = store.read("part/abc")
            parts = (found.tensors, found.tables, found.records)
            return repr(
                [
                    {
                        k: getattr(v, "tolist", v.__repr__)()
                        if not isinstance(v, pd.DataFrame)
                        else v.to_dict()
                        for k, v in part.items()
                    }
                    for part in parts
                ]
            )

        return Specimen(folder / "study/artifacts/part/abc" / name, read, checked=True)

    return make


def manifest(folder: Path, **_: Any) -> Specimen:
    store = _store(folder)

    def read() -> Any:
        "part/abc" in store  # noqa: B015
        return sorted(store.read("part/abc").tensors)

    return Specimen(folder / "study/artifacts/part/abc/manifest.json", read)


def study_json(folder: Path, **_: Any) -> Specimen:
    from landform.store.artifacts import Store

    _store(folder)
    return Specimen(
        folder / "study/study.json",
        lambda: repr(Store.open(folder / "study", create=False)),
    )


def result_json(folder: Path, **_: Any) -> Specimen:
    """A result in a study whose manifest fits what is read: only its meaning can be wrong."""
    from known_lines import made_lines
    from landform.exchange.connections import ImportConfig, connection_of
    from landform.results import from_parts, to_parts
    from landform.store.atomic import write_json

    made = connection_of(made_lines(("0", "1", "2")), config=ImportConfig(replicates=20))
    tables, record = to_parts(made)
    path = folder / "result.json"
    write_json(path, record)

    def read() -> Any:
        from landform.store.atomic import read_json

        return type(from_parts(tables, read_json(path))).__name__

    return Specimen(path, read)


def safetensors(folder: Path, **_: Any) -> Specimen:
    from landform.store.atomic import read_tensors, write_tensors

    path = folder / "x.safetensors"
    write_tensors(path, {"a": np.arange(4.0), "b": np.ones((2, 2), np.float32)})
    return Specimen(path, lambda: {k: v.tolist() for k, v in read_tensors(path).items()})


def _checkpoint(name: str) -> Callable[..., Specimen]:
    def make(folder: Path, place: Path, **_: Any) -> Specimen:
        from landform.weights.checkpoint import LoadConfig, check_loadable, resolve

        run = folder / "run"
        run.mkdir()
        for entry in (place / "runs/seed0").iterdir():
            if entry.is_file():
                (run / entry.name).write_bytes(entry.read_bytes())

        def read() -> Any:
            found = resolve(run)
            check_loadable(found, LoadConfig())
            return repr((found.label_names(), sorted(found.shapes.items()), found.fingerprint))

        return Specimen(run / name, read)

    return make


def tokenizer(folder: Path, place: Path, **_: Any) -> Specimen:
    from landform.weights.checkpoint import load_tokenizer, resolve

    made = _checkpoint("tokenizer.json")(folder, place=place)
    return Specimen(made.file, lambda: load_tokenizer(resolve(made.file.parent))("w1 w2").input_ids)


def tokenizer_config(folder: Path, place: Path, **_: Any) -> Specimen:
    made = tokenizer(folder, place)
    return Specimen(made.file.with_name("tokenizer_config.json"), made.read)


def weights(folder: Path, place: Path, **_: Any) -> Specimen:
    """The header of the weights, and loading them."""
    from landform.weights.checkpoint import load_model

    made = _checkpoint("model.safetensors")(folder, place=place)

    def read() -> Any:
        model = load_model(made.file.parent)
        return [float(p.detach().double().abs().sum()) for p in model.parameters()]

    return Specimen(made.file, read)


def peft_config(folder: Path, place: Path, **_: Any) -> Specimen:
    from landform.weights.checkpoint import (
        LoadConfig,
        check_loadable,
        load_model,
        load_tokenizer,
        resolve,
    )
    from landform.weights.tuning import TuningConfig, save_model, tune

    base, run = resolve(place / "runs/seed0"), folder / "tuned"
    model = load_model(base, "classification")
    tune(model, TuningConfig(tuning="adapter", adapter_size=3), head=True)
    save_model(model, run, base.path, base.fingerprint)
    load_tokenizer(base).save_pretrained(run)

    def read() -> Any:
        found = resolve(run)
        check_loadable(found, LoadConfig())
        return repr((found.tuning, found.fingerprint))

    return Specimen(run / "adapter_config.json", read)


def base_record(folder: Path, place: Path, **_: Any) -> Specimen:
    made = peft_config(folder, place)
    return Specimen(made.file.with_name("landform_base.json"), made.read)


def run_record(folder: Path, place: Path, **_: Any) -> Specimen:
    from landform.training.runs import RunDirectory

    made = _checkpoint("landform.json")(folder, place=place)
    (made.file.parent / "history.parquet").write_bytes(b"")
    run = RunDirectory(made.file.parent)

    def read() -> Any:
        run.holds("train/x")
        run.check("train/x", {"a": 1}, overwrite=True)
        return repr(run.record()), run.has_model()

    return Specimen(made.file, read)


def fisher(folder: Path, place: Path, **_: Any) -> Specimen:
    from landform.curvature.fisher import load_fisher

    path = folder / "f.safetensors"
    path.write_bytes((place / "f0.safetensors").read_bytes())

    def read() -> Any:
        found = load_fisher(path)
        return found.fingerprint, repr(found.summary.to_json())

    return Specimen(path, read, checked=True)


def dynamics(folder: Path, place: Path, **_: Any) -> Specimen:
    from landform.evaluation.cartography import read_dynamics

    path = folder / "cartography.parquet"
    path.write_bytes((place / "runs/seed0/cartography.parquet").read_bytes())
    return Specimen(path, lambda: read_dynamics(path).table().to_csv())


def original_cartography(folder: Path, **_: Any) -> Specimen:
    from landform.exchange.cartography import read_cartography

    path = folder / "cartography.json"
    path.write_text(
        json.dumps({str(i): {"acc": [0, 1], "confidence": [0.25, 0.5 + i / 9]} for i in range(4)})
    )
    return Specimen(path, lambda: read_cartography(path).table().to_csv())


def knowledge(folder: Path, **_: Any) -> Specimen:
    from landform.exchange.knowledge import read_knowledge

    path = folder / "valid_data_analysis.json"
    lists = {
        "0.0": {"zero_list": [0], "one_list": [1, 2, 3]},
        "0.5": {"zero_list": [0, 2, 3], "one_list": [1]},
        "1.0": {"zero_list": [2], "one_list": [0, 1, 3]},
    }
    path.write_text(json.dumps(lists))
    return Specimen(path, lambda: read_knowledge(path).reading)


def logs(folder: Path, **_: Any) -> Specimen:
    from known_lines import made_lines
    from landform.exchange.connections import ImportConfig, connection_of
    from landform.exchange.logs import read_logs, write_logs

    made = connection_of(made_lines(("0", "1", "2")), config=ImportConfig(replicates=20))
    (path,) = write_logs(made, folder)
    return Specimen(
        path, lambda: repr([(line.a, line.b, line.values.tolist()) for line in read_logs(path)])
    )


def _pickle(kind: str) -> Callable[..., Specimen]:
    def make(folder: Path, **_: Any) -> Specimen:
        from connectivity_results import make_surface
        from known_lines import made_lines
        from landform.exchange import interpolations, surfaces
        from landform.exchange.connections import ImportConfig, connection_of

        if kind == "surfaces":
            path = surfaces.write_surfaces(make_surface(5), folder)[0]
            return Specimen(
                path,
                lambda: surfaces.read_surfaces(path, allow_pickle=True).values["loss"].tolist(),
            )
        made = connection_of(made_lines(("0", "1", "2")), config=ImportConfig(replicates=20))
        path = interpolations.write_interpolations(made, folder / "lines.pkl")
        return Specimen(
            path,
            lambda: repr(
                [
                    line.values.tolist()
                    for line in interpolations.read_interpolations(path, allow_pickle=True)
                ]
            ),
        )

    return make


def fisher_list(folder: Path, place: Path, **_: Any) -> Specimen:
    from landform.curvature.fisher import load_fisher
    from landform.exchange.fisher_lists import read_fisher_list, write_fisher_lists

    written = write_fisher_lists(load_fisher(place / "f0.safetensors"), folder / "lists")
    path = next(p for p in written if p.name == "fisher.pkl")
    run = place / "runs/seed0"
    return Specimen(path, lambda: read_fisher_list(path, run, allow_pickle=True).fingerprint)


def trace_list(folder: Path, **_: Any) -> Specimen:
    from landform.exchange.fisher_lists import read_trace_list
    from landform.exchange.pickles import write_pickle

    path = folder / "individual_gradients.pkl"
    write_pickle(path, [0.5, 0.25, 1.5])
    return Specimen(path, lambda: read_trace_list(path, allow_pickle=True).to_csv())


def hdf5(folder: Path, **_: Any) -> Specimen:
    import h5py

    from landform.exchange.landscapes import read_landscape

    path = folder / "surf_res4.h5"
    x, y = np.linspace(-1.5, 1.5, 4), np.linspace(-1.0, 1.0, 3)
    with h5py.File(path, "w") as file:
        file["dir_file"] = "dir.h5"
        file["xcoordinates"], file["ycoordinates"] = x, y
        file["train_loss"] = np.array([20 + 10 * b + a for b in y for a in x])
    return Specimen(path, lambda: read_landscape(path).values["loss"].tolist())


def samples(folder: Path, **_: Any) -> Specimen:
    from landform.evaluation.samples import read_samples, write_samples

    log = pd.DataFrame(
        {"text": [f"w{i} [SEP] w2" for i in range(4)], "label": [0, 1, 0, 1],
         "prediction": [0, 1, 1, 1], "logit_0": [0.5, -1.0, 2.0, 0.0],
         "logit_1": [0.25, 1.0, 3.0, 1.0]}
    )  # fmt: skip
    path = folder / "eval_results.txt"
    write_samples(path, log, ("no", "yes"))
    return Specimen(path, lambda: read_samples(path).to_csv())


def predictions(folder: Path, **_: Any) -> Specimen:
    from landform.evaluation.hans import read_predictions

    path = folder / "p.txt"
    path.write_text("pairID,gold_label\n" + "".join(f"ex{i},entailment\n" for i in range(5)))
    return Specimen(path, lambda: read_predictions(path))


def hans(folder: Path, **_: Any) -> Specimen:
    import landform as lf

    path = folder / "heuristics_evaluation_set.txt"
    head = "gold_label\tsentence1\tsentence2\tpairID\theuristic\tsubcase\ttemplate"
    gold = ("entailment", "non-entailment")
    lines = [f"{gold[i % 2]}\tw{i} w1\tw2\tex{i}\tsubsequence\tcase{i}\tt1" for i in range(6)]
    path.write_text("\n".join([head, *lines]) + "\n")
    return Specimen(
        path, lambda: lf.load_task("hans", data_dir=folder).examples("validation").fingerprint
    )


def paws(folder: Path, **_: Any) -> Specimen:
    from landform.tasks.paws import build_paws_qqp, treebank_words

    quora = folder / "quora.tsv"
    head = "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate"
    quora.write_text(head + "\n0\t1\t2\tw1 w2 w3\tw3 w2 w1\t1\n1\t3\t4\tw5 w6\tw6 w5\t0\n")
    (folder / "index").mkdir()
    path = folder / "index/train.tsv"
    path.write_text(
        "id\tqid1\tsentence1\tqid2\tsentence2\tlabel\n1\t1\t0/1/2\t2\t2/1/0\t1\n"
        "2\t3\t0/1\t4\t1/0\t0\n"
    )

    def read() -> Any:
        build_paws_qqp(quora, folder / "index", folder / "out", tokenize=treebank_words)
        return (folder / "out/train.tsv").read_text()

    return Specimen(path, read)


def row_file(folder: Path, **_: Any) -> Specimen:
    from landform.tasks.rows import read_row_file

    path = folder / "rows.txt"
    ids = [f"train-{i}" for i in range(9)]
    path.write_text("train-1\ntrain-4\ntrain-7\n")
    return Specimen(path, lambda: read_row_file(path, ids))


def schedule(folder: Path, **_: Any) -> Specimen:
    from landform.training.schedules import read_schedule, write_schedule

    path = write_schedule(folder / "s.json", {"bert.encoder.layer.0.output.dropout": 0.1, "b": 0.0})
    return Specimen(path, lambda: read_schedule(path))


def _kronfluence(name: str) -> Callable[..., Specimen]:
    def make(folder: Path, place: Path, **_: Any) -> Specimen:
        import torch
        from safetensors.torch import load_file, save_file

        import landform as lf
        from landform.curvature.kronfluence import import_kronfluence

        run, made = place / "runs/seed0", folder / "factors"
        made.mkdir()
        files = {"train": place / "train.tsv"}
        task = lf.load_task(files, text="sentence", label="label", name="t")
        tensors = load_file(run / "model.safetensors")
        layers = [n.removesuffix(".weight") for n, t in tensors.items()
                  if t.dim() == 2 and "embedding" not in n]  # fmt: skip
        about = {"strategy": "diagonal", "use_empirical_fisher": True}
        (made / "factor_arguments.json").write_text(json.dumps(about))
        shapes = {n: tuple(tensors[f"{n}.weight"].shape) for n in layers}
        save_file({n: torch.ones(r, c + 1) for n, (r, c) in shapes.items()},
                  made / "lambda_matrix.safetensors")  # fmt: skip
        save_file({n: torch.tensor([7]) for n in layers},
                  made / "num_lambda_processed.safetensors")  # fmt: skip

        def read() -> Any:
            found = import_kronfluence(made, run, task, strategy="diagonal")
            return found.fingerprint

        return Specimen(made / name, read)

    return make


def _foreign(kind: str) -> Callable[..., Specimen]:
    def make(folder: Path, **_: Any) -> Specimen:
        import h5py
        import torch

        from foreign_weights import write_bundle, write_flax
        from landform.weights.foreign import read_foreign

        values = {"a/kernel": np.arange(6, dtype=np.float32).reshape(2, 3),
                  "a/bias": np.ones(3, np.float32)}  # fmt: skip
        if kind == "bundle":
            path = write_bundle(folder / "model.ckpt", values)
        elif kind == "flax":
            tree = {"a": {"kernel": values["a/kernel"], "bias": values["a/bias"]}}
            path = write_flax(folder / "flax_model.msgpack", tree)
        elif kind == "h5":
            path = folder / "tf_model.h5"
            with h5py.File(path, "w") as file:
                for name, value in values.items():
                    file[f"bert/{name}:0"] = value
        else:
            path = folder / "model.pt"
            torch.save({k: torch.from_numpy(v) for k, v in values.items()}, path)
        return Specimen(
            path, lambda: {k: v.tolist() for k, v in sorted(read_foreign(path).items())}
        )

    return make


READERS: dict[str, Callable[..., Specimen]] = {
    "csv": csv,
    "tsv": tsv,
    "jsonl": jsonl,
    "json table": json_table,
    "parquet": parquet,
    "corpus": corpus,
    "text to text": answers,
    "hans": hans,
    "paws index": paws,
    "row file": row_file,
    "study yaml": study_yaml,
    "task yaml": task_yaml,
    "study.json": study_json,
    "manifest": manifest,
    "artifact tensors": _artifact("tensors.safetensors"),
    "artifact table": _artifact("t.parquet"),
    "artifact record": _artifact("r.json"),
    "result": result_json,
    "safetensors": safetensors,
    "weights": weights,
    "config": _checkpoint("config.json"),
    "tokenizer": tokenizer,
    "tokenizer config": tokenizer_config,
    "peft config": peft_config,
    "base of a tuned model": base_record,
    "run record": run_record,
    "fisher": fisher,
    "dynamics": dynamics,
    "schedule": schedule,
    "original cartography": original_cartography,
    "knowledge lists": knowledge,
    "logs": logs,
    "samples": samples,
    "predictions": predictions,
    "surface pickle": _pickle("surfaces"),
    "line pickle": _pickle("lines"),
    "fisher list": fisher_list,
    "trace list": trace_list,
    "hdf5 surface": hdf5,
    "kronfluence arguments": _kronfluence("factor_arguments.json"),
    "kronfluence tensors": _kronfluence("lambda_matrix.safetensors"),
    "tensorflow 1": _foreign("bundle"),
    "flax": _foreign("flax"),
    "tensorflow 2": _foreign("h5"),
    "state dict": _foreign("torch"),
}
