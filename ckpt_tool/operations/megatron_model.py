"""A checkpoint of Megatron -> the model by its names on the Hub: a row of `hub_model`'s table.

No model is built and no process group is needed: the family's table, which ``to-mcore`` uses
forwards, says which part of which tensor each of Hugging Face's is.
"""

from __future__ import annotations

from dataclasses import replace

from ckpt_tool.common.errors import UsageError
from ckpt_tool.mapping.hub.form import HubModel
from ckpt_tool.mapping.lora.resolve import refuse_options
from ckpt_tool.mapping.lora.resolve_megatron import resolve_megatron
from ckpt_tool.operations.request import Request


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
    if model.config is None:
        refuse_options(checkpoint.path, options.lora)
        return model
    tied = request.heads.tied or None  # a head that is not there cannot be written
    found = resolve_megatron(model, request.base, options.lora, request.place, tied)
    dropped = model.dropped | found.dropped
    return replace(found, dropped=dropped, warnings=model.warnings + found.warnings)
