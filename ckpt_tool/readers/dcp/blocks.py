"""The archives of blocks in ``*.distcp`` files: where the elements of each lie."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from ckpt_tool.common.errors import FormatError
from ckpt_tool.common.remote.ranges import Span
from ckpt_tool.readers.dcp.metadata import Place
from ckpt_tool.readers.torch_save.alike import Form
from ckpt_tool.readers.torch_save.archive import TorchArchive
from ckpt_tool.readers.torch_save.rebuilding import TensorRef
from ckpt_tool.tensors.blocks import FileTable
from ckpt_tool.tensors.checksums import RecordSum
from ckpt_tool.tensors.chunks import Region
from ckpt_tool.tensors.dtypes import DType
from ckpt_tool.tensors.geometry import Shape

#: Bytes at each end in which all lies of an archive of one tensor that is no element.
_END = 1024
#: No file is so long.
_FARTHEST = 1 << 62


class Blocks:
    """Reads archives through one table of descriptors; ``sums``: their checksums, by file.

    A model has thousands of blocks that are alike: what was read of one is held against the others.
    """

    def __init__(self, table: FileTable) -> None:
        self._table = table
        #: By length, dtype and shape: what archives have in common, its tensor and its record.
        self._known: dict[tuple[int, DType, Shape], tuple[Form, TensorRef, str]] = {}
        self.sums: dict[str, list[RecordSum]] = defaultdict(list)

    def list_ends(self, path: str, place: Place) -> Iterator[Span]:
        """What is read of an archive: both its ends, amid the elements of others."""
        last = place.offset + max(0, place.length - _END)
        with suppress(OSError):  # who reads it says so
            for start in (place.offset, last):
                yield self._table.descriptor(path), start, start + _END

    def recall(self, path: str, place: Place, dtype: DType, shape: Shape) -> Region | None:
        """The region of a block that is like one that was read; None where none is, or none can be.

        `read` then says what it is.
        """
        known = self._known.get((place.length, dtype, shape))
        if known is None or not 0 <= place.offset < _FARTHEST:
            return None
        form, ref, name = known
        try:
            crc = form.read_sum(self._table.descriptor(path), place.offset)
        except OSError:
            return None
        if crc is None:
            return None
        start = place.offset + form.start
        self.sums[path].append(RecordSum(start, form.size, crc, name))
        return Region(path, start + ref.offset * dtype.itemsize, ref.strides)

    def read(self, path: str, place: Place, dtype: DType, shape: Shape) -> Region:
        """The region of a block, proven to be the tensor that the metadata promises.

        FormatError where it is not, OSError where the file cannot be read.
        """
        with TorchArchive(Path(path), place.offset, place.length, self._table) as archive:
            ref = archive.load()
            if not isinstance(ref, TensorRef):
                raise FormatError(f"no tensor at byte {place.offset}", path=path)
            if ref.dtype != dtype or ref.shape != shape:
                raise FormatError(
                    f"{ref.dtype} {list(ref.shape)} at byte {place.offset},"
                    f" expected {dtype} {list(shape)}",
                    path=path,
                )
            region = archive.locate_tensor(ref, "the block").region
            (total,) = archive.sums()
            form = archive.make_form(ref)
        if form is not None:
            self._known[place.length, dtype, shape] = form, ref, total.name
        self.sums[path].append(total)
        return region
