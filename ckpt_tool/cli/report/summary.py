"""A verification in the terminal: the verdict, names on one side only, and the worst tensors."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ckpt_tool.cli import consoles, ui
from ckpt_tool.cli.crc import list_crc_lines
from ckpt_tool.cli.flags import spell_flags
from ckpt_tool.cli.folding import fold
from ckpt_tool.cli.report.lines import GAP, join_row
from ckpt_tool.cli.report.row import TITLES, format_cells, list_details
from ckpt_tool.common.wording import count_noun, format_bytes

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

    from ckpt_tool.compare.mismatch import Mismatch
    from ckpt_tool.operations.verify import VerifyResult

_LISTED = 20
_INDENT = "    "
_LEAST_ROOM = 20  # for names


def show_summary(console: Console, result: VerifyResult, top: int) -> None:
    """Print what was found: of the tensors that differ the worst ``top``."""
    from ckpt_tool.compare.suspects import sort_worst_first

    colour = "green" if result.equal else "red"
    console.print(say_verdict(result), style=f"bold {colour}", soft_wrap=True)
    for line in _list_notes(result):
        _print_plain(console, f"  {line}")
    _show_names(console, "missing", "in the reference only", result.missing)
    _show_names(console, "unexpected", "in the checkpoint only", result.unexpected)
    if result.mismatched:
        _show_mismatches(console, sort_worst_first(result.mismatched)[:top])
    if len(result.mismatched) > top:
        rest = len(result.mismatched) - top
        console.print(f"and {rest:,} more that differ (--top N shows more)")
    if result.options.ranks and result.mismatched and not any(map(_has_rank, result.mismatched)):
        console.print("rank: none of these rows is a matrix of finite numbers, or it is too large")


def _has_rank(mismatch: Mismatch) -> bool:
    return mismatch.spectrum is not None


def say_verdict(result: VerifyResult) -> str:
    """One line: what was found."""
    if result.equal:
        how = "bit for bit" if result.exact else _leniency_text(result)
        if result.close:
            how += f"; {count_noun(len(result.close), 'tensor')} only within the tolerance"
        size = format_bytes(result.compared_bytes)
        return f"Equal: {count_noun(result.num_compared, 'tensor')}, {size}, {how}"
    counts = (
        (len(result.mismatched), "differ"),
        (len(result.missing), "missing"),
        (len(result.unexpected), "unexpected"),
    )
    parts = [f"{result.num_equal:,} of {count_noun(result.num_compared, 'tensor')} equal"]
    parts += [f"{count:,} {what}" for count, what in counts if count]
    how = "" if result.exact else f" ({_leniency_text(result)})"
    return f"Different: {', '.join(parts)}{how}"


def _leniency_text(result: VerifyResult) -> str:
    tolerance, parts = result.options.tolerance, []
    if result.options.cast_reference:
        parts.append("the finer side rounded first")
    if not tolerance.exact:
        parts.append(f"|a-b| <= {tolerance.atol:g} + {tolerance.rtol:g}*|b|")
    return ", ".join(parts)


def _list_notes(result: VerifyResult) -> list[str]:
    notes = [f"tied     {name}: {reason}" for name, reason in result.tied.items()]
    notes += [f"crc      {line}" for line in list_crc_lines(result.crc)]
    if result.ignored:
        notes.append(f"ignored  {count_noun(len(result.ignored), 'tensor')}")
    if result.names_hint:
        notes.append(f"hint     {spell_flags(result.names_hint)}")
    return notes


def _show_names(console: Console, kind: str, where: str, names: Sequence[str]) -> None:
    if not names:
        return
    console.print(f"{kind} ({where}):")
    rows = fold(dict.fromkeys(names, ()))
    shown = rows if ui.verbose else rows[:_LISTED]
    for row in shown:
        count = f"  x{row.count}" if row.count > 1 else ""
        _print_plain(console, f"  {row.pattern}{count}")
    if len(rows) > len(shown):
        console.print(f"  and {len(rows) - len(shown)} more (ckpt --verbose verify lists them)")


def _print_plain(console: Console, line: str) -> None:
    """A line with names in it, which are text of somebody else: shown, never obeyed."""
    console.print(consoles.make_printable(line), soft_wrap=True)


def _show_mismatches(console: Console, shown: Sequence[Mismatch]) -> None:
    """A row of numbers per tensor; under it, over the whole width, what is known about it."""
    from rich.text import Text

    names = [consoles.make_printable(mismatch.name) for mismatch in shown]
    cells = [format_cells(mismatch.stats) for mismatch in shown]
    widths = [max(map(len, column)) for column in zip(TITLES, *cells, strict=True)]
    room = console.width - sum(len(GAP) + width for width in widths)
    wide = min(max(room, _LEAST_ROOM), max(map(len, names)))
    console.print(Text(join_row("tensor", TITLES, wide, widths), style="bold"), soft_wrap=True)
    for mismatch, name, row in zip(shown, names, cells, strict=True):
        short = name
        if len(name) > wide:
            console.print(Text(name), soft_wrap=True)
            short = ""
        console.print(Text(join_row(short, row, wide, widths)), soft_wrap=True)
        for line in list_details(mismatch):
            _print_details(console, line)


def _print_details(console: Console, line: Text) -> None:
    """In lines that fit, broken between words; Rich's own padding would end in blanks."""
    room = max(console.width - len(_INDENT), _LEAST_ROOM)
    whole = consoles.make_printable(line.plain)
    for part in textwrap.wrap(whole, room, break_on_hyphens=False, break_long_words=False):
        console.print(f"{_INDENT}{part}", style=line.style, soft_wrap=True)
