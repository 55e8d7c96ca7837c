"""Pairs that differ, and which of them are the worst."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol, TypeVar

from ckpt_tool.compare.stats import Stats
from ckpt_tool.tensors.lazy import LazyTensor


@dataclass(frozen=True)
class Suspect:
    """A name whose two tensors differ: ``kind`` is ``values``, ``shape`` or ``dtype``.

    ``stats``: the numbers; None where shapes differ, and where nobody asked for them. ``distance``
    and ``digests``: what they have of these, known of all that have one shape. ``first``: the
    first element that differs, where it is known.
    """

    name: str
    kind: str
    left: LazyTensor
    right: LazyTensor
    stats: Stats | None = None
    distance: float = 0.0
    digests: tuple[str, str] | None = None
    first: int | None = None


class Differing(Protocol):
    """What is known of a tensor that differs."""

    @property
    def kind(self) -> str: ...
    @property
    def distance(self) -> float: ...


AnyDiffering = TypeVar("AnyDiffering", bound=Differing)


def sort_worst_first(found: Iterable[AnyDiffering]) -> list[AnyDiffering]:
    """Other shapes first, then other dtypes, then values by their relative distance."""

    def rank_badness(each: Differing) -> tuple[int, float]:
        return ("shape", "dtype", "values").index(each.kind), -each.distance

    return sorted(found, key=rank_badness)
