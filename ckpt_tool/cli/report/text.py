"""Numbers and names as the report writes them."""

from __future__ import annotations

import html
import math
import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

from ckpt_tool.compare.ranks import ENERGY

if TYPE_CHECKING:
    from ckpt_tool.compare.ranks import Spectrum
    from ckpt_tool.compare.stats import Stats

_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_NEARLY_ONE = 1e-6
_LEAST_ROUNDING = 1e-3  # share of a difference that is worth a word
_TOLD = (8, 32, 128, 256)  # ranks of LoRA adapters, where none holds all


def format_number(value: float, digits: int = 3) -> str:
    """``0.00195``, ``1.2e-09``, ``inf``, ``nan``: so many significant digits."""
    return f"{value:.{digits}g}"


def format_cosine(value: float) -> str:
    """Six decimals; close to 1, the distance from it, which is what tells two such apart."""
    short = 1 - value
    return f"1 - {short:.1e}" if 0 < short < _NEARLY_ONE else f"{value:.6f}".rstrip("0").rstrip(".")


def share(part: int, whole: int) -> str:
    """``12.5 %``; never 0 or 100 where that is not so."""
    percent = 100 * part / whole if whole else 0.0
    if part == whole:
        return "100 %"
    if percent > 99.9:
        return "> 99.9 %"
    return f"{percent:.3g} %" if percent >= 0.001 or not part else "< 0.001 %"


def format_power(exponent: int) -> str:
    """``2⁻¹²``."""
    return f"2{str(exponent).translate(_RAISED)}"


def sort_key(value: float) -> str:
    """A number as the report's script reads it; empty, which sorts last, where it is none."""
    if math.isnan(value):
        return ""
    if math.isinf(value):
        return "Infinity" if value > 0 else "-Infinity"
    return f"{value!r}"


def make_tag(name: str, content: str, **attributes: str) -> str:
    """An element around ``content``, which is HTML already; attribute values are escaped here.

    A trailing underscore of an attribute's name is dropped, others become hyphens.
    """
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{html.escape(value)}"'
        for key, value in attributes.items()
    )
    return f"<{name}{written}>{content}</{name}>"


_BREAK = re.compile(r"/|(?<!\d)\.|\.(?!\d)")


def make_breakable(name: str) -> str:
    """A name, escaped, that may be broken at its dots and slashes, but amid no number."""
    return _BREAK.sub(r"\g<0><wbr>", html.escape(name))


def make_items(names: Iterable[str]) -> str:
    """An unordered list of names."""
    return make_tag(
        "ul", "".join(make_tag("li", make_breakable(name)) for name in names), class_="names"
    )


def say_worst(stats: Stats) -> str:
    """``NaN`` or ``inf`` where that is the largest difference; empty where it is a number."""
    if stats.num_nan_alone:
        return "NaN"
    return "inf" if stats.num_inf_alone else ""


def say_spectrum(spectrum: Spectrum, left: str) -> str:
    """Whether a LoRA would hold the difference; ``left``: dtype and shape of the checkpoint's."""
    of, share = f"(of {spectrum.full:,})", f"{ENERGY:.0%}"
    if spectrum.rank is not None:
        text = f"a LoRA of rank {spectrum.rank:,} {of} would hold {share} of the difference"
    else:
        told = [rank for rank in _TOLD if rank in spectrum.held]
        parts = [f"of rank {rank} {spectrum.held[rank]:.0%}" for rank in told]
        text = f"of the difference {of} a LoRA would hold at least: {', '.join(parts)}"
    if spectrum.rounding >= _LEAST_ROUNDING:
        dtype = left.split(maxsplit=1)[0]
        text += f"; rounding to {dtype} alone makes an estimated {spectrum.rounding:.1%} of it"
        if spectrum.beyond_rounding not in (None, spectrum.rank):
            text += f", and {share} of the rest has rank {spectrum.beyond_rounding:,}"
    return text
