"""Gated DeltaNet's fused tensors in a rank's file, as the parts that they are made of.

In memory, and so in the files of single ranks, ``in_proj.weight`` has this rank's rows of query,
key, value, gate (``z``), beta and alpha, and ``conv1d.weight`` those of query, key and value; in
``torch_dist`` they are apart. Source: ``sharded_state_dict`` of ``ssm/gated_delta_net`` of
megatron-core 0.19.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from ckpt_tool.common.errors import FormatError
from ckpt_tool.readers.megatron.file import Part
from ckpt_tool.tensors.geometry import Shape

_LINEAR = re.compile(r"(?P<stem>.*self_attention\.)(?P<layer>in_proj|conv1d)\.weight")
_PARTS = {
    "in_proj": ("query", "key", "value", "z", "beta", "alpha"),
    "conv1d": ("query", "key", "value"),
}


def is_linear(part: Part, beside: Mapping[str, Shape]) -> bool:
    """Whether the part is of several; ``beside``: local shapes by name."""
    found = _LINEAR.fullmatch(part.name)
    return found is not None and f"{found['stem']}A_log" in beside


def separate_linear(part: Part, beside: Mapping[str, Shape]) -> Iterator[Part]:
    """The parts, each with its own rows.

    FormatError where what is beside, which says how many rows there are, does not fit.
    """
    found = _LINEAR.fullmatch(part.name)
    assert found is not None
    decay, out = (beside.get(found["stem"] + name, ()) for name in ("A_log", "out_proj.weight"))
    if len(decay) != 1 or len(out) != 2:
        raise FormatError(f"{part.name}: {list(part.shape)}, without A_log and out_proj beside it")
    heads, value = decay[0], out[1]
    rest = value if found["layer"] == "conv1d" else 2 * (value + heads)
    keys, odd = divmod(part.shape[0] - rest if part.shape else 0, 2)
    if odd or keys < 1:
        raise FormatError(
            f"{part.name}: {list(part.shape)}, expected rows of query and key and {rest} more"
        )
    at = 0
    for name, rows in zip(
        _PARTS[found["layer"]], (keys, keys, value, value, heads, heads), strict=False
    ):
        yield part.take_rows(f"{part.name}.{name}", at, rows)
        at += rows
