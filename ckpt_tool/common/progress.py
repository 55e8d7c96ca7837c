"""How operations tell a caller that they advance, without printing."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Gets told what is being done; methods may be called from several threads."""

    def start(self, what: str, total: int | None) -> None:
        """A new phase of ``total`` bytes begins; None: of a wait that nobody can measure."""

    def advance(self, amount: int) -> None:
        """``amount`` more bytes are done."""


class NoProgress:
    """Listens to nothing."""

    def start(self, what: str, total: int | None) -> None:
        """Ignore it."""

    def advance(self, amount: int) -> None:
        """Ignore it."""
