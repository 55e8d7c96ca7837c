"""Everything that is known of a model family: one row for each model type.

A new family is a new row. What a row does not say holds for every family that nobody knows: see
:data:`UNKNOWN`. Nested configs (``text_config``) have model types of their own, with rows for what
is said of them. Tests compare every row whose ``hub`` changes names with what ``save_pretrained``
of transformers 5 writes.
"""

from __future__ import annotations

from ckpt_tool.mapping.families import ernie_vl_rows as ernie
from ckpt_tool.mapping.families import gated_rows as gated
from ckpt_tool.mapping.families import gemma_rows as gemma
from ckpt_tool.mapping.families import megatron_families as mcore
from ckpt_tool.mapping.families import routed_rows as routed
from ckpt_tool.mapping.families import sparse_rows as sparse
from ckpt_tool.mapping.families import swift_rows as swift
from ckpt_tool.mapping.families import tower_rows as towers
from ckpt_tool.mapping.families.deci_rows import DECI
from ckpt_tool.mapping.families.deepseek_v4_rows import DEEPSEEK_V4
from ckpt_tool.mapping.families.dense_nemotron_rows import NEMOTRON
from ckpt_tool.mapping.families.exaone45_rows import EXAONE4_5
from ckpt_tool.mapping.families.family import Family, Legacy
from ckpt_tool.mapping.families.gemma4_rows import (
    GEMMA4,
    GEMMA4_UNIFIED,
    GEMMA4_UNIFIED_TEXT,
    GEMMA4_VL,
)
from ckpt_tool.mapping.families.hub_rules import (
    ERNIE_EXPERTS,
    EXPERTS,
    FUSED_EXPERTS,
    GPT_NEOX,
    JAMBA_EXPERTS,
    LLAMA4_EXPERTS,
    MINIMAX_M2_EXPERTS,
    MIXTRAL_EXPERTS,
    QWEN_VL,
    SAME,
    TRANSPOSED_EXPERTS,
)
from ckpt_tool.mapping.families.lightning_rows import LING_2_5
from ckpt_tool.mapping.families.minimax_rows import MINIMAX_M3
from ckpt_tool.mapping.families.nemotron_rows import FALCON_H1, NEMOTRON_H
from ckpt_tool.mapping.families.radio_rows import NEMOTRON_OMNI, NEMOTRON_VL
from ckpt_tool.mapping.families.step_rows import STEP3_5, STEP3_7
from ckpt_tool.mapping.families.torchtitan_rows import (
    DEEPSEEK_V2,
    DEEPSEEK_V3,
    GPT_OSS,
    LLAMA,
    LLAMA4,
    LLAMA4_TEXT,
    QWEN3,
    QWEN3_MOE,
)

#: What :attr:`Family.float32` says of routers whose biases decide by tiny differences.
_ROUTER_BIAS = r"\.e_score_correction_bias$"

