"""Numbers as people read them: in tables, messages and reports."""

from __future__ import annotations

from collections.abc import Sequence


def format_bytes(count: float) -> str:
    """``1.98 GB``: decimal units, three digits."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 999.5:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB" if count < 999.5 else f"{count:,.0f} TB"


def format_count(count: int) -> str:
    """``494 M``: parameters as people say them."""
    value = float(count)
    for unit in ("", " K", " M", " B"):
        if value < 999.5:
            return f"{value:.3g}{unit}"
        value /= 1000
    return f"{value:.3g} T"


def format_seconds(seconds: float) -> str:
    """``48 s``, ``12 min``, ``3 h 05 min``: as exact as anybody waits for."""
    whole = round(seconds)
    if whole < 600:
        return f"{whole} s" if whole < 100 else f"{whole // 60} min {whole % 60:02} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02} min"


def count_noun(count: int, noun: str) -> str:
    """``1 tensor``, ``3 tensors``, ``2 copies``."""
    several = f"{noun[:-1]}ies" if noun.endswith("y") else f"{noun}s"
    return f"{count:,} {noun if count == 1 else several}"


#: Verbs as one does it; of any other an ``s`` is added.
_ONE = {"are": "is", "have": "has"}


def count_doing(count: int, noun: str, verb: str) -> str:
    """``1 tensor is``, ``3 tensors are``: ``verb`` as several do it."""
    return f"{count_noun(count, noun)} {_ONE.get(verb, verb + 's') if count == 1 else verb}"


def list_gaps(numbers: Sequence[int], start: int, stop: int) -> str:
    """``0-3, 7``: what a sorted list lacks of the numbers from ``start`` to below ``stop``."""
    gaps = []
    for before, after in zip([start - 1, *numbers], [*numbers, stop], strict=True):
        if after - before == 2:
            gaps.append(str(before + 1))
        elif after - before > 2:
            gaps.append(f"{before + 1}-{after - 1}")
    return ", ".join(gaps)


def join_words(words: Sequence[str]) -> str:
    """``a``, ``a and b``, ``a, b and c``: one word at least."""
    *most, last = words
    return f"{', '.join(most)} and {last}" if most else last


def add_article(noun: str) -> str:
    """``a DeepSpeed checkpoint``, ``an FSDP checkpoint``, ``rank files``.

    >>> [add_article(noun) for noun in ("FSDP checkpoint", "adapter", "model", "rank files")]
    ['an FSDP checkpoint', 'an adapter', 'a model', 'rank files']
    """
    if noun.endswith("files"):
        return noun
    return f"an {noun}" if noun[0] in "aeio" or noun.startswith("FSDP") else f"a {noun}"
