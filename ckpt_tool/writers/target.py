"""Where an output goes: whether it may, where it is prepared, and whether there is room."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from ckpt_tool.common.errors import OutputError

#: In an output that is a mount point: where it is prepared, the journal of that, and how the names
#: of folders begin with what was there before. Beside an output they begin with ``.<name>``.
PARTIAL, _JOURNAL, _OLD = ".ckpt-partial", ".ckpt-journal", ".ckpt-old-"

#: What a file system has in its root by itself.
_OF_FILE_SYSTEMS = "lost+found"

#: The folder that tools of the Hub keep in that of a model for themselves.
_OF_HUB_TOOLS = (".cache", "huggingface")

_LISTED = 5


def is_mount(out: Path) -> bool:
    """Whether a file system is mounted at ``out``, so that nothing can be renamed to it.

    A folder of the same file system may be mounted there: then only the kernel's number of the
    mount says so.
    """
    return out.is_dir() and (os.path.ismount(out) or _mount_id(out) != _mount_id(out.parent))


def _mount_id(folder: Path) -> str:
    """The number of the mount in which a folder is; empty where the system does not say."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        rows = Path(f"/proc/self/fdinfo/{descriptor}").read_text().splitlines()
    except OSError:
        return ""
    finally:
        os.close(descriptor)
    return next((row for row in rows if row.startswith("mnt_id:")), "")


def make_partial_path(out: Path) -> Path:
    """The folder in which ``out`` is prepared: beside it, or in it where it is a mount point."""
    return out / PARTIAL if is_mount(out) else out.parent / f".{out.name}.ckpt-partial"


def make_journal_path(out: Path) -> Path:
    """The journal of :func:`make_partial_path`'s folder, beside that."""
    return out / _JOURNAL if is_mount(out) else out.parent / f".{out.name}.ckpt-journal"


def make_old_prefix(out: Path) -> str:
    """How names of folders begin that hold what ``out`` was; they lie beside the journal."""
    return _OLD if is_mount(out) else f".{out.name}{_OLD}"


def list_entries(out: Path) -> list[str]:
    """What is in ``out``, sorted; in a mount point without what is there while it is written."""
    names = {path.name for path in out.iterdir()}
    if is_mount(out):
        names -= {PARTIAL, _JOURNAL, _OF_FILE_SYSTEMS}
        names = {name for name in names if not name.startswith(_OLD)}
    return sorted(names)


def list_files(folder: Path) -> set[str]:
    """The files of an output, and of the folders in it, by relative names with ``/``.

    A link is one of them, wherever it leads; nothing is listed behind it. Without what tools of the
    Hub keep there for themselves.
    """
    found = set()
    for name in list_entries(folder):
        path = folder / name
        inside = path.rglob("*") if path.is_dir() and not path.is_symlink() else (path,)
        files = (file for file in inside if file.is_symlink() or not file.is_dir())
        found |= {file.relative_to(folder) for file in files}
    hidden = len(_OF_HUB_TOOLS)
    return {
        file.as_posix()
        for file in found
        if file.parts[:hidden] != _OF_HUB_TOOLS or len(file.parts) == hidden
    }


def check_target(
    out: Path, *, replace: bool, protected: Sequence[Path], faults: Sequence[str] = ()
) -> None:
    """OutputError unless ``out`` may be written.

    It must be absent or empty, or ``replace`` is set; and it must not be, or contain, any of the
    ``protected`` paths, which are still to be read. ``faults``: why what is there is not what
    would be written, where somebody has looked.
    """
    real = _find_real(out)
    for path in protected:
        source = Path(os.path.realpath(path))
        if real == source or real in source.parents:
            raise OutputError(
                f"{out}: is or contains the checkpoint itself ({path})",
                hint="Choose another output folder.",
            )
    if not out.exists():
        return
    if not out.is_dir():
        raise OutputError(f"{out}: exists and is not a folder")
    if list_entries(out) and not replace:
        raise OutputError(
            f"{out}: exists and is not empty{say_faults(faults)}",
            hint="Choose another folder, or replace it with `write.overwrite=True`.",
        )


def _find_real(out: Path) -> Path:
    """Where ``out`` lies, links followed; OutputError where they lead round in a circle."""
    try:
        return Path(os.path.realpath(out, strict=True))
    except OSError as error:
        if error.errno != errno.ELOOP:
            return Path(os.path.realpath(out))  # it, or a folder above it, is still to be made
        raise OutputError(
            f"{out}: leads nowhere: {error.filename} is a link that leads back to itself",
            hint="Remove it, or choose another output folder.",
        ) from error


def say_faults(faults: Sequence[str]) -> str:
    """Why what is there is not what would be written, as the end of a sentence."""
    if not faults:
        return ""
    more = f"; and {len(faults) - _LISTED} more" if len(faults) > _LISTED else ""
    return f", and is not what would be written: {'; '.join(faults[:_LISTED])}{more}"


def check_space(out: Path, needed: int, finished: Mapping[str, int] | None = None) -> None:
    """OutputError unless there is room for ``needed`` bytes where ``out`` is prepared.

    What an earlier run left there counts as room: it is kept, written again or cleared. What is
    ``finished``, sizes by name, counts whole, however little of the disk a file system that
    compresses says that it takes.
    """
    partial = make_partial_path(out)
    place = partial.parent.absolute()
    while not place.exists():
        place = place.parent
    free, left = shutil.disk_usage(place).free, _bytes_on_disk(partial, finished or {})
    if free + left < needed:
        also = f", and {left:,} are in {partial}" if left else ""
        raise OutputError(
            f"{out}: needs {needed:,} bytes, {free:,} are free on its file system{also}",
            hint="Free some space, choose another place, or a smaller `dtype`.",
        )


def _bytes_on_disk(folder: Path, finished: Mapping[str, int]) -> int:
    """Bytes that the files of a folder take, reserved space included; 0 where it is absent.

    Another run may remove them meanwhile.
    """
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            path = Path(parent, name)
            with contextlib.suppress(OSError):
                found = path.lstat()
                taken = found.st_blocks * 512
                if finished.get(path.relative_to(folder).as_posix()) == found.st_size:
                    taken = max(taken, found.st_size)
                total += taken
    return total
