"""One object that lies elsewhere, as a list of them says it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any


@dataclass(frozen=True, slots=True)
class RemoteObject:
    """``name``: below the address that was listed; empty: the object at that address itself.

    ``store``, ``key``: whom to ask for its bytes, and how. ``size`` in bytes, ``mtime_ns`` since
    1970; ``etag``: what a request for this very version names, empty where a store has none.
    ``is_fixed``: there is but one version that can be called so.
    """

    name: str
    store: Any
    key: str
    size: int
    mtime_ns: int
    etag: str
    is_fixed: bool = False

    def is_of(self, meta: Any) -> bool:
        """Whether an answer is of this version: by its ETag, or else by its size and time."""
        if self.is_fixed:
            return bool(self.size == meta["size"])
        if self.etag and (there := meta.get("e_tag")):
            return bool(self.etag.strip('"') == there.strip('"'))
        return bool(self.size == meta["size"] and self.mtime_ns == _count_ns(meta["last_modified"]))


def make_object(row: Any, store: Any, name: str) -> RemoteObject:
    """A row of obstore, called ``name``."""
    etag = _quote(row.get("e_tag") or "")
    return RemoteObject(
        name, store, row["path"], row["size"], _count_ns(row["last_modified"]), etag
    )


def _count_ns(when: datetime) -> int:
    return round(when.timestamp() * 10**6) * 1000


def _quote(etag: str) -> str:
    """An ETag as requests name it: some stores list it without its quotes."""
    return f'"{etag}"' if etag and not etag.endswith('"') else etag
