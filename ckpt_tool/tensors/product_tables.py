"""The products of fp8 codes with the factors of some blocks, and what rounding them cost."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ckpt_tool.tensors.casts import Caster
from ckpt_tool.tensors.code_tables import E4M3
from ckpt_tool.tensors.dtypes import FLOAT32, DType

#: How many values an fp8 element has.
CODES = 256
#: The bits of a magnitude; half of the codes are of one sign, as of the other.
_MAGNITUDE = np.uint8(127)


class Band(NamedTuple):
    """The blocks of one row of scales, and what their products are rounded to."""

    number: int
    dtype: DType


class _Errors(NamedTuple):
    """By how much the results of a table were rounded, and the most of any for each magnitude."""

    each: NDArray[np.float32]
    by_magnitude: NDArray[np.float32]


@dataclass(slots=True)
class Table:
    """Results by ``[block - first, fp8 bits]``, flat, of some blocks of a band.

    ``exact`` are the products in float32, ``bits`` carrier elements of the band's dtype. No finite
    product was rounded by more than ``worst``. ``overflown``: which are infinite by finite scales;
    None where none is.
    """

    band: Band
    first: int
    exact: NDArray[np.float32]
    bits: NDArray[Any]
    worst: float
    overflown: NDArray[np.bool_] | None
    _errors: _Errors | None = None

    def covers(self, band: Band, first: int, last: int) -> bool:
        """Whether blocks ``[first, last)`` of ``band`` are here."""
        end = self.first + len(self.bits) // CODES
        return self.first <= first and last <= end and self.band == band

    def largest_error(self, step: Step, known: float, caster: Caster) -> float:
        """The largest rounding error of a step's results; inf where one overflowed.

        Or ``known`` where none is larger. Errors grow with magnitudes, of which a block has few
        that are largest: only results of these are looked at.
        """
        if self._errors is None:
            self._errors = self._measure(caster)
        larger = np.flatnonzero(self._errors.by_magnitude > known)
        magnitudes = step.raw & _MAGNITUDE
        if not len(larger) or magnitudes.max() < larger[0]:
            return known
        chosen = step.places.reshape(-1)[np.flatnonzero(magnitudes >= np.uint8(larger[0]))]
        return float(np.take(self._errors.each, chosen, mode="wrap").max(initial=known))

    def _measure(self, caster: Caster) -> _Errors:
        rounded = _widen(self.bits, self.band.dtype, caster)
        with np.errstate(invalid="ignore"):
            each = np.abs(self.exact - rounded)
        each[~np.isfinite(self.exact)] = 0.0
        return _Errors(each, each.reshape(-1, CODES // 2).max(axis=0))


class Step(NamedTuple):
    """Elements that are looked up at once: their bits, where in the table, and where they go."""

    table: Table
    raw: NDArray[np.uint8]
    places: NDArray[np.intp]
    out: NDArray[Any]


def make_table(band: Band, first: int, factors: NDArray[np.float32], caster: Caster) -> Table:
    """The table of the blocks of a band with these factors, from block ``first`` on."""
    with np.errstate(over="ignore", invalid="ignore"):
        exact = (factors[:, None] * E4M3).reshape(-1)
    bits = np.empty(exact.shape, band.dtype.carrier)
    worst = caster.cast(exact.view(np.uint32), FLOAT32, bits, band.dtype, 0.0)
    rounded = exact if worst < inf else _widen(bits, band.dtype, caster)
    overflown = np.isinf(rounded) & np.isfinite(factors).repeat(CODES)
    return Table(band, first, exact, bits, worst, overflown if overflown.any() else None)


def _widen(bits: NDArray[Any], dtype: DType, caster: Caster) -> NDArray[np.float32]:
    """Carrier elements of ``dtype`` in float32."""
    wide = np.empty(bits.shape, np.float32)
    caster.cast(bits, dtype, wide.view(np.uint32), FLOAT32, 0.0)
    return wide
