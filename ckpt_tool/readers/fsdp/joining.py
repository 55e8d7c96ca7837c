"""Tensors out of what ranks hold of them, and what does not fit."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

from ckpt_tool.common.errors import FormatError
from ckpt_tool.readers.base import TANGLED, Entry
from ckpt_tool.readers.fsdp.gathered import Gathered
from ckpt_tool.readers.fsdp.local import LocalTensor
from ckpt_tool.readers.fsdp.roll import Member, Roll
from ckpt_tool.readers.fsdp.slices import join_slices
from ckpt_tool.readers.holdings import Layout, PackedHoldings
from ckpt_tool.tensors.dtypes import DType
from ckpt_tool.tensors.geometry import Shape, check_coverage, list_some

_SHOWN_RANKS = 8


def join_tensors(gathered: Gathered, world_size: int) -> dict[str, Entry]:
    """Every tensor that ranks hold parts of; what does not fit becomes problems of ``gathered``."""
    joiner = _Joiner(gathered, world_size)
    return {name: joiner.join(name) for name in gathered.locals}


@dataclass(frozen=True, slots=True)
class _Cut:
    """How tensors are cut of which nothing is wrong: all of a kind, in each roll that has them.

    ``held``: per holding of ``layout``, of which roll its rank is and which member.
    """

    shape: Shape
    dtype: DType
    placements: str
    layout: Layout
    held: tuple[tuple[int, Member], ...]


class _Joiner:
    """Joins tensor by tensor; what is proven of one is of all that are cut like it."""

    def __init__(self, gathered: Gathered, world_size: int) -> None:
        self._gathered = gathered
        self._expected = sorted(gathered.read_ranks)
        # Missing ranks leave every tensor uncovered: the one problem that says so is enough.
        self._complete = len(self._expected) == world_size
        self._cuts: dict[tuple[int, ...], _Cut | None] = {}

    def join(self, name: str) -> Entry:
        """The tensor called ``name``."""
        found = self._join_packed(name)
        return self._join_each(name) if found is None else found

    def _join_packed(self, name: str) -> Entry | None:
        """The tensor, where only rolls have it and all fits; else None."""
        if self._gathered.locals[name]:
            return None
        numbers = [roll.numbers.get(name, -1) for roll in self._gathered.rolls]
        rolls = zip(self._gathered.rolls, numbers, strict=True)
        key = tuple(-1 if at < 0 else roll.kinds[at] for roll, at in rolls)
        if key not in self._cuts:
            self._cuts[key] = self._make_cut(key)
        cut = self._cuts[key]
        if cut is None:
            return None
        offsets = array("Q", [member.offsets[numbers[at]] for at, member in cut.held])
        holdings = PackedHoldings(cut.layout, offsets)
        return Entry(name, cut.shape, cut.dtype, cut.placements, holdings)

    def _make_cut(self, kinds: Sequence[int]) -> _Cut | None:
        """How tensors are cut that are of these kinds, one per roll, -1 where it has none."""
        parts: list[tuple[int, Roll, Member]] = sorted(
            (
                (at, roll, member)
                for at, roll in enumerate(self._gathered.rolls)
                if kinds[at] >= 0
                for member in roll.members
            ),
            key=lambda part: part[2].rank,
        )
        if [member.rank for _, _, member in parts] != self._expected:
            return None
        samples = [roll.samples[kinds[at]] for at, roll, _ in parts]
        if len({(sample.shape, sample.local.dtype) for sample in samples}) != 1:
            return None
        shape, dtype = samples[0].shape, samples[0].local.dtype
        holdings = tuple(roll.get_holding(member, kinds[at]) for at, roll, member in parts)
        if self._complete and not check_coverage(shape, {held.box for held in holdings}):
            return None
        texts = " | ".join(dict.fromkeys(sample.text for sample in samples))
        held = tuple((at, member) for at, _, member in parts)
        return _Cut(shape, dtype, texts, Layout(holdings), held)

    def _join_each(self, name: str) -> Entry:
        """The tensor, from each rank's part by itself; what does not fit becomes problems."""
        found, report = self._gathered.list_locals(name), self._gathered.report
        try:
            found = join_slices(found)
        except FormatError as error:
            report("contradiction", name, error.reason)
        first_rank, first = found[0]
        for rank, local in found[1:]:
            if (local.shape, local.dtype) != (first.shape, first.dtype):
                report(
                    "contradiction",
                    name,
                    f"{local.dtype} {list(local.shape)} on rank {rank}, {first.dtype}"
                    f" {list(first.shape)} on rank {first_rank}",
                )
        is_everywhere = self._find_absent(name, {rank for rank, _ in found})
        holdings = tuple(holding for _, local in found for holding in local.holdings)
        placements = " | ".join(dict.fromkeys(local.placements for _, local in found))
        entry = Entry(name, first.shape, first.dtype, placements, holdings)
        if self._complete and is_everywhere and _have_one_shape(found):
            self._check_coverage(entry)
        return entry

    def _find_absent(self, name: str, present: set[int]) -> bool:
        """Whether no rank lacks a tensor that others have."""
        lacking = (rank for rank in self._expected if rank not in present)
        absent = [str(rank) for rank in islice(lacking, _SHOWN_RANKS)]
        if absent:
            rest = len(self._expected) - len(present) - len(absent)
            ranks = ", ".join(absent) + (f" and {rest} more" if rest else "")
            said = f"not in the file of rank {ranks}, but in others"
            self._gathered.report("missing-on-rank", name, said)
        return not absent

    def _check_coverage(self, entry: Entry) -> None:
        coverage = check_coverage(entry.shape, entry.owners())
        for kind, boxes in (("missing", coverage.missing), ("overlapping", coverage.overlapping)):
            if boxes:
                message = f"{kind} {list_some(boxes)} of {list(entry.shape)}"
                self._gathered.report("coverage", entry.name, message)
        if coverage.is_tangled:
            self._gathered.report("coverage", entry.name, TANGLED)


def _have_one_shape(found: Sequence[tuple[int, LocalTensor]]) -> bool:
    return len({local.shape for _, local in found}) == 1
