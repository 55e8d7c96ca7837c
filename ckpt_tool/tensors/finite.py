"""Elements that are not finite: infinities and NaNs, and whose fault they are."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from numpy.typing import NDArray


def has_unreal(flat: NDArray[Any]) -> bool:
    """Whether an element of ``flat`` [N] is not finite.

    A sum of squares tells it faster than looking at each; one that is too large tells nothing.
    """
    import numpy as np

    with np.errstate(over="ignore", invalid="ignore"):
        return not np.isfinite(flat @ flat) and not np.isfinite(flat).all()


def is_made(found: NDArray[Any], operands: Iterable[NDArray[Any]]) -> bool:
    """Whether an element of ``found`` is not finite where all of ``operands`` are.

    They are broadcast to its shape.
    """
    import numpy as np

    unreal = ~np.isfinite(found)
    for operand in operands:
        unreal &= np.isfinite(operand)
    return bool(unreal.any())
