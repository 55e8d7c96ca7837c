"""LoRA adapters of Megatron-Bridge and NeMo, fused into the weights beside them.

A weight ``M.weight`` [..., out, in] has ``M.adapter.linear_in.weight`` [..., r, in] and
``M.adapter.linear_out.weight`` [..., out, r], with the leading axes of the weight (layers,
experts), without that of experts where these share it; the rows of ``linear_out`` are in the order
of the weight's own, query groups and gate before up included. The update is ``alpha / r *
linear_out @ linear_in``. Of a weight that is several tensors (:mod:`.part_rows`) each has its rows
of B. Source: ``megatron/bridge/peft/{lora,lora_layers,utils}.py``; what 0.3.1 writes was measured.
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
from ckpt_tool.mapping.lora.part_rows import find_parts, share_rows
from ckpt_tool.mapping.lora.settings import Settings
from ckpt_tool.tensors.chunks import Chunk
from ckpt_tool.tensors.lazy import LazyTensor, cat, stack
from ckpt_tool.tensors.lowrank import LowRank, update_matrix

_PART = re.compile(r"(?P<module>.+)\.adapter\.linear_(?P<part>in|out)\.weight(?P<piece>\.\w+)?")

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
            part = matched["part"] + (matched["piece"] or "")
            modules.setdefault(matched["module"], {})[part] = tensors[name]
    require_promised(settings.config, {name: {} for name in sorted(modules)})
    ranks: list[int] = []
    for module, parts in sorted(modules.items()):
        try:
            plain |= _update(plain, module, parts, settings)
            *lead, rank, _ = parts["in"].shape
            ranks += [rank] * prod(lead)
        except ValueError as error:
            faults.append(f"{module}: {error}")
    if faults:
        message = f"{count_noun(len(faults), 'problem')} in fusing the LoRA adapters"
        raise MappingError(message, sorted(faults))
    return plain, ranks


def _update(
    plain: Mapping[str, LazyTensor], module: str, parts: Tensors, settings: Settings
) -> Tensors:
    """The module's weight, or each tensor that it is, with its rows' update."""
    weights = find_parts(plain, module)
    right, lefts = parts.get("in"), _find_lefts(parts, weights)
    missing = ["linear_in"] * (right is None) + ["linear_out"] * (not lefts)
    if right is None or missing:
        raise ValueError(f"no adapter.{missing[0]}.weight")
    if not weights:
        raise ValueError("adapters of no weight in the checkpoint")
    updated = {}
    for part, weight in weights.items():
        left = lefts[part]
        lead = weight.shape[:-2]
        # Experts may have one factor, or both, for all of them.
        fitting = (lead, lead[:-1]) if ".experts." in module else (lead,)
        fit = all(len(one.shape) > 1 and one.shape[:-2] in fitting for one in (left, right))
        if not fit or not left.shape[-1]:
            raise ValueError(
                f"adapters of shapes {list(right.shape)} and {list(left.shape)} for a weight of"
                f" shape {list(weight.shape)}"
            )
        scale = settings.scale(module, left.shape[-1])
        updated[f"{module}.weight{part}"] = _update_each(weight, left, right, scale)
    return updated


def _find_lefts(parts: Tensors, weights: Tensors) -> Tensors:
    """B of each tensor of a weight; nothing where there is none. ValueError where one has none."""
    pieces = {name.removeprefix("out"): t for name, t in parts.items() if name.startswith("out")}
    if not pieces or not weights or "" in weights:
        return {"": pieces[""]} if "" in pieces else {}
    if "" in pieces and len(pieces) == 1:
        counts = [weight.shape[0] for weight in weights.values()]
        return dict(zip(weights, share_rows(pieces[""], counts), strict=True))
    if pieces.keys() != weights.keys():
        found = ", ".join(sorted(pieces)) or "none"
        raise ValueError(f"B of the parts {found}, expected {', '.join(weights)}")
    return pieces


def _update_each(
    weight: LazyTensor, left: LazyTensor, right: LazyTensor, scale: float
) -> LazyTensor:
    """The update of each matrix in a stack of any depth; a factor of fewer is that of several."""
    if len(weight.shape) <= 2:
        return update_matrix(weight, left, right, scale)
    return stack(
        [
            _update_each(weight.select(0, n), _select(left, n), _select(right, n), scale)
            for n in range(weight.shape[0])
        ]
    )


def _select(factor: LazyTensor, number: int) -> LazyTensor:
    return factor.select(0, number) if len(factor.shape) > 2 else factor


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
        factors = _take_factors(parts)
        if factors is None:
            faults.append(name)
            continue
        module = name.removesuffix(".weight")
        modules[module] = Module(module, *factors, wrapper=module)
    if faults:
        raise MappingError(
            f"{count_noun(len(faults), 'weight')} whose adapters peft has no module for",
            faults,
            hint="Fuse them: `lora.mode='fuse'`.",
        )
    return Adapters({}, modules, {})


def _find_updated(tensor: LazyTensor) -> list[Chunk]:
    return [chunk for chunk in tensor.chunks if isinstance(chunk.region.computed, LowRank)]


def _take_factors(parts: Iterable[Chunk]) -> tuple[LazyTensor, LazyTensor] | None:
    """A, and B, of whole rows of updated matrices that share A; None where they are no such."""
    right, rows = None, []
    for part in parts:
        matrix = part.region.computed
        if not isinstance(matrix, LowRank) or part.region.strides != (matrix.shape[1], 1):
            return None
        right = right or matrix.right
        if right is None or matrix.right is not right:
            return None
        size = matrix.shape[1] * matrix.dtype.itemsize
        rows.append(matrix.left.narrow(0, part.region.offset // size, part.box.sizes[0]))
    return None if right is None else (right, cat(rows, 0))
