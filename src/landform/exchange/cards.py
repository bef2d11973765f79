"""Cards (README.md) of what is pushed to the hub: what it is, what made it, what it measured."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from landform.errors import LandformError
from landform.store.artifacts import Store, package_version
from landform.store.atomic import PREFIX, read_json
from landform.store.study import load_results

__all__ = ["card_of"]

_SHOWN = (
    *("learning_rate", "epochs", "max_steps", "batch_size", "accumulation", "warmup_ratio"),
    *("schedule", "weight_decay", "clip", "dropout", "max_length"),
)


def card_of(kind: str, root: Path, repo: str) -> str:
    """The card of a checkpoint folder or of a study, as Markdown with the hub's front matter.

    A checkpoint that `landform train` made has its data, options, seeds and metrics on the card; of
    another one it says the architecture. A study has a line for each of its results.
    """
    name = repo.rpartition("/")[2]
    if kind == "study":
        lines = _study(root, name)
        tags = ["landform", "loss-landscape"]
        front: dict[str, Any] = {"tags": tags}
    else:
        config = read_json(root / "config.json")
        record = root / "landform.json"
        made = read_json(record) if record.is_file() else {}
        lines = _checkpoint(config, made, name)
        front = {"library_name": "transformers", "tags": ["landform", str(config["model_type"])]}
    head = "\n".join(f"{key}: {json.dumps(value)}" for key, value in front.items())
    return f"---\n{head}\n---\n\n" + "\n".join(lines) + "\n"


def _checkpoint(config: Mapping[str, Any], made: Mapping[str, Any], name: str) -> list[str]:
    architecture = (config.get("architectures") or ["a model"])[0]
    lines = [f"# {name}", ""]
    if not made:
        return [*lines, f"{architecture}. Pushed by landform {package_version()}."]
    version = made.get("environment", {}).get("landform", "")
    lines += [
        f"{architecture}, fine-tuned by landform {version} on `{made.get('task')}` "
        f"({made.get('split')}) from `{Path(str(made.get('model'))).name}`.",
        "",
    ]
    summary = made.get("summary", {})
    measured = [(k, v) for k, v in summary.items() if "/" in k or k == "train_loss"]
    if measured:
        lines += ["| metric | value |", "|---|---|"]
        lines += [f"| {key} | {_number(value)} |" for key, value in measured]
        lines.append("")
    options = made.get("config", {})
    told = [(key, options[key]) for key in _SHOWN if options.get(key) is not None]
    told += [(key, value) for key, value in summary.items() if key.endswith("seed")]
    told += [(key, summary[key]) for key in ("rows", "steps") if key in summary]
    lines += ["| option | value |", "|---|---|"]
    lines += [f"| {key} | {_number(value)} |" for key, value in told]
    return lines


def _study(root: Path, name: str) -> list[str]:
    lines = [f"# {name}", "", f"A study of loss landscapes by landform {package_version()}."]
    if (root / "atlas.html").is_file():
        lines += ["", "`atlas.html` is the whole report on one page: download it and open it."]
    lines += ["", "| result | reading |", "|---|---|"]
    lines += [f"| `{title}` | {_cell(reading)} |" for title, reading in _readings(root)]
    example = 'landform.store.study.load_results(landform.store.study.open_store("DIR"))'
    return [*lines, "", f"Read it with `{example}`."]


def _readings(root: Path) -> Iterable[tuple[str, str]]:
    try:
        results = load_results(Store.open(root, create=False))
    except LandformError:  # of another version, say: the files can be pushed all the same
        names = sorted(path.name for path in (root / "results").iterdir())
        return [(name, "") for name in names if not name.startswith(PREFIX)]
    return [(title, str(getattr(result, "reading", ""))) for title, result in results.items()]


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
