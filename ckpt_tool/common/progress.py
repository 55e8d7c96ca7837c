"""How operations tell a caller that they advance, without printing."""

from __future__ import annotations

from typing import Protocol

#: What most work is counted in.
BYTES = "bytes"


class Progress(Protocol):
    """Gets told what is being done; methods may be called from several threads."""

    def announce(self, work: str) -> None:
        """What all of the work is, in words, once that is known."""

    def start(self, what: str, total: int | None, unit: str = BYTES) -> None:
        """A new phase of ``total`` bytes, or of what ``unit`` is called, begins.

        None: of so many that nobody knows yet, or of a wait that nobody can measure.
        """

    def advance(self, amount: int) -> None:
        """``amount`` more of them are done."""


class NoProgress:
    """Listens to nothing."""

    def announce(self, work: str) -> None:
        """Ignore it."""

    def start(self, what: str, total: int | None, unit: str = BYTES) -> None:
        """Ignore it."""

    def advance(self, amount: int) -> None:
        """Ignore it."""
