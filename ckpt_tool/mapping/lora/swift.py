"""LoRA adapters as ms-swift saves them in ``torch_dist``: alone, by peft's names of modules.

Those become Megatron-Bridge's. B of a first layer with a gate has the gate's and the other rows of
one tensor-parallel rank after the other, where Megatron-Bridge's has all rows of the gate first.
Experts are not cut that way. Sources: ``tuners/lora.py`` of mcore_bridge 1.6;
``_filter_adapter_state_dict`` in ``megatron/utils/megatron_lm_utils.py`` of ms-swift 4.6.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from ckpt_tool.common.errors import MappingError
from ckpt_tool.common.wording import count_noun
from ckpt_tool.mapping.config import ModelConfig
from ckpt_tool.mapping.lora.part_rows import share_rows
from ckpt_tool.mapping.megatron.numbers import read_numbers
from ckpt_tool.tensors.lazy import LazyTensor, cat, stack

_FACTOR = re.compile(r"(?P<module>.+)\.lora_(?P<part>[AB])\.(?P<adapter>\w+)\.weight")
#: What is trained whole beside adapters, and what it was before.
_WHOLE = re.compile(r"\.(modules_to_save\.\w+|original_module)\.")
_PARTS = {"A": "in", "B": "out"}
_ATTENTION = ".self_attention."
#: Of Qwen3.5's module of transformers, which nobody else has in attention's place.
_PARTS_OF_MODULE = {"in_proj_qkv", "in_proj_z", "in_proj_b", "in_proj_a"}


def is_factor(name: str) -> bool:
    """Whether a tensor of Megatron is A or B of such an adapter."""
    return _FACTOR.fullmatch(name) is not None


def is_beside(name: str) -> bool:
    """Whether it is a module that was trained whole beside such adapters, or what it was before."""
    return _WHOLE.search(name) is not None


def list_spellings(names: Iterable[str]) -> list[str]:
    """Weights by whose names ms-swift's gated layers are known, of a model with such adapters.

    Their rows are by head, so that a base has to be brought into the same order.
    """
    found = [one for one in map(_FACTOR.fullmatch, names) if one]
    modules = {one["module"].rpartition(_ATTENTION)[2] for one in found}
    if modules & _PARTS_OF_MODULE:
        return [f"{_ATTENTION}norm.weight"]
    linear = modules & {"in_proj", "in_proj_qkvz", "in_proj_ba"}
    return [f"{_ATTENTION}{module}.weight" for module in linear or ["in_proj"]] if found else []


def use_bridge_names(
    tensors: Mapping[str, LazyTensor], config: ModelConfig
) -> Mapping[str, LazyTensor]:
    """The tensors with such adapters as Megatron-Bridge has them; others as they are.

    MappingError where there are several adapters, modules that were trained whole beside them, or
    rows that no ranks would have.
    """
    matched = {name: one for name in tensors if (one := _FACTOR.fullmatch(name))}
    if not matched:
        return tensors
    flags = read_numbers(config).flags
    _require_one(matched)
    _refuse_whole(tensors)
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


def _refuse_whole(names: Iterable[str]) -> None:
    whole = list(filter(is_beside, names))
    if whole:
        raise MappingError(
            f"{count_noun(len(whole), 'tensor')} of modules that were trained whole beside adapters"
            " (modules_to_save), which are not read from Megatron's checkpoints",
            whole,
            hint="Let ms-swift merge them into its model and save that, then merge what it saved;"
            " or train without modules_to_save.",
        )


def _join_gate(left: LazyTensor) -> LazyTensor:
    """All rows of the gate, then all others, of a B [..., rows, rank] of any depth."""
    if len(left.shape) > 2:
        return stack([_join_gate(left.select(0, n)) for n in range(left.shape[0])])
    half, odd = divmod(left.shape[0] if left.shape else 1, 2)
    return cat(share_rows(left, (half, half + odd)), 0)
