"""Tiny models of Gemma 4, of the kinds that are released: by what their layers share and tie."""

from pathlib import Path
from typing import Any

import transformers
from transformers import PreTrainedModel

from tests.support.tiny_models import filled
from tests.support.versions import require_transformers_5

_TEXT: dict[str, Any] = {
    "vocab_size": 48,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "global_head_dim": 16,
    "layer_types": ["sliding_attention", "sliding_attention", "full_attention"] * 2,
    "vocab_size_per_layer_input": 24,
    "hidden_size_per_layer_input": 0,
}
_SHARED = {"hidden_size_per_layer_input": 4, "num_kv_shared_layers": 3}
_TIED = {"attention_k_eq_v": True, "num_global_key_value_heads": 1}
_EXPERTS = {"num_experts": 3, "top_k_experts": 2, "moe_intermediate_size": 12}
#: By what they are released as.
GEMMA4: dict[str, dict[str, Any]] = {
    "e2b": {**_SHARED, "use_double_wide_mlp": True},
    "e4b": _SHARED,
    "31b": _TIED,
    "26b": {**_TIED, **_EXPERTS, "enable_moe_block": True},
}
#: Of released ones these hear.
HEARING = ("e2b", "e4b")
_VISION = {
    "hidden_size": 16,
    "intermediate_size": 20,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "patch_size": 4,
    "position_embedding_size": 16,
}
_AUDIO = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "subsampling_conv_channels": [4, 4],
    "output_proj_dims": 12,
}


def write_gemma4(name: str, folder: Path, *, towers: bool = False) -> Path:
    """The model of that kind as transformers saves it."""
    build_gemma4(name, towers=towers).save_pretrained(folder)
    return folder


def build_gemma4(name: str, *, towers: bool = False) -> PreTrainedModel:
    """The model of that kind, every element of a tensor distinct."""
    require_transformers_5()
    text = {**_TEXT, **GEMMA4[name]}
    if towers:
        audio = _AUDIO if name in HEARING else None
        config = transformers.Gemma4Config(
            text_config=text, vision_config=_VISION, audio_config=audio
        )
        model = filled(transformers.Gemma4ForConditionalGeneration, config)
    else:
        config = transformers.Gemma4TextConfig(**text)
        model = filled(transformers.Gemma4ForCausalLM, config)
    return _tell_scalars_apart(model)


def _tell_scalars_apart(model: PreTrainedModel) -> PreTrainedModel:
    for number, scalar in enumerate(n for n in model.state_dict() if n.endswith("layer_scalar")):
        model.get_buffer(scalar).fill_(1 + number)  # or all were alike
    return model


def build_unified(*, towers: bool = True) -> PreTrainedModel:
    """The one without towers, whose images and sounds are embedded by a few layers, or its text."""
    require_transformers_5()
    text = {key: said for key, said in (_TEXT | _TIED).items() if "per_layer" not in key}
    if not towers:
        config = transformers.Gemma4UnifiedTextConfig(**text)
        model = filled(transformers.Gemma4UnifiedForCausalLM, config)
    else:
        config = transformers.Gemma4UnifiedConfig(
            text_config=text,
            vision_config={"patch_size": 2, "mm_embed_dim": 16, "mm_posemb_size": 5},
            audio_config={"audio_embed_dim": 8},
        )
        model = filled(transformers.Gemma4UnifiedForConditionalGeneration, config)
    return _tell_scalars_apart(model)
