"""How many directions a difference has, which tells whether an update of low rank would hold it.

The singular values of ``a - b`` come from a randomised range finder with one power iteration
(Halko, Martinsson and Tropp, https://arxiv.org/abs/0909.4061, algorithm 4.4), in three passes over
blocks of rows, so that memory is bounded by columns. What the directions it finds hold is a lower
bound of what as many of the best ones hold, and near it. Its random numbers are those of a fixed
seed, and each tensor is one thread's, so that results do not depend on how many there are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import accumulate
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ckpt_tool.common.parallel import Team
from ckpt_tool.common.threads import Threads
from ckpt_tool.compare.mismatch import Mismatch
from ckpt_tool.compare.ranks import ENERGY, RANKS, Spectrum
from ckpt_tool.compare.suspects import Suspect, sort_worst_first
from ckpt_tool.compare.values import decode_values
from ckpt_tool.tensors.blocks import BlockReader, FileTable
from ckpt_tool.tensors.dtypes import BFLOAT16, FLOAT16, DType
from ckpt_tool.tensors.lazy import LazyTensor

#: Larger ones take too long, wider ones too much memory.
MOST_ELEMENTS, MOST_COLUMNS = 1 << 28, 1 << 16

_MOST_ROUNDING = 0.5  # where the estimate is more, too little is known of the rest
_EXTRA = 16  # directions beside those that are told of
_SEED = 20_260_101
_STEP = 1 << 20  # elements of a block

#: Bits of a number's fraction, the first one too.
_PRECISION = {BFLOAT16: 8, FLOAT16: 11}

Matrix = NDArray[Any]


def add_spectra(
    suspects: Sequence[Suspect], mismatched: Sequence[Mismatch], most: int, team: Team
) -> list[Mismatch]:
    """The mismatches, of which the worst ``most`` have a spectrum if they are matrices.

    These have numbers already. Every process of the team does its share, and all learn of all.
    OSError and FormatError where a file cannot be read.
    """
    chosen = [each for each in sort_worst_first(suspects)[:most] if _is_wanted(each)]
    share = [chosen[at] for at in team.world.share([each.left.nbytes for each in chosen])]
    team.progress.start("directions", sum(each.left.nbytes for each in share))

    def find(suspect: Suspect) -> tuple[str, Spectrum | None]:
        found = find_spectrum(suspect.left, suspect.right, _size_of(suspect))
        team.progress.advance(suspect.left.nbytes)
        return suspect.name, found

    def find_all() -> list[tuple[str, Spectrum | None]]:
        with Threads(team.jobs, tasks=len(share)) as pool:
            return list(pool.map(find, share))

    found = {name: each for part in team.world.everyone(find_all) for name, each in part}
    return [replace(each, spectrum=found.get(each.name)) for each in mismatched]


def _size_of(suspect: Suspect) -> float:
    return 0.0 if suspect.stats is None else suspect.stats.max_abs


def _is_wanted(suspect: Suspect) -> bool:
    """Whether it is a matrix of numbers, and of a size that is bearable."""
    shape = suspect.left.shape
    floats = suspect.left.dtype.is_float and suspect.right.dtype.is_float
    small = suspect.left.numel <= MOST_ELEMENTS and shape[-1:] <= (MOST_COLUMNS,)
    finite = suspect.stats is not None and not suspect.stats.num_unlike
    return suspect.kind != "shape" and len(shape) == 2 and floats and small and finite


def find_spectrum(left: LazyTensor, right: LazyTensor, size: float) -> Spectrum | None:
    """The spectrum of ``left - right``, of one shape [rows, columns].

    ``size``: the largest element of the difference, so that no square is too small or too large.
    None where that is 0. OSError and FormatError where a file cannot be read.
    """
    if not size or not np.isfinite(size):
        return None
    rows, columns = left.shape
    full = min(rows, columns)
    width = min(full, RANKS[-1] + _EXTRA)
    source = _Difference(left, right, size)
    base = np.zeros((columns, width), np.float32)
    for at, block in source.blocks():
        base += block.T @ _draw(at, len(block), width)
    base = _orthonormal(base)
    turned = np.zeros_like(base)
    for _, block in source.blocks():
        turned += block.T @ (block @ base)
    base = _orthonormal(turned)
    gram, energy, noise = np.zeros((width, width)), 0.0, 0.0
    for at, block in source.blocks():
        image = (block @ base).astype(np.float64)
        gram += image.T @ image
        energy += float(np.square(block, dtype=np.float64).sum())
        noise += source.rounding(at)
    return _describe(full, np.linalg.eigvalsh(gram)[::-1], energy, noise)


def _describe(full: int, squares: Matrix, energy: float, noise: float) -> Spectrum:
    """``squares``: of the singular values, the largest first."""
    shares = [min(1.0, total / energy) for total in accumulate(map(float, squares))]
    rounding = min(1.0, noise / energy)
    return Spectrum(
        full=full,
        rank=_count_enough(shares, ENERGY),
        beyond_rounding=(
            _count_enough(shares, ENERGY * (1 - rounding)) if rounding < _MOST_ROUNDING else None
        ),
        held={rank: shares[rank - 1] for rank in RANKS if rank <= full},
        rounding=rounding,
    )


def _count_enough(shares: Sequence[float], wanted: float) -> int | None:
    enough = (at for at, share in enumerate(shares[: RANKS[-1]], 1) if share >= wanted)
    return next(enough, None)


def _draw(at: int, rows: int, width: int) -> Matrix:
    generator = np.random.Generator(np.random.PCG64([_SEED, at]))
    return generator.standard_normal((rows, width), np.float32)


def _orthonormal(columns: Matrix) -> Matrix:
    found, _ = np.linalg.qr(columns.astype(np.float64))
    return found.astype(np.float32)


class _Difference:
    """Blocks of whole rows of ``left - right``, divided by ``size``, in float32."""

    def __init__(self, left: LazyTensor, right: LazyTensor, size: float) -> None:
        self._sides = left, right
        self._size = size
        self._step = max(1, _STEP // left.shape[1])
        self._ulps: dict[int, float] = {}

    def blocks(self) -> Iterator[tuple[int, Matrix]]:
        """The number of the first row, and the rows."""
        left, _ = self._sides
        rows, columns = left.shape
        with FileTable() as files:
            reader = BlockReader(files)
            for at in range(0, rows, self._step):
                stop = min(at + self._step, rows)
                a, b = (_read(reader, each, at, stop) for each in self._sides)
                self._ulps[at] = _add_ulps(a, left.dtype)
                yield at, ((a - b) / self._size).astype(np.float32).reshape(-1, columns)

    def rounding(self, at: int) -> float:
        """The energy of even rounding errors in the block that begins at a row."""
        return self._ulps[at] / 12 / self._size / self._size


def _read(reader: BlockReader, tensor: LazyTensor, first: int, stop: int) -> Matrix:
    columns = tensor.shape[1]
    raw = memoryview(bytearray((stop - first) * columns * tensor.dtype.itemsize))
    reader.read(tensor, first * columns, stop * columns, raw)
    return decode_values(raw, tensor.dtype)


def _add_ulps(values: Matrix, dtype: DType) -> float:
    """The sum of squares of the steps from each number to the next one; 0 of fine dtypes."""
    if dtype not in _PRECISION:
        return 0.0
    _, exponents = np.frexp(values[values != 0])
    counts = np.bincount(np.maximum(exponents + 200, 0))
    return float(sum(n * 4.0 ** (at - 200 - _PRECISION[dtype]) for at, n in enumerate(counts) if n))
