"""Whether the experts of a layer are one tensor on the Hub, or one each.

Released Qwen3.5 has them packed, and those of the layer that predicts further one by one; Qwen3.6
has both packed; what transformers saves is one by one. No config says which: names do. ``packed``
and ``unpacked`` are flags of rows.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import replace

from ckpt_tool.mapping.families.megatron_form import MegatronRows
from ckpt_tool.mapping.megatron.numbers import Numbers

_PACKED = ".experts.gate_up_proj"
_APART = re.compile(r"\.experts\.\d+\.")
_FLAGS = frozenset({"packed", "unpacked"})


def find_forms(family: MegatronRows, names: Collection[str]) -> frozenset[str]:
    """The forms in which tensors with these names on the Hub have experts, as flags.

    None of layers that have no experts in ``names``, or where the family has one form alone.
    """
    if not family.packs_either_way:
        return frozenset()
    packed = [name for name in names if name.endswith(_PACKED)]
    trunk = f"{family.around.trunk}layers."
    found = set()
    if any(name.startswith(trunk) for name in packed):
        found.add("packed")
    elif any(name.startswith(trunk) and _APART.search(name) for name in names):
        found.add("unpacked")
    if family.mtp.rows and any(name.startswith(family.mtp.top) for name in packed):
        found.add("mtp_packed")
    return frozenset(found)


def use_forms(numbers: Numbers, forms: frozenset[str]) -> Numbers:
    """The numbers with experts in these forms; what they do not say is as the family has it."""
    gone = _FLAGS if forms & _FLAGS else frozenset[str]()
    return replace(numbers, flags=numbers.flags - gone | forms)


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
