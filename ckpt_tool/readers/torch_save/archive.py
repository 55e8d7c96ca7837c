"""``torch.save`` archives (``*.pt``, ``pytorch_model*.bin``), read without torch and without trust.

The format: a zip whose records are stored, not compressed. ``<root>/data.pkl`` is a pickle in
which every storage is a persistent id ``("storage", type, key, location, numel)``;
``<root>/data/<key>`` holds the storage's raw bytes, in the order that ``<root>/byteorder`` names.
What is read here is held against its CRC-32; storages, which others read, are handed on with it.
Source: ``torch/serialization.py`` and ``caffe2/serialize/inline_container.h`` of PyTorch.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import product
from math import prod
from pathlib import Path
from typing import Any

from ckpt_tool.common.errors import FormatError
from ckpt_tool.common.lfs import REASON, starts_pointer
from ckpt_tool.common.regular import announce, measure, pread, withdraw
from ckpt_tool.readers.base import name_file
from ckpt_tool.readers.torch_save.alike import Form, make_form
from ckpt_tool.readers.torch_save.machine import Resolve
from ckpt_tool.readers.torch_save.names import read_storage, resolve
from ckpt_tool.readers.torch_save.rebuilding import StorageRef, TensorRef
from ckpt_tool.readers.torch_save.replay import Script
from ckpt_tool.readers.torch_save.unpickle import unpickle
from ckpt_tool.readers.torch_save.zip_directory import Directory, Stored, read_directory
from ckpt_tool.tensors.blocks import FileTable
from ckpt_tool.tensors.checksums import RecordSum
from ckpt_tool.tensors.chunks import Region
from ckpt_tool.tensors.dtypes import DType
from ckpt_tool.tensors.geometry import Shape

#: A state dict's pickle is a few hundred bytes per tensor; this is room for millions of them.
_MAX_PICKLE = 1 << 30
_MAX_ORDER = 100
#: In an archive of fewer they lie close together, or waiting for them is not long.
_FEW_RECORDS = 16
_MAX_SMALL_TENSOR = 1 << 22  # elements, and eight times as many bytes in the storage

_LEGACY_PICKLE = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor of an archive: its local shape, dtype and where its elements are.

    ``storage`` is the storage's key in the archive: tensors that share it are views of the same
    memory (tied weights).
    """

    shape: Shape
    dtype: DType
    region: Region
    storage: str


