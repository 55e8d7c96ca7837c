"""Adapters as peft stores them: ``adapter_model.safetensors`` and ``adapter_config.json``."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ckpt_tool.mapping.lora.adapters import Adapters
from ckpt_tool.mapping.lora.checked import find_taken_out
from ckpt_tool.mapping.lora.fuse import find_transposed
from ckpt_tool.mapping.lora.patterns import compile_pattern
from ckpt_tool.mapping.lora.settings import Settings, ends_with
from ckpt_tool.mapping.lora.tokens import list_rows
from ckpt_tool.tensors.lazy import LazyTensor

Tensors = dict[str, LazyTensor]


def name_for_peft(adapters: Adapters, settings: Settings) -> Tensors:
    """The adapters by the names that they have in ``adapter_model.safetensors``."""
    found: Tensors = {}
    for module in adapters.modules.values():
        stem = f"base_model.model.{module.wrapper}"
        kind, end = ("lora_embedding_", "") if module.is_embedding else ("lora_", ".weight")
        found[f"{stem}.{kind}A{end}"] = module.a
        found[f"{stem}.{kind}B{end}"] = module.b
        if module.bias is not None:
            found[f"{stem}.lora_B.bias"] = module.bias
        if module.magnitude is not None:
            found[f"{stem}.lora_magnitude_vector"] = module.magnitude
    for name, rows in list_rows(adapters, settings).items():
        found[f"base_model.model.{name}.token_adapter.trainable_tokens_delta"] = rows
    whole = {_wrap(name, adapters): tensor for name, tensor in adapters.trained_whole().items()}
    return found | {f"base_model.model.{name}": tensor for name, tensor in whole.items()}


def _wrap(name: str, adapters: Adapters) -> str:
    """The name of a parameter that was saved beside the adapter of its module."""
    module, _, parameter = name.rpartition(".")
    inside = name in adapters.beside and module in adapters.modules
    return f"{module}.base_layer.{parameter}" if inside else name


def make_peft_config(
    adapters: Adapters, settings: Settings, family: str, task_type: str | None
) -> dict[str, Any]:
    """``adapter_config.json``: the checkpoint's own, else what the tensors and settings say.

    Biases that were trained along are in the base model, where there is one, and so is what an
    initialisation such as PiSSA took out of it: neither must happen again when the adapter is
    loaded. An adapter alone is for the model as it was before. What selects the modules is kept
    only where peft would select those that are here.
    """
    rank = settings.rank or adapters.rank or 8
    others = {m.key: m.rank for m in adapters.modules.values() if m.rank != rank}
    made = {
        "peft_type": "LORA",
        "task_type": settings.task_type or task_type,
        "base_model_name_or_path": None,
        "r": rank,
        "rank_pattern": others,
        "alpha_pattern": {},
        "modules_to_save": sorted(adapters.saved) or None,
        "use_dora": any(module.magnitude is not None for module in adapters.modules.values()),
        "use_rslora": False,
        "lora_bias": any(module.bias is not None for module in adapters.modules.values()),
        "fan_in_fan_out": bool(find_transposed(adapters.base, adapters, settings, family)),
        "lora_dropout": 0.0,
    }
    fixed = {
        "lora_alpha": int(settings.alpha) if settings.alpha % 1 == 0 else settings.alpha,
        "bias": settings.config.get("bias", "all") if _has_biases(adapters) else "none",
        "init_lora_weights": (None if adapters.base else find_taken_out(settings.config)) or True,
        "inference_mode": True,
    }
    return made | settings.config | fixed | _choose_targets(adapters, settings)


def _has_biases(adapters: Adapters) -> bool:
    return any(name.endswith(".bias") for name in adapters.beside)


def _choose_targets(adapters: Adapters, settings: Settings) -> dict[str, Any]:
    """What selects the adapted modules and parameters: as the checkpoint says it, if that does."""
    modules = [m.name for m in adapters.modules.values() if not m.by_parameter]
    parameters = [m.weight for m in adapters.modules.values() if m.by_parameter]
    known = {name.removesuffix(".weight") for name in adapters.base if name.endswith(".weight")}
    chosen: dict[str, Any] = {}
    if not _selects(settings, modules, known):
        chosen["target_modules"] = _shorten(modules, known, parts=1)
        chosen |= dict.fromkeys(("layers_to_transform", "layers_pattern", "exclude_modules"))
    if sorted(filter(settings.targets, parameters)) != sorted(parameters) or not parameters:
        chosen["target_parameters"] = _shorten(parameters, set(adapters.base), parts=2) or None
    stacks = [module for module in adapters.modules.values() if module.experts > 1]
    if stacks and "peft_version" not in settings.config:
        chosen["peft_version"] = "0.18.0" if stacks[0].turned else "0.19.0"
    return chosen


def _selects(settings: Settings, modules: Iterable[str], known: set[str]) -> bool:
    """Whether ``target_modules`` of the checkpoint are these modules, and no other that is known.

    As peft matches them: a text is a regular expression of a whole name, of a list each is a name
    or the end of one. ``all-linear`` says nothing of which these are.
    """
    said = settings.config.get("target_modules")
    if said == "all-linear" or not isinstance(said, (str, list)):
        return False

    pattern = compile_pattern(said) if isinstance(said, str) else None

    def matches(name: str) -> bool:
        if isinstance(said, list):
            return any(ends_with(name, end) for end in said)
        return pattern is not None and pattern.matches(name)

    narrowed = settings.config.get("layers_to_transform") is not None
    narrowed = narrowed or bool(settings.config.get("exclude_modules"))
    adapted = set(modules)
    others = set() if narrowed else {name for name in known - adapted if matches(name)}
    return all(map(matches, adapted)) and not others


def _shorten(names: Iterable[str], known: set[str], *, parts: int) -> list[str]:
    """Ends of names that select these and no others that are known, else whole names."""
    names = list(names)
    chosen = set()
    for name in names:
        end = ".".join(name.split(".")[-parts:])
        alike = {other for other in known if ends_with(other, end)}
        chosen.add(end if alike and alike <= set(names) else name)
    return sorted(chosen)
