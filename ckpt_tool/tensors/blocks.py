"""The data path: consecutive blocks of a lazy tensor's row-major form, into reused buffers.

A block is filled by ``pread`` straight into place where a run of source bytes is a run of target
bytes; strided pieces (``Shard(1)``, transposes) are read in the order they have on disk into
scratch memory and copied by numpy, as fp8 with scales is before it is multiplied with them
(:mod:`.fp8`); matrices with a low-rank update are computed (:mod:`.fusing`). The interpreter lock
is released during all this, so a few threads, each with its own :class:`BlockReader`, keep all
cores busy. numpy is imported by what needs it: to copy runs of bytes it is not.
"""

from __future__ import annotations

import os
import resource
import threading
from itertools import product
from math import prod
from typing import TYPE_CHECKING, Any

from ckpt_tool.common.errors import FormatError
from ckpt_tool.tensors.geometry import Shape, contiguous_strides, dot, linear_boxes
from ckpt_tool.tensors.lazy import LazyTensor, Region, subregion
from ckpt_tool.tensors.scaled import piece_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ckpt_tool.tensors.casts import Caster
    from ckpt_tool.tensors.fp8 import Dequantiser
    from ckpt_tool.tensors.fusing import Fuser

#: Bytes of output per block: each is one write, and fits the second-level cache.
BLOCK_BYTES = 2 << 20

_IO_LIMIT = 1 << 30  # Linux transfers at most 2 GiB - 4 KiB in one call


class FileTable:
    """Read-only file descriptors by path, opened on first use and shared by threads."""

    def __init__(self) -> None:
        self._descriptors: dict[str, int] = {}
        self._lock = threading.Lock()

    def __enter__(self) -> FileTable:
        return self

    def __exit__(self, *_: object) -> None:
        while self._descriptors:
            os.close(self._descriptors.popitem()[1])

    def descriptor(self, path: str) -> int:
        """The descriptor for ``path``; OSError where it cannot be opened."""
        found = self._descriptors.get(path)
        if found is not None:
            return found
        with self._lock:
            if path not in self._descriptors:
                if len(self._descriptors) == 200:
                    _allow_many_files()
                self._descriptors[path] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            return self._descriptors[path]

    def read(self, path: str, offset: int, buffer: memoryview) -> None:
        """Fill ``buffer`` from byte ``offset`` of ``path``; FormatError where the file ends."""
        descriptor = self.descriptor(path)
        done = 0
        while done < len(buffer):
            got = os.preadv(descriptor, [buffer[done : done + _IO_LIMIT]], offset + done)
            if not got:
                raise FormatError(
                    f"ends at byte {offset + done}, expected {len(buffer) - done} more",
                    path=path,
                    hint="The file changed or was truncated while it was read; copy it again.",
                )
            done += got


