"""Made-up comparisons of dropout: the values are drawn, the tables are the real ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from landform.studies.comparison import DropoutComparison
from landform.studies.comparison_tables import difference_table, overall_table, summary_table

__all__ = ["ARMS", "make_comparison"]

ARMS = ("guided", "uniform", "shuffled", "standard", "none")
MEANS = {"standard": 0.1, "none": 0.0}


def make_comparison(
    *,
    arms: Sequence[str] = ARMS,
    tasks: Sequence[str] = ("sst2", "paws"),
    fractions: Sequence[float] = (10.0, 100.0),
    seeds: Sequence[int] = (0, 1, 2, 3, 4),
    gains: Mapping[str, float] | None = None,
    spread: float = 0.006,
    reference: str = "standard",
    lower: bool = False,
    sites: int = 12,
    seed: int = 0,
) -> DropoutComparison:
    """`gains`: what each arm adds to the metric; `lower`: the metric is a loss."""
    draw = np.random.default_rng(seed)
    rows = []
    for task in tasks:
        for fraction in fractions:
            for number in seeds:
                shared = 0.8 + 0.05 * (fraction >= 100) + draw.normal(0, 0.01)
                for arm in arms:
                    value = shared + (gains or {}).get(arm, 0.0) + draw.normal(0, spread)
                    rows.append(
                        {
                            "task": task, "fraction": fraction, "arm": arm, "seed": number,
                            "metric": "loss" if lower else "accuracy", "value": value,
                            "dropout": MEANS.get(arm, 0.05), "rows": 100, "steps": 9,
                            "seconds": 1.5, "path": f"{task}/{arm}/seed{number}", "reused": False,
                        }
                    )  # fmt: skip
    runs = pd.DataFrame(rows)
    metrics = pd.DataFrame(
        {
            "task": list(tasks), "metric": "loss" if lower else "accuracy", "headline": True,
            "higher_is_better": not lower, "split": "validation", "test": "official",
            "test_rows": 872,
        }
    )  # fmt: skip
    summary = summary_table(runs, metrics, list(arms), 0.95)
    scheduled = [arm for arm in arms if arm in ("guided", "uniform", "shuffled")]
    alike = {"level": 0.95, "power": 0.8}
    return DropoutComparison(
        model="org/model",
        reference=reference,
        arms=tuple(arms),
        seeds=tuple(seeds),
        metrics=metrics,
        runs=runs,
        summary=summary,
        differences=difference_table(runs, metrics, reference, **alike),
        overall=overall_table(runs, metrics, summary, reference, **alike),
        schedules=pd.DataFrame(
            [
                {"arm": arm, "site": f"layer.{k}.dropout", "p": 0.1 * k / max(1, sites - 1)}
                for arm in scheduled
                for k in range(sites)
            ],
            columns=["arm", "site", "p"],
        ),
        fisher="org/model on 256 examples of corpus:train (empirical, mean)" if scheduled else None,
        level=0.95,
        power=0.8,
        provenance={},
    )
