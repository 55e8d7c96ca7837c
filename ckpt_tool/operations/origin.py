"""What both sides of a comparison were trained from: who moved what."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from ckpt_tool.common.errors import UsageError
from ckpt_tool.common.parallel import Team
from ckpt_tool.compare.moves import Moves, Three, can_be_moved, find_moves
from ckpt_tool.mapping.lora.options import LoraOptions
from ckpt_tool.operations.options import ModelOptions, NameOptions
from ckpt_tool.operations.repositories import settle_repositories
from ckpt_tool.operations.sides import Side, meet, name_side, open_proven
from ckpt_tool.operations.source import find_config
from ckpt_tool.tensors.lazy import LazyTensor


@dataclass(frozen=True)
class Origin:
    """How far both sides are from a third checkpoint.

    ``moves``: of each tensor, in the order of the reference; ``total``: of all of them as one.
    ``left_out``: names of tensors on both sides that have no counterpart of their shape in the
    origin, or are no floating-point numbers.
    """

    side: Side
    moves: list[Moves]
    total: Moves
    left_out: list[str]


def open_origin(path: Path, options: ModelOptions, like: Side, team: Team) -> Side:
    """A third checkpoint, proven complete, by its names on the Hub, in the form of ``like``.

    Of ``options`` only the config is for it; without one of its own it has that of ``like``. Raises
    what opening and naming do.
    """
    asked = replace(
        options, names=NameOptions(), lora=LoraOptions(), fill_from=None, weights="model"
    )
    plain = team.world.each(lambda: settle_repositories(asked))
    source = open_proven(path, plain, team)
    config = find_config(source, plain) or like.config
    return meet(name_side(source, config, plain, team), like)


def find_origin(
    origin: Side, mine: Mapping[str, LazyTensor], theirs: Mapping[str, LazyTensor], team: Team
) -> Origin:
    """How far the tensors on both sides moved from those of ``origin``.

    UsageError where it has none of them; OSError and FormatError where a file cannot be read.
    """
    threes, left_out = [], []
    for name, right in theirs.items():
        if name not in mine:
            continue
        there = origin.tensors.get(name)
        if there is not None and can_be_moved(mine[name], right, there):
            threes.append(Three(name, mine[name], right, there))
        else:
            left_out.append(name)
    if not threes:
        path = origin.checkpoint.path
        raise UsageError(
            f"`origin={str(path)!r}`: has no tensor of a name and shape that both sides have",
            hint="Name what both were trained from, or leave out `origin`.",
        )
    moves = find_moves(threes, team)
    total = Moves("all")
    for each in moves:
        total.add(each)
    return Origin(origin, moves, total, left_out)
