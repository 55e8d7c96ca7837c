"""Write the fixtures that old and new releases of megatron-core leave behind.

For each release, with its Python in a virtual environment of its own, from the repository's root:

    python3 -m venv /tmp/mcore-0.13
    /tmp/mcore-0.13/bin/pip install torch==2.6.0 'numpy<2' safetensors einops psutil
    /tmp/mcore-0.13/bin/pip install --no-deps 'megatron-core~=0.13.0'
    .venv/bin/python -m tests.real.write_release_fixtures 0.13 /tmp/mcore-0.13/bin/python

which replaces `tests/fixtures/mcore0.13_*`. Up to 0.14 they were written with torch 2.6.0, the
others with 2.13.0; from 0.17 on with Python 3.13. Each has `checkpoint/`, as the release saved it,
and the model it was saved from, as transformers wrote that: `config.json` and
`reference.safetensors`. What Megatron-FSDP saves (`fsdp`) is said in `megatron_fsdp`.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers

from .fill import fill_distinct
from .megatron_jobs import Sizes

_TIMEOUT = 120  # seconds; importing takes most of it
_PROJECT = Path(__file__).resolve().parents[2]
FIXTURES = _PROJECT / "tests" / "fixtures"

# As small as can be, with no two sizes alike, and a vocabulary that has to be padded.
_DECODER: dict[str, Any] = {
    "vocab_size": 22,
    "hidden_size": 16,
    "intermediate_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "rope_parameters": {"rope_type": "default", "rope_theta": 50000.0},
}
_MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaForCausalLM", {}),
    "llama_shallow": ("LlamaForCausalLM", {"num_hidden_layers": 1}),
    "qwen2": ("Qwen2ForCausalLM", {"tie_word_embeddings": True}),
    "qwen3": ("Qwen3ForCausalLM", {"head_dim": 6}),
    # Up to 0.11 experts are as wide as a dense MLP, as Mixtral's are.
    "mixtral": ("MixtralForCausalLM", {"num_local_experts": 2, "num_experts_per_tok": 2}),
    "qwen3_moe": (
        "Qwen3MoeForCausalLM",
        {"num_experts": 2, "num_experts_per_tok": 2, "moe_intermediate_size": 10, "head_dim": 6},
    ),
    "deepseek_v3": (
        "DeepseekV3ForCausalLM",
        {
            "num_key_value_heads": 4,
            "q_lora_rank": 6,
            "kv_lora_rank": 10,
            "qk_nope_head_dim": 6,
            "qk_rope_head_dim": 4,
            "v_head_dim": 8,
            "n_routed_experts": 4,
            "n_shared_experts": 1,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 8,
            "n_group": 2,
            "topk_group": 1,
            "first_k_dense_replace": 1,
            "num_nextn_predict_layers": 0,
        },
    ),
}


@dataclass(frozen=True)
class Case:
    """A fixture: which model, and how it is saved; see `release_rank.Job`.

    `copies`: how many processes share what data parallelism has whole.
    """

    model: str
    form: str = "torch_dist"
    sizes: Mapping[str, int] = field(default_factory=dict)
    metadata: Mapping[str, Any] = field(default_factory=dict)
    dtype: str = "bfloat16"
    hybrid: bool = False
    copies: int = 1


_TP2, _EP2 = {"tp": 2}, {"ep": 2}
_MODEL_SPACE = {"distrib_optim_sharding_type": "fully_sharded_model_space"}
_RESHARDABLE = {"distrib_optim_sharding_type": "fully_reshardable"}
_BUCKETS = {"distrib_optim_sharding_type": "dp_reshardable"}
_PER_LAYER = {"non_homogeneous_layers": True}
_SINGLETON = {"singleton_local_shards": True}

CASES: dict[str, dict[str, Case]] = {
    "0.11": {
        "dense": Case("llama", sizes=_TP2),
        "moe": Case("mixtral", sizes=_EP2),
        "perlayer": Case("qwen2", metadata=_PER_LAYER, dtype="float32"),
        "ranks": Case("llama", "ranks", _TP2),
    },
    "0.12": {
        "dense": Case("qwen2"),
        "moe": Case("qwen3_moe", sizes=_EP2),
        "lm": Case("llama_shallow", "megatron-lm", metadata=_MODEL_SPACE),
    },
    "0.13": {
        "dense": Case("qwen3"),
        "moe": Case("mixtral"),
        "optimizer": Case("qwen3_moe", "optimizer", _EP2, metadata=_MODEL_SPACE, copies=2),
    },
    "0.14": {
        "dense": Case("llama"),
        "moe": Case("qwen3_moe", sizes=_EP2),
        "singleton": Case("qwen3_moe", metadata=_SINGLETON),
    },
    "0.15": {
        "dense": Case("qwen2"),
        "moe": Case("qwen3_moe"),
        "ranks": Case("qwen3_moe", "ranks", _EP2),
    },
    "0.16": {
        "dense": Case("qwen3", sizes=_TP2),
        "moe": Case("mixtral"),
        "lm": Case("llama_shallow", "megatron-lm", metadata=_BUCKETS),
    },
    "0.17": {
        "dense": Case("llama", sizes=_TP2),
        "moe": Case("qwen3_moe", sizes=_EP2),
        "fsdp": Case("mixtral", "fsdp_dtensor", copies=2),
    },
    "0.18": {
        "dense": Case("qwen2"),
        "moe": Case("mixtral"),
        "ranks": Case("qwen3_moe", "ranks", _EP2),
        "hybrid": Case("qwen3_moe", sizes={"pp": 2}, hybrid=True),
        "fsdp": Case("llama", "fsdp_dtensor", _TP2, {"names": "te"}),
    },
    "0.19": {
        "dense": Case("qwen3", sizes=_TP2),
        "moe": Case("qwen3_moe", sizes=_EP2),
        "lm": Case("llama_shallow", "megatron-lm", metadata=_BUCKETS),
        "hybrid": Case("qwen2", sizes=_TP2, hybrid=True),
        "optimizer": Case("llama", "megatron-lm", _TP2, metadata=_RESHARDABLE, copies=2),
        "fsdp_dense": Case("qwen3", "fsdp_dtensor", copies=3),
        "fsdp_latent": Case("deepseek_v3", "fsdp_dtensor", _TP2, copies=2),
        "fsdp_hybrid": Case("qwen2", "fsdp_dtensor", copies=2, hybrid=True),
        "fsdp_lm": Case(
            "llama_shallow",
            "fsdp_dtensor",
            _TP2,
            {"main_dtype": "float32", "optimizer": True},
            copies=2,
        ),
        "fsdp_moe": Case("qwen3_moe", "fsdp_dtensor", _EP2, {"names": "te"}, copies=2),
    },
}


def write_fixture(python: Path, case: Case, out: Path) -> None:
    """Save the case's model with that Python's megatron-core, and put the truth beside it."""
    with tempfile.TemporaryDirectory() as scratch:
        model = Path(scratch, "model")
        _write_model(case, model)
        job = {
            "model": str(model),
            "out": str(out / "checkpoint"),
            "store": str(Path(scratch, "store")),
            "form": case.form,
            "sizes": dict(case.sizes),
            "world_size": Sizes(**case.sizes).world_size * case.copies,
            "metadata": dict(case.metadata),
            "dtype": case.dtype,
            "vocab_multiple": 4,
            "hybrid": case.hybrid,
        }
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir()
        _run(python, job)
        shutil.copyfile(model / "config.json", out / "config.json")
        shutil.copyfile(model / "model.safetensors", out / "reference.safetensors")


def _write_model(case: Case, folder: Path) -> None:
    class_name, overrides = _MODELS[case.model]
    model_class = getattr(transformers, class_name)
    config = model_class.config_class(architectures=[class_name], **{**_DECODER, **overrides})
    model = model_class._from_config(config, dtype=getattr(torch, case.dtype))
    fill_distinct(model)
    model.to(getattr(torch, case.metadata.get("main_dtype", case.dtype)))
    for module in model.modules():
        if hasattr(module, "e_score_correction_bias"):  # megatron-core keeps it in float32
            module.e_score_correction_bias = module.e_score_correction_bias.float()
    model.save_pretrained(folder)


def _run(python: Path, job: Mapping[str, Any]) -> None:
    """Start the ranks and wait for them. Raises RuntimeError when one fails."""
    command = [str(python), "-W", "ignore", "-m", "tests.real.release_rank", json.dumps(job)]
    settings = {"TORCHDYNAMO_DISABLE": "1", "OMP_NUM_THREADS": "1"}
    ranks = [
        # In a group of its own, so that no helper that megatron-core starts is left over.
        subprocess.Popen(
            [*command, str(rank)],
            cwd=_PROJECT,
            env=os.environ | settings,
            start_new_session=True,
        )
        for rank in range(job["world_size"])
    ]
    try:
        codes = [rank.wait(_TIMEOUT) for rank in ranks]
    finally:
        for rank in ranks:
            with suppress(ProcessLookupError):
                os.killpg(rank.pid, signal.SIGKILL)
    if any(codes):
        raise RuntimeError(f"ranks failed: {codes}")


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the fixtures of one release.")
    parser.add_argument("release", choices=CASES)
    parser.add_argument("python", type=Path, help="the Python that has this release")
    parser.add_argument("only", nargs="*", help="these variants instead of all")
    arguments = parser.parse_args()
    for name, case in CASES[arguments.release].items():
        if not arguments.only or name in arguments.only:
            write_fixture(arguments.python, case, FIXTURES / f"mcore{arguments.release}_{name}")


if __name__ == "__main__":
    main()
