"""Falcon-H1 for real megatron-core: Mamba beside attention, behind one norm, in every layer.

No megatron-core has such a layer, and Megatron-Bridge brings its own. This one is made of the
modules that megatron-core has for its parts. Multipliers, which are no weights, stay one.
"""

from collections.abc import Mapping
from typing import Any

import torch
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
from megatron.core.transformer.identity_op import IdentityOp
from megatron.core.transformer.spec_utils import ModuleSpec, build_module
from megatron.core.transformer.torch_norm import WrappedTorchNorm
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.transformer_layer import TransformerLayer
from torch import Tensor

from .megatron_nemotron import describe_layer

State = dict[str, Tensor]


def is_falcon(hf: Mapping[str, Any]) -> bool:
    return hf["model_type"] == "falcon_h1"


def shape(hf: Mapping[str, Any]) -> dict[str, Any]:
    """What megatron-core's config says of Mamba."""
    return {
        "mamba_state_dim": hf["mamba_d_state"],
        "mamba_head_dim": hf["mamba_d_head"],
        "mamba_num_groups": hf["mamba_n_groups"],
        "mamba_num_heads": hf["mamba_n_heads"],
    }


def make_pattern(hf: Mapping[str, Any], stages: int) -> str:
    """Layers of one kind, cut for the stages of a pipeline."""
    return "|".join(["*" * (hf["num_hidden_layers"] // stages)] * stages)


def describe() -> ModuleSpec:
    """A layer, in the place of one that is attention."""
    mixer = describe_layer().submodules.mixer
    parts = get_gpt_layer_local_spec(normalization="RMSNorm").submodules
    parts.input_layernorm = IdentityOp

    class ParallelLayer(TransformerLayer):  # type: ignore[misc]
        def __init__(self, config: TransformerConfig, *arguments: Any, **options: Any) -> None:
            super().__init__(config, *arguments, **options)
            size, epsilon = config.hidden_size, config.layernorm_epsilon
            self.norm = WrappedTorchNorm(config, size, epsilon)
            self.mamba_mixer = build_module(
                mixer,
                config,
                d_model=size,
                layer_number=self.layer_number,
                pg_collection=options["pg_collection"],
            )

        def forward(
            self, hidden_states: Tensor, attention_mask: Tensor, rotary_pos_emb: Tensor, **_: Any
        ) -> tuple[Tensor, None]:
            normed = self.norm(hidden_states)
            attended, _ = self.self_attention(normed, attention_mask, rotary_pos_emb=rotary_pos_emb)
            mixed, _ = self.mamba_mixer(normed)
            states = hidden_states + attended + mixed
            output, _ = self.mlp(self.pre_mlp_layernorm(states))
            return states + output, None

    return ModuleSpec(ParallelLayer, submodules=parts)


def full_state(hf: State, config: Mapping[str, Any]) -> State:
    """The state of the whole model. Empties `hf`."""
    state = {
        "embedding.word_embeddings.weight": hf.pop("model.embed_tokens.weight"),
        "decoder.final_norm.weight": hf.pop("model.final_layernorm.weight"),
        "output_layer.weight": hf.pop("lm_head.weight"),
    }
    names = {
        "model.layers.": "decoder.layers.",
        ".mamba.": ".mamba_mixer.",
        ".conv1d.": ".conv1d_",
        ".input_layernorm.": ".norm.",
        ".pre_ff_layernorm.": ".pre_mlp_layernorm.",
        ".feed_forward.down_proj.": ".mlp.linear_fc2.",
        ".feed_forward.gate_proj.": ".mlp.linear_fc1.",
        ".self_attn.o_proj.": ".self_attention.linear_proj.",
        ".self_attn.q_proj.": ".self_attention.linear_qkv.",
    }
    groups = config["num_key_value_heads"]
    for name in [name for name in hf if name.endswith(".q_proj.weight")]:
        parts = [hf.pop(name.replace(".q_", f".{kind}_")).chunk(groups) for kind in "qkv"]
        hf[name] = torch.cat([part[group] for group in range(groups) for part in parts])
    for name in [name for name in hf if name.endswith(".gate_proj.weight")]:
        hf[name] = torch.cat([hf.pop(name), hf.pop(name.replace(".gate_", ".up_"))])
    for name in list(hf):
        found = name
        for old, new in names.items():
            found = found.replace(old, new)
        state[found] = hf.pop(name)
    return state
