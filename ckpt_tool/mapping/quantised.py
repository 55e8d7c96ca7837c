"""Quantised weights of a Hugging Face model: fp8 here, those of four bits in :mod:`.packed`."""

from __future__ import annotations

import re
from collections.abc import Container, Mapping
from typing import Literal

from ckpt_tool.common.errors import MappingError
from ckpt_tool.common.untrusted import Fields, show
from ckpt_tool.common.wording import count_noun
from ckpt_tool.mapping.config import ModelConfig
from ckpt_tool.mapping.frameworks.foreign import sum_up
from ckpt_tool.mapping.packed import Unpacked, is_packed, list_packed, unpack_weights
from ckpt_tool.tensors.dtypes import DType
from ckpt_tool.tensors.fp8 import EXPONENT, scale_weight
from ckpt_tool.tensors.lazy import LazyTensor

#: A way in which weights are quantised that are made wide here.
Kind = Literal["fp8", "packed"]

#: DeepSeek's names of a weight's scales, up to V3.2 and of V4: what elements are multiplied with;
#: that of others.
_SUFFIX, _SCALE, _OTHER_SUFFIX = "_scale_inv", ".scale", "_scale"
_BLOCK = (128, 128)
#: What other tools call scales of a weight; those of what is none: inputs, results, the cache.
#: Of experts in one tensor ModelOpt has them beside that, as ``down_proj_weight_scale``.
_OF_WEIGHTS = re.compile(r"(\.|_proj_)weight(_global)?_scale(_inv|_2)?$")
_OF_OTHERS = re.compile(r"(\.|_proj_)((input|output)(_global)?|activation|[kv])_scale$")
#: Scales of what attention keeps, and of its scores, by which servers store these in fp8: at its
#: module, or at the layer that makes them. Sources: what vLLM takes them for; ModelOpt,
#: compressed-tensors and AutoFP8, which write them. No class of transformers has one.
_OF_CACHE = re.compile(r"\.(self_attn|attn|attention|mixer)(\.\w+)?\.(q|k|v|kv|prob)_scale$")
_CACHE_SCALES = "a scale for the fp8 cache of a server, no weight"
_PACKED = re.compile(r"(^|[._])(q?weight|weight_packed|blocks)$")


def is_quantised(tensors: Mapping[str, LazyTensor]) -> bool:
    """Whether some weights are fp8."""
    return any(map(_is_fp8, tensors.values()))


def find_quantisation(tensors: Mapping[str, LazyTensor]) -> str:
    """``packed`` where some weights are integers, ``fp8`` where floats of 8 bits are; else empty.

    Packed are GPTQ's and AWQ's ``qweight``, ``weight_packed`` of compressed-tensors, MXFP4's
    ``blocks``, FP4's ``weight``: their shapes are not those of the weights.
    """
    packed = (
        name
        for name, tensor in tensors.items()
        if _PACKED.search(name) and not tensor.dtype.is_float and tensor.shape
    )
    if any(packed):
        return "packed"
    return "fp8" if is_quantised(tensors) else ""


def is_scale(name: str, tensors: Mapping[str, LazyTensor]) -> bool:
    """Whether ``name`` is that of scales beside an fp8 weight, whoever wrote them.

    A tensor that is called ``scale`` is one where a weight of a byte is beside it.
    """
    if name.endswith(_SCALE):
        beside = tensors.get(name.removesuffix(_SCALE) + ".weight")
        return beside is not None and beside.dtype.itemsize == 1
    return any(each.search(name) for each in (_OF_WEIGHTS, _OF_OTHERS))


def set_aside_cache_scales(
    tensors: Mapping[str, LazyTensor],
) -> tuple[dict[str, LazyTensor], dict[str, str]]:
    """The tensors without scales of the cache, and why each kind of these is left out.

    They lie beside weights of whatever dtype: single numbers, or one for each head.
    """
    scales = _list_cache_scales(tensors)
    kept = {name: tensor for name, tensor in tensors.items() if name not in scales}
    return kept, sum_up(dict.fromkeys(scales, _CACHE_SCALES))


def _list_cache_scales(tensors: Mapping[str, LazyTensor]) -> list[str]:
    return [n for n, t in tensors.items() if len(t.shape) < 2 and _OF_CACHE.search(n)]


def list_kinds(tensors: Mapping[str, LazyTensor]) -> set[Kind]:
    """How weights are quantised that :func:`dequantise_weights` makes wide."""
    scaled = any(
        name.endswith(_SUFFIX) or (_is_fp8(tensor) and _name_scales(name, tensors) in tensors)
        for name, tensor in tensors.items()
    )
    fp8: set[Kind] = {"fp8"} if scaled else set()
    return fp8 | ({"packed"} if is_packed(tensors) else set())


