"""The DTensors of ranks that repeat one pickle: what they say once, and where each rank has them.

Of hundreds of ranks with thousands of tensors each, a rank keeps one number for a tensor: where in
its file it begins.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from ckpt_tool.common.errors import FormatError
from ckpt_tool.readers.base import Holding, Mesh
from ckpt_tool.readers.fsdp.dtensor import FAULTS, Described, RankDecoder, describe
from ckpt_tool.readers.fsdp.local import LocalTensor
from ckpt_tool.readers.torch_save.rebuilding import TensorRef
from ckpt_tool.readers.torch_save.standins import StandIn
from ckpt_tool.tensors.chunks import Region
from ckpt_tool.tensors.geometry import Box

#: What Transformer Engine calls objects that are no tensors.
EXTRA_STATE = "_extra_state"


@dataclass(frozen=True, slots=True)
class Member:
    """A rank of a roll, and its file.

    ``places``: of each kind of tensor its block, and whether others have it too; ``meshes``: which
    it is cut over. ``offsets``: where each tensor begins, in bytes.
    """

    rank: int
    path: str
    places: tuple[tuple[Box, bool], ...]
    meshes: tuple[Mesh, ...]
    offsets: array[int]


class Roll:
    """The DTensors of a state dict that ranks share, by name; those that nothing is wrong with.

    ``numbers``: of each name; ``kinds``: by number, which tensors are cut alike; ``samples``: one
    of each kind. ``members``: the ranks that were found to have all of them.
    """

    def __init__(self, state: Mapping[Any, Any], known: dict[int, Described]) -> None:
        """``known``: learns what the values of ``state`` say, by their identity."""
        self.numbers: dict[str, int] = {}
        self.kinds = array("I")
        self.samples: list[Described] = []
        self.members: list[Member] = []
        self._refs: list[TensorRef] = []
        seen: dict[Any, int] = {}
        for name, value in state.items():
            if not isinstance(name, str) or name.endswith(EXTRA_STATE):
                continue
            found = _describe_sound(value, known)
            if found is not None:
                self.numbers[name] = len(self.kinds)
                self.kinds.append(self._find_kind(found, seen))
                self._refs.append(found.local)

    def _find_kind(self, found: Described, seen: dict[Any, int]) -> int:
        local = found.local
        mesh, cut = id(found.mesh), (found.placements, found.order)
        key = (found.shape, mesh, cut, local.shape, local.strides, local.dtype)
        if key not in seen:
            seen[key] = len(self.samples)
            self.samples.append(found)
        return seen[key]

    def call(self, decoder: RankDecoder) -> bool:
        """Make a rank a member; False where it has not all of them as the roll says."""
        try:
            found = [decoder.place(sample) for sample in self.samples]
            if any(position.slice is not None for position, _, _ in found):
                return False
            offsets = array("Q", decoder.archive.find_all(self._refs))
        except (FormatError, *FAULTS):
            return False  # what is wrong is said of each tensor
        places = tuple((box, copied) for _, box, copied in found)
        meshes = tuple(position.mesh for position, _, _ in found)
        path = decoder.archive.path
        self.members.append(Member(decoder.rank, path, places, meshes, offsets))
        return True

    def close(self) -> None:
        """No other rank will be called: let go of what only that takes, and of what files say."""
        self._refs.clear()
        self.samples = [
            replace(sample, value=None, mesh=None, order=None) for sample in self.samples
        ]

    def get_local(self, member: Member, number: int) -> LocalTensor:
        """What a member has of a tensor, as if its file had been read by itself."""
        kind = self.kinds[number]
        sample = self.samples[kind]
        holding = self.get_holding(member, kind, member.offsets[number])
        mesh = member.meshes[kind]
        return LocalTensor(sample.shape, sample.local.dtype, sample.text, (holding,), mesh)

    def get_holding(self, member: Member, kind: int, offset: int = 0) -> Holding:
        """A member's block of a tensor of a kind, which begins at ``offset`` of its file."""
        box, copied = member.places[kind]
        region = Region(member.path, offset, self.samples[kind].local.strides)
        return Holding(member.rank, box, region, copied)


def _describe_sound(value: Any, known: dict[int, Described]) -> Described | None:
    """What a DTensor says; None for what is none, and where something is wrong with it."""
    if not (isinstance(value, StandIn) and value.kind == "DTensor"):
        return None
    try:
        found = known[id(value)] = describe(value)
    except (FormatError, *FAULTS):
        return None
    return found if found.local.fits else None
