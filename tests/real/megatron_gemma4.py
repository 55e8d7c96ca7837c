"""What trainers bring of Gemma 4: attention of two kinds, embeddings of each layer, norms, experts.

megatron-core has none of it: its own attention, layers and experts are told. What checkpoints have
of these, names and stacks, is what `gemma/modeling_gemma4.py` of Megatron-Bridge 0.6.2 writes.
"""

import copy
from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
from megatron.core.models.common.embeddings.rotary_pos_embedding import RotaryEmbedding
from megatron.core.tensor_parallel.layers import ColumnParallelLinear, VocabParallelEmbedding
from megatron.core.transformer.attention import SelfAttention
from megatron.core.transformer.identity_op import IdentityOp
from megatron.core.transformer.moe.moe_layer import MoELayer
from megatron.core.transformer.moe.router import TopKRouter
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.transformer_layer import TransformerLayer
from torch import Tensor, nn
from torch.nn.functional import gelu, linear, rms_norm

from .megatron_gemma4_models import HuggingFaceConfig, count_groups
from .megatron_norms import RowParallelLinearNorm, bend


def describe(hf: HuggingFaceConfig) -> dict[str, Any]:
    """What the config of megatron-core's says beside what that of any does."""
    values: dict[str, Any] = {
        "activation_func": lambda states: gelu(states, approximate="tanh"),
        "qk_layernorm": True,
    }
    if not hf["enable_moe_block"]:
        return values
    return values | {
        "num_moe_experts": hf["num_experts"],
        "moe_router_topk": hf["top_k_experts"],
        "moe_ffn_hidden_size": hf["moe_intermediate_size"],
        "moe_shared_expert_intermediate_size": hf["intermediate_size"],
    }


def fit_layers(
    spec: TransformerBlockSubmodules,
    hf: HuggingFaceConfig,
    config: TransformerConfig,
    normed_linear: type,
) -> None:
    """Have a described model be one; ``normed_linear``: a linear layer with the norm before it."""
    config.hub, config.given = dict(hf), {}
    for layer in spec.layer_specs:
        parts = layer.submodules
        parts.self_attention.module = _Attention
        parts.sharded_state_dict_keys_map = {}
        layer.module = _Layer
        if not hf["enable_moe_block"]:
            continue
        layer.module = _RoutedLayer
        parts.input_layernorm = IdentityOp
        parts.self_attention.submodules.linear_qkv = normed_linear
        parts.self_attention.submodules.linear_proj = RowParallelLinearNorm
        parts.mlp = _route(parts.mlp)


def _route(described: Any) -> Any:
    """Experts of Gemma 4 in place of those described; since 0.19 that is a function."""
    is_spec = isinstance(described, ModuleSpec)
    options = {"submodules": described.submodules} if is_spec else dict(described.keywords)
    options["submodules"] = copy.copy(options["submodules"])
    options["submodules"].router = _Router
    return ModuleSpec(_Experts, **options) if is_spec else partial(_Experts, **options)


def fit_model(chunks: Iterable[Any], hf: HuggingFaceConfig) -> None:
    """What is outside of the layers: embeddings are scaled, and each layer may have one more."""
    for chunk in chunks:
        if chunk.pre_process:
            _embed(chunk, hf)
        if chunk.post_process and hf.get("final_logit_softcapping"):
            bend(chunk.output_layer, hf["final_logit_softcapping"])


