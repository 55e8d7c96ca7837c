"""A llama of one layer each of whose weights is quantised in another way, with what says how."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.support.merging import values

HIDDEN, FFN, VOCAB = 32, 64, 8
CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": HIDDEN,
    "intermediate_size": FFN,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "vocab_size": VOCAB,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "quantization_config": {
        "quant_method": "compressed-tensors",
        "weight_block_size": [16, 16],
        "config_groups": {
            "group_0": {
                "targets": ["Linear"],
                "weights": {"num_bits": 4, "group_size": 16, "symmetric": True},
            },
            "group_1": {"weights": {"num_bits": 8, "block_structure": "16x16"}},
        },
    },
}
_LAYER = "model.layers.0."


def _bytes(*shape: int) -> Tensor:
    return torch.arange(torch.Size(shape).numel()).reshape(shape).to(torch.uint8)


def _fp8(*shape: int) -> Tensor:
    return _bytes(*shape).view(torch.float8_e4m3fn)


def _quantised() -> dict[str, Tensor]:
    """By compressed-tensors, ModelOpt and DeepSeek: weights, scales, and what is beside these."""
    half, attention, mlp = HIDDEN // 2, f"{_LAYER}self_attn.", f"{_LAYER}mlp."
    one = torch.tensor([0.5])
    return {
        f"{attention}q_proj.weight_packed": _bytes(HIDDEN, half).view(torch.int32),
        f"{attention}q_proj.weight_scale": values(HIDDEN, 2).bfloat16(),
        f"{attention}q_proj.weight_shape": torch.tensor([HIDDEN, HIDDEN]),
        f"{attention}k_proj.weight_packed": _bytes(HIDDEN, half),
        f"{attention}k_proj.weight_scale": _fp8(HIDDEN, 2),
        f"{attention}k_proj.weight_global_scale": one,
        f"{attention}k_proj.input_global_scale": one.clone(),
        f"{attention}v_proj.weight": _bytes(HIDDEN, half),
        f"{attention}v_proj.weight_scale": _fp8(HIDDEN, 2),
        f"{attention}v_proj.weight_scale_2": one[0].clone(),
        f"{attention}v_scale": one.clone(),
        f"{attention}o_proj.weight_packed": _bytes(HIDDEN, half),
        f"{attention}o_proj.weight_scale": _bytes(HIDDEN, 1),
        f"{mlp}gate_proj.weight": _fp8(FFN, HIDDEN),
        f"{mlp}gate_proj.weight_scale_inv": values(4, 2),
        f"{mlp}up_proj.weight": _fp8(FFN, HIDDEN),
        f"{mlp}up_proj.weight_scale": values(FFN, 1).bfloat16(),
        f"{mlp}down_proj.weight": _bytes(HIDDEN, FFN // 2).view(torch.int8),
        f"{mlp}down_proj.scale": _bytes(HIDDEN, 2),
    }


def make_packed() -> dict[str, Tensor]:
    """All of its tensors."""
    norms = ("input_layernorm", "post_attention_layernorm")
    return {
        "model.embed_tokens.weight": values(VOCAB, HIDDEN).bfloat16(),
        "model.norm.weight": values(HIDDEN).bfloat16(),
        **{f"{_LAYER}{name}.weight": values(HIDDEN).bfloat16() for name in norms},
        **_quantised(),
    }


def write_packed(folder: Path) -> None:
    """Its weights in ``folder``, where its config is."""
    save_file(make_packed(), folder / "model.safetensors", {"format": "pt"})
