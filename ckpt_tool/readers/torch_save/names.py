"""The names that may stand in a ``torch.save`` pickle, and the inert things they become.

Nothing here imports what it names. Functions of torch that rebuild tensors keep their arguments;
classes of torch.distributed become stand-ins; every other name is refused. Modules moved between
torch releases (``torch.distributed._tensor`` up to 2.4, ``torch.distributed.tensor`` since), so
classes are accepted by package.
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from typing import Any

from ckpt_tool.common.errors import FormatError, UnsafeContentError
from ckpt_tool.readers.torch_save.rebuilding import FUNCTIONS, StorageRef, is_size
from ckpt_tool.readers.torch_save.standins import MAX_NAME, Builder, StandIn, describe
from ckpt_tool.tensors import dtypes
from ckpt_tool.tensors.dtypes import DType

_DISTRUST = "Do not load this file with torch.load either, unless you know who wrote it."
_OTHER_DTYPE = re.compile(r"q?u?int\w*|float\w+|complex\w+|bits\w+")


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
_PLAN_PACKAGES = (
    "torch.distributed.checkpoint",
    "megatron.core.dist_checkpointing",
    "olmo_core.distributed.checkpoint",
    "pathlib",
)


#: What the arguments, random states and layers' states of a training run are made of: stand-ins in
#: files that hold those beside weights, which nobody looks at.
_RUN_PACKAGES = tuple(
    "torch megatron transformer_engine transformer_engine_torch verl nemo mbridge slime apex"
    " transformers modelopt omegaconf argparse types enum pathlib numpy collections dataclasses"
    " datetime signal functools __main__ abc decimal fractions logging numbers random re time"
    " typing uuid zoneinfo".split()
)
#: Of Python itself: what else of it stands in a pickle asks for code, wherever it stands.
_PYTHON = frozenset(sys.stdlib_module_names) | {"__builtin__", "commands", "nt", "posix"}
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
    named = isinstance(key, str) and len(key) <= MAX_NAME
    if not (isinstance(kind, StorageType) and named and is_size(numel)):
        raise FormatError(f"a malformed storage: {describe(key)}")
    return StorageRef(key, kind.dtype, numel * kind.dtype.itemsize)


def resolve(module: str, name: str) -> Any:
    """What ``module.name`` stands for; UnsafeContentError unless it is tensor metadata."""
    full = f"{module}.{name}"
    known = _KNOWN.get(full)
    if known is not None:
        return known
    if module in ("torch", "torch.storage") and name in dtypes.BY_STORAGE:
        return StorageType(dtypes.BY_STORAGE[name])
    if module == "torch" and name in dtypes.BY_NAME:
        return dtypes.BY_NAME[name]
    if module == "torch" and _OTHER_DTYPE.fullmatch(name):
        raise FormatError(f"tensors of {full}, which has no counterpart in safetensors")
    if any(module == p or module.startswith(f"{p}.") for p in _DATA_PACKAGES):
        return _stand_in(full)
    raise UnsafeContentError(
        f"the pickle names {full}, which is no tensor metadata; nothing was run",
        hint=_DISTRUST,
    )


def resolve_plan(module: str, name: str) -> Any:
    """What may stand in a DCP ``.metadata``: tensor metadata, and plans of who wrote it."""
    if any(module == p or module.startswith(f"{p}.") for p in _PLAN_PACKAGES):
        return _stand_in(f"{module}.{name}")
    return resolve(module, name)


def resolve_run(module: str, name: str) -> Any:
    """What may stand in a file of a run: tensors, and objects of any package beside them.

    Those of a package that is not known here are ``foreign``: inert beside weights, where trainers
    keep arguments and random states, and for the caller to refuse among them (`refuse_foreign`).
    """
    full = f"{module}.{name}"
    if full in _RUN_NAMES:
        return _stand_in(full)
    try:
        return resolve(module, name)
    except FormatError:
        package = module.split(".", maxsplit=1)[0]
        if package not in _RUN_PACKAGES and package in _PYTHON:
            raise
        return _stand_in(full, foreign=package not in _RUN_PACKAGES)


def refuse_foreign(name: str, value: Any, path: str) -> None:
    """UnsafeContentError where ``value``, among weights as ``name``, is a foreign object."""
    if isinstance(value, (StandIn, Builder)) and value.foreign:
        raise UnsafeContentError(
            f"{name} is of {value.qualname}, which is no tensor; nothing was run",
            path=path,
            hint=_DISTRUST,
        )


@dataclass(frozen=True, slots=True)
class StorageType:
    dtype: DType


def _stand_in(qualname: str, *, foreign: bool = False) -> Builder:
    return Builder(qualname, lambda *args: StandIn(qualname, args, None, foreign), foreign)


def _attribute(target: Any, name: Any) -> Builder:
    """``getattr`` in a pickle (enum members of ShardedTensor files): a stand-in, not the value."""
    if not (isinstance(target, (Builder, StandIn)) and isinstance(name, str)):
        raise FormatError("an attribute of something other than a class or an object of one")
    if len(target.qualname) + len(name) > MAX_NAME:
        raise FormatError("an attribute with a name that no class has")
    return _stand_in(f"{target.qualname}.{name}", foreign=target.foreign)


_TENSOR_CLASSES = ("torch.Tensor", "torch._tensor.Tensor", "torch.nn.parameter.Parameter")

#: Transformer Engine's ``_extra_state``: bytes, which nobody looks at.
_BYTES = "_io.BytesIO"

_GETATTR = {"__builtin__.getattr": _attribute, "builtins.getattr": _attribute}

_KNOWN = {name: Builder(name, call) for name, call in (FUNCTIONS | _GETATTR).items()} | {
    name: _stand_in(name) for name in (*_TENSOR_CLASSES, _BYTES)
}
