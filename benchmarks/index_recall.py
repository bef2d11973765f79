"""How many of the best training rows an index of gradients finds, for several sizes.

    python benchmarks/index_recall.py CHECKPOINT --sst2 DIR --rows 2048 --queries 128

The exact scores of all pairs say which 10 rows help and which 10 harm a query most. An index of
each size is asked for candidates, which it would score exactly; the table says what share of the 20
is among them. Rows chosen for other queries are scored exactly as well, and only add to it.
"""

from __future__ import annotations

import argparse
import itertools
import time
from pathlib import Path

import numpy as np

import landform as lf
from landform.attribution.index import build_index


def recall(exact: np.ndarray, estimates: np.ndarray, k: int, candidates: int) -> float:
    """Share of the k highest and k lowest rows of each query among as many candidates a side."""
    order, guess = exact.argsort(1), estimates.argsort(1)
    found = [
        len(set(best[side]) & {*chosen[:candidates], *chosen[-candidates:]})
        for best, chosen in zip(order, guess, strict=True)
        for side in (slice(None, k), slice(-k, None))
    ]
    return float(np.sum(found) / (2 * k * len(exact)))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("checkpoint")
    parser.add_argument("--sst2", type=Path, help="directory with train.tsv and dev.tsv")
    parser.add_argument("--task", default="sst2", help="a task by name, where --sst2 is not given")
    parser.add_argument("--rows", type=int, default=2048)
    parser.add_argument("--queries", type=int, default=128)
    parser.add_argument("--strategy", default="ekfac")
    parser.add_argument("--damping", type=float, nargs="+", default=[1e-8])
    parser.add_argument("--sizes", type=int, nargs="+", default=[1024, 4096, 16384])
    parser.add_argument("--shares", type=float, nargs="+", default=[0, 1], help="0: the default")
    parser.add_argument("--candidates", type=int, nargs="+", default=[10, 50, 100])
    parser.add_argument("--store", type=Path)
    options = parser.parse_args()
    task = lf.load_task(options.task)
    if options.sst2 is not None:
        task = lf.load_task(
            options.sst2, text="sentence", label="label", kind="classification",
            label_names=("negative", "positive"),
        )  # fmt: skip
    factors = lf.fit_factors(
        options.checkpoint, task, strategy=options.strategy, labels="empirical",
        rows=options.rows, store=options.store,
    )  # fmt: skip
    asked = {"query_rows": options.queries, "measurement": "margin"}
    heads = "".join(f" recall, {count} candidates |" for count in options.candidates)
    print(
        f"| damping | size | share | MiB | seconds to make | seconds to ask | correlation |{heads}"
    )
    print("|---" * (7 + len(options.candidates)) + "|")
    for damping in options.damping:
        exact = lf.influence(factors, damping=damping, store=options.store, **asked).values
        for size, share in itertools.product(options.sizes, options.shares):
            start = time.perf_counter()
            index = build_index(factors, damping=damping, size=size, share=share or None)
            made = time.perf_counter()
            estimates = index.estimate(**asked)
            spent = time.perf_counter() - made
            shares = [recall(exact, estimates, 10, count) for count in options.candidates]
            cells = "".join(f" {share:.3f} |" for share in shares)
            agree = np.mean(
                [np.corrcoef(a, b)[0, 1] for a, b in zip(exact, estimates, strict=True)]
            )
            print(
                f"| {damping:g} | {size} | {share or 'default'} "
                f"| {index.nbytes / 2**20:.1f} | {made - start:.1f} "
                f"| {spent:.1f} | {agree:.3f} |{cells}",
                flush=True,
            )


if __name__ == "__main__":
    main()
