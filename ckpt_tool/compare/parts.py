"""Steps of measuring a block: sums of products, and what is not finite."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ckpt_tool.compare.stats import Stats
from ckpt_tool.compare.values import Values

#: Elements of a product of vectors at once: OpenBLAS shares out those of more than 10,000.
_PRODUCT = 1 << 13

Flags = NDArray[np.bool_]
Floats = NDArray[np.floating[Any]]


def peak(values: Values, size: Values) -> float:
    """The largest magnitude, NaN where some are NaN; ``size`` has all magnitudes then."""
    return float(np.abs(values, out=size).max())


def multiply(a: Floats, b: Floats) -> float:
    """The sum of products, in the precision that both have."""
    whole = len(a) // _PRODUCT * _PRODUCT
    rows = a[:whole].reshape(-1, 1, _PRODUCT), b[:whole].reshape(-1, _PRODUCT, 1)
    return float(np.matmul(*rows).sum() + a[whole:] @ b[whole:])


def set_aside(part: Stats, a: Values, b: Values, different: Flags) -> Flags:
    """Count what is not finite on a side, and make it 0 on both; which values are finite."""
    finite = np.asarray(np.isfinite(a) & np.isfinite(b))
    nan, count = (np.isnan(a), np.isnan(b)), len(different)
    part.num_nan = (int(nan[0].sum()), int(nan[1].sum()))
    part.num_inf = (int(np.isinf(a).sum()), int(np.isinf(b).sum()))
    part.num_unlike = int(np.count_nonzero(different & any_part(~finite, count)))
    part.num_nan_alone = int(np.count_nonzero(any_part(nan[0] != nan[1], count)))
    far = ~finite & (a != b) & ~nan[0] & ~nan[1]
    part.num_inf_alone = int(np.count_nonzero(any_part(far, count)))
    a[~finite] = b[~finite] = 0.0
    return finite


def note_first(part: Stats, a: Values, b: Values, different: Flags, start: int) -> None:
    """Which element of the block, which begins at ``start``, is the first that differs."""
    first = int(np.argmax(different))
    parts = len(a) // len(different)
    at = first * parts
    at += int(np.argmax(a[at : at + parts] != b[at : at + parts]))
    part.first_index, part.first_values = start + first, (float(a[at]), float(b[at]))


def any_part(flags: Flags, count: int) -> Flags:
    """For each of ``count`` elements whether one of its parts is flagged."""
    if len(flags) == count:
        return flags
    return np.asarray(flags.reshape(count, -1).any(axis=1))
