"""What the ranks of a Megatron model hold, joined to the tensors of the whole model."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from ckpt_tool.dtypes import DType
from ckpt_tool.errors import FormatError, Problem
from ckpt_tool.geometry import Box, Shape, check_coverage
from ckpt_tool.lazy import Region
from ckpt_tool.readers.base import Entry, Holding
from ckpt_tool.readers.megatron_cuts import Cut, cut_of, grid_of
from ckpt_tool.readers.megatron_file import Part, is_grouped, ungrouped

_LAYER = re.compile(r"(?P<stem>(?:.*\.)?(?:decoder|model)\.layers\.)(?P<number>\d+)(?P<rest>\..+)")
_COMPARED_BYTES = 1 << 16


class Rank(NamedTuple):
    """Tensor, pipeline and expert parallel rank of a file."""

    tp: int
    pp: int
    ep: int

    def __str__(self) -> str:
        return f"tp {self.tp}, pp {self.pp}, ep {self.ep}"


#: The pipeline chunks of each rank; layers are numbered within their chunk.
Chunks = Mapping[Rank, Sequence[Sequence[Part]]]


def sizes_of_ranks(ranks: Iterable[Rank]) -> Rank:
    """Tensor, pipeline and expert parallel size."""
    return Rank(*(max(numbers) + 1 for numbers in zip(*ranks, strict=True)))


def join(chunks: Chunks, expert_parts: int, problems: list[Problem]) -> dict[str, Entry]:
    """The model's tensors by name; what does not fit is added to ``problems``.

    Experts are cut into ``expert_parts``. Coverage is judged only where there was no problem
    before: missing files leave gaps everywhere.
    """
    joiner = _Joiner(chunks, expert_parts, problems)
    before = len(problems)
    for pp, parts in joiner.stages():
        joiner.add(pp, parts)
    entries = {
        name: Entry(name, found.shape, found.dtype, found.placements, tuple(found.holdings))
        for name, found in joiner.joined.items()
    }
    if not before:
        for entry in entries.values():
            for block in check_coverage(entry.shape, entry.owners()).missing:
                message = f"{block} of {list(entry.shape)} is on no rank"
                problems.append(Problem("coverage", entry.name, message))
    return entries


def expert_parts(chunks: Chunks) -> int:
    """Into how many parts tensor parallelism cuts each expert: all, or fewer.

    The grid of ranks says it, or, where several sizes have the same grid, whether ranks hold the
    same: of a file's first expert the first bytes are compared.
    """
    tp, _, ep = sizes_of_ranks(chunks)
    grid = {(rank.tp, rank.ep) for rank in chunks}
    possible = [n for n in range(1, tp + 1) if tp % n == 0 and grid_of(tp, ep, n) == grid]
    heads: dict[tuple[int, int], bytes] = {}
    for rank, held in chunks.items():
        found = next((part for chunk in held for part in chunk if _is_first_expert(part)), None)
        if found is not None and rank.ep == min(e for t, e in grid if t == rank.tp):
            heads.setdefault((rank.tp, rank.ep), _head(found))
    for count in possible[:-1]:
        groups = [{h for (t, _), h in heads.items() if t % count == i} for i in range(count)]
        if all(len(group) <= 1 for group in groups):
            return count
    return possible[-1] if possible else tp


@dataclass
class _Joined:
    shape: Shape
    dtype: DType
    placements: str
    holdings: list[Holding] = field(default_factory=list)


class _Place(NamedTuple):
    """Where a rank's tensor belongs: in what, how that is cut, and the pieces.

    A piece begins at an index of the rank's tensor along ``dim``, and is a box of the whole.
    """

    shape: Shape
    placements: str
    dim: int | None
    pieces: list[tuple[int, Box]]


class _Joiner:
    def __init__(self, chunks: Chunks, parts: int, problems: list[Problem]) -> None:
        self._chunks = chunks
        self._problems = problems
        self._sizes = sizes_of_ranks(chunks)
        self._expert_parts = parts
        self._layers: Counter[str] = Counter()
        self.joined: dict[str, _Joined] = {}

    def stages(self) -> Iterator[tuple[int, dict[Rank, list[Part]]]]:
        """The parts of all ranks, stage after stage, in the order in which the model runs."""
        counts = {len(chunks) for chunks in self._chunks.values()}
        if len(counts) > 1:
            self._note("chunks", "model", f"files have {sorted(counts)} pipeline chunks")
        for chunk in range(max(counts)):
            for pp in range(self._sizes.pp):
                ranks = {r: held for r, held in sorted(self._chunks.items()) if r.pp == pp}
                yield pp, {r: list(held[chunk]) for r, held in ranks.items() if chunk < len(held)}

    def add(self, pp: int, parts: dict[Rank, list[Part]]) -> None:
        """All that the ranks of one stage hold."""
        parts = {rank: self._single(held) for rank, held in parts.items()}
        names = {rank: {part.name for part in held} for rank, held in parts.items()}
        union = dict.fromkeys(part.name for held in parts.values() for part in held)
        for name in union:
            absent = [str(rank) for rank, held in names.items() if name not in held]
            if absent:
                where = f"{name} (pipeline stage {pp})"
                self._note("missing-on-rank", where, f"not in the file of {'; '.join(absent)}")
        starts = self._starts(pp, union)
        owners: dict[tuple[int, int | None], Rank] = {}
        for rank, held in parts.items():
            shapes = {part.name: part.shape for part in held}
            counts = Counter(part.name for part in held)
            # Files of the same share, by their numbers, are copies: the first one is read.
            plain = owners.setdefault((rank.tp, None), rank) != rank
            expert = owners.setdefault((rank.tp % self._expert_parts, rank.ep), rank) != rank
            for part in held:
                cut, single = cut_of(part.name, shapes), part.expert is None
                place = self._plain(part, rank, cut)
                if not single:
                    place = self._expert(part, rank, cut, counts[part.name])
                self._hold(_renumbered(part.name, starts), part, place, plain if single else expert)

    def _single(self, held: list[Part]) -> list[Part]:
        """The parts with every expert by itself."""
        if not any(is_grouped(part) for part in held):
            return held
        routers = {part.name: part.shape for part in held if part.name.endswith(".router.weight")}
        result = []
        for part in held:
            if not is_grouped(part):
                result.append(part)
                continue
            router = routers.get(part.name.rpartition(".experts.")[0] + ".router.weight", (0, 0))
            try:
                experts, hidden = router
                result += ungrouped(part, hidden, experts // self._sizes.ep)
            except (FormatError, ValueError) as error:
                self._note("tensor", part.name, f"{error} ({_file(part)})")
        return result

    def _starts(self, pp: int, names: Iterable[str]) -> dict[str, int]:
        """What is to be added to the layer numbers of a stage, by the text before them."""
        numbers: dict[str, set[int]] = {}
        for matched in filter(None, map(_LAYER.fullmatch, names)):
            numbers.setdefault(matched["stem"], set()).add(int(matched["number"]))
        starts = {}
        for stem, found in numbers.items():
            before, count = self._layers[stem], len(found)
            self._layers[stem] += count
            if found == set(range(count)):
                starts[stem] = before
            elif found != set(range(before, before + count)):
                listed = ", ".join(map(str, sorted(found)))
                self._note(
                    "layers", f"{stem}* (pipeline stage {pp})", f"numbers have gaps: {listed}"
                )
        return starts

    def _plain(self, part: Part, rank: Rank, cut: Cut) -> _Place:
        parts = self._sizes.tp
        text = "replicated" if cut.dim is None else f"tp {cut}"
        pieces = list(cut.pieces(part.shape, rank.tp, parts))
        return _Place(cut.whole(part.shape, parts), text if parts > 1 else "whole", cut.dim, pieces)

    def _expert(self, part: Part, rank: Rank, cut: Cut, count: int) -> _Place:
        """Experts lie along a dimension of their own; a file has ``count`` of them."""
        parts, number = self._expert_parts, rank.ep * count + (part.expert or 0)
        texts = ["ep Shard(0)"] * (self._sizes.ep > 1) + [f"tp {cut} of each"] * (parts > 1)
        pieces = [
            (start, Box((number, *box.offsets), (1, *box.sizes)))
            for start, box in cut.pieces(part.shape, rank.tp % parts, parts)
        ]
        shape = (count * self._sizes.ep, *cut.whole(part.shape, parts))
        return _Place(shape, ", ".join(texts) or "whole", cut.dim, pieces)

    def _hold(self, name: str, part: Part, place: _Place, copied: bool) -> None:
        first = _Joined(place.shape, part.dtype, place.placements)
        found = self.joined.setdefault(name, first)
        if (found.shape, found.dtype) != (place.shape, part.dtype):
            self._note(
                "contradiction",
                name,
                f"{part.dtype} {list(place.shape)} by {_file(part)}, {found.dtype}"
                f" {list(found.shape)} by {_file_of(found.holdings[0].region)}",
            )
            return
        for start, box in place.pieces:
            strides = part.region.strides
            skipped = start * strides[place.dim] if place.dim is not None else 0
            offset = part.region.offset + skipped * part.dtype.itemsize
            lead = (0,) * (len(box.sizes) - len(strides))
            region = Region(part.region.path, offset, lead + strides)
            found.holdings.append(Holding(None, box, region, copied))

    def _note(self, kind: str, where: str, message: str) -> None:
        self._problems.append(Problem(kind, where, message))


def _renumbered(name: str, starts: Mapping[str, int]) -> str:
    matched = _LAYER.fullmatch(name)
    if matched is None or matched["stem"] not in starts:
        return name
    return f"{matched['stem']}{int(matched['number']) + starts[matched['stem']]}{matched['rest']}"


def _is_first_expert(part: Part) -> bool:
    return is_grouped(part) or (part.expert == 0 and part.name.endswith(".weight"))


def _head(part: Part) -> bytes:
    """The first bytes of a part."""
    with open(part.region.path, "rb", buffering=0) as file:
        size = min(_COMPARED_BYTES, part.dtype.itemsize * max(part.shape, default=1))
        return os.pread(file.fileno(), size, part.region.offset)


def _file(part: Part) -> str:
    return _file_of(part.region)


def _file_of(region: Region) -> str:
    path = Path(region.path)
    return f"{path.parent.name}/{path.name}"
