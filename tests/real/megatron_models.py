"""Tiny Hugging Face models of the families that megatron-core can train, as folders on disk.

`write_model(name, folder)` leaves `folder/hf` (config and safetensors shards, as `save_pretrained`
writes them) and `folder/reference.safetensors` (`input_ids` and the fp32 logits of transformers;
for a model with multi-token prediction also `mtp_logits`). Every tensor's elements are distinct.

Sizes divide by two wherever a parallel size of two cuts, except the vocabulary: 251 rows have to
be padded before they can be cut. "llama" has 256, which need no padding.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from . import megatron_deci as deci
from . import megatron_gemma4_models as gemma4
from . import megatron_ling as ling
from . import megatron_nemotron as nemotron
from . import megatron_routed as routed
from . import megatron_step as step
from .fill import fill_distinct
from .fsdp_reference import logits_of
from .old_transformers import from_config

# Small enough that every model gets several shards and an index, as models on the Hub have.
_SHARD_SIZE = "300KB"
_PREDICTION_FILE = "model-mtp.safetensors"
_BATCH = 2
_SEQUENCE = 12

_DECODER: dict[str, Any] = {
    "vocab_size": 251,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    # Not the default, so that a base that nobody hands on shows in the logits.
    "rope_parameters": {"rope_type": "default", "rope_theta": 50000.0},
}
# Neither the experts' size nor its double is the hidden size: a transposed expert would show.
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 40}
# Two groups of four experts of which one group is chosen: both choices depend on the bias.
_BIASED_ROUTING = {
    "n_routed_experts": 8,
    "n_shared_experts": 2,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 40,
    "n_group": 2,
    "topk_group": 1,
    "norm_topk_prob": True,
    "routed_scaling_factor": 1.7,
    "first_k_dense_replace": 1,
    "num_nextn_predict_layers": 0,
}
_LATENT_ATTENTION = {
    "num_key_value_heads": 4,
    "q_lora_rank": 24,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 12,
    "qk_rope_head_dim": 8,
    "v_head_dim": 14,
}
_MOONLIGHT = {
    **_LATENT_ATTENTION,
    **_BIASED_ROUTING,
    "q_lora_rank": None,
    "n_group": 1,
    "first_k_dense_replace": 2,
}
#: As many experts are chosen as groups: of each the best, by which groups are judged.
_SOFTMAX_ROUTING = {
    **_BIASED_ROUTING,
    "n_group": 4,
    "topk_group": 2,
    "topk_method": "group_limited_greedy",
    "norm_topk_prob": False,
}
_ERNIE = {
    "moe_num_experts": 8,
    "moe_k": 2,
    "moe_num_shared_experts": 2,
    "moe_intermediate_size": 40,
    "moe_layer_start_index": 1,
    "moe_layer_end_index": 2,
}
#: Queries are scaled, by nothing at positions below the second number.
_SCALED = {
    **_DECODER["rope_parameters"],
    "llama_4_scaling_beta": 0.1,
    "original_max_position_embeddings": 64,
}
_GLM4 = {
    **_BIASED_ROUTING,
    "n_group": 1,
    "n_shared_experts": 1,
    "head_dim": 24,
    "attention_bias": True,
    "use_qk_norm": True,
    "rope_parameters": {**_DECODER["rope_parameters"], "partial_rotary_factor": 0.5},
}
#: Neither heads nor their widths are alike; two of four layers have linear attention. The fifth
#: predicts further.
_GATED = {
    # The norm after a recurrence makes much of what was rounded: less where sums are short.
    "hidden_size": 32,
    "rms_norm_eps": 1e-3,
    "head_dim": 24,
    "rope_parameters": {**_DECODER["rope_parameters"], "partial_rotary_factor": 0.25},
    "layer_types": [*["linear_attention", "full_attention"] * 2, "full_attention"],
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 12,
    "linear_value_head_dim": 10,
}

#: One layer that sees all, and windows that are shorter than what is read.
_SLIDING = {
    "head_dim": 24,
    "sliding_window": 5,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
}
#: Fewer are chosen than are read.
_INDEXED = {
    **_LATENT_ATTENTION,
    **_BIASED_ROUTING,
    "rms_norm_eps": 1e-6,  # that of the norms of latent attention, whatever is said here
    "index_topk": 4,
    "index_n_heads": 2,
    "index_head_dim": 16,
}
_GEMMA = {"tie_word_embeddings": True, "pad_token_id": 0, "query_pre_attn_scalar": 100}

_MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaForCausalLM", {"vocab_size": 256}),
    "mistral": ("MistralForCausalLM", {"head_dim": 24, "sliding_window": None}),
    "qwen2": ("Qwen2ForCausalLM", {"tie_word_embeddings": True}),
    "qwen3": ("Qwen3ForCausalLM", {"head_dim": 24}),
    "qwen3_moe": ("Qwen3MoeForCausalLM", {**_EXPERTS, "head_dim": 24, "norm_topk_prob": True}),
    "qwen3_moe_mlp_only": (
        "Qwen3MoeForCausalLM",
        {**_EXPERTS, "head_dim": 24, "norm_topk_prob": True, "mlp_only_layers": [0, 2]},
    ),
    "mixtral": (
        "MixtralForCausalLM",
        {"intermediate_size": 40, "num_local_experts": 4, "num_experts_per_tok": 2},
    ),
    "qwen2_moe": (
        "Qwen2MoeForCausalLM",
        {**_EXPERTS, "shared_expert_intermediate_size": 56, "norm_topk_prob": False},
    ),
    "deepseek_v3": ("DeepseekV3ForCausalLM", {**_LATENT_ATTENTION, **_BIASED_ROUTING}),
    "moonlight": ("DeepseekV3ForCausalLM", _MOONLIGHT),
    "glm4_moe": ("Glm4MoeForCausalLM", _GLM4),
    "deepseek_v3_mtp": (
        "DeepseekV3ForCausalLM",
        {**_LATENT_ATTENTION, **_BIASED_ROUTING, "num_nextn_predict_layers": 1},
    ),
    "glm4_moe_mtp": ("Glm4MoeForCausalLM", {**_GLM4, "num_nextn_predict_layers": 1}),
    "glm4_moe_lite_mtp": (
        "Glm4MoeLiteForCausalLM",
        {
            **_LATENT_ATTENTION,
            **_BIASED_ROUTING,
            "num_nextn_predict_layers": 1,
            "rms_norm_eps": 1e-6,  # that of the norms of latent attention, whatever is said here
        },
    ),
    "dots1": ("Dots1ForCausalLM", {**_BIASED_ROUTING, "head_dim": 24}),
    "ernie4_5_moe": ("Ernie4_5_MoeForCausalLM", _ERNIE),
    "ernie4_5": ("Ernie4_5ForCausalLM", {"head_dim": 24, "tie_word_embeddings": True}),
    "olmoe": (
        "OlmoeForCausalLM",
        {"intermediate_size": 40, "num_experts": 4, "num_experts_per_tok": 2},
    ),
    "minimax_m2": (
        "MiniMaxM2ForCausalLM",
        {
            "intermediate_size": 40,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "head_dim": 24,
            "rope_parameters": {**_DECODER["rope_parameters"], "partial_rotary_factor": 0.5},
        },
    ),
    "qwen3_next": (
        "Qwen3NextForCausalLM",
        {
            **_EXPERTS,
            **_GATED,
            "shared_expert_intermediate_size": 56,
            "norm_topk_prob": True,
            "vocab_size": 101,
            "num_nextn_predict_layers": 1,
        },
    ),
    "qwen3_5": ("Qwen3_5ForCausalLM", {**_GATED, "num_nextn_predict_layers": 1, "vocab_size": 101}),
    "qwen3_5_moe": (
        "Qwen3_5MoeForCausalLM",
        {
            **_EXPERTS,
            **_GATED,
            "shared_expert_intermediate_size": 56,
            "num_nextn_predict_layers": 1,
            "vocab_size": 101,
        },
    ),
    "ministral3": ("Ministral3ForCausalLM", {"head_dim": 24, "rope_parameters": _SCALED}),
    "deepseek_v2": ("DeepseekV2ForCausalLM", {**_LATENT_ATTENTION, **_SOFTMAX_ROUTING}),
    "deepseek_v2_lite": (
        "DeepseekV2ForCausalLM",
        {**_LATENT_ATTENTION, **_SOFTMAX_ROUTING, "q_lora_rank": None, "topk_method": "greedy"},
    ),
    "glm_moe_dsa_mtp": (
        "GlmMoeDsaForCausalLM",
        {
            **_INDEXED,
            "num_nextn_predict_layers": 1,
            "indexer_types": ["full", "shared", "full", "shared", "full"],
        },
    ),
    "deepseek_v32": ("DeepseekV32ForCausalLM", _INDEXED),
    "gemma": ("GemmaForCausalLM", {"tie_word_embeddings": True, "pad_token_id": 0, "head_dim": 24}),
    "gemma2": (
        "Gemma2ForCausalLM",
        # Caps that are near to what is capped.
        {**_SLIDING, **_GEMMA, "attn_logit_softcapping": 0.3, "final_logit_softcapping": 3.0},
    ),
    "gemma3_text": (
        "Gemma3ForCausalLM",
        {
            **_SLIDING,
            **_GEMMA,
            "rope_parameters": {
                "full_attention": _DECODER["rope_parameters"],
                "sliding_attention": {"rope_type": "default", "rope_theta": 300.0},
            },
        },
    ),
    "exaone4": ("Exaone4ForCausalLM", _SLIDING),
    "llama4_text": (
        "Llama4ForCausalLM",
        {
            "head_dim": 24,
            "intermediate_size": 40,
            "intermediate_size_mlp": 96,
            "num_local_experts": 4,
            "interleave_moe_layer_step": 2,
            "no_rope_layers": [1, 1, 1, 1],
            "pad_token_id": 0,
        },
    ),
    "glm4": (
        "Glm4ForCausalLM",
        {
            "head_dim": 24,
            "attention_bias": True,
            "pad_token_id": 0,
            "rope_parameters": {**_DECODER["rope_parameters"], "partial_rotary_factor": 0.5},
        },
    ),
    "nemotron": (
        "NemotronForCausalLM",
        {
            "head_dim": 24,
            "rope_parameters": {**_DECODER["rope_parameters"], "partial_rotary_factor": 0.5},
        },
    ),
    "falcon_h1": (
        "FalconH1ForCausalLM",
        {
            "vocab_size": 101,
            "head_dim": 16,
            "mamba_d_ssm": 40,
            "mamba_n_heads": 4,
            "mamba_d_head": 10,
            "mamba_n_groups": 2,
            "mamba_d_state": 6,
            "mamba_chunk_size": 8,
            "mamba_rms_norm": True,
            "mamba_norm_before_gate": False,
        },
    ),
    **routed.MODELS,
    **nemotron.MODELS,
    **deci.MODELS,
    **gemma4.MODELS,
    **step.MODELS,
    **ling.MODELS,
}
NAMES = tuple(_MODELS)
CLASSES = frozenset(name for name, _ in _MODELS.values())
_DENSE = (
    *("llama", "mistral", "qwen2", "qwen3", "ministral3"),
    *("gemma", "gemma2", "gemma3_text", "exaone4", "nemotron", "glm4", "nemotron-nas", "qwen3_5"),
    *("gemma4_text", "falcon_h1", "ernie4_5"),
)
WITH_EXPERTS = tuple(name for name in NAMES if name not in _DENSE)


class _PredictionHead(nn.Module):
    """What a multi-token prediction layer has beside a decoder layer, under its names on the Hub.

    transformers' models drop these tensors, so this module stands in for them.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        hidden, epsilon = model.config.hidden_size, model.config.rms_norm_eps
        norm = type(model.model.norm)  # which counts from one, or from zero
        self.enorm = norm(hidden, eps=epsilon)
        self.hnorm = norm(hidden, eps=epsilon)
        self.eh_proj = nn.Linear(2 * hidden, hidden, bias=False)
        self.shared_head = nn.ModuleDict({"norm": norm(hidden, eps=epsilon)})

    def tensors(self, prefix: str, model: PreTrainedModel) -> dict[str, Tensor]:
        """All tensors under `prefix`; embedding and head are repeated, as DeepSeek publishes it."""
        own = {f"{prefix}{name}": tensor for name, tensor in self.state_dict().items()}
        return own | {
            f"{prefix}embed_tokens.weight": model.model.embed_tokens.weight.detach().clone(),
            f"{prefix}shared_head.head.weight": model.lm_head.weight.detach().clone(),
        }

    def tensors_of_qwen(self) -> dict[str, Tensor]:
        """All tensors as Qwen3-Next has them, which repeats nothing."""
        names = {"enorm": "pre_fc_norm_embedding", "hnorm": "pre_fc_norm_hidden"}
        names |= {"eh_proj": "fc", "shared_head.norm": "norm"}
        state = self.state_dict()
        return {f"mtp.{new}.weight": state[f"{old}.weight"] for old, new in names.items()}


