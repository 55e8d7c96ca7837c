"""What trainers bring of Gemma, EXAONE 4 and Nemotron: modules that megatron-core has not.

Norms after attention and MLP, in the linear layers that they follow, as Megatron-Bridge has them;
norms that count from one, which outside of Transformer Engine megatron-core refuses; softcaps; and
a second rotary embedding for layers with a sliding window.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from megatron.core.models.common.embeddings.rotary_pos_embedding import RotaryEmbedding
from megatron.core.tensor_parallel.layers import RowParallelLinear
from megatron.core.transformer.identity_op import IdentityOp
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.transformer_layer import TransformerLayer
from torch import Tensor, nn
from torch.nn.functional import gelu, layer_norm, rms_norm

HuggingFaceConfig = Mapping[str, Any]

GEMMA = ("gemma", "gemma2", "gemma3_text")
#: Norms of these families count from one.
CENTRED = (*GEMMA, "nemotron")
#: They have norms after attention and MLP; those of the second kind have no others.
SANDWICH = ("gemma2", "gemma3_text")
AFTER = ("exaone4",)
#: They have them beside attention and MLP.
BESIDE = ("glm4",)


class Norm(nn.Module):
    """Of either kind, from zero or from one."""

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float, **_: Any) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(hidden_size))
        self.bias = nn.Parameter(torch.zeros(hidden_size)) if _has_bias(config) else None
        self._epsilon = eps
        self._offset = float(getattr(config, "counts_from_one", False))

    def forward(self, states: Tensor) -> Tensor:
        weight = self.weight + self._offset
        if self.bias is None:
            return rms_norm(states, states.shape[-1:], weight, self._epsilon)
        return layer_norm(states, states.shape[-1:], weight, self.bias, self._epsilon)


def _has_bias(config: TransformerConfig) -> bool:
    return config.normalization == "LayerNorm"


class RowParallelLinearNorm(RowParallelLinear):  # type: ignore[misc]
    """A linear layer with the norm after it."""

    def __init__(self, input_size: int, output_size: int, **options: Any) -> None:
        super().__init__(input_size, output_size, **options)
        self.post_layernorm = Norm(self.config, output_size, self.config.layernorm_epsilon)

    def forward(self, states: Tensor) -> tuple[Tensor, Tensor | None]:
        output, bias = super().forward(states)
        assert bias is None
        return self.post_layernorm(output), None


class NormedLayer(TransformerLayer):  # type: ignore[misc]
    """A layer with norms of what attention and the MLP give, beside them, as slime has it."""

    def __init__(self, config: TransformerConfig, *arguments: Any, **options: Any) -> None:
        super().__init__(config, *arguments, **options)
        size, epsilon = config.hidden_size, config.layernorm_epsilon
        self.post_self_attn_layernorm = nn.RMSNorm(size, epsilon)
        self.post_mlp_layernorm = nn.RMSNorm(size, epsilon)
        for module, norm in (
            (self.self_attention, self.post_self_attn_layernorm),
            (self.mlp, self.post_mlp_layernorm),
        ):
            module.register_forward_hook(
                lambda _, inputs, output, norm=norm: (norm(output[0]), output[1])
            )


class Softcap(nn.Module):
    """Scores, bent before they are what they were."""

    def __init__(self, softmax: nn.Module, most: float) -> None:
        super().__init__()
        self._softmax, self._most = softmax, most

    def forward(self, scores: Tensor, *rest: Any) -> Tensor:
        found: Tensor = self._softmax(self._most * torch.tanh(scores / self._most), *rest)
        return found


def fit_layers(
    spec: TransformerBlockSubmodules, hf: HuggingFaceConfig, config: TransformerConfig
) -> None:
    """Put these modules into the description of a model, where its family has them."""
    family = hf["model_type"]
    if family in BESIDE:
        for layer in spec.layer_specs:
            layer.module = NormedLayer
    if family not in (*CENTRED, *AFTER):
        return
    config.counts_from_one = family in CENTRED
    spec.layer_norm = Norm
    for layer in spec.layer_specs:
        parts, attention = layer.submodules, layer.submodules.self_attention.submodules
        parts.input_layernorm = parts.pre_mlp_layernorm = IdentityOp if family in AFTER else Norm
        if config.qk_layernorm:
            attention.q_layernorm = attention.k_layernorm = Norm
        if family in (*SANDWICH, *AFTER):
            attention.linear_proj = RowParallelLinearNorm
            _find_parts(parts.mlp).linear_fc2 = RowParallelLinearNorm


def _find_parts(described: Any) -> Any:
    """What a described module is made of; since 0.19 some are functions that know it."""
    keywords = getattr(described, "keywords", None)
    return keywords["submodules"] if keywords else described.submodules


def describe(hf: HuggingFaceConfig) -> dict[str, Any]:
    """What the config of a model of these families says beside what that of any does."""
    family = hf["model_type"]
    values: dict[str, Any] = {}
    if family in GEMMA:
        values["activation_func"] = lambda states: gelu(states, approximate="tanh")
    if family == "nemotron":
        values |= {
            "normalization": "LayerNorm",
            "gated_linear_unit": False,
            "activation_func": lambda states: states.relu().square(),
        }
    slides = [kind == "sliding_attention" for kind in hf.get("layer_types") or ()]
    if any(slides):
        values |= {
            "window_size": (hf["sliding_window"] - 1, 0),
            "window_attn_skip_freq": [*map(int, slides), *[1] * count_ahead(hf)],
        }
    if family in AFTER:
        values["no_rope_freq"] = [int(not each) for each in slides]
    return values


def count_ahead(hf: HuggingFaceConfig) -> int:
    """How many layers predict further; before 0.19 their numbers are behind those of the others."""
    return hf.get("num_nextn_predict_layers") or 0


def find_theta(hf: HuggingFaceConfig, kind: str = "full_attention") -> float:
    """The base of the rotary embedding of all layers, or of those of a kind."""
    rope = hf["rope_parameters"]
    found: float = rope.get(kind, rope)["rope_theta"]
    return found


def fit_model(chunks: Iterable[Any], hf: HuggingFaceConfig) -> None:
    """What these families compute outside of modules with weights."""
    if hf["model_type"] not in GEMMA:
        return
    for chunk in chunks:
        if chunk.pre_process:
            _scale(chunk.embedding, hf["hidden_size"] ** 0.5)
        if chunk.post_process and hf.get("final_logit_softcapping"):
            bend(chunk.output_layer, hf["final_logit_softcapping"])
        for layer in chunk.decoder.layers:
            core = layer.self_attention.core_attention
            if "query_pre_attn_scalar" in hf:
                core.softmax_scale = hf["query_pre_attn_scalar"] ** -0.5
            if hf.get("attn_logit_softcapping"):
                core.scale_mask_softmax = Softcap(
                    core.scale_mask_softmax, hf["attn_logit_softcapping"]
                )
            kind = (hf.get("layer_types") or {layer.layer_number - 1: ""})[layer.layer_number - 1]
            if kind in hf["rope_parameters"]:
                _turn(layer.self_attention, hf, kind)


def _scale(embedding: nn.Module, factor: float) -> None:
    embedding.register_forward_hook(lambda module, inputs, output: output * factor)


def bend(head: nn.Module, most: float) -> None:
    """Have a head give logits that are less than `most`."""

    def cap(module: nn.Module, inputs: Any, output: tuple[Tensor, Any]) -> tuple[Tensor, Any]:
        return most * torch.tanh(output[0] / most), output[1]

    head.register_forward_hook(cap)


def _turn(attention: nn.Module, hf: HuggingFaceConfig, kind: str) -> None:
    rotary = RotaryEmbedding(hf["head_dim"], 1.0, rotary_base=find_theta(hf, kind))

    def turn(module: nn.Module, inputs: Any, options: dict[str, Any]) -> tuple[Any, Any]:
        return inputs, options | {"rotary_pos_emb": rotary(len(inputs[0]))}

    attention.register_forward_pre_hook(turn, with_kwargs=True)
