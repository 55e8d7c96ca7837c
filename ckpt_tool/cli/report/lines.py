"""Tables of the terminal that hold a name and numbers: no blanks at the end, no name cut."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ckpt_tool.cli import consoles

if TYPE_CHECKING:
    from rich.console import Console

GAP = "  "


def print_table(
    console: Console,
    title: str,
    titles: Sequence[str],
    rows: Sequence[tuple[str, Sequence[str]]],
) -> None:
    """A line for each name with its cells; a name too long for that has a line to itself."""
    names = [consoles.make_printable(name) for name, _ in rows]
    columns = zip(titles, *(cells for _, cells in rows), strict=True)
    widths = [max(map(len, column)) for column in columns]
    room = console.width - sum(len(GAP) + width for width in widths)
    wide = max(len(title), *(len(name) for name in names if len(name) <= room), 0)
    console.print(join_row(title, titles, wide, widths), style="bold", soft_wrap=True)
    for name, (_, cells) in zip(names, rows, strict=True):
        short = name
        if len(name) > wide:
            console.print(name, soft_wrap=True)
            short = ""
        console.print(join_row(short, cells, wide, widths), soft_wrap=True)


def join_row(name: str, cells: Sequence[str], wide: int, widths: Sequence[int]) -> str:
    """The name, and cells to the right of their columns."""
    numbers = [f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True)]
    return GAP.join([f"{name:{wide}}", *numbers]).rstrip()
