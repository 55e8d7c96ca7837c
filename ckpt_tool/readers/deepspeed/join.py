"""Every tensor of a DeepSpeed checkpoint, with the blocks that files hold of it.

What was trained lies in the flat partitions of the optimizer states. What was frozen, and buffers,
lie in the model states: whole in stages 0 to 2; in stage 3 frozen parameters are cut as trained
ones are, and buffers are on every rank.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from math import prod
from pathlib import Path

from ckpt_tool.common.errors import Problem
from ckpt_tool.readers.base import Checkpoint, Entry, Holding, Mesh, ShardFile
from ckpt_tool.readers.deepspeed.folder import list_files
from ckpt_tool.readers.deepspeed.model_states import ModelStates
from ckpt_tool.readers.deepspeed.partitions import cut_each, measure_piece
from ckpt_tool.readers.deepspeed.ranks import Ranks, read_ranks
from ckpt_tool.readers.deepspeed.trained import hold_piece, join_trained
from ckpt_tool.readers.find import locate_config
from ckpt_tool.readers.torch_save.archive import StoredTensor
from ckpt_tool.tensors.dtypes import UINT8
from ckpt_tool.tensors.geometry import Box, Shape


def open_deepspeed(folder: Path) -> Checkpoint:
    """The tensors of the step in ``folder``; what is wrong with it becomes ``problems``.

    FormatError where it is of a kind that is not read (tensor or pipeline parallel, experts,
    universal), UnsafeContentError where a pickle asks for code.
    """
    files = list_files(folder)
    stats = tuple(ShardFile.stat(path, rank) for path, rank in files.listed())
    ranks = read_ranks(folder, files)
    first = ranks.first
    return Checkpoint(
        format="deepspeed",
        path=folder,
        entries={} if first is None else _join(first, ranks),
        files=stats,
        problems=tuple(ranks.problems),
        world_size=ranks.world,
        mesh=Mesh((ranks.world,), ("dp",)),
        side_files=locate_config(folder, beside=True) or locate_config(folder.parent),
        left_out={} if first is None else _leave_out(first),
        sums=ranks.sums,
        step=None if first is None else first.step,
    )


def _leave_out(first: ModelStates) -> dict[str, Entry]:
    """What is not written, so that it is said.

    Objects of Transformer Engine, and second names of frozen parameters that were excluded:
    DeepSpeed then saves the one without the other.
    """
    states = {name: Entry(name, (0,), UINT8, "", ()) for name in first.module.states}
    for name, owner in first.shared.items():
        ref = first.module.refs.get(name)
        if ref is not None and _is_excluded(owner, first):
            states[name] = Entry(name, ref.shape, ref.dtype, "", ())
    return states


def _is_excluded(owner: str, first: ModelStates) -> bool:
    """Whether a parameter was left out with ``exclude_frozen_parameters``."""
    trained = any(owner in group for group in first.groups or ())
    return not trained and not first.frozen_shapes and owner not in first.module.refs


def _join(first: ModelStates, ranks: Ranks) -> dict[str, Entry]:
    """Every tensor, in the order of the state dict; without blocks where sizes do not fit."""
    trained = join_trained(first, ranks)
    names = dict.fromkeys([*first.module.refs, *trained, *first.frozen_shapes, *first.shared])
    owners = [name for name in names if name in trained or name not in first.shared]
    entries = {name: _take(name, first, trained, ranks) for name in owners}
    for name in names:
        if name in entries:
            continue
        owner = first.shared[name]
        if owner in entries:
            entries[name] = replace(entries[owner], name=name)
        elif not _is_excluded(owner, first):
            ranks.report("missing-tensor", name, f"shared with {owner}, which is nowhere")
    return {name: entries[name] for name in names if name in entries}


def _take(name: str, first: ModelStates, trained: Mapping[str, Entry], ranks: Ranks) -> Entry:
    """One tensor that is no second name of another."""
    if name in trained:
        return trained[name]
    if ranks.each and name in first.frozen_shapes:
        return _join_frozen(name, first.frozen_shapes[name], ranks)
    return _copy(name, first, ranks)


def _join_frozen(name: str, shape: Shape, ranks: Ranks) -> Entry:
    """A frozen parameter of stage 3: a piece on every rank, of one size, the last ones padded."""
    pieces = {
        rank: model.frozen[name] for rank, model in ranks.models.items() if name in model.frozen
    }
    length = measure_piece(prod(shape), ranks.world)
    kinds = {(piece.dtype, piece.shape) for piece in pieces.values()}
    dtype = next(iter(kinds))[0] if kinds else UINT8
    holdings: list[Holding] = []
    if kinds == {(dtype, (length,))} and len(pieces) == ranks.world:
        cut = cut_each([prod(shape)], ranks.world, [length])[0]
        holdings = [held for piece in cut for held in hold_piece(shape, piece, pieces[piece.rank])]
    elif ranks.is_whole:
        said = ", ".join(sorted(f"{dtype} {list(size)}" for dtype, size in kinds)) or "nothing"
        message = f"{said} on {len(pieces)} ranks, expected [{length}] on each of {ranks.world}"
        ranks.problems.append(Problem("coverage", name, message))
    return Entry(name, shape, dtype, f"flat / {ranks.world}, frozen", tuple(holdings))


def _copy(name: str, first: ModelStates, ranks: Ranks) -> Entry:
    """A tensor that every file of model states has whole; of stages 0 to 2 there is one file."""
    found = {rank: _find_stored(name, model) for rank, model in ranks.models.items()}
    held = {rank: stored for rank, stored in found.items() if stored is not None}
    if not held:
        return _take_empty(name, first, ranks)
    one = next(iter(held.values()))
    shape = first.frozen_shapes.get(name, one.shape)
    holdings = []
    for rank, stored in found.items():
        if stored is None:
            message = f"not in the file of rank {rank}, but in others"
            ranks.problems.append(Problem("missing-on-rank", name, message))
        elif (stored.shape, stored.dtype) != (shape, one.dtype):
            said = f"{stored.dtype} {list(stored.shape)} in the file of rank {rank}"
            message = f"{said}, expected {one.dtype} {list(shape)}"
            ranks.problems.append(Problem("contradiction", name, message))
        else:
            whole = Box((0,) * len(shape), shape)
            holdings.append(Holding(rank if ranks.each else None, whole, stored.region))
    return Entry(name, shape, one.dtype, "whole", tuple(holdings))


def _find_stored(name: str, model: ModelStates) -> StoredTensor | None:
    return model.frozen.get(name) or model.tensors.get(name)


def _take_empty(name: str, first: ModelStates, ranks: Ranks) -> Entry:
    """A tensor without elements; in stage 3 parameters that are elsewhere have none either."""
    ref = first.module.refs.get(name)
    shape = first.frozen_shapes.get(name, (0,) if ref is None else ref.shape)
    is_placeholder = ranks.each and ref is not None and name not in first.frozen_shapes
    if prod(shape) or is_placeholder:
        ranks.problems.append(Problem("missing-tensor", name, "no file has its elements"))
    return Entry(name, shape, UINT8 if ref is None else ref.dtype, "whole", ())
