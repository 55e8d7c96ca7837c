"""Checkpoints of Megatron with LoRA adapters: fused into the weights beside them, or into a base.

A base is a Hugging Face model: brought into Megatron's form, updated there, and taken back, all
of it without reading anything.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace

from ckpt_tool.common.errors import MappingError, UsageError
from ckpt_tool.mapping.config import ModelConfig
from ckpt_tool.mapping.hub.names import by_family
from ckpt_tool.mapping.lora.megatron import (
    fused_megatron,
    has_megatron_adapters,
    split_off,
    without_adapters,
)
from ckpt_tool.mapping.lora.options import LoraNote, LoraOptions
from ckpt_tool.mapping.lora.settings import read_settings
from ckpt_tool.mapping.megatron.convert import to_megatron
from ckpt_tool.mapping.megatron.model import Model, model_of
from ckpt_tool.mapping.megatron.rules import rules_for
from ckpt_tool.operations.lora import adapter_files, places, refuse_base, refuse_options
from ckpt_tool.operations.proofs import tied_head
from ckpt_tool.operations.resolved import Resolved
from ckpt_tool.readers.base import Checkpoint
from ckpt_tool.readers.huggingface import open_sound_model
from ckpt_tool.tensors.lazy import LazyTensor

_LAYER = re.compile(r"decoder\.layers\.(\d+)\.")


def resolve_megatron(
    checkpoint: Checkpoint,
    options: LoraOptions,
    config: ModelConfig,
    jobs: int,
    tied: bool | None = None,
) -> tuple[Resolved, Model]:
    """What becomes of the adapters, and the model by its names on the Hub.

    Adapters that were saved alone are fused into ``options.base``, whose config is ``config``.
    ``tied`` as in :func:`~ckpt_tool.mapping.megatron.model.model_of`, which says what is raised, as
    does :func:`~ckpt_tool.operations.lora.resolve`.
    """
    if not has_megatron_adapters(checkpoint):
        refuse_options(checkpoint, options)
        return Resolved(dict(checkpoint)), model_of(checkpoint, config, tied=tied)
    alone = not without_adapters(checkpoint.entries)
    _refuse(checkpoint, options, alone)
    settings = read_settings(places(checkpoint), options.alpha)
    given: dict[str, LazyTensor] = dict(checkpoint)
    base = None
    if alone and options.base is not None:
        base = open_sound_model(options.base)
        _require_all_layers(checkpoint, config)
        given |= _in_megatron(base, config, given, jobs)
    tensors, ranks = fused_megatron(given, settings)
    mode = options.mode or "fuse"
    rank = Counter(ranks).most_common(1)[0][0]
    note = LoraNote(mode, len(ranks), rank, settings.alpha, settings.source)
    model = model_of(tensors, config, tied=tied)
    if mode == "fuse":
        return Resolved(tensors, note, base=base), model
    adapters = split_off(model.tensors, config)
    note = replace(note, num_modules=len(adapters.modules))
    if mode == "split":
        model = model_of(without_adapters(given), config, tied=tied)
        adapters = replace(adapters, base=model.tensors)
    files = adapter_files("" if alone and mode == "split" else None, adapters, settings, config)
    return Resolved(tensors, replace(note, adapter=files.folder or "."), files, base=base), model


def _refuse(checkpoint: Checkpoint, options: LoraOptions, alone: bool) -> None:
    if alone and options.base is None:
        raise UsageError(
            f"{checkpoint.path}: LoRA adapters of Megatron alone, without their base model",
            hint="Name the Hugging Face model that they were trained on with --base MODEL.",
        )
    if not alone:
        refuse_base(options)


def _require_all_layers(checkpoint: Checkpoint, config: ModelConfig) -> None:
    """MappingError where layers have no adapter.

    verl 0.7 saves the adapters of the first chunk only where a stage of the pipeline has several.
    """
    matched = (_LAYER.match(name) for name in checkpoint)
    numbers = {int(found[1]) for found in matched if found is not None}
    count = config.text.get("num_hidden_layers")
    if numbers and isinstance(count, int) and numbers != set(range(count)):
        absent = [f"decoder.layers.{number}" for number in range(count) if number not in numbers]
        extra = [f"decoder.layers.{number}" for number in sorted(numbers) if number >= count]
        raise MappingError(
            f"{checkpoint.path}: adapters of {len(numbers)} layers, the base has {count}",
            absent + extra,
            hint="With virtual pipeline stages verl 0.7 saves the first chunk only: the rest is"
            " lost.",
        )


def _in_megatron(
    base: Checkpoint, config: ModelConfig, adapters: Mapping[str, LazyTensor], jobs: int
) -> dict[str, LazyTensor]:
    """The base by Megatron's names, its layers stacked as those of the adapters are."""
    tensors = dict(base)
    tensors = by_family(tensors, config) or tensors
    head = tied_head(base, config, None, jobs)
    if head.dropped:
        tensors.pop(head.name)
    layout = "per-layer" if any(map(_LAYER.match, adapters)) else "stacked"
    stored = to_megatron(tensors, rules_for(config, tensors, layout))
    return {name: sharded.tensor() for name, sharded in stored.items()}
