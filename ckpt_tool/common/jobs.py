"""How many threads an operation uses."""

from __future__ import annotations

import os

from ckpt_tool.common.errors import UsageError
from ckpt_tool.common.parallel import local_size


def jobs_of(wanted: int) -> int:
    """``wanted`` threads, or for 0 the default; UsageError for less."""
    if wanted < 0:
        raise UsageError(f"--jobs {wanted}: expected 1 or more")
    return wanted or default_jobs()


def default_jobs() -> int:
    """One per core, at least two: they keep a disk busy; more than four gain nothing.

    Processes of one run that share a machine share its cores.
    """
    return min(4, max(2, len(os.sched_getaffinity(0)) // local_size()))
