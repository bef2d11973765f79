"""`landform figure`, as a newcomer would type it."""

from __future__ import annotations

import dataclasses
import json

import pytest

import connectivity_results as results
from landform.cli.app import run
from landform.errors import ConfigError
from landform.report import figures
from landform.report.study import draw_kept, kept_figures, parse_options
from landform.store.artifacts import Store
from landform.store.study import publish


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A study that keeps two planes, a fit and four evaluations, made of the real classes."""
    import pandas as pd

    from landform.evaluation.evaluate import Evaluation
    from landform.geometry.fitting import CurveFit
    from landform.geometry.surface import Surface

    place = tmp_path_factory.mktemp("figure") / "study"
    store = Store.open(place)

    def real(kind, fake, **more):
        return kind(**{f.name: getattr(fake, f.name, more.get(f.name))
                       for f in dataclasses.fields(kind)})  # fmt: skip

    publish(store, "surface-a", real(Surface, results.make_surface(5)))
    publish(store, "surface-b", real(Surface, results.make_surface(5, height=2.0)))
    publish(store, "fit", real(CurveFit, results.make_fit(20), distances=pd.DataFrame()))
    for group in ("old", "new"):
        for i in range(3):
            metrics = {"loss": 0.3 + 0.1 * i, "accuracy": 0.9 - 0.1 * i + 0.01 * (group == "new")}
            evaluation = Evaluation(
                f"runs/{group}{i}", "toy", "validation", "classification", pd.DataFrame(), metrics,
                {name: (0.0, 1.0) for name in metrics},
                pd.DataFrame(columns=["subset", "n", "metric", "value", "low", "high"]), None,
                ("no", "yes"), {},
            )  # fmt: skip
            publish(store, f"{group}-{i}", evaluation)
    return place


@pytest.fixture
def say(capsys, monkeypatch):
    """Run a command line; (status, standard output, error)."""
    monkeypatch.setenv("COLUMNS", "80")

    def call(*words):
        status = run([str(word) for word in words])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return call


def test_asked_for_nothing_it_lists_what_there_is(say, study):
    status, out, err = say("figure", study)
    assert status == 0, err
    lines = out.splitlines()
    (plane,) = [line for line in lines if line.split()[:1] == ["surface-a"]]
    assert plane.endswith("surface, surface3d, surfaces")
    assert "of several results: surfaces, score_distributions, agreement" in out
    assert lines[-1].startswith(f"next: landform figure {study} RESULT")
    status, out, _ = say("figure", study, "surface*", "--json")
    listed = json.loads(out)["results"]
    assert [row["result"] for row in listed] == ["surface-a", "surface-b"]
    assert listed[0]["kind"] == "Surface"


@pytest.mark.parametrize(("suffix", "start"), [("png", b"\x89PNG"), ("pdf", b"%PDF")])
def test_it_draws_a_result(say, study, tmp_path, suffix, start):
    out = tmp_path / f"plane.{suffix}"
    status, said, err = say(
        "figure", study, "surface-a", "--which", "surface", "--out", out,
        "--option", "clip_x=-0.5,1", "metric=accuracy", "--style", "paper",
    )  # fmt: skip
    assert status == 0, err
    assert said.strip() == f"wrote {out}"
    assert out.read_bytes().startswith(start)


def test_the_main_figure_and_the_default_place(say, study, tmp_path):
    status, out, err = say("figure", study, "fit", "--which", "fit")
    assert status == 0, err
    assert out.strip() == f"wrote {study / 'figures' / 'fit-fit.pdf'}"
    assert say("figure", study, "--which", "fit", "--out", tmp_path / "a.svg")[0] == 0
    assert say("figure", study, "fit", "--out", tmp_path / "b.svg")[0] == 0
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()


def test_several_results_stand_side_by_side(study):
    name, figure = draw_kept(study, ["surface-b", "surface-a"], which="surfaces")
    assert name == "surfaces"
    titles = [axes.get_title(loc="left") for axes in figure.axes[:2]]
    assert titles == ["surface-b", "surface-a"]
    _, both = draw_kept(study, which="surfaces")  # all planes of the study
    assert [axes.get_title(loc="left") for axes in both.axes[:2]] == ["surface-a", "surface-b"]
    _, one = draw_kept(study, ["surface-a"], which="surfaces", options=["levels=5"])
    assert len(one.axes) == 3  # its two data sets


def test_patterns_are_groups_of_runs(study):
    _, figure = draw_kept(study, ["old-*", "new-*"], which="score_distributions")
    labels = [t.get_text() for legend in figure.legends for t in legend.get_texts()]
    assert labels == ["old-* (n = 3)", "new-* (n = 3)"]
    _, figure = draw_kept(
        study, ["old-*", "new-*"], which="score_distributions",
        options=["names=before,after", "same_x_scale=true", "metrics=accuracy"],
    )  # fmt: skip
    labels = [t.get_text() for legend in figure.legends for t in legend.get_texts()]
    assert labels == ["before (n = 3)", "after (n = 3)"]


def test_what_is_not_there_is_named(say, study, tmp_path):
    out = tmp_path / "a.pdf"
    for words, message in (
        (["surface-c", "--which", "surface"], "did you mean 'surface-b'"),
        (["surface-a", "--which", "surfce"], "did you mean 'surface'"),
        (["--which", "hetmap"], "unknown figure 'hetmap'"),
        (["surface-*", "--which", "surface"], "shows one result, and 2 are meant"),
        (["--which", "score_distributions"], "name two results or patterns"),
        (["old-*", "--which", "score_distributions"], "compare two groups"),
        (["--which", "agreement"], "of the kind Influence, and this study keeps none"),
        (["surface-a", "fit", "--which", "surfaces"], "not of the kind"),
        (["surface-a", "--option", "levels"], "'levels' has no value"),
        (["surface-a", "--option", "level=3"], "did you mean 'levels'"),
        (["surface-a", "--option", "levels=few"], "'few' is not a whole number"),
        (["surface-a", "--option", "clip_x=a,b"], "'a' is not a number"),
        (["surface-a", "--option", "metric=f1"], "unknown metric 'f1'"),
        (["surface-a", "--style", tmp_path / "no.mplstyle"], "cannot be read"),
        ([], "which of 9 results?"),
    ):
        status, said, err = say("figure", study, *words, "--out", out)
        assert (status, said) == (1, ""), words
        assert message in err and "Traceback" not in err, (words, err)
    assert not out.exists()
    status, _, err = say("figure", study, "fit", "--out", tmp_path / "a.bmp")
    assert status == 1 and ".png" in err
    status, _, err = say("figure", tmp_path / "nowhere")
    assert status == 1
    Store.open(tmp_path / "empty")
    status, _, err = say("figure", tmp_path / "empty")
    assert status == 1 and "holds no results" in err


def test_options_are_read_by_the_types_of_the_figure():
    parsed = parse_options(
        figures.plot_surfaces,
        ["clip_values=0.1,2", "columns=2", "names=a, b", "metric=loss,accuracy", "data=none"],
    )
    assert parsed == {
        "clip_values": (0.1, 2.0), "columns": 2, "names": ["a", "b"],
        "metric": ["loss", "accuracy"], "data": None,
    }  # fmt: skip
    assert parse_options(figures.plot_ridges, ["middle=no", "k=3"]) == {"middle": False, "k": 3}
    assert parse_options(figures.plot_surfaces, ["metric=loss"]) == {"metric": "loss"}
    with pytest.raises(ConfigError, match="'maybe' is not true or false"):
        parse_options(figures.plot_ridges, ["middle=maybe"])


def test_kept_figures_are_a_table(study):
    table = kept_figures(study, ["fit"])
    assert table.to_dict("records") == [{"result": "fit", "kind": "CurveFit", "figures": "fit"}]


def test_two_influences_are_compared(say, tmp_path):
    import attribution_results
    from landform.attribution.influence import Influence

    place = tmp_path / "study"
    store = Store.open(place)
    for name in ("full", "half"):
        fake = attribution_results.make_influence(4, 60)
        fields = {f.name: getattr(fake, f.name, 1) for f in dataclasses.fields(Influence)}
        publish(store, name, Influence(**fields))
    out = tmp_path / "agreement.pdf"
    status, _, err = say("figure", place, "--which", "agreement", "--out", out)
    assert status == 0, err
    assert out.read_bytes().startswith(b"%PDF")
    _, figure = draw_kept(place, ["half", "full"], which="agreement", options=["labels=a,b"])
    assert figure.axes[0].get_ylabel() == "score, b"
    for words, message in (
        (["full"], "two results, and 1 are meant: full"),
        (["full", "*"], "two results, and 3 are meant"),
        (["--option", "labels=a"], "has two labels"),
    ):
        status, _, err = say("figure", place, *words, "--which", "agreement", "--out", out)
        assert status == 1 and message in err, (words, err)
