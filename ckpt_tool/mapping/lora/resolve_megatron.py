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
from ckpt_tool.mapping.megatron.numbers import require_rows
from ckpt_tool.mapping.megatron.rules import make_rules, spell_as
from ckpt_tool.tensors.lazy import LazyTensor

#: How many layers without adapters are named.
_LISTED = 1_000
_LAYER = re.compile(r"decoder\.layers\.(\d{1,9})\.([^.]+)")


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
        _require_all_layers(place.path, tensors, config)
        given = tensors | _bring_into_megatron(base, config, tensors, list_spellings(model.tensors))
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


def _require_all_layers(
    path: Path, adapters: Mapping[str, LazyTensor], config: ModelConfig
) -> None:
    """MappingError where layers have no adapter.

    verl 0.7 saves the adapters of the first chunk only where a stage of the pipeline has several.
    Where layers are one part each, as Nemotron-H's, some have none of what has adapters.
    """
    if require_rows(config).is_patterned:
        return
    numbers = {number for number, _ in _list_parts(adapters)}
    count = config.text.get("num_hidden_layers")
    if not numbers or not isinstance(count, int):
        return
    if _are_hybrid(adapters, config):
        numbers = {number // 2 for number in numbers}
    if len(numbers) != count or max(numbers) >= count:
        some = range(min(count, len(numbers) + _LISTED))
        absent = [f"decoder.layers.{number}" for number in some if number not in numbers]
        extra = [f"decoder.layers.{number}" for number in sorted(numbers) if number >= count]
        raise MappingError(
            f"{path}: adapters of {count_noun(len(numbers), 'layer')}, the base has {count}",
            absent + extra,
            hint="With virtual pipeline stages verl 0.7 saves the first chunk only: the rest is"
            " lost.",
        )


def _bring_into_megatron(
    base: HubModel, config: ModelConfig, adapters: Mapping[str, LazyTensor], spelled: Iterable[str]
) -> Tensors:
    """The base by Megatron's names, its layers stacked as those of the adapters are.

    ``spelled``: weights by whose names another trainer's layers are known, if they are its.
    """
    layout = "per-layer" if any(map(_LAYER.match, adapters)) else "stacked"
    if require_rows(config).is_patterned or _are_hybrid(adapters, config):
        layout = "hybrid"
    rules = spell_as(make_rules(config, base.tensors, layout), list(spelled))
    if "by_kind" in rules.numbers.flags:
        experts = bool(rules.numbers.moe)
        rules = replace(rules, bindings=name_modules(rules.bindings, adapters, experts=experts))
    stored = to_megatron(base.tensors, rules)
    return {name: tiled.tensor() for name, tiled in stored.items()}


def _list_parts(names: Iterable[str]) -> list[tuple[int, str]]:
    """The number of the layer, and which part of one it is, of each name."""
    matched = (_LAYER.match(name) for name in names)
    return [(int(found[1]), found[2]) for found in matched if found is not None]


def _are_hybrid(names: Iterable[str], config: ModelConfig) -> bool:
    """Whether the adapters are of a HybridModel: attention and the MLP of a layer are two there.

    Then some number is beyond the config's layers, and even ones have attention alone, odd ones an
    MLP.
    """
    layers = config.text.get("num_hidden_layers")
    if not isinstance(layers, int):
        return False
    parts = _list_parts(names)
    kinds = ("self_attention", "mlp")
    apart = all(part == kinds[number % 2] for number, part in parts)
    return apart and layers <= max((number for number, _ in parts), default=-1) < 2 * layers
