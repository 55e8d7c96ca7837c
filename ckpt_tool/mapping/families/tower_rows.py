"""Rows of models that see or hear: their language models, and what is around these.

Towers are in :mod:`.vision_rows`, or transformers' own. Sources: ``*_vl/``, ``qwen_omni/``,
``qwen_audio/`` and ``qwen3_asr/`` of Megatron-Bridge 0.6.2; of InternVL, Kimi-VL, GLM-4.1V and
Llama 4, which it has not, ``mm_gpts/`` of mcore_bridge 1.6; the classes of transformers 5.24.
"""

from __future__ import annotations

from dataclasses import replace

from ckpt_tool.mapping.families.megatron_families import (
    GLM4_MOE,
    QWEN2,
    QWEN3,
    QWEN3_MOE,
    QWEN3_VL,
)
from ckpt_tool.mapping.families.megatron_form import Ahead, Around, MegatronRows, Row
from ckpt_tool.mapping.families.megatron_rows import DENSE, GROUPED, MOE

_PACKED = (
    Row(
        "mlp.experts.gate_up_proj",
        "mlp.experts.experts.linear_fc1.weight",
        "packed_turned",
        shape="experts,hidden,two_expert_ffn",
        whole="experts,two_expert_ffn,hidden",
    ),
    Row(
        "mlp.experts.down_proj",
        "mlp.experts.experts.linear_fc2.weight",
        "packed_turned",
        shape="experts,expert_ffn,hidden",
        whole="experts,hidden,expert_ffn",
    ),
)
#: Experts of a layer are two tensors on the Hub, each turned.
PACKED_MOE = (*(row for row in MOE if "{e}" not in row.hf), *_PACKED)

#: Layers in turns have a plain MLP, and another width than experts have.
LLAMA4_TEXT = MegatronRows(
    GROUPED,
    (
        DENSE[0],
        Row(
            "feed_forward.{gate,up}_proj.weight",
            "mlp.linear_fc1.weight",
            "gate_up",
            shape="ffn,hidden",
        ),
        Row("feed_forward.down_proj.weight", "mlp.linear_fc2.weight", shape="hidden,ffn"),
    ),
    (
        MOE[0],
        Row("feed_forward.router.weight", "mlp.router.weight", shape="experts,hidden"),
        *(
            replace(row, hf=row.hf.replace("mlp.", "feed_forward."), when="packed")
            for row in _PACKED
        ),
        # As Maverick is released in fp8.
        *(
            replace(row, hf=row.hf.replace("mlp.", "feed_forward."), when="unpacked")
            for row in MOE
            if "{e}" in row.hf
        ),
        Row(
            "feed_forward.shared_expert.{gate,up}_proj.weight",
            "mlp.shared_experts.linear_fc1.weight",
            "gate_up",
            shape="shared_ffn,hidden",
        ),
        Row(
            "feed_forward.shared_expert.down_proj.weight",
            "mlp.shared_experts.linear_fc2.weight",
            shape="hidden,shared_ffn",
        ),
    ),
    flags={
        "qkv_bias": ("attention_bias", False),
        "output_bias": ("attention_bias", False),
        "shared_experts": True,
        "interleaved": True,
        "sigmoid": True,
        "packed": True,
    },
)
LLAMA4 = replace(
    LLAMA4_TEXT,
    around=Around(
        trunk="language_model.model.",
        head="language_model.",
        towers=("vision_model.", "multi_modal_projector."),
    ),
)

#: Norms after attention and after the MLP, beside the layer as slime has them.
GLM4 = MegatronRows(
    (
        *GROUPED,
        Row(
            "post_self_attn_layernorm.weight",
            "post_self_attn_layernorm.weight",
            shape="hidden",
        ),
    ),
    (
        *(row for row in DENSE if "{gate,up}" not in row.hf),
        Row("mlp.gate_up_proj.weight", "mlp.linear_fc1.weight", shape="two_ffn,hidden"),
        Row("post_mlp_layernorm.weight", "post_mlp_layernorm.weight", shape="hidden"),
    ),
    flags={"qkv_bias": ("attention_bias", True), "norms_beside": True, "interleaved": True},
    defaults={"partial_rotary_factor": 0.5},
)

QWEN3_VL_MOE = replace(QWEN3_VL, moe=PACKED_MOE)
GLM4V = replace(
    GLM4,
    flags={"qkv_bias": True, "norms_beside": True, "interleaved": True},
    around=Around(
        trunk="model.language_model.",
        towers=("model.visual.",),
        moved={"model.visual.": "visual."},
    ),
)
GLM4V_MOE = replace(
    GLM4_MOE,
    mtp=Ahead(),
    flags={"qkv_bias": ("attention_bias", True), "qk_norm": ("use_qk_norm", False)},
    around=GLM4V.around,
)


def _surround(*towers: str, saved: tuple[tuple[str, str], ...] = ()) -> MegatronRows:
    """Towers beside a language model of any family."""
    around = Around("language_model.model.", "language_model.", towers=towers, inner=True)
    return MegatronRows((), (), around=replace(around, saved=saved))


#: transformers 5.24 puts back what it has renamed in the tower, and finds it elsewhere too.
_SAVED = (
    (r"^language_model\.model\.blocks\.", "language_model.model.layers."),
    (r"^model\.mm_projector\.", "mm_projector."),
)
KIMI_K25 = _surround("vision_tower.", "mm_projector.", saved=_SAVED)
KIMI_VL = _surround("vision_tower.", "multi_modal_projector.")
INTERNVL = KIMI_VL
INTERNVL_CHAT = _surround("vision_model.", "mlp1.")
QWEN2_AUDIO = replace(
    _surround("audio_tower.", "multi_modal_projector."),
    defaults={
        "hidden_size": 4096,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
    },
)

_HEARS = Around(
    trunk="thinker.model.",
    head="thinker.",
    outside="thinker.",
    towers=("thinker.audio_tower.",),
    moved={"thinker.audio_tower.": "thinker.audio_model."},
)
_THINKS = replace(_HEARS, towers=("thinker.visual.", *_HEARS.towers))
#: Under the names of transformers' own class, which has the last two layers of the tower beside it.
_HEARS_FLAT = Around(
    trunk="model.language_model.",
    outside="thinker.",
    towers=(
        "model.audio_tower.",
        "model.multi_modal_projector.linear_1.",
        "model.multi_modal_projector.linear_2.",
    ),
    moved={
        "model.audio_tower.": "thinker.audio_model.",
        "model.multi_modal_projector.linear_1.": "thinker.audio_model.proj1.",
        "model.multi_modal_projector.linear_2.": "thinker.audio_model.proj2.",
    },
)
QWEN3_ASR = replace(QWEN3, around=replace(_HEARS, part="thinker_config", other=_HEARS_FLAT))
QWEN2_5_OMNI = replace(QWEN2, around=replace(_THINKS, absent=("talker.", "token2wav.")))
QWEN3_OMNI = replace(QWEN3_MOE, around=replace(_THINKS, absent=("talker.", "code2wav.")))
