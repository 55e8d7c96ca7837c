"""Files that stand for objects: as long and as old, and empty (sparse: they take no room)."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from ckpt_tool.common.errors import UsageError
from ckpt_tool.common.remote.address import Address
from ckpt_tool.common.remote.files import add_file, drop_files, find_number
from ckpt_tool.common.remote.objects import RemoteObject

_LONGEST_NAME, _LONGEST_PATH = 255, 1000  # the system's is 4096 bytes


def refuse_opening(event: str, arguments: tuple[Any, ...]) -> None:
    """An audit hook: RuntimeError where a file is opened that stands for another."""
    if event != "open" or not isinstance(arguments[0], (str, bytes)):
        return
    path = os.fsdecode(arguments[0])
    if find_number(path):
        raise RuntimeError(f"{path}: stands for a remote file, and has no bytes of its own")


def put(place: Path, objects: Iterable[RemoteObject], address: Address) -> None:
    """Have files at and below ``place`` stand for objects at and below ``address``.

    UsageError for names that files cannot have, and where an object would be a folder, too.
    """
    for path, found in _find_paths(place, objects, address):
        text = str(path)
        if found is None:
            _make_folder(path)
            continue
        if (find_number(text) and path.exists()) or (not found.size and path.is_dir()):
            continue
        try:
            _make_folder(path.parent)
            descriptor = os.open(text, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0)
        except (FileExistsError, NotADirectoryError) as error:
            raise UsageError(
                f"{address}/{found.name}: is an object, and the beginning of others' names",
                hint="Name a folder in which that is not so.",
            ) from error
        try:
            os.truncate(descriptor, found.size)
            os.utime(descriptor, ns=(found.mtime_ns, found.mtime_ns))
        finally:
            os.close(descriptor)
        add_file(text, found)


def _make_folder(path: Path) -> None:
    """Make a folder and those above it; an empty object of its name was only a mark of it.

    Consoles and programs put such objects; FileExistsError or NotADirectoryError for one with
    bytes.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        blocking = next(each for each in (path, *path.parents) if each.is_file())
        if not find_number(str(blocking)) or blocking.stat().st_size:
            raise
        drop_files(str(blocking))
        blocking.unlink()
        _make_folder(path)


def _find_paths(
    place: Path, objects: Iterable[RemoteObject], address: Address
) -> Iterator[tuple[Path, RemoteObject | None]]:
    """What stands for each object; None beside a folder that a store has as an object of its own.

    UsageError for a name that no file of a folder can have.
    """
    for found in objects:
        names = found.name.split("/") if found.name else []
        is_folder = bool(names) and not names[-1]
        names = names[:-1] if is_folder else names
        path = place.joinpath(*names)
        if not all(map(_is_name, names)) or len(str(path)) > _LONGEST_PATH:
            raise UsageError(
                f"{address}: holds {found.name!r:.200}, which no file of a folder can be called",
                hint="Name a folder in which there is no such object.",
            )
        yield path, None if is_folder else found


def _is_name(name: str) -> bool:
    try:
        encoded = os.fsencode(name)
    except UnicodeEncodeError:  # half of a pair, which no encoding of text has
        return False
    return name not in ("", ".", "..") and "\0" not in name and len(encoded) <= _LONGEST_NAME
