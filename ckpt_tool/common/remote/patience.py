"""Asking again, where a server is busy or a connection broke."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TypeVar

T = TypeVar("T")

#: Seconds between attempts.
_PAUSES = (0.2, 0.4, 0.8, 1.6)
#: Seconds after which nothing is asked again: a silent server takes long for each attempt.
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
    for pause in _PAUSES if pauses is None else pauses:
        try:
            return work()
        except Exception as error:
            if not is_passing(error) or time.monotonic() > begun + _PATIENCE:
                raise
        time.sleep(pause)
    return work()
