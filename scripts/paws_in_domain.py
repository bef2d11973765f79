"""Make an in-domain counterpart of PAWS-QQP from its own questions, where QQP is not at hand.

    python scripts/paws_in_domain.py paws_qqp/train.tsv --out in_domain

QQP's pairs are easy for a bag of words: duplicates share their words, others mostly do not. PAWS's
are not: all share them. This script pairs the questions of PAWS's training file as QQP would:

    duplicate         a pair that PAWS labels 1
    not_duplicate     a question and the most similar one (TF-IDF) of another pair, below a limit of
                      similarity; and a small share (`--disambiguating`) of pairs that PAWS labels 0

and writes train.tsv and validation.tsv (id, sentence1, sentence2, label), of different pairs of
PAWS. Its dev_and_test.tsv is then out of domain: word overlap says nothing there.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.feature_extraction.text import TfidfVectorizer

LIMIT = 0.8


def neighbours(questions: list[str], families: np.ndarray) -> np.ndarray:
    """For each question the most similar one of another family, or -1 where none is below LIMIT."""
    vectors = TfidfVectorizer(lowercase=True).fit_transform(questions)
    found = np.full(len(questions), -1)
    for start in range(0, len(questions), 512):
        similar = (vectors[start : start + 512] @ vectors.T).toarray()
        similar[similar > LIMIT] = -1.0
        similar[families[start : start + 512, None] == families[None]] = -1.0
        best = similar.argmax(1)
        rows = np.arange(len(best))
        found[start : start + 512] = np.where(similar[rows, best] > 0, best, -1)
    return found


def in_domain(paws: pd.DataFrame, rows: int, disambiguating: float, seed: int) -> pd.DataFrame:
    """`rows` pairs, half of them duplicates."""
    random = np.random.default_rng(seed)
    half, hard = rows // 2, round(rows * disambiguating)
    differ = paws.sentence1.str.lower() != paws.sentence2.str.lower()
    same = paws[(paws.label == 1) & differ].sample(half, random_state=seed)
    swapped = paws[paws.label == 0].sample(hard, random_state=seed)
    partner = neighbours(paws.sentence1.tolist(), np.arange(len(paws)))
    usable = random.permutation(np.flatnonzero(partner >= 0))[: rows - half - hard]
    other = pd.DataFrame(
        {
            "sentence1": paws.sentence1.to_numpy()[usable],
            "sentence2": paws.sentence2.to_numpy()[partner[usable]],
            "label": 0,
        }
    )
    columns = ["sentence1", "sentence2", "label"]
    table = pd.concat([same[columns], swapped[columns], other], ignore_index=True)
    table["label"] = np.where(table.label == 1, "duplicate", "not_duplicate")
    return table.sample(frac=1, random_state=seed).reset_index(drop=True)


def main() -> None:
    """Read the options, write the two files."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("paws", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=3000)
    parser.add_argument("--validation-rows", type=int, default=1000)
    parser.add_argument("--disambiguating", type=float, default=0.05)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    paws = pd.read_csv(options.paws, sep="\t", quoting=3)
    paws = paws.sample(frac=1, random_state=options.seed).reset_index(drop=True)
    cut = len(paws) * 3 // 4
    options.out.mkdir(parents=True, exist_ok=True)
    for name, part, rows in (
        ("train", paws[:cut], options.rows),
        ("validation", paws[cut:], options.validation_rows),
    ):
        table = in_domain(part, rows, options.disambiguating, options.seed)
        table.index.name = "id"
        table.to_csv(options.out / f"{name}.tsv", sep="\t", quoting=3)
        duplicates = (table.label == "duplicate").sum()
        print(f"{options.out / name}.tsv: {len(table)} pairs, {duplicates} duplicates")


if __name__ == "__main__":
    main()
