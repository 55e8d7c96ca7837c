"""Renames that are all done or all taken back, and one that exchanges two folders."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from pathlib import Path

from ckpt_tool.common.errors import OutputError

# linux/fcntl.h and linux/fs.h
_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


def exchange(one: Path, other: Path) -> bool:
    """Exchange what two paths name in one step, by ``renameat2(2)``; False where that fails.

    Not every file system can (NFS cannot), nor every C library.
    """
    call = getattr(ctypes.CDLL(None), "renameat2", None)
    if call is None:
        return False
    paths = (_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other))
    return bool(call(*paths, _RENAME_EXCHANGE) == 0)


def move_all(moves: Sequence[tuple[Path, Path]]) -> None:
    """Rename the first path of each pair to the second, in order; on failure take all back.

    Raises what the rename raised, or OutputError where something could not be taken back: it
    says where that is.
    """
    begun: list[tuple[Path, Path]] = []
    try:
        for source, target in moves:
            begun.append((source, target))
            source.rename(target)
    except BaseException as error:
        left = take_back(begun)
        if left:
            raise OutputError(f"{error}; and what was moved stays: {'; '.join(left)}") from error
        raise


def take_back(moves: Sequence[tuple[Path, Path]]) -> list[str]:
    """Undo renames, the last one first; some may not have happened. Says what cannot be."""
    left = []
    for source, target in reversed(moves):
        if os.path.lexists(source):
            continue
        try:
            target.rename(source)
        except OSError as error:
            left.append(f"{source} is now {target} ({error.strerror})")
    return left
