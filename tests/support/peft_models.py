"""Tiny models with an adapter of each kind that peft makes, and what peft makes of them."""

import copy
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from transformers import PreTrainedModel

from tests.support.merging import write_rank
from tests.support.tiny_models import build

EXPERTS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]


@dataclass(frozen=True)
class Kind:
    """A family, what its config is given, and what peft is asked for; r is 2 and alpha 3."""

    family: str
    lora: Mapping[str, Any]
    settings: Mapping[str, Any] = field(default_factory=dict)

    def adapted(self) -> peft.PeftModel:
        """The model with an adapter that does something, in float32.

        The test is skipped where peft is too old for what it is asked for.
        """
        known = {own.name for own in fields(peft.LoraConfig)}
        if missing := self.lora.keys() - known:
            pytest.skip(f"peft {peft.__version__} has no {', '.join(sorted(missing))}")
        config = peft.LoraConfig(**{"r": 2, "lora_alpha": 3, **self.lora})
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = peft.get_peft_model(build(self.family, **self.settings), config)
        random = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if "lora_magnitude" in name:
                    weight.mul_(1 + torch.rand(weight.shape, generator=random))
                elif "lora_" in name or "trainable_tokens" in name:
                    weight.copy_(torch.randn(weight.shape, generator=random) / 10)
                elif name.endswith("bias") and weight.requires_grad:
                    weight.add_(torch.rand(weight.shape, generator=random))
        return model.eval()


def _q(**values: Any) -> dict[str, Any]:
    return {"target_modules": ["q_proj"], **values}


KINDS = {
    "experts": Kind("qwen3_moe", _q(target_parameters=EXPERTS)),
    "one stack, and the router": Kind(
        "qwen3_moe", _q(target_parameters=["mlp.experts.down_proj", "mlp.gate.weight"])
    ),
    "experts alone, ranks of their own": Kind(
        "qwen2_moe",
        {
            "target_modules": [],
            "target_parameters": EXPERTS,
            "rank_pattern": {"experts.down_proj": 4},
            "alpha_pattern": {"layers.1.mlp.experts.gate_up_proj": 5},
        },
    ),
    "experts with other names on the Hub": Kind("mixtral", _q(target_parameters=EXPERTS)),
    "experts that are fused on the Hub": Kind("qwen3_5_moe_text", _q(target_parameters=EXPERTS)),
    "experts of a family without rules": Kind("hunyuan_v1_moe", _q(target_parameters=EXPERTS)),
    "experts that are [in, out]": Kind(
        "gpt_oss", _q(target_parameters=EXPERTS), {"intermediate_size": 32}
    ),
    "alphas below 0": Kind("qwen2", _q(lora_alpha=-3, alpha_pattern={"1.self_attn.q_proj": -5})),
    "tokens": Kind("qwen2", _q(trainable_token_indices=[7, 3, 40])),
    "tokens, tied": Kind(
        "qwen2", _q(trainable_token_indices=[0, 47]), {"tie_word_embeddings": True}
    ),
    "tokens of both ends": Kind(
        "qwen2", _q(trainable_token_indices={"embed_tokens": [1, 2, 3], "lm_head": [5, 4]})
    ),
    "biases": Kind("qwen2", _q(bias="all")),
    "biases of what is adapted": Kind("qwen2", _q(bias="lora_only")),
    "biases of B": Kind("qwen2", _q(lora_bias=True)),
    "a convolution": Kind("qwen2_5_vl", {"target_modules": ["patch_embed.proj", "q_proj"]}),
    "a convolution with DoRA": Kind(
        "qwen2_5_vl", {"target_modules": ["patch_embed.proj", "q_proj"], "use_dora": True}
    ),
    "embedding with DoRA": Kind(
        "qwen2", {"target_modules": ["embed_tokens", "q_proj"], "use_dora": True}
    ),
    "Conv1D with DoRA": Kind("gpt2", {"target_modules": ["c_attn", "c_proj"], "use_dora": True}),
}


def merge_by_peft(model: peft.PeftModel) -> PreTrainedModel:
    """The model that peft makes of it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        merged: PreTrainedModel = copy.deepcopy(model).merge_and_unload()
    return merged


def base_of(model: peft.PeftModel) -> PreTrainedModel:
    """The model below the adapter, its biases as they were trained."""
    base: PreTrainedModel = copy.deepcopy(model).unload()
    return base


def write_checkpoint(
    folder: Path,
    model: peft.PeftModel,
    keep: Callable[[str], bool] = lambda name: True,
    settings: Mapping[str, Any] | None = None,
) -> Path:
    """Its state dict as a rank file, with its config and what peft says of the adapter."""
    config = model.get_base_model().config.to_dict()
    config["architectures"] = [type(model.get_base_model()).__name__]
    state = {name: tensor for name, tensor in model.state_dict().items() if keep(name)}
    write_rank(folder, state, config)
    adapter = copy.deepcopy(model.peft_config["default"])
    for name, value in (settings or {}).items():
        setattr(adapter, name, value)
    adapter.save_pretrained(folder / "lora_adapter")
    return folder
