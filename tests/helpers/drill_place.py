"""A tiny place with checkpoints and data, and every long command on it."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

__all__ = ["COMMANDS", "changed", "make_place", "snapshot", "without_times"]

DATA = "--files.train train.tsv --files.validation dev.tsv --text sentence --label label"
TRAIN = f"train pretrained {DATA} --max-steps 6 --batch-size 4 --learning-rate 1e-2 --threads 1"
STEPS = "--train.max-steps 2 --train.batch-size 4 --train.learning-rate 1e-2 --train.threads 1"
FEW = "--replicates 20"

COMMANDS: dict[str, list[str]] = {
    name: [*words.split(), "--json"]
    for name, words in {
        "train": f"{TRAIN} --seeds 0 1 --save-steps 2 4 --resume-steps 2 --cartography --out new",
        "train-best": f"{TRAIN} --keep-best loss --eval-steps 2 --resume-steps 3 --out new",
        "evaluate": f"evaluate runs/seed* {DATA} {FEW} --samples samples --store study",
        "interpolate": f"interpolate runs/seed0 runs/seed1 {DATA} {FEW} --points 5 --store study",
        "connect": f"connect runs/seed* {DATA} {FEW} --points 4 --store study",
        "landmarks": f"connect runs/seed* {DATA} {FEW} --points 3 --landmarks 2 --store study",
        "surface": f"surface --through runs/seed0 runs/seed1 runs/seed2 {DATA} --size 5 "
        "--store study",
        "curve": f"curve runs/seed0 runs/seed1 {DATA} --steps 3 --points 3 --store study "
        "--out path --models-at 0.5",
        "simplex": f"simplex runs/seed0 runs/seed1 {DATA} --connectors 1 --steps 2 "
        "--samples 2 --store study --out complex",
        "mix": f"mix runs/seed0 runs/seed1 {DATA} --groups layer --steps 3 --store study "
        "--out mixed",
        "sharpness": f"sharpness runs/seed0 {DATA} {FEW} --method box sam --steps 2 --store study",
        "spectrum": f"spectrum runs/seed0 {DATA} --operator ggn --top 1 --probes 4 --store study",
        "spectrum-path": f"spectrum runs/seed0 runs/seed1 {DATA} --operator ggn --top 1 "
        "--probes 4 --points 2 --store study",
        "dynamics": f"dynamics runs/seed* --steps 2 4 {DATA} {FEW} --points 3 --store study",
        "ridge": f"ridge runs/seed0 runs/seed1 {DATA} {FEW} --points 4 --csv rises.csv "
        "--store study",
        "knowledge": f"knowledge runs/seed0 runs/seed1 {DATA} --points 4 --store study",
        "boundary": f"boundary runs/seed0 runs/seed1 {DATA} --task-b other.yaml --points 4 "
        "--store study",
        "fisher": f"fisher runs/seed0 {DATA} --rows 6 --out f.safetensors --store study",
        "average": f"average runs/seed0 runs/seed1 --fisher f0.safetensors f1.safetensors {DATA} "
        f"{FEW} --store study --out merged",
        "align": "align runs/seed0 runs/seed1 --out aligned",
        "influence": f"influence runs/seed0 {DATA} --k 2 --csv top.csv --store study",
        "mislabel": f"mislabel runs/seed0 {DATA} --k 2 --csv ranking.csv --store study",
        "lds": f"lds pretrained {DATA} --methods identity --masks 3 --retrainings 1 {STEPS} "
        "--query-rows 3 --store study",
        "counterfactual": f"counterfactual pretrained {DATA} --methods random identity --sizes 2 "
        f"--base-seeds 0 --retrain-seeds 100 --query-rows 4 --targets 1 {STEPS} --store study",
        "barrier": f"barrier runs/seed0 runs/seed1 {DATA} --points 3 --csv rows.csv --store study",
        "examples": f"examples runs/seed0 runs/seed1 {DATA} --points 3 --csv e.csv --store study",
        "cartography": f"cartography runs/seed0 {DATA} --store study",
        "study-file": "run study.yaml",
        "comparison": "run dropout.yaml",
    }.items()
}

STUDY = """
study: study
tasks:
  toy: {files: {train: train.tsv, validation: dev.tsv}, text: sentence, label: label}
