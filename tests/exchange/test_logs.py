"""Text logs of interpolate_1d: the layout, the orientation, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest

from landform.errors import ConfigError, DataError, NonFiniteError
from landform.exchange.lines import lines_of
from landform.exchange.logs import ROUNDING, read_logs, write_logs
from landform.geometry.curves import convexity_gap

# As the original prints it: point 0 is the second model.
LOG = """\
Some weights were not used
Euclidean distance between 3 and 15: 21.374512.
Interpolating between 3 and 15 on qqp
[0.0, 1.0]
  point_num    loss    accuracy      f1
-----------  ------  ----------  ------
          0  0.5056      0.8340  0.7000
 50%|#####     | 1/2 [00:01<00:01]
[0.5, 0.5]
  point_num    loss    accuracy      f1
-----------  ------  ----------  ------
          1  0.4474      0.8400  0.7100
[1.0, 0.0]
  point_num    loss    accuracy      f1
-----------  ------  ----------  ------
          2  0.4814      0.8360  0.7200
Completed interpolation from 3 to 15
"""


@pytest.fixture
def log(tmp_path):
    path = tmp_path / "logs" / "7_interpolate_models.out"
    path.parent.mkdir()
    path.write_text(LOG)
    return path


def test_point_0_of_a_log_is_the_second_model(log):
    (line,) = read_logs(log)
    assert (line.a, line.b, line.data, line.distance) == ("3", "15", "qqp", 21.374512)
    assert line.metrics == ("accuracy", "f1")
    np.testing.assert_allclose(line.t, [0, 0.5, 1])
    # (0, 1) is 0 times model 3 and once model 15.
    assert line.values[0].tolist() == [0.4814, 0.836, 0.72], "t = 0 is model 3"
    assert line.values[-1].tolist() == [0.5056, 0.834, 0.7], "t = 1 is model 15"


def test_the_coefficients_decide_where_they_run_the_other_way(log):
    text = LOG.replace("[0.0, 1.0]", "[x]").replace("[1.0, 0.0]", "[0.0, 1.0]")
    log.write_text(text.replace("[x]", "(1.0, 0.0)"))
    (line,) = read_logs(log)
    assert line.values[0, 0] == 0.5056 and line.t[0] == 0


def test_a_log_without_coefficients_is_taken_to_run_as_usual(log):
    rows = [row for row in LOG.splitlines(True) if not row.startswith("[")]
    log.write_text("".join(rows))
    (line,) = read_logs(log)
    assert line.values[:, 0].tolist() == [0.4814, 0.4474, 0.5056]
    np.testing.assert_allclose(line.t, [0, 0.5, 1])


def test_a_folder_of_jobs(log):
    mirrored = LOG.replace("between 3 and 15", "between 15 and 3").replace("0.5056", "x")
    mirrored = mirrored.replace("0.4814", "0.5056").replace("x", "0.4814")
    for a, b in (("0.8340", "0.8360"), ("0.7000", "0.7200")):
        mirrored = mirrored.replace(a, "y").replace(b, a).replace("y", b)
    (log.parent / "8.out").write_text(mirrored)
    (log.parent / "8.err").write_text(LOG)
    (log.parent / "x.pkl").write_bytes(b"\x80\x04N.")
    (log.parent / "notes.txt").write_bytes(b"caf\xe9 \x00")
    (log.parent / "inner").mkdir()
    found = read_logs(log.parent)
    assert [(line.a, line.b) for line in found] == [("3", "15"), ("15", "3")]
    np.testing.assert_array_equal(found[0].values, found[1].reversed().values)
    assert found[0].origin == f"{log}:2"


def test_written_logs_are_read_back_to_four_decimals(connection, tmp_path):
    (path,) = write_logs(connection, tmp_path)
    found = read_logs(path)
    for line, kept in zip(found, lines_of(connection, "mnli"), strict=True):
        assert (line.a, line.b, line.data) == (kept.a, kept.b, "mnli")
        assert line.distance == kept.distance
        np.testing.assert_allclose(line.t, kept.t, atol=1e-12)
        np.testing.assert_allclose(line.values, kept.values, atol=5.1e-5)
        gap = convexity_gap(kept.values[:, 0])
        assert abs(convexity_gap(line.values[:, 0]) - gap) <= ROUNDING


def test_the_layout_is_that_of_the_original(connection, tmp_path):
    (path,) = write_logs(connection, tmp_path)
    rows = path.read_text().splitlines()
    assert rows[2] == "[0.0, 1.0]"
    assert rows[3] == "  point_num    loss    accuracy"
    assert rows[4] == "-----------  ------  ----------"
    first = connection.curves.iloc[9]  # t = 1
    assert rows[5] == f"          0  {first.loss:.4f}      {first.accuracy:.4f}"
    assert rows[1] == "Interpolating between 0 and 1 on mnli"


def test_metrics_are_renamed_both_ways(connection, tmp_path):
    import dataclasses

    other = dataclasses.replace(
        connection, curves=connection.curves.rename(columns={"accuracy": "matthews"})
    )
    (path,) = write_logs(other, tmp_path)
    assert "matthews_correlation" in path.read_text()
    assert read_logs(path)[0].metrics == ("matthews",)


# --- bad input -----------------------------------------------------------------------------------


def test_a_missing_row_names_file_line_and_point(log):
    text = LOG.replace("          1  0.4474      0.8400  0.7100\n", "")
    log.write_text(text)
    with pytest.raises(DataError, match=r"7_interpolate_models\.out:12: '\[1\.0, 0\.0\]' is not"):
        read_logs(log)
    start = LOG.index("[0.5, 0.5]")
    log.write_text(LOG[:start] + LOG[LOG.index("[1.0, 0.0]") :])
    with pytest.raises(DataError, match=r"\.out:2: the row of point 1 between 3 and 15 is missing"):
        read_logs(log)


def test_a_killed_job(log):
    log.write_text(LOG + LOG.replace("15", "16")[: LOG.index("[1.0, 0.0]")])
    with pytest.raises(DataError, match=r":19: the line between 3 and 16 ends after 2 points"):
        read_logs(log)
    assert [line.b for line in read_logs(log, skip_unfinished=True)] == ["15"]
    half = LOG + LOG.replace("15", "16")[: LOG.index("[1.0, 0.0]") + 11]  # the pair, no row
    log.write_text(half)
    assert [line.b for line in read_logs(log, skip_unfinished=True)] == ["15"]


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("0.4474      0.8400  0.7100", "0.4474      0.8400", "is not a row"),
        ("          1  0.4474", "          1  oops", "is not a row"),
        ("[0.5, 0.5]", "[0.5, 0.6]", "do not sum to 1"),
        ("[0.5, 0.5]", "[nan, nan]", "do not sum to 1"),
        ("[1.0, 0.0]", "[inf, -inf]", "do not sum to 1"),
        ("[0.5, 0.5]\n", "", "2 pairs of coefficients and 3 rows"),
    ],
)
def test_damaged_logs(log, old, new, said):
    log.write_text(LOG.replace(old, new, 1))
    with pytest.raises(DataError, match=said):
        read_logs(log)


def test_not_a_number_is_refused_with_its_place(log):
    from landform.exchange.lines import merge_lines

    log.write_text(LOG.replace("0.4474", "nan"))
    with pytest.raises(NonFiniteError, match=r"\.out:2: the loss at t = 0\.5 between 3 and 15"):
        merge_lines(read_logs(log), 1e-4)


def test_no_logs(tmp_path, log):
    with pytest.raises(DataError, match="no such file or folder"):
        read_logs(tmp_path / "nowhere")
    log.write_text("nothing here")
    with pytest.raises(DataError, match="no interpolation log in 1 file"):
        read_logs(log.parent)
    log.unlink()
    with pytest.raises(DataError, match="holds no logs"):
        read_logs(log.parent)


def test_an_unknown_data_set_is_not_written(connection, tmp_path):
    with pytest.raises(ConfigError, match="no data set 'hans'"):
        write_logs(connection, tmp_path / "out", ["hans"])
    assert not (tmp_path / "out").exists()
