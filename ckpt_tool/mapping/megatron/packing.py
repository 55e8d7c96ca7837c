"""Whether the experts of a layer are one tensor on the Hub, or one each.

Released Qwen3.5 has them packed, and those of the layer that predicts further one by one; Qwen3.6
has both packed; what transformers saves is one by one. ``packed`` and ``unpacked`` are flags of
rows.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from ckpt_tool.mapping.families.megatron_form import MegatronRows
from ckpt_tool.mapping.megatron.numbers import Numbers

_PACKED = ".experts.gate_up_proj"
_FLAGS = frozenset({"packed", "unpacked"})


def note_packed(family: MegatronRows, numbers: Numbers, names: Collection[str]) -> Numbers:
    """The numbers of a model with these tensors on the Hub, which say what is packed."""
    if not any(row.when == "packed" for row in family.moe):
        return numbers
    packed = [name for name in names if name.endswith(_PACKED)]
    inside = any(name.startswith(family.around.trunk) for name in packed)
    found = {"packed" if inside else "unpacked"}
    if any(name.startswith(family.mtp.top) for name in packed):
        found.add("mtp_packed")
    return replace(numbers, flags=numbers.flags - _FLAGS | found)


def name_ahead(numbers: Numbers) -> Numbers:
    """The same for the layer that predicts further."""
    if not numbers.flags & _FLAGS:
        return numbers
    flag = "packed" if "mtp_packed" in numbers.flags else "unpacked"
    return replace(numbers, flags=numbers.flags - _FLAGS | {flag})


def count_experts(family: MegatronRows, numbers: Numbers) -> int:
    """For how many experts, of all layers together, there are tensors on the Hub."""
    if not any("{e}" in row.hf for row in family.moe):
        return 0
    layers = 0 if "packed" in numbers.flags else len(numbers.moe)
    ahead = 0 if "mtp_packed" in numbers.flags else numbers.mtp
    return (layers + ahead) * numbers.experts