def write_model(name: str, folder: Path) -> Path:
    """Write the model below `folder` and return the Hugging Face folder."""
    class_name, overrides = _MODELS[name]
    if name in nemotron.MODELS:
        return _write_nemotron(class_name, overrides, folder)
    if name in deci.MODELS:
        hf, model = deci.write_model(folder)
        save_file(_reference(model), folder / "reference.safetensors")
        return hf
    if name in step.MODELS:
        return step.write_model(folder)
    config = {**_DECODER, **overrides}
    depth = config.get("num_nextn_predict_layers", 0)
    model = _build(class_name, {**config, "num_hidden_layers": config["num_hidden_layers"] + depth})
    hf = folder / "hf"
    model.save_pretrained(hf, max_shard_size=_SHARD_SIZE)
    reference = _add_prediction(model, hf) if depth else _reference(model)
    _publish(name, hf)
    save_file(reference, folder / "reference.safetensors")
    return hf


def _publish(name: str, hf: Path) -> None:
    """Give a folder the names that the Hub has where transformers has no class to write them."""
    path = hf / "config.json"
    config = json.loads(path.read_text())
    files = list(hf.glob("*.safetensors"))
    state = {key: value for file in files for key, value in load_file(file).items()}
    is_ling = name in ling.MODELS
    found, said = ling.publish(state, config) if is_ling else routed.publish(name, state, config)
    if found is state:
        return
    for file in hf.glob("*.safetensors*"):
        file.unlink()
    save_file(found, hf / "model.safetensors", metadata={"format": "pt"})
    path.write_text(json.dumps(said, indent=2))


