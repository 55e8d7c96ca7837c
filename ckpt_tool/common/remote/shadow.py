"""A local folder that stands for what lies at an address: names, sizes and times, and no bytes.

Whoever looks for files, and at what they are, finds them there as if they were here: empty files as
long as the objects are (sparse: they take no room). Whoever reads them goes through
:mod:`ckpt_tool.common.regular`, which asks the store; to open one by itself is an error, for its
zeros would pass for weights. The folder is listed once, and goes when the process ends.
"""

from __future__ import annotations

import atexit
import os
import shutil
import sys
import tempfile
import threading
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from ckpt_tool.common.errors import StoreError, UsageError
from ckpt_tool.common.remote.address import Address, find_address
from ckpt_tool.common.remote.files import add_file, drop_files, find_number
from ckpt_tool.common.remote.listing import list_folder, list_objects
from ckpt_tool.common.remote.naming import find_root, name_places, set_root
from ckpt_tool.common.remote.objects import RemoteObject

#: More than a run of a hundred steps on a thousand ranks has; whoever names more slipped.
_MOST_OBJECTS = 500_000
_LONGEST_NAME, _LONGEST_PATH = 255, 1000  # the system's is 4096 bytes

#: Folders beside a checkpoint in which its config and tokenizer may lie.
_BESIDE = ("huggingface", "hf_config_and_tokenizer", ".hf_metadata")

_lock = threading.RLock()
_made: dict[Address, Path] = {}


def reach(path: str | os.PathLike[str]) -> Path:
    """``path``; where it is an address, the folder or file that stands for it.

    UsageError where there is nothing at the address, or nothing that files can stand for;
    StoreError where the store is not reached or refuses.
    """
    address = Address.parse(path)
    if address is None:
        return Path(path)
    with _lock:
        if not _is_listed(address):
            _made[address] = _make(address)
        return _place(address)


def _is_listed(address: Address) -> bool:
    """Whether what is at ``address`` was listed, by itself or with what is above it."""
    above: Address | None = address
    while above is not None and above not in _made:
        above = above.parent
    return above is not None and (above == address or _place(address).exists())


def look_again(path: str | os.PathLike[str]) -> Path:
    """The same, with what has come, changed and gone at the address since it was listed."""
    address = find_address(path)
    if address is None:
        return Path(path)
    with _lock:
        for known in [known for known in _made if _is_below(known, address)]:
            del _made[known]
        place = _place(address)
        drop_files(str(place))
        if place.is_dir():
            shutil.rmtree(place)
        else:
            place.unlink(missing_ok=True)
        return reach(str(address))


def _is_below(known: Address, address: Address) -> bool:
    return f"{known}/".startswith(f"{address}/") or f"{address}/".startswith(f"{known}/")


def spell(paths: Iterable[Path]) -> list[str]:
    """Paths as other processes can :func:`reach` them."""
    return [name_places(str(path)) for path in paths]


def _make(address: Address) -> Path:
    place, count = _place(address), 0
    for objects in list_objects(address):
        count += len(objects)
        if count > _MOST_OBJECTS:
            raise UsageError(
                f"{address}: there are more than {_MOST_OBJECTS:,} objects below it",
                hint="Name the folder of a checkpoint or of a run.",
            )
        _put(place, objects, address)
    if not count:
        raise UsageError(
            f"{address}: nothing is there", hint=f"Look at what is: {_say_listing(address)}"
        )
    _put_beside(address)
    return place


def _say_listing(address: Address) -> str:
    above = address.parent or address
    listing = {"s3": "aws s3 ls", "gs": "gcloud storage ls"}.get(address.scheme)
    return f"{listing} {above}/" if listing else str(above)


def _put_beside(address: Address) -> None:
    """What lies beside a checkpoint, too: its config may. Nothing where that may not be listed."""
    above = address.parent
    if above is None or above.scheme.startswith("http"):
        return
    for folder in (above, *map(above.join, _BESIDE)):
        with suppress(StoreError, OSError):
            listed = list_folder(folder)
            _put(_place(folder), [each for each in listed if each.name], folder)


def _place(address: Address) -> Path:
    return Path(_make_root(), address.scheme, address.bucket, address.key)


def _make_root() -> str:
    if not find_root():
        root = os.path.realpath(tempfile.mkdtemp(prefix="ckpt-"))
        atexit.register(shutil.rmtree, root, ignore_errors=True)
        set_root(root)
        sys.addaudithook(_refuse_opening)
    return find_root()


def _refuse_opening(event: str, arguments: tuple[Any, ...]) -> None:
    if event != "open" or not isinstance(arguments[0], str) or not find_number(arguments[0]):
        return
    raise RuntimeError(f"{arguments[0]}: stands for a remote file, and has no bytes of its own")


def _put(place: Path, objects: Iterable[RemoteObject], address: Address) -> None:
    for path, found in _find_paths(place, objects, address):
        text = str(path)
        if found is None:
            path.mkdir(parents=True, exist_ok=True)
            continue
        if find_number(text) and path.exists():
            continue
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(text, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC)
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
