"""Asking again, where a server is busy or a connection broke."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TypeVar

T = TypeVar("T")

#: Seconds between attempts.
_PAUSES = (0.2, 0.4, 0.8, 1.6)
#: Seconds after which nothing is asked again, but for once: a silent server takes long for each
#: attempt, as long as all of this, and a single silent connection says nothing of the server.
_PATIENCE = 30.0


def ask_again(
    work: Callable[[], T],
    is_passing: Callable[[Exception], bool],
    pauses: Sequence[float] | None = None,
) -> T:
    """What ``work`` returns, at the first attempt or a later one; raises what the last one does.

    ``is_passing``: whether what was raised may be otherwise in a moment. ``pauses``: seconds
    between attempts, some usual ones without it.
    """
    begun = time.monotonic()
    for attempt, pause in enumerate(_PAUSES if pauses is None else pauses):
        try:
            return work()
        except Exception as error:
            is_late = attempt > 0 and time.monotonic() > begun + _PATIENCE
            if is_late or not is_passing(error):
                raise
        time.sleep(pause)
    return work()
