"""The report's pictures: heat map and histograms, as SVG for the inside of an HTML page."""

from __future__ import annotations

import html
import math
from collections.abc import Iterator, Mapping

from ckpt_tool.cli.report.text import format_number, format_power, make_tag, share
from ckpt_tool.compare.grid import OTHER, Grid, Section, list_sections
from ckpt_tool.compare.scale import (
    DECADES,
    EQUAL,
    IMMEASURABLE,
    INFINITE,
    UNMEASURED,
    find_position,
    say_briefly,
    say_decade,
)

_CELL_HEIGHT = 20
_LETTER = 7.3  # width of a character of the labels
_ROOM = 840  # width that all layers share, as far as cells stay legible
_NARROW, _WIDE = 12, 32

_BARS = 48  # more powers of two than this share bars
_BAR, _WIDEST_BAR = 16, 32
_CHART = 130  # height of the histogram
_SPARK = (96, 22)


def draw_heatmaps(grid: Grid) -> str:
    """A figure for each list of layers: modules down, layers across, a tooltip on each cell."""
    return "".join(
        _others(grid, section) if section.title == OTHER else _figure(grid, section)
        for section in list_sections(grid)
    )


def draw_sign(*, equal: bool) -> str:
    """An equals sign, struck through where the sides are not equal."""
    stroke = "" if equal else "M6 21L18 3"
    return (
        '<svg class="sign" width="24" height="24" viewBox="0 0 24 24" aria-hidden="true">'
        f'<path d="M3 8.5H21M3 15.5H21{stroke}"></path></svg>'
    )


def draw_scale() -> str:
    """The legend of the heat maps: how colours run, and what is not on that scale."""
    ticks = "".join(make_tag("span", f"1e{at}" if at else "1") for at in DECADES)
    ramp = make_tag("div", "", class_="ramp") + make_tag("div", ticks, class_="ticks")
    odd = (
        (0, EQUAL, "equal"),
        (1, UNMEASURED, "differs by no measurable amount"),
        (len(DECADES), INFINITE, "NaN, infinite, or of another shape"),
    )
    entries = (
        f'<li><span class="swatch l{at}">{mark}</span>{html.escape(meaning)}</li>'
        for at, mark, meaning in odd
    )
    return ramp + make_tag("ul", "".join(entries), class_="scale")


