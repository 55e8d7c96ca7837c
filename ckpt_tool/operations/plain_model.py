"""A model of the Hub as Megatron takes it: without what its models lack, scales, and repeats."""

from __future__ import annotations

from dataclasses import replace

from ckpt_tool.common.errors import MappingError
from ckpt_tool.common.parallel import Team
from ckpt_tool.mapping.casting import choose_dtype
from ckpt_tool.mapping.config import ModelConfig
from ckpt_tool.mapping.hub.form import HubModel, Tensors
from ckpt_tool.mapping.hub.saved_names import use_published_names
from ckpt_tool.mapping.megatron.numbers import require_rows
from ckpt_tool.mapping.megatron.rules import Rules, make_rules
from ckpt_tool.mapping.megatron.towers import leave_out_absent
from ckpt_tool.mapping.quantised import (
    dequantise_weights,
    is_quantised,
    list_kinds,
    set_aside_cache_scales,
)
from ckpt_tool.operations.tied_head import are_equal_together
from ckpt_tool.tensors.dtypes import BFLOAT16, DType


def has_scales(tensors: Tensors) -> bool:
    """Whether weights are quantised, so that scales are to be applied."""
    return is_quantised(tensors) or bool(list_kinds(tensors))


def make_plain(model: HubModel, config: ModelConfig, dtype: DType) -> HubModel:
    """The model without what Megatron has not, scales of quantised weights applied, as ``dtype``.

    MappingError lists quantised weights that cannot be read.
    """
    model = leave_out_absent(model, require_rows(config).around)
    tensors, dropped = set_aside_cache_scales(use_published_names(model.tensors, config))
    if has_scales(tensors):
        tensors = dequantise_weights(tensors, config, dtype)
    return replace(model, tensors=tensors, dropped=model.dropped | dropped)


def drop_repeats(model: HubModel, rules: Rules, team: Team) -> HubModel:
    """Leave out what layers for multi-token prediction repeat of the model, where it is equal.

    Every process of the team compares its share.
    """
    tensors, dropped, tied = dict(model.tensors), dict(model.dropped), dict(model.tied)
    faults = []
    for repeat in rules.repeats:
        if repeat.hf not in tensors or repeat.of not in tensors:
            continue
        if are_equal_together(tensors[repeat.hf], tensors[repeat.of], team):
            dropped[repeat.hf] = f"equal to {repeat.of}, which Megatron uses in its place"
            tied[repeat.hf] = repeat.of
            tensors.pop(repeat.hf)
        else:
            faults.append(f"{repeat.hf}: differs from {repeat.of}")
    if faults:
        raise MappingError(
            "Megatron has one embedding and one head, this model has several that differ", faults
        )
    return replace(model, tensors=tensors, dropped=dropped, tied=tied)


def take_base(base: HubModel, team: Team) -> tuple[HubModel, Tensors]:
    """The base of Megatron's adapters as Megatron takes it, and what no model of Megatron's has.

    Every process of the team calls this. Raises what ``to-mcore`` raises of a model.
    """
    config = base.config
    assert config is not None, "a base is a model folder, which has a config"
    dtype = choose_dtype("auto", config) or BFLOAT16
    plain = team.world.each(lambda: make_plain(base, config, dtype))
    rules = team.world.each(lambda: make_rules(config, plain.tensors))
    absent = {name: base.tensors[name] for name in plain.dropped if name in base.tensors}
    return drop_repeats(plain, rules, team), absent
