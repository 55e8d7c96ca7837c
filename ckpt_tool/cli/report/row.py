"""A row of the table of differences in the terminal: its numbers, and the lines under it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from ckpt_tool.cli.flags import spell_flags
from ckpt_tool.cli.report.text import say_spectrum, say_worst
from ckpt_tool.common.wording import count_noun

if TYPE_CHECKING:
    from rich.text import Text

    from ckpt_tool.compare.mismatch import Mismatch
    from ckpt_tool.compare.stats import Stats

TITLES = ("different", "max abs", "max rel", "cosine")

_FAR_ULP = 1_000_000  # a larger distance says no more than the numbers beside it


def format_cells(stats: Stats | None) -> tuple[str, str, str, str]:
    """A cell for each of :data:`TITLES`.

    Where an element is NaN or infinite on one side only, so is the largest difference, and the
    cosine is no number: numbers of the others are in a line of their own.
    """
    if stats is None:
        return "", "", "", ""
    percent = _percent_text(stats.num_different, stats.num_elements)
    count = f"{stats.num_different:,} ({percent})"
    worst = say_worst(stats)
    if worst:
        return count, worst, worst, "NaN"
    return count, f"{stats.max_abs:.3g}", f"{stats.max_rel:.3g}", _cosine_text(stats)


def _cosine_text(stats: Stats) -> str:
    """Five digits; never 1 where elements differ by so little that it is rounded to that."""
    if stats.cosine is None:
        return ""
    text = f"{stats.cosine:.5f}"
    return ">.99999" if text == "1.00000" and stats.squares[2] else text


def _percent_text(part: int, whole: int) -> str:
    """Two digits; never 100 where something is left."""
    percent = 100 * part / max(whole, 1)
    if part == whole or not part:
        return f"{percent:.0f}%"
    return ">99%" if percent > 99 else f"{percent:.2g}%"


def say_hint(mismatch: Mismatch) -> str:
    """The hint, and what to type where an option would make the two equal."""
    hint = spell_flags(mismatch.hint)
    return f"{hint} (--cast-reference compares so)" if mismatch.kind == "dtype" and hint else hint


def list_details(mismatch: Mismatch) -> Iterator[Text]:
    """Lines under a row, not yet cut to a width."""
    from rich.text import Text

    if mismatch.hint:
        yield Text(f"hint: {say_hint(mismatch)}", style="cyan")
    if mismatch.kind != "values":
        yield Text(f"{mismatch.kind}: {mismatch.left}, the reference has {mismatch.right}")
    stats = mismatch.stats
    if stats is None:
        return
    if odd := say_odd(stats):
        yield Text(odd, style="yellow")
        if say_worst(stats) and stats.max_abs:
            yield Text(_finite_text(stats), style="yellow")
    if mismatch.spectrum is not None:
        yield Text(f"rank: {say_spectrum(mismatch.spectrum, mismatch.left)}")
    if stats.first_values is not None and mismatch.first_index is not None:
        yield Text(_first_text(mismatch, stats), style="dim")


def say_odd(stats: Stats) -> str:
    """How many elements are no finite number; empty where all are."""
    (nan, nan_there), (inf, inf_there) = stats.num_nan, stats.num_inf
    nans, infinities = f"NaN: {nan:,} (reference {nan_there:,})", ""
    if stats.num_nan_alone:
        nans = f"NaN on one side: {count_noun(stats.num_nan_alone, 'element')}"
        nans += f" (NaN: {nan:,}, reference {nan_there:,})"
    if stats.num_inf_alone:
        infinities = f"infinite on one side: {count_noun(stats.num_inf_alone, 'element')}"
        infinities += f" (infinite: {inf:,}, reference {inf_there:,})"
    elif inf or inf_there:
        infinities = f"infinite: {inf:,} (reference {inf_there:,})"
    return ", ".join(filter(None, (nans if nan or nan_there else "", infinities)))


def _finite_text(stats: Stats) -> str:
    """The numbers of the elements beside these."""
    return (
        f"finite elements: max abs {stats.max_abs:.3g}, max rel {stats.max_rel:.3g},"
        f" cosine {_cosine_text(stats)}"
    )


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
