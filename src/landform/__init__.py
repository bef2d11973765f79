"""landform: which basin a fine-tuned language model landed in, and what lies around it.

    import landform as lf

    task = lf.load_task("sst2")
    curve = lf.interpolate("runs/seed0", "runs/seed1", task, points=11)
    curve.barrier_height, curve.convexity_gap
    study = lf.connect(["runs/seed0", "runs/seed1", "runs/seed2"], task, store="study/")
    study.basins
    factors = lf.fit_factors("runs/seed0", task, strategy="ekfac")
    lf.influence(factors, queries="validation").top(query=7, k=5)

Words that mean the same everywhere:

    checkpoint, a, b, model     a directory, `DIR@STEP`, a hub name, or a `Checkpoint`
    task, split                 what `load_task` gives, and which of its splits
    also                        further data sets: tasks, or pairs of a task and a split
    queries, train              splits, or pairs of a task and a split: asked about, and scored
    store                       a study directory: what is computed is kept there and found again
    out                         where a checkpoint or a file is written
    progress                    show a bar
    replicates, seed, level     bootstrap replicates, their seed, coverage of the intervals
    **options                   the fields of the config that the function names

Names are imported on first use, so that `import landform` costs nothing and touches nothing.
"""

from __future__ import annotations

import importlib
from importlib import metadata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from landform.attribution.index import GradientIndex, build_index
    from landform.attribution.influence import (
        Influence,
        SelfInfluence,
        influence,
        self_influence,
    )
    from landform.attribution.lds import LinearDatamodelling, linear_datamodelling_score
    from landform.attribution.mislabel import Mislabel, corrupt_labels, mislabel
    from landform.curvature.factors import Factors, fit_factors
    from landform.curvature.fisher import Fisher, FisherScores, load_fisher
    from landform.curvature.fisher_fit import fisher
    from landform.curvature.kronfluence import import_kronfluence
    from landform.curvature.spectrum import Spectrum, spectrum
    from landform.evaluation.cartography import DataMap, cartography, data_map
    from landform.evaluation.evaluate import Evaluation, evaluate
    from landform.evaluation.hans import score_predictions
    from landform.exchange.connections import connection_of
    from landform.exchange.evaluations import read_evaluations
    from landform.exchange.hub import push
    from landform.exchange.interpolations import read_interpolations
    from landform.exchange.landscapes import read_landscape
    from landform.exchange.logs import read_logs
    from landform.exchange.surfaces import read_surfaces
    from landform.geometry.average import Average, average
    from landform.geometry.curves import (
        area_under_curve,
        barrier_height,
        bump_area,
        bump_height,
        convexity_gap,
    )
    from landform.geometry.fitting import FittedPath, PathEvaluation, fit_curve, walk
    from landform.geometry.knowledge import Knowledge, knowledge_along_path
    from landform.geometry.landscape import Landscape, landscape, landscape_statistics
    from landform.geometry.line import Interpolation, interpolate
    from landform.geometry.mixing import MixingFit, fit_mixing
    from landform.geometry.ridge import Ridge, ridge
    from landform.geometry.sharpness import Sharpness, SharpnessComparison, sharpness
    from landform.geometry.similarity import Similarity, similarity
    from landform.geometry.simplexes import ComplexFit, FittedComplex, fit_complex
    from landform.geometry.spectrum_path import PathSpectrum, spectrum_along_path
    from landform.geometry.statistics import basin_statistics
    from landform.geometry.surface import Surface, surface
    from landform.geometry.transitivity import Transitivity, transitivity
    from landform.report.atlas import write_atlas
    from landform.studies.axes import Axes, axis_lines, collect_axes
    from landform.studies.barrier_influence import BarrierInfluence, barrier_influence
    from landform.studies.boundary import Boundaries, Boundary, task_boundaries, task_boundary
    from landform.studies.comparison import DropoutComparison, FisherFit, compare_dropout
    from landform.studies.connect import Connection, connect
    from landform.studies.counterfactual import Counterfactual, counterfactual
    from landform.studies.dynamics import Dynamics, dynamics
    from landform.studies.example_table import ExampleTable, example_table
    from landform.studies.lds import lds
    from landform.studies.sharpness import compare_sharpness
    from landform.tasks.hans import generate_hans
    from landform.tasks.objective import Objective
    from landform.tasks.task import Task, load_task
    from landform.training.cartography import CartographyCallback
    from landform.training.consolidation import ConsolidationCallback
    from landform.training.dropout import DropoutCallback, apply_dropout, dropout_in_force
    from landform.training.ensemble import retrain
    from landform.training.finetune import train
    from landform.training.schedules import DropoutSchedule, dropout_schedule
    from landform.weights.alignment import align
    from landform.weights.checkpoint import Checkpoint, load_model, load_tokenizer, select
    from landform.weights.convert import convert
    from landform.weights.distance import distance
    from landform.weights.merge import Merge, merge
    from landform.weights.sites import DropoutSite, dropout_sites
    from landform.weights.space import ParameterSpace

try:
    __version__ = metadata.version("landform")
except metadata.PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0+unknown"

