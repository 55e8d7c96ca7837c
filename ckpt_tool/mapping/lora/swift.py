"""LoRA adapters as ms-swift saves them in ``torch_dist``: alone, by peft's names of modules.

Those become Megatron-Bridge's. B of a first layer with a gate has the gate's and the other rows of
one tensor-parallel rank after the other, where Megatron-Bridge's has all rows of the gate first.
Experts are not cut that way. Sources: ``tuners/lora.py`` of mcore_bridge 1.6;
``_filter_adapter_state_dict`` in ``megatron/utils/megatron_lm_utils.py`` of ms-swift 4.6.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from ckpt_tool.common.errors import MappingError
from ckpt_tool.mapping.config import ModelConfig
from ckpt_tool.mapping.lora.part_rows import share_rows
from ckpt_tool.mapping.megatron.numbers import read_numbers
from ckpt_tool.tensors.lazy import LazyTensor, cat, stack

_FACTOR = re.compile(r"(?P<module>.+)\.lora_(?P<part>[AB])\.(?P<adapter>\w+)\.weight")
_PARTS = {"A": "in", "B": "out"}


def is_factor(name: str) -> bool:
    """Whether a tensor of Megatron is A or B of such an adapter."""
    return _FACTOR.fullmatch(name) is not None


def use_bridge_names(
    tensors: Mapping[str, LazyTensor], config: ModelConfig
) -> Mapping[str, LazyTensor]:
    """The tensors with such adapters as Megatron-Bridge has them; others as they are.

    MappingError where there are several adapters, or rows that the base would not have so.
    """
    matched = {name: one for name in tensors if (one := _FACTOR.fullmatch(name))}
    if not matched:
        return tensors
    flags = read_numbers(config).flags
    _require_one(matched)
    if "output_gate" in flags:
        raise MappingError(
            f"adapters of ms-swift on a {config.model_type}, whose rows it orders by head",
            hint="Have ms-swift export them, or fuse them itself (`--merge_lora true`).",
        )
    found, faults = {}, []
    for name, tensor in tensors.items():
        one = matched.get(name)
        if one is None:
            found[name] = tensor
            continue
        own = f"{one['module']}.adapter.linear_{_PARTS[one['part']]}.weight"
        cut = one["part"] == "B" and one["module"].endswith(".linear_fc1")
        try:
            gated = cut and "ungated" not in flags and ".experts." not in name
            found[own] = _join_gate(tensor) if gated else tensor
        except ValueError as error:
            faults.append(f"{name}: {error}")
    if faults:
        raise MappingError("adapters whose rows are not those of ranks", faults)
    return found


def _require_one(matched: Mapping[str, re.Match[str]]) -> None:
    names = sorted({one["adapter"] for one in matched.values()})
    if len(names) > 1:
        raise MappingError(f"{len(names)} adapters in one checkpoint: {', '.join(names)}", names)


def _join_gate(left: LazyTensor) -> LazyTensor:
    """All rows of the gate, then all others, of a B [..., rows, rank] of any depth."""
    if len(left.shape) > 2:
        return stack([_join_gate(left.select(0, n)) for n in range(left.shape[0])])
    half, odd = divmod(left.shape[0] if left.shape else 1, 2)
    return cat(share_rows(left, (half, half + odd)), 0)
