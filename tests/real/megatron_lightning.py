"""Lightning attention in a real GPTModel on the CPU, as ms-swift brings it: Ling 2.5's.

All that the heads give is normed on every rank, each of which has all of the norm's weight.
"""

from copy import copy
from dataclasses import replace
from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.tensor_parallel.layers import ColumnParallelLinear, RowParallelLinear
from megatron.core.tensor_parallel.mappings import gather_from_tensor_model_parallel_region
from megatron.core.transformer.attention import SelfAttention, SelfAttentionSubmodules
from megatron.core.transformer.dot_product_attention import DotProductAttention
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.torch_norm import WrappedTorchNorm
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.transformer_layer import get_transformer_layer_offset
from torch import Tensor, nn

from ckpt_tool.plans.checks.megatron_child.cpu import call

from .megatron_ling import HEAD, HuggingFaceConfig, list_lightning, make_decay, norm_groups, turn


def put_lightning(
    spec: TransformerBlockSubmodules,
    hf: HuggingFaceConfig,
    config: TransformerConfig,
    stage: int | None,
) -> None:
    """Give the layers of this pipeline stage that have such attention theirs."""
    first = call(get_transformer_layer_offset, config=config, vp_stage=stage)
    parts = SelfAttentionSubmodules(
        linear_qkv=ColumnParallelLinear,
        core_attention=DotProductAttention,
        linear_proj=RowParallelLinear,
        q_layernorm=WrappedTorchNorm,
        k_layernorm=WrappedTorchNorm,
    )
    for number, layer in enumerate(spec.layer_specs):
        if first + number in list_lightning(hf["num_hidden_layers"]):
            told = {"attn_mask_type": AttnMaskType.causal, "index": first + number, "hub": hf}
            attention = ModuleSpec(_Attention, params=told, submodules=parts)
            spec.layer_specs[number] = ours = copy(layer)
            ours.submodules = replace(layer.submodules, self_attention=attention)


class _Attention(SelfAttention):  # type: ignore[misc]
    """Position after position: [sequence, batch, hidden]."""

    def __init__(self, *arguments: Any, index: int, hub: HuggingFaceConfig, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.g_proj = ColumnParallelLinear(
            self.config.hidden_size,
            self.query_projection_size,
            config=self.config,
            init_method=self.config.init_method,
            bias=False,
            gather_output=False,
        )
        self.g_norm = nn.RMSNorm(self.query_projection_size)
        self._theta = hub["rope_parameters"]["rope_theta"]
        self._turned = hub["qk_rope_head_dim"]
        self._decay = make_decay(index, hub["num_hidden_layers"])

    def forward(self, hidden_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor | None]:
        query, key, value = self._project(hidden_states)
        heads = query.shape[2]
        rank = parallel_state.get_tensor_model_parallel_rank()
        kept = self._decay.narrow(0, rank * heads, heads).exp()[None, :, None, None]
        state = torch.zeros(*query.shape[1:], HEAD)
        found = []
        for at in range(len(query)):
            state = state * kept + key[at, ..., :, None] * value[at, ..., None, :]
            found.append((query[at, ..., None, :] @ state).squeeze(-2))
        whole = gather_from_tensor_model_parallel_region(torch.stack(found).flatten(2))
        normed = norm_groups(whole, self.g_norm.weight, self.config.layernorm_epsilon)
        own = normed.narrow(-1, rank * heads * HEAD, heads * HEAD)
        output: tuple[Tensor, Tensor | None] = self.linear_proj(
            own * self.g_proj(hidden_states)[0].sigmoid()
        )
        return output

    def _project(self, states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Query, key and value of each head of this rank, normed and turned."""
        query, key, value = self.linear_qkv(states)[0].unflatten(-1, (-1, 3, HEAD)).unbind(-2)
        powers = torch.arange(0, self._turned, 2) / self._turned
        angles = torch.arange(len(states))[:, None] / self._theta**powers
        cosine, sine = (
            torch.cat([part, part], -1)[:, None, None] for part in (angles.cos(), angles.sin())
        )
        query = turn(self.q_layernorm(query), cosine, sine) * HEAD**-0.5
        return query, turn(self.k_layernorm(key), cosine, sine), value
