"""Pickled DTensors, ShardedTensors and plain tensors: what one rank holds of one tensor.

DTensor state: ``_local_tensor`` and ``_spec`` (``mesh``, ``placements``, ``tensor_meta``). A mesh
is stored as a tensor of ranks (``mesh``) or, in newer torch, as ``_layout`` (sizes and strides)
over ``_rank_map``. ShardedTensor state: a list of (tensor, metadata with offsets and sizes).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from ckpt_tool.common.errors import FormatError
from ckpt_tool.readers.base import Holding, Mesh
from ckpt_tool.readers.fsdp.placements import Placement, find_local_box
from ckpt_tool.readers.torch_save.archive import TorchArchive
from ckpt_tool.readers.torch_save.rebuilding import TensorRef, read_sizes
from ckpt_tool.readers.torch_save.standins import MAX_ITEMS, MAX_NAME, StandIn, describe
from ckpt_tool.tensors.dtypes import DType
from ckpt_tool.tensors.geometry import Box, Shape, is_in_bounds, unravel


@dataclass(frozen=True, slots=True)
class LocalTensor:
    """One rank's part of a tensor."""

    shape: Shape
    dtype: DType
    placements: str
    holdings: tuple[Holding, ...]
    mesh: Mesh | None


@dataclass(frozen=True, slots=True)
class _Position:
    """A rank's place in a mesh."""

    mesh: Mesh
    coordinate: Shape


class RankDecoder:
    """Decodes the values of one rank's state dict; meshes, which repeat, are read once."""

    def __init__(self, archive: TorchArchive, rank: int) -> None:
        self._archive = archive
        self.rank = rank
        self._positions: dict[int, _Position] = {}
        self._places: dict[TensorRef, int] = {}
        self._room = archive.bytes  # for the ranks of meshes

    def decode(self, name: str, value: Any) -> LocalTensor:
        """What ``value`` says; FormatError where it is not a tensor or contradicts itself."""
        try:
            return self._decode(name, value)
        except (TypeError, ValueError, IndexError, AttributeError) as error:
            raise FormatError(f"a malformed {_kind(value)} ({error})") from error

    def _decode(self, name: str, value: Any) -> LocalTensor:
        if isinstance(value, TensorRef):
            return self._plain(name, value)
        if _kind(value) == "DTensor":
            return self._dtensor(name, value)
        if _kind(value) == "ShardedTensor":
            return self._sharded(name, value)
        raise FormatError(f"a value of type {_kind(value)}, expected a tensor")

    def _plain(self, name: str, ref: TensorRef) -> LocalTensor:
        stored = self._archive.locate_tensor(ref, name)
        whole = Box((0,) * len(ref.shape), ref.shape)
        holding = Holding(self.rank, whole, stored.region)
        return LocalTensor(ref.shape, ref.dtype, "plain", (holding,), None)

    def _dtensor(self, name: str, value: StandIn) -> LocalTensor:
        _, shape = _shell(value)
        local, spec = value.get("_local_tensor"), value.get("_spec")
        if not (isinstance(local, TensorRef) and isinstance(spec, StandIn)):
            raise FormatError("a DTensor without a local tensor or spec")
        placements = [_placement(item) for item in _few(spec.get("placements") or ())]
        position = self._position(spec.get("mesh"))
        text = ", ".join(map(str, placements))
        unknown = [p for p in placements if not p.known]
        if unknown or len(placements) != len(position.mesh.shape):
            raise FormatError(
                f"placements ({text}) on a mesh of {list(position.mesh.shape)} cannot be merged:"
                " only Shard and Replicate hold whole values"
            )
        order = _shard_order(spec.get("shard_order"))
        box = find_local_box(shape, position.mesh.shape, position.coordinate, placements, order)
        if box.sizes != local.shape:
            raise FormatError(
                f"local shape {list(local.shape)}, expected {list(box.sizes)} at offset"
                f" {list(box.offsets)} of {list(shape)} with {text}"
            )
        copied = any(
            p.kind == "Replicate" and n > 1
            for p, n in zip(placements, position.mesh.shape, strict=True)
        )
        region = self._archive.locate_tensor(local, name).region
        holding = Holding(self.rank, box, region, copied)
        return LocalTensor(shape, local.dtype, text, (holding,), position.mesh)

    def _sharded(self, name: str, value: StandIn) -> LocalTensor:
        (dtype, shape), state = _shell(value), value.state
        if not (isinstance(state, tuple) and state and isinstance(state[0], list)):
            raise FormatError("a ShardedTensor without shards")
        holdings = []
        for shard in _few(state[0]):
            ref, metadata = _fields(shard, "tensor", "metadata")
            offsets, sizes = _fields(metadata, "shard_offsets", "shard_sizes")
            box = Box(read_sizes(offsets), read_sizes(sizes))
            if not isinstance(ref, TensorRef) or (ref.shape, ref.dtype) != (box.sizes, dtype):
                raise FormatError(
                    f"a shard that is not the {dtype} tensor of {list(box.sizes)} it says"
                )
            if not is_in_bounds(shape, box):
                raise FormatError(f"a shard at {box}, outside of {list(shape)}")
            region = self._archive.locate_tensor(ref, name).region
            holdings.append(Holding(self.rank, box, region))
        return LocalTensor(shape, dtype, "ShardedTensor", tuple(holdings), None)

    def _position(self, mesh: Any) -> _Position:
        if not isinstance(mesh, StandIn):
            raise FormatError("a DTensor without a device mesh")
        if id(mesh) not in self._positions:
            self._positions[id(mesh)] = self._decode_mesh(mesh)
        return self._positions[id(mesh)]

    def _decode_mesh(self, mesh: StandIn) -> _Position:
        if isinstance(mesh.get("mesh"), TensorRef):
            position = self._from_ranks(mesh.get("mesh"), mesh.get("mesh_dim_names"))
        elif isinstance(mesh.get("_rank_map"), TensorRef):
            at = self._find_place(mesh.get("_rank_map"))
            position = _from_layout(mesh.get("_layout"), at, mesh.get("_mesh_dim_names"))
        else:
            raise FormatError("a device mesh of an unknown kind")
        written_by = mesh.get("_coordinate_on_dim")
        if written_by is not None and tuple(_few(written_by)) != position.coordinate:
            raise FormatError(
                f"written by the rank at {list(written_by)} of the mesh, but the file name says"
                f" rank {self.rank}, at {list(position.coordinate)}"
            )
        return position

    def _from_ranks(self, ref: TensorRef, names: Any) -> _Position:
        at = self._find_place(ref)
        return _Position(Mesh(ref.shape, _names(names)), unravel(at, ref.shape))

    def _find_place(self, ref: TensorRef) -> int:
        """Where in a tensor of ranks this rank is. Meshes that share one share the work."""
        if ref not in self._places:
            self._room -= prod(ref.shape)
            if self._room < 0:
                raise FormatError("device meshes of more ranks than their file has bytes")
            self._places[ref] = _index(self._archive.read_integers(ref), self.rank)
        return self._places[ref]