steps:
  - train: {model: pretrained, task: toy, out: study/runs, seeds: [0, 1], max_steps: 2}
  - connect: {checkpoints: study/runs/seed*, task: toy, points: 3, replicates: 20}
  - report: {title: A drill}
"""
COMPARISON = """
study: study
tasks:
  toy: {files: {train: train.tsv, validation: dev.tsv}, text: sentence, label: label}
  corpus: {files: {train: corpus.txt}, kind: masked-lm}
steps:
  - comparison:
      model: pretrained
      tasks: [toy]
      out: study/runs
      arms: [guided, standard]
      seeds: [0, 1]
      fisher: {task: corpus, rows: 6}
      max_steps: 2
      batch_size: 4
"""
OTHER = "files: {validation: ood.tsv}\ntext: sentence\nlabel: label\n"


def make_place(root: Path, save_checkpoint: Any, write_rows: Any, zygote: Any) -> Path:
    """Checkpoints runs/seed0..2 with steps, pretrained, data, study files, two Fisher files."""
    root.mkdir()
    save_checkpoint(root / "pretrained", kind="masked-lm", seed=6)
    for i, (name, rows) in enumerate((("train", 12), ("dev", 8), ("ood", 6))):
        write_rows(root / f"{name}.tsv", rows, seed=i)
    lines = [f"w{k} w{k + 1} w{(7 * k) % 30} w3" for k in range(8)]
    (root / "corpus.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    for name, text in (("study", STUDY), ("dropout", COMPARISON), ("other", OTHER)):
        (root / f"{name}.yaml").write_text(text, encoding="utf-8")
    train = f"{TRAIN} --seeds 0 1 2 --save-steps 2 4 --cartography --out runs"
    fishers = [f"fisher runs/seed{i} {DATA} --rows 6 --out f{i}.safetensors" for i in range(2)]
    for command in (train, *fishers):
        ended = zygote.run(command.split(), root)
        assert ended.status == 0, ended.err
    return root


TIMES = {"seconds", "timings", "created", "reused"}
"""What differs from run to run, and has to: how long the work took, when a study was made, and
whether a model of the result was trained by this run of the command or by an earlier one.
Keys of records and columns of tables; a manifest also has the hashes of the files with them."""


def snapshot(root: Path) -> dict[str, bytes]:
    """Every file below `root`; `same` compares two of them."""
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def changed(found: dict[str, bytes], expected: dict[str, bytes]) -> list[str]:
    """The files of `found` that are not in `expected` with the same bytes, but for TIMES."""
    timed = {
        name
        for name, data in found.items()
        if name in expected and data != expected[name] and not name.endswith("manifest.json")
    }
    return [
        name
        for name, data in found.items()
        if name not in expected or not _equal(name, data, expected[name], timed)
    ]


def _equal(name: str, data: bytes, expected: bytes, timed: set[str]) -> bool:
    return data == expected or _timeless(name, data, timed) == _timeless(name, expected, timed)


def without_times(value: Any) -> Any:
    """A record without what TIMES names."""
    if isinstance(value, dict):
        return {k: without_times(v) for k, v in value.items() if k not in TIMES}
    if isinstance(value, list):
        return [without_times(v) for v in value]
    return repr(value)  # NaN is NaN


def _timeless(name: str, data: bytes, timed: set[str]) -> Any:
    if name.endswith("seconds.json"):
        return sorted(json.loads(data))
    if name.endswith("manifest.json"):
        value = json.loads(data)
        for file in value["files"]:
            if str(Path(name).parent / file) in timed:
                value["files"][file] = None
        return value
    if name.endswith(".safetensors"):  # a Fisher file says in its header how long it took
        size = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + size])
        for key, text in header["__metadata__"].items():
            about = json.loads(text)
            about.pop("sha256", None)  # of all that, times included
            header["__metadata__"][key] = without_times(about)
        return header, data[8 + size :]
    if name.endswith(".json"):
        return without_times(json.loads(data))
    if name.endswith(".parquet"):
        table = pq.read_table(io.BytesIO(data))
        table = table.drop_columns([c for c in table.column_names if c in TIMES])
        return str(table.schema.remove_metadata()), repr(table.to_pydict())
    if name.endswith(".html"):  # its tables are those of results, and it lists their hashes
        return re.sub(rb"<td.*?</td>|[0-9a-f]{64}|size&#34;: \d+", b"", data, flags=re.S)
    return data
