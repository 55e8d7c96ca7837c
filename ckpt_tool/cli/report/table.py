"""The report's table of mismatches: a row per tensor, each cell with the key that sorts it."""

from __future__ import annotations

import html
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import PurePath

from ckpt_tool.cli.report.row import say_hint
from ckpt_tool.cli.report.svg import draw_sparkline
from ckpt_tool.cli.report.text import (
    format_cosine,
    format_number,
    make_breakable,
    make_tag,
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
    has anything are left out.
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
    return make_tag("td", content, class_="number" if column.numeric else "text", data_sort=key)


def _span(mismatches: Sequence[Mismatch]) -> tuple[int, int]:
    """The exponents that all sparklines share, so that they compare by eye."""
    found = [e for mismatch in mismatches if mismatch.stats for e in mismatch.stats.exponents]
    return min(found, default=0), max(found, default=0)


def _columns(folder: PurePath, span: tuple[int, int]) -> tuple[_Column, ...]:
    rel, sides = "Largest |a - b| / |b| where b is not zero", "Checkpoint / reference"
    return (
        _Column("Tensor", _name, numeric=False),
        _Column("Kind", _kind, numeric=False),
        _Column("Likely cause", _hint, numeric=False),
        _Column("Different", _measured(_different), about="Elements that differ, and their share"),
        _Column("By size", _measured(lambda stats: _spark(stats, span)),
                about="Elements by size of difference, on one scale for all rows; log counts"),
        _Column("Max abs", _plain(lambda stats: stats.max_abs), about="Largest |a - b|"),
        _Column("Max rel", _plain(lambda stats: stats.max_rel), about=rel),
        _Column("Mean abs", _plain(lambda stats: stats.mean_abs), about="Mean of |a - b|"),
        _Column("Cosine", _measured(_cosine), about="Cosine of the angle between both"),
        _Column("Max ULP", _measured(_ulp), about="Representable numbers between both, at most"),
        _Column("NaN", _measured(lambda stats: _pair(stats.num_nan)), about=sides),
        _Column("Inf", _measured(lambda stats: _pair(stats.num_inf)), about=sides),
        _Column("First difference", _first, about="Its index, and the values of both sides"),
        _Column("Rank", _rank, about="Whose file holds the first difference"),
        _Column("File", lambda mismatch: _file(mismatch, folder), numeric=False),
    )  # fmt: skip


def _measured(cell: Callable[[Stats], tuple[str, str]]) -> Callable[[Mismatch], tuple[str, str]]:
    """A cell that is empty where values were not compared."""
    return lambda mismatch: cell(mismatch.stats) if mismatch.stats else _EMPTY


def _plain(value: Callable[[Stats], float]) -> Callable[[Mismatch], tuple[str, str]]:
    return _measured(lambda stats: (format_number(value(stats)), sort_key(value(stats))))


def _name(mismatch: Mismatch) -> tuple[str, str]:
    lines = [mismatch.left]
    if mismatch.left != mismatch.right:
        lines = [f"checkpoint {mismatch.left}", f"reference {mismatch.right}"]
    described = "".join(make_tag("small", html.escape(line)) for line in lines)
    return make_tag("code", make_breakable(mismatch.name)) + described, mismatch.name


def _kind(mismatch: Mismatch) -> tuple[str, str]:
    return make_tag("span", html.escape(mismatch.kind), class_="kind"), mismatch.kind


def _hint(mismatch: Mismatch) -> tuple[str, str]:
    if not mismatch.hint:
        return _EMPTY
    return make_tag("div", make_breakable(say_hint(mismatch)), class_="cause"), mismatch.hint


def _different(stats: Stats) -> tuple[str, str]:
    part = make_tag("small", share(stats.num_different, stats.num_elements))
    return f"{stats.num_different:,}{part}", str(stats.num_different)


def _cosine(stats: Stats) -> tuple[str, str]:
    return _EMPTY if stats.cosine is None else (format_cosine(stats.cosine), sort_key(stats.cosine))


def _ulp(stats: Stats) -> tuple[str, str]:
    return _EMPTY if stats.max_ulp is None else (f"{stats.max_ulp:,}", str(stats.max_ulp))


def _spark(stats: Stats, span: tuple[int, int]) -> tuple[str, str]:
    picture = draw_sparkline(stats.exponents, span)
    return (picture, str(max(stats.exponents))) if picture else _EMPTY


def _pair(counts: tuple[int, int]) -> tuple[str, str]:
    return (f"{counts[0]:,} / {counts[1]:,}", str(sum(counts))) if any(counts) else _EMPTY


def _first(mismatch: Mismatch) -> tuple[str, str]:
    stats = mismatch.stats
    if mismatch.first_index is None or stats is None:
        return _EMPTY
    values = ""
    if stats.first_values is not None:
        a, b = (format_number(value, 9) for value in stats.first_values)
        values = make_tag("small", f"checkpoint {a}") + make_tag("small", f"reference {b}")
    index = ", ".join(map(str, mismatch.first_index))
    return f"[{index}]{values}", str(stats.first_index)


def _rank(mismatch: Mismatch) -> tuple[str, str]:
    return _EMPTY if mismatch.rank is None else (str(mismatch.rank), str(mismatch.rank))


def _file(mismatch: Mismatch, folder: PurePath) -> tuple[str, str]:
    path = PurePath(mismatch.source)
    shown = str(path.relative_to(folder)) if path.is_relative_to(folder) else str(path)
    return (make_breakable(shown), shown) if mismatch.source else _EMPTY
