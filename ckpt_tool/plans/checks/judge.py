"""Somebody who knows what an output has to be, and says before it appears whether it is that."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ckpt_tool.common.errors import UsageError
from ckpt_tool.plans.options import LoadCheck


@dataclass(frozen=True)
class Verdict:
    """``check``: what opened; None where nobody could say, and ``warnings`` say why."""

    check: LoadCheck | None = None
    warnings: tuple[str, ...] = ()


def say_unheld(reason: str) -> str:
    """The warning that nobody could say whether a result opens."""
    return f"not held against the architecture of its config: {reason}"


class Judge:
    """Asked before a byte is written, heard before the output appears; this one has no objection.

    ``name``: whom one waits for. ``is_early``: it is heard so early that what was written until
    then need not be kept.
    """

    name = ""
    is_early = False

    def start(self) -> None:
        """Ask. Raises what is known to be wrong already: MappingError, UsageError."""

    def listen(self) -> None:
        """While bytes are moved: raise what :meth:`finish` would, where that is known by now.

        Called by several threads, and often.
        """

    @property
    def is_waited_for(self) -> bool:
        """Whether :meth:`finish` would take a while."""
        return False

    def finish(self, folder: Path | None) -> Verdict:
        """The verdict, waited for; ``folder``: what was written, None where nothing was.

        MappingError that lists what does not fit, UsageError where it cannot be asked.
        """
        return Verdict()

    def stop(self) -> None:
        """Nobody wants to know any more."""


class Helpless(Judge):
    """Nobody can say, for this ``reason``; an error where somebody ``must``."""

    def __init__(self, reason: str, *, must: bool) -> None:
        self._reason = reason
        self._must = must

    def start(self) -> None:
        """UsageError where somebody must say."""
        if self._must:
            raise UsageError(
                f"`write.check_load`: {self._reason}",
                hint="Leave `write.check_load` out: the rest is checked all the same.",
            )

    def finish(self, folder: Path | None) -> Verdict:
        """No verdict, and why."""
        return Verdict(None, (say_unheld(self._reason),))
