"""Changes to pickles by their opcodes: dropped, doubled, exchanged, with other arguments."""

from __future__ import annotations

import pickle
import pickletools
from functools import lru_cache
from random import Random

from tests.fuzz.mutate_bytes import mutate_bytes
from tests.fuzz.mutate_json import make_text

_GLOBALS = (
    "os system", "posix system", "builtins eval", "builtins exec", "builtins __import__",
    "builtins getattr", "subprocess Popen", "nt system", "torch.hub load", "torch load",
    "torch.serialization load", "runpy run_path", "importlib import_module", "functools partial",
    "operator attrgetter", "socket socket", "shutil rmtree", "io open", "codecs decode",
    "_codecs encode", "types FunctionType", "types CodeType", "ctypes CDLL",
    "ckpt_tool.common.errors UsageError", "collections OrderedDict", "collections defaultdict",
    "builtins set", "builtins list", "builtins dict", "builtins int", "builtins slice",
    "builtins bytearray", "builtins object", "datetime datetime", "numpy dtype",
    "numpy.core.multiarray _reconstruct", "numpy.core.multiarray scalar", "torch float32",
    "torch bfloat16", "torch Size", "torch FloatStorage", "torch device", "torch dtype",
    "torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_parameter",
    "torch._utils _rebuild_wrapper_subclass", "torch._tensor _rebuild_from_type_v2",
    "torch.distributed.tensor DTensor", "torch.distributed.tensor DeviceMesh",
    "torch.distributed.tensor._dtensor_spec DTensorSpec",
    "torch.distributed.tensor._dtensor_spec TensorMeta",
    "torch.distributed.tensor.placement_types Shard",
    "torch.distributed.tensor.placement_types Replicate",
    "torch.distributed.tensor.placement_types _StridedShard",
    "torch.distributed.tensor.placement_types Partial", "torch.distributed.device_mesh DeviceMesh",
    "torch.distributed._shard.sharded_tensor.api ShardedTensor",
    "torch.distributed.checkpoint.metadata Metadata",
    "torch.distributed.checkpoint.metadata MetadataIndex",
    "torch.distributed.checkpoint.metadata TensorStorageMetadata",
    "torch.distributed.checkpoint.metadata ChunkStorageMetadata",
    "torch.distributed.checkpoint.metadata TensorProperties",
    "torch.distributed.checkpoint.metadata BytesStorageMetadata",
    "torch.distributed.checkpoint.filesystem _StorageInfo", "torch.serialization _get_layout",
    "pathlib PosixPath", "argparse Namespace", "transformers.x Y", "a.b.c d", "\ud800 a",
)  # fmt: skip

_INTS = (0, 1, 2, -1, 3, 255, 256, 65535, 2**31 - 1, -(2**31), 2**31, 2**40, 2**62, 2**63, 2**64,
         10**30, -(2**70), 10**600)  # fmt: skip


def mutate_pickle(data: bytes, rng: Random) -> bytes:
    """One to four changes of its opcodes; now and then of its bytes."""
    if rng.random() < 0.1:
        return mutate_bytes(data, rng)
    ops = list(_cut(data))
    for _ in range(rng.choice((1, 1, 2, 4))):
        rng.choice(_CHANGES)(ops, rng)
    return b"".join(ops)


@lru_cache(maxsize=64)
def _cut(data: bytes) -> tuple[bytes, ...]:
    """Each opcode with its argument."""
    starts = [position or 0 for _, _, position in pickletools.genops(data)]
    return tuple(data[a:b] for a, b in zip(starts, [*starts[1:], len(data)], strict=True))


def _replace(ops: list[bytes], rng: Random) -> None:
    ops[rng.randrange(len(ops))] = rng.choice(ops)


def _drop(ops: list[bytes], rng: Random) -> None:
    at = rng.randrange(len(ops))
    del ops[at : at + rng.choice((1, 1, 2, 8))]
    ops[:] = ops or [b"."]


def _double(ops: list[bytes], rng: Random) -> None:
    at = rng.randrange(len(ops))
    ops[at:at] = ops[at : at + rng.choice((1, 1, 2, 8, 40))] * rng.choice((1, 1, 2, 20))


def _exchange(ops: list[bytes], rng: Random) -> None:
    one, other = rng.randrange(len(ops)), rng.randrange(len(ops))
    ops[one], ops[other] = ops[other], ops[one]


