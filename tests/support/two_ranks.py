"""Two ranks of torch's own FSDP2 that shard a model and save their parts, as verl does.

The ranks are forks of this process, which has the model already: no import and no building again.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import traceback
from datetime import timedelta
from pathlib import Path
from typing import Any

WORLD_SIZE = 2
_SECONDS = 60


def write_two_ranks(model: Any, folder: Path) -> Path:
    """`folder/model_world_size_2_rank_R.pt` of both ranks; returns the folder.

    RuntimeError with what a rank says where it fails.
    """
    import torch.distributed.fsdp  # noqa: F401 - takes a second, which each fork would take again

    folder.mkdir(parents=True, exist_ok=True)
    fork = multiprocessing.get_context("fork")
    ranks = [fork.Process(target=_be_rank, args=(model, folder, r)) for r in range(WORLD_SIZE)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(_SECONDS)
        rank.kill()
        rank.join()
    failed = [
        f"rank {number}: {rank.exitcode}" for number, rank in enumerate(ranks) if rank.exitcode
    ]
    if failed:
        said = [log.read_text() for log in sorted(folder.glob("*.log"))]
        raise RuntimeError("\n".join([*failed, *said]))
    (folder / "store").unlink()
    return folder


def _be_rank(model: Any, folder: Path, rank: int) -> None:
    """Save one rank's part; end without what the forked process would do on its own exit."""
    code = 1
    try:
        _save(model, folder, rank)
        code = 0
    except BaseException:
        (folder / f"{rank}.log").write_text(traceback.format_exc())
    finally:
        sys.stdout.flush()
        os._exit(code)


def _save(model: Any, folder: Path, rank: int) -> None:
    import torch
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh

    torch.set_num_threads(1)  # the threads of the process that was forked are not here
    dist.init_process_group(
        "gloo",
        init_method=(folder / "store").resolve().as_uri(),
        rank=rank,
        world_size=WORLD_SIZE,
        timeout=timedelta(seconds=_SECONDS),
    )
    mesh = init_device_mesh("cpu", (WORLD_SIZE,), mesh_dim_names=("fsdp",))
    shard(model, mesh)
    torch.save(model.state_dict(), folder / f"model_world_size_{WORLD_SIZE}_rank_{rank}.pt")


def shard(model: Any, mesh: Any) -> None:
    """Layers are units, the inner first, and the root takes the rest; scalars cannot be cut."""
    from torch.distributed.fsdp import fully_shard

    names = set(getattr(model, "_no_split_modules", None) or ())
    scalars = {each for each in model.parameters() if not each.ndim}
    units = [each for each in model.modules() if type(each).__name__ in names and each is not model]
    for module in reversed(units):
        fully_shard(module, mesh=mesh, ignored_params=scalars)
    fully_shard(model, mesh=mesh, ignored_params=scalars)
