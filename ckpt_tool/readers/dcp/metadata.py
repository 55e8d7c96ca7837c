"""``.metadata`` of torch.distributed.checkpoint: a pickle of its ``Metadata``, read without trust.

``state_dict_metadata``: FQN -> ``BytesStorageMetadata`` or ``TensorStorageMetadata``: ``size``,
``chunks`` of ``offsets`` and ``sizes``, ``properties``, whose state is a tuple that begins with the
dtype. ``storage_data``: ``MetadataIndex(fqn, offset, index)`` -> ``_StorageInfo(relative_path,
offset, length, transform_descriptors)``. Source: ``torch/distributed/checkpoint/metadata.py``.
megatron-core adds the plans of all ranks, with a ``WriteItem`` for each block: nobody needs them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from ckpt_tool.common.errors import FormatError
from ckpt_tool.common.regular import measure_file, open_regular
from ckpt_tool.readers.base import name_file
from ckpt_tool.readers.torch_save.names import resolve_plan
from ckpt_tool.readers.torch_save.rebuilding import read_sizes
from ckpt_tool.readers.torch_save.standins import MAX_NAME, StandIn, describe, name_kind
from ckpt_tool.readers.torch_save.unpickle import unpickle
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


#: Which block of which tensor: a ``MetadataIndex``.
_Key = tuple[str, Shape | None]


def read_metadata(path: Path) -> Description:
    """Parse ``path``; FormatError if it is damaged, UnsafeContentError if it asks for code."""
    with name_file(path):
        entries, places, room = _parse(path)
        places.update(_find_shared(places))
        tensors, objects = {}, []
        while entries:
            name = next(iter(entries))
            entry = entries.pop(name)  # each block has hundreds of bytes in both
            if getattr(entry, "kind", "") == "TensorStorageMetadata" and isinstance(name, str):
                tensors[name] = found = _describe(name, entry, places)
                room -= len(found.blocks)
            else:
                objects.append(name if isinstance(name, str) else describe(name))
            if room < 0:
                raise FormatError("more blocks than it has room for: tensors share theirs")
    return Description(tensors, tuple(objects))


def list_places(path: Path) -> list[Place]:
    """Where all blocks and objects lie, each place once; raises what :func:`read_metadata` does."""
    with name_file(path):
        return list(dict.fromkeys(_parse(path)[1].values()))


def _parse(path: Path) -> tuple[dict[Any, Any], dict[_Key, Place], int]:
    """What is said of names, where blocks lie, and how many there may be: as many as bytes."""
    data = _read(path)
    top = unpickle(data, resolve_plan, _refuse_storage)
    return _field(top, "state_dict_metadata", dict), _list_places(top), len(data)


def _read(path: Path) -> bytes:
    with open_regular(path) as file:
        size = measure_file(file)
        if size > _MAX_BYTES:
            raise FormatError(f"has {size} bytes, expected metadata only")
        return file.read()


def _list_places(top: Any) -> dict[_Key, Place]:
    found = {}
    for index, info in _field(top, "storage_data", dict).items():
        name, offset = _field(index, "fqn", str), index.get("offset")
        file = _field(info, "relative_path", str)
        if len(file) > MAX_NAME:
            raise FormatError(f"{name[:MAX_NAME]}: in a file whose name has {len(file)} characters")
        place = Place(
            file,
            _field(info, "offset", int),
            _field(info, "length", int),
            bool(info.get("transform_descriptors")),
        )
        found[name, None if offset is None else read_sizes(offset)] = place
    return found


def _find_shared(places: dict[_Key, Place]) -> dict[_Key, Place]:
    """The places that begin within another: each block was saved as an archive of its own.

    Who leaves them alone reads no byte twice.
    """
    shared = {}
    ends: tuple[str, int, str] = ("", 0, "")
    for key, place in sorted(places.items(), key=lambda item: item[1][:2]):
        file, end, other = ends
        if place.file == file and place.offset < end:
            shared[key] = place._replace(shared=other)
        else:
            ends = (place.file, place.offset + place.length, key[0])
    return shared


def _describe(name: str, entry: StandIn, places: dict[_Key, Place]) -> Described:
    properties = _field(entry, "properties", StandIn).state
    dtype = properties[0] if isinstance(properties, tuple) and properties else None
    if not isinstance(dtype, DType):
        raise FormatError(f"{name}: a tensor without a dtype")
    shape = read_sizes(_field(entry, "size", tuple))
    return Described(shape, dtype, tuple(_list_blocks(name, entry, places)))


def _list_blocks(
    name: str, entry: StandIn, places: dict[_Key, Place]
) -> Iterator[tuple[Box, Place | None]]:
    for chunk in _field(entry, "chunks", list):
        offsets = read_sizes(_field(chunk, "offsets", tuple))
        box = Box(offsets, read_sizes(_field(chunk, "sizes", tuple)))
        yield box, places.get((name, offsets)) or places.get((name, None))


def _field(target: Any, name: str, kind: type) -> Any:
    value = target.get(name) if isinstance(target, StandIn) else None
    if not isinstance(value, kind):
        raise FormatError(f"no {name} in a {name_kind(target)}")
    return value


def _refuse_storage(pid: Any) -> NoReturn:
    raise FormatError("a storage in the metadata")
