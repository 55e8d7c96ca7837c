"""Weights of four bits in a Hugging Face model, each with its scales and under which names.

MXFP4 as OpenAI publishes GPT-OSS: ``X_blocks`` and ``X_scales``, of ``X``. INT4 as the library
compressed-tensors packs it (Kimi-K2-Thinking): ``X.weight_packed``, ``X.weight_scale`` and
``X.weight_shape``, of ``X.weight``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ckpt_tool.common.errors import MappingError
from ckpt_tool.common.untrusted import Fields
from ckpt_tool.tensors.dtypes import UINT8, DType
from ckpt_tool.tensors.lazy import LazyTensor
from ckpt_tool.tensors.nibbles import INT32, SHAPE_DTYPES, Nibbles, unpack_int4, unpack_mxfp4

_BLOCKS, _SCALES = "_blocks", "_scales"
_WORDS, _FACTORS, _SHAPE = ".weight_packed", ".weight_scale", ".weight_shape"
#: What else belongs to a weight whose numbers are not around zero, or not in their order.
_OTHERS = (".weight_zero_point", ".weight_g_idx")
_BITS = 8  # numbers in a word


@dataclass
class Unpacked:
    """``tensors`` by the names of what was packed; what was ``used`` for them; what is wrong."""

    tensors: dict[str, LazyTensor] = field(default_factory=dict)
    used: set[str] = field(default_factory=set)
    faults: list[str] = field(default_factory=list)


def is_packed(tensors: Mapping[str, LazyTensor]) -> bool:
    """Whether there is a weight that :func:`unpack_weights` unpacks."""
    return any(_find_parts(name, tensors) for name in tensors)


def unpack_weights(tensors: Mapping[str, LazyTensor], said: Fields, dtype: DType) -> Unpacked:
    """Every packed weight times its scales, as ``dtype``, under its own name.

    ``said``: the ``quantization_config`` of the model. What only has such a name stays what it is.
    FormatError where the config is malformed, MappingError where it says that numbers of INT4 are
    not around zero.
    """
    found = Unpacked()
    sets = {name: parts for name in tensors if (parts := _find_parts(name, tensors))}
    groups = _read_groups(said) if any(name.endswith(_WORDS) for name in sets) else set()
    for name, parts in sets.items():
        whole = name.removesuffix("_packed" if name.endswith(_WORDS) else _BLOCKS)
        found.used |= {name, *parts}
        try:
            weight = _make(tensors[name], [tensors[part] for part in parts], dtype)
            if name.endswith(_WORDS):
                _check_groups(weight, groups)
        except ValueError as error:
            found.faults.append(f"{name}: {error}")
        else:
            found.tensors[whole] = weight
    return found


def _find_parts(name: str, tensors: Mapping[str, LazyTensor]) -> list[str]:
    """What belongs to the numbers called ``name``; nothing where they are none of these."""
    if name.endswith(_WORDS):
        stem = name.removesuffix(_WORDS)
        parts = [stem + _FACTORS, stem + _SHAPE]
        is_plain = parts[0] in tensors and not any(stem + end in tensors for end in _OTHERS)
        are = any(_are(tensors, [name, parts[1]], (INT32, shape)) for shape in SHAPE_DTYPES)
        return parts if is_plain and are else []
    if name.endswith(_BLOCKS):
        parts = [name.removesuffix(_BLOCKS) + _SCALES]
        return parts if _are(tensors, [name, *parts], (UINT8, UINT8)) else []
    return []


def _are(tensors: Mapping[str, LazyTensor], names: Sequence[str], dtypes: Sequence[DType]) -> bool:
    """Whether all of these are there, and of these dtypes."""
    there = [tensors[name].dtype for name in names if name in tensors]
    return there == list(dtypes)


def _read_groups(said: Fields) -> set[int]:
    """How many numbers have a scale in common, by the config; 0: those of a row."""
    sizes = set()
    every = said.inside("config_groups")
    for key in every.values:
        weights = every.inside(key).inside("weights")
        if not weights.values or weights.size("num_bits", 4) != 4:
            continue
        if weights.find_bool("symmetric") is False:
            raise MappingError(
                f"{said.path}: {key} has numbers of INT4 that are not around zero: not read"
            )
        is_row = weights.values.get("group_size") in (None, -1)
        sizes.add(0 if is_row else weights.size("group_size"))
    return sizes


def _check_groups(weight: LazyTensor, groups: set[int]) -> None:
    """ValueError where a weight of INT4 has groups of a size that the config does not say."""
    computed = weight.chunks[0].region.computed if weight.chunks else None
    if not groups or not isinstance(computed, Nibbles):
        return
    is_row = computed.group == computed.shape[-1]
    if computed.group not in groups and not (is_row and 0 in groups):
        listed = " or ".join(str(size) if size else "a row" for size in sorted(groups))
        raise ValueError(f"groups of {computed.group}, and config.json says {listed}")


def _make(numbers: LazyTensor, beside: list[LazyTensor], dtype: DType) -> LazyTensor:
    if len(beside) == 1:
        return unpack_mxfp4(numbers, beside[0], dtype)
    factors, said = beside
    groups = factors.shape[-1] if factors.shape else 0
    columns = numbers.shape[-1] * _BITS if numbers.shape else 0
    if not groups or columns % groups:
        raise ValueError(f"{columns} numbers in a row, and {groups} scales for them")
    return unpack_int4(numbers, factors, said, columns // groups, dtype)
