"""A matrix with a low-rank update, as one tensor: LoRA and DoRA, fused.

``base + scale * (left @ right)``, where ``left`` [R, r] and ``right`` [r, C]; with ``magnitude``
[R], each row of that is scaled to this length (DoRA, https://arxiv.org/abs/2402.09353).

It is computed a tile of whole rows at a time. Tiles begin at the same rows whichever range is asked
for: a matrix product adds up in an order that depends on the sizes of its operands, and an element
must not depend on how blocks are cut.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ckpt_tool.tensors.chunks import Chunk, Filler, Reader, Region
from ckpt_tool.tensors.dtypes import CASTABLE, FLOAT32, FLOAT64, DType
from ckpt_tool.tensors.geometry import Box, Shape, make_strides
from ckpt_tool.tensors.lazy import LazyTensor

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: Elements per tile: few enough to stay in a core's cache and to waste little where a block of
#: output ends within one, enough that threads rarely meet at the interpreter lock.
TILE = 1 << 18


@dataclass(frozen=True, slots=True, eq=False)
class LowRank:
    """The operands; all are read in :attr:`dtype`, in which the result is row-major too."""

    base: LazyTensor
    left: LazyTensor
    right: LazyTensor
    scale: float
    magnitude: LazyTensor | None

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
        parts = (self.base, self.left, self.right)
        return parts if self.magnitude is None else (*parts, self.magnitude)

    @property
    def recipe(self) -> str:
        """The formula."""
        return f"base + {self.scale!r} * left @ right"

    def open(self, reader: Reader) -> TileFiller:
        """Reads the right factor, which every tile needs."""
        return TileFiller(self, reader)


class TileFiller(Filler):
    """Computes tiles of a matrix; keeps the last one and the right factor."""

    def __init__(self, matrix: LowRank, reader: Reader) -> None:
        self._matrix, self._reader = matrix, reader
        self._rows = max(1, TILE // matrix.shape[1])
        self._right = self._load(matrix.right)
        self._number = -1
        self._tile: NDArray[Any] | None = None

    def fill(self, box: Box, out: memoryview) -> None:
        """Put the elements of ``box``, row-major, into ``out``."""
        import numpy as np

        (row, column), (rows, columns) = box
        found = np.frombuffer(out, self._matrix.dtype.name).reshape(box.sizes)
        for number in range(row // self._rows, -(-(row + rows) // self._rows)):
            tile, top = self._tile_of(number), number * self._rows
            start, stop = max(row, top), min(row + rows, top + self._rows)
            part = tile[start - top : stop - top, column : column + columns]
            found[start - row : stop - row] = part

    def _tile_of(self, number: int) -> NDArray[Any]:
        if self._tile is None or number != self._number:
            self._number, self._tile = number, self._compute(number)
        return self._tile

    def _compute(self, number: int) -> NDArray[Any]:
        import numpy as np

        matrix, start = self._matrix, number * self._rows
        length = min(self._rows, matrix.base.shape[0] - start)
        base = self._load(matrix.base.narrow(0, start, length))
        left = self._load(matrix.left.narrow(0, start, length))
        with np.errstate(over="ignore", invalid="ignore"):
            product = left @ self._right
            product *= base.dtype.type(matrix.scale)
            base += product
            if matrix.magnitude is not None:
                wanted = self._load(matrix.magnitude.narrow(0, start, length))
                base *= _lengthening(base, wanted)[:, None]
        return base

    def _load(self, tensor: LazyTensor) -> NDArray[Any]:
        """A whole tensor in the dtype that the matrix is computed in."""
        import numpy as np

        tensor = tensor.to(self._matrix.dtype)
        loaded = np.empty(tensor.shape, tensor.dtype.name)
        if loaded.size:
            self._reader.read(tensor, 0, tensor.numel, loaded.data.cast("B"))
        return loaded


def _lengthening(rows: NDArray[Any], wanted: NDArray[Any]) -> NDArray[Any]:
    """What brings each row to its wanted Euclidean length."""
    import numpy as np

    with np.errstate(divide="ignore"):
        found: NDArray[Any] = wanted / np.linalg.norm(rows, axis=1)
    return found


def update_matrix(
    base: LazyTensor,
    left: LazyTensor,
    right: LazyTensor,
    scale: float,
    magnitude: LazyTensor | None = None,
) -> LazyTensor:
    """``base`` [R, C] plus ``scale`` times ``left`` [R, r] @ ``right`` [r, C], as ``base.dtype``.

    With ``magnitude`` [R], each row is then scaled to this length. Computed in float32 (float64
    where ``base`` has that) and rounded once, to whatever dtype the result is cast to. ValueError
    where a shape or a dtype is another one; reads nothing.
    """
    _check(base, left, right, magnitude)
    if not base.numel:
        return base
    computed = LowRank(base, left, right, scale, magnitude)
    path = base.chunks[0].region.path
    region = Region(path, 0, make_strides(base.shape), computed=computed)
    chunk = Chunk(Box((0, 0), base.shape), region)
    return LazyTensor(base.shape, base.dtype, computed.dtype, (chunk,))


def _check(
    base: LazyTensor, left: LazyTensor, right: LazyTensor, magnitude: LazyTensor | None
) -> None:
    if len(base.shape) != 2:
        raise ValueError(f"a base of shape {list(base.shape)}, expected a matrix")
    fits = len(left.shape) == len(right.shape) == 2 and left.shape[1] == right.shape[0]
    if not fits or (left.shape[0], right.shape[1]) != base.shape:
        raise ValueError(
            f"factors of shapes {list(left.shape)} and {list(right.shape)} for a base of shape"
            f" {list(base.shape)}"
        )
    if magnitude is not None and magnitude.shape != base.shape[:1]:
        raise ValueError(
            f"magnitudes of shape {list(magnitude.shape)}, expected {list(base.shape[:1])}"
        )
    for tensor in (base, left, right, *([magnitude] if magnitude is not None else [])):
        if tensor.dtype not in CASTABLE:
            raise ValueError(f"{tensor.dtype}, expected a floating-point type of 16 bits or more")
