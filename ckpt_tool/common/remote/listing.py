"""What there is at an address: objects with their sizes, times and ETags."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from typing import Any

from ckpt_tool.common.errors import StoreError
from ckpt_tool.common.remote.address import Address
from ckpt_tool.common.remote.failures import explain
from ckpt_tool.common.remote.hub import list_repository
from ckpt_tool.common.remote.objects import RemoteObject, make_object
from ckpt_tool.common.remote.stores import open_store
from ckpt_tool.common.remote.web_folders import list_url

_PER_REQUEST = 1000


def list_objects(address: Address) -> Iterator[Sequence[RemoteObject]]:
    """All objects at and below ``address``, some at a time; nothing where there are none.

    StoreError where the store is not reached or refuses.
    """
    return LISTERS[address.scheme](address)


def _list_bucket(address: Address) -> Iterator[Sequence[RemoteObject]]:
    import obstore

    store, found = open_store(address), False
    try:
        for rows in obstore.list(store, address.key or None, chunk_size=_PER_REQUEST):
            found = True
            yield [_make(row, store, address) for row in rows]
        if address.key and not found:
            yield [_make(obstore.head(store, address.key), store, address)]
    except FileNotFoundError as error:
        if isinstance(explained := explain(error, address), FileNotFoundError):
            return
        raise explained from error
    except Exception as error:
        raise explain(error, address) from error


def list_folder(address: Address) -> Sequence[RemoteObject]:
    """The objects in a folder, not those of the folders in it."""
    import obstore

    if LISTERS[address.scheme] is not _list_bucket:
        below = chain.from_iterable(list_objects(address))
        return [found for found in below if "/" not in found.name]

    store = open_store(address)
    try:
        rows = obstore.list_with_delimiter(store, address.key or None)["objects"]
    except Exception as error:
        raise explain(error, address) from error
    return [_make(row, store, address) for row in rows]


def _make(row: Any, store: Any, address: Address) -> RemoteObject:
    """A row of obstore; keys below an address begin with it."""
    key, above = row["path"], f"{address.key}/" if address.key else ""
    if not (key == address.key or key.startswith(above)):
        raise StoreError(
            f"{address}: the store lists {key!r:.200}, which is not below it",
            hint="A proxy on the way may be wrong.",
        )
    return make_object(row, store, key[len(above) :])


#: By scheme; each yields what :func:`list_objects` does.
LISTERS: dict[str, Callable[[Address], Iterator[Sequence[RemoteObject]]]] = {
    "s3": _list_bucket,
    "gs": _list_bucket,
    "az": _list_bucket,
    "hf": list_repository,
    "http": list_url,
    "https": list_url,
}