class BlockReader:
    """Reads ranges of lazy tensors; owns scratch memory, so use one per thread."""

    def __init__(self, files: FileTable) -> None:
        self._files = files
        self._cast_scratch = bytearray()
        self._strided_scratch = bytearray()
        self._caster: Caster | None = None
        self._dequantiser: Dequantiser | None = None
        self._fuser: Fuser | None = None

    def read(
        self, tensor: LazyTensor, start: int, stop: int, out: memoryview, floor: float = 0.0
    ) -> float:
        """Put elements ``[start, stop)`` of the row-major form into ``out``, in ``tensor.dtype``.

        ``out`` has exactly ``(stop - start) * itemsize`` bytes. Returns the largest absolute cast
        error, at least ``floor`` (see :meth:`.Caster.cast`); 0.0 without a cast.
        """
        source, target = tensor.source_dtype, tensor.dtype
        if source == target:
            self._gather(tensor, start, stop, out)
            return floor
        fill = self._dequantise if tensor.is_scaled else self._cast
        step = BLOCK_BYTES // target.itemsize
        for at in range(start, stop, step):
            end = min(at + step, stop)
            part = out[(at - start) * target.itemsize : (end - start) * target.itemsize]
            floor = fill(tensor, at, end, part, floor)
        return floor

    def _cast(
        self, tensor: LazyTensor, start: int, stop: int, out: memoryview, floor: float
    ) -> float:
        raw = self._cast_raw((stop - start) * tensor.source_dtype.itemsize)
        self._gather(tensor, start, stop, raw)
        return self._casting().cast_bytes(raw, tensor.source_dtype, out, tensor.dtype, floor)

    def _dequantise(
        self, tensor: LazyTensor, start: int, stop: int, out: memoryview, floor: float
    ) -> float:
        strides, size = contiguous_strides(tensor.shape), tensor.dtype.itemsize
        for box in linear_boxes(tensor.shape, start, stop):
            for chunk, common in tensor.chunks_in(box):
                region = subregion(chunk, common, 1)
                piece = piece_of(region, common.sizes, strides)
                in_file = Region(region.path, region.offset, (piece.scales.columns, 1))
                raw = self._fetch(in_file, piece.sizes, 1)
                at = (dot(common.offsets, strides) - start) * size
                target = _strided(out[at:], piece.sizes, piece.strides, size)
                floor = self._dequantising().put(raw, piece, target, tensor.dtype, floor)
        return floor

    def _gather(self, tensor: LazyTensor, start: int, stop: int, out: memoryview) -> None:
        strides = contiguous_strides(tensor.shape)
        itemsize = tensor.source_dtype.itemsize
        for box in linear_boxes(tensor.shape, start, stop):
            for chunk, common in tensor.chunks_in(box):
                at = (dot(common.offsets, strides) - start) * itemsize
                region = subregion(chunk, common, itemsize)
                if _is_run(common.sizes, strides) and _is_run(common.sizes, region.strides):
                    size = common.volume * itemsize
                    self._read(region, region.offset, out[at : at + size])
                else:
                    target = _strided(out[at:], common.sizes, strides, itemsize)
                    target[...] = self._fetch(region, common.sizes, itemsize)

    def _fetch(self, region: Region, sizes: Shape, itemsize: int) -> NDArray[Any]:
        """A strided block as an array over scratch memory, read in the order of the file."""
        span, volume = _span(sizes, region.strides), prod(sizes)
        if span <= 2 * volume:  # reading the gaps too is cheaper than a call per run
            raw = self._strided_raw(span * itemsize)
            self._read(region, region.offset, raw)
            return _strided(raw, sizes, region.strides, itemsize)
        order = sorted(range(len(sizes)), key=lambda dim: -region.strides[dim])
        in_file = tuple(sizes[dim] for dim in order)
        steps = tuple(region.strides[dim] for dim in order)
        raw = self._strided_raw(volume * itemsize)
        self._read_runs(region._replace(strides=steps), in_file, raw, itemsize)
        array = _strided(raw, in_file, contiguous_strides(in_file), itemsize)
        return array.transpose([order.index(dim) for dim in range(len(sizes))])

    def _read_runs(self, region: Region, sizes: Shape, raw: memoryview, itemsize: int) -> None:
        """Read a sparse block, its longest strides first, run by run into consecutive bytes."""
        run, outer = 1, len(sizes)
        while outer and (region.strides[outer - 1] == run or sizes[outer - 1] == 1):
            run *= sizes[outer - 1]
            outer -= 1
        run *= itemsize
        steps = region.strides[:outer]
        for number, index in enumerate(product(*map(range, sizes[:outer]))):
            where = region.offset + dot(index, steps) * itemsize
            self._read(region, where, raw[number * run : (number + 1) * run])

    def _read(self, region: Region, offset: int, out: memoryview) -> None:
        """Fill ``out`` from byte ``offset`` of the region's file, which may be a computed one."""
        if region.computed is None:
            self._files.read(region.path, offset, out)
        else:
            self._fusing().read(region.computed, offset, out)

    def _casting(self) -> Caster:
        from ckpt_tool.tensors.casts import Caster

        self._caster = self._caster or Caster()
        return self._caster

    def _dequantising(self) -> Dequantiser:
        from ckpt_tool.tensors.fp8 import Dequantiser

        self._dequantiser = self._dequantiser or Dequantiser(self._files.read, self._casting())
        return self._dequantiser

    def _fusing(self) -> Fuser:
        from ckpt_tool.tensors.fusing import Fuser

        self._fuser = self._fuser or Fuser(BlockReader(self._files))
        return self._fuser

    def _cast_raw(self, size: int) -> memoryview:
        self._cast_scratch = _grown(self._cast_scratch, size)
        return memoryview(self._cast_scratch)[:size]

    def _strided_raw(self, size: int) -> memoryview:
        self._strided_scratch = _grown(self._strided_scratch, size)
        return memoryview(self._strided_scratch)[:size]


def _strided(raw: memoryview, sizes: Shape, strides: Shape, itemsize: int) -> NDArray[Any]:
    """A strided view of ``raw`` as unsigned integers of ``itemsize`` bytes."""
    import numpy as np

    steps = [stride * itemsize for stride in strides]
    return np.ndarray(sizes, f"<u{itemsize}", raw, strides=steps)


def _span(sizes: Shape, strides: Shape) -> int:
    """Elements from the first to the last of a strided block, both included."""
    return dot(tuple(size - 1 for size in sizes), strides) + 1


def _is_run(sizes: Shape, strides: Shape) -> bool:
    """Whether a strided block lies back to back in row-major order."""
    expected = 1
    for size, stride in zip(reversed(sizes), reversed(strides), strict=True):
        if size != 1 and stride != expected:
            return False
        expected *= size
    return True


def _grown(scratch: bytearray, size: int) -> bytearray:
    return scratch if len(scratch) >= size else bytearray(size)


def _allow_many_files() -> None:
    """Lift the soft limit on open files: one rank file each adds up on large jobs."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
