"""The study that ships with the package: a small encoder, and how it is fine-tuned.

The encoder (3 layers, 128 wide, one token per word of the grammar) was pre-trained by
`scripts/pretrain_encoder.py`; its data come from `landform.tasks.grammar`.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from landform.errors import CheckpointError

__all__ = ["STUDY", "EmbeddedStudy", "encoder_path"]


@dataclass(frozen=True)
class EmbeddedStudy:
    """One fine-tuning recipe: AdamW, a linear warm-up and a linear fall to zero.

    Sizes count rows, `warmup` is a share of the steps, `disambiguating` the share of training
    rows in which word overlap gives the wrong label.
    """

    seeds: tuple[int, ...]
    train_rows: int
    validation_rows: int
    heuristic_rows: int
    data_seed: int
    disambiguating: float
    steps: int
    batch_size: int
    learning_rate: float
    warmup: float
    weight_decay: float
    dropout: float


# The step is large enough that seeds disagree about clauses under "if" (accuracy 0 to 1) while all
# of them stay above 95 % in domain; at twice this step fine-tuning fails, at half of it fewer seeds
# find the rule. `data_seed` makes the rows, which all seeds share.
STUDY = EmbeddedStudy(
    seeds=tuple(range(8)),
    train_rows=3000,
    validation_rows=512,
    heuristic_rows=600,
    data_seed=0,
    disambiguating=0.03,
    steps=200,
    batch_size=32,
    learning_rate=1e-3,
    warmup=0.1,
    weight_decay=0.01,
    dropout=0.0,
)


def encoder_path() -> Path:
    """Directory of the shipped encoder, for `from_pretrained`.

    Raises `CheckpointError` where the package lies in an archive or was installed without it.
    """
    path = Path(str(files("landform.embedded").joinpath("encoder")))
    if not (path / "model.safetensors").is_file():
        raise CheckpointError(
            f"the shipped encoder is missing: {path}",
            remedy="install landform again, unpacked, with its package data",
        )
    return path
