"""What rank files say, one after the other: local tensors by name, and what is wrong."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ckpt_tool.common.errors import FormatError, Problem
from ckpt_tool.readers.base import Entry, Mesh, collect
from ckpt_tool.readers.fsdp.dtensor import Described, RankDecoder
from ckpt_tool.readers.fsdp.local import LocalTensor
from ckpt_tool.readers.fsdp.roll import EXTRA_STATE, Roll
from ckpt_tool.readers.torch_save.archive import TorchArchive
from ckpt_tool.readers.torch_save.replay import Replayed, Script
from ckpt_tool.readers.torch_save.standins import StandIn
from ckpt_tool.tensors.checksums import FileSums
from ckpt_tool.tensors.dtypes import UINT8


@dataclass
class Gathered:
    """What the rank files said so far: local tensors by name, ranks read, and problems.

    ``locals``: every name, with what ranks have that are in no roll with it. ``rolls``: of ranks
    that repeat one another; the last may get more. ``states``: names of objects of Transformer
    Engine, which are no tensors. ``sums``: the checksums of each file.
    """

    locals: dict[str, list[tuple[int, LocalTensor]]] = field(default_factory=dict)
    rolls: list[Roll] = field(default_factory=list)
    states: list[str] = field(default_factory=list)
    read_ranks: list[int] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    sums: dict[str, FileSums] = field(default_factory=dict)
    _script: Script | None = None
    _shared: Mapping[Any, Any] | None = None
    _known: dict[int, Described] = field(default_factory=dict)

    def report(self, kind: str, where: object, message: str) -> None:
        """Add a problem."""
        self.problems.append(Problem(kind, str(where), message))

    def list_locals(self, name: str) -> list[tuple[int, LocalTensor]]:
        """What each rank has of a tensor, by ascending ranks."""
        found = [*self.locals[name]]
        for roll in self.rolls:
            number = roll.numbers.get(name)
            if number is not None:
                found += ((each.rank, roll.get_local(each, number)) for each in roll.members)
        return sorted(found, key=lambda pair: pair[0])

    def list_meshes(self) -> Iterator[Mesh]:
        """The meshes of all tensors."""
        for roll in self.rolls:
            for member in roll.members:
                yield from member.meshes
        for found in self.locals.values():
            for _, local in found:
                if local.mesh is not None:
                    yield local.mesh

    def read_rank(self, path: Path, rank: int) -> None:
        """Add one rank file; UnsafeContentError where its pickle asks for code."""
        with collect(self.problems, "unreadable", path), TorchArchive(path) as archive:
            found = self._load(archive)
            decoder = RankDecoder(archive, rank, found.meshes, self._known)
            self._add(found, decoder, f"rank {rank}, {path.name}")
            self.sums[str(path)] = FileSums(archive.sums())
            self.read_ranks.append(rank)

    def add(self, other: Gathered) -> None:
        """Add what the files of later ranks say, of which no more will be read."""
        for name, found in other.locals.items():
            self.locals.setdefault(name, []).extend(found)
        self.rolls += other.rolls
        self.states += other.states
        self.read_ranks += other.read_ranks
        self.problems += other.problems
        self.sums |= other.sums

    def finish(self) -> None:
        """No other rank will be read: let go of what only that takes."""
        self._script, self._shared = None, None
        self._known.clear()
        for roll in self.rolls:
            roll.close()

    def _load(self, archive: TorchArchive) -> Replayed:
        """A rank's state dict: another rank's but for where in its meshes it is, or its own."""
        pickle = archive.read_pickle()
        found = self._script.replay(pickle) if self._script is not None else None
        if found is None:
            self.finish()
            self._script = archive.make_script(pickle)
            found = self._script.play()
        if found is None:
            state = archive.load(pickle=pickle)
            if not isinstance(state, dict):
                what = type(state).__name__
                raise FormatError(f"holds a {what}, expected a state dict", path=archive.path)
            found = Replayed(state)
        return found

    def _add(self, found: Replayed, decoder: RankDecoder, where: str) -> None:
        """What a state dict holds; ``where``: whose it is, for what is wrong with one tensor."""
        numbers = self._call(found.shared, decoder)
        for name, value in found.state.items():
            if name in numbers:
                self.locals.setdefault(name, [])
            else:
                self._add_tensor(name, value, decoder, where)

    def _call(self, shared: Mapping[Any, Any], decoder: RankDecoder) -> Mapping[str, int]:
        """The names that a rank has in a roll with others, which repeat ``shared``."""
        if not shared:
            return {}
        if shared is not self._shared:
            self._shared = shared
            self.rolls.append(Roll(shared, self._known))
        roll = self.rolls[-1]
        return roll.numbers if roll.call(decoder) else {}

    def _add_tensor(self, name: Any, value: Any, decoder: RankDecoder, where: str) -> None:
        if not isinstance(name, str):
            self.report("tensor", where, "a name that is no text")
            return
        if name.endswith(EXTRA_STATE) and isinstance(value, (StandIn, bytes, type(None))):
            self.states.append(name)
            return
        try:
            local = decoder.decode(name, value)
        except FormatError as error:
            self.report("tensor", f"{name} ({where})", error.reason)
            return
        self.locals.setdefault(name, []).append((decoder.rank, local))


def leave_out_states(gathered: Gathered) -> dict[str, Entry]:
    """Objects that are no tensors, so that it is said that they are not written."""
    return {name: Entry(name, (0,), UINT8, "", ()) for name in gathered.states}


def find_largest_mesh(gathered: Gathered) -> Mesh | None:
    """The mesh with the most dimensions and ranks: submeshes of it hold the other tensors."""
    meshes = {*gathered.list_meshes()}
    return max(meshes, key=lambda mesh: (len(mesh.shape), mesh.shape), default=None)
