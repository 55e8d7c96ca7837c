"""FSDP rank files: one ``torch.save`` archive per rank; for their names see :mod:`.files`.

Written by verl, VeOmni and accelerate: a state dict of DTensors (FSDP1 with a mesh, FSDP2),
ShardedTensors (FSDP1 without one) or plain tensors (world size 1, and buffers, which every rank
holds). Config and tokenizer lie in ``huggingface/`` or beside the shards; ``fsdp_config.json``,
where present, repeats the world size.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from math import prod
from pathlib import Path
from typing import Any

from ckpt_tool.common.errors import FormatError, Problem
from ckpt_tool.common.links import find_fault
from ckpt_tool.common.untrusted import read_json_object, show
from ckpt_tool.common.wording import count_noun
from ckpt_tool.readers.base import TANGLED, Checkpoint, Entry, Mesh, collect
from ckpt_tool.readers.find import find, locate_first_config
from ckpt_tool.readers.fsdp.dtensor import Described, RankDecoder
from ckpt_tool.readers.fsdp.files import find_rank_files, list_rank_files, report_missing
from ckpt_tool.readers.fsdp.local import LocalTensor
from ckpt_tool.readers.fsdp.slices import join_slices
from ckpt_tool.readers.torch_save.archive import TorchArchive
from ckpt_tool.readers.torch_save.replay import Replayed, Script
from ckpt_tool.readers.torch_save.standins import StandIn
from ckpt_tool.tensors.checksums import FileSums
from ckpt_tool.tensors.dtypes import UINT8
from ckpt_tool.tensors.geometry import check_coverage, list_some

_SHOWN_RANKS = 8


@dataclass
class Gathered:
    """What the rank files said so far: local tensors by name, ranks read, and problems.

    ``states``: names of objects of Transformer Engine, which are no tensors. ``sums``: the
    checksums of each file. ``script``: the last pickle that was run whole; ``known``: what its
    tensors say.
    """

    locals: dict[str, list[tuple[int, LocalTensor]]] = field(default_factory=dict)
    states: list[str] = field(default_factory=list)
    read_ranks: list[int] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    sums: dict[str, FileSums] = field(default_factory=dict)
    script: Script | None = None
    known: dict[int, Described] = field(default_factory=dict)

    def report(self, kind: str, where: object, message: str) -> None:
        self.problems.append(Problem(kind, str(where), message))


def locate_fsdp(path: Path) -> Path | None:
    """The folder at or below ``path`` that holds rank files, or None; raises what `find` does."""
    return find(path, lambda folder: bool(find_rank_files(folder)))


def open_fsdp(folders: Sequence[Path]) -> Checkpoint:
    """Read the metadata of every rank file in ``folders`` (one per node, or just one).

    What is missing or contradictory becomes the checkpoint's ``problems``; only a file whose
    pickle asks for code raises (UnsafeContentError).
    """
    found = list_rank_files(folders)
    gathered = Gathered(problems=[*found.problems])
    if found.world is not None:
        gathered.problems += report_missing([*found.by_rank], found.world, folders[0])
    for rank, path in found.by_rank.items():
        read_rank(path, rank, gathered)
    gathered.script = None
    gathered.known.clear()
    mesh = find_largest_mesh(gathered)
    world_size = found.world
    if world_size is None:
        world_size = max([*found.by_rank, prod(mesh.shape) - 1 if mesh else 0]) + 1
        gathered.problems += report_missing([*found.by_rank], world_size, folders[0])
    for folder in folders:
        _check_config(folder, folders, world_size, gathered)
    expected = sorted(gathered.read_ranks)
    complete = len(expected) == world_size
    entries = {
        name: _assemble(name, held, expected, complete, gathered)
        for name, held in gathered.locals.items()
    }
    _sum_up_flat(entries, gathered, folders[0])
    return Checkpoint(
        format="fsdp",
        path=folders[0],
        entries=entries,
        files=found.files,
        problems=tuple(gathered.problems),
        world_size=world_size,
        mesh=mesh,
        side_files=locate_first_config(folders),
        left_out=leave_out_states(gathered),
        sums=gathered.sums,
    )


def leave_out_states(gathered: Gathered) -> dict[str, Entry]:
    """Objects that are no tensors, so that it is said that they are not written."""
    return {name: Entry(name, (0,), UINT8, "", ()) for name in gathered.states}


def read_rank(path: Path, rank: int, gathered: Gathered) -> None:
    """Add one rank file to ``gathered``; UnsafeContentError where its pickle asks for code."""
    with collect(gathered.problems, "unreadable", path), TorchArchive(path) as archive:
        found = _load(archive, gathered)
        decoder = RankDecoder(archive, rank, found.meshes, gathered.known)
        _add_tensors(found.state, decoder, f"rank {rank}, {path.name}", gathered)
        gathered.sums[str(path)] = FileSums(archive.sums())
        gathered.read_ranks.append(rank)


def _load(archive: TorchArchive, gathered: Gathered) -> Replayed:
    """A rank's state dict: that of another rank, but for where in its meshes it is, or its own."""
    pickle, script = archive.read_pickle(), gathered.script
    found = script.replay(pickle) if script is not None else None
    if found is None:
        gathered.known.clear()
        gathered.script = archive.make_script(pickle)
        found = gathered.script.play()
    if found is None:
        state = archive.load(pickle=pickle)
        if not isinstance(state, dict):
            what = type(state).__name__
            raise FormatError(f"holds a {what}, expected a state dict", path=archive.path)
        found = Replayed(state, {})
    return found


