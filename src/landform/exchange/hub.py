"""The hub: models of a prefix and their steps, files fetched from many models, results pushed.

`huggingface_hub` does the work and holds the user's token; nothing here reads, takes or prints
one. Files are pushed as one commit, whole or not at all.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import pandas as pd

from landform.errors import CheckpointError, ConfigError, HubError, LandformError
from landform.exchange.cards import card_of
from landform.exchange.lines import natural_order
from landform.results import Result
from landform.store.atomic import file_errors
from landform.store.study import slug
from landform.weights.checkpoint import resolve

__all__ = ["FETCH_PATTERNS", "HubModels", "Pushed", "fetch_files", "hub_models", "push"]

RepoType = Literal["model", "dataset"]

FETCH_PATTERNS = {"eval": ("*eval*.json", "{model}.json"), "logs": ("*.out", "*.log")}
"""Which files hold per-sample evaluations, and which hold interpolation logs. CoLA models keep
theirs as `<model>.json`."""

_SUMMARIES = {"eval_results.json", "all_results.json", "train_results.json"}
_STEP = re.compile(
    r"(?<![0-9a-z])(?:steps?|checkpoint)[ _=:-]*0*(\d+)|(?<!\d)(\d+) ?steps?\b", re.I
)


@contextmanager
def _hub(action: str) -> Iterator[Any]:
    """The hub's client; what goes wrong becomes a `HubError` in one line, without a token."""
    import huggingface_hub

    try:
        yield huggingface_hub.HfApi()
    except LandformError:
        raise
    except Exception as error:  # the library's own, and those of its HTTP client
        status = getattr(getattr(error, "response", None), "status_code", None)
        remedy = "check the network and the name; HF_ENDPOINT says where the hub is"
        if status in (401, 403):
            remedy = "log in first (hf auth login) with a token that may do this"
        elif status == 404:
            remedy = "check the name; a private repository needs a login (hf auth login)"
        raise HubError(f"cannot {action}: {_said(error)}", remedy=remedy) from None


def _said(error: Exception) -> str:
    """The first lines of an error's text without anything that looks like a token."""
    text = " ".join(str(error).split()) or type(error).__name__
    text = re.sub(r"\bhf_[A-Za-z0-9]{6,}|(?i:bearer) \S+", "[token]", text)
    return text if len(text) <= 240 else text[:237] + "..."


# --- models of a prefix --------------------------------------------------------------------------


@dataclass(frozen=True)
class HubModels(Result):
    """The hub's models `PREFIX<digits>`."""

    prefix: str
    table: pd.DataFrame
    """name, number, modified, and steps (the numbers that commit messages, branches and tags
    name; empty where they were not asked for)"""

    @property
    def reading(self) -> str:
        """One line for a person."""
        numbers = self.table["number"]
        return (
            f"{len(self.table)} models {self.prefix}<number>, "
            f"{numbers.iloc[0]} to {numbers.iloc[-1]}"
        )

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {"prefix": self.prefix, "models": self.table.to_dict("records")}


def hub_models(prefix: str, *, steps: bool = False) -> HubModels:
    """The models of the hub whose name is `prefix` and a number, in the order of the numbers.

    With `steps`, the training steps that each model's history names are looked up too: what
    `org/name@STEP` can be asked for. Raises `HubError` where there are none.
    """
    author, slash, rest = prefix.partition("/")
    if not slash or not author or not rest or "/" in rest:
        raise ConfigError(
            f"{prefix!r} is not the beginning of a hub name",
            remedy="write it as org/name_: the models org/name_0, org/name_1, ... are listed",
        )
    pattern = re.compile(re.escape(prefix) + r"(\d+)")
    with _hub(f"list the models {prefix}<number>") as api:
        found = {}
        for model in api.list_models(author=author, search=rest):
            match = pattern.fullmatch(model.id)
            if match:
                found[model.id] = (match[1], getattr(model, "last_modified", None))
        if not found:
            raise HubError(
                f"the hub has no model {prefix}<number>",
                remedy="the prefix is everything before the number, with its _ or -",
            )
        rows = [
            {
                "name": name,
                "number": found[name][0],
                "modified": "" if found[name][1] is None else f"{found[name][1]:%Y-%m-%d}",
                "steps": " ".join(map(str, _steps(api, name))) if steps else "",
            }
            for name in natural_order(list(found))
        ]
    return HubModels(prefix, pd.DataFrame(rows))


