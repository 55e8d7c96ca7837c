"""Norms that megatron-core has not, as trainers bring them.

Of query and key over all heads together: OLMoE's. After attention and MLP, in their last linear
layers: Gemma's, EXAONE's; beside them in the layer, as slime's Megatron has them: GLM-4's.
"""

from __future__ import annotations

from typing import Any

from megatron.core.tensor_parallel.layers import RowParallelLinear
from megatron.core.transformer.identity_op import IdentityOp
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.torch_norm import WrappedTorchNorm
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.transformer_layer import TransformerLayer


class NormedRowParallelLinear(RowParallelLinear):  # type: ignore[misc]
    """A linear layer with the norm that comes after it."""

    def __init__(self, input_size: int, output_size: int, **options: Any) -> None:
        super().__init__(input_size, output_size, **options)
        self.post_layernorm = WrappedTorchNorm(self.config, output_size)


class NormedLayer(TransformerLayer):  # type: ignore[misc]
    """A layer with norms beside attention and MLP; what they are given is of no account here."""

    def __init__(self, config: TransformerConfig, *arguments: Any, **options: Any) -> None:
        super().__init__(config, *arguments, **options)
        self.post_self_attn_layernorm = WrappedTorchNorm(config, config.hidden_size)
        self.post_mlp_layernorm = WrappedTorchNorm(config, config.hidden_size)


def fit_norms(layer: ModuleSpec, flags: frozenset[str]) -> None:
    """Give the attention, the MLP, or both, of a described layer the norms of its family."""
    parts = layer.submodules
    attention, mlp = _find_parts(parts.self_attention), _find_parts(parts.mlp)
    if attention is not None and "wide_norms" in flags:
        attention.q_layernorm, attention.k_layernorm = _QueryNorm, _KeyNorm
    if attention is not None and "post_norms" in flags:
        attention.linear_proj = NormedRowParallelLinear
    if mlp is not None and "post_norms" in flags:
        mlp.linear_fc2 = NormedRowParallelLinear
    if "only_post_norms" in flags:
        parts.input_layernorm = parts.pre_mlp_layernorm = IdentityOp
    if "norms_beside" in flags:
        layer.module = NormedLayer


def _find_parts(described: Any) -> Any:
    """What a module is made of: since 0.19 an MLP is described by a function that knows it."""
    keywords = getattr(described, "keywords", None) or {}
    return keywords.get("submodules", getattr(described, "submodules", None))


class _QueryNorm:
    """Built in place of a norm of one head, and asked for its width."""

    def __new__(cls, config: TransformerConfig, hidden_size: int, eps: float) -> Any:
        return WrappedTorchNorm(config, hidden_size * config.num_attention_heads, eps)


class _KeyNorm:
    def __new__(cls, config: TransformerConfig, hidden_size: int, eps: float) -> Any:
        return WrappedTorchNorm(config, hidden_size * config.num_query_groups, eps)
