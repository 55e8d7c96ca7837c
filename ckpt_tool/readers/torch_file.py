"""A single ``torch.save`` file: one FSDP rank by itself, ``pytorch_model*.bin``, a whole run's.

A rank's file is shown as what it is, a set of *local* tensors; where each lies in its global
tensor is said in ``placements``.
"""

from __future__ import annotations

import os
from math import prod
from pathlib import Path

from ckpt_tool.common.errors import Problem
from ckpt_tool.common.wording import count_noun
from ckpt_tool.readers.base import Checkpoint, Entry, Holding, Mesh, ShardFile, Wanted, collect
from ckpt_tool.readers.fsdp.dtensor import RankDecoder
from ckpt_tool.readers.fsdp.files import parse_rank_name
from ckpt_tool.readers.fsdp.gathered import Gathered, find_largest_mesh
from ckpt_tool.readers.fsdp.local import LocalTensor
from ckpt_tool.readers.state_dict import Found, find_tensors
from ckpt_tool.readers.torch_save.archive import TorchArchive
from ckpt_tool.readers.torch_save.names import resolve_run
from ckpt_tool.tensors.checksums import FileSums
from ckpt_tool.tensors.dtypes import UINT8
from ckpt_tool.tensors.geometry import Box


def locate_rank_file(path: Path) -> Path | None:
    """``path``, where it is one rank's file of an FSDP checkpoint; else None."""
    return path if path.is_file() and parse_rank_name(path.name) is not None else None


def locate_torch_file(path: Path) -> Path | None:
    """``path``, where it is any file: opening it says what is wrong with one of something else."""
    return path if path.is_file() else None


def locate_file_config(path: Path) -> Path | None:
    """The folder of such a file, where it has a ``config.json``."""
    return path.parent if os.path.lexists(path.parent / "config.json") else None


def open_flat_file(path: Path) -> Checkpoint:
    """The tensors of a plain state dict; UnsafeContentError where its pickle asks for code."""
    named = parse_rank_name(path.name)
    rank = None if named is None else named.rank
    file = ShardFile.stat(path, rank)
    gathered = Gathered()
    gathered.read_rank(path, rank or 0)
    entries = {}
    for name in gathered.locals:
        _, local = gathered.list_locals(name)[0]
        for entry in _local_entries(name, local, rank):
            entries[entry.name] = entry
    return Checkpoint(
        format="torch" if named is None else "fsdp-rank",
        path=path,
        entries=entries,
        files=(file,),
        problems=tuple(gathered.problems),
        world_size=None if named is None else named.world,
        mesh=find_largest_mesh(gathered),
        sums=gathered.sums,
    )


def open_torch_file(path: Path, wanted: Wanted | None = None) -> Checkpoint:
    """The tensors of a file, in dictionaries or not; those of one rank alone are no whole ones.

    Tensors that are not ``wanted`` are not looked at. UnsafeContentError where the pickle asks for
    code, or has objects of unknown classes among weights.
    """
    file = ShardFile.stat(path)
    problems: list[Problem] = []
    found, locals_, left_out = Found(), {}, {}
    sums: dict[str, FileSums] = {}
    with collect(problems, "unreadable", path), TorchArchive(path) as archive:
        pickle = archive.read_pickle()
        state = archive.load(resolve_run, pickle)
        found = find_tensors(state, len(pickle), str(path))
        decoder = RankDecoder(archive, 0)
        for name, value in found.tensors.items():
            if wanted is not None and not wanted(name):
                left_out[name] = _describe(name, value)
                continue
            with collect(problems, "tensor", name):
                locals_[name] = decoder.decode(name, value)
        sums[str(path)] = FileSums(archive.sums())
    if found.objects and not (found.tensors or found.problems):
        said = f"no tensor in it, but {count_noun(len(found.objects), 'object')} of a run"
        problems.append(Problem("missing-tensor", str(path), said))
    entries = [e for name, local in locals_.items() for e in _local_entries(name, local, None)]
    is_part = any(_is_part(local) for local in locals_.values())
    mesh = _find_mesh(locals_)
    return Checkpoint(
        format="fsdp-rank" if is_part else "torch",
        path=path,
        entries={entry.name: entry for entry in entries},
        files=(file,),
        problems=(*problems, *found.problems),
        world_size=prod(mesh.shape) if mesh is not None and is_part else None,
        mesh=mesh,
        side_files=locate_file_config(path),
        left_out=left_out,
        objects=tuple(found.objects),
        sums=sums,
        groups=found.groups,
    )


def _describe(name: str, value: object) -> Entry:
    """A tensor that nobody looks at: its shape and dtype, where these are plain."""
    shape, dtype = getattr(value, "shape", (0,)), getattr(value, "dtype", UINT8)
    return Entry(name, shape, dtype, "", ())


def _is_part(local: LocalTensor) -> bool:
    return [held.box.sizes for held in local.holdings] != [local.shape]


def _find_mesh(locals_: dict[str, LocalTensor]) -> Mesh | None:
    gathered = Gathered(locals={name: [(0, local)] for name, local in locals_.items()})
    return find_largest_mesh(gathered)


def _local_entries(name: str, local: LocalTensor, rank: int | None) -> list[Entry]:
    """One entry per block that the file holds; a ShardedTensor may have several or none."""
    entries = []
    for index, held in enumerate(local.holdings):
        label = name if len(local.holdings) == 1 else f"{name}[{index}]"
        placed = local.placements
        if held.box.sizes != local.shape:
            placed += f", {held.box} of {list(local.shape)}"
        whole = Box((0,) * len(held.box.sizes), held.box.sizes)
        holding = Holding(rank, whole, held.region)
        entries.append(Entry(label, held.box.sizes, local.dtype, placed, (holding,)))
    return entries
