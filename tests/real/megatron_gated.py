"""Gated DeltaNet in a real GPTModel on the CPU, and norms that count from zero: Qwen3-Next's.

The layers are megatron-core's own. What it takes from `fla`, which needs a GPU, is torch's here:
the rule that megatron-core has by torch, and a convolution and a norm of a few lines.
"""

from collections.abc import Iterable, Mapping
from copy import copy
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from megatron.core.models.gpt import GPTModel
from megatron.core.tensor_parallel.layers import RowParallelLinear
from megatron.core.transformer.identity_op import IdentityOp
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.torch_norm import WrappedTorchNorm
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.transformer_layer import get_transformer_layer_offset
from torch import Tensor
from torch.nn import functional

from ckpt_tool.plans.checks.megatron_child.cpu import call

HuggingFaceConfig = Mapping[str, Any]
LINEAR = "linear_attention"
_SIZES = (
    "linear_num_key_heads",
    "linear_num_value_heads",
    "linear_key_head_dim",
    "linear_value_head_dim",
    "linear_conv_kernel_dim",
)


def is_gated(hf: HuggingFaceConfig) -> bool:
    return LINEAR in hf.get("layer_types", ())


def list_linear(hf: HuggingFaceConfig) -> set[int]:
    """The layers that have linear attention."""
    return {number for number, kind in enumerate(hf.get("layer_types") or ()) if kind == LINEAR}


def gated_settings(hf: HuggingFaceConfig) -> dict[str, Any]:
    """What a `TransformerConfig` says of it; a list of kinds gives every layer keys of its own."""
    if not is_gated(hf):
        return {}
    return {
        "attention_output_gate": True,
        "linear_attention_freq": [int(kind == LINEAR) for kind in hf["layer_types"]],
        **{name: hf[name] for name in _SIZES},
    }


def put_delta_nets(
    spec: TransformerBlockSubmodules, config: TransformerConfig, stage: int | None, linear: type
) -> None:
    """Give the layers of this pipeline stage that have linear attention theirs.

    `linear` is a linear layer with the norm before it, as only Transformer Engine has one.
    """
    use_torch()
    from megatron.core.ssm.gated_delta_net import GatedDeltaNet, GatedDeltaNetSubmodules

    modules = GatedDeltaNetSubmodules(
        in_proj=linear, out_norm=WrappedTorchNorm, out_proj=RowParallelLinear
    )
    first = call(get_transformer_layer_offset, config=config, vp_stage=stage)
    for number, layer in enumerate(spec.layer_specs):
        if config.linear_attention_freq[first + number]:
            spec.layer_specs[number] = ours = copy(layer)
            ours.submodules = replace(
                layer.submodules,
                input_layernorm=IdentityOp,
                self_attention=ModuleSpec(GatedDeltaNet, submodules=modules),
                sharded_state_dict_keys_map={
                    old: new
                    for old, new in layer.submodules.sharded_state_dict_keys_map.items()
                    if not old.startswith("input_layernorm.")
                },
            )


def use_torch() -> None:
    """In place of what `fla` has."""
    from megatron.core.ssm import gated_delta_net as module

    held = {
        "HAVE_FLA": True,
        "l2norm": _normalise,
        "chunk_gated_delta_rule": module.torch_chunk_gated_delta_rule,
        "causal_conv1d": _convolve,
    }
    for name in ("common", "gdn"):  # before 0.19 they are one
        vars(getattr(module, name, module)).update(held)


def _normalise(states: Tensor) -> Tensor:
    return states * torch.rsqrt(states.square().sum(-1, keepdim=True) + 1e-6)


def _convolve(x: Tensor, weight: Tensor, bias: Tensor | None, **_: Any) -> tuple[Tensor, None]:
    """Each channel of [batch, sequence, channels] by itself, of what came before and is."""
    channels, width = weight.shape
    padded = functional.pad(x.transpose(1, 2), (width - 1, 0))
    found = functional.conv1d(padded, weight[:, None], bias, groups=channels)
    return functional.silu(found).transpose(1, 2), None


def count_from_zero(chunks: Iterable[GPTModel]) -> None:
    """Have every norm add one to its weight, as Transformer Engine's do where they are told to."""
    for module in (module for chunk in chunks for module in chunk.modules()):
        if isinstance(module, torch.nn.RMSNorm):
            vars(module)["forward"] = partial(_norm_from_zero, module)
        elif hasattr(module, "layer_norm_weight"):
            module.counts_from = 1


def _norm_from_zero(norm: torch.nn.RMSNorm, states: Tensor) -> Tensor:
    return functional.rms_norm(states, norm.normalized_shape, norm.weight + 1, norm.eps)
