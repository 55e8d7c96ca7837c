"""Work that makes many objects and no cycles of them, without the collector that looks for some."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def pause_collection() -> Iterator[None]:
    """Have no cycles looked for inside the block; afterwards it is as it was.

    Looking again and again at all that a parser has made takes longer than making it.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
