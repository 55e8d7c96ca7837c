"""Every record of every archive of a checkpoint, and of what a run has saved beside it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ckpt_tool.common.errors import Problem
from ckpt_tool.common.regular import read_regular
from ckpt_tool.readers.base import Checkpoint, collect
from ckpt_tool.readers.dcp.metadata import list_places
from ckpt_tool.readers.torch_save.zip_directory import read_directory
from ckpt_tool.tensors.blocks import FileTable
from ckpt_tool.tensors.checksums import FileSums, RecordSum

_ARCHIVE = b"PK\x03\x04"
#: How files of torch.save are called: optimizer, random states, arguments.
_BESIDE = frozenset({".pt", ".pth", ".bin", ".ckpt"})


@dataclass
class Records:
    """``sums``: the records of each file that has some, by path; ``plain``: files without any.

    ``problems``: archives that cannot be read, and records whose headers contradict each other.
    """

    sums: dict[str, FileSums] = field(default_factory=dict)
    plain: list[str] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)


def list_records(checkpoint: Checkpoint) -> Records:
    """All records; only headers are read. OSError where a folder cannot be."""
    found = Records()
    rows: dict[str, list[RecordSum]] = {}
    with FileTable() as files:
        for path, start, length in _list_archives(checkpoint):
            kept = rows.setdefault(path, [])
            with collect(found.problems, "unreadable", path):
                size = Path(path).stat().st_size if length is None else length
                kept += _read_records(files, path, start, size, found.problems)
    for path, kept in rows.items():
        found.sums[path] = FileSums(kept)
    found.plain += [file.path for file in checkpoint.files if file.path not in rows]
    return found


def _list_archives(checkpoint: Checkpoint) -> Iterator[tuple[str, int, int | None]]:
    """Path, position and length of each; a length of None: to the end of the file."""
    metadata = checkpoint.path / ".metadata"
    held = {file.path for file in checkpoint.files}
    if checkpoint.format in ("dcp", "torch_dist"):
        by_name = {Path(path).name: path for path in held}
        for place in list_places(metadata):
            path = by_name.get(place.file)
            if path is not None and not place.encoded:
                yield path, place.offset, place.length
    else:
        yield from ((path, 0, None) for path in sorted(held) if _is_archive(path))
    if checkpoint.path.is_dir():
        yield from ((path, 0, None) for path in _list_beside(checkpoint, held))


def _list_beside(checkpoint: Checkpoint, held: set[str]) -> list[str]:
    """Other archives in the folders of a checkpoint."""
    folders = {Path(path).parent for path in held} | {checkpoint.path}
    paths = {path for folder in folders for path in folder.iterdir() if path.suffix in _BESIDE}
    others = {str(path) for path in paths if path.is_file()} - held
    return sorted(path for path in others if _is_archive(path))


def _is_archive(path: str) -> bool:
    """Whether a file begins like one, or cannot be opened to see."""
    if path.endswith(".safetensors"):
        return False
    try:
        return read_regular(Path(path), len(_ARCHIVE)) == _ARCHIVE
    except OSError:
        return True


def _read_records(
    files: FileTable, path: str, start: int, length: int, problems: list[Problem]
) -> list[RecordSum]:
    """The records of one archive, with positions in the file."""

    def read(offset: int, size: int) -> bytes:
        content = bytearray(size)
        files.read(path, start + offset, memoryview(content))
        return bytes(content)

    directory = read_directory(read, length, path)
    rows = []
    for name in directory.names:
        with collect(problems, "unreadable", path):
            at, size, crc = directory.locate(name)
            rows.append(RecordSum(start + at, size, crc, name))
    return rows
