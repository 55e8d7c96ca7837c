"""Norms of query and key over all heads together, which megatron-core has not: OLMoE's."""

from __future__ import annotations

from typing import Any

from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.torch_norm import WrappedTorchNorm
from megatron.core.transformer.transformer_config import TransformerConfig


def widen_norms(layer: ModuleSpec) -> None:
    """Have the attention of a described layer take them in place of those of each head."""
    attention = layer.submodules.self_attention.submodules
    attention.q_layernorm, attention.k_layernorm = _QueryNorm, _KeyNorm


class _QueryNorm:
    """Built in place of a norm of one head, and asked for its width."""

    def __new__(cls, config: TransformerConfig, hidden_size: int, eps: float) -> Any:
        return WrappedTorchNorm(config, hidden_size * config.num_attention_heads, eps)


class _KeyNorm:
    def __new__(cls, config: TransformerConfig, hidden_size: int, eps: float) -> Any:
        return WrappedTorchNorm(config, hidden_size * config.num_query_groups, eps)
