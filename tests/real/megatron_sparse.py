"""Latent attention with an indexer, GLM-5's and DeepSeek-V3.2's, out of megatron-core's modules.

Its own description is for Transformer Engine's layers, whose linear layers may be whole on every
rank; such a one is brought here. With tensor parallelism it wants sequence parallelism, which gloo
cannot do; attention itself does not need it.
"""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from megatron.core.tensor_parallel.layers import ColumnParallelLinear, RowParallelLinear
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.identity_op import IdentityOp
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.torch_norm import WrappedTorchNorm
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules
from megatron.core.transformer.transformer_config import MLATransformerConfig
from torch import Tensor, nn

HuggingFaceConfig = Mapping[str, Any]


class WholeLinear(nn.Module):
    """A linear layer that every rank has whole."""

    def __init__(self, input_size: int, output_size: int, **_: Any) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(output_size, input_size))

    def forward(self, states: Tensor) -> tuple[Tensor, None]:
        return nn.functional.linear(states, self.weight), None


def describe_indexer(hf: HuggingFaceConfig) -> dict[str, Any]:
    """What the config of megatron-core says of it."""
    if "index_topk" not in hf:
        return {}
    interleaved = hf["model_type"] == "glm_moe_dsa"
    values = {
        "dsa_indexer_n_heads": hf["index_n_heads"],
        "dsa_indexer_head_dim": hf["index_head_dim"],
        "dsa_indexer_topk": hf["index_topk"],
        "dsa_indexer_rope_interleaved": interleaved,
        "dsa_indexer_rotate_activation": False,  # of no account for what is chosen
        "dsa_indexer_k_norm_epsilon": 1e-6,
    }
    if interleaved:
        values |= {"dsa_indexer_topk_freq": 2, "dsa_indexer_skip_topk_offset": 1}
    return values


def use_indexers(spec: TransformerBlockSubmodules) -> None:
    """Put such attention into the description of a model with latent attention."""
    from megatron.core.transformer.experimental_attention_variant import (  # since 0.16
        absorbed_mla,
        dsa,
    )

    class Attention(absorbed_mla.AbsorbedMLASelfAttention):  # type: ignore[misc]
        """Without a word of tensor parallelism, of which the groups of ranks say enough.

        Local descriptions of layers refuse a config that says which attention it is.
        """

        def __init__(self, config: MLATransformerConfig, *rest: Any, **options: Any) -> None:
            config = copy.copy(config)
            config.experimental_attention_variant = "dsa"
            config.tensor_model_parallel_size = 1
            super().__init__(config, *rest, **options)

    indexer = dsa.DSAIndexerSubmodules(WholeLinear, WholeLinear, WrappedTorchNorm, WholeLinear)
    core = dsa.DSAttentionSubmodules(ModuleSpec(dsa.DSAIndexer, submodules=indexer))
    parts = absorbed_mla.AbsorbedMLASelfAttentionSubmodules(
        linear_q_proj=ColumnParallelLinear,
        linear_q_down_proj=ColumnParallelLinear,
        linear_q_up_proj=ColumnParallelLinear,
        linear_kv_down_proj=ColumnParallelLinear,
        linear_kv_up_proj=ColumnParallelLinear,
        core_attention=ModuleSpec(dsa.DSAttention, submodules=core),
        linear_proj=RowParallelLinear,
        q_layernorm=WrappedTorchNorm,
        kv_layernorm=WrappedTorchNorm,
    )
    for layer in spec.layer_specs:
        layer.submodules.self_attention = ModuleSpec(
            Attention, params={"attn_mask_type": AttnMaskType.causal}, submodules=parts
        )
        assert layer.submodules.input_layernorm is not IdentityOp
