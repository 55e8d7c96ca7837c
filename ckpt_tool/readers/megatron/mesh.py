"""Which ranks a Megatron run had, and how they share what is parallel.

Ranks are numbered once by tensor parallelism, then data parallelism, and a second time for the
experts: by how many parts each expert is cut into, then by expert parallelism. Source:
``RankGenerator`` in ``megatron/core/parallel_state.py``, order ``tp-cp-ep-dp-pp``.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from math import lcm
from typing import NamedTuple

from ckpt_tool.readers.megatron.file import Part, RankFile, is_grouped

_COMPARED_BYTES = 1 << 16


class Rank(NamedTuple):
    """Tensor, pipeline and expert parallel rank of a file."""

    tp: int
    pp: int
    ep: int

    def __str__(self) -> str:
        return f"tp {self.tp}, pp {self.pp}, ep {self.ep}"


@dataclass(frozen=True)
class Sizes:
    """How many ranks there are of each kind; ``expert_tp``: how many have a part of an expert."""

    tp: int
    pp: int
    ep: int
    expert_tp: int

    @property
    def count(self) -> int:
        """Number of files."""
        return self.pp * lcm(self.tp, self.ep * self.expert_tp)

    def ranks(self) -> list[Rank]:
        """All ranks that have a file."""
        grid = sorted(grid_of(self.tp, self.ep, self.expert_tp))
        return [Rank(tp, pp, ep) for pp in range(self.pp) for tp, ep in grid]


def sizes_of(ranks: Collection[Rank], files: Mapping[Rank, RankFile]) -> Sizes:
    """The sizes, by the ``ranks`` that have files and by what the readable ``files`` say."""
    tp, pp, ep = (max(numbers) + 1 for numbers in zip(*ranks, strict=True))
    for said in (file.said for file in files.values()):
        tp, pp, ep = (
            max(n, said.get(key, 1)) for n, key in zip((tp, pp, ep), Rank._fields, strict=True)
        )
    parts = {file.said.get("expert_tp", 0) for file in files.values()} - {0}
    if len(parts) == 1 and tp % min(parts) == 0:
        return Sizes(tp, pp, ep, parts.pop())
    return Sizes(tp, pp, ep, _expert_tp(tp, ep, ranks, files))


def grid_of(tensor: int, expert: int, expert_tensor: int) -> set[tuple[int, int]]:
    """The (tp, ep) ranks that exist where experts are cut into ``expert_tensor`` parts."""
    count = lcm(tensor, expert_tensor * expert)
    return {(rank % tensor, rank // expert_tensor % expert) for rank in range(count)}


def _expert_tp(tp: int, ep: int, ranks: Collection[Rank], files: Mapping[Rank, RankFile]) -> int:
    """Into how many parts tensor parallelism cuts each expert.

    The grid of ranks says it, or, where several sizes have the same grid, whether ranks hold the
    same: of a file's first expert the first bytes are compared.
    """
    grid = {(rank.tp, rank.ep) for rank in ranks}
    divisors = [n for n in range(1, tp + 1) if tp % n == 0 and lcm(tp, n * ep) == len(grid)]
    possible = [n for n in divisors if grid_of(tp, ep, n) == grid]
    heads: dict[tuple[int, int], bytes] = {}
    for rank, file in sorted(files.items()):
        found = next((part for chunk in file.chunks for part in chunk if _is_first(part)), None)
        if found is not None and (rank.tp, rank.ep) not in heads:
            heads[rank.tp, rank.ep] = _head(found)
    for count in possible[:-1]:
        alike: dict[tuple[int, int], set[bytes]] = {}
        for (t, e), head in heads.items():
            alike.setdefault((t % count, e), set()).add(head)
        if all(len(group) == 1 for group in alike.values()):
            return count
    return possible[-1] if possible else tp


def _is_first(part: Part) -> bool:
    """Whether the part is of a file's first expert, and cut wherever experts are."""
    return is_grouped(part) or (part.expert == 0 and part.name.endswith(".weight"))


def _head(part: Part) -> bytes:
    """The first bytes of a part."""
    with open(part.region.path, "rb", buffering=0) as file:
        size = min(_COMPARED_BYTES, part.dtype.itemsize * max(part.shape, default=1))
        return os.pread(file.fileno(), size, part.region.offset)
