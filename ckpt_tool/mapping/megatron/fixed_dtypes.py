"""What Megatron keeps in one dtype, whatever the dtype of the weights is: as the rows say."""

from __future__ import annotations

from collections.abc import Iterable

from ckpt_tool.mapping.families.megatron_form import MegatronRows
from ckpt_tool.tensors.dtypes import BY_NAME, DType


def hold_fixed(names: Iterable[str], rows: MegatronRows) -> dict[str, DType]:
    """Which of the tensors ``names``, on the Hub, are to be in a dtype of their own."""
    every = (
        *rows.attention,
        *(row for kind in rows.attentions.values() for row in kind),
        *rows.moe,
        *rows.mtp.rows,
        *rows.around.beside,
    )
    ends = {row.hf: BY_NAME[row.dtype] for row in every if row.dtype}
    dotted = {f".{end}": ends[end] for end in sorted(ends, key=len, reverse=True)}
    every_end = tuple(dotted)  # of a hundred thousand names few have one
    return {
        name: next(dtype for end, dtype in dotted.items() if f".{name}".endswith(end))
        for name in names
        if f".{name}".endswith(every_end)
    }
