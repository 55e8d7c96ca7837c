"""What one rank process does: shard each model together with the other ranks and save its part."""

from collections.abc import Iterable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn

from .fsdp_cases import Case
from .fsdp_sharding import sharded_state_dict

# A rank that dies leaves the others in a collective: they shall give up before a test run does.
_TIMEOUT = timedelta(seconds=60)


def run_rank(
    out: Path, models: Iterable[tuple[Case, nn.Module]], world_size: int, rank: int, store: Path
) -> None:
    """Join the process group through the file `store` and save this rank's part of each model."""
    dist.init_process_group(
        "gloo",
        init_method=store.resolve().as_uri(),
        rank=rank,
        world_size=world_size,
        timeout=_TIMEOUT,
    )
    try:
        for case, model in models:
            actor = out / case.name / "actor"
            actor.mkdir(parents=True, exist_ok=True)
            state = sharded_state_dict(model, case)
            if case.adapter_alone:
                state = {name: tensor for name, tensor in state.items() if "lora_" in name}
            torch.save(state, actor / f"model_world_size_{world_size}_rank_{rank}.pt")
            if case.dcp_nesting is not None:
                dcp.save(_nested(state, case.dcp_nesting), checkpoint_id=out / case.name / "dcp")
    finally:
        dist.destroy_process_group()


def _nested(state: dict[str, Any], nesting: str) -> dict[str, Any]:
    """The state below the keys that `nesting` has between its dots.

    A dictionary around it also gets what an optimizer would have: a moment like each parameter.
    """
    *around, last = nesting.split(".")
    found = {last: state} if last else state
    if around:
        moments = {name: {"exp_avg": tensor, "step": 7} for name, tensor in state.items()}
        found["optim"] = {"state": moments, "param_groups": [{"lr": 0.1}]}
    for key in reversed(around):
        found = {key: found}
    return found