def _other_argument(ops: list[bytes], rng: Random) -> None:
    """Another argument of an opcode that has one: up to twenty are looked at."""
    for _ in range(20):
        at = rng.randrange(len(ops))
        changed = _with_argument(ops[at], rng)
        if changed is not None:
            ops[at] = changed
            return


def _with_argument(op: bytes, rng: Random) -> bytes | None:
    code, argument = op[:1], op[1:]
    if code in _MADE:
        return _MADE[code](rng)
    if code in (pickle.BINGET, pickle.BINPUT):
        return code + bytes([(argument[0] + rng.choice((1, -1, 2, 100))) % 256])
    if code in (pickle.LONG_BINGET, pickle.LONG_BINPUT):
        return code + rng.choice((0, 1, 300, 2**31, 2**32 - 1)).to_bytes(4, "little")
    group = next((group for group in _ALIKE if code in group), None)
    return None if group is None else rng.choice(group)


def _text(rng: Random) -> bytes:
    text = make_text(rng).encode("utf-8", "surrogatepass")
    return pickle.BINUNICODE + len(text).to_bytes(4, "little") + text


def _number(rng: Random) -> bytes:
    number = rng.choice(_INTS)
    if rng.random() < 0.2:
        high = rng.choice((b"\x7f\xf0", b"\x7f\xf8", b"\0\0"))
        return pickle.BINFLOAT + high + bytes(6)
    if -(2**31) <= number < 2**31:
        return pickle.BININT + number.to_bytes(4, "little", signed=True)
    raw = pickle.encode_long(number)
    if len(raw) < 256:
        return pickle.LONG1 + bytes([len(raw)]) + raw
    return pickle.LONG4 + len(raw).to_bytes(4, "little") + raw


def _global(rng: Random) -> bytes:
    module, name = rng.choice(_GLOBALS).split()
    return pickle.GLOBAL + f"{module}\n{name}\n".encode("utf-8", "surrogatepass")


def _insert(ops: list[bytes], rng: Random) -> None:
    """A call of a global, a value, a nest, a structure that is in itself, or an unknown opcode."""
    kinds = (
        lambda: _global(rng) + b"(" + _text(rng) + b"tR", lambda: _global(rng) + b")\x81}b",
        lambda: _global(rng) + b")R", lambda: _global(rng), lambda: _text(rng),
        lambda: _number(rng),
        lambda: b"]" * rng.choice((1, 10, 2000)) + b"a" * rng.choice((0, 10, 1999)),
        lambda: b"(" * rng.choice((1, 10, 3000)),
        lambda: b")\x85" + b"\x85" * rng.choice((10, 500, 5000)),
        lambda: b")" + b"2\x86" * rng.choice((10, 40, 100)), lambda: b"]q\xfe" + b"h\xfea",
        lambda: b"}q\xfd" + _text(rng) + b"h\xfds", lambda: b"0" * rng.choice((1, 3)),
        lambda: b"2" * rng.choice((1, 30, 1000)), lambda: bytes([rng.randrange(256)]),
        lambda: b"\x95" + rng.choice((0, 5, 2**31, 2**64 - 1)).to_bytes(8, "little"),
        lambda: rng.choice((b"C\x03abc", b"B\xff\xff\xff\x7fa", b"\x8e" + b"\xff" * 8)),
        lambda: rng.choice((b"\x8b\xff\xff\xff\x7f", b"\x8ba\xff\xff\xff")),
        lambda: b"Q", lambda: b"b", lambda: b"R",
    )  # fmt: skip
    ops.insert(rng.randrange(len(ops)), rng.choice(kinds)())


#: Opcodes that make one value, and of which one takes the place of another.
_ALIKE = (
    (b"\x85", b"\x86", b"\x87", b"t", b")", b"l", b"]", b"}", b"d"),
    (b"\x88", b"\x89", b"N", b"K\x00"),
)
_MADE = dict.fromkeys((pickle.BINUNICODE, pickle.SHORT_BINUNICODE), _text)
_MADE |= dict.fromkeys((pickle.BININT, pickle.BININT1, pickle.BININT2, pickle.LONG1), _number)
_MADE[pickle.GLOBAL] = _global

_CHANGES = (_replace, _drop, _double, _exchange, _insert, _insert,
            _other_argument, _other_argument, _other_argument)  # fmt: skip