def _write_nemotron(class_name: str, config: Mapping[str, Any], folder: Path) -> Path:
    """A model whose last layers, which transformers has no room for, predict a further token."""
    kinds = config["layers_block_type"]
    if not config["num_nextn_predict_layers"]:
        model = _build(class_name, config)
        model.save_pretrained(folder / "hf")
        save_file(_reference(model), folder / "reference.safetensors")
        return folder / "hf"
    model = _build(class_name, nemotron.lengthen(config))
    ahead = nemotron.Ahead(model.config)
    fill_distinct(ahead)
    hf = folder / "hf"
    model.save_pretrained(hf)
    nemotron.publish(hf, ahead, len(kinds))
    layers, model.model.layers = model.model.layers[len(kinds) :], model.model.layers[: len(kinds)]
    model.config.layers_block_type = list(kinds)
    model.config.num_nextn_predict_layers = config["num_nextn_predict_layers"]
    model.config.save_pretrained(hf)
    found = _reference(model)
    found["mtp_logits"] = nemotron.predict(model, layers, ahead, found["input_ids"])
    save_file(found, folder / "reference.safetensors")
    return hf


def _build(class_name: str, config: Mapping[str, Any]) -> PreTrainedModel:
    """Eager attention and experts in fp32: what the reference computes then is plain arithmetic."""
    model_class: type[PreTrainedModel] = getattr(transformers, class_name)
    config_class = model_class.config_class
    if "model_type" in config:
        config_class = transformers.CONFIG_MAPPING[config["model_type"]]
    settings = config_class(architectures=[class_name], **config)
    model = from_config(model_class, settings, torch.float32)
    if "layer_group_size" in config:
        ling.replace_attention(model, config["num_nextn_predict_layers"])
    fill_distinct(model)
    if class_name == "Gemma4ForCausalLM":
        gemma4.settle(model)
    return model.eval()


