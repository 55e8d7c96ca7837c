"""The data path: consecutive blocks of a lazy tensor's row-major form, into reused buffers.

A block is filled by ``pread`` straight into place where a run of source bytes is a run of target
bytes; for strided pieces (``Shard(1)``, transposes) there is :mod:`.strided_reads`. What is
computed (:class:`.Computed`) fills the same buffers in place of a file. The interpreter lock is
released during all this, so a few threads, each with its own :class:`BlockReader`, keep all cores
busy. numpy is imported by what needs it: to copy runs of bytes it is not.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from math import inf
from threading import Lock
from typing import Any, TypeVar

from ckpt_tool.common.errors import FormatError
from ckpt_tool.common.regular import pread_into
from ckpt_tool.tensors.chunks import Chunked, Computed, Filler, Piece
from ckpt_tool.tensors.dtypes import DType
from ckpt_tool.tensors.geometry import Box, cut_linear, find_bounds
from ckpt_tool.tensors.open_files import OpenFiles
from ckpt_tool.tensors.rounding import CastErrors
from ckpt_tool.tensors.strided import view_strided
from ckpt_tool.tensors.strided_reads import Part, StridedReader

T = TypeVar("T")

#: Bytes of output per block: each is one write, and fits the second-level cache.
BLOCK_BYTES = 2 << 20

_IO_LIMIT = 1 << 30  # Linux transfers at most 2 GiB - 4 KiB in one call


class FileTable:
    """Read-only file descriptors by path, opened on first use and shared by threads.

    ``passes``: as :class:`~ckpt_tool.tensors.open_files.OpenFiles` has it.
    """

    def __init__(self, *, passes: bool = False) -> None:
        self._open = OpenFiles(passes=passes)
        self._shared: dict[type, Any] = {}
        self._lock = Lock()

    def __enter__(self) -> FileTable:
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def descriptor(self, path: str) -> int:
        """The descriptor for ``path``, until this thread asks for another file's.

        OSError where it cannot be opened.
        """
        return self._open.descriptor(path)

    def share(self, kind: type[T]) -> T:
        """The only object of a kind for all threads, made when first asked for."""
        with self._lock:
            found: T = self._shared.get(kind) or self._shared.setdefault(kind, kind())
            return found

    def read(self, path: str, offset: int, buffer: memoryview) -> None:
        """Fill ``buffer`` from byte ``offset`` of ``path``; FormatError where the file ends."""
        descriptor = self.descriptor(path)
        done = 0
        while done < len(buffer):
            got = pread_into(descriptor, buffer[done : done + _IO_LIMIT], offset + done)
            if not got:
                raise FormatError(
                    f"ends at byte {offset + done}, expected {len(buffer) - done} more",
                    path=path,
                    hint="The file changed or was truncated while it was read; copy it again.",
                )
            done += got
        self._open.let_go(path, descriptor, offset, len(buffer))

    def read_runs(
        self, path: str, offset: int, buffer: memoryview, run: int, starts: Iterable[int]
    ) -> None:
        """The same where only runs of ``run`` bytes are wanted, which begin at ``starts`` in it."""
        self.read(path, offset, buffer)

    def read_each(self, path: str, parts: Iterable[Part]) -> None:
        """The same of many short parts of one file."""
        descriptor = self.descriptor(path)
        for offset, buffer in parts:
            if pread_into(descriptor, buffer, offset) == len(buffer):
                self._open.let_go(path, descriptor, offset, len(buffer))
            else:
                self.read(path, offset, buffer)


class BlockReader:
    """Reads ranges of lazy tensors; owns scratch memory, so use one per thread.

    ``errors`` learns how much casts change elements; readers may share one.
    """

    def __init__(self, files: FileTable, errors: CastErrors | None = None) -> None:
        self.errors = CastErrors() if errors is None else errors
        self._files = files
        self._cast_scratch = bytearray()
        self._strided = StridedReader(files)
        self._computed: Computed | None = None
        self._filler: Filler | None = None
        self._operands: BlockReader | None = None
        self._kept: dict[type, Any] = {}
        self._is_spoilt = False

    def read(self, tensor: Chunked, start: int, stop: int, out: memoryview) -> None:
        """Put elements ``[start, stop)`` of the row-major form into ``out``, in ``tensor.dtype``.

        ``out`` has exactly ``(stop - start) * itemsize`` bytes. OSError and FormatError where a
        file cannot be read.
        """
        size = tensor.dtype.itemsize
        if tensor.dtype == tensor.source_dtype:
            self.gather(tensor.pieces(start, stop), out, size)
            return
        step = BLOCK_BYTES // size
        for at in range(start, stop, step):
            end = min(at + step, stop)
            self._round(tensor, at, end, out[(at - start) * size : (end - start) * size])

    def keep(self, kind: type[T]) -> T:
        """The reader's only object of a kind, made when first asked for: memory to work in."""
        if kind not in self._kept:
            self._kept[kind] = kind()
        found: T = self._kept[kind]
        return found

    def share(self, kind: type[T]) -> T:
        """The same, of all readers of the same files."""
        return self._files.share(kind)

    def spoil(self) -> None:
        """Told that finite elements, of operands or before a cast, have made one that is not."""
        self._is_spoilt = True

    def take_spoilt(self) -> bool:
        """Whether that has happened since it was last asked, here or below."""
        below = self._operands is not None and self._operands.take_spoilt()
        found, self._is_spoilt = self._is_spoilt or below, False
        return found

    def _round(self, tensor: Chunked, start: int, stop: int, out: memoryview) -> None:
        from ckpt_tool.tensors.casts import Caster

        pieces = list(tensor.pieces(start, stop))
        source, target = tensor.source_dtype, tensor.dtype
        if all(self._fill_rounded(piece, out, target) for piece in pieces):
            return
        raw = self._cast_raw((stop - start) * source.itemsize)
        self.gather(pieces, raw, source.itemsize)
        names = tensor.origin.name, target.name
        known = self.errors.largest_finite(*names)
        error = self.keep(Caster).cast_bytes(raw, source, out, target, known)
        self.errors.learn(*names, error)
        if error == inf:
            self.spoil()

    def _fill_rounded(self, piece: Piece, out: memoryview, dtype: DType) -> bool:
        """Whether a piece is computed and could be put into ``out`` rounded to ``dtype``.

        Not where elements between those of the piece would be rounded too: their errors are not
        those of the piece.
        """
        computed = piece.region.computed
        if computed is None:
            return False
        filler = self._filling(computed)
        return all(
            box.volume <= piece.volume and filler.fill_rounded(box, part, dtype, self.errors)
            for box, part in self._boxes(piece, computed, out, dtype.itemsize)
        )

    def gather(self, pieces: Iterable[Piece], out: memoryview, itemsize: int) -> None:
        """Put each of ``pieces`` at its place in ``out``; raises what :meth:`read` does."""
        for piece in pieces:
            region, part = piece.region, out[piece.at * itemsize :]
            if region.computed is not None:
                filler = self._filling(region.computed)
                for box, memory in self._boxes(piece, region.computed, out, itemsize):
                    filler.fill(box, memory)
            elif piece.is_run:
                self._files.read(region.path, region.offset, part[: piece.volume * itemsize])
            else:
                self._strided.put(piece, part, itemsize)

    def _boxes(
        self, piece: Piece, computed: Computed, out: memoryview, itemsize: int
    ) -> Iterator[tuple[Box, memoryview]]:
        """The boxes of a computed piece, each with the memory to fill before the next is taken."""
        first, at = piece.region.offset // computed.dtype.itemsize, piece.at
        if piece.is_run:
            for box in cut_linear(computed.shape, first, first + piece.volume):
                yield box, out[at * itemsize : (at + box.volume) * itemsize]
                at += box.volume
            return
        box, strides = find_bounds(computed.shape, first, piece.sizes, piece.region.strides)
        raw = self._strided.take_memory(box.volume * itemsize)
        yield box, raw
        target = view_strided(out[at * itemsize :], piece.sizes, piece.strides, itemsize)
        target[...] = view_strided(raw, piece.sizes, strides, itemsize)

    def _filling(self, computed: Computed) -> Filler:
        if self._filler is None or self._computed is not computed:
            self._operands = self._operands or BlockReader(self._files)
            self._computed, self._filler = computed, computed.open(self._operands)
        return self._filler

    def _cast_raw(self, size: int) -> memoryview:
        if len(self._cast_scratch) < size:
            self._cast_scratch = bytearray(size)
        return memoryview(self._cast_scratch)[:size]
