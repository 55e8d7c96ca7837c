"""The names that may stand in a ``torch.save`` pickle, and the inert things they become.

Nothing here imports what it names. Functions of torch that rebuild tensors keep their arguments;
classes of torch.distributed become stand-ins; every other name is refused. Modules moved between
torch releases (``torch.distributed._tensor`` up to 2.4, ``torch.distributed.tensor`` since), so
classes are accepted by package.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any

from ckpt_tool.common.errors import FormatError, UnsafeContentError
from ckpt_tool.readers.torch_save.standins import MAX_ITEMS, Builder, StandIn
from ckpt_tool.tensors import dtypes
from ckpt_tool.tensors.dtypes import DType
from ckpt_tool.tensors.geometry import Shape

_MAX_NAME = 1000
_OTHER_DTYPE = re.compile(r"q?u?int\w*|float\w+|complex\w+|bits\w+")


@dataclass(frozen=True, slots=True)
class StorageRef:
    """A storage of an archive: the key of its record, and its size in bytes."""

    key: str
    dtype: DType
    nbytes: int


@dataclass(frozen=True, slots=True)
class TensorRef:
    """A view of a storage; ``offset`` and ``strides`` in elements."""

    storage: StorageRef
    dtype: DType
    offset: int
    shape: Shape
    strides: Shape


#: Packages whose classes describe how tensors are distributed: they become stand-ins.
_DATA_PACKAGES = (
    "torch.distributed.tensor",
    "torch.distributed._tensor",
    "torch.distributed._shard",
    "torch.distributed._mesh_layout",
    "torch.distributed._pycute",
    "torch.distributed.device_mesh",
    "torch.distributed.remote_device",
    "torch.distributed.distributed_c10d",
)
#: Packages whose classes describe how a checkpoint was planned: stand-ins in its metadata.
_PLAN_PACKAGES = ("torch.distributed.checkpoint", "megatron.core.dist_checkpointing", "pathlib")


#: What the arguments, random states and layers' states of a training run are made of: stand-ins in
#: Megatron's rank files, which nobody looks at.
_RUN_PACKAGES = tuple(
    "torch megatron transformer_engine transformer_engine_torch verl nemo mbridge slime apex"
    " transformers modelopt omegaconf argparse types enum pathlib numpy collections dataclasses"
    " datetime signal functools __main__".split()
)
_RUN_NAMES = frozenset(
    "io.BytesIO _io.BytesIO _codecs.encode copyreg._reconstructor copy_reg._reconstructor".split()
    + [f"{module}.{name}" for module in ("builtins", "__builtin__") for name in
       "object bytearray complex slice range int float bool str bytes list tuple dict set"
       " frozenset".split()]
)  # fmt: skip


def read_storage(pid: Any) -> StorageRef:
    """The storage named by a persistent id; FormatError for any other kind of id."""
    if not (isinstance(pid, tuple) and len(pid) == 5 and pid[0] == "storage"):
        raise FormatError("a persistent id that is no storage")
    _, kind, key, _location, numel = pid
    if not (isinstance(kind, _StorageType) and isinstance(key, str) and _is_size(numel)):
        raise FormatError(f"a malformed storage {key!r}")
    return StorageRef(key, kind.dtype, numel * kind.dtype.itemsize)


def resolve(module: str, name: str) -> Any:
    """What ``module.name`` stands for; UnsafeContentError unless it is tensor metadata."""
    full = f"{module}.{name}"
    known = _KNOWN.get(full)
    if known is not None:
        return known
    if module in ("torch", "torch.storage") and name in dtypes.BY_STORAGE:
        return _StorageType(dtypes.BY_STORAGE[name])
    if module == "torch" and name in dtypes.BY_NAME:
        return dtypes.BY_NAME[name]
    if module == "torch" and _OTHER_DTYPE.fullmatch(name):
        raise FormatError(f"tensors of {full}, which has no counterpart in safetensors")
    if any(module == p or module.startswith(f"{p}.") for p in _DATA_PACKAGES):
        return _stand_in(full)
    raise UnsafeContentError(
        f"the pickle names {full}, which is no tensor metadata; nothing was run",
        hint="Do not load this file with torch.load either, unless you know who wrote it.",
    )


def resolve_plan(module: str, name: str) -> Any:
    """What may stand in a DCP ``.metadata``: tensor metadata, and plans of torch and Megatron."""
    if any(module == p or module.startswith(f"{p}.") for p in _PLAN_PACKAGES):
        return _stand_in(f"{module}.{name}")
    return resolve(module, name)


def resolve_run(module: str, name: str) -> Any:
    """What may stand in a rank file of Megatron: tensors, and objects of the run beside them."""
    full = f"{module}.{name}"
    if full in _RUN_NAMES:
        return _stand_in(full)
    try:
        return resolve(module, name)
    except FormatError:
        if module.split(".", maxsplit=1)[0] in _RUN_PACKAGES:
            return _stand_in(full)
        raise


@dataclass(frozen=True, slots=True)
class _StorageType:
    dtype: DType


def _stand_in(qualname: str) -> Builder:
    return Builder(qualname, lambda *args: StandIn(qualname, args))


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 63


def read_sizes(values: Any) -> Shape:
    """A few non-negative 64-bit sizes as a tuple; FormatError for anything else."""
    plain = isinstance(values, (tuple, list)) and len(values) <= MAX_ITEMS
    if not plain or not all(map(_is_size, values)):
        raise FormatError("a tensor whose sizes or strides are not a few sizes")
    return tuple(values)


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *rest: Any) -> TensorRef:
    """``torch._utils._rebuild_tensor_v2``; ``rest``: requires_grad, hooks, metadata (conj, neg)."""
    if not (isinstance(storage, StorageRef) and _is_size(offset)):
        raise FormatError("a tensor without a storage")
    if len(rest) > 2 and rest[2]:
        raise FormatError(f"a tensor with lazy conjugation or negation ({rest[2]!r:.60})")
    shape, strides = read_sizes(size), read_sizes(stride)
    if len(shape) != len(strides) or prod(shape) >= 1 << 60:
        raise FormatError(f"a tensor of shape {shape} and strides {strides}")
    return TensorRef(storage, storage.dtype, offset, shape, strides)


def _tensor_v3(
    storage: Any, offset: Any, size: Any, stride: Any, _grad: Any, _hooks: Any, dtype: Any,
    *rest: Any,
) -> TensorRef:  # fmt: skip
    """``torch._utils._rebuild_tensor_v3``: the dtype is an argument, the storage untyped."""
    if not isinstance(dtype, DType):
        raise FormatError("a tensor without a dtype")
    plain = _tensor(storage, offset, size, stride, _grad, _hooks, *rest)
    return TensorRef(plain.storage, dtype, plain.offset, plain.shape, plain.strides)


def _wrapper_subclass(cls: Any, dtype: Any, size: Any, *_: Any) -> StandIn:
    """``torch._utils._rebuild_wrapper_subclass``: the outer shell of a DTensor or ShardedTensor."""
    if not isinstance(cls, Builder) or not isinstance(dtype, DType):
        raise FormatError("a tensor subclass without a class or dtype")
    return StandIn(cls.qualname, (dtype, read_sizes(size)))


def _from_type(function: Any, _cls: Any, args: Any, state: Any) -> Any:
    """``torch._tensor._rebuild_from_type_v2``: rebuild, then set the state."""
    if not (isinstance(function, Builder) and isinstance(args, tuple)):
        raise FormatError("a tensor subclass without a constructor")
    result = function.call(*args)
    if isinstance(result, StandIn):
        result.set_state(state)
    return result


def _parameter(data: Any, *_: Any) -> Any:
    return data


def _size(values: Any = ()) -> Shape:
    return read_sizes(values)


def _small_set(values: Any = ()) -> frozenset[int | str]:
    if len(values) > MAX_ITEMS or not all(isinstance(value, (int, str)) for value in values):
        raise FormatError("a set of something other than a few plain values")
    return frozenset(values)


def _attribute(target: Any, name: Any) -> Builder:
    """``getattr`` in a pickle (enum members of ShardedTensor files): a stand-in, not the value."""
    if not (isinstance(target, Builder) and isinstance(name, str)):
        raise FormatError("an attribute of something other than a class")
    if len(target.qualname) + len(name) > _MAX_NAME:
        raise FormatError("an attribute with a name that no class has")
    return _stand_in(f"{target.qualname}.{name}")


def _keep(*args: Any) -> tuple[Any, ...]:
    return args


_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "collections.OrderedDict": lambda: {},
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor_v3,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
    "torch._utils._rebuild_wrapper_subclass": _wrapper_subclass,
    "torch._tensor._rebuild_from_type_v2": _from_type,
    "torch.Size": _size,
    "torch.device": _keep,
    "torch.serialization._get_layout": _keep,
    "__builtin__.set": _small_set,
    "builtins.set": _small_set,
    "__builtin__.getattr": _attribute,
    "builtins.getattr": _attribute,
}
_TENSOR_CLASSES = ("torch.Tensor", "torch._tensor.Tensor", "torch.nn.parameter.Parameter")

_KNOWN = {name: Builder(name, call) for name, call in _FUNCTIONS.items()} | {
    name: _stand_in(name) for name in _TENSOR_CLASSES
}
