"""Which tensors are weights, and which are tables of whole numbers: each as the rules say."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from ckpt_tool.common.errors import MappingError
from ckpt_tool.common.wording import count_doing
from ckpt_tool.mapping.megatron.bindings import Binding
from ckpt_tool.mapping.megatron.integer_ops import Integers
from ckpt_tool.tensors.dtypes import CASTABLE, DType
from ckpt_tool.tensors.lazy import LazyTensor


def require_weights(tensors: Mapping[str, LazyTensor], bindings: Iterable[Binding]) -> None:
    """MappingError lists weights that are no floats, and tables that are."""
    tables = {name for each in bindings if isinstance(each.op, Integers) for name in each.hf}
    faults = [f"{name}: {t.dtype}" for name, t in tensors.items() if not _fits(t, name in tables)]
    if faults:
        raise MappingError(
            f"{count_doing(len(faults), 'weight', 'are')} not floating-point",
            faults,
            hint="Of weights that are packed or quantised, all that is multiplied with must be"
            " there: beside weight_packed, for example, its weight_scale and weight_shape.",
        )


def _fits(tensor: LazyTensor, is_table: bool) -> bool:
    return _is_integer(tensor.dtype) if is_table else tensor.dtype in CASTABLE


def _is_integer(dtype: DType) -> bool:
    return not dtype.is_float and "int" in dtype.name and not dtype.is_packed
