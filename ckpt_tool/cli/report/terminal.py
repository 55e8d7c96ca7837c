"""The heat map of a verification in the terminal: a coloured digit per layer and module."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from ckpt_tool.compare.grid import LEVELS, MARKS, OTHER, Grid, Section, find_level, list_sections

if TYPE_CHECKING:
    from rich.console import Group, RenderableType
    from rich.text import Text

#: Dark to bright, so that large differences stand out; the text contrasts on every terminal.
_STYLES = (
    "dim", "#ffffff on #2c2a6b", "#ffffff on #4b2a8c", "#ffffff on #7a2a96", "#ffffff on #a8327d",
    "#000000 on #d0506a", "#000000 on #e9784e", "#000000 on #f9a63a", "#000000 on #f7e225",
)  # fmt: skip
_LABEL = "layer"
_SHORT = 5  # letters of a word that needs no abbreviation


def draw_heatmap(grid: Grid, width: int) -> Group:
    """The grid in lines of at most ``width`` characters: one block of rows per list of layers.

    A list with more modules than a line has room for takes several blocks. Colours repeat what
    the digits say.
    """
    from rich.console import Group

    parts: list[RenderableType] = []
    for section in list_sections(grid):
        parts += _others(grid, section) if section.title == OTHER else _layers(grid, section, width)
        parts.append("")
    return Group(*parts, _scale(width))


def abbreviate(columns: Sequence[str]) -> dict[str, str]:
    """A short name for each module, no two alike: ``self_attn.q_proj`` is ``q``.

    Modules of one name carry their parents' initials: ``e.up`` and ``se.up`` for an expert's and
    the shared expert's.
    """
    short = {column: _short(_words(column)[-1]) for column in columns}
    alike = Counter(short.values())
    for column, text in short.items():
        parents = _words(column)[:-1]
        if alike[text] > 1 and parents:
            short[column] = f"{''.join(word[0] for word in parents[-1].split('_') if word)}.{text}"
    taken: Counter[str] = Counter()
    for column, text in short.items():
        taken[text] += 1
        short[column] = text if taken[text] == 1 else f"{text}~{taken[text]}"
    return short


def _words(column: str) -> list[str]:
    """The parts of a module's name that say something."""
    return [part for part in column.split(".") if part not in ("*", "")] or [column]


def _short(name: str) -> str:
    """``q_proj`` is ``q``, ``post_attention_layernorm`` is ``paln``, ``linear_fc1`` is ``lf1``."""
    name = name.replace("layernorm", "ln").removesuffix("_proj")
    *first, last = [word for word in name.split("_") if word] or [name]
    if first and last != "ln":
        last = last[0] + re.sub(r"\D", "", last[1:])
    return "".join(word[0] for word in first) + last[:_SHORT]


def _layers(grid: Grid, section: Section, width: int) -> Iterator[RenderableType]:
    """The title, the blocks and the meaning of the abbreviations."""
    from rich.text import Text

    short = abbreviate(section.columns)
    label = max(len(_LABEL), *map(len, section.numbers))
    yield Text(section.title, style="bold", overflow="fold")
    for number_of, columns in enumerate(_blocks(short, width - label)):
        if number_of:
            yield ""
        widths = [_wide(short[column]) for column in columns]
        head = Text(f"{_LABEL:>{label}}", style="dim")
        for column, wide in zip(columns, widths, strict=True):
            head.append(f" {short[column]:^{wide}}")
        yield head
        for row, number in zip(section.rows, section.numbers, strict=True):
            line = Text(f"{number:>{label}}")
            for column, wide in zip(columns, widths, strict=True):
                line.append(" ").append_text(_cell(grid.cells.get((row, column)), wide))
            yield line
    yield _meanings(short, width)


def _blocks(short: dict[str, str], room: int) -> Iterator[list[str]]:
    """The columns in runs that fit, at least one each."""
    block: list[str] = []
    used = 0
    for column, text in short.items():
        needed = _wide(text) + 1
        if block and used + needed > room:
            yield block
            block, used = [], 0
        block.append(column)
        used += needed
    yield block


def _wide(text: str) -> int:
    return max(3, len(text))


def _cell(distance: float | None, wide: int) -> Text:
    """The level's digit on its colour; a dot where equal, nothing where there is no tensor."""
    from rich.text import Text

    if distance is None:
        return Text(" " * wide)
    found = find_level(distance)
    before = (wide - 3) // 2
    mark = (f" {MARKS[found]} ", _STYLES[found])
    return Text.assemble(" " * before, mark, " " * (wide - 3 - before))


def _meanings(short: dict[str, str], width: int) -> Text:
    """``q self_attn.q_proj   k self_attn.k_proj ...`` in lines that fit."""
    items = [f"{text} {column}" for column, text in short.items() if text != column]
    return _flow([_dim(item) for item in items], width)


def _others(grid: Grid, section: Section) -> Iterator[RenderableType]:
    from rich.text import Text

    yield Text("outside the layers", style="bold")
    for column in section.columns:
        cell = _cell(grid.cells[OTHER, column], 3)
        yield Text("  ").append_text(cell).append(f" {column}")


def _scale(width: int) -> Text:
    """What the digits mean."""
    from rich.text import Text

    items = []
    for found, meaning in enumerate(LEVELS):
        items.append(Text.assemble((f" {MARKS[found]} ", _STYLES[found]), f" {meaning}"))
    intro = "Relative distance |a - b| / |b|; where tensors share a cell, the largest:"
    return Text(f"{intro}\n", style="").append_text(_flow(items, width))


def _dim(item: str) -> Text:
    from rich.text import Text

    short, _, name = item.partition(" ")
    return Text.assemble((short, "bold"), " ", (name, "dim"))


def _flow(items: Sequence[Text], width: int) -> Text:
    """Items side by side in lines of at most ``width``; an item is broken only if it must be."""
    from rich.text import Text

    lines = [Text(overflow="fold")]
    for item in items:
        if len(lines[-1]) + 3 + len(item) > width and len(lines[-1]):
            lines.append(Text(overflow="fold"))
        if len(lines[-1]):
            lines[-1].append("   ")
        lines[-1].append_text(item)
    return Text("\n", overflow="fold").join(lines)