def _steps(api: Any, name: str) -> list[int]:
    refs = api.list_repo_refs(name)
    said = [ref.name for ref in [*refs.branches, *refs.tags]]
    said += [f"{commit.title}\n{commit.message}" for commit in api.list_repo_commits(name)]
    found = (match for text in said for match in _STEP.finditer(text))
    return sorted({int(match[1] or match[2]) for match in found})


# --- files of many models ------------------------------------------------------------------------


def fetch_files(
    source: str,
    out: str | Path,
    *,
    kind: Literal["eval", "logs"] = "eval",
    match: Sequence[str] = (),
    repo_type: RepoType = "model",
) -> list[Path]:
    """Download the evaluations of all models of a prefix, or the logs of one repository.

    `kind="eval"`: `source` is a prefix (see `hub_models`); files go to `<out>/<model>/<file>`.
    `kind="logs"`: `source` is a repository; files go to `<out>/<file>`. `match` are patterns of
    file names in place of those in `FETCH_PATTERNS`. What is there already is not downloaded
    again. Raises `HubError` for a model without such files, naming some that it has.
    """
    folder = Path(out)
    names = list(hub_models(source).table["name"]) if kind == "eval" else [source]
    written: list[Path] = []
    for name in names:
        model = name.rpartition("/")[2]
        place = folder / model if kind == "eval" else folder
        with _hub(f"read the files of {name}") as api:
            files = api.list_repo_files(name, repo_type=repo_type)
            patterns = match or [p.format(model=model) for p in FETCH_PATTERNS[kind]]
            chosen = [file for file in files if _wanted(file, patterns, bool(match))]
            if not chosen:
                known = ", ".join(files[:6]) or "no files"
                raise HubError(
                    f"{name} has no file {' or '.join(patterns)}",
                    remedy=f"name a pattern (--match). It has: {known}",
                )
            for file in chosen:
                with file_errors("write", place / file):
                    path = api.hf_hub_download(name, file, repo_type=repo_type, local_dir=place)
                written.append(Path(path))
    return written


def _wanted(file: str, patterns: Sequence[str], asked: bool) -> bool:
    name = PurePosixPath(file).name
    if not asked and name in _SUMMARIES:  # of the Trainer, in another format
        return False
    return any(fnmatchcase(name, pattern) or fnmatchcase(file, pattern) for pattern in patterns)


# --- pushing -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pushed(Result):
    """What was pushed, and where it is."""

    repo: str
    revision: str
    kind: str
    """checkpoint, study, folder or file"""
    files: tuple[str, ...]
    """paths in the repository"""
    message: str
    url: str

    @property
    def reading(self) -> str:
        """One line for a person."""
        return f"pushed {self.kind} ({len(self.files)} files) to {self.url}"

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "repo": self.repo,
            "revision": self.revision,
            "kind": self.kind,
            "files": list(self.files),
            "message": self.message,
            "url": self.url,
        }


