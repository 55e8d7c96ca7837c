"""How much casts change elements: the largest error of each kind of cast."""

from __future__ import annotations

import threading
from collections.abc import Iterable

#: Names of two dtypes and the largest absolute rounding error of a finite element.
CastError = tuple[str, str, float]


class CastErrors:
    """The largest absolute rounding errors known, by dtype; threads may share one.

    An error is infinite where a finite element became infinite. What is known spares work: a cast
    need not measure errors that cannot be larger.
    """

    def __init__(self) -> None:
        self._largest: dict[tuple[str, str], float] = {}
        self._lock = threading.Lock()

    def largest(self, source: str, target: str) -> float:
        """The largest error of casts from ``source`` to ``target``, 0.0 where none is known."""
        return self._largest.get((source, target), 0.0)

    def learn(self, source: str, target: str, error: float) -> None:
        """Raise the largest error of casts from ``source`` to ``target`` to ``error``."""
        if error > self._largest.get((source, target), -1.0):
            with self._lock:
                known = self._largest.get((source, target), 0.0)
                self._largest[source, target] = max(error, known)

    def learn_all(self, errors: Iterable[CastError]) -> None:
        """:meth:`learn` each of ``errors``."""
        for source, target, error in errors:
            self.learn(source, target, error)

    def listed(self) -> tuple[CastError, ...]:
        """The casts that were made, ordered by name."""
        with self._lock:
            return tuple((*pair, error) for pair, error in sorted(self._largest.items()))
