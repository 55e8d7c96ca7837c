"""What the ranks of a Megatron model hold, joined to the tensors of the whole model."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from ckpt_tool.common.errors import FormatError, Problem
from ckpt_tool.readers.base import TANGLED, Entry, Holding
from ckpt_tool.readers.megatron.cuts import WHOLE, Cut, find_cut
from ckpt_tool.readers.megatron.file import Part, RankFile, is_grouped, ungroup
from ckpt_tool.readers.megatron.fused import is_fused, separate
from ckpt_tool.readers.megatron.linear import is_linear, separate_linear
from ckpt_tool.readers.megatron.mesh import Rank, Sizes
from ckpt_tool.tensors.chunks import Region
from ckpt_tool.tensors.dtypes import DType
from ckpt_tool.tensors.geometry import Box, Shape, check_coverage, list_some

_LAYER = re.compile(
    r"(?P<stem>(?:.*\.)?(?:decoder|model)\.layers\.)(?P<number>\d{1,9})(?P<rest>\..+)"
)


def join(files: Mapping[Rank, RankFile], sizes: Sizes, problems: list[Problem]) -> dict[str, Entry]:
    """The model's tensors by name; what does not fit is added to ``problems``.

    Where several ranks have a block, nothing but their equality says that it is the model's: no
    holding is marked as replicated, so that all of them are compared before one is believed.
    Coverage is judged only where there was no problem before: missing files leave gaps everywhere.
    """
    joiner = _Joiner(files, sizes, problems)
    before = len(problems)
    for pp, parts in joiner.stages():
        joiner.add(pp, parts)
    entries = {
        name: Entry(name, found.shape, found.dtype, found.placements, tuple(found.holdings))
        for name, found in joiner.joined.items()
    }
    if not before:
        for entry in entries.values():
            coverage = check_coverage(entry.shape, entry.owners())
            if coverage.missing:
                message = f"missing {list_some(coverage.missing)} of {list(entry.shape)}"
                problems.append(Problem("coverage", entry.name, message))
            if coverage.is_tangled:
                problems.append(Problem("coverage", entry.name, TANGLED))
    return entries


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
    def __init__(
        self, files: Mapping[Rank, RankFile], sizes: Sizes, problems: list[Problem]
    ) -> None:
        self._files = files
        self._problems = problems
        self._sizes = sizes
        self._layers: Counter[str] = Counter()
        chunks = [chunk for file in files.values() for chunk in file.chunks]
        # Layers without adapters leave gaps; of one stage numbers are those of the model.
        self._have_own_numbers = (
            len(chunks) == len(files)
            and sizes.pp == 1
            and all(".adapter." in part.name for chunk in chunks for part in chunk)
        )
        self.joined: dict[str, _Joined] = {}

    def stages(self) -> Iterator[tuple[int, dict[Rank, list[Part]]]]:
        """The parts of all ranks, stage after stage, in the order in which the model runs."""
        counts = {len(file.chunks) for file in self._files.values()}
        if len(counts) > 1:
            self._note("chunks", "model", f"files have {sorted(counts)} pipeline chunks")
        for chunk in range(max(counts, default=0)):
            for pp in sorted({rank.pp for rank in self._files}):
                files = {r: file.chunks for r, file in sorted(self._files.items()) if r.pp == pp}
                yield pp, {r: held[chunk] for r, held in files.items() if chunk < len(held)}

    def add(self, pp: int, parts: dict[Rank, list[Part]]) -> None:
        """All that the ranks of one stage hold."""
        parts = {rank: self._single(held) for rank, held in parts.items()}
        self._note_absent(pp, parts)
        starts = self._starts(pp, (part.name for held in parts.values() for part in held))
        for rank, held in parts.items():
            shapes = {part.name: part.shape for part in held}
            counts = self._experts(held)
            for part in held:
                cut = find_cut(part.name, shapes)
                if part.expert is None:
                    place = self._plain(part, rank, cut)
                elif part.name in counts:
                    place = self._expert(part, rank, cut, counts[part.name])
                else:
                    continue
                self._hold(_renumbered(part.name, starts), part, place)

    def _single(self, held: list[Part]) -> list[Part]:
        """The parts with every expert, and each of what modules fuse, by itself."""
        held = self._separate(held)
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
                result += ungroup(part, hidden, experts // self._sizes.ep)
            except (FormatError, ValueError) as error:
                self._note("tensor", part.name, f"{error} ({_file(part.region)})")
        return result

    def _separate(self, held: list[Part]) -> list[Part]:
        shapes = {part.name: part.shape for part in held}
        result: list[Part] = []
        for part in held:
            try:
                if is_linear(part, shapes):
                    result += separate_linear(part, shapes)
                else:
                    result += separate(part, shapes, self._sizes.tp) if is_fused(part) else [part]
            except FormatError as error:
                self._note("tensor", part.name, f"{error} ({_file(part.region)})")
        return result

    def _note_absent(self, pp: int, parts: Mapping[Rank, Iterable[Part]]) -> None:
        names = {rank: {part.name for part in held} for rank, held in parts.items()}
        for name in dict.fromkeys(part.name for held in parts.values() for part in held):
            absent = [str(rank) for rank, held in names.items() if name not in held]
            if absent:
                where = f"{name} (pipeline stage {pp})"
                self._note("missing-on-rank", where, f"not in the file of {'; '.join(absent)}")

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
            elif found != set(range(before, before + count)) and not self._have_own_numbers:
                listed = ", ".join(map(str, sorted(found)))
                where = f"{stem}* (pipeline stage {pp})"
                self._note("layers", where, f"numbers have gaps: {listed}")
        return starts

    def _experts(self, held: Iterable[Part]) -> dict[str, int]:
        """How many experts a file has of each name; not of those whose numbers have gaps."""
        numbers: dict[str, list[int]] = {}
        where = {}
        for part in held:
            if part.expert is not None:
                numbers.setdefault(part.name, []).append(part.expert)
                where[part.name] = _file(part.region)
        counts = {}
        for name, found in numbers.items():
            if sorted(found) == list(range(len(found))):
                counts[name] = len(found)
            else:
                listed = ", ".join(map(str, sorted(found)))
                self._note("experts", name, f"numbers have gaps: {listed} ({where[name]})")
        return counts

    def _plain(self, part: Part, rank: Rank, cut: Cut) -> _Place:
        parts = self._sizes.tp
        pieces = list(cut.pieces(part.shape, rank.tp, parts))
        text = "whole"
        if parts > 1:
            text = cut.text() if cut == WHOLE else f"tp {cut.text()}"
        return _Place(cut.whole(part.shape, parts), text, cut.dim, pieces)

    def _expert(self, part: Part, rank: Rank, cut: Cut, count: int) -> _Place:
        """Experts lie along a dimension of their own; a file has ``count`` of them."""
        parts, number = self._sizes.expert_tp, rank.ep * count + (part.expert or 0)
        texts = []
        if self._sizes.ep > 1:
            texts.append("ep Shard(0)")
        if parts > 1:
            texts.append(f"tp {cut.text(1)}")
        pieces = [
            (start, Box((number, *box.offsets), (1, *box.sizes)))
            for start, box in cut.pieces(part.shape, rank.tp % parts, parts)
        ]
        shape = (count * self._sizes.ep, *cut.whole(part.shape, parts))
        return _Place(shape, ", ".join(texts) or "whole", cut.dim, pieces)

    def _hold(self, name: str, part: Part, place: _Place) -> None:
        first = _Joined(place.shape, part.dtype, place.placements)
        found = self.joined.setdefault(name, first)
        if (found.shape, found.dtype) != (place.shape, part.dtype):
            self._note(
                "contradiction",
                name,
                f"{part.dtype} {list(place.shape)} by {_file(part.region)}, {found.dtype}"
                f" {list(found.shape)} by {_file(found.holdings[0].region)}",
            )
            return
        for start, box in place.pieces:
            strides = part.region.strides
            skipped = start * strides[place.dim] if place.dim is not None else 0
            offset = part.region.offset + skipped * part.dtype.itemsize
            lead = (0,) * (len(box.sizes) - len(strides))
            region = Region(part.region.path, offset, lead + strides)
            found.holdings.append(Holding(None, box, region))

    def _note(self, kind: str, where: str, message: str) -> None:
        self._problems.append(Problem(kind, where, message))


def _renumbered(name: str, starts: Mapping[str, int]) -> str:
    matched = _LAYER.fullmatch(name)
    if matched is None or matched["stem"] not in starts:
        return name
    return f"{matched['stem']}{int(matched['number']) + starts[matched['stem']]}{matched['rest']}"


def _file(region: Region) -> str:
    """The file of a rank, with the folder that says which one it is."""
    path = Path(region.path)
    return f"{path.parent.name}/{path.name}"
