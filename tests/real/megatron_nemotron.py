"""Nemotron-H for real megatron-core: a HybridModel whose layers are one part each.

What it takes from elsewhere is here in torch: `mamba_ssm`'s scan and norm, and `einops`.
Transformers drops the layers for multi-token prediction, so they are run as the model's are.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import conv1d, pad, silu, softplus

from .megatron_has import MIXED_AHEAD

State = dict[str, Tensor]

_KINDS = ["linear_attention", "moe", "full_attention", "mlp"]
_SYMBOLS = {"linear_attention": "M", "moe": "E", "full_attention": "*", "mlp": "-"}
#: Two groups for two ranks; no width is another one, so that what is turned would show.
CONFIG: dict[str, Any] = {
    "vocab_size": 101,
    "hidden_size": 48,
    "layers_block_type": _KINDS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 10,
    "intermediate_size": 72,
    "max_position_embeddings": 64,
    "ssm_state_size": 6,
    "n_groups": 2,
    "mamba_num_heads": 4,
    "mamba_head_dim": 8,
    "chunk_size": 8,
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 40,
    "moe_shared_expert_intermediate_size": 56,
    "moe_latent_size": 20,
    "n_group": 2,
    "topk_group": 1,
    "routed_scaling_factor": 1.7,
    "num_nextn_predict_layers": int(MIXED_AHEAD),
    "mtp_layers_block_type": ["full_attention", "moe"],
    "bos_token_id": 1,
    "eos_token_id": 2,
}
MODELS = {"nemotron_h": ("NemotronHForCausalLM", CONFIG)}


def is_nemotron(hf: Mapping[str, Any]) -> bool:
    return hf["model_type"] == "nemotron_h"


class Ahead(nn.Module):
    """What is around the layers that predict a further token."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        size, epsilon = config.hidden_size, config.layer_norm_epsilon
        self.enorm = nn.RMSNorm(size, eps=epsilon)
        self.hnorm = nn.RMSNorm(size, eps=epsilon)
        self.eh_proj = nn.Linear(2 * size, size, bias=False)
        self.final_layernorm = nn.RMSNorm(size, eps=epsilon)


