"""Checkpoints that torch.distributed.checkpoint itself writes, of the tensors of another one."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch.distributed import checkpoint as dcp

from ckpt_tool import open_checkpoint

Tensors = dict[str, torch.Tensor]

#: What megatron-core puts beside the metadata of its `torch_dist` folders.
_MEGATRON = {"sharded_backend": "torch_dist", "sharded_backend_version": 1}


def tensors_of(folder: Path) -> Tensors:
    """Every tensor of a checkpoint, by the names in it."""
    return {name: tensor.read() for name, tensor in open_checkpoint(folder).items()}


def save_dcp(state: Mapping[str, Any], folder: Path) -> Path:
    """What `torch.distributed.checkpoint.save` of one process writes."""
    dcp.save(dict(state), checkpoint_id=folder)
    return folder


def save_megatron(state: Mapping[str, Any], folder: Path) -> Path:
    """The same as a `torch_dist` folder."""
    save_dcp(state, folder)
    (folder / "metadata.json").write_text(json.dumps(_MEGATRON))
    return folder


def resaved(source: Path, folder: Path, change: Callable[[Tensors], Mapping[str, Any]]) -> Path:
    """A `torch_dist` folder with what `change` makes of the tensors of another one."""
    return save_megatron(change(tensors_of(source)), folder)
