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
from collections.abc import Iterable, Iterator
from contextlib import suppress
from functools import partial
from itertools import count
from pathlib import Path

from ckpt_tool.common.errors import StoreError, UsageError
from ckpt_tool.common.remote.address import Address, find_address
from ckpt_tool.common.remote.files import ask, drop_files
from ckpt_tool.common.remote.folders import put, refuse_opening
from ckpt_tool.common.remote.naming import find_root, name_places, set_root
from ckpt_tool.common.remote.objects import RemoteObject

#: More than a run of a hundred steps on a thousand ranks has; whoever names more slipped.
_MOST_OBJECTS = 500_000

#: Folders in or beside a checkpoint in which its config and tokenizer may lie: verl's two, and
#: NeMo Automodel's.
CONFIG_FOLDERS = ("huggingface", "hf_config_and_tokenizer", ".hf_metadata")

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
        places = [(folder, _place(folder, address)) for folder in _list_folders(address)]
        known = [(int(folder.name), place) for folder, place in places if place.exists()]
        return max(known)[1] if known else _list(address)


def _list_folders(address: Address) -> Iterator[Path]:
    """Those of the newest listings of ``address`` and of each that is above it."""
    above: Address | None = address
    while above is not None:
        if above in _listed:
            yield _listed[above]
        above = above.parent


def look_again(path: str | os.PathLike[str]) -> Path:
    """What there is now at the address that ``path`` is or stands for, in the same place.

    What was opened there before cannot be read any more. Where nobody can say what there is, what
    was there stays. Raises what :func:`reach` does.
    """
    address = find_address(path)
    if address is None:
        return Path(path)
    with _lock:
        folder = _listed.get(address)
        if folder is None:
            return _list(address)
        found = ask(lambda: _gather(address))
        drop_files(str(folder))
        shutil.rmtree(folder, ignore_errors=True)
        return _fill(folder, address, found)


def spell(paths: Iterable[Path]) -> list[str]:
    """Paths as other processes can :func:`recall` them."""
    return [name_places(str(path)) for path in paths]


def _list(address: Address) -> Path:
    with _lock:
        found = ask(lambda: _gather(address))
        return _fill(Path(_make_root(), str(next(_numbers))), address, found)


def _gather(address: Address) -> list[RemoteObject]:
    """What is at and below ``address``, something at least."""
    from ckpt_tool.common.remote.listing import list_objects  # most have no address

    found: list[RemoteObject] = []
    for objects in list_objects(address):
        found += objects
        if len(found) > _MOST_OBJECTS:
            raise UsageError(
                f"{address}: there are more than {_MOST_OBJECTS:,} objects below it",
                hint="Name the folder of a checkpoint or of a run.",
            )
    if not any(each.name or each.size for each in found):  # an empty one may stand for a folder
        raise UsageError(
            f"{address}: nothing is there", hint=f"Look at what is: {_say_listing(address)}"
        )
    return found


def _fill(folder: Path, address: Address, found: Iterable[RemoteObject]) -> Path:
    place = _place(folder, address)
    put(place, found, address)
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
    for beside in (above, *map(above.join, CONFIG_FOLDERS)):
        with suppress(StoreError, OSError):
            found = ask(partial(list_folder, beside))
            found = [each for each in found if each.name]
            put(_place(folder, beside), found, beside)


def _place(folder: Path, address: Address) -> Path:
    return folder / address.scheme / address.bucket / address.key


def _make_root() -> str:
    import tempfile  # takes long to import

    if not find_root():
        root = os.path.realpath(tempfile.mkdtemp(prefix="ckpt-"))
        atexit.register(clear)
        set_root(root)
        sys.addaudithook(refuse_opening)
    return find_root()


def clear() -> None:
    """Remove all that stands for something: nothing of it is read any more."""
    if root := find_root():
        drop_files(root)
        _listed.clear()
        shutil.rmtree(root, ignore_errors=True)
