"""The report's table of mismatches: a row per tensor, each cell with the key that sorts it."""

from __future__ import annotations

import html
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePath

from ckpt_tool.cli.report.row import say_hint, say_odd
from ckpt_tool.cli.report.svg import draw_sparkline
from ckpt_tool.cli.report.text import (
    format_cosine,
    format_number,
    make_breakable,
    make_tag,
    say_spectrum,
    say_worst,
    share,
    sort_key,
)
from ckpt_tool.compare.mismatch import Mismatch
from ckpt_tool.compare.stats import Stats

_EMPTY = ("", "")


@dataclass(frozen=True)
class _Column:
    """A heading, and a cell (HTML and sort key; both empty where there is nothing to say)."""

    title: str
    cell: Callable[[Mismatch], tuple[str, str]]
    numeric: bool = True
    about: str = ""


def make_table(mismatches: Sequence[Mismatch], folder: PurePath) -> str:
    """The mismatches in their order, as an HTML table that the page's script can sort.

    ``folder``: the checkpoint's, which file names are shown relative to. Columns in which no row
    has anything are left out. The first ones are those of the terminal, in their order; what is
    known of a tensor in words stands under its name.
    """
    columns = _columns(folder, _span(mismatches))
    cells = [[column.cell(mismatch) for column in columns] for mismatch in mismatches]
    used = [at for at in range(len(columns)) if any(row[at] != _EMPTY for row in cells)]
    head = "".join(_heading(columns[at]) for at in used)
    body = "".join(
        make_tag("tr", "".join(_cell(columns[at], *row[at]) for at in used)) for row in cells
    )
    parts = make_tag("thead", make_tag("tr", head)) + make_tag("tbody", body)
    return make_tag("div", make_tag("table", parts, class_="sortable"), class_="scroll")


def _heading(column: _Column) -> str:
    kind = "number" if column.numeric else "text"
    about = {"title": column.about} if column.about else {}
    return make_tag(
        "th", html.escape(column.title), scope="col", class_=kind, data_type=kind, **about
    )


def _cell(column: _Column, content: str, key: str) -> str:
    kind = "number" if column.numeric else "text"
    return make_tag("td", content, class_=kind, data_sort=key, data_label=column.title)


def _span(mismatches: Sequence[Mismatch]) -> tuple[int, int]:
    """The exponents that all sparklines share, so that they compare by eye."""
    found = [e for mismatch in mismatches if mismatch.stats for e in mismatch.stats.exponents]
    return min(found, default=0), max(found, default=0)


def _columns(folder: PurePath, span: tuple[int, int]) -> tuple[_Column, ...]:
    rel = "Largest |a - b| / |b| where b is not zero"
    return (
        _Column("Tensor", lambda mismatch: _tensor(mismatch, folder), numeric=False),
        _Column("Different", _measured(_different), about="Elements that differ, and their share"),
        _Column("Max abs", _plain(lambda stats: stats.max_abs), about="Largest |a - b|"),
        _Column("Max rel", _plain(lambda stats: stats.max_rel), about=rel),
        _Column("Cosine", _measured(_cosine), about="Cosine of the angle between both"),
        _Column("|a-b| / |b|", _distance, about="Relative distance, in the Euclidean norm"),
        _Column("Directions", _directions, about="How many hold 99 % of the difference"),
        _Column("By size", _measured(lambda stats: _spark(stats, span)),
                about="Elements by size of difference, on one scale for all rows; log counts"),
        _Column("Mean abs", _measured(_mean), about="Mean of |a - b|, of finite elements"),
        _Column("Max ULP", _measured(_ulp), about="Representable numbers between both, at most"),
        _Column("Rank", _rank, about="Whose file holds the first difference"),
    )  # fmt: skip


def _measured(cell: Callable[[Stats], tuple[str, str]]) -> Callable[[Mismatch], tuple[str, str]]:
    """A cell that is empty where values were not compared."""
    return lambda mismatch: cell(mismatch.stats) if mismatch.stats else _EMPTY


