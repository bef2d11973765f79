"""What colour tells apart is told apart without it: figures are printed in grey."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex

from landform.report import example_figures, mixing_figures
from landform.report.parts import cut, texts_of, with_texts
from landform.report.style import new_figure


def test_two_groups_differ_in_stroke_and_filling(connection):
    from landform.report.figures import plot_score_distributions

    figure = plot_score_distributions({"one": connection(), "two": connection()})
    hatches = {patch.get_hatch() for patch in figure.legends[0].get_patches()}
    assert len(hatches) == 2
    for axes in figure.axes:
        strokes = {
            line.get_linestyle() for line in axes.lines if line.get_label().startswith("_density")
        }
        assert not strokes or len(strokes) == 2


def test_groups_of_one_name_keep_labels_of_their_own():
    names = [f"bert.embeddings.{kind}_embeddings.weight" for kind in ("word", "position", "type")]
    labels = mixing_figures._layer_labels([*names, "bert.encoder.layer.3"])
    assert len(set(labels)) == 4 and labels[3] == "layer 3"


def test_wide_cells_hold_their_numbers():
    axes = new_figure(7, 3).subplots()
    cells = pd.DataFrame(np.full((2, 16), 0.2), columns=[f"p{i}" for i in range(16)])
    mixing_figures._draw_cells(axes, cells, colour_bar=False, names=["a", "b"])
    assert [text.get_text() for text in axes.texts] == ["0.20"] * 32
    # White is for the darkest cells only.
    assert {to_hex(text.get_color()) for text in axes.texts} != {"#ffffff"}


@pytest.mark.parametrize("largest", [0.5, 40.0, 3e6])
def test_ticks_on_both_sides_of_zero_are_few(largest):
    axes = new_figure(3, 3).subplots()
    values = np.r_[-np.geomspace(1e-4, largest, 50), np.geomspace(1e-4, largest / 3, 50)]
    example_figures._symmetric(axes, values, "both")
    for ticks in (axes.get_xticks(), axes.get_yticks()):
        assert 0 in ticks and (ticks < 0).sum() <= 3 and (ticks > 0).sum() <= 3
        assert 2 <= len(ticks) <= 7
        assert values.min() <= ticks.min() and ticks.max() <= values.max()


def test_a_cut_text_says_how_long_it_was():
    assert cut(" short ", 10) == "short"
    long = cut("word " * 500, 12)
    assert long == "word word wo … (2,499 characters)"
    assert texts_of({"text": "a", "text_pair": None, "label": "x"}, 9) == ["a"]
    table = pd.DataFrame({"text": ["a" * 20, None], "score": [1.0, 2.0]})
    shown = with_texts(table, 5)
    assert list(shown["text"]) == ["aaaaa … (20 characters)", ""]
    assert table["text"].iloc[0] == "a" * 20, "the result is left as it was"