def dequantise_weights(
    tensors: Mapping[str, LazyTensor],
    config: ModelConfig,
    dtype: DType,
    kinds: Container[Kind] = ("fp8", "packed"),
) -> dict[str, LazyTensor]:
    """Every weight quantised in one of these ways times its scales, as ``dtype``, scales gone.

    So are scales of inputs and of the cache, also beside a weight that is not quantised.
    MappingError lists weights without scales, scales without a weight, shapes that do not fit the
    config's ``weight_block_size``, and what is quantised in a way that is not read.
    """
    found = (
        unpack_weights(tensors, _read_method(config), dtype) if "packed" in kinds else Unpacked()
    )
    found.faults += [
        f"{name}: packed, and as it is"
        for name in found.tensors
        if name in tensors and name not in found.used
    ]
    if "fp8" in kinds:
        packed = list_packed(tensors)
        plain = {name: tensor for name, tensor in tensors.items() if name not in packed}
        _scale(plain, _block_size(config), dtype, found)
    found.used.update(_list_cache_scales(tensors), filter(_OF_OTHERS.search, tensors))
    if found.faults:
        raise MappingError(
            f"{count_noun(len(found.faults), 'quantised weight')} cannot be read", found.faults
        )
    kept = {name: tensor for name, tensor in tensors.items() if name not in found.used}
    return kept | found.tensors


def _is_fp8(tensor: LazyTensor) -> bool:
    """Whether these are floats of 8 bits, and no exponents."""
    return tensor.dtype.itemsize == 1 and tensor.dtype.is_float and tensor.dtype != EXPONENT


def _name_scales(name: str, tensors: Container[str]) -> str:
    """What the scales of a weight are called, by which of them there are."""
    stem = name.removesuffix(".weight")
    known = (name + _SUFFIX, name + _OTHER_SUFFIX, stem + _SCALE, f"{stem}_weight_scale")
    return next((each for each in known if each in tensors), known[0])


def _scale(
    tensors: Mapping[str, LazyTensor], block: tuple[int, int], dtype: DType, found: Unpacked
) -> None:
    for name, tensor in tensors.items():
        if not _is_fp8(tensor):
            continue
        if is_scale(name, tensors):
            found.faults.append(
                f"{name}: scales that are {tensor.dtype}, as of NVFP4: part of none"
            )
            continue
        beside = _name_scales(name, tensors)
        found.used.add(beside)
        if beside not in tensors:
            found.faults.append(f"{name}: {tensor.dtype} without {beside}")
            continue
        try:
            found.tensors[name] = scale_weight(tensor, tensors[beside], block, dtype)
        except ValueError as error:
            found.faults.append(f"{name}: {error}")
    stems = {name.removesuffix(".weight") for name in found.tensors if name.endswith(".weight")}
    for name, tensor in tensors.items():
        if (name.endswith(_SUFFIX) or tensor.dtype == EXPONENT) and name not in found.used:
            found.faults.append(f"{name}: scales of no fp8 weight")
        elif name in found.used or _OF_OTHERS.search(name):
            continue
        elif is_scale(name, tensors) and name.rpartition(".")[0] in stems:
            found.faults.append(f"{name}: a weight with other scales too, in no known form")


def _block_size(config: ModelConfig) -> tuple[int, int]:
    """Rows and columns that share a factor: fp8's own word for them, else compressed-tensors'."""
    method = _read_method(config)
    key, said = "weight_block_size", method.sizes("weight_block_size")
    if not said:
        key, said = "block_structure", _read_structure(method)
    if said and (len(said) != 2 or not all(said)):
        raise MappingError(f"{config.path}: {key} is {show(said)}, expected two sizes")
    return (said[0], said[1]) if said else _BLOCK


def _read_structure(method: Fields) -> list[int]:
    """The blocks of compressed-tensors, [128, 128] or "128x128"; empty where none are said."""
    found = []
    groups = method.inside("config_groups")
    for key in (key for key, group in groups.values.items() if isinstance(group, dict)):
        weights = groups.inside(key).inside("weights")
        said = weights.values.get("block_structure")
        if isinstance(said, str) and re.fullmatch(r"[0-9]{1,6}x[0-9]{1,6}", said):
            found.append([int(size) for size in said.split("x")])
        elif said:
            found.append(weights.sizes("block_structure"))
    if any(each != found[0] for each in found):
        raise MappingError(f"{method.path}: blocks of several sizes, {show(found)}: not read")
    return found[0] if found else []


def _read_method(config: ModelConfig) -> Fields:
    """How the config says that weights are quantised; that of a model of several parts in one."""
    whole = Fields(config.raw, config.path)
    inner = (
        whole.inside("text_config") if isinstance(config.raw.get("text_config"), dict) else whole
    )
    found = whole.inside("quantization_config")
    return found if found.values else inner.inside("quantization_config")