def _kind(value: Any) -> str:
    return value.kind if isinstance(value, StandIn) else type(value).__name__


def _shell(value: StandIn) -> tuple[DType, Shape]:
    """Dtype and global shape: the arguments with which torch rebuilds the outer tensor."""
    dtype, shape = value.args[:2]
    if not isinstance(dtype, DType):
        raise FormatError(f"a {value.kind} without a dtype")
    return dtype, read_sizes(shape)


def _from_layout(layout: Any, at: int, names: Any) -> _Position:
    """A mesh whose dimensions are (sizes, strides) over a flat list of ranks.

    A dimension with several sizes is a flattened one; its last size varies fastest.
    """
    shape, coordinate = [], []
    for axis in _axes(layout):
        index = 0
        for size, stride in axis:
            index = index * size + at // stride % size
        shape.append(prod(size for size, _ in axis))
        coordinate.append(index)
    return _Position(Mesh(tuple(shape), _names(names)), tuple(coordinate))


def _axes(layout: Any) -> list[list[tuple[int, int]]]:
    """Per mesh dimension its (size, stride) pairs.

    torch 2.13 keeps ``axes``, one flat layout per dimension; 2.9 to 2.12 one layout with nested
    ``shape`` and ``stride`` whose top level are the dimensions.
    """
    if not isinstance(layout, StandIn):
        raise FormatError("a device mesh without a layout")
    axes = layout.get("axes")
    if axes is not None:
        return [_pairs(*_fields(axis, "shape", "stride")) for axis in _few(axes)]
    sizes, strides = _fields(layout, "shape", "stride")
    if isinstance(sizes, int):
        return [_pairs(sizes, strides)]
    return [_pairs(*each) for each in zip(_few(sizes), _few(strides), strict=True)]


def _pairs(sizes: Any, strides: Any) -> list[tuple[int, int]]:
    if isinstance(sizes, int):
        sizes, strides = (sizes,), (strides,)
    pairs = list(zip(_few(sizes), _few(strides), strict=True))
    if not all(isinstance(n, int) and isinstance(s, int) and n > 0 and s > 0 for n, s in pairs):
        raise FormatError("a device mesh with sizes or strides that are not positive")
    return pairs


def _fields(value: Any, *names: str) -> list[Any]:
    """Attributes of a stand-in: by name in its state, else by position in its arguments."""
    if not isinstance(value, StandIn):
        raise FormatError(f"a {type(value).__name__} where an object with {names} was expected")
    if isinstance(value.state, dict) and all(name in value.state for name in names):
        return [value.state[name] for name in names]
    held = value.state if isinstance(value.state, tuple) else value.args
    if len(held) < len(names):
        raise FormatError(f"a {value.kind} without {', '.join(names)}")
    return list(held[: len(names)])


def _placement(item: Any) -> Placement:
    if not isinstance(item, StandIn):
        raise FormatError("a placement that is not one")
    dim = item.get("dim", item.args[0] if item.args else None)
    factor = item.get("split_factor", item.args[1] if len(item.args) > 1 else None)
    return Placement(
        item.kind,
        dim if isinstance(dim, int) else None,
        factor if isinstance(factor, int) else None,
    )


def _shard_order(entries: Any) -> dict[int, Sequence[int]] | None:
    if entries is None:
        return None
    found = dict(_fields(entry, "tensor_dim", "mesh_dims") for entry in _few(entries))
    return {tensor_dim: _few(mesh_dims) for tensor_dim, mesh_dims in found.items()}


def _names(names: Any) -> tuple[str, ...] | None:
    return tuple(map(_name, _few(names))) if isinstance(names, (tuple, list)) else None


def _name(value: Any) -> str:
    return value[:MAX_NAME] if isinstance(value, str) else describe(value)


def _few(values: Any) -> Sequence[Any]:
    """A list of a few: one that many tensors share is walked for each of them."""
    if not isinstance(values, (tuple, list)) or len(values) > MAX_ITEMS:
        raise FormatError("a list that is none, or that is longer than any that torch writes")
    return values


def _index(ranks: list[int], rank: int) -> int:
    if rank not in ranks:
        raise FormatError(f"rank {rank} is not in the device mesh {ranks[:8]}")
    return ranks.index(rank)
