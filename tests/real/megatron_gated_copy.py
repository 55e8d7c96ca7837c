"""The plain way of Qwen3-Next's and Qwen3.5's tensors into megatron-core's, for `megatron_copy`.

How transformers' own forward takes its fused tensors apart, and how megatron-core's does.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

HuggingFaceConfig = Mapping[str, Any]
State = dict[str, Tensor]


def delta_net(hf: State, config: HuggingFaceConfig) -> State:
    """The state of a layer's attention, named from there on. Takes its tensors out of `hf`."""
    keys, values = config["linear_num_key_heads"], config["linear_num_value_heads"]
    key, value = config["linear_key_head_dim"], config["linear_value_head_dim"]
    own = {
        name.removeprefix("linear_attn."): hf.pop(name)
        for name in list(hf)
        if "linear_attn" in name
    }
    if "in_proj_qkvz.weight" in own:
        wide = values // keys * value
        each = (
            own.pop("in_proj_qkvz.weight").unflatten(0, (keys, -1)).split([key, key, wide, wide], 1)
        )
        gates = own.pop("in_proj_ba.weight").unflatten(0, (keys, 2, -1)).unbind(1)
        parts = [part.flatten(0, 1) for part in (*each, *gates)]
    else:
        parts = [own.pop(f"in_proj_{name}.weight") for name in ("qkv", "z", "b", "a")]
    return {
        "in_proj.weight": torch.cat(parts),
        "in_proj.layer_norm_weight": hf.pop("input_layernorm.weight"),
        "out_norm.weight": own.pop("norm.weight") - 1,
        **own,
    }


def gated_query(query: Tensor, config: HuggingFaceConfig) -> Tensor:
    """The rows of queries and gates by group: all of its query heads, then all of its gates."""
    groups = config["num_key_value_heads"]
    each = query.unflatten(0, (groups, -1, 2, config["head_dim"]))
    return each.transpose(1, 2).reshape(query.shape)


def beside_prediction(hf: State) -> State:
    """What is beside the layer that predicts further."""
    names = {
        "pre_fc_norm_embedding": "enorm",
        "pre_fc_norm_hidden": "hnorm",
        "fc": "eh_proj",
        "norm": "final_layernorm",
    }
    return {f"{own}.weight": hf.pop(f"mtp.{name}.weight") for name, own in names.items()}
