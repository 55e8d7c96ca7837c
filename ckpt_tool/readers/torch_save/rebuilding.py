"""What the functions in a ``torch.save`` pickle make, and the plain values beside them.

Functions of torch that rebuild tensors (``torch/_utils.py``, ``torch/_tensor.py``) say where the
elements lie: nothing of torch is called. Arguments are those that torch writes, or refused.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any

from ckpt_tool.common.errors import FormatError
from ckpt_tool.readers.torch_save.standins import MAX_ITEMS, Builder, StandIn, describe
from ckpt_tool.tensors.dtypes import DType
from ckpt_tool.tensors.geometry import MOST_ELEMENTS, Shape


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

    @property
    def last(self) -> int:
        """The last element of the storage that it has, if it has any."""
        steps = zip(self.shape, self.strides, strict=True)
        return self.offset + sum((size - 1) * stride for size, stride in steps)

    @property
    def room(self) -> int:
        """How many elements the storage has."""
        return self.storage.nbytes // self.dtype.itemsize

    @property
    def fits(self) -> bool:
        """Whether the storage has all its elements."""
        return 0 in self.shape or self.last < self.room


def is_size(value: Any) -> bool:
    """Whether ``value`` is a size that 64 bits can have."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 63


def read_sizes(values: Any) -> Shape:
    """A few non-negative 64-bit sizes as a tuple; FormatError for anything else."""
    plain = isinstance(values, (tuple, list)) and len(values) <= MAX_ITEMS
    if not plain or not all(map(is_size, values)):
        raise FormatError("a tensor whose sizes or strides are not a few sizes")
    return tuple(values)


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *rest: Any) -> TensorRef:
    """``torch._utils._rebuild_tensor_v2``; ``rest``: requires_grad, hooks, metadata (conj, neg)."""
    if not (isinstance(storage, StorageRef) and is_size(offset)):
        raise FormatError("a tensor without a storage")
    if len(rest) > 2 and rest[2]:
        raise FormatError(f"a tensor with lazy conjugation or negation ({describe(rest[2])})")
    shape, strides = read_sizes(size), read_sizes(stride)
    if len(shape) != len(strides) or prod(shape) >= MOST_ELEMENTS:
        raise FormatError(f"a tensor of shape {shape} and strides {strides}")
    return TensorRef(storage, storage.dtype, offset, shape, strides)


def _npu_tensor(*args: Any) -> TensorRef:
    """``torch_npu``'s ``_rebuild_npu_tensor``: as ``_rebuild_tensor_v2``, with a number at the end.

    That is how an NPU is to lay it out in its memory; the file has plain rows all the same.
    """
    if len(args) != 7 or not isinstance(args[6], int):
        raise FormatError("a tensor of torch_npu with other arguments than it has")
    return _tensor(*args[:6])


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
    return StandIn(cls.qualname, (dtype, read_sizes(size)), None, cls.foreign)


def _from_type(function: Any, cls: Any, args: Any, state: Any) -> Any:
    """``torch._tensor._rebuild_from_type_v2``: rebuild, then set the state.

    A foreign class may mean anything by its elements: it stays an object of that class.
    """
    if not (isinstance(function, Builder) and isinstance(args, tuple)):
        raise FormatError("a tensor subclass without a constructor")
    if isinstance(cls, Builder) and cls.foreign:
        return cls.call()
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


def _encode(text: Any, encoding: Any) -> bytes:
    """Bytes as protocol 2 has them: text of their numbers; empty ones are a call of ``bytes``."""
    if not (isinstance(text, str) and encoding in ("latin1", "latin-1")):
        raise FormatError("bytes that are not written as text of latin1")
    return text.encode("latin1")


def _keep(*args: Any) -> tuple[Any, ...]:
    return args


#: By the name that a pickle calls.
FUNCTIONS: dict[str, Callable[..., Any]] = {
    "collections.OrderedDict": lambda: {},
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor_v3,
    "torch_npu.utils.storage._rebuild_npu_tensor": _npu_tensor,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
    "torch._utils._rebuild_wrapper_subclass": _wrapper_subclass,
    "torch._tensor._rebuild_from_type_v2": _from_type,
    "torch.Size": _size,
    "torch.device": _keep,
    "torch.serialization._get_layout": _keep,
    "_codecs.encode": _encode,
    "__builtin__.bytes": lambda: b"",
    "builtins.bytes": lambda: b"",
    "__builtin__.set": _small_set,
    "builtins.set": _small_set,
}
