"""A real megatron-core GPTModel for a Hugging Face `config.json`, on the CPU.

The layers are megatron-core's local ones. `megatron_world` must have been set up for the sizes.
Both work with megatron-core 0.11 to 0.16: what a release does not know yet is not handed to it.
"""

from collections.abc import Mapping
from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.models.gpt import GPTModel
from megatron.core.models.gpt.gpt_layer_specs import (
    get_gpt_decoder_block_spec,
    get_gpt_layer_local_spec,
)
from megatron.core.tensor_parallel.layers import ColumnParallelLinear
from megatron.core.transformer import multi_latent_attention
from megatron.core.transformer.dot_product_attention import DotProductAttention
from megatron.core.transformer.identity_op import IdentityOp
from megatron.core.transformer.moe.router import TopKRouter
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.torch_norm import WrappedTorchNorm
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules
from megatron.core.transformer.transformer_config import (
    MLATransformerConfig,
    TransformerConfig,
)
from torch import Tensor
from torch.nn.functional import rms_norm, silu

from ckpt_tool.plans.checks.megatron_child.cpu import call
from ckpt_tool.plans.checks.megatron_child.hybrid import make_hybrid_model

from . import megatron_deci as deci
from . import megatron_falcon as falcon
from . import megatron_gemma4 as gemma4
from . import megatron_ling as ling
from . import megatron_nemotron as nemotron
from . import megatron_step as step
from .megatron_gated import (
    count_from_zero,
    gated_settings,
    is_gated,
    list_linear,
    put_delta_nets,
    use_torch,
)
from .megatron_gemma4_models import is_gemma4
from .megatron_hybrid import make_pattern
from .megatron_jobs import Sizes
from .megatron_lightning import put_lightning
from .megatron_norms import count_ahead, describe, find_theta, fit_layers, fit_model
from .megatron_routed import DENSE_AHEAD, adapt
from .megatron_sparse import describe_indexer, use_indexers
from .megatron_wide import widen

HuggingFaceConfig = Mapping[str, Any]


class NormedColumnParallelLinear(ColumnParallelLinear):  # type: ignore[misc]
    """A linear layer with the norm before it, as only Transformer Engine has one."""

    def __init__(self, input_size: int, *arguments: Any, **options: Any) -> None:
        super().__init__(input_size, *arguments, **options)
        self.layer_norm_weight = torch.nn.Parameter(torch.ones(input_size))
        self.counts_from = 0

    def forward(self, hidden: Tensor, *arguments: Any, **options: Any) -> Any:
        epsilon = self.config.layernorm_epsilon
        weight = self.layer_norm_weight + self.counts_from
        normed = rms_norm(hidden, hidden.shape[-1:], weight, epsilon)
        return super().forward(normed, *arguments, **options)


class LatentDotProductAttention(DotProductAttention):  # type: ignore[misc]
    """Megatron-core's own attention, told that values are narrower than keys.

    Latent attention passes both widths, which only Transformer Engine's attention accepts. (It is
    also built once without them, by the base class, and replaced.)
    """

    def __init__(self, *, k_channels: int = 0, v_channels: int = 0, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.hidden_size_per_partition = v_channels * self.num_attention_heads_per_partition


class WideNorm(torch.nn.Module):
    """A norm over the heads of all ranks together, each of which has all of the weight.

    As slime and ms-swift have it; megatron-core norms each head by itself.
    """

    def __init__(self, config: TransformerConfig, heads: int, hidden_size: int) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(heads * hidden_size))
        self._epsilon = config.layernorm_epsilon

    def forward(self, states: Tensor) -> Tensor:
        size = states.shape[-2] * states.shape[-1]
        squares = states.float().square().sum((-2, -1), keepdim=True)
        group = parallel_state.get_tensor_model_parallel_group()
        torch.distributed.all_reduce(squares, group=group)
        own = self.weight.narrow(0, parallel_state.get_tensor_model_parallel_rank() * size, size)
        scale = torch.rsqrt(squares / len(self.weight) + self._epsilon)
        return states * scale * own.reshape(states.shape[-2:])


class WideQueryNorm(WideNorm):
    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float) -> None:
        super().__init__(config, config.num_attention_heads, hidden_size)


class WideKeyNorm(WideNorm):
    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float) -> None:
        super().__init__(config, config.num_query_groups, hidden_size)


