"""Pickled DTensors, ShardedTensors and plain tensors: what one rank holds of one tensor.

DTensor state: ``_local_tensor`` and ``_spec`` (``mesh``, ``placements``, ``tensor_meta``); for the
mesh see :mod:`ckpt_tool.readers.fsdp.meshes`. ShardedTensor state: a list of (tensor, metadata with
offsets and sizes).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ckpt_tool.common.errors import FormatError
from ckpt_tool.readers.base import Holding
from ckpt_tool.readers.fsdp.local import LocalTensor
from ckpt_tool.readers.fsdp.meshes import MeshDecoder, Position
from ckpt_tool.readers.fsdp.placements import Placement, find_local_box
from ckpt_tool.readers.torch_save.archive import TorchArchive
from ckpt_tool.readers.torch_save.rebuilding import TensorRef, read_sizes
from ckpt_tool.readers.torch_save.standins import StandIn, list_few, list_fields, name_kind
from ckpt_tool.tensors.dtypes import DType
from ckpt_tool.tensors.geometry import Box, Shape, is_in_bounds

#: What reading a malformed value may raise besides FormatError.
FAULTS = (TypeError, ValueError, IndexError, AttributeError)


@dataclass(frozen=True, slots=True)
class Described:
    """What a DTensor says of itself whatever rank has it; ``value``: itself, as long as it counts.

    ``local``: what the rank has of it; ``text``: its placements, for people.
    """

    value: StandIn | None
    shape: Shape
    local: TensorRef
    mesh: Any
    placements: tuple[Placement, ...]
    order: tuple[tuple[int, Sequence[int]], ...] | None
    text: str


class RankDecoder:
    """Decodes the values of one rank's state dict; meshes, which repeat, are read once."""

    #: Classes of tensors that are shared among ranks.
    KINDS = ("DTensor", "ShardedTensor")

    def __init__(
        self,
        archive: TorchArchive,
        rank: int,
        meshes: Mapping[int, StandIn] | None = None,
        known: dict[int, Described] | None = None,
    ) -> None:
        """``meshes``: by the identity of a mesh in a value, what is in this file in its place.

        ``known``: what was found out of values, by their identity, for those that ranks share.
        """
        self.archive = archive
        self._known = {} if known is None else known
        self._places: dict[Any, tuple[Box, bool]] = {}
        self.rank = rank
        self._meshes = MeshDecoder(archive, rank, meshes or {})

    def decode(self, name: str, value: Any) -> LocalTensor:
        """What ``value`` says; FormatError where it is not a tensor or contradicts itself."""
        try:
            return self._decode(name, value)
        except FAULTS as error:
            raise FormatError(f"a malformed {name_kind(value)} ({error})") from error

    def _decode(self, name: str, value: Any) -> LocalTensor:
        if id(value) in self._known:
            return self._dtensor(name, value)
        if isinstance(value, TensorRef):
            return self._plain(name, value)
        kind = name_kind(value)
        if kind == "DTensor":
            return self._dtensor(name, value)
        if kind == "ShardedTensor":
            return self._sharded(name, value)
        raise FormatError(f"a value of type {kind}, expected a tensor")

    def _plain(self, name: str, ref: TensorRef) -> LocalTensor:
        stored = self.archive.locate_tensor(ref, name)
        whole = Box((0,) * len(ref.shape), ref.shape)
        holding = Holding(self.rank, whole, stored.region)
        return LocalTensor(ref.shape, ref.dtype, "plain", (holding,), None)

    def _dtensor(self, name: str, value: StandIn) -> LocalTensor:
        known = self._known.get(id(value))
        if known is None:
            known = self._known[id(value)] = describe(value)
        shape, local = known.shape, known.local
        position, box, copied = self.place(known)
        region = self.archive.locate_tensor(local, name).region
        holding = Holding(self.rank, box, region, copied)
        text = known.text
        return LocalTensor(shape, local.dtype, text, (holding,), position.mesh, position.slice)

    def place(self, known: Described) -> tuple[Position, Box, bool]:
        """Where the rank is in the mesh, its block, and whether others have it too.

        FormatError where it is in no such mesh, or has a block of another shape.
        """
        position, local = self._meshes.find(known.mesh), known.local
        box, copied = self._find_box(known, position)
        if box.sizes != local.shape:
            raise FormatError(
                f"local shape {list(local.shape)}, expected {list(box.sizes)} at offset"
                f" {list(box.offsets)} of {list(known.shape)} with {known.text}"
            )
        return position, box, copied

    def _find_box(self, known: Described, position: Position) -> tuple[Box, bool]:
        """The block, and whether others have it too; worked out once for all alike."""
        mesh = position.mesh.shape
        key = (known.shape, known.placements, known.order, mesh, position.coordinate)
        found = self._places.get(key)
        if found is not None:
            return found
        placements = known.placements
        if len(placements) != len(mesh) or not all(each.known for each in placements):
            raise FormatError(
                f"placements ({known.text}) on a mesh of {list(mesh)} cannot be merged:"
                " only Shard and Replicate hold whole values"
            )
        order = None if known.order is None else dict(known.order)
        box = find_local_box(known.shape, mesh, position.coordinate, placements, order)
        copied = any(p.kind == "Replicate" and n > 1 for p, n in zip(placements, mesh, strict=True))
        found = self._places[key] = box, copied
        return found

    def _sharded(self, name: str, value: StandIn) -> LocalTensor:
        (dtype, shape), state = _shell(value), value.state
        if not (isinstance(state, tuple) and state and isinstance(state[0], list)):
            raise FormatError("a ShardedTensor without shards")
        holdings = []
        for shard in list_few(state[0]):
            ref, metadata = list_fields(shard, "tensor", "metadata")
            offsets, sizes = list_fields(metadata, "shard_offsets", "shard_sizes")
            box = Box(read_sizes(offsets), read_sizes(sizes))
            if not isinstance(ref, TensorRef) or (ref.shape, ref.dtype) != (box.sizes, dtype):
                raise FormatError(
                    f"a shard that is not the {dtype} tensor of {list(box.sizes)} it says"
                )
            if not is_in_bounds(shape, box):
                raise FormatError(f"a shard at {box}, outside of {list(shape)}")
            region = self.archive.locate_tensor(ref, name).region
            holdings.append(Holding(self.rank, box, region))
        return LocalTensor(shape, dtype, "ShardedTensor", tuple(holdings), None)


