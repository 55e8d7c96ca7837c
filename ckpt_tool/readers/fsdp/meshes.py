"""Pickled device meshes: their shape, and where in it the rank is that wrote them.

A mesh is stored as a tensor of ranks (``mesh``) or, in newer torch, as ``_layout`` (sizes and
strides) over ``_rank_map``. Source: ``torch/distributed/device_mesh.py`` and ``_mesh_layout.py``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import prod
from typing import Any

from ckpt_tool.common.errors import FormatError
from ckpt_tool.readers.base import Mesh
from ckpt_tool.readers.fsdp.local import Slice
from ckpt_tool.readers.fsdp.slices import name_parallelism
from ckpt_tool.readers.torch_save.archive import TorchArchive
from ckpt_tool.readers.torch_save.rebuilding import TensorRef
from ckpt_tool.readers.torch_save.standins import (
    MAX_NAME,
    StandIn,
    describe,
    list_few,
    list_fields,
)
from ckpt_tool.tensors.geometry import Shape, unravel


@dataclass(frozen=True, slots=True)
class Position:
    """A rank's place in a mesh; ``slice``: what the mesh's tensors are parts of, if they are."""

    mesh: Mesh
    coordinate: Shape
    slice: Slice | None = None


class MeshDecoder:
    """Decodes the meshes of one rank's file; what they share is read once."""

    def __init__(self, archive: TorchArchive, rank: int, instead: Mapping[int, StandIn]) -> None:
        self._instead = instead
        self._archive = archive
        self._rank = rank
        self._positions: dict[int, Position] = {}
        self._places: dict[TensorRef, tuple[int, int]] = {}  # where it is, and the lowest rank
        self._room = archive.bytes  # for the ranks of meshes

    def find(self, mesh: Any) -> Position:
        """Where the rank is in a mesh; FormatError where it is in none, or that is none."""
        if not isinstance(mesh, StandIn):
            raise FormatError("a DTensor without a device mesh")
        mesh = self._instead.get(id(mesh), mesh)
        if id(mesh) not in self._positions:
            self._positions[id(mesh)] = self._decode_mesh(mesh)
        return self._positions[id(mesh)]

    def _decode_mesh(self, mesh: StandIn) -> Position:
        position = self._locate(mesh)
        written_by = mesh.get("_coordinate_on_dim")
        if written_by is not None and not all(isinstance(at, int) for at in list_few(written_by)):
            raise FormatError("a device mesh with a coordinate of other things than numbers")
        if written_by is not None and tuple(written_by) != position.coordinate:
            raise FormatError(
                f"written by the rank at {list(written_by)} of the mesh, but the file name says"
                f" rank {self._rank}, at {list(position.coordinate)}"
            )
        return replace(position, slice=self._find_slice(mesh, position.mesh))

    def _locate(self, mesh: StandIn) -> Position:
        if isinstance(mesh.get("mesh"), TensorRef):
            return self._from_ranks(mesh.get("mesh"), mesh.get("mesh_dim_names"))
        if isinstance(mesh.get("_rank_map"), TensorRef):
            at, _ = self._find_place(mesh.get("_rank_map"))
            return _from_layout(mesh.get("_layout"), at, mesh.get("_mesh_dim_names"))
        raise FormatError("a device mesh of an unknown kind")

    def _find_slice(self, mesh: StandIn, shape: Mesh) -> Slice | None:
        """Which part of its tensors a submesh holds, as the mesh that it is of says, or its ranks.

        torch keeps the whole mesh with a submesh since 2.10; before, only the submesh's ranks.
        """
        name = name_parallelism(shape)
        if name is None:
            return None
        if isinstance(mesh.get("mesh"), TensorRef):
            return Slice(name, self._find_place(mesh.get("mesh"))[1])
        root = mesh.get("_root_mesh")
        root = self._instead.get(id(root), root)
        if not isinstance(root, StandIn):
            return None
        whole = self._locate(root)
        names = whole.mesh.dim_names or ()
        if name not in names:
            return None
        at = names.index(name)
        return Slice(name, whole.coordinate[at], whole.mesh.shape[at])

    def _from_ranks(self, ref: TensorRef, names: Any) -> Position:
        at, _ = self._find_place(ref)
        return Position(Mesh(ref.shape, _names(names)), unravel(at, ref.shape))

    def _find_place(self, ref: TensorRef) -> tuple[int, int]:
        """Where in a tensor of ranks this one is, and the lowest; worked out once for each."""
        if ref not in self._places:
            self._room -= prod(ref.shape)
            if self._room < 0:
                raise FormatError("device meshes of more ranks than their file has bytes")
            ranks = self._archive.read_integers(ref)
            self._places[ref] = _index(ranks, self._rank), min(ranks)
        return self._places[ref]


def _from_layout(layout: Any, at: int, names: Any) -> Position:
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
    return Position(Mesh(tuple(shape), _names(names)), tuple(coordinate))


def _axes(layout: Any) -> list[list[tuple[int, int]]]:
    """Per mesh dimension its (size, stride) pairs.

    torch 2.13 keeps ``axes``, one flat layout per dimension; 2.9 to 2.12 one layout with nested
    ``shape`` and ``stride`` whose top level are the dimensions.
    """
    if not isinstance(layout, StandIn):
        raise FormatError("a device mesh without a layout")
    axes = layout.get("axes")
    if axes is not None:
        return [_pairs(*list_fields(axis, "shape", "stride")) for axis in list_few(axes)]
    sizes, strides = list_fields(layout, "shape", "stride")
    if isinstance(sizes, int):
        return [_pairs(sizes, strides)]
    return [_pairs(*each) for each in zip(list_few(sizes), list_few(strides), strict=True)]


def _pairs(sizes: Any, strides: Any) -> list[tuple[int, int]]:
    if isinstance(sizes, int):
        sizes, strides = (sizes,), (strides,)
    pairs = list(zip(list_few(sizes), list_few(strides), strict=True))
    if not all(isinstance(n, int) and isinstance(s, int) and n > 0 and s > 0 for n, s in pairs):
        raise FormatError("a device mesh with sizes or strides that are not positive")
    return pairs


def _names(names: Any) -> tuple[str, ...] | None:
    return tuple(map(_name, list_few(names))) if isinstance(names, (tuple, list)) else None


def _name(value: Any) -> str:
    return value[:MAX_NAME] if isinstance(value, str) else describe(value)


def _index(ranks: list[int], rank: int) -> int:
    if rank not in ranks:
        raise FormatError(f"rank {rank} is not in the device mesh {ranks[:8]}")
    return ranks.index(rank)
