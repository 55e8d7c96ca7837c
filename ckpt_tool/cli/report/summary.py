"""A verification in the terminal: the verdict, names on one side only, and the worst tensors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ckpt_tool.cli import ui
from ckpt_tool.cli.crc import list_crc_lines
from ckpt_tool.cli.flags import spell_flags
from ckpt_tool.cli.folding import fold
from ckpt_tool.common.wording import count_noun, format_bytes

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

    from ckpt_tool.compare.mismatch import Mismatch
    from ckpt_tool.compare.stats import Stats
    from ckpt_tool.operations.verify import VerifyResult

_LISTED = 20
_FAR_ULP = 1_000_000  # a larger distance says no more than the numbers beside it
_TITLES = ("different", "max abs", "max rel", "cosine")
_GAP = "  "
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


def say_hint(mismatch: Mismatch) -> str:
    """The hint, and what to type where an option would make the two equal."""
    hint = spell_flags(mismatch.hint)
    return f"{hint} (--cast-reference compares so)" if mismatch.kind == "dtype" and hint else hint


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
    console.print(ui.make_printable(line), soft_wrap=True)


def _show_mismatches(console: Console, shown: Sequence[Mismatch]) -> None:
    """A row of numbers per tensor; under it, over the whole width, what is known about it."""
    from rich.padding import Padding
    from rich.text import Text

    names = [ui.make_printable(mismatch.name) for mismatch in shown]
    cells = [_format_numbers(mismatch.stats) for mismatch in shown]
    widths = [max(map(len, column)) for column in zip(_TITLES, *cells, strict=True)]
    room = console.width - sum(len(_GAP) + width for width in widths)
    wide = min(max(room, _LEAST_ROOM), max(map(len, names)))
    console.print(Text(_join_row("tensor", _TITLES, wide, widths), style="bold"), soft_wrap=True)
    for mismatch, name, row in zip(shown, names, cells, strict=True):
        short = name
        if len(name) > wide:
            console.print(Text(name), soft_wrap=True)
            short = ""
        console.print(Text(_join_row(short, row, wide, widths)), soft_wrap=True)
        for line in _list_details(mismatch):
            console.print(Padding(line, (0, 0, 0, 4), expand=False))


def _join_row(name: str, cells: Sequence[str], wide: int, widths: Sequence[int]) -> str:
    numbers = [f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True)]
    return _GAP.join([f"{name:{wide}}", *numbers]).rstrip()


def _format_numbers(stats: Stats | None) -> tuple[str, str, str, str]:
    """A cell for each of ``_TITLES``."""
    if stats is None:
        return "", "", "", ""
    cosine = "" if stats.cosine is None else f"{stats.cosine:.5f}"
    percent = _percent_text(stats.num_different, stats.num_elements)
    count = f"{stats.num_different:,} ({percent})"
    return count, f"{stats.max_abs:.3g}", f"{stats.max_rel:.3g}", cosine


def _percent_text(part: int, whole: int) -> str:
    """Two digits; never 100 where something is left."""
    percent = 100 * part / max(whole, 1)
    if part == whole or not part:
        return f"{percent:.0f}%"
    return ">99%" if percent > 99 else f"{percent:.2g}%"


def _list_details(mismatch: Mismatch) -> Iterator[Text]:
    """Lines under a row."""
    from rich.text import Text

    if mismatch.hint:
        yield Text(ui.make_printable(f"hint: {say_hint(mismatch)}"), style="cyan")
    if mismatch.kind != "values":
        yield Text(f"{mismatch.kind}: {mismatch.left}, the reference has {mismatch.right}")
    stats = mismatch.stats
    if stats is None:
        return
    if any(stats.num_nan + stats.num_inf):
        yield Text(_infinities_text(stats), style="yellow")
    if stats.first_values is not None and mismatch.first_index is not None:
        yield Text(ui.make_printable(_first_text(mismatch, stats)), style="dim")


def _infinities_text(stats: Stats) -> str:
    (nan, nan_there), (inf, inf_there) = stats.num_nan, stats.num_inf
    return f"NaN: {nan:,} (reference {nan_there:,}), infinite: {inf:,} (reference {inf_there:,})"


def _first_text(mismatch: Mismatch, stats: Stats) -> str:
    """Where the first difference is, both values, and how far apart the two are at most."""
    here, there = stats.first_values or (0.0, 0.0)
    index = list(mismatch.first_index or ())
    where = f" in {Path(mismatch.source).name}" if mismatch.rank is not None else ""
    text = f"first at {index}{where}: {here:.7g}, expected {there:.7g}"
    if not stats.max_abs:  # NaN, an infinity or the sign of a zero: there is no distance
        return text
    text += f"; mean abs {stats.mean_abs:.3g}"
    if stats.max_ulp is not None and stats.max_ulp <= _FAR_ULP:
        text += f", at most {stats.max_ulp:,} ulp apart"
    return text
