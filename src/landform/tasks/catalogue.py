"""Tasks that are known by name: the nine GLUE tasks, HANS, PAWS-QQP, and what is registered.

An entry says where a task lives on the hub, what its published download looks like on disk, which
columns hold what, the class names in the order of their codes, and the metrics (headline first).
GLUE keeps the labels of its test sets private, so those splits are not listed.

Sources: Wang et al., "GLUE", ICLR 2019; McCoy et al., "Right for the Wrong Reasons", ACL 2019
(HANS); Zhang et al., "PAWS", NAACL 2019.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from landform.config import nearest
from landform.errors import ConfigError, DataError
from landform.tasks.embedded import study_rows
from landform.tasks.sources import FileFormat, FileSource

if TYPE_CHECKING:
    from landform.tasks.options import Kind, Merge

__all__ = [
    "CATALOGUE",
    "HANS_HEURISTICS",
    "Entry",
    "Folder",
    "Generator",
    "Hub",
    "Layout",
    "Part",
    "find",
    "folder_source",
    "register",
    "unknown_task",
]

HANS_HEURISTICS = ("lexical_overlap", "subsequence", "constituent")


@dataclass(frozen=True)
class Layout:
    """Which columns hold what. `keep` lists further columns to keep where they exist; None: all."""

    text: tuple[str, ...]
    label: str | None
    id: str | None = None
    keep: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Part:
    """A split of a task: rows `start` to `stop` of the split `split` of its source, and of these
    the ones whose columns have one of the values that `where` lists."""

    split: str
    start: int = 0
    stop: int | None = None
    where: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class Hub:
    """A data set of the hub: its name, subset, revision, and the names of its splits."""

    name: str
    subset: str | None
    splits: Mapping[str, str]
    layout: Layout
    revision: str | None = None


@dataclass(frozen=True)
class Folder:
    """The published download of a task: per split the file names it may have, in order."""

    names: tuple[str, ...]
    files: Mapping[str, tuple[str, ...]]
    layout: Layout
    header: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Generator:
    """A function that makes the rows: `function(split)` returns a DataFrame.

    It must be importable by name, so that a task can travel to another process.
    """

    function: Callable[..., Any]
    splits: tuple[str, ...]
    layout: Layout


@dataclass(frozen=True)
class Entry:
    """What the catalogue knows about a task."""

    kind: Kind
    label_names: tuple[str, ...]
    metrics: tuple[str, ...]
    hub: Hub | None = None
    folder: Folder | None = None
    generator: Generator | None = None
    parts: Mapping[str, Part] = field(default_factory=dict)
    """Splits that are a piece of another one."""
    aliases: Mapping[str, str] = field(default_factory=dict)
    """Other names of splits."""
    subsets: tuple[tuple[str, ...], ...] = ()
    label_groups: Mapping[str, tuple[str, ...]] | None = None
    merge: Merge = "max"
    empty_text: bool = False
    """Whether empty texts occur in the published data and are accepted."""
    summary: str = ""


_CATALOGUE: dict[str, Entry] = {}

CATALOGUE: Mapping[str, Entry] = MappingProxyType(_CATALOGUE)
"""All known tasks by name."""


def _plain(name: str) -> str:
    return re.sub(r"[\s_.\-]+", "", name.casefold())


def register(name: str, entry: Entry) -> None:
    """Add a task to the catalogue; `ConfigError` when another one has the name.

    Registering an equal entry again is allowed (a module may be imported twice).
    """
    known = find(name)
    if known is not None and (known[0] != name or known[1] != entry):
        raise ConfigError(
            f"a task named {known[0]!r} is already in the catalogue", remedy="choose another name"
        )
    if (entry.hub, entry.folder, entry.generator) == (None, None, None):
        raise ConfigError(
            f"catalogue entry {name!r} says nothing about where its rows come from",
            remedy="give hub=, folder= or generator=",
        )
    _CATALOGUE[name] = entry


def find(name: str) -> tuple[str, Entry] | None:
    """The catalogue's name and entry for `name`, whatever its case, hyphens and underscores."""
    for known, entry in _CATALOGUE.items():
        if _plain(known) == _plain(name):
            return known, entry
    return None


def unknown_task(name: str) -> ConfigError:
    """The error for a name that is neither in the catalogue, nor a file, nor owner/name."""
    guess = nearest(name, _CATALOGUE) or nearest(_plain(name), _CATALOGUE)
    return ConfigError(
        f"unknown task {name!r}",
        remedy=(f"did you mean {guess!r}? " if guess else "")
        + f"Known tasks: {', '.join(sorted(_CATALOGUE))}; a hub data set is written owner/name;"
        f" a local file ends in .csv, .tsv, .jsonl, .json or .parquet",
    )


