"""What there is at an address: objects with their sizes, times and ETags."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from ckpt_tool.common.remote.address import Address
from ckpt_tool.common.remote.failures import explain
from ckpt_tool.common.remote.stores import open_store

_PER_REQUEST = 1000


@dataclass(frozen=True, slots=True)
class RemoteObject:
    """``name``: below the address that was listed; empty: the object at that address itself.

    ``store``, ``key``: whom to ask for its bytes, and how. ``size`` in bytes, ``mtime_ns`` since
    1970; ``etag``: what a request for this very version names, empty where a store has none.
    """

    name: str
    store: Any
    key: str
    size: int
    mtime_ns: int
    etag: str

    def is_of(self, meta: Any) -> bool:
        """Whether an answer is of this version: by its ETag, or else by its size and time."""
        if self.etag and (there := meta.get("e_tag")):
            return bool(self.etag.strip('"') == there.strip('"'))
        return bool(self.size == meta["size"] and self.mtime_ns == _count_ns(meta["last_modified"]))


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
    """The objects in a folder of a bucket, not those of the folders in it."""
    import obstore

    store = open_store(address)
    try:
        rows = obstore.list_with_delimiter(store, address.key or None)["objects"]
    except Exception as error:
        raise explain(error, address) from error
    return [_make(row, store, address) for row in rows]


def _make(row: Any, store: Any, address: Address) -> RemoteObject:
    """A row of obstore; keys below an address begin with it."""
    key = row["path"]
    name = key[len(address.key) :].lstrip("/") if address.key else key
    etag = _quote(row.get("e_tag") or "")
    return RemoteObject(name, store, key, row["size"], _count_ns(row["last_modified"]), etag)


def _count_ns(when: datetime) -> int:
    return round(when.timestamp() * 10**6) * 1000


def _quote(etag: str) -> str:
    """An ETag as requests name it: some stores list it without its quotes."""
    return f'"{etag}"' if etag and not etag.endswith('"') else etag


#: By scheme; each yields what :func:`list_objects` does.
LISTERS: dict[str, Callable[[Address], Iterator[Sequence[RemoteObject]]]] = {
    "s3": _list_bucket,
    "gs": _list_bucket,
    "az": _list_bucket,
}
