"""A matrix with a low-rank update, as one tensor: LoRA and DoRA, fused.

``base + scale * (left @ right)``, where ``left`` [R, r] and ``right`` [r, C]; with ``magnitude``
[R], each row of that is scaled to this length (DoRA, https://arxiv.org/abs/2402.09353). Of weights
that are [in, out] it is the columns that have lengths [C]: these are found in a pass of their own.

Here is only what it is made of, which takes no numpy; :mod:`ckpt_tool.tensors.updates` computes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from ckpt_tool.tensors.chunks import Filler, Reader
from ckpt_tool.tensors.dtypes import CASTABLE, FLOAT32, FLOAT64, DType
from ckpt_tool.tensors.geometry import Shape
from ckpt_tool.tensors.lazy import LazyTensor, hold


class Magnitude(NamedTuple):
    """The Euclidean lengths that rows [R] of a matrix are to have, or its columns [C]."""

    lengths: LazyTensor
    of_columns: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class LowRank:
    """The operands; all are read in :attr:`dtype`, in which the result is row-major too.

    Without ``right``, ``left`` [R, C] is the product.
    """

    base: LazyTensor
    left: LazyTensor
    right: LazyTensor | None
    scale: float
    magnitude: Magnitude | None

    @property
    def dtype(self) -> DType:
        """What is computed in: float32, or float64 where the base has that."""
        return FLOAT64 if self.base.dtype == FLOAT64 else FLOAT32

    @property
    def origin(self) -> DType:
        """What is rounded is the sum, whatever its operands have on disk."""
        return self.dtype

    @property
    def shape(self) -> Shape:
        """That of the base: [R, C]."""
        return self.base.shape

    @property
    def operands(self) -> tuple[LazyTensor, ...]:
        """Base, factors and, where there is one, magnitude."""
        lengths = None if self.magnitude is None else self.magnitude.lengths
        parts = (self.base, self.left, self.right, lengths)
        return tuple(part for part in parts if part is not None)

    @property
    def recipe(self) -> str:
        """The formula."""
        by_column = self.magnitude is not None and self.magnitude.of_columns
        lengths = " in columns of such lengths" if by_column else ""
        return f"base + {self.scale!r} * left @ right{lengths}"

    def open(self, reader: Reader) -> Filler:
        """Reads the right factor, which every tile needs, and what lengthens columns."""
        from ckpt_tool.tensors.updates import Operands, UpdateFiller

        factors = self.base, self.left, self.right, self.scale
        lengths, of_columns = self.magnitude or (None, False)
        return UpdateFiller(Operands(*factors, lengths, of_columns, self.dtype), reader)


def update_matrix(
    base: LazyTensor,
    left: LazyTensor,
    right: LazyTensor,
    scale: float,
    magnitude: Magnitude | None = None,
) -> LazyTensor:
    """``base`` [R, C] plus ``scale`` times ``left`` [R, r] @ ``right`` [r, C], as ``base.dtype``.

    With ``magnitude`` each row, or column, is then scaled to this length. Computed in float32
    (float64 where ``base`` has that) and rounded once, to whatever dtype the result is cast to.
    ValueError where a shape or a dtype is another one; reads nothing.
    """
    _check(base, left, right, magnitude)
    return _as_tensor(LowRank(base, left, right, scale, magnitude))


def update_vector(base: LazyTensor, update: LazyTensor, scale: float) -> LazyTensor:
    """``base`` [N] plus ``scale`` times ``update`` [N], as :func:`update_matrix` makes it."""
    if len(base.shape) != 1 or base.shape != update.shape:
        raise ValueError(f"an update of shape {list(update.shape)} for one of {list(base.shape)}")
    _check_dtypes([base, update])
    summed = LowRank(base.unsqueeze(1), update.unsqueeze(1), None, scale, None)
    return _as_tensor(summed).select(1, 0)


def _as_tensor(computed: LowRank) -> LazyTensor:
    base = computed.base
    if not base.numel:
        return base
    return hold(computed, base.dtype, base)


def _check(
    base: LazyTensor, left: LazyTensor, right: LazyTensor, magnitude: Magnitude | None
) -> None:
    if len(base.shape) != 2:
        raise ValueError(f"a base of shape {list(base.shape)}, expected a matrix")
    fits = len(left.shape) == len(right.shape) == 2 and left.shape[1] == right.shape[0]
    if not fits or (left.shape[0], right.shape[1]) != base.shape:
        raise ValueError(
            f"factors of shapes {list(left.shape)} and {list(right.shape)} for a base of shape"
            f" {list(base.shape)}"
        )
    operands = [base, left, right]
    if magnitude is not None:
        wanted = base.shape[1:] if magnitude.of_columns else base.shape[:1]
        operands.append(magnitude.lengths)
        if magnitude.lengths.shape != wanted:
            found = list(magnitude.lengths.shape)
            raise ValueError(f"magnitudes of shape {found}, expected {list(wanted)}")
    _check_dtypes(operands)


def _check_dtypes(operands: Iterable[LazyTensor]) -> None:
    for tensor in operands:
        if tensor.dtype not in CASTABLE:
            raise ValueError(f"{tensor.dtype}, expected a floating-point type of 16 bits or more")
