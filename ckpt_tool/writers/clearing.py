"""What an earlier run left where an output is prepared: what can stay, and what is removed."""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from pathlib import Path

from ckpt_tool.common.errors import OutputError
from ckpt_tool.writers.stream import WrittenFile, digest_file


def remove_folder(folder: Path) -> None:
    """OutputError where it cannot be removed; it need not be there."""
    try:
        shutil.rmtree(folder)
    except FileNotFoundError:
        pass
    except OSError as error:
        raise OutputError(
            f"{folder}: what an earlier run left cannot be removed ({error.strerror})",
            hint="Remove it, or choose another output folder.",
        ) from error


def drop_folder(folder: Path) -> None:
    """Remove a folder as far as that goes, also an empty one that may not be listed (umask)."""
    shutil.rmtree(folder, ignore_errors=True)
    with suppress(OSError):
        folder.rmdir()


def clear_but(folder: Path, kept: set[str]) -> None:
    """Remove everything but the files that are kept, and the folders in which they are."""
    for parent, names, files in os.walk(folder, topdown=False):
        for name in files:
            path = Path(parent, name)
            if path.relative_to(folder).as_posix() not in kept:
                path.unlink()
        for name in names:
            path = Path(parent, name)
            if path.is_symlink():
                path.unlink()
            elif not any(path.iterdir()):
                path.rmdir()


def is_intact(folder: Path, written: WrittenFile) -> bool:
    """Whether a file that was finished is what it was: a file, of its size and digest."""
    path = folder / written.name
    below = (path, *path.parents)[: len(path.relative_to(folder).parts)]
    if any(each.is_symlink() for each in below):
        return False
    try:
        is_whole = path.is_file() and path.stat().st_size == written.size
        return is_whole and digest_file(path) == written.digest
    except OSError:
        return False
