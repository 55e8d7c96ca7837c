"""``torch.save`` archives written without torch: the zip frame around a tensor's bytes.

The format: a zip of stored records, ``archive/data.pkl`` (the object, storages by key),
``archive/byteorder``, ``archive/version`` and ``archive/data/0`` (the storage). The storage comes
last, so that its CRC-32, known once its bytes are written, is only needed behind it: in the
record's data descriptor and in the directory. Sources: ``torch/serialization.py``, PKWARE APPNOTE.
"""

from __future__ import annotations

import struct
from functools import lru_cache
from math import prod
from typing import Any
from zlib import crc32

from ckpt_tool.tensors.dtypes import BY_STORAGE, DType
from ckpt_tool.tensors.geometry import Shape, make_strides
from ckpt_tool.writers.planned import Seal
from ckpt_tool.writers.torch_dist.pickling import Call, Name, Persistent, make_pickle

#: Payloads begin at multiples of this, as ``torch.save``'s do.
ALIGNMENT = 64

_MAX_PAYLOAD = (1 << 32) - (1 << 20)  # of archives without zip64

# Records of a zip (APPNOTE 4.3): each begins with its signature.
_LOCAL = struct.Struct("<4s5H3L2H")
_ENTRY = struct.Struct("<4s6H3L5H2L")
_ENTRY_CRC = 16  # where in a row of the directory the CRC-32 is
_END = struct.Struct("<4s4H2LH")
_DESCRIPTOR = struct.Struct("<4s3L")
_DESCRIPTOR_CRC = 4
_HAS_DESCRIPTOR = 0x0008
_DATE = 0x0021  # 1980-01-01: the same bytes whenever they are written
_EXTRA = struct.Struct("<2H")  # what pads a record: an id, and how many bytes follow
_PADDING_ID = 0x4246  # "FB", torch's
_STORAGE = b"archive/data/0"
_STORAGES = {dtype: name for name, dtype in BY_STORAGE.items() if name != "UntypedStorage"}
_ORDERED = Call(Name("collections", "OrderedDict"), ())


def make_archive(value: Any) -> bytes:
    """A whole archive of an object without tensors."""
    head, rows = _make_records(value)
    return head + _make_directory(rows, len(head))


@lru_cache(maxsize=4096)
def make_frame(shape: Shape, dtype: DType, *, sums: bool) -> tuple[bytes, Seal]:
    """What comes before and after the bytes of a contiguous tensor.

    The archive must begin at a multiple of :data:`ALIGNMENT`. Without ``sums`` the CRC is 0, which
    torch accepts and zip tools report. ValueError for a tensor of 4 GiB or more.
    """
    numel = prod(shape)
    size = numel * dtype.itemsize
    if size > _MAX_PAYLOAD:
        raise ValueError(f"{size} bytes in one archive: that takes zip64, cut the tensor before")
    head, rows = _make_records(_call_rebuild(shape, dtype, numel))
    padding = _pad_to_alignment(len(head) + _LOCAL.size + len(_STORAGE))
    rows.append((_STORAGE, len(head), size, 0, _HAS_DESCRIPTOR))
    head += _make_local(_STORAGE, size, 0, _HAS_DESCRIPTOR, len(padding)) + _STORAGE + padding
    descriptor = _DESCRIPTOR.pack(b"PK\x07\x08", 0, size, size)
    tail = descriptor + _make_directory(rows, len(head) + size + len(descriptor))
    last_row = len(tail) - _END.size - _ENTRY.size - len(_STORAGE)
    places = (_DESCRIPTOR_CRC, last_row + _ENTRY_CRC) if sums else ()
    return head, Seal(tail, places)


def _pad_to_alignment(position: int) -> bytes:
    """The extra field that moves what is at ``position`` to a multiple of :data:`ALIGNMENT`."""
    room = -position % ALIGNMENT
    if not room:
        return b""
    if room < _EXTRA.size:
        room += ALIGNMENT
    filling = room - _EXTRA.size
    return _EXTRA.pack(_PADDING_ID, filling) + b"Z" * filling


def _call_rebuild(shape: Shape, dtype: DType, numel: int) -> Call:
    """The call that makes a tensor of the storage, which newer dtypes have no type of."""
    strides = make_strides(shape)
    if dtype in _STORAGES:
        kind, count = Name("torch", _STORAGES[dtype]), numel
    else:
        kind, count = Name("torch.storage", "UntypedStorage"), numel * dtype.itemsize
    args = (Persistent(("storage", kind, "0", "cpu", count)), 0, shape, strides, False, _ORDERED)
    if dtype in _STORAGES:
        return Call(Name("torch._utils", "_rebuild_tensor_v2"), args)
    return Call(Name("torch._utils", "_rebuild_tensor_v3"), (*args, Name("torch", dtype.name)))


_Row = tuple[bytes, int, int, int, int]  # name, position, size, CRC-32, flags


def _make_records(value: Any) -> tuple[bytes, list[_Row]]:
    """The records before the storage, and their rows for the directory."""
    contents = (("data.pkl", make_pickle(value)), ("byteorder", b"little"), ("version", b"3\n"))
    head, rows = b"", []
    for name, content in contents:
        full = f"archive/{name}".encode()
        found = crc32(content)
        rows.append((full, len(head), len(content), found, 0))
        head += _make_local(full, len(content), found, 0, 0) + full + content
    return head, rows


def _make_local(name: bytes, size: int, found: int, flags: int, extra: int) -> bytes:
    fields = (flags, 0, 0, _DATE, found, size, size, len(name), extra)
    return _LOCAL.pack(b"PK\x03\x04", 20, *fields)


def _make_directory(rows: list[_Row], start: int) -> bytes:
    entries = b""
    for name, position, size, found, flags in rows:
        fields = (flags, 0, 0, _DATE, found, size, size, len(name), 0, 0, 0, 0, 0, position)
        entries += _ENTRY.pack(b"PK\x01\x02", 20, 20, *fields) + name
    return entries + _END.pack(b"PK\x05\x06", 0, 0, len(rows), len(rows), len(entries), start, 0)
