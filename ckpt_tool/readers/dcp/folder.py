"""Folders of torch.distributed.checkpoint, and megatron-core's ``torch_dist`` on top of it.

``.metadata`` (see :mod:`ckpt_tool.readers.dcp.metadata`) says in which ``*.distcp`` file and where
each block of each tensor lies: an archive of ``torch.save`` of its own. megatron-core adds
``metadata.json`` with ``{"sharded_backend": "torch_dist"}`` and ``common.pt``.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from ckpt_tool.common.errors import FormatError, Problem
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
from ckpt_tool.readers.dcp.metadata import Described, Place, read_metadata
from ckpt_tool.readers.dcp.places import find_main
from ckpt_tool.readers.find import locate_first_config
from ckpt_tool.readers.spread import drop_repeats
from ckpt_tool.readers.torch_save.alike import Form
from ckpt_tool.readers.torch_save.archive import TorchArchive
from ckpt_tool.readers.torch_save.rebuilding import TensorRef
from ckpt_tool.tensors.blocks import FileTable
from ckpt_tool.tensors.checksums import FileSums, RecordSum
from ckpt_tool.tensors.chunks import Region
from ckpt_tool.tensors.dtypes import DType
from ckpt_tool.tensors.geometry import Box, Shape, check_coverage, is_in_bounds

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
        reader = _Reader(main, folders, table, problems)
        for name, found in description.tensors.items():
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
        sums={path: FileSums(found) for path, found in reader.sums.items()},
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
    """Looks at every archive through one table of descriptors, and collects what is wrong."""

    def __init__(
        self, main: Path, folders: Sequence[Path], table: FileTable, problems: list[Problem]
    ) -> None:
        self._main = main
        self._table = table
        self._places: dict[str, list[Path]] = {}
        for path in (path for folder in folders for path in folder.iterdir() if path.is_file()):
            self._places.setdefault(path.name, []).append(path)
        self._noted: set[str] = set()
        #: By length, dtype and shape: a model has thousands of blocks that are alike.
        self._known: dict[tuple[int, DType, Shape], tuple[Form, TensorRef, str]] = {}
        self.problems = problems
        self.sums: dict[str, list[RecordSum]] = {}

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
            region = self._region(name, found, box, place)
            if region is not None:
                rank = _rank(place.file) if place else None
                holdings.append(Holding(rank, box, region))
        coverage = check_coverage(found.shape, boxes)
        for block in coverage.missing:
            self._note("coverage", name, f"{block} of {list(found.shape)} is in no block")
        for block in coverage.overlapping:
            self._note("coverage", name, f"{block} is in more than one block")
        if coverage.is_tangled:
            self._note("coverage", name, TANGLED)
        pieces = f"{len(found.blocks)} blocks" if len(found.blocks) != 1 else "whole"
        return Entry(name, found.shape, found.dtype, pieces, tuple(holdings))

    def _region(self, name: str, found: Described, box: Box, place: Place | None) -> Region | None:
        if place is None:
            self._note("missing-block", name, f"nothing says where block {box} lies")
            return None
        if place.encoded:
            self._note("encoded", name, f"block {box} is compressed or encrypted")
            return None
        if place.shared:
            message = f"block {box}: at byte {place.offset} of {place.file}, in that of"
            self._note("unreadable", name, f"{message} {place.shared}")
            return None
        path = self._path(place.file)
        if path is None:
            return None
        with collect(self.problems, "unreadable", name, box):
            return self._read_block(str(path), place, found, box)
        return None

    def _read_block(self, path: str, place: Place, found: Described, box: Box) -> Region:
        """The region of a block, proven to be the tensor that the metadata promises."""
        kind = (place.length, found.dtype, box.sizes)
        known = self._known.get(kind)
        if known is not None and place.offset >= 0:
            form, ref, name = known
            crc = form.read_sum(self._table.descriptor(path), place.offset)
            if crc is not None:
                start = place.offset + form.start
                self._keep_sums(path, [RecordSum(start, form.size, crc, name)])
                return Region(path, start + ref.offset * ref.dtype.itemsize, ref.strides)
        return self._parse_block(path, place, found, box)

    def _parse_block(self, path: str, place: Place, found: Described, box: Box) -> Region:
        with TorchArchive(Path(path), place.offset, place.length, self._table) as archive:
            ref = archive.load()
            if not isinstance(ref, TensorRef):
                raise FormatError(f"no tensor at byte {place.offset}", path=path)
            if ref.dtype != found.dtype or ref.shape != box.sizes:
                raise FormatError(
                    f"{ref.dtype} {list(ref.shape)} at byte {place.offset},"
                    f" expected {found.dtype} {list(box.sizes)}",
                    path=path,
                )
            region = archive.locate_tensor(ref, "the block").region
            (total,) = archive.sums()
            self._keep_sums(path, [total])
            form = archive.make_form(ref)
            if form is not None:
                self._known[place.length, ref.dtype, ref.shape] = form, ref, total.name
            return region

    def _keep_sums(self, path: str, found: Sequence[RecordSum]) -> None:
        self.sums.setdefault(path, []).extend(found)

    def _path(self, file: str) -> Path | None:
        """The file ``file``; each that is missing, or is in two folders, is noted once."""
        found = self._places.get(file, [])
        if len(found) != 1 and file not in self._noted:
            self._noted.add(file)
            if found:
                self._note("duplicate", str(found[1]), f"also in {found[0].parent}")
            else:
                message = "not there, or not a file of this folder"
                self._note("missing-file", str(self._main / file), message)
        return found[0] if found else None

    def _note(self, kind: str, where: str, message: str) -> None:
        self.problems.append(Problem(kind, where, message))
