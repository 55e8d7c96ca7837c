"""Have accelerate's own code save a tiny model of each kind, as one rank: run under torchrun.

    torchrun --nproc-per-node 2 -m tests.real.accelerate_rank OUT

`OUT/{fsdp2,fsdp1,local}/` then hold the files of `save_fsdp_model(use_dcp=False)`, and
`OUT/whole.pt` the state dict that they are cut from.
"""

import sys
from pathlib import Path
from types import SimpleNamespace

import torch
import torch.distributed as dist
from accelerate import PartialState
from accelerate.utils import FullyShardedDataParallelPlugin
from accelerate.utils.fsdp_utils import save_fsdp_model
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard

from tests.support.torchrun import leave

KINDS = {"fsdp2": "SHARDED_STATE_DICT", "fsdp1": "SHARDED_STATE_DICT", "local": "LOCAL_STATE_DICT"}


def make_model() -> nn.Module:
    """Rows that no two ranks share evenly; every element of it is another number."""
    model = nn.Sequential(nn.Embedding(11, 6), nn.Linear(6, 7), nn.LayerNorm(7))
    start = 0
    for parameter in model.parameters():
        parameter.data = torch.arange(start, start + parameter.numel()).view_as(parameter).float()
        start += parameter.numel()
    return model


def shard(kind: str) -> nn.Module:
    model = make_model()
    if kind == "fsdp2":
        return fully_shard(model, mesh=init_device_mesh("cpu", (dist.get_world_size(),)))
    return FullyShardedDataParallel(model, use_orig_params=True, device_id=torch.device("cpu"))


def main(out: Path) -> None:
    PartialState(cpu=True)
    ranks = SimpleNamespace(process_index=dist.get_rank(), num_processes=dist.get_world_size())
    for kind, saved in KINDS.items():
        plugin = FullyShardedDataParallelPlugin(
            fsdp_version=2 if kind == "fsdp2" else 1, state_dict_type=saved
        )
        save_fsdp_model(plugin, ranks, shard(kind), str(out / kind), use_dcp=False)
    if not dist.get_rank():
        torch.save(make_model().state_dict(), out / "whole.pt")
    leave()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
