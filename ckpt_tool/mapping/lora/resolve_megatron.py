"""Checkpoints of Megatron with LoRA adapters: fused into the weights beside them, or into a base.

A base is a Hugging Face model: brought into Megatron's form, updated there, and taken back, all
of it without reading anything.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from ckpt_tool.common.errors import MappingError, UsageError
from ckpt_tool.common.wording import count_noun
from ckpt_tool.mapping.config import ModelConfig
from ckpt_tool.mapping.hub.form import HubModel, Tensors
from ckpt_tool.mapping.lora.megatron import (
    drop_adapters,
    fuse_megatron,
    has_megatron_adapters,
    split_off,
)
from ckpt_tool.mapping.lora.options import LoraNote, LoraOptions
from ckpt_tool.mapping.lora.resolve import Place, make_adapter_files, refuse_base, refuse_options
from ckpt_tool.mapping.lora.settings import read_settings
from ckpt_tool.mapping.lora.swift import list_spellings, use_bridge_names
from ckpt_tool.mapping.megatron.convert import restore_model, to_megatron
from ckpt_tool.mapping.megatron.gemma4_names import name_modules
from ckpt_tool.mapping.megatron.keys import strip_wrappers
from ckpt_tool.mapping.megatron.numbers import require_rows
from ckpt_tool.mapping.megatron.rules import make_rules, spell_as
from ckpt_tool.tensors.lazy import LazyTensor

#: The modules of layers, by the numbers of these.
Layers = dict[int, set[str]]

#: How many layers without adapters are named.
_LISTED = 1_000
#: A module with weights or adapters: its layer, and what it is called there.
_MODULE = re.compile(
    r"decoder\.layers\.(?P<layer>\d{1,9})\.(?P<module>.+?)\.(?:adapter\..+|weight(?:\.\w+)?)"
)


def resolve_megatron(
    model: HubModel,
    base: HubModel | None,
    options: LoraOptions,
    place: Place,
    tied: bool | None = None,
) -> HubModel:
    """The model, whose names are Megatron's, by those on the Hub, its adapters as asked for.

    Adapters that were saved alone are fused into ``base``, which has the same config. ``tied`` as
    in :func:`~ckpt_tool.mapping.megatron.rules.infer_rules`. Raises what finding the model and
    :func:`~ckpt_tool.mapping.lora.resolve.resolve_adapters` do.
    """
    config = model.config
    assert config is not None, "what Megatron's tensors are is said by a config"
    tensors = dict(use_bridge_names(model.tensors, config))
    if not has_megatron_adapters(tensors):
        refuse_options(place.path, options)
        return restore_model(tensors, config, tied=tied)
    plain = drop_adapters(tensors)
    _refuse(place.path, options, alone=not plain)
    settings = read_settings(place.folders, options.alpha, place.named)
    given = tensors
    if base is not None:
        tensors, spelled = strip_wrappers(tensors), list_spellings(model.tensors)
        given = tensors | _bring_into_megatron(base, config, tensors, place, spelled)
    updated, ranks = fuse_megatron(given, settings)
    found = restore_model(updated, config, tied=tied)
    mode = options.mode or "fuse"
    rank = Counter(ranks).most_common(1)[0][0]
    note = LoraNote(mode, len(ranks), rank, settings.alpha, settings.source)
    if mode == "fuse":
        return replace(found, lora=note)
    adapters = split_off(found.tensors, config)
    if mode == "split":
        plain_model = restore_model(drop_adapters(given), config, tied=tied)
        found = replace(plain_model, copies=found.copies)
        adapters = replace(adapters, base=found.tensors)
    folder = None if plain or mode == "both" else ""
    files = make_adapter_files(folder, adapters, settings, config)
    note = replace(note, num_modules=len(adapters.modules), adapter=files.folder or ".")
    return replace(found, lora=note, adapter=files)


def _refuse(path: Path, options: LoraOptions, *, alone: bool) -> None:
    if alone and options.base is None:
        raise UsageError(
            f"{path}: LoRA adapters of Megatron alone, without their base model",
            hint="Name the Hugging Face model that they were trained on with `lora.base=MODEL`.",
        )
    if not alone:
        refuse_base(options)


def _require_all_layers(path: Path, adapters: Layers, base: Layers, step: int) -> None:
    """MappingError where a layer has no adapter, and what adapters of other layers are of.

    verl 0.7 saves the adapters of the first chunk only where a stage of the pipeline has several.
    ``step``: how many layers of Megatron's are one of the config.
    """
    adapted = set().union(*adapters.values())
    having = {layer // step for layer, modules in base.items() if modules & adapted}
    found = {layer // step for layer in adapters}
    absent = [f"decoder.layers.{layer}" for layer in sorted(having - found)]
    extra = [f"decoder.layers.{layer}" for layer in sorted(adapters) if layer not in base]
    if absent or extra:
        raise MappingError(
            f"{path}: adapters of {count_noun(len(found), 'layer')}, the base has {len(having)}",
            absent[:_LISTED] + extra,
            hint="With virtual pipeline stages verl 0.7 saves the first chunk only: the rest is"
            " lost.",
        )


def _bring_into_megatron(
    base: HubModel,
    config: ModelConfig,
    adapters: Mapping[str, LazyTensor],
    place: Place,
    spelled: Iterable[str],
) -> Tensors:
    """The base by Megatron's names, its layers stacked as those of the adapters are.

    ``spelled``: weights by whose names another trainer's layers are known, if they are its.
    """
    family = require_rows(config)
    numbered = _list_layers(adapters, family.around.prefix)
    hybrid = not family.is_patterned and _are_hybrid(numbered, config)
    layout = "per-layer" if numbered else "stacked"
    if family.is_patterned or hybrid:
        layout = "hybrid"
    rules = spell_as(make_rules(config, base.tensors, layout), list(spelled))
    if "by_kind" in rules.numbers.flags:
        experts = bool(rules.numbers.moe)
        rules = replace(rules, bindings=name_modules(rules.bindings, adapters, experts=experts))
    stored = to_megatron(base.tensors, rules)
    if numbered and not family.is_patterned:
        layers = _list_layers(stored, family.around.prefix)
        _require_all_layers(place.path, numbered, layers, 2 if hybrid else 1)
    return {name: tiled.tensor() for name, tiled in stored.items()}


def _list_layers(names: Iterable[str], prefix: str) -> Layers:
    """The modules of each layer that has a number, by these names of weights or adapters."""
    found: Layers = {}
    for name in names:
        matched = _MODULE.fullmatch(name.removeprefix(prefix))
        if matched is not None:
            found.setdefault(int(matched["layer"]), set()).add(matched["module"])
    return found


def _are_hybrid(adapters: Layers, config: ModelConfig) -> bool:
    """Whether the adapters are of a HybridModel: attention and the MLP of a layer are two there.

    Then some number is beyond the config's layers, and even ones have attention alone, odd ones an
    MLP.
    """
    layers = config.text.get("num_hidden_layers")
    if not isinstance(layers, int):
        return False
    kinds = ("self_attention.", "mlp.")
    apart = all(
        module.startswith(kinds[layer % 2]) for layer, each in adapters.items() for module in each
    )
    return apart and layers <= max(adapters, default=-1) < 2 * layers
