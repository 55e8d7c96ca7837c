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
    found = {}
    for name in names:
        parts = name.split(".")
        tails = (".".join(parts[at:]) for at in range(len(parts)))
        if (end := next((tail for tail in tails if tail in ends), None)) is not None:
            found[name] = ends[end]
    return found