FAMILIES: dict[str, Family] = {
    # Dense language models.
    "llama": Family("LlamaForCausalLM", SAME, torchtitan=LLAMA, megatron=mcore.LLAMA),
    "mistral": Family("MistralForCausalLM", SAME, megatron=mcore.MISTRAL),
    "qwen2": Family("Qwen2ForCausalLM", SAME, megatron=mcore.QWEN2),
    "qwen3": Family("Qwen3ForCausalLM", SAME, torchtitan=QWEN3, megatron=mcore.QWEN3),
    "apertus": Family("ApertusForCausalLM", SAME),
    "cohere": Family("CohereForCausalLM", SAME, tied=True),
    "cohere2": Family("Cohere2ForCausalLM", SAME, tied=True),
    "decision_transformer": Family(conv1d=True),
    "ernie4_5": Family("Ernie4_5ForCausalLM", SAME, tied=True, megatron=swift.ERNIE_DENSE),
    "exaone4": Family("Exaone4ForCausalLM", SAME, megatron=gemma.EXAONE4),
    "falcon": Family("FalconForCausalLM", SAME, tied=True),
    "gemma": Family("GemmaForCausalLM", SAME, tied=True, megatron=gemma.GEMMA),
    "gemma2": Family("Gemma2ForCausalLM", SAME, tied=True, megatron=gemma.GEMMA2),
    "gemma3_text": Family(
        "Gemma3ForCausalLM",
        SAME,
        tied=True,
        legacy=Legacy(local_rope=True),
        megatron=gemma.GEMMA3,
    ),
    "falcon_h1": Family("FalconH1ForCausalLM", SAME, megatron=FALCON_H1),
    "gemma3n_text": Family("Gemma3nForCausalLM", legacy=Legacy(local_rope=True)),
    "gemma4_text": Family("Gemma4ForCausalLM", SAME, tied=True, megatron=GEMMA4),
    "gemma4_unified_text": Family(
        "Gemma4UnifiedForCausalLM", SAME, tied=True, megatron=GEMMA4_UNIFIED_TEXT
    ),
    "glm": Family("GlmForCausalLM", SAME),
    "glm4": Family("Glm4ForCausalLM", SAME, megatron=towers.GLM4),
    "gpt2": Family("GPT2LMHeadModel", SAME, tied=True, conv1d=True),
    "gpt_neox": Family("GPTNeoXForCausalLM", GPT_NEOX),
    "granite": Family("GraniteForCausalLM", SAME),
    "imagegpt": Family(conv1d=True),
    "internlm3": Family("LlamaForCausalLM", SAME, megatron=swift.INTERNLM3),
    "mimo": Family(megatron=mcore.MIMO),
    "ministral": Family("MinistralForCausalLM", SAME),
    "ministral3": Family("Ministral3ForCausalLM", SAME, megatron=mcore.MISTRAL),
    "nemotron": Family("NemotronForCausalLM", SAME, megatron=NEMOTRON),
    "nemotron-nas": Family(hub=SAME, megatron=DECI),
    "olmo": Family("OlmoForCausalLM", SAME),
    "olmo2": Family("Olmo2ForCausalLM", SAME),
    "olmo3": Family("Olmo3ForCausalLM", SAME),
    "openai-gpt": Family("OpenAIGPTLMHeadModel", conv1d=True),
    "phi": Family("PhiForCausalLM", SAME),
    "phi3": Family("Phi3ForCausalLM", SAME, legacy=Legacy(longrope_only=True)),
    "qwen3_5_text": Family("Qwen3_5ForCausalLM", megatron=gated.QWEN3_5),
    "seed_oss": Family("SeedOssForCausalLM", SAME),
    "smollm3": Family("SmolLM3ForCausalLM", SAME, tied=True),
    "stablelm": Family("StableLmForCausalLM", SAME),
    "starcoder2": Family("Starcoder2ForCausalLM", SAME, tied=True),
    # Language models with experts.
    "bailing_moe": Family(hub=SAME, float32=r"\.gate\.expert_bias$", megatron=routed.BAILING),
    "bailing_moe_v2": Family(hub=SAME, float32=r"\.gate\.expert_bias$", megatron=routed.BAILING_V2),
    "bailing_hybrid": Family(float32=None, megatron=LING_2_5),
    "deepseek": Family(hub=SAME, megatron=swift.DEEPSEEK_MOE),
    # Routers of DeepSeek's kind are float32 since transformers 5.24.
    "deepseek_v2": Family(
        "DeepseekV2ForCausalLM",
        EXPERTS,
        float32=None,
        torchtitan=DEEPSEEK_V2,
        megatron=mcore.DEEPSEEK_V2,
    ),
    "deepseek_v3": Family(
        "DeepseekV3ForCausalLM",
        EXPERTS,
        float32=None,
        torchtitan=DEEPSEEK_V3,
        megatron=mcore.DEEPSEEK,
    ),
    "deepseek_v32": Family(
        "DeepseekV32ForCausalLM", EXPERTS, float32=None, megatron=sparse.DEEPSEEK_V32
    ),
    "deepseek_v4": Family("DeepseekV4ForCausalLM", float32=None, megatron=DEEPSEEK_V4),
    "dots1": Family("Dots1ForCausalLM", EXPERTS, megatron=mcore.DOTS1, float32=None),
    "ernie4_5_moe": Family(
        "Ernie4_5_MoeForCausalLM", ERNIE_EXPERTS, tied=True, megatron=mcore.ERNIE, float32=None
    ),
    "glm4_moe": Family("Glm4MoeForCausalLM", EXPERTS, megatron=mcore.GLM4_MOE, float32=None),
    "glm4_moe_lite": Family(
        "Glm4MoeLiteForCausalLM", EXPERTS, megatron=mcore.DEEPSEEK, float32=None
    ),
    "glm_moe_dsa": Family("GlmMoeDsaForCausalLM", EXPERTS, float32=None, megatron=sparse.GLM5),
    "gpt_oss": Family(
        "GptOssForCausalLM", SAME, float32=None, torchtitan=GPT_OSS, megatron=routed.GPT_OSS
    ),
    "exaone_moe": Family("ExaoneMoeForCausalLM", float32=None, megatron=routed.EXAONE_MOE),
    "hy_v3": Family("HYV3ForCausalLM", float32=None, megatron=routed.HY_V3),
    "hunyuan_v1_moe": Family("HunYuanMoEV1ForCausalLM", EXPERTS, float32=None),
    "jamba": Family("JambaForCausalLM", JAMBA_EXPERTS),
    "kimi_k2": Family(hub=EXPERTS, megatron=mcore.DEEPSEEK, float32=_ROUTER_BIAS),
    "llama4_text": Family(
        "Llama4ForCausalLM",
        compared=LLAMA4_EXPERTS,
        torchtitan=LLAMA4_TEXT,
        megatron=towers.LLAMA4_TEXT,
        float32=None,
    ),
    "mimo_v2_flash": Family("MiMoV2FlashForCausalLM", float32=None, megatron=routed.MIMO_V2),
    "minimax": Family("MiniMaxForCausalLM", MIXTRAL_EXPERTS),
    "minimax_m2": Family("MiniMaxM2ForCausalLM", MINIMAX_M2_EXPERTS, megatron=mcore.MINIMAX_M2),
    "mixtral": Family("MixtralForCausalLM", MIXTRAL_EXPERTS, megatron=mcore.MIXTRAL_MOE),
    "nemotron_h": Family("NemotronHForCausalLM", float32=None, megatron=NEMOTRON_H),
    "olmoe": Family("OlmoeForCausalLM", EXPERTS, megatron=mcore.OLMOE),
    "qwen2_moe": Family("Qwen2MoeForCausalLM", EXPERTS, megatron=mcore.QWEN2_MOE),
    "qwen3_5_moe_text": Family("Qwen3_5MoeForCausalLM", megatron=gated.QWEN3_5_MOE),
    "qwen3_moe": Family(
        "Qwen3MoeForCausalLM",
        EXPERTS,
        legacy=Legacy(expert_count="num_experts"),
        torchtitan=QWEN3_MOE,
        megatron=mcore.QWEN3_MOE,
    ),
    "sarvam_mla": Family(float32=None, megatron=routed.SARVAM_MLA),
    "sarvam_moe": Family("Glm4MoeForCausalLM", float32=None, megatron=routed.SARVAM_MOE),
    "step3p5": Family(hub=SAME, float32=r"\.moe\.router_bias$", megatron=STEP3_5),
    "qwen3_next": Family("Qwen3NextForCausalLM", EXPERTS, megatron=gated.QWEN3_NEXT),
    # Models that see. With and without a vision tower the class of Qwen3.5 is another.
    "ernie4_5_vl_moe": Family(
        "Ernie4_5_VLMoeForConditionalGeneration", tied=True, megatron=ernie.ERNIE_VL, float32=None
    ),
    "ernie4_5_moe_vl": Family(tied=True, megatron=ernie.FLAT, float32=ernie.FLOAT32),
    "exaone4_5": Family("Exaone4_5_ForConditionalGeneration", SAME, megatron=EXAONE4_5),
    "gemma3": Family("Gemma3ForConditionalGeneration", tied=True, megatron=gemma.GEMMA3_VL),
    "gemma4": Family("Gemma4ForConditionalGeneration", tied=True, megatron=GEMMA4_VL),
    "gemma4_unified": Family(
        "Gemma4UnifiedForConditionalGeneration", tied=True, megatron=GEMMA4_UNIFIED
    ),
    "glm46v": Family("Glm46VForConditionalGeneration", megatron=towers.GLM4V, float32=None),
    "glm4v": Family("Glm4vForConditionalGeneration", megatron=towers.GLM4V, float32=None),
    "glm4v_moe": Family(
        "Glm4vMoeForConditionalGeneration", megatron=towers.GLM4V_MOE, float32=None
    ),
    "internvl": Family("InternVLForConditionalGeneration", megatron=towers.INTERNVL, float32=None),
    "internvl_chat": Family(megatron=towers.INTERNVL_CHAT, float32=None),
    "kimi_k25": Family("Kimi_K25ForConditionalGeneration", megatron=towers.KIMI_K25, float32=None),
    "NemotronH_Nano_VL_V2": Family(megatron=NEMOTRON_VL),
    "NemotronH_Nano_Omni_Reasoning_V3": Family(megatron=NEMOTRON_OMNI, float32=_ROUTER_BIAS),
    "kimi_vl": Family(megatron=towers.KIMI_VL, float32=_ROUTER_BIAS),
    "llama4": Family(
        compared=LLAMA4_EXPERTS, torchtitan=LLAMA4, megatron=towers.LLAMA4, float32=None
    ),
    "llava_onevision1_5": Family(hub=SAME, megatron=swift.LLAVA_ONEVISION),
    "minicpmv4_6": Family("MiniCPMV4_6ForConditionalGeneration", megatron=swift.MINICPM_V),
    "minimax_m3_vl": Family("MiniMaxM3SparseForConditionalGeneration", megatron=MINIMAX_M3),
    "mistral3": Family("Mistral3ForConditionalGeneration", megatron=mcore.MISTRAL3),
    "ovis2_5": Family(megatron=swift.OVIS2_5),
    "phi4_multimodal": Family("Phi4MultimodalForCausalLM", legacy=Legacy(longrope_only=True)),
    "qwen2_5_vl": Family("Qwen2_5_VLForConditionalGeneration", QWEN_VL, megatron=mcore.QWEN2_5_VL),
    "qwen2_5_omni": Family(megatron=towers.QWEN2_5_OMNI, float32=None),
    "qwen2_audio": Family(megatron=towers.QWEN2_AUDIO, float32=None),
    "qwen2_vl": Family("Qwen2VLForConditionalGeneration", QWEN_VL, megatron=mcore.QWEN2_VL),
    "qwen3_5": Family(hub=SAME, megatron=gated.QWEN3_5_VL),
    "qwen3_5_moe": Family(hub=FUSED_EXPERTS, megatron=gated.QWEN3_5_MOE_VL),
    "qwen3_asr": Family(megatron=towers.QWEN3_ASR, float32=None),
    "qwen3_omni_moe": Family(megatron=towers.QWEN3_OMNI, float32=None),
    "qwen3_vl": Family("Qwen3VLForConditionalGeneration", SAME, megatron=mcore.QWEN3_VL),
    "qwen3_vl_moe": Family(
        "Qwen3VLMoeForConditionalGeneration", TRANSPOSED_EXPERTS, megatron=towers.QWEN3_VL_MOE
    ),
    "step3p7": Family("Step3p7ForConditionalGeneration", float32=None, megatron=STEP3_7),
    "qwen3_vl_moe_text": Family(legacy=Legacy(expert_count="num_experts")),
}

#: What holds for a model type without a row.
UNKNOWN = Family()


def find_family(model_type: str) -> Family:
    """The row of a model type; :data:`UNKNOWN` where it has none."""
    return FAMILIES.get(model_type, UNKNOWN)
