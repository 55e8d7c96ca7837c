"""A local folder that stands for what lies at an address: names, sizes and times, and no bytes.

Whoever looks for files, and at what they are, finds them there as if they were here. Whoever reads
them goes through :mod:`ckpt_tool.common.regular`, which asks the store; to open one by itself is an
error, for its zeros would pass for weights. All that is of one listing lies in a folder of its own,
and goes when the process ends: what was opened stays what it was, whatever is listed later.
"""

from __future__ import annotations

import atexit
import os
import shutil
import sys
import threading
from collections.abc import Iterable
from contextlib import suppress
from itertools import count
from pathlib import Path

from ckpt_tool.common.errors import StoreError, UsageError
from ckpt_tool.common.remote.address import Address, find_address
from ckpt_tool.common.remote.files import drop_files
from ckpt_tool.common.remote.folders import put, refuse_opening
from ckpt_tool.common.remote.naming import find_root, name_places, set_root

#: More than a run of a hundred steps on a thousand ranks has; whoever names more slipped.
_MOST_OBJECTS = 500_000

#: Folders beside a checkpoint in which its config and tokenizer may lie.
_BESIDE = ("huggingface", "hf_config_and_tokenizer", ".hf_metadata")

_lock = threading.RLock()
_numbers = count()
_listed: dict[Address, Path] = {}  # the folder of the newest listing that an address has


def reach(path: str | os.PathLike[str]) -> Path:
    """``path``; where it is an address, the folder or file that stands for it, listed anew.

    UsageError where there is nothing at the address, or nothing that files can stand for;
    StoreError where the store is not reached or refuses.
    """
    address = Address.parse(path)
    return Path(path) if address is None else _list(address)


def recall(path: str | os.PathLike[str]) -> Path:
    """The same, as it was listed last, by itself or with what is above it."""
    address = Address.parse(path)
    if address is None:
        return Path(path)
    with _lock:
        above: Address | None = address
        while above is not None:
            place = _place(_listed[above], address) if above in _listed else None
            if place is not None and place.exists():
                return place
            above = above.parent
        return _list(address)


def look_again(path: str | os.PathLike[str]) -> Path:
    """What there is now at the address that ``path`` is or stands for, in the same place.

    What was opened there before cannot be read any more.
    """
    address = find_address(path)
    if address is None:
        return Path(path)
    with _lock:
        folder = _listed.get(address)
        if folder is not None:
            drop_files(str(folder))
            shutil.rmtree(folder, ignore_errors=True)
        return _list(address, folder)


def spell(paths: Iterable[Path]) -> list[str]:
    """Paths as other processes can :func:`recall` them."""
    return [name_places(str(path)) for path in paths]


def _list(address: Address, folder: Path | None = None) -> Path:
    from ckpt_tool.common.remote.listing import list_objects  # most have no address

    with _lock:
        folder = folder or Path(_make_root(), str(next(_numbers)))
        place, num_objects = _place(folder, address), 0
        for objects in list_objects(address):
            num_objects += len(objects)
            if num_objects > _MOST_OBJECTS:
                raise UsageError(
                    f"{address}: there are more than {_MOST_OBJECTS:,} objects below it",
                    hint="Name the folder of a checkpoint or of a run.",
                )
            put(place, objects, address)
        if not num_objects:
            raise UsageError(
                f"{address}: nothing is there", hint=f"Look at what is: {_say_listing(address)}"
            )
        _put_beside(folder, address)
        _listed[address] = folder
        return place


def _say_listing(address: Address) -> str:
    above = address.parent or address
    listing = {"s3": "aws s3 ls", "gs": "gcloud storage ls"}.get(address.scheme)
    return f"{listing} {above}/" if listing else str(above)


def _put_beside(folder: Path, address: Address) -> None:
    """What lies beside a checkpoint, too: its config may. Nothing where that may not be listed."""
    from ckpt_tool.common.remote.listing import list_folder

    above = address.parent
    if above is None or above.scheme.startswith("http"):
        return
    for beside in (above, *map(above.join, _BESIDE)):
        with suppress(StoreError, OSError):
            found = [each for each in list_folder(beside) if each.name]
            put(_place(folder, beside), found, beside)


def _place(folder: Path, address: Address) -> Path:
    return folder / address.scheme / address.bucket / address.key


def _make_root() -> str:
    import tempfile  # takes long to import

    if not find_root():
        root = os.path.realpath(tempfile.mkdtemp(prefix="ckpt-"))
        atexit.register(shutil.rmtree, root, ignore_errors=True)
        set_root(root)
        sys.addaudithook(refuse_opening)
    return find_root()