def _shell(value: StandIn) -> tuple[DType, Shape]:
    """Dtype and global shape: the arguments with which torch rebuilds the outer tensor."""
    dtype, shape = value.args[:2]
    if not isinstance(dtype, DType):
        raise FormatError(f"a {value.kind} without a dtype")
    return dtype, read_sizes(shape)


def describe(value: StandIn) -> Described:
    """What a DTensor says of itself; FormatError where it is none, or does not say enough."""
    _, shape = _shell(value)
    local, spec = value.get("_local_tensor"), value.get("_spec")
    if not (isinstance(local, TensorRef) and isinstance(spec, StandIn)):
        raise FormatError("a DTensor without a local tensor or spec")
    placements = tuple(_placement(item) for item in list_few(spec.get("placements") or ()))
    order = _shard_order(spec.get("shard_order"))
    said = None if order is None else tuple((dim, tuple(by)) for dim, by in order.items())
    text = ", ".join(map(str, placements))
    return Described(value, shape, local, spec.get("mesh"), placements, said, text)


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
    found = [list_fields(entry, "tensor_dim", "mesh_dims") for entry in list_few(entries)]
    for tensor_dim, mesh_dims in found:
        if not all(isinstance(each, int) for each in (tensor_dim, *list_few(mesh_dims))):
            raise FormatError("a shard order of other things than numbers of dimensions")
    return dict(found)