def push(
    source: str | Path,
    repo: str,
    *,
    private: bool = False,
    revision: str | None = None,
    path_in_repo: str = "",
    message: str | None = None,
    repo_type: RepoType = "model",
) -> Pushed:
    """Push a checkpoint, a study, a folder or a file to a repository of the hub, in one commit.

    * a checkpoint (`DIR`, `DIR@STEP`): config, weights, tokenizer, training record; the default
      message says the step, so that `repo@STEP` finds it;
    * a study: its results, study.json and atlas.html; not its artifacts, which any machine can
      compute again;
    * any other folder (of logs, say): its files, those in hidden folders left out.

    A checkpoint or a study without a README.md gets a card that says what it is. `path_in_repo`
    is the folder, for a single file the whole path, to put it at; the repository and a `revision`
    (branch) are made where they are missing, `private` or not, as a model or, by `repo_type`, a
    data set. `source` is what is pushed. The token is the one of `hf auth login`.
    """
    kind, root, files, step = _content(source)
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repo):
        raise ConfigError(f"{repo!r} is not a hub name", remedy="write it as org/name")
    prefix = path_in_repo.strip("/")
    if kind == "file":
        targets = {prefix or root.name: root}
    else:
        targets = {str(PurePosixPath(prefix) / f.relative_to(root).as_posix()): f for f in files}
    said = message or _message(kind, root, step)
    with _hub(f"push {source} to {repo}") as api:
        from huggingface_hub import CommitOperationAdd

        operations = [CommitOperationAdd(t, str(f)) for t, f in targets.items()]
        readme = str(PurePosixPath(prefix) / "README.md")
        if kind in ("checkpoint", "study") and readme not in targets:
            operations.append(CommitOperationAdd(readme, card_of(kind, root, repo).encode()))
        # With an open repository of that name, the choice of private has been made.
        api.create_repo(repo, private=private, exist_ok=True, repo_type=repo_type)
        if revision and revision != "main":
            api.create_branch(repo, branch=revision, exist_ok=True, repo_type=repo_type)
        with warnings.catch_warnings():
            # The library wonders about tables (.parquet) in a repository of a model.
            warnings.filterwarnings("ignore", category=UserWarning)
            done = api.create_commit(
                repo, operations, commit_message=said, revision=revision, repo_type=repo_type
            )
    paths = tuple(sorted(operation.path_in_repo for operation in operations))
    return Pushed(repo, revision or "main", kind, paths, said, str(done.commit_url))


_LEFT_OUT = re.compile(r"^(\.|optimizer|scheduler|scaler|rng_state|training_args|trainer_state)")


def _content(source: str | Path) -> tuple[str, Path, list[Path], int | None]:
    """(kind, root, files, step) of what is to be pushed; raises before the hub is asked."""
    text = str(source)
    place = Path(text)
    _, at, step = text.rpartition("@")
    if at and step.isdecimal() and not place.exists():
        found = resolve(text)
        return "checkpoint", found.path, _checkpoint_files(found.path), int(step)
    if place.is_file():
        return "file", place, [place], None
    if not place.is_dir():
        raise CheckpointError(
            f"{text}: there is no such file or folder", remedy="check the path of what to push"
        )
    if (place / "study.json").is_file():
        own = [place / "study.json", place / "atlas.html", place / "README.md"]
        published = place / "results"
        results = [p for p in sorted(published.rglob("*")) if _is_shown(p, published)]
        if not results:
            raise ConfigError(
                f"the study {place} has no results yet", remedy="run something in it first"
            )
        return "study", place, [p for p in own if p.is_file()] + results, None
    if (place / "config.json").is_file():
        return "checkpoint", place, _checkpoint_files(resolve(place).path), None
    files = [path for path in sorted(place.rglob("*")) if _is_shown(path, place)]
    if not files:
        raise ConfigError(f"{place} holds no files", remedy="check the path of what to push")
    return "folder", place, files, None


def _is_shown(path: Path, root: Path) -> bool:
    """Whether it is a file that nobody hides, nor is in the middle of writing."""
    return path.is_file() and not any(p.startswith(".") for p in path.relative_to(root).parts)


def _checkpoint_files(folder: Path) -> list[Path]:
    """The files of the model itself: no optimiser states, no other steps."""
    files = [p for p in sorted(folder.iterdir()) if p.is_file() and not _LEFT_OUT.match(p.name)]
    if any(path.suffix == ".safetensors" for path in files):
        files = [path for path in files if path.suffix not in (".bin", ".pt", ".pth")]
    return files


def _message(kind: str, root: Path, step: int | None) -> str:
    if step is None:
        found = re.fullmatch(r"checkpoint-(\d+)", root.name)
        step = int(found[1]) if found else None
    if step is not None:
        return f"Weights of step {step}"
    return f"Add {kind} {slug(root.resolve().name)}"
