"""Every tensor of a DeepSpeed checkpoint, with the blocks that files hold of it.

What was trained lies in the flat partitions of the optimizer states. What was frozen, and buffers,
lie in the model states: whole in stages 0 to 2; in stage 3 frozen parameters are cut as trained
ones are, and buffers are on every rank.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from math import prod
from pathlib import Path

from ckpt_tool.common.errors import Problem
from ckpt_tool.common.regular import announce_ends
from ckpt_tool.common.wording import count_doing, count_noun
from ckpt_tool.readers.base import Checkpoint, Entry, Holding, Mesh, ShardFile
from ckpt_tool.readers.deepspeed.folder import list_files
from ckpt_tool.readers.deepspeed.model_states import ModelStates
from ckpt_tool.readers.deepspeed.partitions import cut_each, measure_piece
from ckpt_tool.readers.deepspeed.ranks import Ranks, read_ranks
from ckpt_tool.readers.deepspeed.trained import hold_piece, join_trained
from ckpt_tool.readers.deepspeed.universal import join_universal
from ckpt_tool.readers.find import locate_config, locate_config_beside
from ckpt_tool.readers.torch_save.archive import StoredTensor
from ckpt_tool.tensors.dtypes import UINT8
from ckpt_tool.tensors.geometry import Box, Shape


def locate_deepspeed_config(folder: Path) -> Path | None:
    """The folder with config and tokenizer: near a step, or in that of the run, above it."""
    return locate_config_beside(folder) or locate_config(folder.parent)


def open_deepspeed(folder: Path) -> Checkpoint:
    """The tensors of the step in ``folder``; what is wrong with it becomes ``problems``.

    FormatError where it is of a kind that is not read (tensor or pipeline parallel, experts),
    UnsafeContentError where a pickle asks for code.
    """
    files = list_files(folder)
    stats = tuple(ShardFile.stat(path, rank) for path, rank in files.listed())
    announce_ends(path for path, _ in files.listed())
    ranks = read_ranks(folder, files)
    first = ranks.first
    entries = {} if first is None else _Joiner(first, ranks).join()
    if not ranks.problems:
        ranks.problems += _prove(entries)
    return Checkpoint(
        format="deepspeed",
        path=folder,
        entries=entries,
        files=stats,
        problems=tuple(ranks.problems),
        world_size=ranks.world,
        mesh=Mesh((ranks.world,), ("dp",)),
        side_files=locate_deepspeed_config(folder),
        left_out={} if first is None else _leave_out(first),
        sums=ranks.sums,
        step=None if first is None else first.step,
    )


def _prove(entries: Mapping[str, Entry]) -> Iterator[Problem]:
    """Blocks have as many elements as their tensor: none overlap, for each is cut off the next."""
    for name, entry in entries.items():
        held = sum(box.volume for box in entry.owners())
        if held != entry.numel:
            yield Problem(
                "coverage",
                name,
                f"{count_doing(held, 'element', 'are')} there, expected {entry.numel}",
            )


def _leave_out(first: ModelStates) -> dict[str, Entry]:
    """What is not written, so that it is said.

    Objects of Transformer Engine, and second names of frozen parameters that were excluded:
    DeepSpeed then saves the one without the other.
    """
    states = {name: Entry(name, (0,), UINT8, "", ()) for name in first.module.states}
    for name in _list_excluded(first):
        ref = first.module.refs.get(name)
        if ref is not None:
            states[name] = Entry(name, ref.shape, ref.dtype, "", ())
    return states


def _list_excluded(first: ModelStates) -> set[str]:
    """Second names of what ``exclude_frozen_parameters`` left out."""
    if first.frozen_shapes:
        return set()
    known = {name for group in first.groups or () for name in group} | first.module.refs.keys()
    return {name for name, owner in first.shared.items() if owner not in known}


class _Joiner:
    """What the ranks hold of each name, looked up once for all of them."""

    def __init__(self, first: ModelStates, ranks: Ranks) -> None:
        self._first = first
        self._ranks = ranks
        join = join_universal if ranks.files.universal else join_trained
        self._trained = join(first, ranks)
        self._frozen = _gather({rank: model.frozen for rank, model in ranks.models.items()})
        self._whole = _gather({rank: model.tensors for rank, model in ranks.models.items()})

    def join(self) -> dict[str, Entry]:
        """Every tensor, in the order of the state dict; without blocks where sizes do not fit."""
        first, excluded = self._first, _list_excluded(self._first)
        listed = [*first.module.refs, *self._trained, *first.frozen_shapes, *first.shared]
        names = [name for name in dict.fromkeys(listed) if name not in excluded]
        owners = [name for name in names if name in self._trained or name not in first.shared]
        entries = {name: self._take(name) for name in owners}
        for name in names:
            if name in entries:
                continue
            owner = first.shared[name]
            if owner in entries:
                entries[name] = replace(entries[owner], name=name)
            else:
                self._report("missing-tensor", name, f"shared with {owner}, which is nowhere")
        return {name: entries[name] for name in names if name in entries}

    def _report(self, kind: str, name: str, message: str) -> None:
        self._ranks.problems.append(Problem(kind, name, message))

    def _take(self, name: str) -> Entry:
        """One tensor that is no second name of another."""
        if name in self._trained:
            return self._trained[name]
        if self._ranks.each and name in self._first.frozen_shapes:
            return self._join_frozen(name, self._first.frozen_shapes[name])
        held = self._frozen.get(name) or self._whole.get(name)
        return self._copy(name, held) if held else self._take_empty(name)

    def _join_frozen(self, name: str, shape: Shape) -> Entry:
        """A frozen parameter of stage 3: a piece on every rank, of one size, padded at the end."""
        pieces, world = self._frozen.get(name, {}), self._ranks.world
        length = measure_piece(prod(shape), world)
        kinds = {(piece.dtype, piece.shape) for piece in pieces.values()}
        dtype = min((dtype for dtype, _ in kinds), key=str, default=UINT8)
        holdings: list[Holding] = []
        if kinds == {(dtype, (length,))} and len(pieces) == world:
            cut = cut_each([prod(shape)], world, [length])[0]
            found = ((piece, pieces[piece.rank]) for piece in cut if piece.rank in pieces)
            holdings = [held for piece, at in found for held in hold_piece(shape, piece, at)]
        elif self._ranks.is_whole:
            said = ", ".join(sorted(f"{dtype} {list(size)}" for dtype, size in kinds)) or "nothing"
            ranks = count_noun(len(pieces), "rank")
            message = f"{said} on {ranks}, expected [{length}] on each of {world}"
            self._report("coverage", name, message)
        return Entry(name, shape, dtype, f"flat / {world}, frozen", tuple(holdings))

    def _copy(self, name: str, held: Mapping[int, StoredTensor]) -> Entry:
        """A tensor that every file of model states has whole; of stages 0 to 2 there is one."""
        one = held[min(held)]
        shape, ranks = self._first.frozen_shapes.get(name, one.shape), self._ranks
        absent = next((rank for rank in ranks.models if rank not in held), None)
        if absent is not None:
            message = f"not in the file of rank {absent}, but in others"
            self._report("missing-on-rank", name, message)
        whole, holdings = Box((0,) * len(shape), shape), []
        for rank, stored in held.items():
            if (stored.shape, stored.dtype) == (shape, one.dtype):
                holdings.append(Holding(rank if ranks.each else None, whole, stored.region))
            else:
                said = f"{stored.dtype} {list(stored.shape)} in the file of rank {rank}"
                message = f"{said}, expected {one.dtype} {list(shape)}"
                self._report("contradiction", name, message)
        return Entry(name, shape, one.dtype, "whole", tuple(holdings))

    def _take_empty(self, name: str) -> Entry:
        """A tensor without elements; in stage 3 parameters that are elsewhere have none either."""
        ref, shapes = self._first.module.refs.get(name), self._first.frozen_shapes
        shape = shapes.get(name, (0,) if ref is None else ref.shape)
        is_placeholder = self._ranks.each and ref is not None and name not in shapes
        if prod(shape) or is_placeholder:
            self._report("missing-tensor", name, "no file has its elements")
        return Entry(name, shape, UINT8 if ref is None else ref.dtype, "whole", ())


def _gather(
    held: Mapping[int, Mapping[str, StoredTensor]],
) -> dict[str, dict[int, StoredTensor]]:
    """What the ranks hold, by name and rank."""
    found: dict[str, dict[int, StoredTensor]] = {}
    for rank, tensors in held.items():
        for name, stored in tensors.items():
            found.setdefault(name, {})[rank] = stored
    return found
