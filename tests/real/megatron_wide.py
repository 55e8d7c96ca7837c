"""What trainers bring of MiMo-V2-Flash: attention whose values are not as wide as its keys.

Layers with a window have twice as many key and value heads, sinks, and a rotary embedding of their
own. Source: `mimo_v2_flash/modeling_mimo_v2_flash.py` of Megatron-Bridge 0.6.2.
"""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from megatron.core.models.common.embeddings.rotary_pos_embedding import RotaryEmbedding
from megatron.core.transformer.attention import SelfAttention
from megatron.core.transformer.dot_product_attention import DotProductAttention
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor, nn

HuggingFaceConfig = Mapping[str, Any]


def widen(
    spec: TransformerBlockSubmodules, hf: HuggingFaceConfig, config: TransformerConfig
) -> None:
    """Have all attention of a described model be of this kind, by the config of its family."""
    config.hub = dict(hf)
    for layer in spec.layer_specs:
        layer.submodules.self_attention.module = WideSelfAttention
        layer.submodules.self_attention.submodules.core_attention = WideDotProductAttention


def _fit(config: TransformerConfig, layer: int) -> TransformerConfig:
    """The config of one layer, the first of which is 1."""
    found = copy.copy(config)
    found.kind = config.hub["layer_types"][layer - 1]
    if found.kind == "sliding_attention":
        found.num_query_groups = 2 * config.hub["num_key_value_heads"]
        found.softmax_type = "learnable"
    return found


class WideDotProductAttention(DotProductAttention):  # type: ignore[misc]
    """Megatron-core's own attention, told how wide values are, which are scaled."""

    def __init__(self, *, config: TransformerConfig, **arguments: Any) -> None:
        super().__init__(config=config, **arguments)
        width = config.hub["v_head_dim"]
        self.hidden_size_per_partition = width * self.num_attention_heads_per_partition

    def forward(self, query: Tensor, key: Tensor, value: Tensor, *rest: Any, **more: Any) -> Tensor:
        scale = self.config.hub["attention_value_scale"]
        found: Tensor = super().forward(query, key, value * scale, *rest, **more)
        return found


class WideSelfAttention(SelfAttention):  # type: ignore[misc]
    def __init__(
        self, config: TransformerConfig, submodules: Any, layer_number: int, **arguments: Any
    ) -> None:
        config = _fit(config, layer_number)
        super().__init__(config, submodules, layer_number, **arguments)
        hub, heads, groups = config.hub, config.num_attention_heads, config.num_query_groups
        options = {"config": config, "init_method": config.init_method, "bias": False}
        options |= {"is_expert": False, "tp_group": self.pg_collection.tp}
        width = hub["v_head_dim"]
        rows = (heads + groups) * config.kv_channels + groups * width
        self.linear_qkv = submodules.linear_qkv(
            config.hidden_size, rows, gather_output=False, skip_bias_add=False, **options
        )
        self.linear_proj = submodules.linear_proj(
            heads * width, config.hidden_size, input_is_parallel=True, skip_bias_add=True, **options
        )
        self.register_forward_pre_hook(_make_rotary(hub, config.kind), with_kwargs=True)

    def get_query_key_value_tensors(
        self, hidden_states: Tensor, *_: Any, **__: Any
    ) -> tuple[Tensor, ...]:
        """Query heads, key and value of each group."""
        head, groups = self.hidden_size_per_attention_head, self.num_query_groups_per_partition
        mixed = self.linear_qkv(hidden_states)[0].unflatten(-1, (groups, -1))
        width = self.config.hub["v_head_dim"]
        parts = mixed.split([mixed.shape[-1] - head - width, head, width], -1)
        return parts[0].reshape(*mixed.shape[:2], -1, head), *parts[1:]


def _make_rotary(hub: HuggingFaceConfig, kind: str) -> Any:
    said = hub["rope_parameters"][kind]
    rotary = RotaryEmbedding(
        hub["head_dim"], said["partial_rotary_factor"], rotary_base=said["rope_theta"]
    )

    def turn(module: nn.Module, inputs: Any, options: dict[str, Any]) -> tuple[Any, Any]:
        with torch.no_grad():
            return inputs, options | {"rotary_pos_emb": rotary(len(inputs[0]))}

    return turn
