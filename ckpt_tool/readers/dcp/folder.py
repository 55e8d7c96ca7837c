"""Folders of torch.distributed.checkpoint, and megatron-core's ``torch_dist`` on top of it.

``.metadata`` (see :mod:`ckpt_tool.readers.dcp.metadata`) says in which ``*.distcp`` file and where
each block of each tensor lies: an archive of ``torch.save`` of its own. megatron-core adds
``metadata.json`` with ``{"sharded_backend": "torch_dist"}`` and ``common.pt``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from ckpt_tool.common.errors import Problem
from ckpt_tool.common.regular import announce
from ckpt_tool.common.remote.ranges import Span
from ckpt_tool.common.untrusted import read_json_object, show
from ckpt_tool.readers.base import (
    TANGLED,
    Checkpoint,
    Entry,
    Holding,
    ShardFile,
    Wanted,
    collect,
)
from ckpt_tool.readers.dcp.blocks import Blocks
from ckpt_tool.readers.dcp.metadata import Described, Place, read_metadata
from ckpt_tool.readers.dcp.places import find_main
from ckpt_tool.readers.find import locate_first_config
from ckpt_tool.readers.spread import drop_repeats
from ckpt_tool.tensors.blocks import FileTable
from ckpt_tool.tensors.checksums import FileSums
from ckpt_tool.tensors.geometry import Box, check_coverage, is_in_bounds

_RANK = re.compile(r"__(\d+)_\d+\.distcp")


def open_dcp(folder: Path, wanted: Wanted | None = None) -> Checkpoint:
    """The tensors in ``folder``; damage becomes the checkpoint's ``problems``.

    Blocks of tensors that are not ``wanted``, by their names, are not looked at; without it all
    are. FormatError where the metadata cannot be read, UnsafeContentError where a pickle asks for
    code.
    """
    return open_dcp_folders([folder], wanted)


def open_dcp_folders(folders: Sequence[Path], wanted: Wanted | None = None) -> Checkpoint:
    """The same of files that lie in several folders, with ``.metadata`` in one of them at least.

    FormatError also where none has it.
    """
    folders = drop_repeats(folders)
    problems: list[Problem] = []
    main = find_main(folders, problems)
    files = _stat_files(folders)
    description = read_metadata(main / ".metadata")
    entries, left_out = {}, {}
    with FileTable() as table:
        blocks = Blocks(table)
        reader = _Reader(main, folders, blocks, problems)
        reader.expect(
            found for name, found in description.tensors.items() if wanted is None or wanted(name)
        )
        for name in list(description.tensors):
            found = description.tensors.pop(name)  # each block has hundreds of bytes in both
            if wanted is None or wanted(name):
                entries[name] = reader.entry(name, found)
            else:
                left_out[name] = Entry(name, found.shape, found.dtype, "", ())
    return Checkpoint(
        format="torch_dist" if _is_megatron(main, problems) else "dcp",
        path=main,
        entries=entries,
        files=files,
        problems=tuple(problems),
        side_files=locate_first_config([main, *folders], beside=True),
        left_out=left_out,
        objects=description.objects,
        sums={path: FileSums(found) for path, found in blocks.sums.items()},
    )


def _stat_files(folders: Sequence[Path]) -> tuple[ShardFile, ...]:
    paths = [path for folder in folders for path in sorted(folder.iterdir())]
    return tuple(
        ShardFile.stat(path, _rank(path.name)) for path in paths if path.suffix == ".distcp"
    )


def _is_megatron(folder: Path, problems: list[Problem]) -> bool:
    path = folder / "metadata.json"
    if not path.is_file():
        return False
    with collect(problems, "metadata", path):
        backend = read_json_object(path).get("sharded_backend")
        if backend not in ("torch_dist", "torch_dcp"):
            problems.append(Problem("metadata", str(path), f"sharded_backend is {show(backend)}"))
    return True


def _rank(name: str) -> int | None:
    matched = _RANK.fullmatch(name)
    return int(matched[1]) if matched else None


class _Reader:
    """Makes entries of what the metadata says, and collects what is wrong."""

    def __init__(
        self, main: Path, folders: Sequence[Path], blocks: Blocks, problems: list[Problem]
    ) -> None:
        self._main = main
        self._blocks = blocks
        self._places: dict[str, list[Path]] = {}
        for path in (path for folder in folders for path in folder.iterdir() if path.is_file()):
            self._places.setdefault(path.name, []).append(path)
        self._files: dict[str, tuple[str, int | None] | None] = {}
        self.problems = problems

    def expect(self, tensors: Iterable[Described]) -> None:
        """Announce what will be read: one after the other, a disk takes 20 times as long."""
        announce(span for tensor in tensors for span in self._list_ends(tensor))

    def _list_ends(self, tensor: Described) -> Iterator[Span]:
        for _, place in tensor.blocks:
            if place is None or place.encoded or place.shared:
                continue
            paths = self._places.get(place.file, [])
            if len(paths) == 1:
                yield from self._blocks.list_ends(str(paths[0]), place)

    def entry(self, name: str, found: Described) -> Entry:
        """The tensor ``name`` with every block that is where the metadata says."""
        holdings = []
        boxes = []
        for box, place in found.blocks:
            if not is_in_bounds(found.shape, box):
                where = f"block {list(box.offsets)} + {list(box.sizes)}"
                self._note("coverage", name, f"{where} is outside of {list(found.shape)}")
                continue
            boxes.append(box)
            held = self._hold(name, found, box, place)
            if held is not None:
                holdings.append(held)
        coverage = check_coverage(found.shape, boxes)
        for block in coverage.missing:
            self._note("coverage", name, f"{block} of {list(found.shape)} is in no block")
        for block in coverage.overlapping:
            self._note("coverage", name, f"{block} is in more than one block")
        if coverage.is_tangled:
            self._note("coverage", name, TANGLED)
        pieces = f"{len(found.blocks)} blocks" if len(found.blocks) != 1 else "whole"
        return Entry(name, found.shape, found.dtype, pieces, tuple(holdings))

    def _hold(self, name: str, found: Described, box: Box, place: Place | None) -> Holding | None:
        """A block, unless something is wrong with it."""
        if place is None or place.encoded or place.shared:
            self._note_place(name, box, place)
            return None
        file = self._file(place.file)
        if file is None:
            return None
        path, rank = file
        region = self._blocks.recall(path, place, found.dtype, box.sizes)
        if region is None:
            with collect(self.problems, "unreadable", name, box):
                region = self._blocks.read(path, place, found.dtype, box.sizes)
        return Holding(rank, box, region) if region is not None else None

    def _note_place(self, name: str, box: Box, place: Place | None) -> None:
        if place is None:
            self._note("missing-block", name, f"nothing says where block {box} lies")
        elif place.encoded:
            self._note("encoded", name, f"block {box} is compressed or encrypted")
        else:
            message = f"block {box}: at byte {place.offset} of {place.file}, in that of"
            self._note("unreadable", name, f"{message} {place.shared}")

    def _file(self, file: str) -> tuple[str, int | None] | None:
        """Path and rank of ``file``; each that is missing, or is in two folders, is noted once."""
        if file not in self._files:
            found = self._places.get(file, [])
            if not found:
                message = "not there, or not a file of this folder"
                self._note("missing-file", str(self._main / file), message)
            elif len(found) > 1:
                self._note("duplicate", str(found[1]), f"also in {found[0].parent}")
            self._files[file] = (str(found[0]), _rank(file)) if found else None
        return self._files[file]

    def _note(self, kind: str, where: str, message: str) -> None:
        self.problems.append(Problem(kind, where, message))
