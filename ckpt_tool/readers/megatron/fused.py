"""Latent attention's fused down projection in a rank's file, as the two that it is made of.

megatron-core has it since 0.17 (``--mla-down-proj-fusion``), in memory and so in the files of
single ranks: ``linear_qkv_down_proj.weight``, the rows of ``linear_q_down_proj`` and then those of
``linear_kv_down_proj``; where ranks have shares, this rank's share of each. In ``torch_dist`` they
are apart. Source: ``FusedMLASelfAttention.sharded_state_dict`` of ``multi_latent_attention.py``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ckpt_tool.common.errors import FormatError
from ckpt_tool.readers.megatron.file import Part
from ckpt_tool.tensors.geometry import Shape

_FUSED = "linear_qkv_down_proj."


def is_fused(part: Part) -> bool:
    """Whether the part is of both down projections."""
    return part.name.endswith(f"{_FUSED}weight")


def separate(part: Part, beside: Mapping[str, Shape], ranks: int) -> Sequence[Part]:
    """The two projections' rows, of one of ``ranks``; ``beside``: local shapes by name.

    FormatError where the up projections, whose columns say how many rows there are, do not fit.
    """
    query, keys = (
        beside.get(part.name.replace(_FUSED, f"linear_{kind}_up_proj."), ()) for kind in ("q", "kv")
    )
    if len(query) != 2 or len(keys) != 2 or len(part.shape) != 2:
        raise FormatError(f"{part.name}: {list(part.shape)}, without two up projections beside it")
    is_whole = part.shape[0] > query[1] + keys[1]  # with some rows for the rotary part
    rows = query[1] if is_whole else query[1] // ranks
    if not is_whole and (query[1] % ranks or part.shape[0] <= rows):
        raise FormatError(
            f"{part.name}: {list(part.shape)}, expected a share of {query[1]} and more than"
            f" {keys[1]} rows"
        )
    query_name, keys_name = (
        part.name.replace(_FUSED, f"linear_{kind}_down_proj.") for kind in ("q", "kv")
    )
    return [
        part.take_rows(query_name, 0, rows),
        part.take_rows(keys_name, rows, part.shape[0] - rows),
    ]
