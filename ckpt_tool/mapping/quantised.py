"""Quantised weights of a Hugging Face model: fp8 here, those of four bits in :mod:`.packed`."""

from __future__ import annotations

import re
from collections.abc import Container, Mapping
from typing import Literal

from ckpt_tool.common.errors import MappingError
from ckpt_tool.common.untrusted import Fields, show
from ckpt_tool.mapping.config import ModelConfig
from ckpt_tool.mapping.packed import Unpacked, is_packed, unpack_weights
from ckpt_tool.tensors.dtypes import DType
from ckpt_tool.tensors.fp8 import scale_weight
from ckpt_tool.tensors.lazy import LazyTensor

#: A way in which weights are quantised that are made wide here.
Kind = Literal["fp8", "packed"]

#: DeepSeek's name of a weight's scales, what its elements are multiplied with; that of others.
_SUFFIX, _OTHER_SUFFIX = "_scale_inv", "_scale"
_BLOCK = (128, 128)
#: What other tools call scales of fp8: of a weight, of the input, of the cache.
_SCALES = re.compile(r"\.(weight_scale(_inv)?|input_scale|activation_scale|[kv]_scale)$")
_PACKED = re.compile(r"(^|[._])(q?weight|weight_packed|blocks)$")


def is_quantised(tensors: Mapping[str, LazyTensor]) -> bool:
    """Whether some weights are fp8."""
    return any(map(_is_fp8, tensors.values()))


def _is_fp8(tensor: LazyTensor) -> bool:
    return tensor.dtype.itemsize == 1 and tensor.dtype.is_float


def find_quantisation(tensors: Mapping[str, LazyTensor]) -> str:
    """``fp8`` where weights are floats of 8 bits, ``packed`` where they are integers; else empty.

    Packed are GPTQ's and AWQ's ``qweight``, ``weight_packed`` of compressed-tensors, MXFP4's
    ``blocks``: their shapes are not those of the weights.
    """
    if is_quantised(tensors):
        return "fp8"
    packed = (
        name
        for name, tensor in tensors.items()
        if _PACKED.search(name) and not tensor.dtype.is_float and tensor.shape
    )
    return "packed" if any(packed) else ""


def is_scale(name: str) -> bool:
    """Whether ``name`` is that of scales beside an fp8 weight, whoever wrote them."""
    return _SCALES.search(name) is not None


def list_kinds(tensors: Mapping[str, LazyTensor]) -> set[Kind]:
    """How weights are quantised that :func:`dequantise_weights` makes wide."""
    is_scaled = any(name.endswith(_SUFFIX) for name in tensors) or any(
        _is_fp8(tensor) and name + _OTHER_SUFFIX in tensors for name, tensor in tensors.items()
    )
    fp8: set[Kind] = {"fp8"} if is_scaled else set()
    return fp8 | ({"packed"} if is_packed(tensors) else set())


def dequantise_weights(
    tensors: Mapping[str, LazyTensor],
    config: ModelConfig,
    dtype: DType,
    kinds: Container[Kind] = ("fp8", "packed"),
) -> dict[str, LazyTensor]:
    """Every weight quantised in one of these ways times its scales, as ``dtype``, scales gone.

    MappingError lists weights without scales, scales without a weight, shapes that do not fit the
    config's ``weight_block_size``, and what is quantised in a way that is not read.
    """
    found = (
        unpack_weights(tensors, _read_method(config), dtype) if "packed" in kinds else Unpacked()
    )
    found.faults += [f"{name}: packed, and as it is" for name in found.tensors if name in tensors]
    if "fp8" in kinds:
        _scale(tensors, _block_size(config), dtype, found)
    if found.faults:
        raise MappingError(f"{len(found.faults)} quantised weights cannot be read", found.faults)
    kept = {name: tensor for name, tensor in tensors.items() if name not in found.used}
    return kept | found.tensors


def _scale(
    tensors: Mapping[str, LazyTensor], block: tuple[int, int], dtype: DType, found: Unpacked
) -> None:
    for name, tensor in tensors.items():
        if not _is_fp8(tensor):
            continue
        if is_scale(name):
            found.faults.append(f"{name}: scales that are {tensor.dtype}, as of NVFP4: not read")
            continue
        ends = (end for end in (_SUFFIX, _OTHER_SUFFIX) if name + end in tensors)
        scales = name + next(ends, _SUFFIX)
        found.used.add(scales)
        if scales not in tensors:
            found.faults.append(f"{name}: {tensor.dtype} without {scales}")
            continue
        try:
            found.tensors[name] = scale_weight(tensor, tensors[scales], block, dtype)
        except ValueError as error:
            found.faults.append(f"{name}: {error}")
    stems = {name.removesuffix(".weight") for name in found.tensors if name.endswith(".weight")}
    for name in tensors:
        if name.endswith(_SUFFIX) and name not in found.used:
            found.faults.append(f"{name}: scales of no fp8 weight")
        elif is_scale(name) and name.rpartition(".")[0] in stems:
            found.used.add(name)  # of what goes in and of the cache, which are no weights


def _block_size(config: ModelConfig) -> tuple[int, int]:
    said = _read_method(config).sizes("weight_block_size")
    if said and (len(said) != 2 or not all(said)):
        raise MappingError(f"config.json: weight_block_size is {show(said)}, expected two sizes")
    return (said[0], said[1]) if said else _BLOCK


def _read_method(config: ModelConfig) -> Fields:
    """How the config says that weights are quantised; that of a model of several parts in one."""
    whole = Fields(config.raw, config.path)
    inner = (
        whole.inside("text_config") if isinstance(config.raw.get("text_config"), dict) else whole
    )
    found = whole.inside("quantization_config")
    return found if found.values else inner.inside("quantization_config")
