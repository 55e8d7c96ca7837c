"""Small things that are worth knowing again, kept in the user's cache.

An entry is a file (``$XDG_CACHE_HOME/ckpt-tool/<kind>/<key>.json``, by default below ``~/.cache``):
a digest, and what it is of. One that is damaged is as good as none; a cache that cannot be written
is no reason to fail.
"""

from __future__ import annotations

import hashlib
import os
from contextlib import suppress
from pathlib import Path
from tempfile import NamedTemporaryFile


def read_entry(kind: str, key: str) -> bytes | None:
    """What was kept as ``key``; None where there is nothing that is sound."""
    try:
        content = (_find_folder(kind) / f"{key}.json").read_bytes()
    except (OSError, RuntimeError):  # the latter: nobody knows the user's home
        return None
    digest, _, body = content.partition(b"\n")
    return body if hashlib.sha256(body).hexdigest().encode() == digest else None


def keep_entry(kind: str, key: str, body: bytes, most: int) -> None:
    """Write an entry, whole or not at all; the oldest go, so that ``most`` are left."""
    digest = hashlib.sha256(body).hexdigest().encode()
    with suppress(OSError, RuntimeError):
        folder = _find_folder(kind)
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with NamedTemporaryFile(dir=folder, prefix=".new-", delete=False) as file:
            file.write(digest + b"\n" + body)
        Path(file.name).replace(folder / f"{key}.json")
        for path in sorted(folder.glob("*.json"), key=_age)[:-most]:
            path.unlink(missing_ok=True)


def _find_folder(kind: str) -> Path:
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "ckpt-tool" / kind


def _age(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:  # another process dropped it
        return 0
