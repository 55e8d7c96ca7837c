"""What can go wrong between an object store and who reads it, as requests for a proxy."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase

ALWAYS = math.inf


@dataclass
class Request:
    """What was asked, and answered: ``size``: how many bytes of a body were sent so far."""

    method: str
    bucket: str
    key: str
    query: str = ""
    range: str = ""
    status: int = 0
    size: int = 0


@dataclass
class Fault:
    """What happens to the next ``times`` requests for keys like ``key``.

    ``status``: refused with it, and ``code`` as S3 names it; 0: answered. Of a body ``after`` bytes
    come, and then: the connection is cut (``cut``), or nothing for ``stall`` seconds. ``change`` is
    given the body, in place of which its result comes. ``before`` is run before the request is
    passed on. ``at``: a byte that has to be in the range that is asked for; None: any range.
    """

    times: float = 1
    method: str = "GET"
    key: str = "*"
    status: int = 0
    code: str = ""
    cut: bool = False
    stall: float = 0
    after: int = 0
    change: Callable[[bytes], bytes] | None = None
    before: Callable[[], object] | None = None
    at: int | None = None

    def meets(self, request: Request) -> bool:
        return (
            self.times > 0
            and request.method == self.method
            and fnmatchcase(f"{request.bucket}/{request.key}", f"*/{self.key}")
            and (self.at is None or _has(request.range, self.at))
        )


def _has(asked: str, at: int) -> bool:
    """Whether a byte is in a range, `bytes=FIRST-LAST`; all is asked for where there is none."""
    first, _, last = asked.removeprefix("bytes=").partition("-")
    return int(first or 0) <= at and (not last or at <= int(last))


class Faults:
    """Those that are still to come."""

    def __init__(self) -> None:
        self.planned: list[Fault] = []
        self._lock = threading.Lock()

    def take(self, request: Request) -> Fault | None:
        """The first that meets the request; once less is left of it."""
        with self._lock:
            for fault in self.planned:
                if fault.meets(request):
                    fault.times -= 1
                    return fault
        return None
