"""A checkpoint of Megatron -> the model by its names on the Hub: a row of `hub_model`'s table.

No model is built and no process group is needed: the family's table, which ``to-mcore`` uses
forwards, says which part of which tensor each of Hugging Face's is.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

from ckpt_tool.common.errors import MappingError, UsageError
from ckpt_tool.common.wording import count_noun
from ckpt_tool.mapping.config import ModelConfig
from ckpt_tool.mapping.hub.form import HubModel
from ckpt_tool.mapping.lora.resolve import refuse_options
from ckpt_tool.mapping.lora.resolve_megatron import resolve_megatron
from ckpt_tool.mapping.megatron.masters import is_bucket, is_master, take_masters
from ckpt_tool.mapping.megatron.numbers import require_rows
from ckpt_tool.mapping.megatron.packing import find_forms
from ckpt_tool.operations.options import ModelOptions
from ckpt_tool.operations.request import Request
from ckpt_tool.operations.row_orders import require_known_order, settle_adapters
from ckpt_tool.readers.base import Checkpoint
from ckpt_tool.readers.huggingface import list_weight_names
from ckpt_tool.tensors.equality import Pair, locate_differences

#: How many names a warning lists.
_NAMED = 3


def take_megatron(model: HubModel, request: Request) -> HubModel:
    """The model of Megatron's tensors; as they are where there is no config to explain them.

    MappingError lists all that is missing, unexpected or misshapen.
    """
    checkpoint, options = request.checkpoint, request.options
    if options.names.asked:
        raise UsageError(
            f"{checkpoint.path}: its tensors are named as megatron-core names them, so that there"
            " is nothing to select or to rename",
            hint="Leave out `names.prefix`, `names.select` and `names.rename`.",
        )
    if options.weights == "optimizer":
        model = _take_optimizer(model, checkpoint)
    if model.config is None:
        refuse_options(checkpoint.path, options.lora)
        return model
    require_known_order(checkpoint, model.tensors)
    config = _note_forms(model.config, options)
    tensors = settle_adapters(checkpoint, model.tensors, config)
    model = replace(model, tensors=tensors, config=config)
    tied = request.heads.tied or None  # a head that is not there cannot be written
    found = resolve_megatron(model, request.base, options.lora, request.place, tied)
    found = _drop_copies(found)
    dropped = model.dropped | found.dropped
    tensors = found.tensors if found.is_adapter else found.tensors | request.absent
    warnings = model.warnings + found.warnings
    return replace(found, tensors=tensors, dropped=dropped, warnings=warnings)


def _note_forms(config: ModelConfig, options: ModelOptions) -> ModelConfig:
    """The config with the form of experts that weights on the Hub have.

    Of the model that the run began with, or that fills what is not there; else of what lies beside
    the config, if anything does.
    """
    rows = require_rows(config)
    if not rows.packs_either_way:
        return config
    for folder in (options.lora.base, options.fill_from, config.folder):
        forms = find_forms(rows, list_weight_names(Path(folder))) if folder is not None else None
        if forms:
            return replace(config, forms=forms)
    return config


def _drop_copies(model: HubModel) -> HubModel:
    """The model without what Megatron has for each of several layers, and the Hub once.

    MappingError lists those that are not bit for bit what the first layer has.
    """
    ties = model.ties or {}
    pairs = [Pair(name, tie.copy, tie.original) for name, tie in ties.items()]
    alike = [pair for pair in pairs if pair.left.dtype == pair.right.dtype]
    differing = {pair.label for pair in pairs if pair not in alike}
    differing |= locate_differences(alike, 1, lambda _: None).keys()
    if differing:
        raise MappingError(
            f"{count_noun(len(differing), 'tensor')} of layers for multi-token prediction, which"
            " the Hub has once for all, and which differ",
            [f"{name}: differs from {ties[name].source}" for name in sorted(differing)],
            hint="These layers have been trained apart, which no model on the Hub can be.",
        )
    dropped = {name: f"equal to {tie.source}, which all share" for name, tie in ties.items()}
    return replace(model, ties=None, dropped=model.dropped | dropped)


def _take_optimizer(model: HubModel, checkpoint: Checkpoint) -> HubModel:
    """The model of the optimizer's weights; UsageError where it has none, or nothing explains them.

    What it does not have is the model's own, and said.
    """
    asked = f"{checkpoint.path}: `weights='optimizer'`"
    if not any(map(is_master, model.tensors)):
        raise UsageError(f"{asked}: no weights in an optimizer's state", hint=_explain(checkpoint))
    if model.config is None:
        raise UsageError(
            f"{asked}: no config.json, which says how they are to be put together",
            hint="Name a folder that has it with `config=DIR`.",
        )
    taken = take_masters(model.tensors, model.config)
    dropped = dict(model.dropped)
    for start, count in Counter(name.partition(".")[0] for name in taken.replaced).items():
        dropped[f"{start}.*"] = f"the model's own: {count_noun(count, 'tensor')}"
    warnings = model.warnings
    if taken.kept:
        some = ", ".join(taken.kept[:_NAMED]) + (", ..." if len(taken.kept) > _NAMED else "")
        absent = count_noun(len(taken.kept), "tensor")
        said = f"{absent} that the optimizer does not have: the model's own are taken ({some})"
        warnings = (*warnings, f"{checkpoint.path}: {said}")
    return replace(model, tensors=taken.tensors, dropped=dropped, warnings=warnings)


def _explain(checkpoint: Checkpoint) -> str:
    if any(map(is_bucket, checkpoint.left_out)):
        return (
            "It is saved as flat buckets (dp_reshardable), in an order of the parameters that only"
            " the run knows: have it save with --dist-ckpt-optim-fully-reshardable."
        )
    return "Leave `weights` out: the model's own are taken then."
