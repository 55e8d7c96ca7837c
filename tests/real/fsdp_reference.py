"""Everything of a case but its rank files: the model itself, its references and its side files."""

import copy
import json
import warnings
from pathlib import Path

import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PreTrainedModel
from transformers.utils import logging

from .fill import fill_distinct
from .fsdp_cases import Case
from .fsdp_models import MODELS, WithValueHead
from .lora_models import MODELS as LORA_MODELS
from .lora_models import write_judgement, write_settings

_INPUT_IDS = torch.arange(3, 21).reshape(2, 9)
# Merging copies these byte for byte, so their contents need not be a tokenizer's.
_TOKENIZER_FILES = {
    "tokenizer_config.json": '{"tokenizer_class": "PreTrainedTokenizerFast", "x": "é  "}\n',
    "tokenizer.json": '{\n "version": "1.0", "model": {"type": "BPE", "vocab": {"a": 0}}}',
    "chat_template.jinja": "{% for m in messages %}{{ m.content }}\n{% endfor %}",
}


def configure_process() -> None:
    """One thread, because ranks outnumber cores, and an stderr that holds nothing but failures.

    FSDP1 and ShardedTensor warn of being deprecated, but people's checkpoints are made of them.
    """
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    warnings.simplefilter("ignore")


def build_model(case: Case) -> nn.Module:
    """The whole model of `case`; every process that builds it gets the same values."""
    model = (MODELS | LORA_MODELS)[case.model](getattr(torch, case.dtype))
    fill_distinct(model)
    return model


def write_references(out: Path, case: Case, model: nn.Module) -> None:
    """Write all that a case's folder has beside the rank files; `model` must not be sharded yet."""
    folder = out / case.name
    folder.mkdir(parents=True, exist_ok=True)
    _write_unsharded(folder, model)
    _write_side_files(folder / "actor", case, model)


def logits_of(model: PreTrainedModel, input_ids: torch.Tensor) -> torch.Tensor:
    """What `model` computes in float32, the same bits wherever its weights came from.

    Sums depend on how many threads share them, and on how weights are aligned: loaded ones lie
    where their file has them, copies where torch aligns them.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.no_grad():
            return copy.deepcopy(model).float()(input_ids=input_ids).logits
    finally:
        torch.set_num_threads(threads)


def _write_unsharded(folder: Path, model: nn.Module) -> None:
    """What the rank files must amount to: in memory, on the Hub, and in what the model computes."""
    # Clones, because safetensors refuses the shared storage of tied embeddings.
    raw = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    save_file(raw, folder / "raw_state_dict.safetensors", metadata={"format": "pt"})
    if isinstance(model, PeftModel):
        write_judgement(folder, model)
        _write_logits(folder, model)
        return
    if isinstance(model, WithValueHead):
        _write_value_head(folder, model)
    if not isinstance(model, PreTrainedModel):
        return
    model.save_pretrained(folder / "reference")
    if model.config.model_type == "qwen3_vl_moe":
        _transpose_experts(folder / "reference" / "model.safetensors")
    _write_logits(folder, model)


def _write_logits(folder: Path, model: nn.Module) -> None:
    logits = logits_of(model, _INPUT_IDS)
    assert logits.isfinite().all()
    save_file({"input_ids": _INPUT_IDS, "logits": logits}, folder / "logits.safetensors")


def _write_value_head(folder: Path, model: WithValueHead) -> None:
    """The reference as trl's `save_pretrained` writes it, logits of the language model and values.

    Of a tied model it has the embedding alone, as for any model.
    """
    head = {f"v_head.{name}": tensor for name, tensor in model.v_head.state_dict().items()}
    state = model.pretrained_model.state_dict()
    if model.config.tie_word_embeddings:
        state.pop("lm_head.weight")
    model.config.save_pretrained(folder / "reference")
    save_file(state | head, folder / "reference" / "model.safetensors", metadata={"format": "pt"})
    known = {"input_ids": _INPUT_IDS, "logits": logits_of(model.pretrained_model, _INPUT_IDS)}
    with torch.no_grad():
        known["values"] = copy.deepcopy(model).float().values(_INPUT_IDS)
    save_file(known, folder / "logits.safetensors")


def _transpose_experts(weights: Path) -> None:
    """Give Qwen3-VL-MoE's fused experts the axes they have on the Hub: [experts, in, out].

    transformers 5 holds them as [experts, out, in]. It transposes what it loads if the shape asks
    for it, but `save_pretrained` always finds the shape it has in memory and transposes nothing;
    transformers 4.57 and vLLM read the Hub's axes only.
    """
    tensors = load_file(weights)
    for name, tensor in tensors.items():
        if ".mlp.experts." in name:
            tensors[name] = tensor.transpose(1, 2).contiguous()
    save_file(tensors, weights, metadata={"format": "pt"})


def _write_side_files(actor: Path, case: Case, model: nn.Module) -> None:
    """The files verl puts beside the shards; a plain module has no config, so no `huggingface/`."""
    layout = {"FSDP_version": case.fsdp_version, "world_size": case.world_size}
    actor.mkdir(parents=True, exist_ok=True)
    (actor / "fsdp_config.json").write_text(json.dumps(layout, indent=4))
    if isinstance(model, PeftModel):
        write_settings(actor, model, case.lora or "")
        model = model.get_base_model()
    if isinstance(model, WithValueHead):
        model = model.pretrained_model
    if not isinstance(model, PreTrainedModel):
        return
    huggingface = actor / "huggingface"
    huggingface.mkdir(exist_ok=True)
    config = copy.deepcopy(model.config)
    if case.config_architecture:
        config.architectures = [case.config_architecture]
    config.save_pretrained(huggingface)
    if model.can_generate():
        model.generation_config.save_pretrained(huggingface)
    for name, text in _TOKENIZER_FILES.items():
        (huggingface / name).write_text(text, encoding="utf-8")
