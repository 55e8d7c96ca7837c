"""``python -m tests.fuzz.write_seeds FOLDER``: small real checkpoints, one folder for each target.

A process of its own, as it needs torch, which the process that is forked must not have. Most are
of one layer: what is small is fast, and every byte of it matters.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from ckpt_tool.operations.merge import merge_fsdp
from ckpt_tool.operations.options import MergeOptions
from ckpt_tool.plans.checks.cache import keep_wanted
from ckpt_tool.plans.checks.wanted import Wanted
from ckpt_tool.plans.options import WriteOptions
from ckpt_tool.writers.journal import Journal, Replacing
from ckpt_tool.writers.stream import WrittenFile
from ckpt_tool.writers.target import make_journal_path
from tests.fuzz.packed_seeds import CONFIG as PACKED
from tests.fuzz.packed_seeds import write_packed
from tests.fuzz.seeds import CACHE_KEY, fix_times
from tests.support.merging import write_rank
from tests.support.resaving import save_dcp
from tests.support.shards import write_shards
from tests.support.tiny_llama import EMBEDDING, HEAD, LAYER, LLAMA, make_llama
from tests.support.two_ranks import write_two_ranks

#: Fixtures with a checkpoint, and a config beside it.
_CONFIGURED = (
    "torchtitan0.3_llama3",
    "mcore0.15_dense",
    "mcore0.16_moe",
    "mcore0.19_hybrid",
    "mcore0.13_optimizer",
    "mcore0.11_ranks",
)
_FIXTURES = Path(__file__).parents[1] / "fixtures"

_TOKENIZER = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "extra_special_tokens": ["<a>"],
    "auto_map": {"AutoTokenizer": ["tok.T", None]},
}
_ADAPTER = {
    "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 2, "lora_alpha": 4,
    "target_modules": "q_proj|v_proj", "rank_pattern": {"layers.0.self_attn.v_proj": 2},
    "alpha_pattern": {"^.*q_proj": 8}, "use_rslora": False, "exclude_modules": None,
    "modules_to_save": None, "target_parameters": None, "peft_version": "0.18.0",
    "trainable_token_indices": None, "fan_in_fan_out": False, "base_model_name_or_path": "x",
}  # fmt: skip


def write_all(out: Path) -> None:
    _write_fsdp(out / "fsdp")
    for name in ("torch2.4.1_fsdp1_w2", "torch2.9.1_fsdp2_w3", "torch2.6.0_fsdp2_hsdp_w4"):
        shutil.copytree(_FIXTURES / name, out / name / "ck", ignore=shutil.ignore_patterns("ref*"))
    _write_lora(out / "lora")
    _write_lora_alone(out / "lora-base")
    _write_dcp(out / "dcp")
    _write_shards(out / "shards")
    for name in _CONFIGURED:
        shutil.copytree(_FIXTURES / name / "checkpoint", out / name / "ck")
        _copy_config(_FIXTURES / name, out / name / "config")
    for kind in ("z2_excluded", "z3_frozen", "universal_z3"):
        name = f"deepspeed0.19_{kind}"
        shutil.copytree(_FIXTURES / name / "ckpt", out / name / "ck")
    _write_bridge(out / "bridge")
    _write_single(out / "single")
    _write_hub(out / "hub")
    _put(out / "packed" / "ck" / "config.json", PACKED)
    write_packed(out / "packed" / "ck")
    _write_bin(out / "hub-bin")
    _write_state(out / "state")


def _write_config(folder: Path, **more: Any) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    _put(folder / "config.json", LLAMA | more)
    _put(folder / "generation_config.json", {"bos_token_id": 1, "eos_token_id": [2, 3]})
    _put(folder / "tokenizer_config.json", _TOKENIZER)
    _put(folder / "tokenizer.json", {"version": "1.0"})
    _put(folder / "processor_config.json", {"processor_class": "P", "image_processor": {"a": 1}})


def _make_few() -> dict[str, torch.Tensor]:
    """Some of a llama's tensors: what is read of the others is read of these."""
    kept = (EMBEDDING, "model.layers.0.self_attn.q_proj.weight", "model.norm.weight", HEAD)
    return {name: tensor for name, tensor in make_llama().items() if name in kept}