def _input_ids(model: PreTrainedModel) -> Tensor:
    generator = torch.Generator().manual_seed(7)
    ids = torch.randint(model.config.vocab_size, (_BATCH, _SEQUENCE), generator=generator)
    ids[0, 0] = model.config.vocab_size - 1  # the last row before any padding
    return ids


def _reference(model: PreTrainedModel) -> dict[str, Tensor]:
    ids = _input_ids(model)
    return {"input_ids": ids, "logits": logits_of(model, ids)}


def _add_prediction(model: PreTrainedModel, hf: Path) -> dict[str, Tensor]:
    """Turn the last decoder layer of `model`, and of its folder, into a prediction layer.

    So its tensors come from transformers' own `save_pretrained`, under the right names already.
    """
    layers = model.model.layers
    last = len(layers) - 1
    head = _PredictionHead(model)
    fill_distinct(head)
    config = json.loads((hf / "config.json").read_text())
    keys = ("layer_types", "mlp_layer_types", "indexer_types")
    lists = {key: config[key][:last] for key in keys if key in config}
    said = {**config, **lists, "num_hidden_layers": last}
    (hf / "config.json").write_text(json.dumps(said, indent=2))
    if config["model_type"].startswith("qwen3"):
        _rename_layer(hf, last, head.tensors_of_qwen())
    else:
        extra = head.tensors(f"model.layers.{last}.", model)
        save_file(extra, hf / _PREDICTION_FILE, metadata={"format": "pt"})
        _update_index(hf / "model.safetensors.index.json", extra)

    layer, model.model.layers = layers[last], layers[:last]
    model.config.num_hidden_layers = last
    reference = _reference(model)
    return {**reference, "mtp_logits": _predict(model, layer, head, reference["input_ids"])}


