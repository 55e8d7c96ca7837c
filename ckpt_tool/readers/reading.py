"""Whom readers tell how far they are: they look at one file after the other, and say so here."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from ckpt_tool.common.progress import NoProgress, Progress

_listening: ContextVar[Progress] = ContextVar("listening", default=NoProgress())  # noqa: B039


@contextmanager
def tell(progress: Progress | None, total: int | None) -> Iterator[None]:
    """Have ``progress`` told of each file that is looked at inside the block, of ``total`` files.

    ``total``: None where nobody knows it before they are read.
    """
    if progress is None:
        yield
        return
    progress.start("reading metadata", total, "files")
    token = _listening.set(progress)
    try:
        yield
    finally:
        _listening.reset(token)


def note_file() -> None:
    """One more file was looked at, whatever was found in it."""
    _listening.get().advance(1)
