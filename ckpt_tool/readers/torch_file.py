"""A single ``torch.save`` file: one FSDP rank by itself, or ``pytorch_model*.bin``.

A rank's file is shown as what it is, a set of *local* tensors; where each lies in its global
tensor is said in ``placements``.
"""

from __future__ import annotations

import os
from pathlib import Path

from ckpt_tool.readers.base import Checkpoint, Entry, Holding, ShardFile
from ckpt_tool.readers.fsdp.files import parse_rank_name
from ckpt_tool.readers.fsdp.local import LocalTensor
from ckpt_tool.readers.fsdp.ranks import Gathered, find_largest_mesh, read_rank
from ckpt_tool.tensors.geometry import Box


def locate_rank_file(path: Path) -> Path | None:
    """``path``, where it is one rank's file of an FSDP checkpoint; else None."""
    return path if path.is_file() and parse_rank_name(path.name) is not None else None


def locate_torch_file(path: Path) -> Path | None:
    """``path``, where it is any file: opening it says what is wrong with one of something else."""
    return path if path.is_file() else None


def open_torch_file(path: Path) -> Checkpoint:
    """The tensors of one archive; UnsafeContentError where its pickle asks for code."""
    named = parse_rank_name(path.name)
    rank = None if named is None else named.rank
    file = ShardFile.stat(path, rank)
    gathered = Gathered()
    read_rank(path, rank or 0, gathered)
    entries = {}
    for name, found in gathered.locals.items():
        for entry in _local_entries(name, found[0][1], rank):
            entries[entry.name] = entry
    return Checkpoint(
        format="torch" if named is None else "fsdp-rank",
        path=path,
        entries=entries,
        files=(file,),
        problems=tuple(gathered.problems),
        world_size=None if named is None else named.world,
        mesh=find_largest_mesh(gathered),
        side_files=path.parent if named is None and _has_config(path.parent) else None,
        sums=gathered.sums,
    )


def _has_config(folder: Path) -> bool:
    return os.path.lexists(folder / "config.json")


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
