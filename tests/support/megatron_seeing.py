"""Models that see or hear, whole in transformers; their language models in megatron-core.

Given text alone, the whole model computes what megatron-core's language model does that has loaded
its part of what `to-mcore` wrote of all of it.
"""

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import save_file
from transformers import PreTrainedModel

from ckpt_tool import ToMcoreOptions, WriteOptions, convert_to_mcore, open_checkpoint
from tests.real.fill import fill_distinct
from tests.real.fsdp_reference import logits_of
from tests.real.megatron_jobs import Checkpoint, Job, Logits
from tests.support.every_class import make_config
from tests.support.gemma4_models import build_gemma4, build_unified

#: Class, and the model type of which its language model is alone.
MODELS = {
    "exaone4_5": ("Exaone4_5_ForConditionalGeneration", "exaone4"),
    "gemma3": ("Gemma3ForConditionalGeneration", "gemma3_text"),
    "gemma4": ("Gemma4ForConditionalGeneration", "gemma4_text"),
    "gemma4_unified": ("Gemma4UnifiedForConditionalGeneration", "gemma4_text"),
    "glm46v": ("Glm46VForConditionalGeneration", "glm4"),
    "glm4v": ("Glm4vForConditionalGeneration", "glm4"),
    "glm4v_moe": ("Glm4vMoeForConditionalGeneration", "glm4_moe"),
    "internvl": ("InternVLForConditionalGeneration", "qwen2"),
    "kimi_k25": ("Kimi_K25ForConditionalGeneration", "deepseek_v3"),
    "llama4": ("Llama4ForConditionalGeneration", "llama4_text"),
    "minicpmv4_6": ("MiniCPMV4_6ForConditionalGeneration", "qwen3_5_text"),
    "mistral3": ("Mistral3ForConditionalGeneration", "mistral"),
    "qwen2_5_omni": ("Qwen2_5OmniForConditionalGeneration", "qwen2"),
    "qwen2_5_vl": ("Qwen2_5_VLForConditionalGeneration", "qwen2"),
    "qwen2_audio": ("Qwen2AudioForConditionalGeneration", "qwen2"),
    "qwen2_vl": ("Qwen2VLForConditionalGeneration", "qwen2"),
    "qwen3_5": ("Qwen3_5ForConditionalGeneration", "qwen3_5_text"),
    "qwen3_5_moe": ("Qwen3_5MoeForConditionalGeneration", "qwen3_5_moe_text"),
    "qwen3_omni_moe": ("Qwen3OmniMoeForConditionalGeneration", "qwen3_moe"),
    "qwen3_vl": ("Qwen3VLForConditionalGeneration", "qwen3"),
    "qwen3_vl_moe": ("Qwen3VLMoeForConditionalGeneration", "qwen3_moe"),
}
#: The part that reads: transformers' thinkers do, and Llama 4 as a whole asks for an image.
_READERS = {
    "llama4": "language_model",
    "qwen2_5_omni": "thinker",
    "qwen3_omni_moe": "thinker",
}
#: What the language model's config is given.
_CHOSEN: dict[str, dict[str, Any]] = {
    "kimi_k25": {"num_nextn_predict_layers": 0},
    "llama4": {"moe_layers": [1], "no_rope_layers": [1, 1]},
}
#: What it does not say of itself, as it is never otherwise.
_KNOWN: dict[str, dict[str, Any]] = {
    "gemma4_unified": {"hidden_size_per_layer_input": 0, "enable_moe_block": False},
    "glm46v": {"attention_bias": True},
    "glm4v": {"attention_bias": True},
}
_EMBEDDING = "embedding.word_embeddings.weight"
_UNSYNCED = WriteOptions(fsync=False, check_load=False)


def write(name: str, out: Path) -> None:
    """The whole model in `out/hf`, what to-mcore makes of it, and the logits of some text.

    `out/text` has the config of its language model alone.
    """
    class_name, kind = MODELS[name]
    model = _build(name, class_name)
    model.save_pretrained(out / "hf")
    convert_to_mcore(out / "hf", out / "ours", ToMcoreOptions(write=_UNSYNCED))
    reader = getattr(model, _READERS[name]) if name in _READERS else model
    text = reader.config.get_text_config().to_dict()
    head, embedding = reader.get_output_embeddings(), reader.get_input_embeddings()
    tied = head.weight is embedding.weight
    (out / "text").mkdir()
    said = {**text, **_KNOWN.get(name, {}), "model_type": kind, "tie_word_embeddings": tied}
    (out / "text" / "config.json").write_text(json.dumps(said))
    ids = torch.randint(3, 40, (2, 9), generator=torch.Generator().manual_seed(3))
    save_file({"input_ids": ids, "logits": logits_of(reader, ids)}, out / "reference.safetensors")


def make_job(name: str, out: Path) -> Job:
    """Have a language model with the weights in `out` write its logits."""
    (key,) = (key for key in open_checkpoint(out / "ours") if key.endswith(_EMBEDDING))
    source = Checkpoint(out / "ours", engine_states=True, prefix=key.removesuffix(_EMBEDDING))
    inputs, logits = out / "reference.safetensors", out / "logits.safetensors"
    return Logits(out / "text", inputs, logits, source=source)


def _build(name: str, class_name: str) -> PreTrainedModel:
    if name == "gemma4":
        return build_gemma4("31b", towers=True).eval()
    if name == "gemma4_unified":
        return build_unified().eval()
    model_class = getattr(transformers, class_name)
    config = make_config(name, model_class)
    for key, value in _CHOSEN.get(name, {}).items():
        setattr(config.get_text_config(), key, value)
    model: PreTrainedModel = model_class(config)
    fill_distinct(model)
    return model.eval()
