"""Tables of tensors that read well at 80 columns: layers folded, long names hung under a prefix."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from ckpt_tool.cli.consoles import make_printable
from ckpt_tool.cli.folding import Fold, fold
from ckpt_tool.common.wording import format_bytes

if TYPE_CHECKING:
    from pathlib import Path

    from rich.text import Text

    from ckpt_tool.readers.base import Entry, ShardFile

_PADDING = 3  # between two columns
_WIDE = 100
_DOT = re.compile(r"\.(?![^{}]*\})")  # a dot that separates, not one of a range {0..27}


def make_tensor_table(entries: Sequence[Entry], width: int, *, folded: bool) -> Any:
    """Name, count, shape, dtype and placement of each tensor, or of each pattern of them."""
    by_name = {entry.name: entry for entry in entries}
    if folded:
        rows = fold({name: (e.shape, e.dtype, e.placements) for name, e in by_name.items()})
    else:
        rows = [Fold(name, name, 1) for name in by_name]
    cells = []
    for row in rows:
        entry = by_name[row.first]
        count = str(row.count) if row.count > 1 else ""
        placement = entry.placements if width >= _WIDE else entry.placements.replace(", ", "\n")
        cells.append([count, format_shape(entry.shape), entry.dtype.name, placement])
    titles = ["#", "shape", "dtype", "placement"]
    if all(entry.placements == "whole" for entry in entries):
        titles, cells = titles[:-1], [row[:-1] for row in cells]
    return _table([make_printable(row.pattern) for row in rows], titles, cells, width)


def make_file_table(files: Sequence[ShardFile], root: Path) -> Any:
    """The files that have several numbers of a rank, with these."""
    from rich.table import Table
    from rich.text import Text

    grid = Table.grid(padding=(0, 2))
    for file in files:
        size = format_bytes(file.bytes)
        name = os.path.relpath(file.path, root)
        grid.add_row("", *map(Text, (name, describe_rank(file), size)))
    return grid


def describe_rank(file: ShardFile) -> str:
    """``rank 3``, or ``tp 1, pp 0, ep 0``; empty where the file is of no rank."""
    if file.parallel is not None:
        return ", ".join(f"{kind} {number}" for kind, number in file.parallel.items())
    return "" if file.rank is None else f"rank {file.rank}"


def list_shards(entries: Iterable[Entry], files: Iterable[ShardFile]) -> Iterator[Text]:
    """Every rank's piece of each tensor: its shape, and its offsets in the global tensor."""
    from rich.text import Text

    texts = {file.path: describe_rank(file) for file in files}
    for entry in entries:
        facts = f"  {format_shape(entry.shape)}  {entry.dtype.name}  {entry.placements}"
        yield Text.assemble((make_printable(entry.name), "bold"), facts)
        ranks = [texts.get(held.region.path, "") for held in entry.holdings]
        shapes = [format_shape(held.box.sizes) for held in entry.holdings]
        wide = max(map(len, ranks), default=0), max(map(len, shapes), default=0)
        gap = "  " if wide[0] else ""
        for rank, shape, held in zip(ranks, shapes, entry.holdings, strict=True):
            offsets = format_shape(held.box.offsets)
            yield Text(f"    {rank:<{wide[0]}}{gap}{shape:<{wide[1]}}  at {offsets}")


def format_shape(shape: Sequence[int]) -> str:
    """``[1536, 8960]``."""
    return f"[{', '.join(map(str, shape))}]"


def break_name(name: str, room: int) -> str:
    """A name in lines of at most ``room``, broken before dots."""
    first, *rest = _DOT.split(name)
    lines = [first]
    for part in rest:
        if len(lines[-1]) + 1 + len(part) > room and lines[-1].strip():
            lines.append("    ")
        lines[-1] += f".{part}"
    return "\n".join(lines)


def _table(
    names: Sequence[str], titles: Sequence[str], cells: Sequence[Sequence[str]], width: int
) -> Any:
    """A row for each name: the name, and a cell for each of ``titles``."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    table.add_column("tensor", overflow="fold")
    for title in titles:
        table.add_column(title, justify="right" if title == "#" else "left", no_wrap=True)
    columns = zip(titles, *cells, strict=True)
    used = sum(max(len(line) for cell in col for line in cell.split("\n")) for col in columns)
    room = width - used - _PADDING * len(titles) - 2
    hung = {_prefix(name) for name in names if len(name) > room} - {""}
    last = ""
    for name, row in zip(names, cells, strict=True):
        prefix = _prefix(name)
        if prefix in hung and prefix != last:
            table.add_row(Text(prefix, style="dim"))
        last = prefix
        shown = "  " + name[len(prefix) :] if prefix in hung else name
        table.add_row(Text(break_name(shown, room)), *map(Text, row))
    return table


def _prefix(name: str) -> str:
    """The part of a name up to its first number or range: what a layer's tensors share."""
    parts = _DOT.split(name)
    for index, part in enumerate(parts[:-1]):
        if part[:1].isdigit() or part[:1] == "{":
            return ".".join(parts[: index + 1])
    return ""
