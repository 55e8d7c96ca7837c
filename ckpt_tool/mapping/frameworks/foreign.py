"""Tensors in a state dict that are no weights of a model, told by their names.

What is computed, or is state of a kernel, is left out. What are weights in a form of somebody
else's is refused by name: it looks like tensors of a model and is none.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace
from typing import NoReturn

from ckpt_tool.common.errors import MappingError
from ckpt_tool.mapping.hub.form import HubModel

#: Names, and why they are not written. Old models have the frequencies of the rotary embedding as
#: a buffer; Transformer Engine keeps scales of fp8 in ``_extra_state``, ModelOpt the ranges of its
#: quantisers beside weights that are not quantised yet.
_LEFT_OUT = {
    re.compile(r"(^|\.)rotary_(pos_)?emb\.inv_freq$"): "computed from the config",
    re.compile(r"(^|\.)_extra_state$"): "state of Transformer Engine's kernels, no weights",
    re.compile(r"_quantizer\._amax$"): "range of ModelOpt's quantisers, no weights",
}
#: FSDP1's flat parameters: of ``use_orig_params=False``, or of a local state dict.
_FLAT = re.compile(r"(^|\.)_?flat_params?(_\d+)?$")
#: What bitsandbytes keeps beside a weight of 4 bits, and of 8.
_BITS = re.compile(
    r"\.(absmax|quant_map|nested_absmax|nested_quant_map|quant_state\.bitsandbytes__\w+"
    r"|SCB|weight_format)$"
)


def set_aside_foreign(model: HubModel) -> HubModel:
    """The model without what is computed; MappingError lists weights in a form of another's."""
    flat, bits = (list(filter(form.search, model.tensors)) for form in (_FLAT, _BITS))
    if flat:
        _refuse_flat(flat)
    if bits:
        _refuse_bits(bits)
    dropped = {
        name: reason
        for name in model.tensors
        for pattern, reason in _LEFT_OUT.items()
        if pattern.search(name)
    }
    if not dropped:
        return model
    kept = {name: tensor for name, tensor in model.tensors.items() if name not in dropped}
    return replace(model, tensors=kept, dropped=model.dropped | sum_up(dropped))


def sum_up(dropped: dict[str, str]) -> dict[str, str]:
    """One line for each kind: every layer has one."""
    kinds: dict[tuple[str, str], list[str]] = {}
    for name, reason in dropped.items():
        kinds.setdefault((name.rpartition(".")[2], reason), []).append(name)
    return {
        names[0] if len(names) == 1 else f"*.{end} ({len(names)})": reason
        for (end, reason), names in kinds.items()
    }


def _refuse_flat(names: Iterable[str]) -> NoReturn:
    raise MappingError(
        "flat parameters of FSDP1 (use_orig_params=False, or LOCAL_STATE_DICT): which weights are"
        " in them, and where, is written nowhere",
        tuple(names),
        hint="Save a SHARDED_STATE_DICT or a FULL_STATE_DICT from the run.",
    )


def _refuse_bits(names: Iterable[str]) -> NoReturn:
    raise MappingError(
        "weights that bitsandbytes has packed (4-bit or 8-bit, as QLoRA trains on): these are no"
        " weights of the model",
        tuple(names),
        hint="Save the adapter alone and fuse it into the model that was not packed with"
        " `lora.base=MODEL`, or write the tensors as they are with `keep_names=True`.",
    )
