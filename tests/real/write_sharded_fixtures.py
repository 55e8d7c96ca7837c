"""Write the fixtures that transformers leaves behind as shards, `distributed_checkpoint=True`.

By hand, with a Python that has transformers 5.24 or newer (written with 5.24.0 and torch 2.13.0):

    torchrun --nproc-per-node 4 tests/real/write_sharded_fixtures.py moe FOLDER
    torchrun --nproc-per-node 3 tests/real/write_sharded_fixtures.py dense FOLDER

`moe`: tensor parallelism of 2 and FSDP of 2, experts in one tensor; `dense`: FSDP of 3, so that
pieces are of different sizes, and the head is the embedding. `FOLDER/checkpoint` is what the ranks
saved, `FOLDER/reference.safetensors` what the one process saved that made the model.
"""

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from transformers import AutoModelForCausalLM, Qwen3Config, Qwen3MoeConfig
from transformers.distributed.configuration_utils import DistributedConfig

_SIZES = {
    "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "vocab_size": 50, "max_position_embeddings": 64,
}  # fmt: skip
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 8}


def make_source(kind: str, folder: Path) -> None:
    """A model of random weights, as one process saves it."""
    torch.manual_seed(1)
    if kind == "moe":
        config = Qwen3MoeConfig(**_SIZES, **_EXPERTS, tie_word_embeddings=False)
    else:
        config = Qwen3Config(**_SIZES, tie_word_embeddings=True)
    model = AutoModelForCausalLM.from_config(config).to(torch.bfloat16)
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape).to(torch.bfloat16)
    model.tie_weights()
    model.save_pretrained(folder)


def main(kind: str, folder: Path) -> None:
    dist.init_process_group("gloo")
    first = dist.get_rank() == 0
    if first:
        make_source(kind, folder / "source")
    dist.barrier()
    cut = {"tp_size": 2, "fsdp_size": 2} if kind == "moe" else {"fsdp_size": 3}
    model = AutoModelForCausalLM.from_pretrained(
        folder / "source", dtype="auto", distributed_config=DistributedConfig(**cut)
    )
    checkpoint = folder / "checkpoint"
    model.save_pretrained(checkpoint, distributed_checkpoint=True, is_main_process=first)
    if first:
        (folder / "source" / "model.safetensors").rename(folder / "reference.safetensors")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
