"""What processes of a run tell each other: each has folders of its own that stand for addresses."""

from __future__ import annotations

import io
import pickle
from pathlib import Path, PurePath
from typing import Any

from ckpt_tool.common.remote.naming import find_root, name_places
from ckpt_tool.common.remote.shadow import recall


def encode(value: Any) -> bytes:
    """``value``, to be sent; raises what pickle does for what cannot be."""
    if not find_root():
        return pickle.dumps(value)
    stream = io.BytesIO()
    _Encoder(stream).dump(value)
    return stream.getvalue()


def decode(content: bytes) -> Any:
    """What :func:`encode` was given in another process of ours, with the paths of this one."""
    return _Decoder(io.BytesIO(content)).load()


class _Encoder(pickle.Pickler):
    def persistent_id(self, value: Any) -> tuple[str, str] | None:
        """A path that stands for an address, by that."""
        kind = "path" if isinstance(value, PurePath) else "text" if type(value) is str else ""
        text = str(value) if kind else ""
        if not text.startswith(find_root()) or not Path(text).exists():
            return None
        return kind, name_places(text)


class _Decoder(pickle.Unpickler):
    def __init__(self, stream: io.BytesIO) -> None:
        super().__init__(stream)
        self._found: dict[str, Path] = {}

    def persistent_load(self, value: tuple[str, str]) -> Any:
        """The path here."""
        kind, address = value
        if address not in self._found:
            self._found[address] = recall(address)
        path = self._found[address]
        return path if kind == "path" else str(path)
