"""Which files of a folder are the ranks of an FSDP checkpoint, by their names.

``model_world_size_<W>_rank_<R>.pt``: verl, VeOmni. ``pytorch_model_fsdp_<N>_rank<R>.bin``:
accelerate 1.15 and later with ``use_dcp=False``, model N of those that it trains; without N:
``LOCAL_STATE_DICT`` of FSDP1. accelerate's do not say how many ranks there are; source:
``accelerate/utils/fsdp_utils.py``.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ckpt_tool.common.errors import Problem
from ckpt_tool.common.regular import announce_ends
from ckpt_tool.common.wording import list_gaps
from ckpt_tool.readers.shard_file import ShardFile

#: How the files are called, for people.
RANK_FILES = "model_world_size_W_rank_R.pt, pytorch_model_fsdp_N_rankR.bin"
_VERL = re.compile(r"model_world_size_(?P<world>\d{1,9})_rank_(?P<rank>\d{1,9})\.pt")
_ACCELERATE = re.compile(r"pytorch_model_fsdp_(?:(?P<model>\d{1,9})_)?rank(?P<rank>\d{1,9})\.bin")


@dataclass(frozen=True, slots=True)
class RankName:
    """What a file's name says: its rank, of a world of ``world`` (None: it does not say), whose.

    ``writer``: who calls files so, and which of its models it is: ranks of one are alike.
    """

    rank: int
    world: int | None
    writer: str


@dataclass(frozen=True)
class RankFiles:
    """Files by rank; the ``world`` size that names say, if they do; all files; what is wrong."""

    by_rank: dict[int, Path]
    world: int | None
    files: tuple[ShardFile, ...]
    problems: tuple[Problem, ...]


def parse_rank_name(name: str) -> RankName | None:
    """What the name of a file says; None where it is not one rank's."""
    if matched := _VERL.fullmatch(name):
        return RankName(int(matched["rank"]), int(matched["world"]), "verl")
    if matched := _ACCELERATE.fullmatch(name):
        return RankName(int(matched["rank"]), None, f"model {int(matched['model'] or 0)}")
    return None


def find_rank_files(folder: Path) -> list[Path]:
    """The rank files directly in ``folder``."""
    return sorted(path for path in folder.iterdir() if parse_rank_name(path.name) is not None)


def list_rank_files(folders: Sequence[Path]) -> RankFiles:
    """The ranks in all ``folders``, and what contradicts itself: of most files, the others do.

    Ranks that are missing are no problem yet: see :func:`report_missing`.
    """
    found = [
        (name, path)
        for folder in folders
        for path in find_rank_files(folder)
        if (name := parse_rank_name(path.name)) is not None
    ]
    counts = Counter((name.writer, name.world) for name, _ in found)
    writer, world = max(counts, key=lambda key: (counts[key], key[1] or 0, key[0]))
    by_rank: dict[int, Path] = {}
    problems = []
    for name, path in found:
        fault = _find_fault(name, writer, world, by_rank)
        if fault is None:
            by_rank[name.rank] = path
        else:
            problems.append(Problem(fault[0], str(path), fault[1]))
    files = tuple(ShardFile.stat(path, name.rank) for name, path in sorted(found, key=_order))
    announce_ends(path for _, path in found)
    return RankFiles(dict(sorted(by_rank.items())), world, files, tuple(problems))


def _order(found: tuple[RankName, Path]) -> tuple[int, Path]:
    return found[0].rank, found[1]


def _find_fault(
    name: RankName, writer: str, world: int | None, by_rank: dict[int, Path]
) -> tuple[str, str] | None:
    """Kind and message of why a file is not one of the checkpoint's ranks; None where it is."""
    if name.writer != writer:
        return "duplicate-rank", (
            f"a rank of {name.writer}, among those of {writer}: move it to a folder of its own"
        )
    if name.world != world:
        return "world-size", f"a rank of world size {name.world} among ranks of {world}"
    if world is not None and name.rank >= world:
        return "world-size", f"rank {name.rank} of a world of {world}"
    if name.rank in by_rank:
        return "duplicate-rank", f"rank {name.rank} is also {by_rank[name.rank]}"
    return None


def report_missing(ranks: Sequence[int], world: int, folder: Path) -> Iterator[Problem]:
    """The problem that some ranks of ``world`` are not among ``ranks``, which are sorted."""
    missing = list_gaps(ranks, 0, world)
    if missing:
        said = f"rank {missing} of {world} missing; if on other nodes, name every folder"
        yield Problem("missing-rank", str(folder), said)
