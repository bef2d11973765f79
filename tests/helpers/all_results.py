"""Everything that processes share the work of, computed once: alone, or as one of several.

    python -m torch.distributed.run --nproc-per-node 2 all_results.py CHECKPOINT STORE OUT

writes OUT/<rank>.npz; `results` gives the same arrays in a process of its own.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

import landform as lf
from landform.attribution.influence import self_influence
from landform.curvature.ranks import current_ranks
from landform.errors import CurvatureError, LandformError
from landform.store.artifacts import Store
from small_cases import small_task

STRATEGIES = ("identity", "diagonal", "kfac", "ekfac")


def results(checkpoint: Path) -> dict[str, np.ndarray]:
    """Factors and scores of all strategies; batches of few rows, and one batch for all."""
    found: dict[str, np.ndarray] = {}
    task = small_task("classification")
    for budget in (24, 1024):
        for strategy in STRATEGIES:
            options: dict[str, Any] = {"dtype": "float64", "token_budget": budget}
            factors = lf.fit_factors(checkpoint, task, strategy=strategy, **options)
            name = f"{budget}/{strategy}"
            for layer in factors.layers:
                if strategy in ("kfac", "ekfac"):
                    found[f"{name}/A/{layer}"] = factors.activation_covariance(layer).numpy()
                    found[f"{name}/S/{layer}"] = factors.gradient_covariance(layer).numpy()
                if strategy == "diagonal":
                    found[f"{name}/squares/{layer}"] = factors.squares[layer].numpy()
            found[f"{name}/scores"] = lf.influence(factors, damping=1e-3).values
            alone = self_influence(factors, damping=1e-3, measurement="margin")
            found[f"{name}/self"] = alone.values
            found[f"{name}/loss"] = alone.table["loss"].to_numpy()
        some: dict[str, Any] = {"damping": 1e-3, "memory": 2e-5}  # several blocks
        found[f"{budget}/blocks"] = lf.influence(factors, **some).values
        top = lf.influence(factors, top=2, **some).best
        assert top is not None
        found[f"{budget}/top"] = top.to_numpy(float)
        summed = lf.influence(factors, aggregate="train", per_module=True, damping=1e-3)
        found[f"{budget}/summed"] = summed.values
        assert summed.modules is not None
        found |= {f"{budget}/module/{n}": t.to_numpy() for n, t in summed.modules.items()}
        tokens = lf.influence(factors, per_token=True, damping=1e-3).tokens
        assert tokens is not None
        found[f"{budget}/tokens"] = tokens.to_numpy(float)
    return found


def stored(checkpoint: Path, place: Path) -> dict[str, np.ndarray]:
    """The same through a study on disk: what was written and decomposed here."""
    counts = {"written": 0, "decomposed": 0}
    write, eigh = Store.write, torch.linalg.eigh

    def counting_write(self: Store, *args: Any, **named: Any) -> None:
        counts["written"] += 1
        write(self, *args, **named)

    def counting_eigh(matrix: Any) -> Any:
        counts["decomposed"] += 1
        return eigh(matrix)

    Store.write, torch.linalg.eigh = counting_write, counting_eigh  # type: ignore[method-assign]
    try:
        for again in range(2):
            store = Store.open(place)
            factors = lf.fit_factors(
                checkpoint, small_task("classification"), dtype="float64", store=store, chunk_rows=4
            )
            scores = lf.influence(factors, damping=1e-3, store=store).values
            if again:
                break
            counts["first"] = counts["written"]
    finally:
        Store.write, torch.linalg.eigh = write, eigh  # type: ignore[method-assign]
    numbers = [counts["first"], counts["written"], counts["decomposed"]]
    return {"stored": scores, "counts": np.array(numbers)}


def failing() -> np.ndarray:
    """An error of the last process alone, as each of them sees it."""
    ranks = current_ranks()
    try:
        with ranks.together():
            if ranks.rank == ranks.world - 1:
                raise CurvatureError("the last process has had enough")
    except LandformError as error:
        return np.array([str(error)])
    return np.array(["nothing happened"])


def _main() -> None:
    checkpoint, place, out = map(Path, sys.argv[1:])
    torch.set_num_threads(1)
    found = results(checkpoint) | stored(checkpoint, place) | {"error": failing()}
    np.savez(out / f"{os.environ['RANK']}.npz", **found)


if __name__ == "__main__":
    _main()
