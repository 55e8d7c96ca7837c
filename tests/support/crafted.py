"""Torch-shaped archives with any pickle and any storages: what an attacker, or a crash, may leave.

`dumps` pickles plain data together with :class:`Name`, :class:`Call`, :class:`Persistent` and
:class:`Raw`, which stand for whatever opcodes they say, without importing anything.
"""

import io
import pickle
import struct
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ckpt_tool.readers.torch_save.archive import TorchArchive


@dataclass(frozen=True, eq=False)
class Name:
    """A global."""

    module: str
    name: str


@dataclass(frozen=True, eq=False)
class Call:
    """`function(*args)`, then its state where that is given."""

    function: Any
    args: Any = ()
    state: Any = None


@dataclass(frozen=True, eq=False)
class Persistent:
    """A persistent id."""

    pid: Any


@dataclass(frozen=True, eq=False)
class Raw:
    """Opcodes that leave one value on the stack."""

    opcodes: bytes


class _Pickler(pickle._Pickler):
    def save(self, obj: Any, save_persistent_id: bool = True) -> None:
        if isinstance(obj, Name):
            self.write(pickle.GLOBAL + f"{obj.module}\n{obj.name}\n".encode())
        elif isinstance(obj, Call):
            self.save(obj.function)
            self.save(obj.args)
            self.write(pickle.REDUCE)
            if obj.state is not None:
                self.save(obj.state)
                self.write(pickle.BUILD)
        elif isinstance(obj, Raw):
            self.write(obj.opcodes)
        elif isinstance(obj, Persistent):
            self.save(obj.pid)
            self.write(pickle.BINPERSID)
        else:
            super().save(obj, save_persistent_id)


def dumps(value: Any, protocol: int = 2) -> bytes:
    out = io.BytesIO()
    _Pickler(out, protocol).dump(value)
    return out.getvalue()


ORDERED_DICT = Name("collections", "OrderedDict")


def storage(key: str, numel: Any, kind: str = "FloatStorage") -> Persistent:
    return Persistent(("storage", Name("torch", kind), key, "cpu", numel))


def tensor(storage_ref: Any, size: Any, stride: Any, offset: Any = 0, metadata: tuple = ()) -> Call:
    args = (storage_ref, offset, size, stride, False, Call(ORDERED_DICT), *metadata)
    return Call(Name("torch._utils", "_rebuild_tensor_v2"), args)


def subclass(kind: Name, dtype: Any, shape: Any, state: Any) -> Call:
    """A DTensor or ShardedTensor, as torch.save writes tensor subclasses."""
    rebuild = Name("torch._utils", "_rebuild_wrapper_subclass")
    args = (kind, dtype, shape, (1,), 0, None, "cpu", False)
    return Call(Name("torch._tensor", "_rebuild_from_type_v2"), (rebuild, kind, args, state))


DTENSOR = Name("torch.distributed.tensor", "DTensor")
SHARDED = Name("torch.distributed._shard.sharded_tensor.api", "ShardedTensor")
FLOAT32 = Name("torch", "float32")


def placement(kind: str, dim: int | None = None, **state: Any) -> Call:
    args = () if dim is None else (dim,)
    return Call(Name("torch.distributed.tensor.placement_types", kind), args, state or None)


def mesh(ranks: Call, names: tuple[str, ...] | None = None, **state: Any) -> Call:
    """A device mesh as torch <= 2.8 writes it; `ranks` is an int64 tensor."""
    kind = Name("torch.distributed.device_mesh", "DeviceMesh")
    return Call(kind, (), {"mesh": ranks, "mesh_dim_names": names, **state})


def dtensor(local: Any, shape: Any, placements: Iterable[Any], device_mesh: Any) -> Call:
    spec = Call(
        Name("torch.distributed.tensor._dtensor_spec", "DTensorSpec"),
        (),
        {"mesh": device_mesh, "placements": tuple(placements)},
    )
    return subclass(DTENSOR, FLOAT32, shape, {"_local_tensor": local, "_spec": spec})


def floats(*values: float) -> bytes:
    return struct.pack(f"<{len(values)}f", *values)


def longs(*values: int) -> bytes:
    return struct.pack(f"<{len(values)}q", *values)


def archive(
    path: Path,
    data_pkl: bytes,
    storages: Mapping[str, bytes] | None = None,
    byteorder: bytes | None = b"little",
    root: str = "archive",
) -> Path:
    """A zip as torch.save lays it out: records stored, the pickle first."""
    records = {f"{root}/data.pkl": data_pkl}
    if byteorder is not None:
        records[f"{root}/byteorder"] = byteorder
    records |= {f"{root}/data/{key}": raw for key, raw in (storages or {}).items()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as file:
        for name, raw in records.items():
            file.writestr(name, raw)
    return path


def load(path: Path) -> Any:
    with TorchArchive(path) as opened:
        return opened.load()


@dataclass
class Entry:
    """A record of a zip written by :func:`crafted_zip`; None: what is true."""

    name: str
    data: bytes
    method: int = 0
    flags: int = 0
    size: int | None = None
    packed: int | None = None
    header: int | None = None
    extra: bytes = b""
    local_extra: bytes = b""
    local_mark: bytes = b"PK\x03\x04"


def crafted_zip(
    entries: Iterable[Entry], zip64: bool = False, count: int | None = None, shift: int = 0
) -> bytes:
    """A zip whose directory says what the entries say; `zip64`: every number in 64-bit fields.

    `count` and `shift` falsify the end record: number of entries, position of the directory.
    """
    out, directory = bytearray(), bytearray()
    entries = list(entries)
    for entry in entries:
        name = entry.name.encode()
        at = len(out) if entry.header is None else entry.header
        size = len(entry.data) if entry.size is None else entry.size
        packed = size if entry.packed is None else entry.packed
        crc = zlib.crc32(entry.data)
        out += struct.pack(
            "<4s5H3L2H",
            *(entry.local_mark, 45, entry.flags, entry.method, 0, 0, crc),
            *(len(entry.data), len(entry.data), len(name), len(entry.local_extra)),
        )
        out += name + entry.local_extra + entry.data
        extra, numbers = entry.extra, (packed, size, at)
        if zip64:
            extra = struct.pack("<2H3Q", 1, 24, size, packed, at) + extra
            numbers = (0xFFFFFFFF,) * 3
        directory += struct.pack(
            "<4s6H3L5H2L",
            *(b"PK\x01\x02", 45, 45, entry.flags, entry.method, 0, 0, crc, numbers[0], numbers[1]),
            *(len(name), len(extra), 0, 0, 0, 0, numbers[2]),
        )
        directory += name + extra
    start, number = len(out) + shift, len(entries) if count is None else count
    out += directory
    if zip64:
        end64 = len(out)
        out += struct.pack(
            "<4sQ2H2L4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, number, number, len(directory), start
        )
        out += struct.pack("<4sLQL", b"PK\x06\x07", 0, end64, 1)
        return bytes(
            out + struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, *[0xFFFF] * 2, *[0xFFFFFFFF] * 2, 0)
        )
    out += struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, number, number, len(directory), start, 0)
    return bytes(out)