_HOME = {
    "Average": "landform.geometry.average",
    "Axes": "landform.studies.axes",
    "BarrierInfluence": "landform.studies.barrier_influence",
    "Boundaries": "landform.studies.boundary",
    "Boundary": "landform.studies.boundary",
    "CartographyCallback": "landform.training.cartography",
    "Checkpoint": "landform.weights.checkpoint",
    "ComplexFit": "landform.geometry.simplexes",
    "Connection": "landform.studies.connect",
    "ConsolidationCallback": "landform.training.consolidation",
    "Counterfactual": "landform.studies.counterfactual",
    "DataMap": "landform.evaluation.cartography",
    "DropoutCallback": "landform.training.dropout",
    "DropoutComparison": "landform.studies.comparison",
    "DropoutSchedule": "landform.training.schedules",
    "DropoutSite": "landform.weights.sites",
    "Dynamics": "landform.studies.dynamics",
    "Evaluation": "landform.evaluation.evaluate",
    "ExampleTable": "landform.studies.example_table",
    "Factors": "landform.curvature.factors",
    "Fisher": "landform.curvature.fisher",
    "FisherFit": "landform.studies.comparison",
    "FisherScores": "landform.curvature.fisher",
    "FittedComplex": "landform.geometry.simplexes",
    "FittedPath": "landform.geometry.fitting",
    "GradientIndex": "landform.attribution.index",
    "Influence": "landform.attribution.influence",
    "Interpolation": "landform.geometry.line",
    "Knowledge": "landform.geometry.knowledge",
    "Landscape": "landform.geometry.landscape",
    "LinearDatamodelling": "landform.attribution.lds",
    "Merge": "landform.weights.merge",
    "Mislabel": "landform.attribution.mislabel",
    "MixingFit": "landform.geometry.mixing",
    "Objective": "landform.tasks.objective",
    "ParameterSpace": "landform.weights.space",
    "PathEvaluation": "landform.geometry.fitting",
    "PathSpectrum": "landform.geometry.spectrum_path",
    "Ridge": "landform.geometry.ridge",
    "SelfInfluence": "landform.attribution.influence",
    "Sharpness": "landform.geometry.sharpness",
    "SharpnessComparison": "landform.geometry.sharpness",
    "Similarity": "landform.geometry.similarity",
    "Spectrum": "landform.curvature.spectrum",
    "Surface": "landform.geometry.surface",
    "Task": "landform.tasks.task",
    "Transitivity": "landform.geometry.transitivity",
    "align": "landform.weights.alignment",
    "apply_dropout": "landform.training.dropout",
    "area_under_curve": "landform.geometry.curves",
    "average": "landform.geometry.average",
    "axis_lines": "landform.studies.axes",
    "barrier_height": "landform.geometry.curves",
    "barrier_influence": "landform.studies.barrier_influence",
    "basin_statistics": "landform.geometry.statistics",
    "build_index": "landform.attribution.index",
    "bump_area": "landform.geometry.curves",
    "bump_height": "landform.geometry.curves",
    "cartography": "landform.evaluation.cartography",
    "collect_axes": "landform.studies.axes",
    "compare_dropout": "landform.studies.comparison",
    "compare_sharpness": "landform.studies.sharpness",
    "connect": "landform.studies.connect",
    "connection_of": "landform.exchange.connections",
    "convert": "landform.weights.convert",
    "convexity_gap": "landform.geometry.curves",
    "corrupt_labels": "landform.attribution.mislabel",
    "counterfactual": "landform.studies.counterfactual",
    "data_map": "landform.evaluation.cartography",
    "distance": "landform.weights.distance",
    "dropout_in_force": "landform.training.dropout",
    "dropout_schedule": "landform.training.schedules",
    "dropout_sites": "landform.weights.sites",
    "dynamics": "landform.studies.dynamics",
    "evaluate": "landform.evaluation.evaluate",
    "example_table": "landform.studies.example_table",
    "fisher": "landform.curvature.fisher_fit",
    "fit_complex": "landform.geometry.simplexes",
    "fit_curve": "landform.geometry.fitting",
    "fit_factors": "landform.curvature.factors",
    "fit_mixing": "landform.geometry.mixing",
    "generate_hans": "landform.tasks.hans",
    "import_kronfluence": "landform.curvature.kronfluence",
    "influence": "landform.attribution.influence",
    "interpolate": "landform.geometry.line",
    "knowledge_along_path": "landform.geometry.knowledge",
    "landscape": "landform.geometry.landscape",
    "landscape_statistics": "landform.geometry.landscape",
    "lds": "landform.studies.lds",
    "linear_datamodelling_score": "landform.attribution.lds",
    "load_fisher": "landform.curvature.fisher",
    "load_model": "landform.weights.checkpoint",
    "load_task": "landform.tasks.task",
    "load_tokenizer": "landform.weights.checkpoint",
    "merge": "landform.weights.merge",
    "mislabel": "landform.attribution.mislabel",
    "push": "landform.exchange.hub",
    "read_evaluations": "landform.exchange.evaluations",
    "read_interpolations": "landform.exchange.interpolations",
    "read_logs": "landform.exchange.logs",
    "read_landscape": "landform.exchange.landscapes",
    "read_surfaces": "landform.exchange.surfaces",
    "retrain": "landform.training.ensemble",
    "ridge": "landform.geometry.ridge",
    "score_predictions": "landform.evaluation.hans",
    "select": "landform.weights.checkpoint",
    "self_influence": "landform.attribution.influence",
    "sharpness": "landform.geometry.sharpness",
    "similarity": "landform.geometry.similarity",
    "spectrum": "landform.curvature.spectrum",
    "spectrum_along_path": "landform.geometry.spectrum_path",
    "surface": "landform.geometry.surface",
    "task_boundaries": "landform.studies.boundary",
    "task_boundary": "landform.studies.boundary",
    "train": "landform.training.finetune",
    "transitivity": "landform.geometry.transitivity",
    "walk": "landform.geometry.fitting",
    "write_atlas": "landform.report.atlas",
}

__all__ = sorted([*_HOME, "__version__"])


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'landform' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
