"""YAML files of options: a `ConfigError` for every file that is not a mapping of plain values."""

from __future__ import annotations

from pathlib import Path

import pytest

from landform.cli.app import run
from landform.config import as_flags, read_yaml
from landform.errors import ConfigError
from landform.geometry.surface import SurfaceConfig
from landform.training.options import TrainConfig


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("? [a, b]\n: 1\n", "not YAML"),
        ("a: &x [*x]\n", "contains itself"),
        ("a: " + "[" * 2000 + "]" * 2000, "too deeply nested"),
        ("a: 2024-13-45\n", "month must be"),
        ("a: !!int x\n", "cannot be read"),
        ("a: 1\na: 2\n", "line 2: 'a' is written twice"),
        ("- a\n", "expected a mapping"),
        ("", "expected a mapping"),
    ],
    ids=["list-key", "itself", "deep", "date", "tag", "twice", "list", "empty"],
)
def test_a_file_that_holds_no_options(tmp_path: Path, text: str, says: str) -> None:
    file = tmp_path / "study.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=says) as caught:
        read_yaml(file)
    assert "study.yaml" in caught.value.what and caught.value.remedy


def test_what_a_file_says(tmp_path: Path) -> None:
    file = tmp_path / "study.yaml"
    file.write_text("a: 1\nb: {c: [x, 2.5], d: null}\n")
    assert read_yaml(file) == {"a": 1, "b": {"c": ["x", 2.5], "d": None}}


FLAGS = {
    name: f"--{name.replace('_', '-')}"
    for name in ("text", "metrics", "kind", "files", "one_prefix", "label_groups", "rows")
}


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("pass text=, or text=(first, second)", "pass --text, or --text first second"),
        ("use metrics='answer_accuracy'", "use --metrics answer_accuracy"),
        ("metrics=('a', 'b'); kind='masked-lm'.", "--metrics a b; --kind masked-lm."),
        ("one_prefix=True or one_prefix=False", "--one-prefix or --no-one-prefix"),
        ("files={'train': a.tsv, 'validation': b}", "--files.train a.tsv --files.validation b"),
        ("give {'train': path} with text= and", "give --files.train path with --text and"),
        ("rows=1, colour=2, model.rows=3", "--rows 1, colour=2, model.rows=3"),
        ("--rows=3 stays", "--rows=3 stays"),
        ("a == b, kind=None", "a == b, kind=None"),
    ],
)
def test_options_as_flags(said: str, shown: str) -> None:
    assert as_flags(said, FLAGS) == shown
    assert as_flags(said, {}) == said


def test_a_remedy_on_the_command_line_is_spelled_as_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "rows.tsv").write_text("sentence\tlabel\na\tx\n")
    assert run(["evaluate", "nowhere", "--task", str(tmp_path / "rows.tsv")]) == 1
    assert "pass --text, or --text first second for pairs" in capsys.readouterr().err
    assert run(["evaluate", "nowhere", "--task", "embedded", "--replicates", "-3"]) == 2
    assert "what to do: replicates: Bootstrap replicates" in capsys.readouterr().err


def test_kept_options_that_nothing_reads_are_left_out() -> None:
    # Kept by a version that accepted them; where somebody asks for them now they are refused.
    kept = {"perturb_seed": 3, "optimizer": "adafactor", "adam_epsilon": 1e-6, "batch_size": 5}
    with pytest.raises(ConfigError, match="perturb_seed has no effect"):
        TrainConfig.parse(kept)
    config = TrainConfig.parse_kept(kept)
    assert config.options_given() == ["optimizer", "batch_size"]
    assert config.replace(batch_size=6).optimizer == "adafactor"
    assert TrainConfig.parse_kept({"perturb_seed": 3, "perturb": 0.1}).perturb_seed == 3
    with pytest.raises(ConfigError, match="perturb_seed has no effect"):
        TrainConfig.parse(kept)
    with pytest.raises(ConfigError, match="pairs"):
        SurfaceConfig.parse_kept({"tolerance": 0.2, "pairs": 0})
