"""One of the processes in which real DeepSpeed trains a tiny model and saves it.

    torchrun ... -m tests.real.deepspeed_rank CASE FOLDER

Started by `write_deepspeed.py`, with a Python that has DeepSpeed.
"""

import os
import shutil
import sys
from pathlib import Path
from typing import Any

import deepspeed
import torch
from deepspeed.accelerator import get_accelerator
from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from transformers import Qwen2Config, Qwen2ForCausalLM, Trainer, TrainingArguments

from tests.real.write_deepspeed import CASES, Case

_DTYPES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}
_TOKENS = 11


class _Wrapped(torch.nn.Module):
    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, **inputs: Any) -> Any:
        return self.model(**inputs)


class _Buffered(_Wrapped):
    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__(model)
        self.register_buffer("scale", torch.arange(5, dtype=torch.float32) + 0.125)
        self.register_buffer("count", torch.arange(3))
        self.register_buffer("passing", torch.ones(2), persistent=False)


class _Tiny(_Wrapped):
    """With parameters of one element and of none."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__(model)
        self.gain = torch.nn.Parameter(torch.ones(1))
        self.other = torch.nn.Parameter(torch.tensor([1.5]))
        self.nothing = torch.nn.Parameter(torch.ones(0, 3))

    def forward(self, **inputs: Any) -> Any:
        found = self.model(**inputs)
        found.loss = found.loss * self.gain.sum() * self.other.sum()
        return found


def make_config(case: Case) -> Qwen2Config:
    """The smallest with no two sizes alike; its head is tied unless the case says otherwise."""
    return Qwen2Config(
        vocab_size=_TOKENS,
        hidden_size=6,
        intermediate_size=7,
        num_hidden_layers=1,
        num_attention_heads=3,
        num_key_value_heads=1,
        max_position_embeddings=8,
        tie_word_embeddings=case.tied,
        architectures=["Qwen2ForCausalLM"],
        dtype=_DTYPES[case.dtype],
    )


def make_model(case: Case) -> torch.nn.Module:
    """With weights that are all distinct."""
    model = Qwen2ForCausalLM(make_config(case)).float()
    with torch.no_grad():
        for number, param in enumerate(model.parameters()):
            index = torch.arange(param.numel()).reshape(param.shape)
            param.copy_((index * 0.013 + number * 0.1 + 0.0001).sin() * 0.3)
    if case.form == "lora":
        chosen = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
        return get_peft_model(model, chosen)
    if case.form == "frozen":
        for name, param in model.named_parameters():
            param.requires_grad = ".0.mlp." not in name
    wrappers = {"buffers": _Buffered, "tiny": _Tiny}
    return wrappers[case.form](model) if case.form in wrappers else model


def make_optimizer(case: Case, model: torch.nn.Module) -> torch.optim.Optimizer:
    """With all parameters in one group, or biases and norms in another."""
    params = [param for param in model.parameters() if param.requires_grad]
    groups: list[Any] = params
    if case.groups:
        groups = [{"params": [p for p in params if p.ndim > 1]},
                  {"params": [p for p in params if p.ndim == 1], "weight_decay": 0.0}]  # fmt: skip
    elif case.form == "tiny":
        groups = [{"params": [p for p in params if p.numel() != 1]},
                  {"params": [p for p in params if p.numel() == 1]}]  # fmt: skip
    return torch.optim.AdamW(groups, lr=0.01)


def make_options(case: Case) -> dict[str, Any]:
    """DeepSpeed's config."""
    options = {
        "train_micro_batch_size_per_gpu": 2,
        "gradient_accumulation_steps": 1,
        "zero_optimization": {"stage": case.stage, **case.zero},
        "zero_allow_untested_optimizer": True,
        **case.more,
    }
    return options if case.dtype == "fp32" else {**options, case.dtype: {"enabled": True}}


def draw(seed: int) -> dict[str, torch.Tensor]:
    """A batch of tokens, which are their own labels."""
    tokens = torch.randint(0, _TOKENS, (2, 4), generator=torch.Generator().manual_seed(seed))
    return {"input_ids": tokens, "labels": tokens}


def save_with_deepspeed(case: Case, folder: Path) -> None:
    """DeepSpeed's own loop, and its `save_checkpoint`."""
    model = make_model(case)
    optimizer = make_optimizer(case, model)
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=make_options(case))
    for step in range(2):
        engine.backward(engine(**draw(step + 10 * int(os.environ["RANK"]))).loss)
        engine.step()
    engine.save_checkpoint(str(folder), exclude_frozen_parameters=case.excluded)


def save_with_accelerate(case: Case, folder: Path) -> None:
    """accelerate's `save_state`."""
    from accelerate import Accelerator, DeepSpeedPlugin

    plugin = DeepSpeedPlugin(hf_ds_config=make_options(case))
    accelerator = Accelerator(mixed_precision=case.dtype, deepspeed_plugin=plugin)
    model = make_model(case)
    engine, optimizer = accelerator.prepare(model, make_optimizer(case, model))
    for step in range(2):
        accelerator.backward(engine(**draw(step)).loss)
        optimizer.step()
    accelerator.save_state(str(folder))
    for path in folder.glob("random_states_*"):
        path.unlink(missing_ok=True)


def save_with_trainer(case: Case, folder: Path) -> None:
    """A run of the Trainer, which saves its second step."""
    arguments = TrainingArguments(
        output_dir=str(folder),
        deepspeed=make_options(case),
        max_steps=2,
        save_steps=2,
        per_device_train_batch_size=2,
        report_to=[],
        optim="adamw_torch",
        disable_tqdm=True,
    )
    rows = [{name: tensor[0] for name, tensor in draw(step).items()} for step in range(16)]
    Trainer(model=make_model(case), args=arguments, train_dataset=rows).train()
    if os.environ["RANK"] == "0":
        for path in folder.glob("checkpoint-2/*"):
            if path.suffix in (".pth", ".bin"):
                path.unlink()


_SAVE = {
    "deepspeed": save_with_deepspeed,
    "accelerate": save_with_accelerate,
    "trainer": save_with_trainer,
}


def main(name: str, folder: Path) -> None:
    """Save one case; the first process asks the judge."""
    case = CASES[name]
    accelerator = get_accelerator()
    known = accelerator.supported_dtypes()
    accelerator.is_fp16_supported = lambda: True
    accelerator.supported_dtypes = lambda: [*known, torch.float16]
    deepspeed.init_distributed("gloo")
    _SAVE[case.by](case, folder / "ckpt")
    torch.distributed.barrier()
    if os.environ["RANK"] == "0":
        if case.by != "trainer":
            make_config(case).save_pretrained(folder)
        if case.is_judged:
            (latest,) = (folder / "ckpt").rglob("latest")
            state = get_fp32_state_dict_from_zero_checkpoint(str(latest.parent))
            copies = {name: tensor.clone().contiguous() for name, tensor in state.items()}
            save_file(copies, folder / "expected.safetensors")
        shutil.rmtree(folder / "ckpt" / "runs", ignore_errors=True)
    torch.distributed.barrier()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