def _embed(chunk: Any, hf: HuggingFaceConfig) -> None:
    width, layers, hidden = (
        hf[key] for key in ("hidden_size_per_layer_input", "num_hidden_layers", "hidden_size")
    )
    given, epsilon = chunk.config.given, hf["rms_norm_eps"]
    if width:
        options = {"config": chunk.config, "init_method": chunk.config.init_method}
        options["tp_group"] = chunk.pg_collection.tp
        chunk.per_layer_embedding = VocabParallelEmbedding(
            hf["vocab_size_per_layer_input"], layers * width, **options
        )
        chunk.per_layer_model_proj = ColumnParallelLinear(
            hidden, layers * width, bias=False, gather_output=True, **options
        )
        chunk.per_layer_proj_norm = nn.RMSNorm(width, epsilon)

    def embed(module: nn.Module, inputs: Any, options: dict[str, Any], output: Tensor) -> Tensor:
        states = output * hidden**0.5
        if width:
            own = chunk.per_layer_embedding(options["input_ids"]) * width**0.5
            seen = chunk.per_layer_model_proj(states)[0] * hidden**-0.5
            seen = chunk.per_layer_proj_norm(seen.unflatten(-1, (layers, width)))
            own = own.transpose(0, 1).unflatten(-1, (layers, width))
            given["inputs"] = (seen + own) * 0.5**0.5
        return states

    chunk.embedding.register_forward_hook(embed, with_kwargs=True)