def build_chunks(
    hf: HuggingFaceConfig,
    sizes: Sizes,
    vocab_multiple: int,
    dtype: torch.dtype,
    *,
    hybrid: bool = False,
    fused: bool = False,
) -> list[GPTModel]:
    """This process's part of the model: one chunk, or as many as a process interleaves.

    Of a `hybrid` one it is a HybridModel. `fused`: latent attention has one down projection.
    """
    hybrid = hybrid or nemotron.is_nemotron(hf) or falcon.is_falcon(hf)
    config = transformer_config(hf, sizes, dtype, hybrid=hybrid)
    vocab = padded_vocab(hf["vocab_size"], vocab_multiple * sizes.tp)
    stages: list[int | None] = [None] if sizes.vpp is None else list(range(sizes.vpp))
    pattern = _hybrid_pattern(hf, sizes) if hybrid else ""
    kind: dict[str, Any] = {"pattern": pattern, "fused": fused}
    chunks = [_build_chunk(hf, config, vocab, stage, **kind).eval() for stage in stages]
    for parameter in (parameter for chunk in chunks for parameter in chunk.parameters()):
        # Torch's norms do not follow the config. Buffers, that is the expert bias, stay fp32.
        parameter.data = parameter.data.to(dtype)
    if hf["model_type"] == "ernie4_5_moe":
        _choose_by_softmax(chunks)
    (gemma4.fit_model if is_gemma4(hf) else fit_model)(chunks, hf)
    if is_gated(hf) or step.is_step(hf):
        count_from_zero(chunks)
    return chunks


def _choose_by_softmax(chunks: list[GPTModel]) -> None:
    """ERNIE's routers, whose scores are a softmax: megatron-core has biases with a sigmoid only.

    They are given what the sigmoid makes these scores of.
    """
    for router in (module for chunk in chunks for module in chunk.modules()):
        if isinstance(router, TopKRouter):
            gating = router.gating
            router.gating = lambda states, gating=gating: gating(states).softmax(-1).logit()


