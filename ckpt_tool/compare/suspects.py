"""Pairs that differ, and which of them are the worst."""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass, replace
from math import inf, nextafter
from typing import Protocol, TypeVar

from ckpt_tool.compare.stats import Stats
from ckpt_tool.tensors.lazy import LazyTensor

#: Of a distance: what one that was summed in float32 may be off by.
_ERROR = 1e-6


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


def count_near(order: Sequence[Suspect], most: int) -> int:
    """How many behind the worst ``most`` may be as far as the last of these; as many at most.

    Their distances are those of a ranking, in float32.
    """
    last = order[most - 1].distance if most else inf
    behind = (each.distance for each in order[most : 2 * most])
    return sum(last < inf and distance >= last * (1 - _ERROR) for distance in behind)


def keep_worst(found: Iterable[Suspect], ranked: Container[str], most: int) -> list[Suspect]:
    """The suspects; of those that were ``ranked`` the worst ``most`` keep their numbers.

    None of the others is worse than these, as a distance in float32 may say.
    """
    suspects = [*found]
    known = (each for each in suspects if each.name in ranked and each.stats is not None)
    shapes = (each for each in suspects if each.kind == "shape")
    worst = sort_worst_first([*shapes, *known])[:most]
    kept = {each.name for each in worst}
    last = worst[-1] if worst else None

    def settle(each: Suspect) -> Suspect:
        if each.name not in ranked or each.name in kept:
            return each
        distance = each.distance
        if last is not None and last.kind == each.kind and last.distance < distance < inf:
            distance = nextafter(last.distance, 0)
        return replace(each, stats=None, distance=distance)

    return [*map(settle, suspects)]
