"""Columns: lines that scripts can split, and that fit where there is little room."""

import re

import pytest
from rich.text import Text

from brokerfl.cli.columns import Column, lines_of
from brokerfl.cli.tables import cell_of

COLUMNS = (
    Column("RUN"), Column("NAME", rank=3, most=10), Column("ERR", is_number=True, rank=1), Column("OTHER", rank=2),
    Column("WHY"),
)  # fmt: skip

ROWS = [
    [Text("1141…"), Text("a name that is long"), Text("7"), Text("-"), Text("site-7 busy 3m00s, usually 31s")],
    [Text("5056…"), Text("数字"), Text("1234"), Text("x"), Text("-")],
]


def plain(width: int | None) -> list[str]:
    return [line.plain for line in lines_of(COLUMNS, ROWS, width)]


def test_a_script_can_split_lines() -> None:
    """At two blanks and more; nothing is cut, and no line ends with blanks."""
    head, *lines = plain(None)
    assert re.split("  +", head) == [column.name for column in COLUMNS]
    assert [re.split("  +", line) for line in lines] == [[cell.plain for cell in row] for row in ROWS]
    assert not any(line.endswith(" ") for line in (head, *lines))


@pytest.mark.parametrize("width", range(26, 90))
def test_columns_go_until_the_rest_fits(width: int) -> None:
    """No line is longer than the room, what has no rank stays, and what is left stands in line."""
    lines = lines_of(COLUMNS, ROWS, width)
    assert max(line.cell_len for line in lines) <= width
    names = re.split("  +", lines[0].plain)
    assert [names[0], names[-1]] == ["RUN", "WHY"]
    gone = [column.rank for column in COLUMNS if column.name not in names]
    assert gone == [] or min(gone) > max((each.rank for each in COLUMNS if each.name in names), default=0)
    assert lines[1].plain.startswith("1141…  ")


@pytest.mark.parametrize("value", ["", None, "a\tb\nc", "a  b", "\x1b[31m", {"a": "b c"}, 0])
def test_a_cell_is_one_word_or_more(value: object) -> None:
    """It is never empty, and has neither tabs, line breaks, nor two blanks in a row."""
    text = cell_of(value).plain
    assert text == text.strip() != ""
    assert re.search(r"[\t\n\x1b]|  ", text) is None
