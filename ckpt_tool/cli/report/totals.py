"""How far layers and modules moved: as tables of the terminal, as JSON, as HTML."""

from __future__ import annotations

import html
import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from ckpt_tool.cli.report.lines import print_table
from ckpt_tool.cli.report.text import format_number, make_breakable, make_tag, share, sort_key

if TYPE_CHECKING:
    from rich.console import Console

    from ckpt_tool.compare.totals import Total, Totals

_TITLES = ("tensors changed", "elements changed", "|a-b| / |b|")
_FEWEST = 1e-6  # |a - b| / |b| that has no bar: a bar is a share of the decades from here to 1
_ABOUT = (
    "All tensors of a layer, or of one kind of module in all layers, as one vector: how many"
    " differ, the share of elements that do, and the relative distance (Euclidean norm) of the"
    " finite ones. Tensors of one shape on both sides only."
)


def show_totals(console: Console, totals: Totals) -> None:
    """Two tables: by layer, and by kind of module."""
    for title, rows in (("layer", totals.layers), ("module", totals.modules)):
        console.print("")
        print_table(console, title, _TITLES, [(row.name, _format(row)) for row in rows])


def _format(row: Total) -> tuple[str, str, str]:
    """A cell for each of ``_TITLES``."""
    return (
        f"{row.num_changed:,} of {row.num_tensors:,}",
        share(row.num_different, row.num_elements),
        _say_norm(row),
    )


def _say_norm(row: Total) -> str:
    """The relative norm; NaN and infinities beside it are said."""
    norm = "inf" if row.relative_norm is None else format_number(row.relative_norm)
    return f"{norm}, {row.num_unlike:,} not finite" if row.num_unlike else norm


def make_totals_json(totals: Totals | None) -> dict[str, Any] | None:
    """Both lists; None where nobody asked."""
    if totals is None:
        return None
    return {
        "layers": [_row_json(row) for row in totals.layers],
        "modules": [_row_json(row) for row in totals.modules],
    }


def _row_json(row: Total) -> dict[str, Any]:
    keys = (
        "name", "num_tensors", "num_changed", "num_elements", "num_different", "num_unlike",
        "relative_norm",
    )  # fmt: skip
    return {key: getattr(row, key) for key in keys}


def make_totals_html(totals: Totals | None) -> str:
    """A section with both tables; empty where nothing moved."""
    if totals is None or not any(row.num_changed for row in totals.layers):
        return ""
    tables = "".join(
        make_tag("div", _table(title, rows), class_="scroll")
        for title, rows in (("Layer", totals.layers), ("Module", totals.modules))
    )
    about = make_tag("p", html.escape(_ABOUT))
    heading = make_tag("h2", "How far each layer and module moved")
    return make_tag("section", heading + about + make_tag("div", tables, class_="pair"))


def _table(title: str, rows: Sequence[Total]) -> str:
    head = "".join(
        make_tag("th", text, scope="col", class_=kind, data_type=kind)
        for text, kind in ((title, "text"), *((text, "number") for text in _TITLES))
    )
    body = "".join(make_tag("tr", "".join(_cells(row))) for row in rows)
    parts = make_tag("thead", make_tag("tr", head)) + make_tag("tbody", body)
    return make_tag("table", parts, class_="sortable totals")


def _cells(row: Total) -> Iterator[str]:
    yield make_tag("td", make_tag("code", make_breakable(row.name)), class_="text",
                   data_sort=row.name)  # fmt: skip
    norm = math.inf if row.relative_norm is None else row.relative_norm
    part = row.num_different / max(row.num_elements, 1)
    keys = (str(row.num_changed), sort_key(part), sort_key(norm))
    for title, text, key in zip(_TITLES, _format(row), keys, strict=True):
        bar = _bar(norm) if title == _TITLES[-1] else ""
        yield make_tag(
            "td", html.escape(text) + bar, class_="number", data_sort=key, data_label=title
        )


def _bar(norm: float) -> str:
    if norm <= _FEWEST:
        return ""
    part = min(1.0, 1 - math.log(norm) / math.log(_FEWEST)) if norm < 1 else 1.0
    return make_tag("span", "", class_="meter", style=f"--part:{part:.0%}")
