"""Rank files that several processes read, some each: what one found, for all of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

from ckpt_tool.common.parallel import Team
from ckpt_tool.readers.fsdp.files import list_rank_files
from ckpt_tool.readers.fsdp.gathered import Gathered
from ckpt_tool.readers.reading import note_file, tell
from ckpt_tool.readers.shard_file import ShardFile

_Seen = tuple[str, int, int]


@dataclass(frozen=True)
class Share:
    """What one process found in the files of some ranks, which are one after the other.

    ``seen``: of each file its path, size in bytes, and time of change in nanoseconds since 1970.
    """

    seen: tuple[_Seen, ...]
    gathered: Gathered


_handed: ContextVar[Sequence[Share]] = ContextVar("handed", default=())


def read_share(folders: Sequence[Path], team: Team) -> Share:
    """Read the ranks that this process has of those in ``folders``: as many bytes as each other.

    UnsafeContentError where a pickle asks for code; OSError where a folder cannot be read.
    """
    found = list_rank_files(folders)
    seen = _look_at(found.by_rank, found.files)
    mine = split(seen, team.world.size)[team.world.rank]
    paths = {str(path): rank for rank, path in found.by_rank.items()}
    with tell(team.progress, len(mine)):
        gathered = gather({paths[path]: Path(path) for path, _, _ in mine})
    return Share(tuple(mine), gathered)


def split(seen: Sequence[_Seen], count: int) -> list[Sequence[_Seen]]:
    """Files in ``count`` runs of about as many bytes; the first processes have the first."""
    sizes = [size for _, size, _ in seen]
    whole = sum(sizes) or 1
    middles = (end - size / 2 for end, size in zip(accumulate(sizes), sizes, strict=True))
    owners = [min(int(middle * count / whole), count - 1) for middle in middles]
    return [
        [file for file, owner in zip(seen, owners, strict=True) if owner == number]
        for number in range(count)
    ]


@contextmanager
def hand_out(shares: Sequence[Share]) -> Iterator[None]:
    """Have :func:`gather` take what these say inside the block, of the same files unchanged."""
    token = _handed.set(shares)
    try:
        yield
    finally:
        _handed.reset(token)


def gather_all(by_rank: Mapping[int, Path], files: Sequence[ShardFile]) -> Gathered:
    """What the files of all ranks say: told by others where they have read all, else read here.

    UnsafeContentError where a pickle asks for code.
    """
    shares = _handed.get()
    seen = [file for share in shares for file in share.seen]
    if not shares or seen != _look_at(by_rank, files):
        return gather(by_rank)
    joined = Gathered()
    for share in shares:
        joined.add(share.gathered)
        for _ in share.seen:
            note_file()
    return joined


def gather(by_rank: Mapping[int, Path]) -> Gathered:
    """What the files of these ranks say. UnsafeContentError where a pickle asks for code."""
    gathered = Gathered()
    for rank, path in by_rank.items():
        gathered.read_rank(path, rank)
    gathered.finish()
    return gathered


def _look_at(by_rank: Mapping[int, Path], files: Sequence[ShardFile]) -> list[_Seen]:
    known = {file.path: (file.path, file.bytes, file.mtime_ns) for file in files}
    return [known[str(path)] for path in by_rank.values()]
