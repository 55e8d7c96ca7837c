"""Why two tensors differ: known causes, each tested on the bytes before it is named."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from math import isclose

from ckpt_tool.compare.elements import find_scale, rounds_to
from ckpt_tool.compare.heads import Heads
from ckpt_tool.compare.pairs import round_to_coarser
from ckpt_tool.compare.rows import digest_rows, explain_order, find_shift
from ckpt_tool.compare.suspects import Suspect
from ckpt_tool.tensors.chunks import Chunk
from ckpt_tool.tensors.dtypes import BFLOAT16, CASTABLE, FLOAT16
from ckpt_tool.tensors.equality import Pair, are_equal, locate_differences
from ckpt_tool.tensors.geometry import Box
from ckpt_tool.tensors.lazy import LazyTensor

_GATE_UP = re.compile(r"\b(gate_proj|up_proj|w1|w3)\b")
_NUMBERED = re.compile(r"(?<![^.])(experts|layers|h|blocks)\.(\d{1,9})(?=\.)")
_ATTENTION = re.compile(r"attn|attention|[qkv]_proj|qkv|query|key|value")
_GATED = re.compile(r"mlp|gate|up_proj|fc1|experts|feed_forward")
_VOCABULARY = re.compile(r"embed|lm_head|wte|score|output_layer|(?<![^.])output\.weight$")


class Diagnosis:
    """Finds the cause for each of ``suspects``.

    ``rank_of`` says which rank wrote a file of the checkpoint (None: no rank did).
    """

    def __init__(
        self,
        suspects: Sequence[Suspect],
        heads: Heads | None,
        rank_of: Callable[[str], int | None],
        jobs: int,
    ) -> None:
        self._heads = heads
        self._rank_of = rank_of
        self._jobs = jobs
        self._suspects = {suspect.name: suspect for suspect in suspects}
        self._by_digest: dict[tuple[object, ...], str] = {}
        for suspect in suspects:
            if suspect.digests is not None:
                key = (suspect.right.shape, suspect.right.dtype, suspect.digests[1])
                self._by_digest.setdefault(key, suspect.name)

    def hint(self, suspect: Suspect) -> str:
        """The cause, or an empty string. OSError and FormatError where a file cannot be read."""
        if suspect.kind == "shape":
            return self._of_shapes(suspect)
        if suspect.kind == "dtype":
            return self._of_dtypes(suspect.left, suspect.right)
        tests = (
            self._zeros, self._exchanged, self._rounded, self._one_rank, self._transposed,
            self._rows, self._scaled,
        )  # fmt: skip
        for test in tests:
            hint = test(suspect)
            if hint:
                return hint
        return ""

    # --- values
    def _zeros(self, suspect: Suspect) -> str:
        stats = suspect.stats
        if stats is None or any(stats.num_nan + stats.num_inf):
            return ""
        if stats.peaks[0] == 0 < stats.peaks[1]:
            return "all zeros in the checkpoint"
        return "all zeros in the reference" if stats.peaks[1] == 0 < stats.peaks[0] else ""

    def _exchanged(self, suspect: Suspect) -> str:
        if suspect.digests is None:
            return ""
        key = (suspect.left.shape, suspect.left.dtype, suspect.digests[0])
        other = self._by_digest.get(key)
        if other is None or other == suspect.name:
            return ""
        partner = self._suspects[other].digests
        mutual = partner is not None and partner[0] == suspect.digests[1]
        if mutual and _GATE_UP.sub("", suspect.name) == _GATE_UP.sub("", other):
            return f"gate and up swapped: equal to the reference's {other}"
        mine, theirs = _NUMBERED.findall(suspect.name), _NUMBERED.findall(other)
        if _NUMBERED.sub(r"\1.*", suspect.name) == _NUMBERED.sub(r"\1.*", other):
            changed = [(a, b) for a, b in zip(mine, theirs, strict=True) if a != b]
            if len(changed) == 1:
                (what, here), (_, there) = changed[0]
                noun = "expert" if what == "experts" else "layer"
                return f"{noun} order changed: this is {noun} {there} of the reference, not {here}"
        return f"equal to the reference's {other}"

    def _one_rank(self, suspect: Suspect) -> str:
        if suspect.left.is_computed:  # a chunk of it is of several ranks
            return ""
        chunks = suspect.left.chunks
        ranks = {self._rank_of(chunk.region.path) for chunk in chunks}
        if len(ranks) < 2 or None in ranks:
            return ""
        pairs = [
            Pair(chunk, narrow_to(suspect.left, chunk.box), narrow_to(suspect.right, chunk.box))
            for chunk in chunks
        ]
        wrong = list(locate_differences(pairs, self._jobs, _nothing))
        found = sorted({self._rank_of(chunk.region.path) or 0 for chunk in wrong})
        if len(found) == len(ranks):
            return ""
        if len(found) > 1:
            listed = ", ".join(map(str, found))
            return f"only the shards of ranks {listed} differ, the others are equal"
        text = f"only rank {found[0]}'s shard differs"
        shift = self._shift(suspect, wrong) or self._rounding(wrong, suspect)
        if shift or (suspect.stats and 2 * suspect.stats.num_different >= _volume(wrong)):
            return f"{text}: {shift or 'stale, or from another step'}"
        return text if suspect.stats and suspect.stats.num_different > 1 else ""

    def _shift(self, suspect: Suspect, wrong: Sequence[Chunk]) -> str:
        whole = digest_rows(suspect.right)
        first = min(wrong, key=lambda chunk: chunk.box.offsets)
        if whole is None or first.box.sizes[1:] != suspect.left.shape[1:]:
            return ""
        part = digest_rows(narrow_to(suspect.left, first.box))
        at, size = first.box.offsets[0], first.box.sizes[0]
        by = find_shift(part, at, whole) if part else None
        if by is None:
            return ""
        return (
            f"shifted, its rows {at}:{at + size} are rows {at + by}:{at + by + size} of the"
            " reference"
        )

    def _rounding(self, chunks: Sequence[Chunk], suspect: Suspect) -> str:
        """Whether rounding explains all of these chunks."""
        found = {
            _rounding_of(narrow_to(suspect.left, c.box), narrow_to(suspect.right, c.box))
            for c in chunks
        }
        return found.pop() if len(found) == 1 else ""

    def _rounded(self, suspect: Suspect) -> str:
        return _rounding_of(suspect.left, suspect.right)

    def _transposed(self, suspect: Suspect) -> str:
        left, right = suspect.left, suspect.right
        if len(left.shape) < 2 or left.shape[-1] != left.shape[-2] or not _may_be_moved(suspect):
            return ""
        return "transposed" if are_equal(left, right.transpose(-1, -2), self._jobs) else ""

    def _rows(self, suspect: Suspect) -> str:
        if not _may_be_moved(suspect):
            return ""
        left, right = digest_rows(suspect.left), digest_rows(suspect.right)
        if left is None or right is None:
            return ""
        stacked = len(suspect.left.shape) > 2
        attention = None
        if bool(_ATTENTION.search(suspect.name)) != bool(_GATED.search(suspect.name)):
            attention = bool(_ATTENTION.search(suspect.name))
        text = explain_order(left, right, self._heads, stacked=stacked, attention=attention)
        return text if "expert" in suspect.name else text.removesuffix(" (expert order changed)")

    def _scaled(self, suspect: Suspect) -> str:
        stats = suspect.stats
        if stats is None or min(stats.num_elements, 2 * stats.num_different) < 8:
            return ""
        factor = find_scale(suspect.left, suspect.right)
        return "" if factor is None else f"scaled by {factor:g}"

    # --- shapes and dtypes
    def _of_shapes(self, suspect: Suspect) -> str:
        left, right = suspect.left, suspect.right
        if len(left.shape) == len(right.shape) > 1:
            if are_equal(left, right.transpose(-1, -2), self._jobs):
                return "transposed: otherwise equal"
            if left.shape[1:] == right.shape[1:]:
                return self._padded(suspect)
        if left.numel != right.numel or left.dtype != right.dtype:
            return ""
        # The comparison runs along the row-major order, whatever the shapes.
        if locate_differences([Pair("", left, right)], self._jobs, _nothing):
            return ""
        return f"the same {left.numel:,} values in another shape"

    def _padded(self, suspect: Suspect) -> str:
        left, right = suspect.left, suspect.right
        rows = min(left.shape[0], right.shape[0])
        if not rows or not are_equal(left.narrow(0, 0, rows), right.narrow(0, 0, rows), self._jobs):
            return ""
        more = abs(left.shape[0] - right.shape[0])
        side = "checkpoint" if left.shape[0] > right.shape[0] else "reference"
        what = "vocabulary padded" if _VOCABULARY.search(suspect.name) else "padded"
        return f"{what}: {more} more rows in the {side}, the first {rows} are equal"

    def _of_dtypes(self, left: LazyTensor, right: LazyTensor) -> str:
        pair = round_to_coarser(left, right)
        if pair is None:
            return ""
        one, other = pair
        if not are_equal(one, other, self._jobs):
            return ""
        side = "checkpoint" if one.dtype != one.origin else "reference"
        return f"equal after rounding the {side} to {one.dtype}"


def _may_be_moved(suspect: Suspect) -> bool:
    """Whether one side may have the other's elements elsewhere, by numbers that tell no order.

    Sums differ by how they are rounded: by less than a millionth, whatever the order.
    """
    stats = suspect.stats
    if stats is None:
        return True
    pairs = (stats.peaks, stats.num_nan, stats.num_inf)
    return all(a == b for a, b in pairs) and isclose(*stats.squares[:2], rel_tol=1e-6)


def _rounding_of(left: LazyTensor, right: LazyTensor) -> str:
    for dtype in (BFLOAT16, FLOAT16):
        if dtype == left.dtype or left.dtype not in CASTABLE:
            continue
        if rounds_to(right, left, dtype):
            return f"rounded to {dtype}: equal to the reference after rounding that to {dtype}"
        if rounds_to(left, right, dtype):
            return f"the reference is the checkpoint rounded to {dtype}"
    return ""


def narrow_to(tensor: LazyTensor, box: Box) -> LazyTensor:
    """The block ``box`` of a tensor."""
    for dim, (offset, size) in enumerate(zip(box.offsets, box.sizes, strict=True)):
        tensor = tensor.narrow(dim, offset, size)
    return tensor


def _volume(chunks: Sequence[Chunk]) -> int:
    return sum(chunk.box.volume for chunk in chunks)


def _nothing(_: int) -> None:
    pass