def _plain(value: Callable[[Stats], float]) -> Callable[[Mismatch], tuple[str, str]]:
    """Where an element is no number on one side only, so is the largest difference."""

    def cell(stats: Stats) -> tuple[str, str]:
        worst, number = say_worst(stats), value(stats)
        if not worst:
            return format_number(number), sort_key(number)
        return worst + make_tag("small", f"finite {format_number(number)}"), "Infinity"

    return _measured(cell)


def _tensor(mismatch: Mismatch, folder: PurePath) -> tuple[str, str]:
    """Its name, dtype and shape, the likely cause, and where the first difference is."""
    lines = [mismatch.left]
    if mismatch.left != mismatch.right:
        lines = [f"checkpoint {mismatch.left}", f"reference {mismatch.right}"]
    if mismatch.kind != "values":
        lines.insert(0, f"another {mismatch.kind}")
    if mismatch.stats is not None and (odd := say_odd(mismatch.stats)):
        lines.append(odd)
    lines += _list_places(mismatch, folder)
    if mismatch.spectrum is not None:
        lines.append(say_spectrum(mismatch.spectrum, mismatch.left))
    described = "".join(make_tag("small", make_breakable(line)) for line in lines)
    cause = ""
    if mismatch.hint:
        cause = make_tag("div", make_breakable(say_hint(mismatch)), class_="cause")
    return make_tag("code", make_breakable(mismatch.name)) + cause + described, mismatch.name


def _list_places(mismatch: Mismatch, folder: PurePath) -> Iterator[str]:
    """Where the first element that differs is, what it is, and in which file."""
    stats = mismatch.stats
    if mismatch.first_index is not None and stats is not None:
        text = f"first at [{', '.join(map(str, mismatch.first_index))}]"
        if stats.first_values is not None:
            a, b = (format_number(value, 9) for value in stats.first_values)
            text += f": {a}, expected {b}"
        yield text
    if mismatch.source:
        path = PurePath(mismatch.source)
        inside = path.is_relative_to(folder)
        yield f"in {path.relative_to(folder) if inside else path}"


def _distance(mismatch: Mismatch) -> tuple[str, str]:
    if mismatch.stats is None:
        return _EMPTY
    worst = say_worst(mismatch.stats)
    return worst or format_number(mismatch.distance), sort_key(mismatch.distance)


def _directions(mismatch: Mismatch) -> tuple[str, str]:
    found = mismatch.spectrum
    if found is None:
        return _EMPTY
    if found.rank is None:
        most, held = max(found.held.items())
        small = make_tag("small", f"held by {most:,} of {found.full:,}")
        return f"{held:.0%}{small}", "Infinity"
    return f"{found.rank:,}" + make_tag("small", f"of {found.full:,}"), str(found.rank)


def _mean(stats: Stats) -> tuple[str, str]:
    return format_number(stats.mean_abs), sort_key(stats.mean_abs)


def _different(stats: Stats) -> tuple[str, str]:
    part = make_tag("small", share(stats.num_different, stats.num_elements))
    return f"{stats.num_different:,}{part}", str(stats.num_different)


def _cosine(stats: Stats) -> tuple[str, str]:
    if say_worst(stats):
        return "NaN", ""
    return _EMPTY if stats.cosine is None else (format_cosine(stats.cosine), sort_key(stats.cosine))


def _ulp(stats: Stats) -> tuple[str, str]:
    return _EMPTY if stats.max_ulp is None else (f"{stats.max_ulp:,}", str(stats.max_ulp))


def _spark(stats: Stats, span: tuple[int, int]) -> tuple[str, str]:
    picture = draw_sparkline(stats.exponents, span)
    return (picture, str(max(stats.exponents))) if picture else _EMPTY


def _rank(mismatch: Mismatch) -> tuple[str, str]:
    return _EMPTY if mismatch.rank is None else (str(mismatch.rank), str(mismatch.rank))
