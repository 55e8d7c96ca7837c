"""Weights of four bits in a Hugging Face model, each with its scales and under which names.

Which of the names go with which dtypes is a row of :data:`_FORMS`: MXFP4 as OpenAI publishes
GPT-OSS, INT4 as compressed-tensors packs it (Kimi-K2-Thinking), FP4 of DeepSeek-V4, MXFP4 and NVFP4
of compressed-tensors and of ModelOpt.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

from ckpt_tool.common.errors import MappingError
from ckpt_tool.common.untrusted import Fields
from ckpt_tool.tensors.dtypes import BY_NAME, UINT8, DType
from ckpt_tool.tensors.fp8 import EXPONENT, FLOAT8
from ckpt_tool.tensors.lazy import LazyTensor
from ckpt_tool.tensors.nibbles import (
    INT32,
    PAIRS_OF_FP4,
    SHAPE_DTYPES,
    Nibbles,
    unpack_fp4,
    unpack_int4,
    unpack_mxfp4,
    unpack_nvfp4,
)

#: What else belongs to a weight whose numbers are not around zero, or not in their order.
_OTHERS = (".weight_zero_point", ".weight_g_idx")
_BITS = 8  # numbers in a word
_ANY = frozenset(BY_NAME.values())
_EXPONENTS = frozenset({UINT8, EXPONENT})


class _Form(NamedTuple):
    """Names of what is one weight, by their ends, and which dtypes say that it is.

    ``beside``: what numbers are multiplied with, in the order in which ``make`` takes it.
    ``whole``: how the name of the weight ends.
    """

    codes: str
    dtypes: Collection[DType]
    beside: tuple[tuple[str, Collection[DType]], ...]
    make: Callable[..., LazyTensor]
    whole: str = ".weight"

    def list_parts(self, name: str, tensors: Mapping[str, LazyTensor]) -> list[str]:
        """What is beside the numbers called ``name``; nothing where they are not of this form."""
        if not name.endswith(self.codes) or tensors[name].dtype not in self.dtypes:
            return []
        stem = name.removesuffix(self.codes)
        fits = all(
            stem + end in tensors and tensors[stem + end].dtype in dtypes
            for end, dtypes in self.beside
        )
        if not fits or (self.whole and any(stem + end in tensors for end in _OTHERS)):
            return []
        return [stem + end for end, _ in self.beside]


@dataclass
class Unpacked:
    """``tensors`` by the names of what was packed; what was ``used`` for them; what is wrong."""

    tensors: dict[str, LazyTensor] = field(default_factory=dict)
    used: set[str] = field(default_factory=set)
    faults: list[str] = field(default_factory=list)


def is_packed(tensors: Mapping[str, LazyTensor]) -> bool:
    """Whether there is a weight that :func:`unpack_weights` unpacks."""
    return any(_find_form(name, tensors) for name in tensors)


def list_packed(tensors: Mapping[str, LazyTensor]) -> set[str]:
    """The names of all that :func:`unpack_weights` makes weights of."""
    names = set()
    for name in tensors:
        if form := _find_form(name, tensors):
            names |= {name, *form.list_parts(name, tensors)}
    return names


def unpack_weights(tensors: Mapping[str, LazyTensor], said: Fields, dtype: DType) -> Unpacked:
    """Every packed weight times its scales, as ``dtype``, under its own name.

    ``said``: the ``quantization_config`` of the model. What only has such a name stays what it is.
    FormatError where the config is malformed, MappingError where it says that numbers of INT4 are
    not around zero.
    """
    found = Unpacked()
    forms = {name: form for name in tensors if (form := _find_form(name, tensors))}
    groups = _read_groups(said) if _INT4 in forms.values() else set()
    for name, form in forms.items():
        parts, stem = form.list_parts(name, tensors), name.removesuffix(form.codes)
        found.used |= {name, *parts}
        try:
            weight = form.make(tensors[name], *(tensors[part] for part in parts), dtype)
            if form is _INT4:
                _check_groups(weight, groups)
        except ValueError as error:
            found.faults.append(f"{name}: {error}")
        else:
            found.tensors[stem + form.whole] = weight
    return found


def _find_form(name: str, tensors: Mapping[str, LazyTensor]) -> _Form | None:
    """How the numbers called ``name`` are packed; None where they are not."""
    if tensors[name].dtype.is_float:
        return None
    return next((form for form in _FORMS if form.list_parts(name, tensors)), None)


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


def _make_int4(
    numbers: LazyTensor, factors: LazyTensor, said: LazyTensor, dtype: DType
) -> LazyTensor:
    groups = factors.shape[-1] if factors.shape else 0
    columns = numbers.shape[-1] * _BITS if numbers.shape else 0
    if not groups or columns % groups:
        raise ValueError(f"{columns} numbers in a row, and {groups} scales for them")
    return unpack_int4(numbers, factors, said, columns // groups, dtype)


_SCALE, _FP8 = ".weight_scale", (FLOAT8,)
_INT4 = _Form(
    ".weight_packed", (INT32,), ((_SCALE, _ANY), (".weight_shape", SHAPE_DTYPES)), _make_int4
)
_FORMS = (
    _Form("_blocks", (UINT8,), (("_scales", (UINT8,)),), unpack_mxfp4, ""),
    _INT4,
    _Form(".weight_packed", (UINT8,), ((_SCALE, _EXPONENTS),), unpack_fp4),
    _Form(
        ".weight_packed",
        (UINT8,),
        ((_SCALE, _FP8), (".weight_global_scale", _ANY)),
        partial(unpack_nvfp4, is_divisor=True),
    ),
    _Form(
        ".weight",
        (UINT8,),
        ((_SCALE, _FP8), (".weight_scale_2", _ANY)),
        partial(unpack_nvfp4, is_divisor=False),
    ),
    *(
        _Form(".weight", PAIRS_OF_FP4, ((end, _EXPONENTS),), unpack_fp4)
        for end in (".scale", ".weight_scale_inv", _SCALE)
    ),
)
