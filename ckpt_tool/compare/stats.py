"""How far two tensors of one shape are apart: numbers that add up over their parts.

``a`` is the checkpoint's element, ``b`` the reference's. Differences are taken in float64; elements
that are not finite on either side count as different or equal by their bits, not in the sums.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Tolerance:
    """``a`` and ``b`` are close where ``|a - b| <= atol + rtol * |b|``; both 0: only equal bits."""

    atol: float = 0.0
    rtol: float = 0.0

    @property
    def exact(self) -> bool:
        """Whether nothing but equality will do."""
        return self.atol == 0 and self.rtol == 0


@dataclass(slots=True)
class Stats:
    """The differences of a pair. Sums are over elements that are finite on both sides.

    ``num_different`` counts elements with other bits (other values, where the dtypes differ), and
    ``num_outside`` those of them that the tolerance does not cover. ``exponents[e]`` counts
    elements with ``2**e <= |a - b| < 2**(e + 1)``. ``digests`` are of the two sides' bytes.
    """

    num_elements: int = 0
    num_different: int = 0
    num_outside: int = 0
    first_index: int | None = None
    first_values: tuple[float, float] | None = None
    max_abs: float = 0.0
    max_rel: float = 0.0
    max_ulp: int | None = None
    sum_abs: float = 0.0
    peaks: tuple[float, float] = (0.0, 0.0)  # largest magnitude of a, of b
    squares: tuple[float, float, float] = (0.0, 0.0, 0.0)  # of a, of b, of a - b
    product: float = 0.0
    num_unlike: int = 0  # different, and not finite on a side
    num_nan_alone: int = 0  # NaN on one side, and a number or infinite on the other
    num_inf_alone: int = 0  # infinite on one side, and no NaN nor this infinity on the other
    num_nan: tuple[int, int] = (0, 0)
    num_inf: tuple[int, int] = (0, 0)
    exponents: dict[int, int] = field(default_factory=dict)
    digests: tuple[str, str] = ("", "")

    @property
    def mean_abs(self) -> float:
        """Mean of ``|a - b|``."""
        return self.sum_abs / self.num_elements if self.num_elements else 0.0

    @property
    def cosine(self) -> float | None:
        """Cosine of the angle between the two; None where one is zero or a sum overflows."""
        norms = math.sqrt(self.squares[0]) * math.sqrt(self.squares[1])
        if not norms or not math.isfinite(norms) or not math.isfinite(self.product):
            return None
        return max(-1.0, min(1.0, self.product / norms))

    @property
    def relative_norm(self) -> float | None:
        """``|a - b| / |b|`` in the Euclidean norm; None where that is no number."""
        norm = math.sqrt(self.squares[2] / self.squares[1]) if self.squares[1] else math.inf
        return norm if math.isfinite(norm) else None

    @property
    def distance(self) -> float:
        """One number for how far apart: ``|a - b| / |b|``; infinite where that is not a number.

        That is: where the reference is zero, or where elements differ that are not finite.
        """
        if self.num_unlike:
            return math.inf
        if self.relative_norm is not None:
            return self.relative_norm
        return math.inf if self.squares[2] else 0.0

    def add(self, other: Stats) -> None:
        """Take in the part of the tensor that follows."""
        self.num_elements += other.num_elements
        self.num_different += other.num_different
        self.num_outside += other.num_outside
        if self.first_index is None:
            self.first_index, self.first_values = other.first_index, other.first_values
        self.max_abs = max(self.max_abs, other.max_abs)
        self.max_rel = max(self.max_rel, other.max_rel)
        if other.max_ulp is not None:
            self.max_ulp = max(other.max_ulp, self.max_ulp or 0)
        self.sum_abs += other.sum_abs
        a, b, d = self.squares
        self.squares = (a + other.squares[0], b + other.squares[1], d + other.squares[2])
        self.peaks = (
            max(self.peaks[0], other.peaks[0]),
            max(self.peaks[1], other.peaks[1]),
        )
        self.product += other.product
        self.num_unlike += other.num_unlike
        self.num_nan_alone += other.num_nan_alone
        self.num_inf_alone += other.num_inf_alone
        self.num_nan = (self.num_nan[0] + other.num_nan[0], self.num_nan[1] + other.num_nan[1])
        self.num_inf = (self.num_inf[0] + other.num_inf[0], self.num_inf[1] + other.num_inf[1])
        for exponent, count in other.exponents.items():
            self.exponents[exponent] = self.exponents.get(exponent, 0) + count
