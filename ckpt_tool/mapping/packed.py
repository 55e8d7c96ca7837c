"""Weights of four bits in a Hugging Face model, each with its scales and under which names.

MXFP4 as OpenAI publishes GPT-OSS: ``X_blocks`` and ``X_scales``, of ``X``. INT4 as the library
compressed-tensors packs it (Kimi-K2-Thinking): ``X.weight_packed``, ``X.weight_scale`` and
``X.weight_shape``, of ``X.weight``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from ckpt_tool.common.untrusted import Fields
from ckpt_tool.tensors.dtypes import DType
from ckpt_tool.tensors.lazy import LazyTensor
from ckpt_tool.tensors.nibbles import Nibbles, unpack_int4, unpack_mxfp4

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


def is_packed(names: Iterable[str]) -> bool:
    """Whether some of these are names of weights that :func:`unpack_weights` unpacks."""
    return any(_find_whole(name) for name in names)


def unpack_weights(tensors: Mapping[str, LazyTensor], said: Fields, dtype: DType) -> Unpacked:
    """Every packed weight times its scales, as ``dtype``, under its own name.

    ``said``: the ``quantization_config`` of the model. FormatError where that is malformed.
    """
    found = Unpacked()
    groups = _read_groups(said)
    for name in tensors:
        whole = _find_whole(name)
        if whole:
            _unpack(name, whole, tensors, dtype, found)
            weight = found.tensors.get(whole)
            _check_groups(name, weight, groups, found.faults)
    return found


def _read_groups(said: Fields) -> set[int]:
    """How many numbers have a scale in common, by the config; 0: those of a row."""
    sizes = set()
    every = said.inside("config_groups")
    for key in every.values:
        weights = every.inside(key).inside("weights")
        if weights.values and weights.size("num_bits", 4) == 4:
            size = weights.values.get("group_size")
            sizes.add(size if type(size) is int and size > 0 else 0)
    return sizes


def _check_groups(
    name: str, weight: LazyTensor | None, groups: set[int], faults: list[str]
) -> None:
    computed = weight.chunks[0].region.computed if weight is not None and weight.chunks else None
    if not groups or not name.endswith(_WORDS) or not isinstance(computed, Nibbles):
        return
    is_row = computed.group == computed.shape[-1]
    if computed.group not in groups and not (is_row and 0 in groups):
        listed = " or ".join(str(size) if size else "a row" for size in sorted(groups))
        faults.append(f"{name}: groups of {computed.group}, and config.json says {listed}")


def _find_whole(name: str) -> str:
    """The weight whose numbers are called ``name``; empty where it is no such name."""
    if name.endswith(_WORDS):
        return name.removesuffix("_packed")
    return name.removesuffix(_BLOCKS) if name.endswith(_BLOCKS) else ""


def _unpack(
    name: str, whole: str, tensors: Mapping[str, LazyTensor], dtype: DType, found: Unpacked
) -> None:
    is_words = name.endswith(_WORDS)
    stem = name.removesuffix(_WORDS)
    beside = [stem + _FACTORS, stem + _SHAPE] if is_words else [whole + _SCALES]
    found.used |= {name, *beside}
    missing = [other for other in beside if other not in tensors]
    if missing:
        found.faults.append(f"{name}: without {' and '.join(missing)}")
        return
    more = [stem + end for end in _OTHERS if is_words and stem + end in tensors]
    if more:
        found.faults.append(f"{name}: with {' and '.join(more)}, which is not read")
        return
    try:
        found.tensors[whole] = _make(tensors[name], [tensors[other] for other in beside], dtype)
    except ValueError as error:
        found.faults.append(f"{name}: {error}")


def _make(numbers: LazyTensor, beside: list[LazyTensor], dtype: DType) -> LazyTensor:
    if len(beside) == 1:
        return unpack_mxfp4(numbers, beside[0], dtype)
    factors, said = beside
    groups = factors.shape[-1] if factors.shape else 0
    columns = numbers.shape[-1] * _BITS if numbers.shape else 0
    if not groups or columns % groups:
        raise ValueError(f"{columns} numbers in a row, and {groups} scales for them")
    return unpack_int4(numbers, factors, said, columns // groups, dtype)
