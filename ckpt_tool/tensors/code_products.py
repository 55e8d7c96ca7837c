"""Products of weights of four bits as bfloat16, rounded once for each factor and looked up.

A factor has only 16 products, and a weight's factors have few values: 256 where they are bytes,
some hundreds where they are bfloat16. What both numbers of a byte make of a factor is one word.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ckpt_tool.tensors.casts import Caster
from ckpt_tool.tensors.code_heads import Table
from ckpt_tool.tensors.code_tables import NUMBERS
from ckpt_tool.tensors.dtypes import BFLOAT16, FLOAT32

#: Factors that are kept: words of a KiB each, of which the cache holds those that are common.
_MOST = 4096
_BYTES = 256
_UNKNOWN = np.uint16(0xFFFF)


class Products:
    """Words of both products of a byte, by the bits that stand for a factor; for one thread."""

    def __init__(self) -> None:
        self._caster = Caster()
        self._words = np.empty((_MOST, _BYTES), np.uint32)
        self._errors = np.empty(_MOST, np.float32)
        self._table: Table | None = None
        self._kind = ""
        self._numbers = np.empty(0, np.uint16)
        self._used, self._is_full = 0, False

    @property
    def words(self) -> NDArray[np.uint32]:
        """The words of byte ``b`` and a factor that has number ``n`` are at ``256 n + b``."""
        return self._words.reshape(-1)

    def find(
        self, kind: str, table: Table, bits: NDArray[Any], floor: float
    ) -> NDArray[np.uint16 | np.uint32] | None:
        """256 times the numbers of the factors ``bits`` of ``table``, of the same shape.

        None where there are too many, where a factor that is finite makes an infinite product, or
        where rounding may err by more than ``floor``: by how much depends on what is multiplied.
        """
        if self._table is not table or self._kind != kind:
            self._kind, self._table, self._used, self._is_full = kind, table, 0, False
            self._numbers = np.full(len(table.factors), _UNKNOWN)
        if self._is_full:  # to look for what is known costs more than it spares then
            return None
        numbers = self._numbers.take(bits, mode="wrap")
        if numbers.max() == _UNKNOWN:
            new = np.unique(bits[numbers == _UNKNOWN])
            self._is_full = self._used + len(new) > _MOST
            if self._is_full:
                return None
            self._make(table, new)
            numbers = self._numbers.take(bits, mode="wrap")
        if self._errors.take(numbers, mode="wrap").max() > floor:
            return None
        if self._used > _BYTES:
            return numbers.astype(np.uint32) << np.uint32(8)
        return numbers << np.uint16(8)

    def _make(self, table: Table, bits: NDArray[Any]) -> None:
        """Words for factors that have none yet."""
        factors = table.factors[bits]
        with np.errstate(over="ignore", invalid="ignore"):
            exact = factors[:, None] * NUMBERS[self._kind]
        rounded = np.empty(exact.shape, np.uint16)
        flat = exact.view(np.uint32).reshape(-1)
        self._caster.cast(flat, FLOAT32, rounded.reshape(-1), BFLOAT16, 0.0)
        first, self._used = self._used, self._used + len(bits)
        made = slice(first, self._used)
        both = self._words[made].view(np.uint16).reshape(-1, 16, 16, 2)
        both[..., 0], both[..., 1] = rounded[:, None, :], rounded[:, :, None]
        self._errors[made] = _measure(exact, rounded, table.given[bits])
        self._numbers[bits] = np.arange(first, self._used)


def _measure(
    exact: NDArray[np.float32], rounded: NDArray[np.uint16], given: NDArray[np.bool_]
) -> NDArray[np.float32]:
    """By how much products of each factor err at most; infinite where one is, and should not be."""
    back = (rounded.astype(np.uint32) << np.uint32(16)).view(np.float32)
    with np.errstate(invalid="ignore"):
        errors = np.abs(exact - back)
    finite = np.isfinite(exact)
    errors[~finite] = 0
    found: NDArray[np.float32] = errors.max(axis=1)
    found[given & ~finite.all(axis=1)] = np.inf
    return found