def _add_tensors(
    state: dict[Any, Any], decoder: RankDecoder, where: str, gathered: Gathered
) -> None:
    """What a state dict holds; ``where``: whose it is, for what is wrong with single tensors."""
    for name, value in state.items():
        if not isinstance(name, str):
            gathered.report("tensor", where, "a name that is no text")
            continue
        if name.endswith("_extra_state") and isinstance(value, (StandIn, bytes, type(None))):
            gathered.states.append(name)
            continue
        try:
            local = decoder.decode(name, value)
        except FormatError as error:
            gathered.report("tensor", f"{name} ({where})", error.reason)
            continue
        gathered.locals.setdefault(name, []).append((decoder.rank, local))


def _check_config(
    folder: Path, folders: Sequence[Path], world_size: int, gathered: Gathered
) -> None:
    path = folder / "fsdp_config.json"
    if not os.path.lexists(path):
        return
    fault = find_fault(path, folders)
    if fault is not None:
        gathered.report(fault.kind, path, f"{fault.message}; copy the file there, or remove it")
        return
    said = None
    with collect(gathered.problems, "fsdp-config", path):
        said = read_json_object(path).get("world_size")
    if said not in (None, world_size):
        gathered.report(
            "world-size", path, f"says world size {show(said)}, the rank files say {world_size}"
        )


def _assemble(
    name: str,
    found: list[tuple[int, LocalTensor]],
    expected: list[int],
    complete: bool,
    gathered: Gathered,
) -> Entry:
    """Join what the ranks hold of one tensor; what does not fit becomes problems."""
    try:
        found = join_slices(found)
    except FormatError as error:
        gathered.report("contradiction", name, error.reason)
    first_rank, first = found[0]
    for rank, local in found[1:]:
        if (local.shape, local.dtype) != (first.shape, first.dtype):
            gathered.report(
                "contradiction",
                name,
                f"{local.dtype} {list(local.shape)} on rank {rank}, {first.dtype}"
                f" {list(first.shape)} on rank {first_rank}",
            )
    present = {rank for rank, _ in found}
    absent = [str(rank) for rank in islice((r for r in expected if r not in present), _SHOWN_RANKS)]
    if absent:
        rest = len(expected) - len(present) - len(absent)
        ranks = ", ".join(absent) + (f" and {rest} more" if rest else "")
        gathered.report("missing-on-rank", name, f"not in the file of rank {ranks}, but in others")
    holdings = tuple(holding for _, local in found for holding in local.holdings)
    placements = " | ".join(dict.fromkeys(local.placements for _, local in found))
    entry = Entry(name, first.shape, first.dtype, placements, holdings)
    same_shape = all(local.shape == first.shape for _, local in found)
    # Missing ranks leave every tensor uncovered: the one problem that says so is enough.
    if complete and same_shape and not absent:
        coverage = check_coverage(entry.shape, entry.owners())
        for kind, boxes in (("missing", coverage.missing), ("overlapping", coverage.overlapping)):
            if boxes:
                message = f"{kind} {list_some(boxes)} of {list(entry.shape)}"
                gathered.report("coverage", name, message)
        if coverage.is_tangled:
            gathered.report("coverage", name, TANGLED)
    return entry


def _sum_up_flat(names: Iterable[str], gathered: Gathered, folder: Path) -> None:
    """One problem for the parts of flattened parameters, whose lengths differ by rank.

    FSDP1 has them in a LOCAL_STATE_DICT, beside ``_flat_param``, which they are views of.
    """
    kinds = [problem.kind for problem in gathered.problems]
    if "contradiction" in kinds and any(name.endswith("_flat_param") for name in names):
        rest = [each for each in gathered.problems if each.kind != "contradiction"]
        said = (
            f"{count_noun(kinds.count('contradiction'), 'tensor')} cut from flat parameters of"
            " FSDP1 (LOCAL_STATE_DICT): which elements a rank has is written nowhere; save a"
            " SHARDED_STATE_DICT from the run"
        )
        gathered.problems[:] = [*rest, Problem("flat-parameters", str(folder), said)]


def find_largest_mesh(gathered: Gathered) -> Mesh | None:
    """The mesh with the most dimensions and ranks: submeshes of it hold the other tensors."""
    meshes = {local.mesh for found in gathered.locals.values() for _, local in found}
    known = [mesh for mesh in meshes if mesh is not None]
    return max(known, key=lambda mesh: (len(mesh.shape), mesh.shape), default=None)
