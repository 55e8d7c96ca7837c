"""Pointers of git-lfs: what is in a clone in place of a large file.

The format is three lines of text: https://github.com/git-lfs/git-lfs/blob/main/docs/spec.md
"""

from __future__ import annotations

_FIRST = b"version https://git-lfs.github.com/spec/v1"

#: What is wrong with one, and what to do about it.
REASON = "a pointer of git-lfs, not the file itself: run `git lfs pull`"
PULL = "Fetch the files themselves with `git lfs pull`."


def starts_pointer(head: bytes) -> bool:
    """Whether these are the first bytes of a pointer; 64 are enough."""
    return head.startswith(_FIRST)
