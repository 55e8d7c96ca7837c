"""Which ranks a Megatron run had, and how they share what is parallel.

Ranks are numbered once by tensor parallelism, then data parallelism, and a second time for the
experts: by how many parts each expert is cut into, then by expert parallelism. Source:
``RankGenerator`` in ``megatron/core/parallel_state.py``, order ``tp-cp-ep-dp-pp``.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from math import lcm
from pathlib import Path
from typing import NamedTuple

from ckpt_tool.common.regular import open_regular
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
        grid = sorted(make_grid(self.tp, self.ep, self.expert_tp))
        return [Rank(tp, pp, ep) for pp in range(self.pp) for tp, ep in grid]


def infer_parallel_sizes(ranks: Collection[Rank], files: Mapping[Rank, RankFile]) -> Sizes:
    """The sizes, by the ``ranks`` that have files and by what the readable ``files`` say."""
    tp, pp, ep = (_count_ranks(kind, ranks, files) for kind in Rank._fields)
    said = {file.said["expert_tp"] for file in files.values() if "expert_tp" in file.said}
    if len(said) == 1:
        (expert_tp,) = said
        if tp % expert_tp == 0:
            return Sizes(tp, pp, ep, expert_tp)
    return Sizes(tp, pp, ep, _infer_expert_tp(tp, ep, ranks, files))


def _count_ranks(kind: str, ranks: Collection[Rank], files: Mapping[Rank, RankFile]) -> int:
    """How many ranks of a kind: as the highest number says, or a run's arguments, if more."""
    highest: int = max(getattr(rank, kind) for rank in ranks)
    return max([highest + 1, *(file.said.get(kind, 1) for file in files.values())])


def make_grid(tensor: int, expert: int, expert_tensor: int) -> set[tuple[int, int]]:
    """The (tp, ep) ranks that exist where experts are cut into ``expert_tensor`` parts."""
    count = lcm(tensor, expert_tensor * expert)
    return {(rank % tensor, rank // expert_tensor % expert) for rank in range(count)}


def _infer_expert_tp(
    tp: int, ep: int, ranks: Collection[Rank], files: Mapping[Rank, RankFile]
) -> int:
    """Into how many parts tensor parallelism cuts each expert.

    The grid of ranks says it, or, where several sizes have the same grid, whether ranks hold the
    same: of a file's first expert the first bytes are compared.
    """
    grid = {(rank.tp, rank.ep) for rank in ranks}
    divisors = [n for n in range(1, tp + 1) if tp % n == 0 and lcm(tp, n * ep) == len(grid)]
    possible = [n for n in divisors if make_grid(tp, ep, n) == grid]
    heads: dict[tuple[int, int], bytes] = {}
    for rank, file in sorted(files.items()):
        found = next((part for chunk in file.chunks for part in chunk if _is_first(part)), None)
        if found is not None and (rank.tp, rank.ep) not in heads:
            heads[rank.tp, rank.ep] = _head(found)
    if not possible:
        return tp
    fitting = (count for count in possible[:-1] if _are_repeated(heads, count))
    return next(fitting, possible[-1])


def _are_repeated(heads: Mapping[tuple[int, int], bytes], count: int) -> bool:
    """Whether what (tp, ep) ranks begin with repeats after each ``count`` tensor parallel ranks."""
    groups: dict[tuple[int, int], set[bytes]] = {}
    for (tp, ep), head in heads.items():
        groups.setdefault((tp % count, ep), set()).add(head)
    return all(len(group) == 1 for group in groups.values())


def _is_first(part: Part) -> bool:
    """Whether the part is of a file's first expert, and cut wherever experts are."""
    return is_grouped(part) or (part.expert == 0 and part.name.endswith(".weight"))


def _head(part: Part) -> bytes:
    """The first bytes of a part."""
    with open_regular(Path(part.region.path)) as file:
        file.seek(part.region.offset)
        return file.read(min(_COMPARED_BYTES, part.dtype.itemsize * max(part.shape, default=1)))