def _put(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def _copy_config(source: Path, folder: Path) -> None:
    folder.mkdir(parents=True)
    shutil.copy(source / "config.json", folder)


def _make_module(state: Mapping[str, torch.Tensor]) -> torch.nn.Module:
    """Modules that have these parameters, by their names."""
    root = torch.nn.Module()
    for name, tensor in state.items():
        *path, last = name.split(".")
        module = root
        for part in path:
            if part not in dict(module.named_children()):
                module.add_module(part, torch.nn.Module())
            module = module.get_submodule(part)
        module.register_parameter(last, torch.nn.Parameter(tensor))
    return root


def _write_fsdp(folder: Path) -> None:
    """Two ranks of FSDP2, as verl leaves them."""
    write_two_ranks(_make_module(_make_few()), folder / "ck")
    _write_config(folder / "ck" / "huggingface")
    _put(folder / "ck" / "fsdp_config.json", {"FSDP_version": 2, "world_size": 2})


def _adapters(*names: str) -> dict[str, torch.Tensor]:
    found = {}
    for number, name in enumerate(names):
        start = f"base_model.model.model.layers.0.{name}"
        found[f"{start}.lora_A.default.weight"] = torch.full((2, LAYER[name][1]), 0.5 + number)
        found[f"{start}.lora_B.default.weight"] = torch.full((LAYER[name][0], 2), 0.25 + number)
    return found


def _write_lora(folder: Path) -> None:
    """A model with adapters, as verl saves it."""
    state = {f"base_model.model.{name}": tensor for name, tensor in _make_few().items()}
    for name in ("self_attn.q_proj",):
        start = f"base_model.model.model.layers.0.{name}"
        state[f"{start}.base_layer.weight"] = state.pop(f"{start}.weight")
    write_rank(folder / "ck", state | _adapters("self_attn.q_proj"), LLAMA)
    _put(
        folder / "ck" / "lora_train_meta.json", {"r": 2, "lora_alpha": 4, "task_type": "CAUSAL_LM"}
    )
    _put(folder / "ck" / "lora_adapter" / "adapter_config.json", _ADAPTER | {"alpha_pattern": {}})


def _write_lora_alone(folder: Path) -> None:
    write_rank(folder / "ck", _adapters("self_attn.q_proj", "self_attn.v_proj"))
    _put(folder / "ck" / "adapter_config.json", _ADAPTER)
    _write_config(folder / "base")
    save_file(make_llama(), folder / "base" / "model.safetensors")


def _write_dcp(folder: Path) -> None:
    save_dcp(
        {"app": {"model": _make_few(), "epoch": 3}, "optimizer": {"step": torch.ones(1)}},
        folder / "ck",
    )
    _write_config(folder / "ck" / "huggingface")


def _write_shards(folder: Path) -> None:
    """Two ranks' files of a Hugging Face model, with NeMo Automodel's list of names."""
    state = _make_few()
    write_shards(folder / "ck", state, 2)
    _write_config(folder / "ck" / ".hf_metadata")
    mapping = dict.fromkeys(state, 1)
    _put(folder / "ck" / ".hf_metadata" / "fqn_to_file_index_mapping.json", mapping)


def _write_bridge(folder: Path) -> None:
    shutil.copytree(_FIXTURES / "bridge0.3_adapter_ranks", folder / "ck")
    _put(folder / "ck" / "adapter_checkpoint" / "lora_train_meta.json", {"r": 4, "lora_alpha": 8})


def _write_single(folder: Path) -> None:
    """One file with the model and what a run has beside it."""
    _write_config(folder / "config")
    optimizer = {"state": {0: {"exp_avg": torch.ones(2)}}, "param_groups": [{"betas": (0.9, 0.1)}]}
    whole = {"net": {"model": _make_few()}, "optimizer_states": [optimizer], "step": 3}
    torch.save(whole | {"args": Namespace(seed=1), "hparams": {"a": None}}, folder / "ck")


def _write_hub(folder: Path) -> None:
    """Two safetensors files with their index; llama, for ``to-mcore``."""
    _write_config(folder / "ck", num_key_value_heads=2)
    state = make_llama()
    names = list(state)
    parts = {
        "model-00001-of-00002.safetensors": names[:5],
        "model-00002-of-00002.safetensors": names[5:],
    }
    for file, held in parts.items():
        save_file({name: state[name] for name in held}, folder / "ck" / file, {"format": "pt"})
    weight_map = {name: file for file, held in parts.items() for name in held}
    _put(
        folder / "ck" / "model.safetensors.index.json",
        {"metadata": {"total_size": 9}, "weight_map": weight_map},
    )


def _write_bin(folder: Path) -> None:
    """``pytorch_model.bin`` in two, with what sentence-transformers has beside it."""
    _write_config(folder / "ck", tie_word_embeddings=True)
    state = _make_few()
    names = list(state)
    parts = {
        "pytorch_model-00001-of-00002.bin": names[:2],
        "pytorch_model-00002-of-00002.bin": names[2:],
    }
    for file, held in parts.items():
        torch.save({name: state[name] for name in held}, folder / "ck" / file)
    weight_map = {name: file for file, held in parts.items() for name in held}
    _put(folder / "ck" / "pytorch_model.bin.index.json", {"metadata": {}, "weight_map": weight_map})
    _put(folder / "ck" / "modules.json", [{"idx": 0, "path": ""}, {"idx": 1, "path": "1_Pooling"}])
    _put(folder / "ck" / "1_Pooling" / "config.json", {"dim": 8})


def _write_state(folder: Path) -> None:
    """What runs of ours leave: an output with its manifest, a journal, an entry of the cache."""
    write_rank(folder / "ck", _make_few(), LLAMA)
    fix_times(folder)
    options = MergeOptions(dtype="bfloat16", jobs=1, write=WriteOptions(check_load=False))
    merge_fsdp(folder / "ck", folder / "out", options)
    _write_journal(folder / "out")
    os.environ["XDG_CACHE_HOME"] = str(folder)
    wanted = Wanted(
        "A", "transformers 5", {"a.weight": (2, 3)}, {"b": (1,)}, {"a": "float32"}, ("x$",)
    )
    keep_wanted(CACHE_KEY, wanted)


def _write_journal(out: Path) -> None:
    journal = Journal(make_journal_path(out), lambda _: None)
    journal.open(out)
    files = [
        WrittenFile("a.safetensors", 9, "0" * 32, (("float32", "bfloat16", 0.5),), ("a.weight",)),
        WrittenFile("lora_adapter/b.safetensors", 8, "1" * 32),
    ]
    journal.start("f" * 64, files[:1])
    journal.note(files[1])
    journal.note_replacing(Replacing(".out.ckpt-old-1", 5, ("config.json", "a.safetensors")))
    journal.close()


if __name__ == "__main__":
    write_all(Path(sys.argv[1]))
