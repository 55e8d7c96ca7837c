"""Names in memory -> names on the Hub, one row per family and only where they differ.

In memory is what ``model.state_dict()`` of transformers 5 has, which is what FSDP shards; on the
Hub, in vLLM and in transformers 4 the experts of most families are separate tensors. Checkpoints
of transformers 4 have Hub names already: no row applies to them. Every row was compared with what
``save_pretrained`` writes.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class SplitExperts:
    """Fused experts ``<path>.gate_up_proj`` [E, 2I, H] and ``<path>.down_proj`` [E, H, I].

    They become ``<target>.<e>.<name>.weight``; ``gate`` is the first half of gate_up's rows.
    """

    path: str
    target: str
    gate: str = "gate_proj"
    up: str = "up_proj"
    down: str = "down_proj"


@dataclass(frozen=True, slots=True)
class TransposeExperts:
    """Experts stay fused, but on the Hub as [E, H, 2I] and [E, I, H]."""

    path: str


@dataclass(frozen=True, slots=True)
class Rename:
    """A part of the name that is spelled differently; ``start``: only at its beginning."""

    old: str
    new: str
    start: bool = False


Rule = SplitExperts | TransposeExperts | Rename

_MLP = (SplitExperts("mlp.experts", "mlp.experts"),)
_MIXTRAL = (
    SplitExperts("mlp.experts", "block_sparse_moe.experts", "w1", "w3", "w2"),
    Rename(".mlp.gate.weight", ".block_sparse_moe.gate.weight"),
)
_QWEN_VL = (
    Rename("model.visual.", "visual.", start=True),
    Rename("model.language_model.", "model.", start=True),
)

_SAME: tuple[Rule, ...] = ()

FAMILIES: dict[str, tuple[Rule, ...]] = {
    **dict.fromkeys(
        "llama mistral ministral qwen2 qwen3 gemma gemma2 gemma3_text phi phi3 gpt_oss qwen3_vl"
        " starcoder2 cohere cohere2 olmo olmo2 olmo3 glm glm4 granite falcon stablelm gpt2"
        " smollm3 exaone4 nemotron seed_oss qwen3_5 apertus".split(),
        _SAME,
    ),
    **dict.fromkeys(
        "qwen2_moe qwen3_moe deepseek_v2 deepseek_v3 kimi_k2 glm4_moe dots1 olmoe hunyuan_v1_moe"
        " qwen3_next qwen3_5_moe".split(),
        _MLP,
    ),
    "mixtral": _MIXTRAL,
    "minimax": _MIXTRAL,
    "gpt_neox": (Rename("lm_head.", "embed_out.", start=True),),
    "jamba": (SplitExperts("feed_forward.experts", "feed_forward.experts"),),
    "qwen2_vl": _QWEN_VL,
    "qwen2_5_vl": _QWEN_VL,
    "qwen3_vl_moe": (TransposeExperts("mlp.experts"),),
}

#: The class of a family's model where config.json does not name it.
ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "mixtral": "MixtralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "qwen2_moe": "Qwen2MoeForCausalLM",
    "qwen3_moe": "Qwen3MoeForCausalLM",
    "qwen3_next": "Qwen3NextForCausalLM",
    "deepseek_v2": "DeepseekV2ForCausalLM",
    "deepseek_v3": "DeepseekV3ForCausalLM",
    "glm4_moe": "Glm4MoeForCausalLM",
    "gemma2": "Gemma2ForCausalLM",
    "gemma3_text": "Gemma3ForCausalLM",
    "phi3": "Phi3ForCausalLM",
    "gpt_oss": "GptOssForCausalLM",
    "qwen2_vl": "Qwen2VLForConditionalGeneration",
    "qwen2_5_vl": "Qwen2_5_VLForConditionalGeneration",
    "qwen3_vl": "Qwen3VLForConditionalGeneration",
    "qwen3_vl_moe": "Qwen3VLMoeForConditionalGeneration",
}
