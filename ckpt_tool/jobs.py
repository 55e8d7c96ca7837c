"""How many threads an operation uses."""

from __future__ import annotations

import os


def default_jobs() -> int:
    """One per core, at least two: they keep a disk busy; more than four gain nothing."""
    return min(4, max(2, len(os.sched_getaffinity(0))))
