"""Small configs of the families that are always a HybridModel, and their tensors by hand."""

from pathlib import Path

import torch

from ckpt_tool.mapping.config import ModelConfig

Shapes = dict[str, tuple[int, ...]]

_BASE = {
    "hidden_size": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 2,
    "intermediate_size": 5,
    "vocab_size": 11,
    "tie_word_embeddings": False,
}
HYBRIDS = {
    "nemotron_h": _BASE
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
    "falcon_h1": _BASE
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
}


def config_of(family: str, **changes) -> ModelConfig:
    raw = {"model_type": family, **HYBRIDS[family], **changes}
    return ModelConfig(Path("model"), raw, {})


def hub_shapes(family: str) -> Shapes:
    """Name -> shape of every tensor; nothing here comes from the tables."""
    return (_nemotron if family == "nemotron_h" else _falcon)()


def hub_tensors(family: str) -> dict[str, torch.Tensor]:
    """The tensors, all elements of which differ, also from those of every other tensor."""
    at, tensors = 1, {}
    for name, shape in hub_shapes(family).items():
        size = torch.Size(shape).numel()
        tensors[name] = torch.arange(at, at + size, dtype=torch.float32).reshape(shape)
        at += size
    return tensors


def _mixer(prefix: str) -> Shapes:
    """Four heads of three; two groups, each with a state of seven."""
    shapes = {
        "in_proj.weight": (56, 6),  # 12 + 12 + 14 + 14 + 4
        "conv1d.weight": (40, 1, 4),
        "conv1d.bias": (40,),
        "A_log": (4,),
        "D": (4,),
        "dt_bias": (4,),
        "norm.weight": (12,),
        "out_proj.weight": (6, 12),
    }
    return {prefix + name: shape for name, shape in shapes.items()}


def _attention(prefix: str) -> Shapes:
    rows = {"q": 8, "k": 4, "v": 4}
    shapes = {f"{prefix}{name}_proj.weight": (size, 6) for name, size in rows.items()}
    return shapes | {f"{prefix}o_proj.weight": (6, 8)}


def _experts() -> Shapes:
    shapes = {
        "gate.weight": (3, 6),
        "gate.e_score_correction_bias": (3,),
        "shared_experts.up_proj.weight": (9, 6),
        "shared_experts.down_proj.weight": (6, 9),
        "fc1_latent_proj.weight": (10, 6),
        "fc2_latent_proj.weight": (6, 10),
    }
    for expert in range(3):
        shapes[f"experts.{expert}.up_proj.weight"] = (8, 10)
        shapes[f"experts.{expert}.down_proj.weight"] = (10, 8)
    return {f"mixer.{name}": shape for name, shape in shapes.items()}


def _nemotron() -> Shapes:
    kinds = {
        "M": _mixer("mixer."),
        "*": _attention("mixer."),
        "-": {"mixer.up_proj.weight": (5, 6), "mixer.down_proj.weight": (6, 5)},
        "E": _experts(),
    }
    shapes = {"backbone.embeddings.weight": (11, 6), "backbone.norm_f.weight": (6,)}
    shapes["lm_head.weight"] = (11, 6)
    layers = [f"backbone.layers.{number}." for number in range(5)]
    layers += [f"mtp.layers.{number}." for number in range(4)]
    for layer, kind in zip(layers, "ME*-E*E*E", strict=True):
        shapes |= {layer + name: shape for name, shape in kinds[kind].items()}
        shapes[f"{layer}norm.weight"] = (6,)
    for first in (0, 2):
        shapes |= {f"mtp.layers.{first}.{name}.weight": (6,) for name in ("enorm", "hnorm")}
        shapes[f"mtp.layers.{first}.eh_proj.weight"] = (6, 12)
        shapes[f"mtp.layers.{first + 1}.final_layernorm.weight"] = (6,)
    return shapes


def _falcon() -> Shapes:
    shapes = {"model.embed_tokens.weight": (11, 6), "model.final_layernorm.weight": (6,)}
    shapes["lm_head.weight"] = (11, 6)
    layer = _mixer("mamba.") | _attention("self_attn.")
    layer |= {f"feed_forward.{name}_proj.weight": (5, 6) for name in ("gate", "up")}
    layer["feed_forward.down_proj.weight"] = (6, 5)
    layer |= {f"{name}_layernorm.weight": (6,) for name in ("input", "pre_ff")}
    for number in range(2):
        shapes |= {f"model.layers.{number}.{name}": shape for name, shape in layer.items()}
    return shapes
