"""How far two blocks are apart in float32: sums of squares to six digits, in a third of the time.

Every bfloat16, float16 and float32 is a float32, and a difference of two is rounded but once. What
does not fit float32 is left to who sums in float64.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import inf
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ckpt_tool.compare.parts import multiply
from ckpt_tool.compare.stats import Stats
from ckpt_tool.compare.values import view_bits
from ckpt_tool.tensors.dtypes import BFLOAT16, FLOAT16, FLOAT32, DType

Singles = NDArray[np.float32]

_SINGLES = 1 << 17  # at once: in fewer, threads wait for the interpreter lock more than they work
_HALF = np.uint32(16)  # bits of a bfloat16: the upper ones of its float32
_UPPER = np.uint32(0xFFFF << 16)

#: Squares below 1e-38 are lost, a million of them at most: of a sum above, less than a millionth.
_LEAST = 1e-26


class QuickRank:
    """Ranks blocks, in memory that serves the next one too; one instance per thread."""

    def __init__(self) -> None:
        self._memory = np.empty((2, _SINGLES), np.float32)
        self._flags = np.empty(0, np.bool_)

    def rank(self, left: memoryview, right: memoryview, dtype: DType) -> Stats | None:
        """What :attr:`~.Stats.distance` rests on, and how many of the raw elements differ.

        None where float32 does not do: of other dtypes, of bfloat16 that are not pairs, and where
        a sum is not finite, or so small that digits are lost.
        """
        a, b = view_bits(left, dtype), view_bits(right, dtype)
        if dtype not in (BFLOAT16, FLOAT16, FLOAT32) or (dtype == BFLOAT16 and len(a) % 2):
            return None
        if len(self._flags) < len(a):
            self._flags = np.empty(len(a), np.bool_)
        different = np.not_equal(a, b, out=self._flags[: len(a)])
        part = Stats(num_elements=len(a), num_different=int(np.count_nonzero(different)))
        sides = self._widen(0, a, dtype), self._widen(1, b, dtype)
        own = apart = 0.0
        for one, other in zip(*sides, strict=True):
            own += multiply(other, other)
            if part.num_different:
                distance = np.subtract(one, other, out=self._memory[0, : len(one)])
                apart += multiply(distance, distance)
        part.squares = (0.0, own, apart)
        fits = all(_LEAST < each < inf for each in ((own, apart) if part.num_different else (own,)))
        return part if fits else None

    def _widen(self, side: int, bits: NDArray[Any], dtype: DType) -> Iterator[Singles]:
        """The elements as float32, in memory that the next ones take.

        Of bfloat16 those of even places and those of odd ones by themselves, so that none need be
        put between others: they are lower and upper halves of words.
        """
        if dtype == BFLOAT16:
            words = bits.view("<u4")
            for at in range(0, len(words), _SINGLES):
                part = words[at : at + _SINGLES]
                out = self._memory[side, : len(part)]
                np.left_shift(part, _HALF, out=out.view(np.uint32))
                yield out
                np.bitwise_and(part, _UPPER, out=out.view(np.uint32))
                yield out
            return
        values = bits.view(f"<f{dtype.itemsize}")
        for at in range(0, len(values), _SINGLES):
            part = values[at : at + _SINGLES]
            if dtype == FLOAT32:
                yield part
            else:
                out = self._memory[side, : len(part)]
                out[:] = part
                yield out