def _rename_layer(hf: Path, last: int, extra: Mapping[str, Tensor]) -> None:
    """Have the last layer be called as Qwen's are, with `extra` beside it; one file is left."""
    tensors = dict(extra)
    for shard in hf.glob("*.safetensors"):
        for name, tensor in load_file(shard).items():
            tensors[name.replace(f"model.layers.{last}.", "mtp.layers.0.")] = tensor
        shard.unlink()
    (hf / "model.safetensors.index.json").unlink()
    save_file(tensors, hf / "model.safetensors", metadata={"format": "pt"})


def _update_index(path: Path, extra: Mapping[str, Tensor]) -> None:
    index = json.loads(path.read_text())
    index["weight_map"].update(dict.fromkeys(extra, _PREDICTION_FILE))
    index["metadata"]["total_size"] += sum(tensor.nbytes for tensor in extra.values())
    path.write_text(json.dumps(index, indent=2))


@torch.no_grad()
def _predict(
    model: PreTrainedModel, layer: nn.Module, head: _PredictionHead, ids: Tensor
) -> Tensor:
    """The prediction layer's logits: it sees each position's state and the token that follows.

    As in megatron-core, the state is the one after the final norm, and after the last token comes
    token 0.
    """
    following = torch.cat([ids[:, 1:], torch.zeros_like(ids[:, :1])], dim=1)
    state = model.model(ids, use_cache=False).last_hidden_state
    embedded = head.enorm(model.model.embed_tokens(following))
    joined = head.eh_proj(torch.cat([embedded, head.hnorm(state)], dim=-1))
    positions = torch.arange(ids.shape[1])[None]
    rotary = model.model.rotary_emb(joined, positions)
    future = torch.full((1, 1, ids.shape[1], ids.shape[1]), float("-inf")).triu(1)
    state = layer(joined, attention_mask=future, position_embeddings=rotary)
    state = state[0] if isinstance(state, tuple) else state  # of transformers 4, and of GLM-5
    logits: Tensor = model.lm_head(head.shared_head["norm"](state))
    return logits
