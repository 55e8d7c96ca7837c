"""Mamba's mixers as a rank holds them: parts of a tensor, of each of which it has its share.

``in_proj`` has gate, input, B, C and time steps, one after the other, and ``conv1d`` input, B and
C. Only distributed checkpoints keep them apart. Source: ``megatron/core/ssm/mamba_mixer.py``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from ckpt_tool.tensors.geometry import Shape

_MIXER = re.compile(
    r"(?P<mixer>(?:^|.*\.)(?:mamba_)?mixer\.)(?P<name>in_proj\.weight|conv1d[._](?:weight|bias)"
    r"|A_log|D|dt_bias|norm\.weight|out_proj\.weight)"
)
_OUT = "out_proj.weight"


def find_mixer_dim(name: str) -> int | None:
    """Along which dimension ranks share a mixer's parameter; None where it is of no mixer."""
    found = _MIXER.fullmatch(name)
    return None if found is None else int(found["name"] == _OUT)


def find_sections(name: str, shapes: Mapping[str, Shape]) -> tuple[int, ...]:
    """The rows of each part of a mixer's parameter; empty where it is one part.

    ``shapes`` are those of one rank: how many heads it has, and how wide they are together, is said
    by the tensors beside it. Empty too where they do not say it.
    """
    found = _MIXER.fullmatch(name)
    if found is None or not found["name"].startswith(("in_proj", "conv1d")):
        return ()
    heads, out = (shapes.get(found["mixer"] + beside, ()) for beside in ("A_log", _OUT))
    if len(heads) != 1 or len(out) != 2 or not shapes[name]:
        return ()
    inner, rows = out[1], shapes[name][0]
    ends = (inner,) if found["name"].startswith("conv1d") else (inner, inner)
    last = () if len(ends) == 1 else heads
    state, odd = divmod(rows - sum(ends) - sum(last), 2)
    return () if odd or state <= 0 else (*ends, state, state, *last)
