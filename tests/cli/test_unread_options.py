"""An option that nothing reads is refused: accepted in silence it would be taken for done."""

import pytest

from landform.attribution.influence import DampingConfig
from landform.cli.app import run
from landform.curvature.spectrum_jobs import SpectrumConfig
from landform.errors import ConfigError
from landform.geometry.fitting import CurveConfig
from landform.geometry.mixing import MixConfig
from landform.geometry.sharpness_options import SharpnessOptions
from landform.geometry.surface import SurfaceConfig
from landform.studies.attribute import AttributionConfig, SuspectsConfig
from landform.studies.barrier_influence import BarrierInfluenceConfig
from landform.studies.counterfactual import CounterfactualConfig
from landform.studies.example_table import ExampleTableConfig
from landform.studies.grid import GridConfig
from landform.studies.lds import LdsConfig
from landform.studies.sharpness import CompareSharpnessConfig
from landform.training.options import TrainConfig
from landform.training.schedules import ScheduleConfig, dropout_schedule

GRID = {"model": "m", "tasks": "sst2", "axes": ("seed",)}
CASES = (
    (ScheduleConfig, {"seed": 3}),
    (ScheduleConfig, {"control": "uniform", "seed": 3}),
    (ScheduleConfig, {"control": "standard", "high": 0.3}),
    (ScheduleConfig, {"control": "standard", "kind": "inverse"}),
    (MixConfig, {"learning_rates": (0.1, 0.2), "learning_rate": 0.3}),
    (MixConfig, {"select_by": "metric"}),
    (MixConfig, {"momentum": 0.5}),
    (CurveConfig, {"momentum": 0.5}),
    (SurfaceConfig, {"tolerance": 0.2}),
    (SpectrumConfig, {"trace": "none", "probes": 12}),
    (SpectrumConfig, {"density_probes": 0, "width": 0.1}),
    (SpectrumConfig, {"reduction": "sum"}),
    (SharpnessOptions, {"learning_rate": 1e-3}),
    (SharpnessOptions, {"basis": "sparse"}),
    (SharpnessOptions, {"compat": "connectivity", "steps": 3}),
    (CompareSharpnessConfig, {"method": "average", "steps": 3}),
    (CompareSharpnessConfig, {"method": ("box", "sam"), "draws": 3}),
    (CompareSharpnessConfig, {"method": "sam", "eta": 0.1}),
    (DampingConfig, {"relative_damping": 0.1, "damping": 1e-3}),
    (AttributionConfig, {"strategy": "identity", "damping": 1e-3}),
    (SuspectsConfig, {"strategy": "identity", "labels": "empirical"}),
    (ExampleTableConfig, {"strategy": "identity", "relative_damping": 0.3}),
    (BarrierInfluenceConfig, {"strategy": "identity", "labels": "empirical"}),
    (BarrierInfluenceConfig, {"remove": 5}),
    (BarrierInfluenceConfig, {"model": "pre-trained"}),
    (CounterfactualConfig, {"methods": ("random", "identity"), "damping": 1e-3}),
    (LdsConfig, {"methods": "identity", "labels": "empirical"}),
    (LdsConfig, {"methods": ("ekfac:true",), "labels": "empirical"}),
    (LdsConfig, {"mask_file": "masks.npy", "masks": 10}),
    (LdsConfig, {"mask_file": "masks.npy", "margin_file": "margins.npy", "retrainings": 2}),
    (TrainConfig, {"perturb_seed": 3}),
    (TrainConfig, {"optimizer": "adafactor", "adam_epsilon": 1e-6}),
    (GridConfig, {**GRID, "init_stds": (0.1,)}),
    (GridConfig, {**GRID, "part_by": "random"}),
)


@pytest.mark.parametrize(
    ("kind", "options"), CASES, ids=[f"{k.__name__}-{'-'.join(o)}" for k, o in CASES]
)
def test_an_option_without_effect_is_refused_by_name(kind, options):
    *_, name = options
    with pytest.raises(ConfigError, match=rf"\b{name} has no effect "):
        kind.parse(options)
    # It is the value that counts: what is written down and is the default changes nothing.
    default = kind.model_fields[name].get_default(call_default_factory=True)
    kind.parse({**options, name: default})


def test_the_tensors_of_no_fisher_are_not_weighted():
    scores = {"encoder.layer.0.attention.self.dropout": 1.0}
    with pytest.raises(ConfigError, match="option weighting has no effect"):
        dropout_schedule(scores, weighting="tensors")


COMMANDS = (
    ("import logs FILE --out OUT", "out"),
    ("import samples FILE --keep-as name", "keep_as"),
    ("import traces FILE --store STORE --out OUT", "store"),
    ("import hub org/name_ --out OUT --split train", "split"),
    ("import logs FILE --split train", "split"),
    ("import knowledge FILE --text sentence", "text"),
    ("import fisher FILE --basins 2", "basins"),
    ("import logs FILE --match x", "match"),
    ("export logs STORE --out OUT --as hdf5", "as"),
    ("export line STORE --out OUT --only sst2:validation", "only"),
    ("export surface STORE --out OUT --fisher FILE", "fisher"),
    ("export samples STORE --out OUT --directions-of MODEL", "directions_of"),
    ("hans --out FILE.tsv --replicates 30", "replicates"),
    ("hans --out OUT --split train", "split"),
    ("hans --predictions FILE --data FILE --seed 2", "seed"),
    ("hans --predictions FILE --data FILE --rows-per-subcase 2", "rows_per_subcase"),
    ("grid --collect STORE --out OUT", "out"),
    ("grid --collect STORE --points 3", "points"),
    ("grid --model m --tasks sst2 --axes seed --out OUT --figure a.png", "figure"),
    ("grid --model m --tasks sst2 --axes seed --out OUT --steps 1 2", "steps"),
    ("figure STORE --style paper", "style"),
    ("cartography RUN --split validation", "split"),
    ("dropout FILE --seed 3", "seed"),
)


@pytest.mark.parametrize(("words", "name"), COMMANDS, ids=[words for words, _ in COMMANDS])
def test_a_command_refuses_an_option_that_it_would_not_read(
    capsys, tmp_path, monkeypatch, words, name
):
    monkeypatch.chdir(tmp_path)
    status = run(words.split())
    said = capsys.readouterr().err
    assert status in (1, 2), said
    assert f"{name} has no effect " in said
    assert "what to do: " in said
    assert not any(tmp_path.iterdir())


def test_flags_of_a_task_that_is_not_named_are_refused(capsys):
    assert run(["cartography", "RUN", "--text", "sentence"]) == 1
    assert "which task?" in capsys.readouterr().err
