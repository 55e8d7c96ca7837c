"""FSDP rank files: one ``torch.save`` archive per rank; for their names see :mod:`.files`.

Written by verl, VeOmni and accelerate: a state dict of DTensors (FSDP1 with a mesh, FSDP2),
ShardedTensors (FSDP1 without one) or plain tensors (world size 1, and buffers, which every rank
holds). Config and tokenizer lie in ``huggingface/`` or beside the shards; ``fsdp_config.json``,
where present, repeats the world size.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from math import prod
from pathlib import Path

from ckpt_tool.common.errors import Problem
from ckpt_tool.common.links import find_fault
from ckpt_tool.common.untrusted import read_json_object, show
from ckpt_tool.common.wording import count_noun
from ckpt_tool.readers.base import Checkpoint, collect
from ckpt_tool.readers.find import find, locate_first_config
from ckpt_tool.readers.fsdp.files import find_rank_files, list_rank_files, report_missing
from ckpt_tool.readers.fsdp.gathered import Gathered, find_largest_mesh, leave_out_states
from ckpt_tool.readers.fsdp.joining import join_tensors
from ckpt_tool.readers.fsdp.shares import gather_all


def locate_fsdp(path: Path) -> Path | None:
    """The folder at or below ``path`` that holds rank files, or None; raises what `find` does."""
    return find(path, lambda folder: bool(find_rank_files(folder)))


def open_fsdp(folders: Sequence[Path]) -> Checkpoint:
    """Read the metadata of every rank file in ``folders`` (one per node, or just one).

    What is missing or contradictory becomes the checkpoint's ``problems``; only a file whose
    pickle asks for code raises (UnsafeContentError).
    """
    found = list_rank_files(folders)
    problems = [*found.problems]
    if found.world is not None:
        problems += report_missing([*found.by_rank], found.world, folders[0])
    gathered = gather_all(found.by_rank, found.files)
    gathered.problems[:0] = problems
    mesh = find_largest_mesh(gathered)
    world_size = found.world
    if world_size is None:
        world_size = max([*found.by_rank, prod(mesh.shape) - 1 if mesh else 0]) + 1
        gathered.problems += report_missing([*found.by_rank], world_size, folders[0])
    for folder in folders:
        _check_config(folder, folders, world_size, gathered)
    entries = join_tensors(gathered, world_size)
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
