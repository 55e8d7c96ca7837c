"""Putting a prepared folder in the place of an output, and what a run that was killed there left.

Where the system can exchange two folders, the output is never absent. Elsewhere there are two
renames, and in a mount point a rename per entry: the journal says so before the first, so that the
next run takes back what was begun, or clears up behind what was done.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ckpt_tool.common.errors import OutputError
from ckpt_tool.writers.journal import Journal, Replacing
from ckpt_tool.writers.renames import exchange, move_all, take_back
from ckpt_tool.writers.target import is_mount, list_entries, make_old_prefix

_MANY = 5

#: Folders that exist for a moment, to see whether others can be renamed.
_PROBE = ".ckpt-probe"
#: How systems say that a folder stays where it is: of a lower layer of an overlay file system; of
#: another user, where each may only rename what is his own.
_UNMOVABLE = (errno.EXDEV, errno.EPERM)


@dataclass(frozen=True)
class Place:
    """An output and the folder that becomes it. ``partial`` is in ``out`` if that is a mount."""

    out: Path
    partial: Path

    @property
    def is_inside(self) -> bool:
        """Whether the entries of the folder are moved, because nothing can take its own place."""
        return self.partial.parent == self.out


def require_movable(place: Place) -> None:
    """OutputError where what is to be replaced cannot be renamed; better known before than after.

    It is renamed over a folder that is not empty. No system does that, but one that would not
    rename it at all says so first.
    """
    names = list_entries(place.out) if place.is_inside else [""]
    probe = place.partial / _PROBE
    (probe / _PROBE).mkdir(parents=True)
    try:
        for folder in (place.out / name for name in names):
            try:
                if folder.is_dir() and not folder.is_symlink():
                    folder.rename(probe)
            except OSError as error:
                if error.errno in _UNMOVABLE:
                    raise OutputError(
                        f"{folder}: cannot give way to what would be written: it cannot be renamed"
                        f" ({error.strerror})",
                        hint="It may be part of a container's image, or another user's. Remove it,"
                        " or choose another output folder.",
                    ) from error
    finally:
        shutil.rmtree(probe)


def become_output(place: Place, journal: Journal, *, replace: bool) -> Path | None:
    """Rename the folder to the output; the place of what was there.

    Raises what a rename raised: the output is then what it was.
    """
    if not (replace and os.path.lexists(place.out)):
        place.partial.rename(place.out)
        return None
    with _noted(place, journal, ()) as old:
        if exchange(place.partial, place.out):
            return _set_aside(place.partial, old)
        move_all([(place.out, old), (place.partial, place.out)])
    return old


def move_into_output(place: Place, journal: Journal, entries: Sequence[str]) -> Path:
    """Move entries of the folder up into the output, in order; the place of what was there."""
    there = list_entries(place.out)
    moves = [(place.partial / name, place.out / name) for name in entries]
    with _noted(place, journal, entries) as old:
        move_all([(place.out / name, old / name) for name in there] + moves)
    return old


@contextlib.contextmanager
def _noted(place: Place, journal: Journal, entries: Sequence[str]) -> Iterator[Path]:
    """An empty folder of a new name for what is replaced; gone again where that fails.

    It is noted before it is made: a run that is killed leaves none that the next does not know.
    """
    old = place.partial.parent / f"{make_old_prefix(place.out)}{secrets.token_hex(4)}"
    inode = place.partial.lstat().st_ino
    journal.note_replacing(Replacing(old.name, inode, tuple(entries)))
    old.mkdir(0o700)
    try:
        yield old
    except BaseException:
        with contextlib.suppress(OSError):
            old.rmdir()
        raise


def _set_aside(partial: Path, old: Path) -> Path:
    """The exchange has been done: what was there is now where the folder was."""
    try:
        partial.rename(old)
    except OSError:  # no reason to say that the output is not in its place
        with contextlib.suppress(OSError):
            old.rmdir()
        return partial
    return old


def remove_old(old: Path, out: Path) -> list[str]:
    """Remove what an output took the place of; a warning where that cannot be."""
    try:
        shutil.rmtree(old)
    except OSError as error:
        if os.path.lexists(old):
            return [f"{old}: what was in {out} before, could not be removed ({error.strerror})"]
    return []


def settle(place: Place, found: Replacing) -> tuple[bool, list[str]]:
    """What a run left that was killed while it replaced an output: whether it was done; warnings.

    If it was, what was there before is removed; if not, it is there again. OutputError, which says
    where it is, if it cannot be put back.
    """
    old = place.partial.parent / found.old
    if not found.old.startswith(make_old_prefix(place.out)):
        return False, []  # no journal of ours says that
    if _is_done(place, found):
        shutil.rmtree(place.partial, ignore_errors=True)
        return True, remove_old(old, place.out) if os.path.lexists(old) else []
    if not os.path.lexists(old):
        return False, []
    return False, _put_back(place, old, found)


def _is_done(place: Place, found: Replacing) -> bool:
    if place.is_inside:
        left = any(os.path.lexists(place.partial / name) for name in found.entries)
        return not left and all(os.path.lexists(place.out / name) for name in found.entries)
    try:
        there = place.out.lstat().st_ino
    except FileNotFoundError:
        return False
    return there == found.inode or not os.path.lexists(place.partial)


def _put_back(place: Place, old: Path, found: Replacing) -> list[str]:
    before = sorted(os.listdir(old))  # noqa: PTH208
    if place.is_inside:
        moves = [(place.out / name, old / name) for name in before]
        moves += [(place.partial / name, place.out / name) for name in found.entries]
    else:
        moves = [(place.out, old)] if not os.path.lexists(place.out) and before else []
    left = take_back([move for move in moves if os.path.lexists(move[1])])
    if left:
        raise OutputError(
            f"{place.out}: an earlier run was killed while it replaced it, and what was there"
            f" before cannot be put back: {'; '.join(left[:_MANY])}"
        )
    with contextlib.suppress(OSError):
        old.rmdir()  # gone already, where all of it was renamed
    if not moves:
        return []
    return [f"{place.out}: an earlier run was killed while it replaced it: it is what it was again"]


def name_stale(out: Path) -> list[str]:
    """A line for each folder with what an output was before, which earlier runs did not remove."""
    folder, prefix = out if is_mount(out) else out.parent, make_old_prefix(out)
    with contextlib.suppress(OSError):
        return [
            f"{folder / name}: what was in {out} before an earlier run: remove it if unwanted"
            for name in sorted(os.listdir(folder))  # noqa: PTH208
            if name.startswith(prefix)
        ]
    return []