def folder_source(name: str, folder: Folder, data_dir: Path, form: FileFormat) -> FileSource:
    """The files of a task in `data_dir`: the task's own folder, or the one that holds it."""
    if not data_dir.is_dir():
        raise DataError(
            f"data_dir {data_dir} of task {name!r} "
            + ("is not a folder" if data_dir.exists() else "does not exist"),
            remedy=f"name the folder that holds {_expected(folder)}, or the files themselves:"
            " files={'validation': path}",
        )
    for place in (data_dir, *(data_dir / sub for sub in folder.names)):
        files = {
            split: next((place / file for file in files if (place / file).is_file()), None)
            for split, files in folder.files.items()
        }
        found = {split: path.resolve() for split, path in files.items() if path is not None}
        if found:
            return FileSource(found, form)
    raise DataError(
        f"data_dir {data_dir} holds no file of task {name!r}",
        remedy=f"expected {_expected(folder)}; for files with other names or columns pass"
        " {'train': path, 'validation': path} with text= and label=",
    )


def _expected(folder: Folder) -> str:
    return ", ".join(" or ".join(files) for files in folder.files.values())


# --------------------------------------------------------------------------------------- entries

_TRAIN_DEV = {"train": ("train.tsv",), "validation": ("dev.tsv",)}
_PAIR = ("sentence1", "sentence2")
_TRAIN_VALIDATION = {"train": "train", "validation": "validation"}


def _glue(subset: str, layout: Layout, splits: Mapping[str, str] | None = None) -> Hub:
    return Hub("nyu-mll/glue", subset, splits or _TRAIN_VALIDATION, layout)


def _glue_task(
    subset: str,
    folder: str,
    *,
    text: tuple[str, ...],
    label_names: tuple[str, ...],
    metrics: tuple[str, ...] = ("accuracy",),
    label: str = "label",
    local_text: tuple[str, ...] | None = None,
    summary: str,
) -> Entry:
    """An entry whose files are GLUE's usual train.tsv and dev.tsv with a header."""
    return Entry(
        kind="classification" if label_names else "regression",
        label_names=label_names,
        metrics=metrics,
        hub=_glue(subset, Layout(text, "label", keep=())),
        folder=Folder((folder,), _TRAIN_DEV, Layout(local_text or text, label, keep=("genre",))),
        empty_text=True,
        summary=summary,
    )


register(
    "cola",
    Entry(
        kind="classification",
        label_names=("unacceptable", "acceptable"),
        metrics=("matthews", "accuracy"),
        hub=_glue("cola", Layout(("sentence",), "label", keep=())),
        folder=Folder(
            ("CoLA",),
            _TRAIN_DEV,
            Layout(("sentence",), "label", keep=("source",)),
            header=("source", "label", "mark", "sentence"),
        ),
        # The validation set is the in-domain development set followed by the out-of-domain one.
        parts={
            "validation_in_domain": Part("validation", 0, 527),
            "validation_out_of_domain": Part("validation", 527, None),
        },
        aliases={
            "in_domain_dev": "validation_in_domain",
            "out_domain_dev": "validation_out_of_domain",
        },
        empty_text=True,
        summary="grammatical acceptability of a sentence",
    ),
)
register(
    "sst2",
    _glue_task(
        "sst2",
        "SST-2",
        text=("sentence",),
        label_names=("negative", "positive"),
        summary="sentiment of a phrase from a film review",
    ),
)
register(
    "mrpc",
    Entry(
        kind="classification",
        label_names=("not_equivalent", "equivalent"),
        metrics=("accuracy", "f1", "combined"),
        hub=_glue("mrpc", Layout(_PAIR, "label", keep=()), {**_TRAIN_VALIDATION, "test": "test"}),
        folder=Folder(
            ("MRPC",),
            {
                # Without GLUE's train/dev files: the corpus as Microsoft publishes it.
                "train": ("train.tsv", "msr_paraphrase_train.txt"),
                "validation": ("dev.tsv",),
                "test": ("msr_paraphrase_test.txt",),
            },
            Layout(("#1 String", "#2 String"), "Quality", keep=()),
        ),
        empty_text=True,
        summary="whether two sentences from the news are paraphrases",
    ),
)
register(
    "qqp",
    _glue_task(
        "qqp",
        "QQP",
        text=("question1", "question2"),
        label="is_duplicate",
        label_names=("not_duplicate", "duplicate"),
        metrics=("accuracy", "f1", "combined"),
        summary="whether two questions ask the same",
    ),
)
register(
    "stsb",
    _glue_task(
        "stsb",
        "STS-B",
        text=_PAIR,
        label="score",
        label_names=(),
        metrics=("pearson", "spearman", "combined"),
        summary="similarity of two sentences, from 0 to 5",
    ),
)
register(
    "mnli",
    Entry(
        kind="classification",
        label_names=("entailment", "neutral", "contradiction"),
        metrics=("accuracy",),
        hub=_glue(
            "mnli",
            Layout(("premise", "hypothesis"), "label", keep=()),
            {
                "train": "train",
                "validation_matched": "validation_matched",
                "validation_mismatched": "validation_mismatched",
            },
        ),
        folder=Folder(
            ("MNLI",),
            {
                "train": ("train.tsv",),
                "validation_matched": ("dev_matched.tsv",),
                "validation_mismatched": ("dev_mismatched.tsv",),
            },
            Layout(_PAIR, "gold_label", keep=("genre",)),
        ),
        aliases={
            "validation": "validation_matched",
            "dev_matched": "validation_matched",
            "dev_mismatched": "validation_mismatched",
        },
        empty_text=True,
        summary="whether a premise entails, contradicts or leaves open a hypothesis",
    ),
)
register(
    "qnli",
    _glue_task(
        "qnli",
        "QNLI",
        text=("question", "sentence"),
        label_names=("entailment", "not_entailment"),
        summary="whether a sentence answers a question",
    ),
)
register(
    "rte",
    _glue_task(
        "rte",
        "RTE",
        text=_PAIR,
        label_names=("entailment", "not_entailment"),
        summary="whether a passage entails a sentence",
    ),
)
register(
    "wnli",
    _glue_task(
        "wnli",
        "WNLI",
        text=_PAIR,
        label_names=("not_entailment", "entailment"),
        summary="whether a sentence follows with its pronoun replaced",
    ),
)
_HANS_KEPT = ("heuristic", "subcase", "template")
_HANS_LABELS = ("entailment", "non-entailment")


