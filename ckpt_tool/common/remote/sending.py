"""What processes of a run tell each other: each has folders of its own that stand for addresses."""

from __future__ import annotations

import io
import pickle
from pathlib import Path, PurePath
from typing import Any

from ckpt_tool.common.remote.naming import find_root


def encode(value: Any) -> bytes:
    """``value``, to be sent; raises what pickle does for what cannot be."""
    root = find_root()
    if not root:
        return pickle.dumps(value)
    stream = io.BytesIO()
    _Encoder(stream, root).dump(value)
    return stream.getvalue()


def decode(content: bytes) -> Any:
    """What :func:`encode` was given in another process of ours, with the paths of this one."""
    return _Decoder(io.BytesIO(content)).load()


class _Encoder(pickle.Pickler):
    def __init__(self, stream: io.BytesIO, root: str) -> None:
        super().__init__(stream)
        self._root = root

    def persistent_id(self, value: Any) -> tuple[str, str] | None:
        """A path below the root by what is behind that."""
        kind = "path" if isinstance(value, PurePath) else "text" if type(value) is str else ""
        text = str(value) if kind else ""
        return (kind, text[len(self._root) :]) if text.startswith(self._root) else None


class _Decoder(pickle.Unpickler):
    def persistent_load(self, value: tuple[str, str]) -> Any:
        """The path here."""
        kind, rest = value
        text = f"{find_root()}{rest}"
        return Path(text) if kind == "path" else text
