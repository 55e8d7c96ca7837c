"""Which dtype the weights are written in, and which of them have another one."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from ckpt_tool.common.errors import MappingError, UsageError
from ckpt_tool.common.wording import count_noun
from ckpt_tool.mapping.config import ModelConfig
from ckpt_tool.mapping.megatron.fixed_dtypes import hold_fixed
from ckpt_tool.mapping.quantised import is_quantised, is_scale
from ckpt_tool.tensors.dtypes import BY_NAME, CASTABLE, FLOAT32, UNCASTABLE, DType
from ckpt_tool.tensors.lazy import LazyTensor

DTYPES = ("auto", "keep", "bfloat16", "float16", "float32")

#: Tensors that lose their meaning in 16 bits, where nobody knows the class: router biases that
#: decide by tiny differences.
_FLOAT32_NAMES = re.compile(r"\.(e_score_correction_bias|expert_bias)$|\.moe_statics\.")


def require_dtype(name: str) -> None:
    """UsageError unless ``name`` is a choice of ``dtype``."""
    if name not in DTYPES:
        raise UsageError(f"`dtype={name!r}`: expected one of {', '.join(DTYPES)}")


def choose_dtype(name: str, config: ModelConfig | None) -> DType | None:
    """The dtype that weights are cast to; None: each keeps its own."""
    if name == "auto":
        named = config.dtype if config is not None else None
        return named if named in CASTABLE else None
    return None if name == "keep" else BY_NAME[name]


def refuse_casts(tensors: Mapping[str, LazyTensor], name: str) -> None:
    """MappingError lists weights in formats that nothing casts, where a dtype was asked for."""
    if name in ("auto", "keep"):
        return
    faults = [f"{at}: {t.dtype}" for at, t in tensors.items() if t.dtype in UNCASTABLE]
    if faults:
        raise MappingError(
            f"`dtype={name!r}`: {count_noun(len(faults), 'tensor')} in formats that are not cast",
            faults,
            hint="Write them as they are with `dtype='keep'`.",
        )


def list_cast(
    tensors: Mapping[str, LazyTensor], target: DType | None, config: ModelConfig | None
) -> list[str]:
    """The weights that are to be cast, unless their class holds them otherwise.

    Integers, fp8 and its scales are none, nor is what keeps its dtype beside the model.
    """
    if target is None:
        return []
    own = config.own_dtypes if config is not None and target != FLOAT32 else frozenset()
    quantised = is_quantised(tensors)
    return [
        name
        for name, tensor in tensors.items()
        if tensor.dtype in CASTABLE
        and tensor.dtype != target
        and name not in own
        and not (quantised and is_scale(name, tensors))
    ]


def hold_known(names: Iterable[str], config: ModelConfig) -> dict[str, DType]:
    """Which of the tensors ``names`` are float32 in any case, as far as it is known without asking.

    Where the family's row says nothing of it, these are the biases of routers, and what Megatron
    has so.
    """
    said, rows = config.family.known_float32, config.family.megatron
    known = _FLOAT32_NAMES if said is None else re.compile(said or r"(?!)")
    every = list(names)
    fixed = hold_fixed(every, rows) if said is None and rows is not None else {}
    return fixed | {name: FLOAT32 for name in every if known.search(name)}


def cast_all(
    tensors: Mapping[str, LazyTensor],
    target: DType | None,
    config: ModelConfig | None,
    held: Mapping[str, DType] | None = None,
) -> dict[str, LazyTensor]:
    """Weights in ``target``, and those in ``held`` in the dtype that their class holds them in.

    What is in ``target`` already stays so: nothing is won by making it wider.
    """
    cast, other = set(list_cast(tensors, target, config)), held or {}

    def convert(name: str, tensor: LazyTensor) -> LazyTensor:
        return tensor if target is None or name not in cast else tensor.to(other.get(name, target))

    return {name: convert(name, tensor) for name, tensor in tensors.items()}


def cast_as_told(
    tensors: Mapping[str, LazyTensor],
    target: DType | None,
    config: ModelConfig,
    fixed: Mapping[str, DType],
) -> dict[str, LazyTensor]:
    """Weights in ``target``, but those in ``fixed`` as it says, each rounded once at most.

    What is float32 in any case, as far as it is known without asking, stays so.
    """
    free = {name: tensor for name, tensor in tensors.items() if name not in fixed}
    cast = cast_all(free, target, config, hold_known(free, config))
    return {
        name: tensor.to(fixed[name]) if name in fixed else cast[name]
        for name, tensor in tensors.items()
    }


def find_main_dtype(tensors: Iterable[LazyTensor]) -> DType | None:
    """The floating-point dtype of most bytes; None where there is none that can be cast."""
    sizes: dict[DType, int] = {}
    for tensor in tensors:
        if tensor.dtype in CASTABLE:
            sizes[tensor.dtype] = sizes.get(tensor.dtype, 0) + tensor.nbytes
    return max(sizes, key=lambda dtype: sizes[dtype], default=None)