class TorchArchive:
    """One archive: ``load()`` gives its object with :class:`TensorRef` leaves.

    It is the whole file, or the ``length`` bytes of it from ``start`` on. ``files``: descriptors
    to read through, shared by archives of one file; without them the file is opened for this
    archive alone. Use as a context manager; raises FormatError or UnsafeContentError for what it
    cannot accept, OSError where the file cannot be read.
    """

    def __init__(
        self, path: Path, start: int = 0, length: int | None = None, files: FileTable | None = None
    ) -> None:
        self.path = str(path)
        self._start = start
        self._own = FileTable()  # stays empty where the descriptors are somebody else's
        self._is_own = files is None
        if files is None:
            files = self._own
        self._descriptor = files.descriptor(self.path)
        self._storages: dict[str, Stored] = {}
        try:
            size = measure(self._descriptor)
            self.bytes = size if length is None else length
            if not 0 <= start <= start + self.bytes <= size:
                raise FormatError(
                    f"ends at byte {size}, expected {start + self.bytes} or more",
                    path=self.path,
                    hint="Compare its size with the original and copy it again.",
                )
            self._refuse_other_formats()
            self._directory: Directory = read_directory(self._pread, self.bytes, self.path)
            self._root = self._find_root()
        except BaseException:
            self.__exit__()
            raise

    def __enter__(self) -> TorchArchive:
        return self

    def __exit__(self, *_: object) -> None:
        if self._is_own:
            withdraw(self._descriptor)  # not all records whose headers were announced are read
        self._own.__exit__()
        # It reads through this archive: a circle, which would keep both until it is looked for.
        self.__dict__.pop("_directory", None)

    def read_pickle(self) -> bytes:
        """The pickle in the archive: archives of equal ones hold the same object.

        Whoever has it asks for records next, of which each has a header amid the elements. They are
        announced all at once: one after the other, a disk takes 20 times as long or more.
        """
        headers = self._directory.headers
        if len(headers) > _FEW_RECORDS:
            begins = ((self._start + position, size) for position, size in headers)
            announce((self._descriptor, begin, begin + size) for begin, size in begins)
        return self._directory.read(f"{self._root}data.pkl", _MAX_PICKLE)

    def load(self, resolver: Resolve = resolve, pickle: bytes | None = None) -> Any:
        """The pickled object; tensors are :class:`TensorRef`, classes stand-ins.

        ``resolver`` says which names may stand in it; ``pickle``: where it was read before.
        """
        if pickle is None:
            pickle = self.read_pickle()
        with name_file(self.path):
            return unpickle(pickle, resolver, read_storage)

    def make_script(self, pickle: bytes) -> Script:
        """The archive's ``pickle``, for others that repeat it."""
        return Script(pickle, resolve, read_storage)

    def make_form(self, ref: TensorRef) -> Form | None:
        """What archives have in common that hold ``ref`` alone; None where that cannot be said."""
        names = (f"{self._root}data.pkl", f"{self._root}byteorder")
        looked_at = [name for name in names if name in self._directory.names]
        storage = self._storage_name(ref.storage.key)
        return make_form(self._pread, self.bytes, self._directory, looked_at, storage)

    def locate_tensor(self, ref: TensorRef, name: str) -> StoredTensor:
        """Where ``ref`` (the tensor called ``name``) lies in the file, proven to be inside it."""
        offset = self._find(ref, name)
        if not ref.fits:
            raise FormatError(
                f"{name} reaches element {ref.last} of a storage of {ref.room}", path=self.path
            )
        region = Region(self.path, offset, ref.strides)
        return StoredTensor(ref.shape, ref.dtype, region, ref.storage.key)

    def find_all(self, refs: Iterable[TensorRef]) -> Iterator[int]:
        """Where tensors that fit into their storages begin, in bytes of the file.

        FormatError where a storage is not there whole.
        """
        for ref in refs:
            yield self._find(ref, "a tensor")

    def _find(self, ref: TensorRef, name: str) -> int:
        storage = ref.storage
        start, size, _ = self._locate_storage(storage.key)
        if storage.nbytes != size:
            raise FormatError(
                f"storage {storage.key} of {name} has {size} bytes, expected {storage.nbytes}",
                path=self.path,
            )
        return self._start + start + ref.offset * ref.dtype.itemsize

    def read_integers(self, ref: TensorRef) -> list[int]:
        """The elements of a small integer tensor (a device mesh), in row-major order."""
        stored = self.locate_tensor(ref, "device mesh")
        if ref.dtype.name not in ("int32", "int64") or prod(ref.shape) > _MAX_SMALL_TENSOR:
            raise FormatError(f"a device mesh of {ref.dtype} {list(ref.shape)}", path=self.path)
        if not prod(ref.shape):
            return []
        width = ref.dtype.itemsize
        steps = list(zip(ref.shape, ref.strides, strict=True))
        places = [sum(at) for at in product(*([i * step for i in range(n)] for n, step in steps))]
        raw = self._directory.read(self._storage_name(stored.storage), 8 * _MAX_SMALL_TENSOR)
        raw = raw[ref.offset * width :]
        return [int.from_bytes(raw[at * width : (at + 1) * width], "little") for at in places]

    def sums(self) -> list[RecordSum]:
        """The storages of all tensors that were located, with positions in the file."""
        return [
            RecordSum(self._start + start, size, crc, self._storage_name(key))
            for key, (start, size, crc) in self._storages.items()
        ]

    def _locate_storage(self, key: str) -> Stored:
        found = self._storages.get(key)
        if found is None:
            found = self._storages[key] = self._directory.locate(self._storage_name(key))
        return found

    def _storage_name(self, key: str) -> str:
        return f"{self._root}data/{key}"

    def _pread(self, offset: int, size: int) -> bytes:
        offset += self._start
        whole = pread(self._descriptor, size, offset)
        if len(whole) == size:
            return whole
        pieces = []
        while size:
            piece = pread(self._descriptor, size, offset)
            if not piece:
                raise FormatError(f"truncated at byte {offset}", path=self.path)
            pieces.append(piece)
            offset, size = offset + len(piece), size - len(piece)
        return b"".join(pieces)

    def _refuse_other_formats(self) -> None:
        head = self._pread(0, min(self.bytes, 64))
        if not head:
            raise FormatError("empty file", path=self.path, hint="Copy it again from the cluster.")
        if starts_pointer(head):
            raise FormatError(REASON, path=self.path)
        if head.startswith(_LEGACY_PICKLE):
            raise FormatError(
                "written in torch's format from before 1.6",
                path=self.path,
                hint="Re-save it where you trust it: torch.save(torch.load(file), file).",
            )

    def _find_root(self) -> str:
        roots = [n[: -len("data.pkl")] for n in self._directory.names if n.endswith("/data.pkl")]
        if len(roots) != 1 or roots[0].count("/") != 1:
            raise FormatError("not a torch.save archive (no <name>/data.pkl)", path=self.path)
        order = f"{roots[0]}byteorder"
        if order in self._directory.names:
            found = self._directory.read(order, _MAX_ORDER)
            if found != b"little":
                raise FormatError(f"byte order {found!r}, expected little-endian", path=self.path)
        return roots[0]


__all__ = ["StorageRef", "StoredTensor", "TensorRef", "TorchArchive"]
