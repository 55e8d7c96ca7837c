"""A real megatron-core HybridModel for a Hugging Face `config.json`, on the CPU: since 0.18.

It is megatron-core's successor of GPTModel: attention and the MLP of a decoder layer are layers of
their own, so that there are twice as many, and the last norm has another name. Its own description
of layers needs Transformer Engine; here GPTModel's local one is taken apart.
"""

import re
from typing import Any

from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
from megatron.core.tensor_parallel.layers import ColumnParallelLinear
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.torch_norm import WrappedTorchNorm
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.transformer_layer import (
    TransformerLayer,
    TransformerLayerSubmodules,
)

from ckpt_tool.plans.checks.megatron_child.cpu import call

_LAYER = re.compile(r"^(decoder\.layers\.)(\d+)\.")
_PREDICTION = re.compile(r"^(mtp\.layers\.\d+\.)mtp_model_layer\.layers\.\d+\.")
_ATTENTION = ("input_layernorm", "self_attention", "self_attn_bda")
_MLP = ("pre_mlp_layernorm", "mlp", "mlp_bda")


def make_pattern(kinds: list[bool], stages: int, ahead: int, *, latent: bool) -> str:
    """The symbols of all layers; `kinds`: for each decoder layer, whether it has experts.

    The pipeline has `stages`, and the model predicts `ahead` further tokens.
    """
    layers = [("+" if latent else "*") + ("E" if experts else "-") for experts in kinds]
    size = len(layers) // stages
    cut = ["".join(layers[i : i + size]) for i in range(0, len(layers), size)]
    return "|".join(cut) + f"/{layers[-1]}" * ahead


def build_hybrid(
    config: TransformerConfig, pattern: str, core_attention: type | None, **options: Any
) -> Any:
    """This process's part of the model; `options` as GPTModel has them.

    `core_attention` takes the place of the local layers' own.
    """
    from megatron.core.models.hybrid import hybrid_block
    from megatron.core.models.hybrid.hybrid_model import HybridModel

    hybrid_block.TENorm = WrappedTorchNorm  # the last norm, which no description has
    return call(
        HybridModel,
        config=config,
        hybrid_stack_spec=_describe(config, core_attention),
        hybrid_layer_pattern=pattern,
        **options,
    )


def gpt_name(model: Any, name: str) -> str:
    """The name in a GPTModel of a parameter of `model`, which may be a HybridModel."""
    if not hasattr(model.decoder, "layer_type_list"):
        return name
    name = _LAYER.sub(lambda found: f"{found[1]}{int(found[2]) // 2}.", name)
    name = _PREDICTION.sub(r"\1transformer_layer.", name)
    return name.replace("decoder.final_norm.", "decoder.final_layernorm.")


def _describe(config: TransformerConfig, core_attention: type | None) -> ModuleSpec:
    from megatron.core.models.hybrid.hybrid_block import HybridStack, HybridStackSubmodules
    from megatron.core.ssm.mlp_layer import MLPLayer
    from megatron.core.transformer import multi_token_prediction as prediction

    dense, experts = (
        get_gpt_layer_local_spec(
            num_experts=number,
            moe_grouped_gemm=False,
            qk_layernorm=config.qk_layernorm,
            multi_latent_attention=config.multi_latent_attention,
            normalization="RMSNorm",
        )
        for number in (None, config.num_moe_experts)
    )
    if core_attention is not None:
        dense.submodules.self_attention.submodules.core_attention = core_attention
    found = {
        "mla_layer" if config.multi_latent_attention else "attention_layer": _part(
            dense, _ATTENTION
        ),
        "mlp_layer": _part(dense, _MLP, MLPLayer),
        "moe_layer": _part(experts, _MLP),
    }
    ahead = prediction.MultiTokenPredictionLayerSubmodules(
        enorm=WrappedTorchNorm,
        hnorm=WrappedTorchNorm,
        eh_proj=ColumnParallelLinear,
        mtp_model_layer=None,
        layer_norm=WrappedTorchNorm,
    )
    block = prediction.MultiTokenPredictionBlockSubmodules(
        [ModuleSpec(prediction.MultiTokenPredictionLayer, submodules=ahead)]
    )
    found["mtp_block_spec"] = ModuleSpec(prediction.MultiTokenPredictionBlock, submodules=block)
    return ModuleSpec(HybridStack, submodules=HybridStackSubmodules(**found))


def _part(layer: ModuleSpec, names: tuple[str, ...], kind: type = TransformerLayer) -> ModuleSpec:
    given = {name: getattr(layer.submodules, name) for name in names}
    keys = layer.submodules.sharded_state_dict_keys_map
    return ModuleSpec(
        kind, submodules=TransformerLayerSubmodules(**given, sharded_state_dict_keys_map=keys)
    )
