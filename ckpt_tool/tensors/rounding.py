"""How much casts change elements: the largest error of each kind of cast."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from math import inf

#: Names of two dtypes and the largest absolute rounding error of a finite element.
CastError = tuple[str, str, float]


class CastErrors:
    """The largest absolute rounding errors known, by dtype; threads may share one.

    An error is infinite where a finite element became infinite. What is known spares work: a cast
    need not measure errors that cannot be larger; but each is to find such an element.
    """

    def __init__(self) -> None:
        self._largest: dict[tuple[str, str], float] = {}
        self._finite: dict[tuple[str, str], float] = {}
        self._lock = threading.Lock()

    def largest(self, source: str, target: str) -> float:
        """The largest error of casts from ``source`` to ``target``, 0.0 where none is known."""
        return self._largest.get((source, target), 0.0)

    def largest_finite(self, source: str, target: str) -> float:
        """The same of those that are finite."""
        return self._finite.get((source, target), 0.0)

    def learn(self, source: str, target: str, error: float) -> None:
        """Raise the largest error of casts from ``source`` to ``target`` to ``error``."""
        pair = source, target
        if error > self._largest.get(pair, -1.0):
            with self._lock:
                self._largest[pair] = max(error, self._largest.get(pair, 0.0))
        if self._finite.get(pair, 0.0) < error < inf:
            with self._lock:
                self._finite[pair] = max(error, self._finite.get(pair, 0.0))

    def learn_all(self, errors: Iterable[CastError]) -> None:
        """:meth:`learn` each of ``errors``."""
        for source, target, error in errors:
            self.learn(source, target, error)

    def listed(self) -> tuple[CastError, ...]:
        """The casts that were made, ordered by name."""
        with self._lock:
            return tuple((*pair, error) for pair, error in sorted(self._largest.items()))
