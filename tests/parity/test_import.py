"""Factors that kronfluence 1.0.1 itself has written give the scores that it computes from them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import landform as lf
from landform.attribution.influence import self_influence
from landform.curvature.kronfluence import import_kronfluence
from landform.curvature.session import LayersConfig, Session
from landform.evaluation.points import Data
from landform.weights.checkpoint import resolve
from peer import Peer
from peer import _as_dict as as_dict

pytest.importorskip("kronfluence", reason="the peer is a development package: see the Makefile")
pytestmark = [pytest.mark.filterwarnings("ignore:.*GradScaler.*:FutureWarning")]

TRAIN, QUERIES = 24, 7


@pytest.mark.parametrize("strategy", ["identity", "diagonal", "kfac", "ekfac"])
@pytest.mark.parametrize("architecture", ["bert", "gpt2"])
def test_scores_from_its_files_are_its_scores(
    architecture: str, strategy: str, tmp_path: Path, save_checkpoint: Any, write_rows: Any
) -> None:
    kind = "classification"
    checkpoint = save_checkpoint(
        tmp_path / "model", kind=kind, architecture=architecture, num_labels=3
    )
    for name, size, seed in (("train", TRAIN, 1), ("validation", QUERIES, 2)):
        write_rows(tmp_path / f"{name}.tsv", size, seed=seed, classes=3)
    files = {name: str(tmp_path / f"{name}.tsv") for name in ("train", "validation")}
    task = lf.load_task(files, text="sentence", label="label", kind=kind)
    config = LayersConfig(dtype="float64", token_budget=80)
    session = Session.open(resolve(checkpoint), Data(task, "train"), config)
    train = session.prepare(Data(task, "train"), task.examples("train"))
    queries = session.prepare(Data(task, "validation"), task.examples("validation"))
    layers = [layer.name for layer in session.layers]
    peer = Peer(
        session.model, train.objective, train.batches, tmp_path, strategy=strategy, layers=layers
    )
    found = import_kronfluence(
        tmp_path / "peer" / "factors_factors", checkpoint, task,
        strategy=strategy, dtype="float64", token_budget=80, rows=TRAIN,
    )  # fmt: skip
    assert found.labels == "empirical"
    for damping in (1e-8, None):
        pairs = peer.scores(queries.batches, measurement="margin", damping=damping)
        theirs = pairs["all_modules"].numpy()
        ours = lf.influence(found, measurement="margin", damping=damping).values
        assert abs(ours - theirs).max() < 1e-9 * abs(theirs).max()
        own = self_influence(found, damping=damping).values
        theirs = peer.self_scores(damping=damping).numpy()
        assert abs(own - theirs).max() < 1e-9 * abs(theirs).max()
    if strategy == "ekfac":
        parts = import_kronfluence(
            _fit_in_parts(peer, tmp_path), checkpoint, task,
            dtype="float64", token_budget=80, rows=TRAIN,
        )  # fmt: skip
        again = lf.influence(parts, damping=1e-3).values
        whole = lf.influence(found, damping=1e-3).values
        assert abs(again - whole).max() < 1e-9 * abs(whole).max()


def _fit_in_parts(peer: Peer, folder: Path) -> Path:
    """The same factors, with Lambda in parts that kronfluence did not put together yet."""
    from kronfluence.utils.common.factor_arguments import pytest_factor_arguments

    arguments = pytest_factor_arguments("ekfac")
    arguments.lambda_data_partitions = arguments.lambda_module_partitions = 2
    peer.analyzer.fit_all_factors(
        factors_name="parts",
        dataset=[as_dict(batch) for batch in peer.train],
        per_device_batch_size=1,
        factor_args=arguments,
    )
    place = folder / "peer" / "factors_parts"
    assert len(list(place.glob("lambda_matrix_data_partition*"))) == 4
    for name in ("lambda_matrix", "num_lambda_processed"):
        (place / f"{name}.safetensors").unlink()
    return place
