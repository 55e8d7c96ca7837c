"""Block-quantised fp8 weights of a Hugging Face model, each with its scales."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from ckpt_tool.common.errors import MappingError
from ckpt_tool.common.untrusted import Fields, show
from ckpt_tool.mapping.config import ModelConfig
from ckpt_tool.tensors.dtypes import DType
from ckpt_tool.tensors.fp8 import scale_weight
from ckpt_tool.tensors.lazy import LazyTensor

#: DeepSeek's name of a weight's scales: what its elements are multiplied with.
_SUFFIX = "_scale_inv"
_BLOCK = (128, 128)
#: What other tools call scales of fp8: of a weight, of the input, of the cache.
_SCALES = re.compile(r"\.(weight_scale(_inv)?|input_scale|activation_scale|[kv]_scale)$")
_PACKED = re.compile(r"(^|[._])(q?weight|weight_packed|blocks)$")


def is_quantised(tensors: Mapping[str, LazyTensor]) -> bool:
    """Whether some weights are fp8."""
    return any(tensor.dtype.itemsize == 1 and tensor.dtype.is_float for tensor in tensors.values())


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


def has_scales(tensors: Iterable[str]) -> bool:
    """Whether some of these names are those of scales."""
    return any(name.endswith(_SUFFIX) for name in tensors)


def dequantise_weights(
    tensors: Mapping[str, LazyTensor], config: ModelConfig, dtype: DType
) -> dict[str, LazyTensor]:
    """Every fp8 weight times its scales, as ``dtype``; the scales are gone.

    MappingError lists weights without scales, scales without a weight, and shapes that do not fit
    the config's ``weight_block_size``.
    """
    block = _block_size(config)
    result, faults, used = {}, [], set()
    for name, tensor in tensors.items():
        if not (tensor.dtype.itemsize == 1 and tensor.dtype.is_float):
            continue
        scales = tensors.get(name + _SUFFIX)
        used.add(name + _SUFFIX)
        if scales is None:
            faults.append(f"{name}: {tensor.dtype} without {name + _SUFFIX}")
            continue
        try:
            result[name] = scale_weight(tensor, scales, block, dtype)
        except ValueError as error:
            faults.append(f"{name}: {error}")
    for name in tensors:
        if name.endswith(_SUFFIX) and name not in used:
            faults.append(f"{name}: scales of no fp8 weight")
    if faults:
        raise MappingError(f"{len(faults)} fp8 weights cannot be read", faults)
    return {n: result.get(n, t) for n, t in tensors.items() if n not in used}


def _block_size(config: ModelConfig) -> tuple[int, int]:
    said = Fields(config.raw, config.path).inside("quantization_config").sizes("weight_block_size")
    if said and (len(said) != 2 or not all(said)):
        raise MappingError(f"config.json: weight_block_size is {show(said)}, expected two sizes")
    return (said[0], said[1]) if said else _BLOCK
