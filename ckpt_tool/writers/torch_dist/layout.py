"""megatron-core's ``torch_dist`` checkpoints: a folder of torch.distributed.checkpoint, written.

``__0_<n>.distcp``: archives of ``torch.save`` back to back, one per block of a tensor.
``.metadata``: a pickle of ``torch.distributed.checkpoint.metadata.Metadata``, which says where each
block lies. ``common.pt``: an archive of what is not sharded. ``metadata.json``: the backend's name;
its presence marks the folder as complete. Any tiling of a tensor by blocks can be loaded by any
number of tensor, pipeline and expert parallel ranks. Sources: ``filesystem.py`` and ``metadata.py``
of torch.distributed.checkpoint, ``dist_checkpointing`` of megatron-core 0.16.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from ckpt_tool.tensors.dtypes import DType
from ckpt_tool.tensors.geometry import Box, Shape
from ckpt_tool.tensors.tiled import Block, TiledTensor
from ckpt_tool.writers.planned import PlannedFile
from ckpt_tool.writers.torch_dist.archive import ALIGNMENT, make_archive, make_frame
from ckpt_tool.writers.torch_dist.pickling import Call, Instance, Name, Pairs, make_pickle

#: Blocks are cut into pieces of at most this, so that a rank that loads a part of a tensor reads
#: little else: ``torch.distributed.checkpoint`` reads every archive it touches as a whole.
PIECE_BYTES = 64 << 20

#: A file is closed when the next piece would exceed this: the unit that ranks share out.
FILE_BYTES = 1 << 30

_META = "torch.distributed.checkpoint.metadata"
_METADATA_JSON = {
    "sharded_backend": "torch_dist",
    "sharded_backend_version": 1,
    "common_backend": "torch",
    "common_backend_version": 1,
}


@dataclass(frozen=True, slots=True)
class Slice:
    """Where an archive lies: file, byte offset, length."""

    file: str
    offset: int
    length: int


@dataclass(frozen=True)
class TorchDistPlan:
    """The files, in order, and where in them every block of every tensor lies.

    ``nothing``: the archive that all ``objects`` (keys whose value is None) share.
    """

    files: list[PlannedFile]
    pieces: dict[str, list[tuple[Box, Slice]]]
    tensors: Mapping[str, TiledTensor]
    objects: tuple[str, ...]
    nothing: Slice
    prefix: str

    def small_files(self, common: Any) -> Iterator[tuple[str, bytes]]:
        """The other files and their contents, in the order in which they are to be written."""
        yield f"{self.prefix}.metadata", make_pickle(self._metadata())
        yield f"{self.prefix}common.pt", make_archive(common)
        yield f"{self.prefix}metadata.json", json.dumps(_METADATA_JSON).encode()

    def _metadata(self) -> Instance:
        state = {
            "state_dict_metadata": Pairs(self._entries()),
            "planner_data": None,
            "storage_data": Pairs(self._places()),
            "storage_meta": None,
        }
        return _instance("Metadata", state)

    def _entries(self) -> Iterator[tuple[str, Instance]]:
        for name, tensor in self.tensors.items():
            yield name, _tensor_entry(tensor, [box for box, _ in self.pieces[name]])
        for name in self.objects:
            yield name, _instance("BytesStorageMetadata", {})

    def _places(self) -> Iterator[tuple[Instance, Instance]]:
        for name, pieces in self.pieces.items():
            for number, (box, where) in enumerate(pieces):
                yield _index(name, box.offsets, number), _storage(where)
        for name in self.objects:
            yield _index(name, None, None), _storage(self.nothing)


def plan_torch_dist(
    tensors: Mapping[str, TiledTensor], objects: Iterable[str], *, prefix: str, sums: bool
) -> TorchDistPlan:
    """Where every block goes; reads and writes nothing. ``sums``: with CRC-32, as zip tools want.

    ``prefix``: the folder, with a slash at its end, in which all files go; or nothing. The first
    file begins with the archive of None that all ``objects`` share.
    """
    nothing = make_archive([None])
    layout = _Layout(prefix, nothing)
    pieces: dict[str, list[tuple[Box, Slice]]] = {}
    for name, tensor in tensors.items():
        pieces[name] = [
            (piece.box, layout.add(name, piece, sums=sums))
            for block in tensor.blocks
            for piece in block.pieces(PIECE_BYTES)
        ]
    where = Slice(_file_name(0), 0, len(nothing))
    return TorchDistPlan(layout.finish(), pieces, tensors, tuple(objects), where, prefix)


class _Layout:
    """Puts archives one after the other, and closes files as they fill."""

    def __init__(self, prefix: str, first: bytes) -> None:
        self._prefix = prefix
        self._files: list[PlannedFile] = []
        self._names: list[str] = []
        self._items: list[Any] = [first]
        self._starts = array("Q", [0])
        self._at = len(first)
        self._file = _file_name(0)

    def add(self, name: str, block: Block, *, sums: bool) -> Slice:
        """Append the archive of ``block``, which belongs to the tensor ``name``."""
        tensor = block.tensor
        lead, size = len(block.offsets) - len(tensor.shape), tensor.nbytes
        head, seal = make_frame((1,) * lead + tensor.shape, tensor.dtype, sums=sums)
        if self._names and self._at + size > FILE_BYTES:
            self._close()
        gap = -self._at % ALIGNMENT
        start = self._at + gap
        begin = start + len(head)
        self._names.append(name)
        self._items += (_pad(head, gap), tensor, seal)
        self._starts.extend((self._at, begin, begin + size))
        self._at = begin + size + len(seal.content)
        return Slice(self._file, start, self._at - start)

    def finish(self) -> list[PlannedFile]:
        """All files."""
        self._close()
        return self._files

    def _close(self) -> None:
        file = PlannedFile(
            self._prefix + self._file,
            tuple(self._names),
            tuple(self._items),
            self._starts,
            self._at,
        )
        self._files.append(file)
        self._names, self._items, self._starts, self._at = [], [], array("Q"), 0
        self._file = _file_name(len(self._files))


@lru_cache(maxsize=1024)
def _pad(head: bytes, gap: int) -> bytes:
    """Heads are the same for thousands of pieces, and so are the few gaps before them."""
    return b"\0" * gap + head


def _file_name(number: int) -> str:
    return f"__0_{number}.distcp"


def _instance(kind: str, state: Any) -> Instance:
    return Instance(Name(_META, kind), state)


def _size(values: Shape) -> Call:
    return Call(Name("torch", "Size"), (values,))


def _tensor_entry(tensor: TiledTensor, boxes: list[Box]) -> Instance:
    chunks = [
        _instance("ChunkStorageMetadata", {"offsets": _size(b.offsets), "sizes": _size(b.sizes)})
        for b in boxes
    ]
    state = {"properties": _properties(tensor.dtype), "size": _size(tensor.shape), "chunks": chunks}
    return _instance("TensorStorageMetadata", state)


def _properties(dtype: DType) -> Instance:
    """dtype, layout, requires_grad, memory format and pinned memory, as a tuple."""
    layout = Call(Name("torch.serialization", "_get_layout"), ("torch.strided",))
    contiguous = Call(Name(_META, "_MEM_FORMAT_ENCODING"), (0,))
    state = (Name("torch", dtype.name), layout, False, contiguous, False)
    return _instance("TensorProperties", state)


def _index(name: str, offsets: Shape | None, number: int | None) -> Instance:
    where = None if offsets is None else _size(offsets)
    return _instance("MetadataIndex", {"fqn": name, "offset": where, "index": number})


def _storage(where: Slice) -> Instance:
    state = {"relative_path": where.file, "offset": where.offset, "length": where.length}
    return Instance(Name("torch.distributed.checkpoint.filesystem", "_StorageInfo"), state)
