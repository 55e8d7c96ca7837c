"""LoRA adapters of Megatron-Bridge and NeMo, fused into the weights beside them.

A weight ``M.weight`` [..., out, in] has ``M.adapter.linear_in.weight`` [..., r, in] and
``M.adapter.linear_out.weight`` [..., out, r], with the leading axes of the weight (layers,
experts); the rows of ``linear_out`` are in the order of the weight's own, query groups and gate
before up included. The update is ``alpha / r * linear_out @ linear_in``. Source:
``megatron/bridge/peft/{lora,lora_layers,utils}.py``; what 0.3.1 writes was measured.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from math import prod
from typing import TypeVar

from ckpt_tool.common.errors import MappingError
from ckpt_tool.common.wording import count_noun
from ckpt_tool.mapping.config import ModelConfig
from ckpt_tool.mapping.lora.adapters import Adapters, Module
from ckpt_tool.mapping.lora.checked import require_promised
from ckpt_tool.mapping.lora.settings import Settings
from ckpt_tool.tensors.chunks import Chunk
from ckpt_tool.tensors.lazy import LazyTensor, cat, stack
from ckpt_tool.tensors.lowrank import LowRank, update_matrix

_PART = re.compile(r"(?P<module>.+)\.adapter\.linear_(?P<part>in|out)\.weight")

T = TypeVar("T")
Tensors = dict[str, LazyTensor]


def has_megatron_adapters(names: Iterable[str]) -> bool:
    """Whether some of these names are of adapters of Megatron."""
    return any(".adapter." in name for name in names)


def drop_adapters(tensors: Mapping[str, T]) -> dict[str, T]:
    """What is not of adapters; nothing where these were saved alone."""
    return {name: tensor for name, tensor in tensors.items() if not has_megatron_adapters([name])}


def fuse_megatron(
    tensors: Mapping[str, LazyTensor], settings: Settings
) -> tuple[Tensors, list[int]]:
    """The tensors without adapters, their updates made; the rank of each updated matrix.

    MappingError lists adapters of other kinds (canonical LoRA, DoRA), also where only the settings
    say so, those without a weight, and those whose shapes do not fit it.
    """
    plain = drop_adapters(tensors)
    modules: dict[str, Tensors] = {}
    faults = []
    for name in tensors.keys() - plain.keys():
        matched = _PART.fullmatch(name)
        if matched is None:
            faults.append(f"{name}: not of plain LoRA; have Megatron-Bridge merge it")
        else:
            modules.setdefault(matched["module"], {})[matched["part"]] = tensors[name]
    require_promised(settings.config, {name: {} for name in sorted(modules)})
    ranks: list[int] = []
    for module, parts in sorted(modules.items()):
        try:
            plain[f"{module}.weight"] = _update(plain, module, parts, settings)
            lead, rank = parts["out"].shape[:-2], parts["out"].shape[-1]
            ranks += [rank] * prod(lead)
        except ValueError as error:
            faults.append(f"{module}: {error}")
    if faults:
        message = f"{count_noun(len(faults), 'problem')} in fusing the LoRA adapters"
        raise MappingError(message, sorted(faults))
    return plain, ranks


def _update(
    plain: Mapping[str, LazyTensor], module: str, parts: Tensors, settings: Settings
) -> LazyTensor:
    missing = [f"linear_{part}" for part in ("in", "out") if part not in parts]
    if missing:
        raise ValueError(f"no adapter.{missing[0]}.weight")
    weight = plain.get(f"{module}.weight")
    if weight is None:
        raise ValueError("adapters of no weight in the checkpoint")
    left, right = parts["out"], parts["in"]
    if not weight.shape[:-2] == left.shape[:-2] == right.shape[:-2]:
        raise ValueError(
            f"adapters of shapes {list(right.shape)} and {list(left.shape)} for a weight of shape"
            f" {list(weight.shape)}"
        )
    return _update_each(weight, left, right, settings.scale(module, left.shape[-1]))


def _update_each(
    weight: LazyTensor, left: LazyTensor, right: LazyTensor, scale: float
) -> LazyTensor:
    """The update of each matrix in a stack of any depth."""
    if len(weight.shape) <= 2:
        return update_matrix(weight, left, right, scale)
    return stack(
        [
            _update_each(weight.select(0, n), left.select(0, n), right.select(0, n), scale)
            for n in range(weight.shape[0])
        ]
    )


def split_off(model: Mapping[str, LazyTensor], config: ModelConfig) -> Adapters:
    """The adapters of peft that make the updates in ``model``, whose names are those on the Hub.

    Of a weight that is rows of an updated matrix, B is those rows of its left factor, and A the
    right one: query, key and value share the A of what they were cut from. MappingError where the
    model's modules are not called on the Hub as in memory.
    """
    found = {name: parts for name, tensor in model.items() if (parts := _find_updated(tensor))}
    faults = [name for name in found if ".experts." in name]
    faults += [name for name in found if "vision_config" in config.raw]
    modules = {}
    for name, parts in found.items():
        matrix = parts[0].region.computed
        right = matrix.right if isinstance(matrix, LowRank) else None
        if not isinstance(matrix, LowRank) or right is None or not _are_whole_rows(parts, matrix):
            faults.append(name)
            continue
        size = matrix.shape[1] * matrix.dtype.itemsize
        rows = [matrix.left.narrow(0, c.region.offset // size, c.box.sizes[0]) for c in parts]
        module = name.removesuffix(".weight")
        modules[module] = Module(module, right, cat(rows, 0), wrapper=module)
    if faults:
        raise MappingError(
            f"{count_noun(len(faults), 'weight')} whose adapters peft has no module for",
            faults,
            hint="Fuse them: `lora.mode='fuse'`.",
        )
    return Adapters({}, modules, {})


def _find_updated(tensor: LazyTensor) -> list[Chunk]:
    return [chunk for chunk in tensor.chunks if isinstance(chunk.region.computed, LowRank)]


def _are_whole_rows(parts: Iterable[Chunk], matrix: LowRank) -> bool:
    return all(
        part.region.computed is matrix and part.region.strides == (matrix.shape[1], 1)
        for part in parts
    )
