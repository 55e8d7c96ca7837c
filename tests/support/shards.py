"""Shards of a Hugging Face model: saved by ranks of torch's own writer, or put together by hand."""

from __future__ import annotations

import json
import multiprocessing
import os
from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

_SECONDS = 60


def shard_name(number: int, part: int = 1, parts: int = 1) -> str:
    return f"shard-{number:05d}-model-{part:05d}-of-{parts:05d}.safetensors"


def write_shard(
    path: Path, pieces: Mapping[str, tuple[torch.Tensor, Sequence[int]]], **more: Any
) -> Path:
    """A file of tensors, each with its offsets, as torch writes it; `more`: other metadata."""
    path.parent.mkdir(parents=True, exist_ok=True)
    info = {name: {"saved_offsets": list(at)} for name, (_, at) in pieces.items()}
    described = {"DCP_SHARDING_INFO": json.dumps(info), "DCP_VERSION": "1.0", "format": "pt"}
    found = {name: tensor.contiguous() for name, (tensor, _) in pieces.items()}
    save_file(found, path, {k: v for k, v in (described | more).items() if v is not None})
    return path


def cut_rows(state: Mapping[str, torch.Tensor], world_size: int, rank: int) -> dict[str, Any]:
    """The pieces of a rank as `fully_shard` cuts them: by rows, as even as `chunk` makes them."""
    pieces = {}
    for name, tensor in state.items():
        step = -(-tensor.shape[0] // world_size)
        start = min(step * rank, tensor.shape[0])
        pieces[name] = (tensor[start : start + step], (start, *[0] * (tensor.ndim - 1)))
    return pieces


def write_shards(folder: Path, state: Mapping[str, torch.Tensor], world_size: int = 3) -> Path:
    """All ranks' files of a state dict, cut by rows; returns the folder."""
    for rank in range(world_size):
        write_shard(folder / shard_name(rank + 1), cut_rows(state, world_size, rank))
    return folder


def save_on_ranks(
    folder: Path, state: Any, mesh: tuple[int, ...], cuts: Mapping[str, Any], **options: Any
) -> Path:
    """Save with torch's writer on real ranks of a mesh, every tensor with its placements of `cuts`.

    One that has none there is a plain one on every rank. RuntimeError where a rank fails.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    fork = multiprocessing.get_context("fork")
    job = (folder, state, mesh, cuts, options)
    ranks = [fork.Process(target=_be_rank, args=(rank, job)) for rank in range(prod(mesh))]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(_SECONDS)
        process.kill()
        process.join()
    (folder.parent / "store").unlink(missing_ok=True)
    if failed := [process.exitcode for process in ranks if process.exitcode]:
        raise RuntimeError(f"ranks failed: {failed}")
    return folder


def _be_rank(rank: int, job: tuple[Any, ...]) -> None:
    """Save one rank's part; end without what the forked process would do on its own exit."""
    code = 1
    try:
        _save(rank, *job)
        code = 0
    finally:
        os._exit(code)


def _save(rank: int, folder: Path, state: Any, shape: tuple[int, ...], *how: Any) -> None:
    import torch.distributed as dist
    import torch.distributed.checkpoint as dcp
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import distribute_tensor

    cuts, options = how
    torch.set_num_threads(1)
    store = (folder.parent / "store").resolve().as_uri()
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=prod(shape))
    mesh = init_device_mesh("cpu", shape)
    cut = {
        name: distribute_tensor(tensor, mesh, cuts[name]) if name in cuts else tensor
        for name, tensor in state.items()
    }
    writer = dcp.HuggingFaceStorageWriter(path=str(folder), save_distributed=True, **options)
    dcp.save(cut, storage_writer=writer)
    dist.barrier()
