"""A local folder that stands for an output in a store: headers of files, and no tensor."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from ckpt_tool.common.remote.address import Address
from ckpt_tool.common.remote.files import add_file
from ckpt_tool.common.remote.listing import RemoteObject
from ckpt_tool.common.remote.naming import add_root
from ckpt_tool.writers.planned import PlannedFile


class Sketch:
    """The folder ``path`` for the output ``out``; its files are sparse."""

    def __init__(self, out: Address) -> None:
        self._folder = TemporaryDirectory(prefix="ckpt-")
        add_root(self._folder.name)
        self.path = Path(self._folder.name, out.scheme, out.bucket, out.key)
        self.path.mkdir(parents=True)

    def draw(self, files: Sequence[PlannedFile]) -> None:
        """Files as long as these, with the bytes that come before their tensors."""
        for file in files:
            header = file.items[0] if file.items and isinstance(file.items[0], bytes) else b""
            with self._make(file.name).open("wb") as opened:
                opened.write(header)
                opened.truncate(file.size)

    def stand_for(self, files: Sequence[PlannedFile], objects: Iterable[RemoteObject]) -> None:
        """Have these read from the store, as far as they are among its ``objects``."""
        found = {each.name: each for each in objects}
        for file in files:
            if file.name in found:
                path = self._make(file.name)
                with path.open("wb") as opened:
                    opened.truncate(found[file.name].size)
                add_file(str(path), found[file.name])

    def put(self, small: Iterable[tuple[str, bytes]]) -> None:
        """Small files, as they are."""
        for name, content in small:
            self._make(name).write_bytes(content)

    def remove(self) -> None:
        """It is not needed any more."""
        self._folder.cleanup()

    def _make(self, name: str) -> Path:
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path
