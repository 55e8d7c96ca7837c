"""Files that note what is read of them, and in which calls."""

from collections.abc import Iterable
from pathlib import Path

from ckpt_tool.tensors.ahead import Read
from ckpt_tool.tensors.blocks import FileTable


class NotedFiles(FileTable):
    """``reads``: the bytes of each call, in their order."""

    def __init__(self) -> None:
        super().__init__()
        self.reads: list[Read] = []

    def read(self, path: str, offset: int, buffer: memoryview) -> None:
        super().read(path, offset, buffer)
        self._note(path, offset, buffer)

    def read_each(self, path: str, parts: Iterable[tuple[int, memoryview]]) -> None:
        noted = list(parts)
        super().read_each(path, noted)
        for offset, buffer in noted:
            self._note(path, offset, buffer)

    def _note(self, path: str, offset: int, buffer: memoryview) -> None:
        self.reads.append(Read(path, offset, offset + len(buffer)))

    def sizes(self, name: str = "") -> list[int]:
        """The bytes of each call, or of those of a file of this name."""
        return [read.stop - read.start for read in self.reads if name in ("", Path(read.path).name)]