def _hans_parts() -> dict[str, Part]:
    """One split per heuristic and label: `validation_lexical_overlap_non_entailment`."""
    return {
        f"{split}_{heuristic}_{label.replace('-', '_')}": Part(
            split, where={"heuristic": (heuristic,), "label": (label,)}
        )
        for split in ("validation", "train")
        for heuristic in HANS_HEURISTICS
        for label in _HANS_LABELS
    }


register(
    "hans",
    Entry(
        kind="classification",
        label_names=_HANS_LABELS,
        metrics=("accuracy",),
        # The data set's main branch is a loading script, which is never run; the hub keeps the
        # same rows as Parquet on this branch.
        hub=Hub(
            "jhu-cogsci/hans",
            None,
            _TRAIN_VALIDATION,
            Layout(("premise", "hypothesis"), "label", keep=_HANS_KEPT),
            revision="refs/convert/parquet",
        ),
        folder=Folder(
            ("HANS", "hans"),
            {
                "train": ("heuristics_train_set.txt",),
                "validation": ("heuristics_evaluation_set.txt",),
            },
            Layout(_PAIR, "gold_label", id="pairID", keep=_HANS_KEPT),
        ),
        parts=_hans_parts(),
        # HANS-LO is what the connectivity scripts mean by "hans" unless they are asked for all.
        aliases={
            "evaluation": "validation",
            "lexical_overlap_non_entailment": "validation_lexical_overlap_non_entailment",
            "lo": "validation_lexical_overlap_non_entailment",
            "train_lo": "train_lexical_overlap_non_entailment",
        },
        subsets=(("heuristic", "label"), ("subcase",), ("template",)),
        label_groups={
            "entailment": ("entailment",),
            "non-entailment": ("neutral", "contradiction"),
        },
        # The larger of two logits: its argmax is "three-way argmax, then collapse", which the
        # published HANS accuracies are.
        merge="max",
        summary="inference pairs on which syntactic shortcuts fail, 3 heuristics x 10 sub-cases",
    ),
)
register(
    "paws_qqp",
    Entry(
        kind="classification",
        label_names=("not_duplicate", "duplicate"),
        metrics=("accuracy", "f1"),
        folder=Folder(
            ("paws_qqp", "paws_final"),
            {"train": ("train.tsv",), "dev_and_test": ("dev_and_test.tsv",)},
            Layout(_PAIR, "label", id="id", keep=()),
        ),
        aliases={"validation": "dev_and_test"},
        summary="question pairs with the same words, of which few are duplicates",
    ),
)
register(
    "embedded",
    Entry(
        kind="classification",
        label_names=("entailment", "non-entailment"),
        metrics=("accuracy",),
        generator=Generator(
            study_rows,
            ("train", "validation", "heuristics"),
            Layout(("premise", "hypothesis"), "label", id="id"),
        ),
        subsets=(("heuristic", "label"), ("subcase",)),
        summary="entailment in a small grammar; the split heuristics tells shortcuts from syntax",
    ),
)
