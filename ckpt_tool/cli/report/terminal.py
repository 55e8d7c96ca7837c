"""The heat map of a verification in the terminal: a coloured number per layer and module."""

from __future__ import annotations

import re
import textwrap
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from ckpt_tool.compare.grid import OTHER, Grid, Section, list_sections
from ckpt_tool.compare.scale import DECADES, EQUAL, find_position, say_briefly

if TYPE_CHECKING:
    from rich.console import Group, RenderableType
    from rich.text import Text

#: From dark to bright, so that large differences stand out: a colour for each of DECADES.
_COLOURS = (
    (44, 42, 107), (75, 42, 140), (122, 42, 150), (168, 50, 125), (208, 80, 106), (233, 120, 78),
    (249, 166, 58), (247, 226, 37),
)  # fmt: skip
_BRIGHT = 4.0  # from here on text is black
_WIDTH = 4  # of what a cell says
_STEPS = 4  # of the legend, per decade
_RAMP = (_WIDTH + 1 + 2 * (_STEPS - 1)) * (len(DECADES) - 1)  # characters of the legend but one
_LABEL = "layer"
_SHORT = 5  # letters of a word that needs no abbreviation


def draw_heatmap(grid: Grid, width: int) -> Group:
    """The grid in lines of at most ``width`` characters: one block of rows per list of layers.

    A list with more modules than a line has room for takes several blocks. Colours repeat what
    the numbers say.
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
            head.append(f" {short[column]:>{wide}}")
        yield head
        for row, number in zip(section.rows, section.numbers, strict=True):
            line = Text(f"{number:>{label}}")
            for column, wide in zip(columns, widths, strict=True):
                line.append(" ").append_text(_cell(grid.cells.get((row, column)), wide))
            line.rstrip()
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
    return max(_WIDTH, len(text))


def _cell(distance: float | None, wide: int) -> Text:
    """The distance on its colour; a dot where equal, nothing where there is no tensor."""
    from rich.text import Text

    if distance is None:
        return Text(" " * wide)
    return Text(f"{say_briefly(distance):>{wide}}", style=_find_style(distance))


def _find_style(distance: float) -> str:
    position = find_position(distance)
    if position is None:
        return "dim"
    at = min(int(position), len(_COLOURS) - 2)
    mixed = (
        round(low + (high - low) * (position - at))
        for low, high in zip(_COLOURS[at], _COLOURS[at + 1], strict=True)
    )
    ink = "#000000" if position >= _BRIGHT else "#ffffff"
    return f"{ink} on #{bytes(mixed).hex()}"


def _meanings(short: dict[str, str], width: int) -> Text:
    """``q self_attn.q_proj   k self_attn.k_proj ...`` in lines that fit."""
    items = [f"{text} {column}" for column, text in short.items() if text != column]
    return _flow([_dim(item) for item in items], width)


def _others(grid: Grid, section: Section) -> Iterator[RenderableType]:
    from rich.text import Text

    yield Text("outside the layers", style="bold")
    for column in section.columns:
        cell = _cell(grid.cells[OTHER, column], _WIDTH)
        yield Text("  ").append_text(cell).append(f" {column}")


def _scale(width: int) -> Text:
    """What the numbers are, and how colours run from one to the next."""
    from rich.text import Text

    intro = (
        "Relative distance |a - b| / |b|; where tensors share a cell, the largest:",
        f"{EQUAL} equal, ~ differs by no measurable amount, ! NaN, infinite, or of another shape",
    )
    ramp = Text()
    steps = _STEPS if width > _RAMP else 1
    for decade in DECADES[:-1]:
        ramp.append(f"1e{decade} ", style=_find_style(10.0**decade))
        for part in range(1, steps):
            ramp.append("  ", style=_find_style(10.0 ** (decade + part / steps)))
    ramp.append("1", style=_find_style(1.0))
    lines = [line for text in intro for line in textwrap.wrap(text, width)]
    return Text("\n".join([*lines, ""])).append_text(ramp)


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
