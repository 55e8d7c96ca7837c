"""``.metadata`` of torch.distributed.checkpoint: a pickle of its ``Metadata``, read without trust.

``state_dict_metadata``: FQN -> ``BytesStorageMetadata`` or ``TensorStorageMetadata``: ``size``,
``chunks`` of ``offsets`` and ``sizes``, ``properties``, whose state is a tuple that begins with the
dtype. ``storage_data``: ``MetadataIndex(fqn, offset, index)`` -> ``_StorageInfo(relative_path,
offset, length, transform_descriptors)``. Source: ``torch/distributed/checkpoint/metadata.py``.
megatron-core adds the plans of all ranks, with a ``WriteItem`` for each block: nobody needs them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from ckpt_tool.common.errors import FormatError
from ckpt_tool.common.regular import open_regular
from ckpt_tool.readers.base import name_file
from ckpt_tool.readers.torch_save.instances import unpickle_instances
from ckpt_tool.readers.torch_save.names import resolve_plan
from ckpt_tool.readers.torch_save.rebuilding import read_sizes
from ckpt_tool.readers.torch_save.standins import MAX_NAME, StandIn, describe, name_kind
from ckpt_tool.tensors.dtypes import DType
from ckpt_tool.tensors.geometry import Box, Shape

#: Some hundred bytes per block: this is room for millions of them.
_MAX_BYTES = 1 << 30


class Place(NamedTuple):
    """Where an archive lies: file in the folder, byte offset, length; ``encoded``: transformed.

    ``shared``: the name of another tensor that has bytes in common with it; empty if none.
    """

    file: str
    offset: int
    length: int
    encoded: bool
    shared: str = ""


@dataclass(frozen=True, slots=True)
class Described:
    """A tensor as the metadata has it: each block with its place, None where it has none."""

    shape: Shape
    dtype: DType
    blocks: tuple[tuple[Box, Place | None], ...]


@dataclass(frozen=True, slots=True)
class Description:
    """``tensors`` by name, and the names of ``objects``: whatever else was saved."""

    tensors: dict[str, Described]
    objects: tuple[str, ...]


class _Key(NamedTuple):
    """Which block of which tensor: a ``MetadataIndex``."""

    name: str
    offset: Shape | None


class _Layout(NamedTuple):
    """A ``TensorStorageMetadata``."""

    shape: Shape
    dtype: DType
    boxes: tuple[Box, ...]


def read_metadata(path: Path) -> Description:
    """Parse ``path``; FormatError if it is damaged, UnsafeContentError if it asks for code."""
    with name_file(path):
        parser = _Parser(path)
        places = parser.places
        places.update(_find_shared(places))
        tensors, objects = {}, []
        for name, entry in parser.entries.items():
            layout = parser.require_layout(name, entry)
            if layout is None:
                objects.append(name if isinstance(name, str) else describe(name))
            else:
                blocks = tuple(_list_blocks(name, layout, places))
                tensors[name] = Described(layout.shape, layout.dtype, blocks)
    return Description(tensors, tuple(objects))


def list_places(path: Path) -> list[Place]:
    """Where all blocks and objects lie, each place once; raises what :func:`read_metadata` does."""
    with name_file(path):
        return list(dict.fromkeys(_Parser(path).places.values()))


class _Parser:
    """What is in a file: ``entries`` by name, and ``places`` of all blocks and objects.

    There is ``room`` for as many blocks as the file has bytes: tensors may share one list of them.
    """

    def __init__(self, path: Path) -> None:
        data = _read(path)
        self._room = len(data)
        finish = {
            "TensorStorageMetadata": self._read_layout,
            "ChunkStorageMetadata": _read_box,
            "MetadataIndex": _read_key,
            "_StorageInfo": _read_place,
            "WriteItem": lambda _: None,
        }
        top = unpickle_instances(data, resolve_plan, _refuse_storage, finish)
        self.entries: dict[Any, Any] = _field(top, "state_dict_metadata", dict)
        self.places: dict[_Key, Place] = _field(top, "storage_data", dict)
        if not all(map(_is_place, self.places.items())):  # of classes that are called otherwise
            rows = self.places.items()
            self.places = {_read_key(key): _read_place(place) for key, place in rows}

    def require_layout(self, name: Any, entry: Any) -> _Layout | None:
        """What is said of a tensor; None where it is none. FormatError where that is malformed."""
        if isinstance(entry, StandIn) and entry.kind == "TensorStorageMetadata":
            try:
                entry = self._read_layout(entry)
            except FormatError as error:
                raise FormatError(f"{describe(name)}: {error.reason}") from error
        return entry if isinstance(entry, _Layout) and isinstance(name, str) else None

    def _read_layout(self, entry: StandIn) -> _Layout:
        properties = _field(entry, "properties", StandIn).state
        dtype = properties[0] if isinstance(properties, tuple) and properties else None
        if not isinstance(dtype, DType):
            raise FormatError("a tensor without a dtype")
        shape, chunks = read_sizes(_field(entry, "size", tuple)), _field(entry, "chunks", list)
        if len(chunks) > self._room:
            raise FormatError("more blocks than it has room for: tensors share theirs")
        self._room -= len(chunks)
        return _Layout(shape, dtype, tuple(map(_read_box, chunks)))


def _read(path: Path) -> bytes:
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > _MAX_BYTES:
            raise FormatError(f"has {size} bytes, expected metadata only")
        return file.read()


def _is_place(row: tuple[Any, Any]) -> bool:
    return type(row[0]) is _Key and type(row[1]) is Place


def _read_box(chunk: Any) -> Box:
    if isinstance(chunk, Box):
        return chunk
    offsets = read_sizes(_field(chunk, "offsets", tuple))
    return Box(offsets, read_sizes(_field(chunk, "sizes", tuple)))


def _read_key(index: Any) -> _Key:
    if isinstance(index, _Key):
        return index
    name, offset = _field(index, "fqn", str), index.get("offset")
    return _Key(name, None if offset is None else read_sizes(offset))


def _read_place(info: Any) -> Place:
    if isinstance(info, Place):
        return info
    file = _field(info, "relative_path", str)
    if len(file) > MAX_NAME:
        raise FormatError(f"a file whose name has {len(file)} characters")
    return Place(
        file,
        _field(info, "offset", int),
        _field(info, "length", int),
        bool(info.get("transform_descriptors")),
    )


def _find_shared(places: dict[_Key, Place]) -> dict[_Key, Place]:
    """The places that begin within another: each block was saved as an archive of its own.

    Who leaves them alone reads no byte twice.
    """
    shared = {}
    ends: tuple[str, int, str] = ("", 0, "")
    for key, place in sorted(places.items(), key=itemgetter(1)):
        file, end, other = ends
        if place.file == file and place.offset < end:
            shared[key] = place._replace(shared=other)
        else:
            ends = (place.file, place.offset + place.length, key.name)
    return shared


def _list_blocks(
    name: str, layout: _Layout, places: dict[_Key, Place]
) -> Iterator[tuple[Box, Place | None]]:
    for box in layout.boxes:
        yield box, places.get(_Key(name, box.offsets)) or places.get(_Key(name, None))


def _field(target: Any, name: str, kind: type) -> Any:
    value = target.get(name) if isinstance(target, StandIn) else None
    if not isinstance(value, kind):
        raise FormatError(f"no {name} in a {name_kind(target)}")
    return value


def _refuse_storage(pid: Any) -> NoReturn:
    raise FormatError("a storage in the metadata")
