"""Folding names that differ in their numbers: ``model.layers.{0..27}.mlp.up_proj.weight``."""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import prod

#: A number that stands alone in a name and is written as ``str`` would: it can be counted.
_NUMBER = re.compile(r"(?<![0-9A-Za-z_])(0|[1-9][0-9]{0,17})(?![0-9A-Za-z_])")

_Slots = tuple[frozenset[int], ...]


@dataclass(frozen=True, slots=True)
class Fold:
    """Names that one pattern stands for exactly; ``first`` is one of them."""

    pattern: str
    first: str
    count: int


def fold(names: Mapping[str, Hashable]) -> list[Fold]:
    """Patterns that together stand for ``names``, each of them once, in order of appearance.

    Names are folded only with those of the same value (their shape, say). Every pattern is the
    full product of its ranges: nothing is claimed that is not there.
    """
    groups: dict[tuple[tuple[str, ...], Hashable], list[tuple[int, ...]]] = {}
    for name, value in names.items():
        pieces = _NUMBER.split(name)  # text, number, text, number, ..., text
        numbers = tuple(map(int, pieces[1::2]))
        groups.setdefault((tuple(pieces[::2]), value), []).append(numbers)
    folds = []
    for (texts, _), rows in groups.items():
        for slots in _products(rows):
            pattern = _join(texts, [_span(values) for values in slots])
            first = _join(texts, [str(min(values)) for values in slots])
            folds.append(Fold(pattern, first, prod(map(len, slots))))
    return folds


def mask_numbers(name: str) -> str:
    """What names that could be folded have in common."""
    return _NUMBER.sub("#", name)


def _products(numbers: Iterable[tuple[int, ...]]) -> list[_Slots]:
    """Cover a set of tuples with disjoint products, widening one slot after another."""
    rows: list[_Slots] = [tuple(map(_single, row)) for row in numbers]
    for slot in reversed(range(len(rows[0]))):
        merged: dict[_Slots, set[int]] = {}
        for row in rows:
            others = row[:slot] + row[slot + 1 :]
            merged.setdefault(others, set()).update(row[slot])
        rows = [
            (*others[:slot], frozenset(values), *others[slot:]) for others, values in merged.items()
        ]
    return rows


@lru_cache(maxsize=4096)
def _single(number: int) -> frozenset[int]:
    """A set of one: the same few numbers are in all names."""
    return frozenset((number,))


def _span(values: frozenset[int]) -> str:
    """``7`` for one value, ``{0..3,8}`` for several."""
    runs: list[list[int]] = []
    for value in sorted(values):
        if runs and value == runs[-1][1] + 1:
            runs[-1][1] = value
        else:
            runs.append([value, value])
    texts = [str(a) if a == b else f"{a}..{b}" for a, b in runs]
    return texts[0] if len(values) == 1 else "{" + ",".join(texts) + "}"


def _join(texts: Sequence[str], numbers: Sequence[str]) -> str:
    return texts[0] + "".join(n + t for n, t in zip(numbers, texts[1:], strict=True))
