"""Layers with lightning attention, as trainers of Ling 2.5 bring them: megatron-core has none."""

from __future__ import annotations

from copy import copy
from dataclasses import replace
from typing import Any

import torch
from megatron.core.tensor_parallel.layers import ColumnParallelLinear, RowParallelLinear
from megatron.core.transformer.attention import SelfAttention, SelfAttentionSubmodules
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.identity_op import IdentityOp
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.torch_norm import WrappedTorchNorm


class _Attention(SelfAttention):  # type: ignore[misc]
    """Megatron-core's own, with a gate and a norm of all that the heads give, as in ms-swift."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.g_proj = ColumnParallelLinear(
            self.config.hidden_size,
            self.query_projection_size,
            config=self.config,
            init_method=self.config.init_method,
            bias=False,
            gather_output=False,
        )
        self.g_norm = torch.nn.RMSNorm(self.query_projection_size)


def put_lightning(layer: ModuleSpec, core: type, *, norms: bool) -> ModuleSpec:
    """The same layer with such attention; the norm before it stays by itself.

    ``core``: what stands in for its recurrence, which has no parameters. ``norms``: queries and
    keys of a head have one.
    """
    norm = WrappedTorchNorm if norms else IdentityOp
    parts = SelfAttentionSubmodules(
        linear_qkv=ColumnParallelLinear,
        core_attention=core,
        linear_proj=RowParallelLinear,
        q_layernorm=norm,
        k_layernorm=norm,
    )
    told = {"attn_mask_type": AttnMaskType.causal}
    found = copy(layer)
    attention = ModuleSpec(_Attention, params=told, submodules=parts)
    found.submodules = replace(layer.submodules, self_attention=attention)
    return found
