"""Small configs of the families that are always a HybridModel, and their tensors by hand."""

from pathlib import Path
from typing import NamedTuple

import torch

from ckpt_tool.mapping.config import ModelConfig
from tests.support.megatron_models import fill
from tests.support.megatron_parts import DECODER, GROUPED, Shapes, gated, under, vectors

# Four heads of three; two groups, each with a state of seven.
_MIXER: Shapes = {
    "in_proj.weight": (56, 6),  # 12 + 12 + 14 + 14 + 4
    "conv1d.weight": (40, 1, 4),
    "conv1d.bias": (40,),
    "A_log": (4,),
    "D": (4,),
    "dt_bias": (4,),
    "norm.weight": (12,),
    "out_proj.weight": (6, 12),
}
_EXPERTS: Shapes = {
    "gate.weight": (3, 6),
    "gate.e_score_correction_bias": (3,),
    "shared_experts.up_proj.weight": (9, 6),
    "shared_experts.down_proj.weight": (6, 9),
    "fc1_latent_proj.weight": (10, 6),
    "fc2_latent_proj.weight": (6, 10),
}
for _expert in range(3):
    _EXPERTS[f"experts.{_expert}.up_proj.weight"] = (8, 10)
    _EXPERTS[f"experts.{_expert}.down_proj.weight"] = (10, 8)


def _list_nemotron() -> Shapes:
    kinds: dict[str, Shapes] = {
        "M": _MIXER,
        "*": {name.removeprefix("self_attn."): shape for name, shape in GROUPED.items()},
        "-": {"up_proj.weight": (5, 6), "down_proj.weight": (6, 5)},
        "E": _EXPERTS,
    }
    shapes: Shapes = {"backbone.embeddings.weight": (11, 6), "backbone.norm_f.weight": (6,)}
    shapes["lm_head.weight"] = (11, 6)
    layers = [f"backbone.layers.{number}." for number in range(5)]
    layers += [f"mtp.layers.{number}." for number in range(4)]
    for layer, kind in zip(layers, "ME*-E*E*E", strict=True):
        shapes |= under(f"{layer}mixer.", kinds[kind]) | under(layer, vectors("norm"))
    for first in (0, 2):
        shapes |= under(f"mtp.layers.{first}.", vectors("enorm", "hnorm"))
        shapes[f"mtp.layers.{first}.eh_proj.weight"] = (6, 12)
        shapes[f"mtp.layers.{first + 1}.final_layernorm.weight"] = (6,)
    return shapes


def _list_falcon() -> Shapes:
    shapes: Shapes = {"model.embed_tokens.weight": (11, 6), "model.final_layernorm.weight": (6,)}
    shapes["lm_head.weight"] = (11, 6)
    layer = under("mamba.", _MIXER) | GROUPED | gated("feed_forward", 5)
    layer |= vectors("input_layernorm", "pre_ff_layernorm")
    return shapes | under("model.layers.0.", layer) | under("model.layers.1.", layer)


class Hybrid(NamedTuple):
    """A family: its config, and the name and shape of every tensor."""

    config: dict
    shapes: Shapes


_MODELS = {
    "nemotron_h": Hybrid(
        DECODER
        | {
            "num_hidden_layers": 5,
            "hybrid_override_pattern": "ME*-E",
            "mamba_num_heads": 4,
            "mamba_head_dim": 3,
            "n_groups": 2,
            "ssm_state_size": 7,
            "conv_kernel": 4,
            "n_routed_experts": 3,
            "n_shared_experts": 1,
            "moe_intermediate_size": 8,
            "moe_shared_expert_intermediate_size": 9,
            "moe_latent_size": 10,
            "num_experts_per_tok": 2,
            "num_nextn_predict_layers": 2,
            "mtp_hybrid_override_pattern": "*E",
        },
        _list_nemotron(),
    ),
    "falcon_h1": Hybrid(
        DECODER
        | {
            "num_hidden_layers": 2,
            "mamba_n_heads": 4,
            "mamba_d_head": "auto",
            "mamba_d_ssm": 12,
            "mamba_n_groups": 2,
            "mamba_d_state": 7,
            "mamba_d_conv": 4,
            "mamba_rms_norm": True,
        },
        _list_falcon(),
    ),
}
HYBRIDS = {family: model.config for family, model in _MODELS.items()}


def config_of(family: str, **changes) -> ModelConfig:
    raw = {"model_type": family, **HYBRIDS[family], **changes}
    return ModelConfig(Path("model"), raw, {})


def hub_shapes(family: str) -> Shapes:
    """Name -> shape of every tensor; nothing here comes from the tables."""
    return dict(_MODELS[family].shapes)


def hub_tensors(family: str) -> dict[str, torch.Tensor]:
    """The tensors, all elements of which differ, also from those of every other tensor."""
    return fill(hub_shapes(family))
