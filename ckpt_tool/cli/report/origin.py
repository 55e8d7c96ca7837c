"""Who moved what from the origin: as a table of the terminal, as JSON, as HTML."""

from __future__ import annotations

import html
import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from ckpt_tool.cli import consoles
from ckpt_tool.cli.report.lines import print_table
from ckpt_tool.cli.report.sides import make_folded
from ckpt_tool.cli.report.text import format_number, make_breakable, make_tag, sort_key
from ckpt_tool.common.wording import count_noun

if TYPE_CHECKING:
    from rich.console import Console

    from ckpt_tool.compare.moves import Moves
    from ckpt_tool.operations.origin import Origin

_TITLES = ("checkpoint", "reference", "apart", "cosine")
_KEYS = ("checkpoint", "reference", "apart", "cosine", "num_odd", "num_elements")
_LISTED = 12  # rows that are shown without a click
_ABOUT = (
    "Distances relative to the origin's norm: of the checkpoint from it, of the reference from it,"
    " and of the two from each other. The cosine is that of the two moves: near 1 both went the"
    " same way, near 0 each its own."
)


def show_origin(console: Console, origin: Origin, top: int) -> None:
    """Who moved, in a sentence, and of the tensors that moved the farthest ``top``."""
    console.print("")
    for line in _list_sentences(origin):
        console.print(consoles.make_printable(line), soft_wrap=True)
    moved = sorted(filter(_has_moved, origin.moves), key=lambda each: -each.farthest)
    rows = [(each.name, _format(each)) for each in (origin.total, *moved[:top])]
    print_table(console, "tensor", _TITLES, rows)
    if len(moved) > top:
        console.print(f"and {len(moved) - top:,} more that moved (--top N shows more)")


def _has_moved(moves: Moves) -> bool:
    return moves.num_odd > 0 or any(moves.squares[1:])


def _list_sentences(origin: Origin) -> Iterator[str]:
    """Which side moved how many tensors."""
    ours = sum(each.squares[1] > 0 for each in origin.moves)
    theirs = sum(each.squares[2] > 0 for each in origin.moves)
    both = sum(each.squares[1] > 0 < each.squares[2] for each in origin.moves)
    yield (
        f"From {origin.side.checkpoint.path}: of {count_noun(len(origin.moves), 'tensor')} the"
        f" checkpoint moved {ours:,}, the reference {theirs:,}, both {both:,}"
    )
    if origin.left_out:
        count = count_noun(len(origin.left_out), "tensor")
        yield f"  left out {count} without a counterpart of that shape, or of integers"
    if origin.total.num_odd:
        odd = count_noun(origin.total.num_odd, "element")
        yield f"  left out {odd} not finite in one of the three"


def _format(moves: Moves) -> tuple[str, str, str, str]:
    """A cell for each of ``_TITLES``; empty where there is no number."""
    norms = (moves.checkpoint, moves.reference, moves.apart)
    cosine = "" if moves.cosine is None else f"{moves.cosine:.5f}"
    a, b, apart = ("inf" if norm is None else format_number(norm) for norm in norms)
    return a, b, apart, cosine


def make_origin_json(origin: Origin | None) -> dict[str, Any] | None:
    """The moves of each tensor and of all; None where nobody asked."""
    if origin is None:
        return None
    return {
        "path": str(origin.side.checkpoint.path),
        "total": _row_json(origin.total),
        "moves": [{"name": each.name} | _row_json(each) for each in origin.moves],
        "left_out": origin.left_out,
    }


def _row_json(moves: Moves) -> dict[str, Any]:
    return {key: getattr(moves, key) for key in _KEYS}


def make_origin_html(origin: Origin | None) -> str:
    """A section with a table of all that moved; empty where nobody asked."""
    if origin is None:
        return ""
    moved = sorted(filter(_has_moved, origin.moves), key=lambda each: -each.farthest)
    tables = _table([origin.total, *moved[:_LISTED]])
    if len(moved) > _LISTED:
        tables += make_folded(f"all {count_noun(len(moved), 'tensor')} that moved", _table(moved))
    sentences = "".join(make_tag("p", make_breakable(line)) for line in _list_sentences(origin))
    about = make_tag("p", html.escape(_ABOUT))
    return make_tag("section", make_tag("h2", "Who moved what") + sentences + about + tables)


def _table(rows: Sequence[Moves]) -> str:
    head = "".join(
        make_tag("th", text, scope="col", class_=kind, data_type=kind)
        for text, kind in (("Tensor", "text"), *((title, "number") for title in _TITLES))
    )
    body = "".join(make_tag("tr", "".join(_cells(each))) for each in rows)
    parts = make_tag("thead", make_tag("tr", head)) + make_tag("tbody", body)
    return make_tag("div", make_tag("table", parts, class_="sortable totals"), class_="scroll")


def _cells(moves: Moves) -> Iterator[str]:
    yield make_tag(
        "td", make_tag("code", make_breakable(moves.name)), class_="text", data_sort=moves.name
    )
    norms = (moves.checkpoint, moves.reference, moves.apart)
    keys = [sort_key(math.inf if norm is None else norm) for norm in norms]
    keys.append("" if moves.cosine is None else sort_key(moves.cosine))
    for title, text, key in zip(_TITLES, _format(moves), keys, strict=True):
        yield make_tag("td", text, class_="number", data_sort=key, data_label=title)
