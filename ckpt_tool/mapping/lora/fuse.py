"""LoRA adapters into the weights that they update, and into the files that peft loads.

The update of a weight [out, in] is ``scale * B @ A``; of an embedding [num, dim], and of the
[in, out] weights of transformers' ``Conv1D`` (GPT-2), it is that transposed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ckpt_tool.common.errors import MappingError
from ckpt_tool.common.wording import count_noun
from ckpt_tool.mapping.families.table import find_family
from ckpt_tool.mapping.lora.names import Adapters, Module
from ckpt_tool.mapping.lora.settings import Settings
from ckpt_tool.tensors.lazy import LazyTensor
from ckpt_tool.tensors.lowrank import update_matrix

Tensors = dict[str, LazyTensor]


def fuse_adapters(
    base: Mapping[str, LazyTensor], adapters: Adapters, settings: Settings, family: str
) -> Tensors:
    """``base`` with the updates of ``adapters`` in it, and what was trained whole in its place.

    ``family``: the model type, empty where it is unknown. MappingError lists adapters without a
    base weight, and those whose shapes or ranks are not what was said.
    """
    result, faults = dict(base), list(find_rank_faults(adapters, settings))
    transposed = _find_transposed(base, adapters, settings, family)
    for module in adapters.modules.values():
        weight = base.get(module.weight)
        if weight is None:
            faults.append(f"{module.name}: the model has no {module.weight}")
            continue
        try:
            result[module.weight] = _update(weight, module, settings, module.name in transposed)
        except ValueError as error:
            faults.append(f"{module.name}: {error}")
    for name, tensor in adapters.trained_whole().items():
        if name in base and base[name].shape != tensor.shape:
            expected = f"{list(tensor.shape)}, expected {list(base[name].shape)}"
            faults.append(f"{name}: trained whole with shape {expected}")
        result[name] = tensor
    if faults:
        raise MappingError(
            f"{count_noun(len(faults), 'problem')} in fusing the LoRA adapters", faults
        )
    return result


def find_rank_faults(adapters: Adapters, settings: Settings) -> Iterator[str]:
    """Modules whose rank is not the one that the settings say."""
    for module in adapters.modules.values():
        expected = settings.expected_rank(module.name)
        if expected not in (None, module.rank):
            yield f"{module.name}: rank {module.rank} by its shapes, {expected} by its settings"


def name_for_peft(adapters: Adapters) -> Tensors:
    """The adapters by the names that they have in ``adapter_model.safetensors``."""
    found: Tensors = {}
    for module in adapters.modules.values():
        stem = f"base_model.model.{module.name}"
        kind, end = ("lora_embedding_", "") if module.is_embedding else ("lora_", ".weight")
        found[f"{stem}.{kind}A{end}"] = module.a
        found[f"{stem}.{kind}B{end}"] = module.b
        if module.magnitude is not None:
            found[f"{stem}.lora_magnitude_vector"] = module.magnitude
    whole = adapters.trained_whole().items()
    return found | {f"base_model.model.{name}": tensor for name, tensor in whole}


def make_peft_config(
    adapters: Adapters, settings: Settings, family: str, task_type: str | None
) -> dict[str, Any]:
    """``adapter_config.json``: the checkpoint's own, else what the tensors and settings say.

    Biases that were trained along are in the base model, and so is what an initialisation such as
    PiSSA took out of it: neither must happen again when the adapter is loaded.
    """
    rank = settings.rank or adapters.rank or 8
    others = {m.name: m.rank for m in adapters.modules.values() if m.rank != rank}
    made = {
        "peft_type": "LORA",
        "task_type": settings.task_type or task_type,
        "base_model_name_or_path": None,
        "r": rank,
        "rank_pattern": others,
        "alpha_pattern": {},
        "target_modules": _choose_targets(adapters),
        "modules_to_save": sorted(adapters.saved) or None,
        "use_dora": any(module.magnitude is not None for module in adapters.modules.values()),
        "use_rslora": False,
        "fan_in_fan_out": bool(_find_transposed(adapters.base, adapters, settings, family)),
        "lora_dropout": 0.0,
    }
    fixed = {
        "lora_alpha": int(settings.alpha) if settings.alpha.is_integer() else settings.alpha,
        "bias": "none",
        "init_lora_weights": True,
        "inference_mode": True,
    }
    return made | settings.config | fixed


def _update(weight: LazyTensor, module: Module, settings: Settings, transposed: bool) -> LazyTensor:
    scale = settings.scale(module.name, module.rank)
    if not (module.is_embedding or transposed):
        return update_matrix(weight, module.b, module.a, scale, module.magnitude)
    if module.magnitude is not None:
        kind = "an embedding" if module.is_embedding else "a weight that is [in, out]"
        raise ValueError(f"DoRA of {kind} is not supported; let peft merge it")
    return update_matrix(weight, module.a.transpose(0, 1), module.b.transpose(0, 1), scale)


def _find_transposed(
    base: Mapping[str, LazyTensor], adapters: Adapters, settings: Settings, family: str
) -> set[str]:
    """Modules whose weights are [in, out]: their shapes tell, but for square ones."""
    linear = [m for m in adapters.modules.values() if not m.is_embedding and m.weight in base]
    shapes = {m.name: (m.b.shape[0], m.a.shape[1]) for m in linear}
    square = {name for name, (out, into) in shapes.items() if out == into}
    found = {
        module.name
        for module in linear
        if module.name not in square and base[module.weight].shape == shapes[module.name][::-1]
    }
    if found or settings.fan_in_fan_out or find_family(family).conv1d:
        found |= square
    return found


def _choose_targets(adapters: Adapters) -> list[str]:
    """``target_modules`` that select the adapted ones and no others.

    The last part of a name, where all modules of the model that end so are adapted; else all of it.
    """
    chosen = set()
    known = {name.removesuffix(".weight") for name in adapters.base if name.endswith(".weight")}
    for name in adapters.modules:
        last = name.rpartition(".")[2]
        alike = {other for other in known if other.rpartition(".")[2] == last}
        chosen.add(last if alike and alike <= adapters.modules.keys() else name)
    return sorted(chosen)
