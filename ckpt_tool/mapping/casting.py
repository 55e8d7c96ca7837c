"""Which dtype the weights are written in, and which of them keep their own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from ckpt_tool.common.errors import UsageError
from ckpt_tool.mapping.config import ModelConfig
from ckpt_tool.tensors.dtypes import BY_NAME, CASTABLE, FLOAT32, DType
from ckpt_tool.tensors.lazy import LazyTensor

DTYPES = ("auto", "keep", "bfloat16", "float16", "float32")


def require_dtype(name: str) -> None:
    """UsageError unless ``name`` is a choice of ``dtype``."""
    if name not in DTYPES:
        raise UsageError(f"`dtype={name!r}`: expected one of {', '.join(DTYPES)}")


def choose_dtype(name: str, config: ModelConfig | None) -> DType | None:
    """The dtype that weights are cast to; None: each keeps its own."""
    if name == "auto":
        return config.dtype if config is not None else None
    return None if name == "keep" else BY_NAME[name]


def cast_all(
    tensors: Mapping[str, LazyTensor], target: DType | None, config: ModelConfig | None
) -> dict[str, LazyTensor]:
    """Weights in ``target``; integers, fp8 and what must not have fewer bits as they are."""
    if target is None:
        return dict(tensors)

    def is_cast(name: str, tensor: LazyTensor) -> bool:
        if tensor.dtype not in CASTABLE:
            return False
        return target == FLOAT32 or config is None or not config.keeps_float32(name)

    return {
        name: tensor.to(target) if is_cast(name, tensor) else tensor
        for name, tensor in tensors.items()
    }


def find_main_dtype(tensors: Iterable[LazyTensor]) -> DType | None:
    """The floating-point dtype of most bytes; None where there is none that can be cast."""
    sizes: dict[DType, int] = {}
    for tensor in tensors:
        if tensor.dtype in CASTABLE:
            sizes[tensor.dtype] = sizes.get(tensor.dtype, 0) + tensor.nbytes
    return max(sizes, key=lambda dtype: sizes[dtype], default=None)
