"""The rows of the embedded study's task, at the sizes of its recipe."""

from __future__ import annotations

from typing import TYPE_CHECKING

from landform.embedded import STUDY
from landform.tasks.grammar import generate

if TYPE_CHECKING:
    import pandas as pd

    from landform.tasks.grammar import Split

__all__ = ["study_rows"]


def study_rows(split: Split) -> pd.DataFrame:
    """Training rows, in-domain validation rows, or the rows that tell heuristics from grammar."""
    sizes = {
        "train": STUDY.train_rows,
        "validation": STUDY.validation_rows,
        "heuristics": STUDY.heuristic_rows,
    }
    share = STUDY.disambiguating if split == "train" else 0.0
    return generate(split, sizes[split], STUDY.data_seed, share)