def draw_histogram(exponents: Mapping[int, int]) -> str:
    """A chart of how many elements differ by how much; heights are logarithms of the counts."""
    bins = _bins(exponents)
    if not bins:
        return ""
    total, step = sum(exponents.values()), max(_BAR, _WIDEST_BAR - len(bins) // 2)
    heights = _heights([count for _, _, count in bins], _CHART)
    bars = []
    for at, ((start, stop, count), tall) in enumerate(zip(bins, heights, strict=True)):
        about = f"{format_power(start)} ≤ |a - b| < {format_power(stop)}: {count:,} elements"
        about += f" ({share(count, total)})"
        bars.append(
            f'<rect class="bar" x="{at * step + 1}" y="{_CHART - tall:.2f}"'
            f' width="{step - 2}" height="{tall:.2f}"><title>{about}</title></rect>'
        )
    width = max(len(bins) * step, 120)
    ticks = "".join(_ticks(bins, step))
    return (
        f'<svg class="histogram" width="{width + 40}" height="{_CHART + 42}"'
        f' viewBox="-20 -18 {width + 40} {_CHART + 42}" role="img"'
        f' aria-label="Histogram of absolute differences">{"".join(bars)}'
        f'<line class="axis" x1="0" x2="{width}" y1="{_CHART}" y2="{_CHART}"></line>{ticks}</svg>'
    )


def draw_sparkline(exponents: Mapping[int, int], span: tuple[int, int]) -> str:
    """The same for a row of the table, over the range of exponents that all rows share."""
    bins = _bins(exponents, span)
    if not bins:
        return ""
    width, height = _SPARK
    step = width / len(bins)
    heights = _heights([count for _, _, count in bins], height - 1)
    path = "".join(
        f"M{at * step:.1f} {height}v{-tall:.1f}h{max(step - 0.6, 0.6):.1f}v{tall:.1f}z"
        for at, tall in enumerate(heights)
        if tall
    )
    about = f"from {format_power(min(exponents))} to {format_power(max(exponents) + 1)}"
    return (
        f'<svg class="spark" width="{width}" height="{height}" viewBox="0 0 {width} {height}"'
        f' role="img"><title>{about}</title><path class="bar" d="{path}"></path>'
        f'<line class="axis" x1="0" x2="{width}" y1="{height}" y2="{height}"></line></svg>'
    )


# --- heat map
def _figure(grid: Grid, section: Section) -> str:
    wide = max(_NARROW, min(_WIDE, _ROOM // len(section.rows)))
    label = int(max(map(len, section.columns)) * _LETTER) + 12
    marks = "".join(_marks(grid, section, label, wide))
    numbers = "".join(_numbers(section, label, wide))
    width = label + wide * len(section.rows) + 2
    height = _CELL_HEIGHT * (len(section.columns) + 1) + 4
    title = html.escape(section.title)
    picture = (
        f'<svg class="heat" width="{width}" height="{height}" viewBox="0 0 {width} {height}"'
        f' role="img" aria-label="Heat map of {title}">{numbers}{marks}</svg>'
    )
    caption = f"<figcaption><code>{title}</code> · {_extent(section)}</figcaption>"
    return f'<figure>{caption}<div class="scroll">{picture}</div></figure>'


def _extent(section: Section) -> str:
    count = len(section.rows)
    return f"{count} layer{'' if count == 1 else 's'} across, modules down"


def _marks(grid: Grid, section: Section, label: int, wide: int) -> Iterator[str]:
    """Labels and cells, module by module."""
    for down, column in enumerate(section.columns, start=1):
        y = down * _CELL_HEIGHT
        yield f'<text class="label" x="{label - 8}" y="{y + 14}">{html.escape(column)}</text>'
        for across, row in enumerate(section.rows):
            distance = grid.cells.get((row, column))
            if distance is not None:
                name = f"{row} · {column}"
                yield _cell(name, distance, (label + across * wide, y), wide)


def _cell(name: str, distance: float, at: tuple[float, float], wide: int) -> str:
    x, y = at
    position = find_position(distance)
    colour, part, ink = 0, 0.0, 0
    if position is not None:
        colour, part, ink = 1 + int(position), position % 1, 1 + round(position)
    said = say_briefly(distance) if wide >= _WIDE else say_decade(distance)
    return (
        f'<rect class="cell l{colour}" style="--part:{part:.0%}" x="{x}" y="{y}"'
        f' width="{wide - 1}" height="{_CELL_HEIGHT - 1}">'
        f"<title>{html.escape(name)}: {_said(distance)}</title></rect>"
        f'<text class="mark m{ink}" x="{x + (wide - 1) / 2}" y="{y + 14}">{said}</text>'
    )


def _said(distance: float) -> str:
    if distance == IMMEASURABLE:
        return "differs by no measurable amount"
    return format_number(distance) if distance else "equal"


def _numbers(section: Section, label: int, wide: int) -> Iterator[str]:
    """Layer numbers above the cells, as many as there is room for."""
    longest = max(map(len, section.numbers)) * _LETTER + 4
    every = next(n for n in (1, 2, 5, 10, 20, 50, 100, 10**9) if n * wide >= longest)
    for at, text in enumerate(section.numbers):
        if at % every == 0:
            x = label + at * wide + (wide - 1) / 2
            yield f'<text class="number" x="{x}" y="14">{html.escape(text)}</text>'


def _others(grid: Grid, section: Section) -> str:
    """Tensors outside the layers: a cell each, with its distance beside it."""
    label = int(max(map(len, section.columns)) * _LETTER) + 12
    width, height = label + _WIDE + 190, _CELL_HEIGHT * len(section.columns) + 4
    marks = []
    for down, column in enumerate(section.columns):
        distance, y = grid.cells[OTHER, column], down * _CELL_HEIGHT
        marks.append(f'<text class="label" x="{label - 8}" y="{y + 14}">{html.escape(column)}')
        marks.append(f"</text>{_cell(column, distance, (label, y), _WIDE)}")
        marks.append(f'<text class="value" x="{label + _WIDE + 8}" y="{y + 14}">')
        marks.append(f"{_said(distance)}</text>")
    picture = (
        f'<svg class="heat" width="{width}" height="{height}" viewBox="0 0 {width} {height}"'
        f' role="img" aria-label="Heat map of tensors outside the layers">{"".join(marks)}</svg>'
    )
    caption = "<figcaption>Outside the layers</figcaption>"
    return f'<figure>{caption}<div class="scroll">{picture}</div></figure>'


# --- histograms
def _bins(
    exponents: Mapping[int, int], span: tuple[int, int] | None = None
) -> list[tuple[int, int, int]]:
    """First exponent, end and count of each bar, without gaps, at most ``_BARS``."""
    if not exponents:
        return []
    first, last = span or (min(exponents), max(exponents))
    step = math.ceil((last - first + 1) / _BARS)
    return [
        (start, start + step, sum(exponents.get(e, 0) for e in range(start, start + step)))
        for start in range(first, last + 1, step)
    ]


def _heights(counts: list[int], tallest: int) -> list[float]:
    """Heights that grow with the logarithm; a single element is seen, none is nothing."""
    top = math.log1p(max(counts, default=0)) or 1.0
    return [tallest * math.log1p(count) / top for count in counts]


def _ticks(bins: list[tuple[int, int, int]], step: int) -> Iterator[str]:
    """Powers of two under the axis, at bar edges, and the count of the tallest bar."""
    every = math.ceil(56 / step)
    for at, (start, _, _) in enumerate(bins):
        if at % every == 0:
            raised = f'<tspan dy="-5" class="raised">{start}</tspan>'
            yield f'<text class="tick" x="{at * step}" y="{_CHART + 18}">2{raised}</text>'
    most = max(range(len(bins)), key=lambda at: bins[at][2])
    anchor, x = "start", most * step
    if most > len(bins) / 2:
        anchor, x = "end", x + step
    yield f'<text text-anchor="{anchor}" x="{x}" y="-5">{bins[most][2]:,}</text>'
