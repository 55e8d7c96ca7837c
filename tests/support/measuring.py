"""Lazy tensors over files written whole, and what the comparison says of two of them."""

from collections.abc import Callable
from math import prod
from pathlib import Path

import numpy as np
import torch

from ckpt_tool.compare.heads import Heads
from ckpt_tool.compare.hints import Diagnosis
from ckpt_tool.compare.measure import measure
from ckpt_tool.compare.stats import Stats, Tolerance
from ckpt_tool.compare.suspects import Suspect
from ckpt_tool.tensors.chunks import Chunk, Region
from ckpt_tool.tensors.dtypes import DType
from ckpt_tool.tensors.equality import Pair
from ckpt_tool.tensors.geometry import Box, make_strides
from ckpt_tool.tensors.lazy import LazyTensor, cat
from tests.support.backed import dtype_of, raw

EXACT = Tolerance()


def of_bytes(path: Path, content: bytes, dtype: DType, shape: tuple[int, ...]) -> LazyTensor:
    """A tensor of the elements in `content`, behind three foreign bytes in the file."""
    path.write_bytes(b"\xaa\xbb\xcc" + content)
    region = Region(str(path), 3, make_strides(shape))
    chunks = (Chunk(Box((0,) * len(shape), shape), region),) if prod(shape) else ()
    return LazyTensor(shape, dtype, dtype, chunks)


def stored(path: Path, tensor: torch.Tensor) -> LazyTensor:
    return of_bytes(path, raw(tensor), dtype_of(tensor), tuple(tensor.shape))


def patterns(count: int, dtype: DType) -> bytes:
    """`count` elements of different bits, as far as there are that many."""
    return np.arange(1, count + 1).astype(dtype.carrier).tobytes()


def sharded(folder: Path, *pieces: torch.Tensor, dim: int = 0) -> LazyTensor:
    """A tensor of which rank n wrote the n-th piece."""
    ranks = [stored(folder / f"rank{rank}", piece) for rank, piece in enumerate(pieces)]
    return cat(ranks, dim)


def rank_of(path: str) -> int | None:
    name = Path(path).name
    return int(name.removeprefix("rank")) if name.startswith("rank") else None


def told(left: LazyTensor, right: LazyTensor, tolerance: Tolerance = EXACT, jobs: int = 2) -> Stats:
    return measure([Pair("t", left, right)], jobs, tolerance, lambda _: None)["t"]


def compared(folder: Path, a: torch.Tensor, b: torch.Tensor, tolerance: Tolerance = EXACT) -> Stats:
    return told(stored(folder / "a", a), stored(folder / "b", b), tolerance)


def hints(
    sides: dict[str, tuple[LazyTensor, LazyTensor]],
    heads: Heads | None = None,
    rank: Callable[[str], int | None] = rank_of,
) -> dict[str, str]:
    """The hint for each name, whose two tensors differ."""
    suspects = []
    for name, (left, right) in sides.items():
        if left.shape != right.shape:
            suspects.append(Suspect(name, "shape", left, right))
        else:
            kind = "values" if left.dtype == right.dtype else "dtype"
            stats = told(left, right)
            found = (stats, stats.distance, stats.digests, stats.first_index)
            suspects.append(Suspect(name, kind, left, right, *found))
    diagnosis = Diagnosis(suspects, heads, rank, 2)
    return {suspect.name: diagnosis.hint(suspect) for suspect in suspects}


def hint(
    folder: Path,
    left: torch.Tensor,
    right: torch.Tensor,
    heads: Heads | None = None,
    name: str = "model.weight",
) -> str:
    """The hint for one tensor in one file of no rank."""
    sides = (stored(folder / "left", left), stored(folder / "right", right))
    return hints({name: sides}, heads)[name]


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Normally distributed weights in random order; all different, also from other seeds' ones."""
    count = prod(shape)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    shift = (0.37 + 0.618 * seed) % 1
    values = ((order + shift) / count * 2 - 1).double().erfinv().to(dtype)
    assert len(values.unique()) == count or dtype.itemsize < 4
    return values.reshape(shape)


def touched(tensor: torch.Tensor, *index: int, by: float = 1.0) -> torch.Tensor:
    """A copy of which one element is another number."""
    out = tensor.clone()
    out[index] += by
    return out


def labels(order: torch.Tensor) -> list[bytes]:
    """Stand-ins for the digests of rows."""
    return [b"%d" % row for row in order.tolist()]
