"""Models with LoRA adapters, as peft builds them, and what peft itself makes of them."""

import copy
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from peft.utils import ModulesToSaveWrapper
from safetensors.torch import save_file
from transformers import PreTrainedModel

from .fsdp_models import MODELS as PLAIN

_ATTENTION = ["q_proj", "v_proj", "down_proj"]
_OUTER = ["k_proj", "o_proj"]
_VISION = ["q_proj", "attn.proj"]


def _adapted(model: str, **values: Any) -> Callable[[torch.dtype], PeftModel]:
    """A builder of `model` with one adapter, in the dtype of the model: FSDP wants one dtype."""
    settings = {"task_type": TaskType.CAUSAL_LM, "target_modules": _ATTENTION, **values}

    def build(dtype: torch.dtype) -> PeftModel:
        config = LoraConfig(**settings)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Conv1D: that fan_in_fan_out is set
            adapted: PeftModel = get_peft_model(
                PLAIN[model](dtype), config, autocast_adapter_dtype=False
            )
        return adapted.eval()

    return build


MODELS: dict[str, Callable[[torch.dtype], PeftModel]] = {
    "qwen2+lora": _adapted("qwen2", r=4, lora_alpha=10),
    "qwen2_tied+lora": _adapted("qwen2_tied", r=4, lora_alpha=10),
    "qwen3_moe+lora": _adapted(
        "qwen3_moe", r=4, lora_alpha=10, target_modules=["k_proj", "o_proj"]
    ),
    "qwen2_vl+lora": _adapted(
        "qwen2_5_vl", r=3, lora_alpha=5, target_modules=["q_proj", "attn.proj"]
    ),
    "qwen2+dora": _adapted("qwen2", r=4, lora_alpha=10, use_dora=True),
    # Ranks and alphas of their own, a scale of alpha / sqrt(r), an embedding, a head trained whole.
    "qwen2+patterns": _adapted(
        "qwen2",
        r=4,
        lora_alpha=10,
        use_rslora=True,
        target_modules=[*_ATTENTION, "embed_tokens"],
        modules_to_save=["lm_head"],
        rank_pattern={"v_proj": 3, r"layers\.1\.self_attn\.q_proj": 7},
        alpha_pattern={"layers.0.mlp.down_proj": 3},
    ),
    "qwen3_moe+experts": _adapted(
        "qwen3_moe",
        r=4,
        lora_alpha=10,
        target_modules=["q_proj"],
        target_parameters=["mlp.experts.gate_up_proj", "mlp.experts.down_proj"],
    ),
    "qwen2_tied+tokens": _adapted(
        "qwen2_tied", r=4, lora_alpha=10, trainable_token_indices=[3, 90]
    ),
    # Weights of Conv1D are [in, out], two of them square.
    "gpt2+lora": _adapted("gpt2", r=4, lora_alpha=10, target_modules=["c_attn", "c_proj", "c_fc"]),
    "qwen2_critic+lora": _adapted(
        "qwen2_token_classification", r=4, lora_alpha=10, task_type=TaskType.TOKEN_CLS
    ),
}


def write_judgement(folder: Path, model: PeftModel) -> None:
    """What peft makes of the model, below `folder`.

    `reference/` (merged and unloaded), `base/` (without the adapter) and `adapter/`.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        merged: PreTrainedModel = copy.deepcopy(model).merge_and_unload()
        base: PreTrainedModel = copy.deepcopy(model).unload()
        for name, module in model.get_base_model().named_modules():
            if isinstance(module, ModulesToSaveWrapper):  # unload() leaves what was trained
                base.get_submodule(name).load_state_dict(module.original_module.state_dict())
        model.save_pretrained(folder / "adapter")
    merged.save_pretrained(folder / "reference")
    base.save_pretrained(folder / "base")


def write_settings(actor: Path, model: PeftModel, where: str) -> None:
    """Rank and alpha beside the rank files: where verl 0.8 writes them, 0.4 to 0.7, or nowhere."""
    config = model.peft_config["default"]
    if where == "lora_train_meta.json":
        task = getattr(config.task_type, "value", config.task_type)
        meta = {"r": config.r, "lora_alpha": config.lora_alpha, "task_type": task}
        (actor / where).write_text(json.dumps(meta))
    elif where == "lora_adapter":
        config.save_pretrained(actor / where)
        save_file({"x": torch.zeros(1)}, actor / where / "adapter_model.safetensors")