def padded_vocab(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple


def _hybrid_pattern(hf: HuggingFaceConfig, sizes: Sizes) -> str:
    if nemotron.is_nemotron(hf):
        return nemotron.make_pattern(hf, sizes.pp * (sizes.vpp or 1))
    if falcon.is_falcon(hf):
        return falcon.make_pattern(hf, sizes.pp)
    dense = dense_layers(hf)
    kinds = [
        bool(expert_count(hf)) and index not in dense for index in range(hf["num_hidden_layers"])
    ]
    stages = sizes.pp * (sizes.vpp or 1)
    ahead = hf.get("num_nextn_predict_layers") or 0
    return make_pattern(kinds, stages, ahead, latent="kv_lora_rank" in hf, linear=list_linear(hf))


def _build_chunk(
    hf: HuggingFaceConfig,
    config: TransformerConfig,
    vocab: int,
    stage: int | None,
    *,
    pattern: str,
    fused: bool,
) -> GPTModel:
    options = _options(hf, vocab, stage)
    if "G" in pattern:
        use_torch()
    if pattern:
        options["given"] = _list_given(hf)
        return make_hybrid_model(config, pattern, LatentDotProductAttention, **options)
    if deci.is_deci(hf):
        return call(
            GPTModel, config=config, transformer_layer_spec=deci.describe(config, stage), **options
        )
    spec = call(
        get_gpt_decoder_block_spec,
        config=config,
        use_transformer_engine=False,
        normalization="RMSNorm",
        qk_l2_norm=hf["model_type"] == "llama4_text",
        vp_stage=stage,
    )
    _fit_to_cpu(spec, config)
    if hf["model_type"] in ("olmoe", "minimax_m2"):
        for layer in spec.layer_specs:
            attention = layer.submodules.self_attention.submodules
            attention.q_layernorm, attention.k_layernorm = WideQueryNorm, WideKeyNorm
    if is_gemma4(hf):
        gemma4.fit_layers(spec, hf, config, NormedColumnParallelLinear)
    fit_layers(spec, hf, config)
    if hf["model_type"] == "mimo_v2_flash":
        widen(spec, hf, config)
    if step.is_step(hf):
        step.vary_heads(spec.layer_specs, hf)
    if "index_topk" in hf:
        use_indexers(spec)
    if is_gated(hf):
        put_delta_nets(spec, config, stage, NormedColumnParallelLinear)
    if ling.is_ling(hf):
        put_lightning(spec, hf, config, stage)
    if fused:
        _fuse_down_projections(spec)
    return call(
        GPTModel,
        config=config,
        transformer_layer_spec=spec,
        mtp_block_spec=_prediction_spec(config, spec, stage, hf),
        **options,
    )


def _list_given(hf: HuggingFaceConfig) -> dict[str, ModuleSpec]:
    """Layers of a HybridModel that megatron-core has not, or not without a GPU."""
    if falcon.is_falcon(hf):
        return {"attention_layer": falcon.describe()}
    return {"mamba_layer": nemotron.describe_layer()} if nemotron.is_nemotron(hf) else {}


def _options(hf: HuggingFaceConfig, vocab: int, stage: int | None) -> dict[str, Any]:
    """What is outside of the layers."""
    where = {"ignore_virtual": stage is None, "vp_stage": stage}
    if nemotron.is_nemotron(hf):
        positions: dict[str, Any] = {"position_embedding_type": "none"}
    else:
        positions = {
            "position_embedding_type": "rope",
            "rotary_base": find_theta(hf),
            "rotary_percent": hf["rope_parameters"].get("partial_rotary_factor", 1.0),
        }
    return {
        "vocab_size": vocab,
        "max_sequence_length": hf["max_position_embeddings"],
        "pre_process": call(parallel_state.is_pipeline_first_stage, **where),
        "post_process": call(parallel_state.is_pipeline_last_stage, **where),
        "share_embeddings_and_output_weights": hf["tie_word_embeddings"],
        "vp_stage": stage,
        **positions,
    }


def _fit_to_cpu(spec: TransformerBlockSubmodules, config: TransformerConfig) -> None:
    spec.layer_norm = WrappedTorchNorm  # Apex's norm where that is installed
    if config.multi_latent_attention:
        for layer in spec.layer_specs:
            layer.submodules.self_attention.submodules.core_attention = LatentDotProductAttention


def _fuse_down_projections(spec: TransformerBlockSubmodules) -> None:
    """As `--mla-down-proj-fusion` has it since 0.17, with Transformer Engine."""
    multi_latent_attention.TELayerNormColumnParallelLinear = NormedColumnParallelLinear
    for layer in spec.layer_specs:
        layer.submodules.input_layernorm = IdentityOp
        keys = {"self_attention.linear_qkv_down_proj.layer_norm_": "input_layernorm."}
        layer.submodules.sharded_state_dict_keys_map = keys
        attention = layer.submodules.self_attention
        attention.module = multi_latent_attention.FusedMLASelfAttention
        attention.submodules.linear_qkv_down_proj = NormedColumnParallelLinear
        attention.submodules.linear_q_down_proj = None
        attention.submodules.linear_kv_down_proj = None


def _prediction_spec(
    config: TransformerConfig,
    spec: TransformerBlockSubmodules,
    stage: int | None,
    hf: HuggingFaceConfig,
) -> Any:
    if not getattr(config, "mtp_num_layers", None):
        return None
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_mtp_block_spec  # since 0.12

    if hf["model_type"] in DENSE_AHEAD:
        spec = get_gpt_layer_local_spec(qk_layernorm=config.qk_layernorm, normalization="RMSNorm")
    if step.is_step(hf):
        step.vary_heads([spec], hf, ahead=True)
    return get_gpt_mtp_block_spec(config, spec, use_transformer_engine=False, vp_stage=stage)


def transformer_config(
    hf: HuggingFaceConfig, sizes: Sizes, dtype: torch.dtype, *, hybrid: bool = False
) -> TransformerConfig:
    """Translate the Hugging Face config of any family in `megatron_models`."""
    if nemotron.is_nemotron(hf):
        return call(TransformerConfig, **nemotron.shape(hf) | _parallel(sizes, dtype) | _CPU)
    if deci.is_deci(hf):
        groups = {"num_key_value_heads": hf["num_attention_heads"]}
        return deci.make_config(
            hf, _shape(hf) | _attention({**hf, **groups}) | _parallel(sizes, dtype) | _CPU
        )
    if falcon.is_falcon(hf):
        values = _shape(hf) | _attention(hf) | falcon.shape(hf) | _parallel(sizes, dtype) | _CPU
        return call(TransformerConfig, **values)
    is_latent = "kv_lora_rank" in hf
    config_class = MLATransformerConfig if is_latent else TransformerConfig
    values = _shape(hf) | _parallel(sizes, dtype) | _CPU
    values |= _latent_attention(hf) if is_latent else _attention(hf)
    values |= describe(hf) | describe_indexer(hf) | step.describe(hf) | ling.describe(hf)
    if expert_count(hf) and not is_gemma4(hf):
        values |= _experts(hf)
        routing = _ROUTING.get(hf["model_type"])
        values |= routing(hf) if routing is not None else {}
    values |= gemma4.describe(hf) if is_gemma4(hf) else adapt(hf)
    if hybrid:
        values["num_layers"] *= 2
        for said in ("moe_layer_freq", "linear_attention_freq"):
            values.pop(said, None)
    config: TransformerConfig = call(config_class, **values)
    if "no_rope_freq" in values:  # see count_ahead
        config.no_rope_freq = [*values["no_rope_freq"], *[0] * count_ahead(hf)]
    return config


# Without fused kernels, and with the one dispatcher that gloo supports. Initial values would only
# be overwritten; without them no random state is needed either.
_CPU = {
    "use_cpu_initialization": True,
    "perform_initialization": False,
    "masked_softmax_fusion": False,
    "moe_token_dispatcher_type": "allgather",
    "moe_router_load_balancing_type": "none",
}


def _shape(hf: HuggingFaceConfig) -> dict[str, Any]:
    return {
        "num_layers": hf["num_hidden_layers"],
        "hidden_size": hf["hidden_size"],
        "ffn_hidden_size": hf.get("intermediate_size") or hf.get("moe_intermediate_size"),
        "num_attention_heads": hf["num_attention_heads"],
        "layernorm_epsilon": hf.get("rms_norm_eps") or hf["norm_eps"],
        "normalization": "RMSNorm",
        "activation_func": silu,
        "gated_linear_unit": True,
        "add_bias_linear": False,
        "attention_dropout": 0.0,
        "hidden_dropout": 0.0,
        "mtp_num_layers": hf.get("num_nextn_predict_layers") or None,
    }


def _parallel(sizes: Sizes, dtype: torch.dtype) -> dict[str, Any]:
    return {
        "tensor_model_parallel_size": sizes.tp,
        "pipeline_model_parallel_size": sizes.pp,
        "virtual_pipeline_model_parallel_size": sizes.vpp,
        "expert_model_parallel_size": sizes.ep,
        "expert_tensor_parallel_size": sizes.etp,
        "params_dtype": dtype,
        "pipeline_dtype": dtype,
        "bf16": dtype is torch.bfloat16,
    }


def _attention(hf: HuggingFaceConfig) -> dict[str, Any]:
    family = hf["model_type"]
    return {
        "num_query_groups": hf["num_key_value_heads"],
        "kv_channels": hf.get("head_dim") or hf["hidden_size"] // hf["num_attention_heads"],
        "qk_layernorm": family.startswith(
            ("qwen3", "dots1", "olmoe", "minimax_m2", "gemma3", "exaone4")
        )
        or hf.get("use_qk_norm", False),
        "rotary_interleaved": family in ("ernie4_5", "ernie4_5_moe", "glm4", "llama4_text"),
        "add_qkv_bias": family.startswith("qwen2") or hf.get("attention_bias", False),
        **gated_settings(hf),
    }


def _latent_attention(hf: HuggingFaceConfig) -> dict[str, Any]:
    return {
        "multi_latent_attention": True,
        "qk_layernorm": True,
        "q_lora_rank": hf["q_lora_rank"],
        "kv_lora_rank": hf["kv_lora_rank"],
        "qk_head_dim": hf["qk_nope_head_dim"],
        "qk_pos_emb_head_dim": hf["qk_rope_head_dim"],
        "v_head_dim": hf["v_head_dim"],
        "rope_type": "rope",
        "rotary_base": hf["rope_parameters"]["rope_theta"],
        "rotary_scaling_factor": 1.0,  # or the softmax is scaled as YaRN wants it
    }


def expert_count(hf: HuggingFaceConfig) -> int | None:
    """The number of routed experts: transformers 4 and 5 and DeepSeek each call it otherwise."""
    names = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
    return next((hf[name] for name in names if name in hf), None)


def dense_layers(hf: HuggingFaceConfig) -> set[int]:
    """The layers of a mixture-of-experts model that have a plain MLP."""
    layers = hf["num_hidden_layers"]
    if "moe_layers" in hf:
        return set(range(layers)) - set(hf["moe_layers"])
    last = hf.get("moe_layer_end_index", layers - 1)
    ahead = {layers} if hf["model_type"] in DENSE_AHEAD else set()
    if hf.get("mlp_layer_types"):
        kinds = hf["mlp_layer_types"][:layers]
        return ahead | {i for i, kind in enumerate(kinds) if kind == "dense"}
    first = hf.get("first_k_dense_replace", hf.get("moe_layer_start_index", 0))
    return {*hf.get("mlp_only_layers", ()), *range(first), *range(last + 1, layers)}


def _experts(hf: HuggingFaceConfig) -> dict[str, Any]:
    values = {
        "num_moe_experts": expert_count(hf),
        "moe_router_topk": hf.get("moe_k") or hf["num_experts_per_tok"],
        "moe_ffn_hidden_size": hf.get("moe_intermediate_size") or hf["intermediate_size"],
    }
    dense = dense_layers(hf)
    if dense:
        values["moe_layer_freq"] = [int(i not in dense) for i in range(hf["num_hidden_layers"])]
    return values


def _softmax_routing(hf: HuggingFaceConfig) -> dict[str, Any]:
    """Normalising the chosen probabilities is the same as taking the softmax of the chosen only."""
    values: dict[str, Any] = {"moe_router_pre_softmax": not hf.get("norm_topk_prob", True)}
    if "shared_expert_intermediate_size" in hf:
        values["moe_shared_expert_intermediate_size"] = hf["shared_expert_intermediate_size"]
        values["moe_shared_expert_gate"] = True
    return values


def _scaled_routing(hf: HuggingFaceConfig) -> dict[str, Any]:
    """The probabilities of all, of which the chosen ones are scaled and nothing else."""
    values = {
        "moe_router_pre_softmax": True,
        "moe_router_topk_scaling_factor": hf["routed_scaling_factor"],
        "moe_shared_expert_intermediate_size": hf["moe_intermediate_size"] * hf["n_shared_experts"],
    }
    if hf["topk_method"] == "greedy":
        return values
    return values | {
        "moe_router_num_groups": hf["n_group"],
        "moe_router_group_topk": hf["topk_group"],
    }


def _biased_routing(hf: HuggingFaceConfig) -> dict[str, Any]:
    return {
        "moe_router_score_function": "sigmoid",
        "moe_router_enable_expert_bias": True,
        "moe_router_num_groups": hf["n_group"],
        "moe_router_group_topk": hf["topk_group"],
        "moe_router_topk_scaling_factor": hf["routed_scaling_factor"],
        "moe_shared_expert_intermediate_size": hf["moe_intermediate_size"] * hf["n_shared_experts"],
    }


def _shifted_routing(hf: HuggingFaceConfig) -> dict[str, Any]:
    values: dict[str, Any] = {
        "moe_router_score_function": "sigmoid",
        "moe_router_enable_expert_bias": True,
    }
    if "moe_num_shared_experts" in hf:
        width = hf["moe_intermediate_size"] * hf["moe_num_shared_experts"]
        values["moe_shared_expert_intermediate_size"] = width
    return values


def _single_routing(hf: HuggingFaceConfig) -> dict[str, Any]:
    """One expert, which is given its share of a state; layers without experts are wider."""
    return {
        "moe_router_score_function": "sigmoid",
        "moe_apply_probs_on_input": True,
        "moe_shared_expert_intermediate_size": hf["intermediate_size"],
        "ffn_hidden_size": hf["intermediate_size_mlp"],
        "qk_l2_norm": True,
        "qk_layernorm": False,
    }


_ROUTING = {
    "llama4_text": _single_routing,
    "mixtral": _softmax_routing,
    "qwen2_moe": _softmax_routing,
    "qwen3_moe": _softmax_routing,
    "qwen3_next": _softmax_routing,
    "qwen3_5_moe_text": _softmax_routing,
    "deepseek_v3": _biased_routing,
    "glm4_moe": _biased_routing,
    "glm4_moe_lite": _biased_routing,
    "glm_moe_dsa": _biased_routing,
    "deepseek_v32": _biased_routing,
    "dots1": _biased_routing,
    "ernie4_5_moe": _shifted_routing,
    "minimax_m2": _shifted_routing,
    "olmoe": _softmax_routing,
    "deepseek_v2": _scaled_routing,
}
