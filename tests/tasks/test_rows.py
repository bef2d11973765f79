"""Row files: what is written is read, whatever the ids look like."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from landform.errors import DataError
from landform.tasks.rows import read_row_file, write_row_file

IDS = st.lists(
    st.text(st.characters(codec="utf-8"), min_size=1, max_size=6).filter(
        lambda text: text.strip() and not {"\n", "\r"} & set(text)
    ),
    min_size=1,
    max_size=8,
    unique=True,
)


@given(ids=IDS, chosen=st.data())
def test_what_is_written_is_read(
    tmp_path_factory: pytest.TempPathFactory, ids: list[str], chosen: st.DataObject
) -> None:
    """An id with U+2028 in it was cut in two, and one with a blank at its end was not found."""
    rows = chosen.draw(st.sets(st.sampled_from(range(len(ids))), min_size=1))
    path = tmp_path_factory.getbasetemp() / "rows.txt"
    write_row_file([ids[row] for row in sorted(rows)], path)
    assert read_row_file(path, ids) == sorted(rows)


def test_files_of_editors(tmp_path: Path) -> None:
    path = tmp_path / "rows.txt"
    path.write_bytes("\ufeffb\r\n\r\n  a \r\n".encode())
    assert read_row_file(path, ["a", "b", "c"]) == [0, 1]


@pytest.mark.parametrize("text_id", ["", "  ", "a\nb", "a\r"])
def test_ids_that_no_line_can_hold(tmp_path: Path, text_id: str) -> None:
    with pytest.raises(DataError, match="cannot stand on a line"):
        write_row_file(["a", text_id], tmp_path / "rows.txt")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"a\nx\n", "rows.txt, line 2: nothing has the id 'x'"),
        (b"a\n\na\n", "line 3: 'a' is already on line 1"),
        (b"\n", "lists no rows"),
        (b"\xff", "cannot be read"),
    ],
)
def test_files_that_list_no_such_rows(tmp_path: Path, content: bytes, says: str) -> None:
    (tmp_path / "rows.txt").write_bytes(content)
    with pytest.raises(DataError, match=says) as caught:
        read_row_file(tmp_path / "rows.txt", ["a", "b"], where="known", missing="nothing")
    assert str(caught.value).startswith("known ") and caught.value.remedy
