"""Leaving a staging folder on an error, and what is said then of what is kept, or in its place."""

from __future__ import annotations

from ckpt_tool.common.errors import (
    CkptError,
    OutputError,
    lacks_memory,
    say_cause,
    say_lack_of_memory,
)
from ckpt_tool.writers.preparation import Preparation


def explain(error: BaseException, staging: Preparation) -> BaseException:
    """Leave ``staging``; the error to raise for ``error``, with what is kept and how to go on."""
    if staging.is_published:
        return _explain_late(error, staging)
    note = staging.abandon()
    if isinstance(error, OSError):
        error = OutputError(f"{staging.out}: {say_cause(error)}")
    elif lacks_memory(error):
        error = OutputError(f"{staging.out}: {say_lack_of_memory()}")
    if note and isinstance(error, CkptError):
        error.hint = f"{error.hint} {note}".strip()
    elif note and isinstance(error, KeyboardInterrupt):
        error = KeyboardInterrupt(note)
    return error


def _explain_late(error: BaseException, staging: Preparation) -> BaseException:
    """The same where the output is in its place already: nothing is lost, and nothing is kept."""
    staging.leave()
    note = f"{staging.out} is complete and in its place"
    if isinstance(error, OSError):
        return OutputError(f"{note}, but what follows failed: {say_cause(error)}")
    return KeyboardInterrupt(f"{note}.") if isinstance(error, KeyboardInterrupt) else error
