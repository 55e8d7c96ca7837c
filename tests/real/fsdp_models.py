"""Tiny models of the families whose FSDP checkpoints we read, with every element distinguishable.

Sizes are odd where a model allows it (vocabulary 97, MLP 51, one KV head of 4), so that two or
three ranks get uneven, and three ranks also empty, pieces.
"""

from collections.abc import Callable
from typing import Any

import torch
import transformers
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from .old_transformers import from_config

_DECODER = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 51,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 1,
    "head_dim": 4,
    "max_position_embeddings": 64,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
# Expert sizes are multiples of 16 bytes in bf16 too: the grouped matrix product that transformers
# picks by default accepts no others. Neither they nor their doubles equal the hidden size, so that
# a transposed expert shows in its shape. Odd numbers of experts make the pieces uneven.
_EXPERTS = {"moe_intermediate_size": 24, "num_experts_per_tok": 2}
_LATENT_ATTENTION = {
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "q_lora_rank": 12,
    "kv_lora_rank": 8,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 4,
    "v_head_dim": 8,
}
# Token ids of the placeholders lie inside the tiny vocabulary, or embedding them would fail.
_PLACEHOLDERS = {
    "image_token_id": 90,
    "video_token_id": 91,
    "vision_start_token_id": 92,
    "vision_end_token_id": 93,
}
_VISION = {
    "depth": 2,
    "hidden_size": 32,
    "intermediate_size": 36,
    "num_heads": 2,
    "patch_size": 4,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    "out_hidden_size": 32,
}
_MROPE = {
    "head_dim": 8,
    "num_attention_heads": 4,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]},
}


class BufferModel(nn.Module):
    """Persistent buffers of the awkward kinds: FSDP leaves buffers whole on every rank.

    A 0-d tensor, an int64 and a bool one, and a half-precision one among float32 parameters.
    """

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(7, 5) for _ in range(2))
        self.register_buffer("scale", torch.zeros(()))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self.register_buffer("positions", torch.zeros(11, dtype=torch.int64))
        self.register_buffer("mask", torch.zeros(2, dtype=torch.bool))
        self.layers[0].register_buffer("history", torch.zeros(3, 4, dtype=torch.bfloat16))


class ValueHead(nn.Module):
    """trl's: dropout, then one number for each hidden state; float32 whatever the model is in."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.dropout = nn.Dropout(0.1)
        self.summary = nn.Linear(hidden_size, 1)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        values: torch.Tensor = self.summary(self.dropout(hidden).to(self.summary.weight.dtype))
        return values


class WithValueHead(nn.Module):
    """A language model with a value head, as trl's `AutoModelForCausalLMWithValueHead` has it.

    Its parts alone: names are those of a plain module, `pretrained_model.*` and `v_head.*`.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.pretrained_model = model
        self.v_head = ValueHead(model.config.hidden_size)
        self.config = model.config
        self._no_split_modules = [*model._no_split_modules, "ValueHead"]

    def values(self, input_ids: torch.Tensor) -> torch.Tensor:
        """The value of each token [batch, length, 1]."""
        output = self.pretrained_model(input_ids=input_ids, output_hidden_states=True)
        values: torch.Tensor = self.v_head(output.hidden_states[-1])
        return values


class WithOwnStateDict(WithValueHead):
    """The same with the `state_dict` that trl gives it: the model without a prefix, then the head.

    FSDP2 calls it; FSDP1 cannot, because it adds to the dictionary it iterates over.
    """

    def state_dict(self, **options: Any) -> dict[str, Any]:
        head = self.v_head.state_dict(**options)
        model = self.pretrained_model.state_dict(**options)
        return {**model, **{f"v_head.{name}": tensor for name, tensor in head.items()}}


def _pretrained(
    model_class: type[PreTrainedModel], dtype: torch.dtype, **values: Any
) -> PreTrainedModel:
    """Build the model from its own config class."""
    config_class: type[PretrainedConfig] = model_class.config_class
    config = config_class(architectures=[model_class.__name__], **values)
    return from_config(model_class, config, dtype).eval()


def _decoder(class_name: str, **overrides: Any) -> Callable[[torch.dtype], PreTrainedModel]:
    """A builder of a text-only model from the shared sizes."""
    return lambda dtype: _pretrained(
        getattr(transformers, class_name), dtype, **{**_DECODER, **overrides}
    )


def _vision_language(
    class_name: str, text: dict[str, Any], vision: dict[str, Any]
) -> Callable[[torch.dtype], PreTrainedModel]:
    """A builder of a vision-language model: the same decoder sizes under a small vision tower."""
    return lambda dtype: _pretrained(
        getattr(transformers, class_name),
        dtype,
        text_config={**_DECODER, **_MROPE, **text},
        vision_config={**_VISION, **vision},
        tie_word_embeddings=False,
        **_PLACEHOLDERS,
    )


MODELS: dict[str, Callable[[torch.dtype], nn.Module]] = {
    "buffers": lambda dtype: BufferModel(),
    "llama": _decoder("LlamaForCausalLM"),
    "qwen2": _decoder("Qwen2ForCausalLM"),
    "gpt2": lambda dtype: _pretrained(
        transformers.GPT2LMHeadModel,
        dtype,
        vocab_size=97,
        n_embd=32,
        n_layer=2,
        n_head=4,
        n_positions=64,
        bos_token_id=1,
        eos_token_id=2,
        tie_word_embeddings=False,
    ),
    "qwen2_tied": _decoder("Qwen2ForCausalLM", tie_word_embeddings=True),
    "qwen2_token_classification": _decoder("Qwen2ForTokenClassification", num_labels=1),
    "qwen2_sequence_classification": _decoder(
        "Qwen2ForSequenceClassification", num_labels=1, pad_token_id=0
    ),
    "qwen2_value_head": lambda dtype: WithOwnStateDict(_decoder("Qwen2ForCausalLM")(dtype)).eval(),
    "qwen2_tied_value_head": lambda dtype: WithValueHead(
        _decoder("Qwen2ForCausalLM", tie_word_embeddings=True)(dtype)
    ).eval(),
    "qwen3_12_layers": _decoder("Qwen3ForCausalLM", num_hidden_layers=12),
    "qwen3_moe": _decoder("Qwen3MoeForCausalLM", num_experts=5, **_EXPERTS),
    "mixtral": _decoder(
        "MixtralForCausalLM", intermediate_size=24, num_local_experts=3, num_experts_per_tok=2
    ),
    "deepseek_v3": _decoder(
        "DeepseekV3ForCausalLM",
        **_LATENT_ATTENTION,
        **_EXPERTS,
        head_dim=4,
        n_routed_experts=4,
        n_shared_experts=1,
        n_group=2,
        topk_group=1,
        first_k_dense_replace=1,
        num_nextn_predict_layers=0,
    ),
    "gpt_oss": _decoder(
        "GptOssForCausalLM",
        intermediate_size=24,
        num_local_experts=3,
        num_experts_per_tok=2,
        max_position_embeddings=131072,  # what the default YaRN factor of 32 implies
    ),
    "qwen2_5_vl": _vision_language(
        "Qwen2_5_VLForConditionalGeneration",
        text={},
        vision={"fullatt_block_indexes": [1], "window_size": 16},
    ),
    "qwen3_vl_moe": _vision_language(
        "Qwen3VLMoeForConditionalGeneration",
        text={"num_experts": 3, **_EXPERTS},
        vision={"deepstack_visual_indexes": [0], "num_position_embeddings": 16},
    ),
}
