"""Text-to-text tasks from files: the multi-answer TSV format, and which metric a task is judged by.

A task is a folder with `<task>_train.tsv`, `<task>_dev.tsv`, `<task>_test.tsv` (or any of them): no
header, one example a line, separated by tabs: the input, then one or more accepted answers. Quotes
are ordinary characters. The task's name is what stands before the last underscore. White space
around a cell does not count, nor do empty cells at the end of a line.

The format and the names are those of CrossFit's NLP Few-shot Gym (Ye et al. 2021), which Qin et
al., "Exploring Mode Connectivity for Pre-trained Language Models", EMNLP 2022, use with T5.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING
from warnings import warn

import numpy as np
import pandas as pd

from landform.config import nearest
from landform.errors import ConfigError, DataError
from landform.tasks.sources import Table
from landform.tasks.tables import missing_column, read_text

if TYPE_CHECKING:
    from landform.tasks.options import TaskConfig

__all__ = ["TASK_METRICS", "AnswerSource", "metric_of", "source_of_files", "source_of_folder"]

_NAMES: Mapping[str, str] = {
    "answer_accuracy": """
        ai2_arc aqua_rat art blimp-anaphor_gender_agreement blimp-anaphor_number_agreement
        blimp-determiner_noun_agreement_with_adj_irregular_1 blimp-ellipsis_n_bar_1
        blimp-ellipsis_n_bar_2 blimp-existential_there_quantifiers_1
        blimp-irregular_past_participle_adjectives blimp-sentential_negation_npi_licensor_present
        blimp-sentential_negation_npi_scope blimp-wh_questions_object_gap boolq commonsense_qa
        cosmos_qa crows_pairs definite_pronoun_resolution dream glue-mnli
        glue-mnli_anli_allforget10000 glue-mnli_anli_allforget15000 glue-mnli_anli_allforget5000
        glue-mnli_anli_easy10000 glue-mnli_anli_easy5000 glue-mnli_anli_easy5000_new
        glue-mnli_anli_forgeteasy10000 glue-mnli_anli_forgeteasy5000 glue-mnli_anli_forgethard10000
        glue-mnli_anli_forgethard5000 glue-mnli_anli_hard10000 glue-mnli_anli_hard5000
        glue-mnli_anli_hard5000_new glue-mnli_anli_mix10000 glue-mnli_anli_mix15000
        glue-mnli_anli_mix5000 glue-mnli_anli_mix5000_new glue-mrpc glue-qnli glue-qqp glue-rte
        glue-sst2 glue-wnli google_wellformed_query hellaswag kilt_fever math_qa mc_taco
        medical_questions_pairs openbookqa piqa qasc quail quarel quartz-no_knowledge
        quartz-with_knowledge race-high race-middle sciq social_i_qa superglue-cb superglue-copa
        superglue-rte superglue-wic superglue-wsc swag wino_grande wiqa
    """,
    "answer_f1": """
        ade_corpus_v2-classification ag_news amazon_polarity anli circa climate_fever codah
        dbpedia_14 discovery emo emotion ethos-directed_vs_generalized ethos-disability ethos-gender
        ethos-national_origin ethos-race ethos-religion ethos-sexual_orientation
        financial_phrasebank hate_speech18 hate_speech_offensive hatexplain health_fact imdb liar
        onestop_english paws poem_sentiment rotten_tomatoes scicite scitail sick sms_spam tab_fact
        tab_fact_new trec trec-finegrained tweet_eval-emoji tweet_eval-emotion tweet_eval-hate
        tweet_eval-irony tweet_eval-offensive tweet_eval-sentiment tweet_eval-stance_abortion
        tweet_eval-stance_atheism tweet_eval-stance_climate tweet_eval-stance_feminist
        tweet_eval-stance_hillary wiki_auto wiki_qa yahoo_answers_topics yelp_polarity
    """,
    "exact_match": """
        acronym_identification ade_corpus_v2-dosage ade_corpus_v2-effect aslg_pc12 break-QDMR
        break-QDMR-high-level crawl_domain freebase_qa jeopardy kilt_ay2 kilt_hotpotqa kilt_nq
        kilt_trex kilt_zsre lama-conceptnet lama-google_re lama-squad lama-trex limit numer_sense
        proto_qa qa_srl search_qa spider squad-no_context superglue-multirc web_questions wikisql
    """,
    "rouge_l": """
        aeslc common_gen cos_e e2e_nlg_cleaned eli5-askh eli5-asks eli5-eli5 empathetic_dialogues
        gigaword kilt_wow multi_news reddit_tifu-title reddit_tifu-tldr samsum wiki_bio wiki_split
        xsum
    """,
    "token_f1": """
        adversarialqa biomrc duorc hotpot_qa quoref ropes squad-with_context superglue-record
        tweet_qa
    """,
    "answer_pearson": """
        app_reviews mocha yelp_review_full
    """,
    "answer_matthews": """
        glue-cola
    """,
}
TASK_METRICS: Mapping[str, str] = MappingProxyType(
    {task: metric for metric, names in _NAMES.items() for task in names.split()}
)
"""The metric of each of the 178 tasks of the EMNLP 2022 code: ACC is answer_accuracy,
Classification-F1 answer_f1, EM exact_match, QA-F1 token_f1, Rouge-L rouge_l."""

_SPLITS: Mapping[str, str] = {
    "train": "train",
    "training": "train",
    "dev": "validation",
    "development": "validation",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
}


@dataclass(frozen=True)
class AnswerSource:
    """One file of inputs and answers per split (see the module's docstring)."""

    files: Mapping[str, Path]
    prefix: str
    """the task's name, from the names of the files"""
    skip_bad_rows: bool = False
    empty_text: bool = False
    lowercase: bool = False

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits that have a file."""
        return tuple(self.files)

    def columns(self, split: str) -> tuple[str, ...]:
        """Input and answers, whatever the split."""
        return ("input", "answers")

    def read(
        self, split: str, columns: Sequence[str] | None = None, optional: Sequence[str] = ()
    ) -> Table:
        """The rows of a split: `input` a text, `answers` a tuple of texts.

        Raises `DataError` naming file and line of a row without an input or an answer.
        """
        for name in columns or ():
            if name not in self.columns(split):
                raise missing_column(name, self.columns(split), str(self.files[split]))
        path = self.files[split]
        rows, lines = self._rows(path, read_text(path))
        inputs = pd.Series([row[0] for row in rows], dtype=object)
        answers = pd.Series([row[1:] for row in rows], dtype=object)
        frame = pd.DataFrame({"input": inputs, "answers": answers})
        return Table(frame, str(path), np.asarray(lines, dtype=np.int64))

    def _rows(self, path: Path, text: str) -> tuple[list[tuple[str, ...]], list[int]]:
        if not text.strip():
            raise DataError(
                f"{path} is empty", remedy="one example a line was expected: input, tab, answers"
            )
        rows, lines, faults = [], [], []
        # Not str.splitlines: it also breaks at U+2028 and others that occur inside text.
        for number, line in enumerate(text.rstrip("\r\n").split("\n"), start=1):
            cells = tuple(cell.strip() for cell in line.split("\t"))
            while len(cells) > 1 and not cells[-1]:
                cells = cells[:-1]
            fault = self._fault(line, cells)
            if fault is None:
                rows.append(tuple(map(str.lower, cells)) if self.lowercase else cells)
                lines.append(number)
            else:
                faults.append(f"{path}, line {number}: {fault}")
        if faults and not (self.skip_bad_rows and rows):
            more = f" ({len(faults)} such rows)" if len(faults) > 1 else ""
            raise DataError(
                faults[0] + more,
                remedy="every line is an input, a tab, and one or more answers separated by tabs;"
                " repair the row, or pass skip_bad_rows=True to leave such rows out",
            )
        if faults:
            warn(f"{len(faults)} rows left out; the first: {faults[0]}", UserWarning, stacklevel=2)
        return rows, lines

    def _fault(self, line: str, cells: tuple[str, ...]) -> str | None:
        if not line.strip():
            return "blank line"
        if "\t" not in line:
            return "no tab, so no answer"
        if not cells[0] and not self.empty_text:
            return "the input (column 1) is empty"
        if len(cells) < 2:
            return "no answer"
        empty = next((i for i, cell in enumerate(cells) if i and not cell), None)
        return None if empty is None else f"the answer in column {empty + 1} is empty"


def source_of_folder(folder: Path, config: TaskConfig) -> AnswerSource:
    """The files of the one task in `folder`, or of the one that the config chooses.

    Raises `DataError` for a folder without such files, and `ConfigError`, which lists them, for
    one with several tasks.
    """
    if not folder.is_dir():
        raise DataError(
            f"{folder} is not a folder",
            remedy="name the folder with <task>_train.tsv, <task>_dev.tsv, <task>_test.tsv, or give"
            " files={'train': path, 'validation': path}",
        )
    found: dict[str, dict[str, Path]] = {}
    for path in sorted(folder.glob("*.tsv")):
        prefix, split = _named(path)
        if split is None:
            continue
        files = found.setdefault(prefix or folder.name, {})
        if split in files:
            raise DataError(
                f"{files[split]} and {path} are both the split {split!r}", remedy="keep one of them"
            )
        files[split] = path
    if not found:
        raise DataError(
            f"folder {folder} holds no file <task>_train.tsv, <task>_dev.tsv or <task>_test.tsv",
            remedy="name the files so, or give files={'train': path, 'validation': path}",
        )
    prefix = _chosen(folder, sorted(found), config)
    order = ("train", "validation", "test")
    files = {split: found[prefix][split] for split in order if split in found[prefix]}
    return _source(files, prefix, config)


def _chosen(folder: Path, prefixes: Sequence[str], config: TaskConfig) -> str:
    if config.file_prefix is not None:
        if config.file_prefix not in prefixes:
            guess = nearest(config.file_prefix, prefixes)
            raise ConfigError(
                f"option file_prefix: folder {folder} has no files {config.file_prefix}_train.tsv, "
                f"{config.file_prefix}_dev.tsv, ...",
                remedy=(f"did you mean {guess!r}? " if guess else "")
                + f"Tasks: {', '.join(prefixes)}",
            )
        return config.file_prefix
    if len(prefixes) > 1 and not config.one_prefix:
        raise ConfigError(
            f"folder {folder} holds {len(prefixes)} tasks: {', '.join(prefixes)}",
            remedy="choose one: file_prefix=...; or the first: one_prefix=True",
        )
    return prefixes[0]


def source_of_files(files: Mapping[str, Path], config: TaskConfig) -> AnswerSource:
    """The named files; the task's name is that of the files where they agree on one."""
    if config.file_prefix is not None or config.one_prefix:
        raise ConfigError(
            "options file_prefix and one_prefix choose among the files of a folder",
            remedy="leave them out where the files are named",
        )
    for path in files.values():
        if not path.is_file():
            raise DataError(f"data file {path} does not exist", remedy="check the path")
    prefixes = {_named(path)[0] for path in files.values()}
    first = next(iter(files.values()))
    only = next(iter(prefixes)) if len(prefixes) == 1 else ""
    return _source(files, only or first.parent.name or "task", config)


def _source(files: Mapping[str, Path], prefix: str, config: TaskConfig) -> AnswerSource:
    return AnswerSource(
        dict(files), prefix, config.skip_bad_rows, config.empty_text, config.lowercase
    )


def _named(path: Path) -> tuple[str, str | None]:
    """The task and the split that a file's name tells: ("anli", "validation") of anli_dev.tsv."""
    prefix, _, split = path.stem.rpartition("_")
    return prefix, _SPLITS.get(split.lower())


def metric_of(name: str, source: AnswerSource) -> str:
    """The metric of a task: by its name, that of its files, or that of their folder.

    Raises `ConfigError` where none of them is in the table.
    """
    folder = next(iter(source.files.values())).parent.name
    for known in (name, source.prefix, folder):
        if known in TASK_METRICS:
            return TASK_METRICS[known]
    guess = nearest(name, TASK_METRICS)
    raise ConfigError(
        f"no metric is known for the text-to-text task {name!r}",
        remedy=(f"did you mean {guess!r}? Otherwise " if guess else "")
        + f"pass metrics=, one or more of {', '.join(_NAMES)}, loss, token_accuracy",
    )
