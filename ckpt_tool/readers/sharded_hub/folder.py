"""A folder of shards as one checkpoint: pieces joined, and all of them proven to be there.

Written by torch's ``HuggingFaceStorageWriter(save_distributed=True)``, which transformers since
5.24 (``save_pretrained(..., distributed_checkpoint=True)``), NeMo Automodel and torchtitan use.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import prod
from pathlib import Path

from ckpt_tool.common.errors import Problem
from ckpt_tool.common.regular import announce_ends
from ckpt_tool.common.wording import count_noun
from ckpt_tool.readers.base import (
    TANGLED,
    Checkpoint,
    Entry,
    ShardFile,
    Wanted,
    collect,
)
from ckpt_tool.readers.find import find, locate_first_config
from ckpt_tool.readers.sharded_hub.shard import Piece, Shard, list_shards, read_shard
from ckpt_tool.readers.sharded_hub.whole import find_doubles, find_missing, find_others, find_short
from ckpt_tool.readers.spread import drop_repeats
from ckpt_tool.tensors.geometry import MOST_ELEMENTS, check_coverage


def locate_sharded_hub(path: Path) -> Path | None:
    """The folder with shards at or below ``path``, or the shard that it is; else None.

    Raises what `find` does.
    """
    if path.is_file():
        return path if Shard.parse(path) is not None else None
    return find(path, lambda folder: next(list_shards(folder), None) is not None)


def open_sharded_hub(path: Path, wanted: Wanted | None = None) -> Checkpoint:
    """The tensors of all shards in a folder, or of one file; damage becomes ``problems``.

    Of tensors that are not ``wanted`` nothing is proven.
    """
    if path.is_dir():
        return open_sharded_hub_folders([path], wanted)
    shard = Shard.parse(path)
    found = _open([shard] if shard is not None else [], [path.parent], wanted)
    return replace(found, path=path, problems=(*find_others(path), *found.problems))


def open_sharded_hub_folders(folders: Sequence[Path], wanted: Wanted | None = None) -> Checkpoint:
    """The same of a model whose shards lie in several folders."""
    folders = drop_repeats(folders)
    shards = sorted(shard for folder in folders for shard in list_shards(folder))
    found = _open(shards, folders, wanted)
    names = found.entries.keys() | found.left_out.keys()
    missing = [*find_doubles(shards), *find_missing(folders, shards, names)]
    short = find_short(found.entries, found.side_files) if not missing else []
    return replace(found, problems=(*missing, *found.problems, *short))


def _open(shards: Sequence[Shard], folders: Sequence[Path], wanted: Wanted | None) -> Checkpoint:
    """What the shards hold, and all that is wrong about that; not yet whether any is missing."""
    files = tuple(ShardFile.stat(shard.path, shard.rank) for shard in shards)
    announce_ends(shard.path for shard in shards)
    problems: list[Problem] = []
    entries, left_out = {}, {}
    for name, found in _read_pieces(shards, problems).items():
        if wanted is None or wanted(name):
            entries[name] = _join(name, found, problems)
        else:
            left_out[name] = _describe(name, found)
    return Checkpoint(
        format="sharded-hub",
        path=folders[0],
        entries=entries,
        files=files,
        problems=tuple(problems),
        side_files=locate_first_config(folders, beside=True),
        left_out=left_out,
    )


def _read_pieces(shards: Sequence[Shard], problems: list[Problem]) -> dict[str, list[Piece]]:
    """The pieces of every tensor, in the order of the files."""
    pieces: dict[str, list[Piece]] = {}
    for shard in shards:
        with collect(problems, "unreadable", shard.path):
            for piece in read_shard(shard):
                pieces.setdefault(piece.name, []).append(piece)
    return pieces


def _describe(name: str, pieces: list[Piece]) -> Entry:
    """The tensor that reaches as far as its pieces do, as the first of them says it."""
    first = pieces[0]
    alike = [piece for piece in pieces if len(piece.reach) == len(first.reach)]
    shape = tuple(map(max, zip(*(piece.reach for piece in alike), strict=True)))
    count = len({piece.holding.box for piece in alike if piece.holding.box.volume})
    said = "whole" if count <= 1 else f"{count} blocks"
    return Entry(name, shape, first.dtype, said, tuple(piece.holding for piece in alike))


def _join(name: str, pieces: list[Piece], problems: list[Problem]) -> Entry:
    """The tensor that its pieces make up; what they contradict, or leave open, is a problem."""
    entry = _describe(name, pieces)
    rank = len(entry.shape)
    for piece in pieces:
        if piece.dtype != entry.dtype or len(piece.reach) != rank:
            found = f"{piece.dtype} of {count_noun(len(piece.reach), 'dimension')}"
            where = piece.holding.region.path
            message = f"{found} in {where}, expected {entry.dtype} of {rank}"
            problems.append(Problem("contradiction", name, message))
    if prod(entry.shape) >= MOST_ELEMENTS:
        message = f"its pieces reach to {list(entry.shape)}, more elements than files can have"
        problems.append(Problem("coverage", name, message))
        return entry
    coverage = check_coverage(entry.shape, entry.owners())
    for block in coverage.missing:
        message = f"{block} of {list(entry.shape)} is in no shard"
        problems.append(Problem("coverage", name, message))
    for block in coverage.overlapping:
        message = (
            f"{block} is in two pieces of different cuts: files of another save are among them"
        )
        problems.append(Problem("coverage", name, message))
    if coverage.is_tangled:
        problems.append(Problem("coverage", name, TANGLED))
    return entry