class _Attention(SelfAttention):  # type: ignore[misc]
    """Of one of two kinds; keys may be values, or keys and values another layer's."""

    def __init__(
        self, config: TransformerConfig, submodules: Any, layer_number: int, **arguments: Any
    ) -> None:
        hub, config = config.hub, copy.copy(config)
        kind = hub["layer_types"][layer_number - 1]
        tied = kind == "full_attention"
        if tied:
            config.kv_channels = hub["per_layer_config"][str(layer_number - 1)]["head_dim"]
            config.num_query_groups = count_groups(hub, layer_number - 1)
        super().__init__(config, submodules, layer_number, **arguments)
        self.kind, self.tied = kind, tied and hub["attention_k_eq_v"]
        self.shares = layer_number > hub["num_hidden_layers"] - hub["num_kv_shared_layers"]
        self.core_attention.softmax_scale = 1.0
        self.k_layernorm.register_forward_pre_hook(self._keep)
        self.register_forward_pre_hook(
            _make_rotary(hub, config.kv_channels, kind), with_kwargs=True
        )

    def _keep(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self._key = inputs[0]

    def get_query_key_value_tensors(self, *arguments: Any, **options: Any) -> tuple[Tensor, ...]:
        """Keys are normed, values as well, but by no weight."""
        query, key, value = super().get_query_key_value_tensors(*arguments, **options)
        given = self.config.given
        if not self.shares:
            value = self._key if self.tied else value
            value = rms_norm(value, value.shape[-1:], eps=self.config.layernorm_epsilon)
            given[self.kind] = key, value
        return query, *given[self.kind]

    def sharded_state_dict(self, prefix: str = "", *arguments: Any, **options: Any) -> Any:
        """Under the name of its kind, and stacked with the layers of that kind."""
        state = super().sharded_state_dict(prefix, *arguments, **options)
        kinds = self.config.hub["layer_types"]
        name = "sliding" if self.kind == "sliding_attention" else "global"
        where = (kinds[: self.layer_number - 1].count(self.kind),)
        count = (kinds.count(self.kind),)
        for entry in state.values():
            entry.key = entry.key.replace("self_attention.", f"self_attention_{name}.")
            if getattr(entry, "prepend_axis_num", 1) and entry.global_shape[0] == len(kinds):
                entry.global_shape = count + entry.global_shape[1:]
                entry.global_offset = where + entry.global_offset[1:]
                if getattr(entry, "axis_fragmentations", None):
                    entry.axis_fragmentations = count + entry.axis_fragmentations[1:]
        return state


def _make_rotary(hub: HuggingFaceConfig, width: int, kind: str) -> Any:
    """Of global attention a share of the pairs is turned, the others not at all."""
    said = hub["rope_parameters"][kind]
    rotary = RotaryEmbedding(width, 1.0, rotary_base=said["rope_theta"])
    turned = int(said.get("partial_rotary_factor", 1.0) * width // 2)
    rotary.inv_freq[turned:] = 0

    def turn(module: nn.Module, inputs: Any, options: dict[str, Any]) -> tuple[Any, Any]:
        return inputs, options | {"rotary_pos_emb": rotary(len(inputs[0]))}

    return turn


class _Layer(TransformerLayer):  # type: ignore[misc]
    """With norms after attention and MLP, and what is given to this layer alone."""

    def __init__(self, config: TransformerConfig, *arguments: Any, **options: Any) -> None:
        super().__init__(config, *arguments, **options)
        self.register_buffer("layer_scalar", torch.ones(1))
        hub, hidden = config.hub, config.hidden_size
        self.width = hub["hidden_size_per_layer_input"]
        self.put_norms()
        if self.width:
            self.per_layer_input_gate = nn.Linear(hidden, self.width, bias=False)
            self.per_layer_projection = nn.Linear(self.width, hidden, bias=False)
            self.post_per_layer_input_norm = self.make_norm()

    def make_norm(self) -> nn.RMSNorm:
        return nn.RMSNorm(self.config.hidden_size, self.config.layernorm_epsilon)

    def put_norms(self) -> None:
        self.post_self_attn_layernorm = self.make_norm()
        self.post_mlp_layernorm = self.make_norm()
        _norm_after(self.self_attention, self.post_self_attn_layernorm)
        _norm_after(self.mlp, self.post_mlp_layernorm)

    def forward(self, *arguments: Any, **options: Any) -> tuple[Tensor, Any]:
        states, context = super().forward(*arguments, **options)
        if self.width:
            given = self.config.given["inputs"][..., self.layer_number - 1, :]
            gate = gelu(self.per_layer_input_gate(states), approximate="tanh")
            own = self.per_layer_projection(gate * given)
            states = states + self.post_per_layer_input_norm(own)
        return states * self.layer_scalar, context


def _norm_after(module: nn.Module, norm: nn.Module) -> None:
    module.register_forward_hook(lambda _, inputs, output: (norm(output[0]), output[1]))


class _RoutedLayer(_Layer):
    """With experts beside the MLP, for which what both see is normed otherwise."""

    def put_norms(self) -> None:
        self.pre_shared_expert_layernorm = self.make_norm()
        self.post_ffn_layernorm = self.make_norm()
        _norm_after(self.mlp, self.post_ffn_layernorm)

        def keep(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            self.mlp.seen = inputs[0], self.pre_shared_expert_layernorm(inputs[0])

        self.pre_mlp_layernorm.register_forward_pre_hook(keep)


class _Experts(MoELayer):  # type: ignore[misc]
    def __init__(self, config: TransformerConfig, *arguments: Any, **options: Any) -> None:
        super().__init__(config, *arguments, **options)
        self.post_moe_layernorm = nn.RMSNorm(config.hidden_size, config.layernorm_epsilon)
        self.post_shared_expert_layernorm = nn.RMSNorm(config.hidden_size, config.layernorm_epsilon)

    def route(self, hidden_states: Tensor, *rest: Any) -> Any:
        return super().route(self.seen[0], *rest)

    def shared_experts_compute(self, hidden_states: Tensor) -> Tensor:
        found = super().shared_experts_compute(self.seen[1])
        shared: Tensor = self.post_shared_expert_layernorm(found)
        return shared

    def postprocess(self, output: Tensor, shared_expert_output: Tensor | None) -> Tensor:
        found: Tensor = self.post_moe_layernorm(super().postprocess(output, None))
        return found + shared_expert_output


class _Router(TopKRouter):  # type: ignore[misc]
    def __init__(self, config: TransformerConfig, **options: Any) -> None:
        super().__init__(config=config, **options)
        self.scale = nn.Parameter(torch.ones(config.hidden_size))
        self.per_expert_scale = nn.Parameter(torch.ones(config.num_moe_experts))

    def gating(self, states: Tensor) -> Tensor:
        states = rms_norm(states, states.shape[-1:], eps=self.config.layernorm_epsilon)
        return linear(states * self.scale * self.config.hidden_size**-0.5, self.weight).float()

    def routing(self, *arguments: Any, **options: Any) -> tuple[Tensor, Tensor]:
        shares, chosen = super().routing(*arguments, **options)
        return shares * self.per_expert_scale, chosen
