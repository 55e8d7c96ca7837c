"""A matrix with a low-rank update, as one tensor: LoRA and DoRA, fused.

``base + scale * (left @ right)``, where ``left`` [R, r] and ``right`` [r, C]; with ``magnitude``
[R], each row of that is scaled to this length (DoRA, https://arxiv.org/abs/2402.09353). Of weights
that are [in, out] it is the columns that have lengths [C]: these are found in a pass of their own.

It is computed a tile of whole rows at a time. Tiles begin at the same rows whichever range is asked
for: a matrix product adds up in an order that depends on the sizes of its operands, and an element
must not depend on how blocks are cut.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from ckpt_tool.tensors.chunks import Filler, Reader
from ckpt_tool.tensors.dtypes import CASTABLE, FLOAT32, FLOAT64, DType
from ckpt_tool.tensors.finite import has_unreal, is_made
from ckpt_tool.tensors.geometry import Box, Shape
from ckpt_tool.tensors.lazy import LazyTensor, hold

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: Elements per tile: few enough to stay in a core's cache and to waste little where a block of
#: output ends within one, enough that threads rarely meet at the interpreter lock.
TILE = 1 << 18


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

    def open(self, reader: Reader) -> TileFiller:
        """Reads the right factor, which every tile needs, and what lengthens columns."""
        return TileFiller(self, reader)


class TileFiller(Filler):
    """Computes tiles of a matrix; keeps the last one and the right factor."""

    def __init__(self, matrix: LowRank, reader: Reader) -> None:
        self._matrix, self._reader = matrix, reader
        self._rows = max(1, TILE // matrix.shape[1])
        self._right = None if matrix.right is None else self._load(matrix.right)
        self._number = -1
        self._tile: NDArray[Any] | None = None
        self._stretch: NDArray[Any] | None = None
        if matrix.magnitude is not None and matrix.magnitude.of_columns:
            self._stretch = self._find_stretch(matrix.magnitude.lengths)

    def fill(self, box: Box, out: memoryview) -> None:
        """Put the elements of ``box``, row-major, into ``out``."""
        import numpy as np

        (row, column), (rows, columns) = box
        flat = np.frombuffer(out, self._matrix.dtype.name)
        found = flat.reshape(box.sizes)
        for number in range(row // self._rows, -(-(row + rows) // self._rows)):
            tile, top = self._tile_of(number), number * self._rows
            start, stop = max(row, top), min(row + rows, top + self._rows)
            part = tile[start - top : stop - top, column : column + columns]
            found[start - row : stop - row] = part
        if has_unreal(flat) and self._is_new(box, found):
            self._reader.spoil()

    def _is_new(self, box: Box, found: NDArray[Any]) -> bool:
        """Whether an element of ``box`` is not finite though all that it is made of is."""
        matrix, (first, second), (rows, columns) = self._matrix, box.offsets, box.sizes
        across, down = slice(first, first + rows), slice(second, second + columns)
        left = self._load(matrix.left.narrow(0, first, rows))
        known = [self._load(matrix.base.narrow(0, first, rows).narrow(1, second, columns))]
        if self._right is None:
            known.append(left[:, down])
        else:
            known += [abs(left).max(axis=1)[:, None], abs(self._right[:, down]).max(axis=0)]
        if matrix.magnitude is not None:
            lengths = self._load(matrix.magnitude.lengths)
            known.append(lengths[down] if matrix.magnitude.of_columns else lengths[across, None])
        return is_made(found, known)

    def _tile_of(self, number: int) -> NDArray[Any]:
        if self._tile is None or number != self._number:
            self._number, self._tile = number, self._compute(number)
        return self._tile

    def _compute(self, number: int) -> NDArray[Any]:
        import numpy as np

        tile, matrix = self._sum(number), self._matrix
        if self._stretch is not None:
            with np.errstate(over="ignore", invalid="ignore"):
                tile *= self._stretch
        elif matrix.magnitude is not None:
            lengths = matrix.magnitude.lengths
            wanted = self._load(lengths.narrow(0, number * self._rows, len(tile)))
            with np.errstate(over="ignore", invalid="ignore"):
                tile *= _lengthening(np.linalg.norm(tile, axis=1), wanted)[:, None]
        return tile

    def _find_stretch(self, lengths: LazyTensor) -> NDArray[Any]:
        """What brings each column of the sum to its wanted length: reads all of it."""
        import numpy as np

        squares = np.zeros(self._matrix.shape[1])
        for number in range(-(-self._matrix.shape[0] // self._rows)):
            squares += np.square(self._sum(number), dtype=np.float64).sum(axis=0)
        wanted = self._load(lengths)
        return _lengthening(np.sqrt(squares).astype(wanted.dtype), wanted)

    def _sum(self, number: int) -> NDArray[Any]:
        """A tile of base and update."""
        import numpy as np

        matrix, start = self._matrix, number * self._rows
        length = min(self._rows, matrix.base.shape[0] - start)
        base = self._load(matrix.base.narrow(0, start, length))
        left = self._load(matrix.left.narrow(0, start, length))
        with np.errstate(over="ignore", invalid="ignore"):
            product = left if self._right is None else left @ self._right
            product *= base.dtype.type(matrix.scale)
            base += product
        return base

    def _load(self, tensor: LazyTensor) -> NDArray[Any]:
        """A whole tensor in the dtype that the matrix is computed in."""
        import numpy as np

        tensor = tensor.to(self._matrix.dtype)
        loaded = np.empty(tensor.shape, tensor.dtype.name)
        if loaded.size:
            self._reader.read(tensor, 0, tensor.numel, loaded.data.cast("B"))
        return loaded


def _lengthening(lengths: NDArray[Any], wanted: NDArray[Any]) -> NDArray[Any]:
    """What brings Euclidean lengths to those that are wanted."""
    import numpy as np

    with np.errstate(divide="ignore", invalid="ignore"):
        found: NDArray[Any] = wanted / lengths
    return found


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
