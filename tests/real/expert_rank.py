"""Have FSDP2 save a tiny Qwen3-MoE whose experts are cut first, as VeOmni does: one rank of four.

    torchrun --nproc-per-node 4 -m tests.real.expert_rank OUT

Each rank has its own experts as plain parameters, which FSDP2 then shards along their second
dimension, over all mesh dimensions but the experts'. `OUT/<layout>/` hold rank files and config,
`OUT/whole/` the model, saved by transformers.
"""

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Shard
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

from tests.support.torchrun import leave

#: The mesh of the experts: VeOmni's, that of HSDP, and one with the experts outermost.
LAYOUTS = {
    "veomni": {"ep_fsdp": 2, "ep": 2},
    "hsdp": {"ep_replicate": 2, "ep_fsdp": 1, "ep": 2},
    "outermost": {"ep": 2, "ep_fsdp": 2},
    "nothing_left": {"ep_fsdp": 1, "ep": 4},
}


def make_model() -> nn.Module:
    torch.manual_seed(7)
    config = Qwen3MoeConfig(
        vocab_size=40, hidden_size=16, intermediate_size=20, moe_intermediate_size=12,
        num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=4,
        num_experts=8, num_experts_per_tok=2, tie_word_embeddings=False,
    )  # fmt: skip
    return Qwen3MoeForCausalLM(config)


def shard(model: nn.Module, mesh: DeviceMesh, every: DeviceMesh) -> None:
    names = mesh.mesh_dim_names
    assert names is not None
    number, count = mesh.get_local_rank("ep"), mesh["ep"].size()
    rest = mesh[tuple(name for name in names if name != "ep")]
    for layer in model.model.layers:
        experts = layer.mlp.experts
        for name, whole in list(experts.named_parameters(recurse=False)):
            mine = whole.detach().chunk(count)[number].clone()
            setattr(experts, name, nn.Parameter(mine))
        fully_shard(experts, mesh=rest, shard_placement_fn=lambda _: Shard(1))
        fully_shard(layer, mesh=every)
    fully_shard(model, mesh=every)


def main(out: Path) -> None:
    dist.init_process_group("gloo")
    rank, size = dist.get_rank(), dist.get_world_size()
    every = init_device_mesh("cpu", (size,), mesh_dim_names=("dp_shard",))
    for layout, dims in LAYOUTS.items():
        mesh = init_device_mesh("cpu", tuple(dims.values()), mesh_dim_names=tuple(dims))
        model = make_model()
        folder = out / layout
        folder.mkdir(exist_ok=True)
        if not rank:
            model.config.save_pretrained(folder / "huggingface")
        shard(model, mesh, every)
        torch.save(model.state_dict(), folder / f"model_world_size_{size}_rank_{rank}.pt")
    if not rank:
        make_model().save_pretrained(out / "whole")
    leave()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
