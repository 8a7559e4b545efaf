"""Columns: how rows become lines that stand in line, as wide as they need or as there is room.

Owns widths and what goes first if there is no room. It must not know what the cells mean.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from rich.cells import cell_len
from rich.text import Text

#: Between two columns. No cell has as many blanks in a row, so that a script can split a line there.
_GAP = "  "

#: Columns that the last one keeps at least, if its cells are longer.
_LEAST = 16


@dataclass(frozen=True)
class Column:
    """A column.

    Attributes:
        name: its title.
        is_number: it stands to the right.
        rank: of those that are too much, the column with the highest rank goes first; 0 never goes.
        most: the widest that it may be, if there is a limit to the lines' width; 0 for as wide as its cells.
    """

    name: str
    is_number: bool = False
    rank: int = 0
    most: int = 0


def lines_of(columns: Sequence[Column], rows: Sequence[Sequence[Text]], width: int | None = None) -> list[Text]:
    """Return the line of titles and one line for each row, none of which ends with blanks.

    Args:
        columns: all columns.
        rows: a cell for each of them.
        width: what each line has room for: columns are left out, and the last cell is cut; None for all of it.
    """
    widths = [max([cell_len(column.name), *(row[at].cell_len for row in rows)]) for at, column in enumerate(columns)]
    kept = list(range(len(columns)))
    if width is not None:
        widths = [min(each, column.most or each) for each, column in zip(widths, columns, strict=True)]
        kept = _fitting(columns, widths, width)
    titles = [Text(column.name, style="bold") for column in columns]
    return [_line(columns, row, widths, kept, width) for row in (titles, *rows)]


def _fitting(columns: Sequence[Column], widths: Sequence[int], width: int) -> list[int]:
    """Return the columns for which there is room, and leave the last one what the others do not take."""
    kept = list(range(len(columns)))
    while _needed(kept, widths) > width and any(columns[at].rank for at in kept):
        kept.remove(max(kept, key=lambda at: (columns[at].rank, at)))
    return kept


def _needed(kept: Sequence[int], widths: Sequence[int]) -> int:
    *others, last = (widths[at] for at in kept)
    return sum(others) + len(_GAP) * len(others) + min(last, _LEAST)


def _line(
    columns: Sequence[Column], row: Sequence[Text], widths: Sequence[int], kept: Sequence[int], width: int | None
) -> Text:
    cells = []
    for at in kept:
        cell = row[at].copy()
        if width is not None:
            cell.truncate(widths[at], overflow="ellipsis")
        blanks = " " * (widths[at] - cell.cell_len)
        cells.append(Text.assemble(blanks, cell) if columns[at].is_number else Text.assemble(cell, blanks))
    line = Text(_GAP).join(cells)
    line.rstrip()
    if width is not None:
        line.truncate(width, overflow="ellipsis")
    return line