def lengthen(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config of a model that has the layers for multi-token prediction behind its own."""
    kinds = [*config["layers_block_type"], *config["mtp_layers_block_type"]]
    return {**config, "layers_block_type": kinds, "num_nextn_predict_layers": 0}


def publish(hf: Path, ahead: Ahead, depth: int) -> None:
    """Name the layers from `depth` on as the Hub does those for multi-token prediction."""
    (path,) = hf.glob("*.safetensors")
    found = {}
    for name, tensor in load_file(path).items():
        number = name.split(".")[2] if name.startswith("backbone.layers.") else "-1"
        layer, target = f"backbone.layers.{number}.", f"mtp.layers.{int(number) - depth}."
        found[name.replace(layer, target) if int(number) >= depth else name] = tensor
    last = max(int(name.split(".")[2]) for name in found if name.startswith("mtp."))
    for name, tensor in ahead.state_dict().items():
        number = last if name.startswith("final_layernorm") else 0
        found[f"mtp.layers.{number}.{name}"] = tensor
    save_file(found, path, metadata={"format": "pt"})


@torch.no_grad()
def predict(model: Any, layers: nn.ModuleList, ahead: Ahead, ids: Tensor) -> Tensor:
    """The logits of the token after the next: as megatron-core has it, 0 follows the last one."""
    following = torch.cat([ids[:, 1:], torch.zeros_like(ids[:, :1])], dim=1)
    states = model.model(ids, use_cache=False).last_hidden_state
    embedded = ahead.enorm(model.model.embeddings(following))
    states = ahead.eh_proj(torch.cat([embedded, ahead.hnorm(states)], dim=-1))
    future = torch.full((1, 1, ids.shape[1], ids.shape[1]), float("-inf")).triu(1)
    for layer in layers:
        states = layer(states, attention_mask=future)
    logits: Tensor = model.lm_head(ahead.final_layernorm(states))
    return logits


def make_pattern(hf: Mapping[str, Any], stages: int) -> str:
    """The symbols of all layers, cut for the stages of a pipeline."""
    symbols = [_SYMBOLS[kind] for kind in hf["layers_block_type"]]
    size = len(symbols) // stages
    cut = ["".join(symbols[at : at + size]) for at in range(0, len(symbols), size)]
    ahead = "".join(_SYMBOLS[kind] for kind in hf["mtp_layers_block_type"])
    return "|".join(cut) + f"/{ahead}" * hf["num_nextn_predict_layers"]


def shape(hf: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of megatron-core's config."""
    from megatron.core.activations import squared_relu

    return {
        "num_layers": len(hf["layers_block_type"]),
        "hidden_size": hf["hidden_size"],
        "ffn_hidden_size": hf["intermediate_size"],
        "num_attention_heads": hf["num_attention_heads"],
        "num_query_groups": hf["num_key_value_heads"],
        "kv_channels": hf["head_dim"],
        "layernorm_epsilon": hf["layer_norm_epsilon"],
        "normalization": "RMSNorm",
        "activation_func": squared_relu,
        "gated_linear_unit": False,
        "add_bias_linear": False,
        "attention_dropout": 0.0,
        "hidden_dropout": 0.0,
        "mtp_num_layers": hf["num_nextn_predict_layers"] or None,
        "mamba_state_dim": hf["ssm_state_size"],
        "mamba_head_dim": hf["mamba_head_dim"],
        "mamba_num_groups": hf["n_groups"],
        "mamba_num_heads": hf["mamba_num_heads"],
        "num_moe_experts": hf["n_routed_experts"],
        "moe_latent_size": hf["moe_latent_size"],
        "moe_router_topk": hf["num_experts_per_tok"],
        "moe_ffn_hidden_size": hf["moe_intermediate_size"],
        "moe_shared_expert_intermediate_size": hf["moe_shared_expert_intermediate_size"],
        "moe_router_score_function": "sigmoid",
        "moe_router_enable_expert_bias": True,
        "moe_router_num_groups": hf["n_group"],
        "moe_router_group_topk": hf["topk_group"],
        "moe_router_topk_scaling_factor": hf["routed_scaling_factor"],
    }


def describe_layer() -> Any:
    """A Mamba layer that runs on the CPU."""
    from ckpt_tool.plans.checks.megatron_child import mamba

    class ScanNorm(mamba.GatedNorm):
        """Over each of the groups of a rank."""

        def __init__(self, hidden_size: int, eps: float, group_size: int, **options: Any) -> None:
            super().__init__(hidden_size, **options)
            self.size, self.epsilon = group_size, eps

        def forward(self, states: Tensor) -> Tensor:
            groups = states.unflatten(-1, (-1, self.size))
            return self.weight * nn.functional.rms_norm(
                groups, (self.size,), eps=self.epsilon
            ).flatten(-2)

    kernels = {"mamba_split_conv1d_scan_combined": _scan}
    return mamba.describe_mamba(ScanNorm, kernels, rearrange=_rearrange)


def _rearrange(tensor: Tensor, pattern: str) -> Tensor:
    """`einops.rearrange` for what a mixer asks of it."""
    ways = {
        "l b d -> b l d": lambda: tensor.transpose(0, 1),
        "b l d -> l b d": lambda: tensor.transpose(0, 1),
        "d 1 w -> d w": lambda: tensor.squeeze(1),
    }
    return ways[pattern]()


def _scan(*tensors: Tensor, D: Tensor, headdim: int, ngroups: int, **_: Any) -> Tensor:  # noqa: N803
    """The convolution and the recurrence, step by step, times the gate."""
    inputs, weight, bias, dt_bias, decay = tensors
    heads, (channels, width) = len(decay), weight.shape
    inner = heads * headdim
    gate, mixed, steps = inputs.split([inner, channels, heads], dim=-1)
    mixed = pad(mixed.transpose(1, 2), (width - 1, 0))
    mixed = silu(conv1d(mixed, weight[:, None], bias, groups=channels)).transpose(1, 2)
    states, *rest = mixed.split([inner, (channels - inner) // 2, (channels - inner) // 2], dim=-1)
    states = states.unflatten(-1, (heads, headdim))
    into, out = (
        part.unflatten(-1, (ngroups, -1)).repeat_interleave(heads // ngroups, dim=2)
        for part in rest
    )
    steps = softplus(steps + dt_bias)
    held, found = torch.zeros(()), []
    for at in range(inputs.shape[1]):
        now = steps[:, at, :, None, None]
        added = now * states[:, at, :, :, None] * into[:, at, :, None]
        held = (now * decay[:, None, None]).exp() * held + added
        found.append((held * out[:, at, :, None]).sum(-1) + D[:, None] * states[:, at])
    return torch.stack(found, dim=1).flatten(2) * silu(gate)


def full_state(hf: State, config: Mapping[str, Any]) -> State:
    """The state of the whole HybridModel with local layers. Empties `hf`."""
    state = {
        "embedding.word_embeddings.weight": hf.pop("backbone.embeddings.weight"),
        "decoder.final_norm.weight": hf.pop("backbone.norm_f.weight"),
        "output_layer.weight": hf.pop("lm_head.weight"),
    }
    for name in list(hf):
        top, _, number, rest = name.split(".", 3)
        layer = f"decoder.layers.{number}."
        if top == "mtp":
            outside = rest.startswith(("enorm", "hnorm", "eh_proj", "final_layernorm"))
            layer = "mtp.layers.0." + ("" if outside else f"mtp_model_layer.layers.{number}.")
        kinds = config["mtp_layers_block_type" if top == "mtp" else "layers_block_type"]
        state[layer + _name(rest, kinds[int(number)])] = hf.pop(name)
    groups = config["num_key_value_heads"]
    for name in [name for name in state if name.endswith(".q_proj.weight")]:
        parts = [state.pop(name.replace(".q_", f".{kind}_")).chunk(groups) for kind in "qkv"]
        rows = [part[group] for group in range(groups) for part in parts]
        state[name.replace("mixer.q_proj", "self_attention.linear_qkv")] = torch.cat(rows)
    return state


def _name(rest: str, kind: str) -> str:
    """The name of a local layer below its own."""
    norms = {"full_attention": "input_layernorm.", "linear_attention": "norm."}
    if rest.startswith("norm."):
        return rest.replace("norm.", norms.get(kind, "pre_mlp_layernorm."), 1)
    if kind == "linear_attention":
        return rest.replace("conv1d.", "conv1d_")
    if kind == "full_attention":
        return rest.replace("mixer.o_proj.", "self_attention.linear_proj.")
    names = {
        "mixer.gate.e_score_correction_bias": "mlp.router.expert_bias",
        "mixer.gate.weight": "mlp.router.weight",
    }
    rest = names.get(rest, rest).replace("mixer.", "mlp.")
    rest = rest.replace("up_proj", "linear_fc1").replace("down_proj", "linear_fc2")
    return rest.replace("mlp.experts.", "mlp.experts.local_experts.")
