"""DeciLM, Llamas of whose layers each has sizes of its own: transformers' layers, cut to them.

transformers has no class of it. The layers of megatron-core are its own.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import save_file
from torch import Tensor, nn

from .fill import fill_distinct
from .old_transformers import from_config

#: Of four heads two see the same keys, or all of them; widths are multiples of 256, as ever.
CONFIG: dict[str, Any] = {
    "vocab_size": 101,
    "hidden_size": 32,
    "head_dim": 8,
    "num_attention_heads": 4,
    "num_hidden_layers": 4,
    "max_position_embeddings": 64,
    "tie_word_embeddings": False,
    "rms_norm_eps": 1e-6,
    "rope_parameters": {"rope_type": "default", "rope_theta": 50000.0},
}
#: How many heads see the same keys, and how many times as wide as the model an MLP is.
_LAYERS = ((2, 12.0), (None, 24.0), (1, None), (2, 23.9))
_BLOCKS = [
    {
        "attention": {"n_heads_in_group": heads, "no_op": heads is None},
        "ffn": {"ffn_mult": times, "no_op": times is None},
    }
    for heads, times in _LAYERS
]
_WIDTHS = (256, 512, 0, 512)
MODELS = {"nemotron-nas": ("DeciLMForCausalLM", CONFIG)}


def is_deci(hf: Mapping[str, Any]) -> bool:
    return hf["model_type"] == "nemotron-nas"


class _Layer(nn.Module):
    """A Llama's layer without attention or without an MLP, each with the norm before it."""

    def __init__(self, layer: Any, heads: int | None, width: int) -> None:
        super().__init__()
        config = layer.self_attn.config
        parts = type(layer.self_attn), type(layer.mlp), type(layer.input_layernorm)
        attention, mlp, norm = parts
        sizes = {"num_key_value_heads": config.num_attention_heads // (heads or 1)}
        own = type(config)(**config.to_dict() | sizes | {"intermediate_size": width or 1})
        own._attn_implementation = "eager"
        if heads:
            self.input_layernorm = norm(config.hidden_size, eps=config.rms_norm_eps)
            self.self_attn = attention(own, layer_idx=layer.self_attn.layer_idx)
        if width:
            self.post_attention_layernorm = norm(config.hidden_size, eps=config.rms_norm_eps)
            self.mlp = mlp(own)

    def forward(self, states: Tensor, **options: Any) -> Tensor:
        if hasattr(self, "self_attn"):
            states = states + self.self_attn(self.input_layernorm(states), **options)[0]
        if hasattr(self, "mlp"):
            states = states + self.mlp(self.post_attention_layernorm(states))
        return states


def write_model(folder: Path) -> tuple[Path, Any]:
    """Write the model below `folder`; return the Hugging Face folder, and what computes logits."""
    settings = transformers.LlamaConfig(**CONFIG | {"num_key_value_heads": 4})
    model = from_config(transformers.LlamaForCausalLM, settings, torch.float32)
    for number, ((heads, _), width) in enumerate(zip(_LAYERS, _WIDTHS, strict=True)):
        model.model.layers[number] = _Layer(model.model.layers[number], heads, width)
    fill_distinct(model)
    hf = folder / "hf"
    hf.mkdir(parents=True)
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    save_file(state, hf / "model.safetensors", metadata={"format": "pt"})
    said = {
        **CONFIG,
        "model_type": "nemotron-nas",
        "architectures": ["DeciLMForCausalLM"],
        "block_configs": _BLOCKS,
        "intermediate_size": None,
        "num_key_value_heads": None,
        "hidden_act": "silu",
        "dtype": "float32",
    }
    (hf / "config.json").write_text(json.dumps(said, indent=2))
    return hf, model.eval()


def make_config(hf: Mapping[str, Any], values: Mapping[str, Any]) -> Any:
    """megatron-core's config, which reads what layers are of from the model's."""
    from megatron.core.transformer.heterogeneous import heterogeneous_config

    from ckpt_tool.plans.checks.megatron_child.cpu import call

    kind = heterogeneous_config.HeterogeneousTransformerConfig
    encoded = {"heterogeneous_layers_config_encoded_json": json.dumps(dict(hf))}
    return call(kind, **values, **encoded)


def describe(config: Any, stage: int | None) -> Any:
    """The layers of a stage of the pipeline."""
    from megatron.core.models.gpt.heterogeneous import heterogeneous_layer_specs

    return heterogeneous_layer_specs.get_gpt_heterogeneous_layer_spec(config, vp_stage=stage)
