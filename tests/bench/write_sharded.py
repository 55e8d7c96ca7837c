"""One model as three kinds of sharded checkpoint, each written by the library that defines it.

- ``fsdp/``: rank files as verl saves them, ``torch.save`` of DTensors;
- ``dcp/``: a folder of torch.distributed.checkpoint, as accelerate saves it;
- ``shards/``: safetensors files by rank, as transformers and torch's own writer save them.

Run as a program, this module is one rank: ``python -m tests.bench.write_sharded MODEL OUT RANK SIZE
DIM``. Matrices are cut along dimension DIM. All ranks run at the same time.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

RANKS = 4
FSDP, DCP, SHARDS = "fsdp", "dcp", "shards"


def write_sharded(model: Path, out: Path, dim: int) -> None:
    """Make checkpoints of the Hugging Face folder ``model``; CalledProcessError where a rank fails.

    ``dim``: along which matrices are cut.
    """
    out.mkdir()
    command = [sys.executable, "-W", "ignore", "-m", __name__, str(model), str(out)]
    ranks = [
        subprocess.Popen([*command, str(rank), str(RANKS), str(dim)], stderr=subprocess.PIPE)
        for rank in range(RANKS)
    ]
    errors = [rank.communicate()[1] for rank in ranks]
    for rank, error in zip(ranks, errors, strict=True):
        if rank.returncode:
            raise subprocess.CalledProcessError(
                rank.returncode, command, stderr=error.decode(errors="replace")[-2000:]
            )


def _write(model: Path, out: Path, rank: int, size: int, dim: int) -> None:
    import torch
    import torch.distributed as dist
    import torch.distributed.checkpoint as dcp

    dist.init_process_group("gloo", f"file://{out}/.meeting", rank=rank, world_size=size)
    state = _shards(model, rank, size, dim)
    if rank == 0:
        _write_beside(model, out, size)
    dist.barrier()
    torch.save(state, out / FSDP / f"model_world_size_{size}_rank_{rank}.pt")
    dcp.save({"model": state}, checkpoint_id=out / DCP)
    writer = dcp.HuggingFaceStorageWriter(
        str(out / SHARDS), save_distributed=True, enable_consolidation=False
    )
    dcp.save(state, storage_writer=writer)
    dist.destroy_process_group()


def _shards(model: Path, rank: int, size: int, dim: int) -> dict[str, torch.Tensor]:
    """The rank's part of every tensor."""
    import torch
    from safetensors import safe_open
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor, Shard

    mesh = init_device_mesh("cpu", (size,), mesh_dim_names=("fsdp",))
    state = {}
    for path in sorted(model.glob("*.safetensors")):
        with safe_open(str(path), "pt") as file:
            for name in file.keys():  # noqa: SIM118 - a safe_open is no mapping
                whole = file.get_tensor(name)
                along = dim if whole.ndim > 1 else 0
                parts = whole.chunk(size, along)
                local = parts[rank].clone() if rank < len(parts) else whole.narrow(along, 0, 0)
                state[name] = DTensor.from_local(
                    local,
                    mesh,
                    [Shard(along)],
                    run_check=False,
                    shape=whole.shape,
                    stride=torch.empty(whole.shape, device="meta").stride(),
                )
    return state


def _write_beside(model: Path, out: Path, size: int) -> None:
    """What verl has beside its rank files: a config, a tokenizer, the number of ranks."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    beside = out / FSDP / "huggingface"
    beside.mkdir(parents=True)
    (out / DCP).mkdir()
    (out / SHARDS).mkdir()
    (beside / "config.json").write_text((model / "config.json").read_text())
    words = Tokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="a"))
    PreTrainedTokenizerFast(tokenizer_object=words).save_pretrained(beside)
    world = {"FSDP_version": 2, "world_size": size}
    (out / FSDP / "fsdp_config.json").write_text(json.dumps(world))


if __name__ == "__main__":
    _write(Path(sys.argv[1]), Path(sys.argv[2]), *map(int, sys.argv[3:]))
