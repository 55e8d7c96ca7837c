"""Checkpoints in DeepSpeed's layout, written without it: for what a real one never is.

Follows `deepspeed/runtime/engine.py` and `deepspeed/runtime/zero/` of 0.19; what real DeepSpeed
wrote is in `tests/fixtures/deepspeed*`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from tests.support.merging import values

State = Mapping[str, torch.Tensor]

#: Weights that no even number of ranks divides, in two groups.
GROUPS = (
    {"a.weight": values(5, 3), "b.weight": values(7, start=90)},
    {"c.weight": values(2, 3, 2, start=200), "d.bias": values(1, start=300)},
)
FROZEN = {"e.weight": values(3, 3, start=400, dtype=torch.bfloat16)}
BUFFERS = {"f.scale": values(4, start=500)}


@dataclass
class Step:
    """A step's files by name, to be changed before they are written."""

    files: dict[str, dict[str, Any]] = field(default_factory=dict)

    def write(self, folder: Path, tag: str = "global_step7") -> Path:
        """All files in ``folder/tag``, and ``latest``; returns the folder."""
        (folder / tag).mkdir(parents=True, exist_ok=True)
        (folder / "latest").write_text(tag)
        for name, content in self.files.items():
            torch.save(content, folder / tag / name)
        return folder

    def edit(self, name: str, change: Callable[[dict[str, Any]], object]) -> "Step":
        """The step with the one file that has ``name`` in its own changed."""
        (found,) = [file for file in self.files if name in file]
        change(self.files[found])
        return self

    def partitions(self, rank: int) -> dict[str, Any]:
        """The optimizer's state of a rank."""
        (found,) = [file for file in self.files if f"_{rank}_mp_rank_00_optim" in file]
        return self.files[found]["optimizer_state_dict"]


def make_step(
    stage: int,
    world: int,
    groups: Sequence[State] = GROUPS,
    frozen: State = FROZEN,
    buffers: State = BUFFERS,
) -> Step:
    """What DeepSpeed would save; trained weights are float32, and bfloat16 in the state dict."""
    trained = {name: tensor for group in groups for name, tensor in group.items()}
    rounded = {name: tensor.to(torch.bfloat16) for name, tensor in trained.items()}
    head = {
        "module": {**rounded, **frozen, **buffers},
        "buffer_names": list(buffers),
        "param_shapes": [{name: t.shape for name, t in group.items()} for group in groups],
        "frozen_param_shapes": {name: t.shape for name, t in frozen.items()},
        "frozen_param_fragments": dict(frozen),
        "shared_params": {},
        "dp_world_size": world,
        "mp_world_size": 1,
        "global_steps": 7,
        "ds_version": "0.19.8",
    }
    if stage == 0:
        nothing = dict.fromkeys(("param_shapes", "frozen_param_shapes", "frozen_param_fragments"))
        return Step({"mp_rank_00_model_states.pt": head | nothing})
    if stage == 3:
        return _make_each(head, groups, frozen, world)
    step = Step({"mp_rank_00_model_states.pt": head})
    rows = [_join(group.values(), 2 * world) for group in groups]
    for rank in range(world):
        step.files[f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt"] = {
            "optimizer_state_dict": {
                "zero_stage": stage,
                "single_partition_of_fp32_groups": [_strip(row, rank, world) for row in rows],
                "group_paddings": [pad if rank == world - 1 else 0 for _, pad in rows],
                "partition_count": [world] * len(groups),
            }
        }
    return step


def _join(tensors: Any, step: int) -> tuple[torch.Tensor, int]:
    """Tensors in a row that is padded to a multiple of ``step``, and how much it is."""
    row = torch.cat([tensor.reshape(-1) for tensor in tensors])
    padding = -row.numel() % step
    return torch.cat([row, row.new_full((padding,), torch.nan)]), padding


def _strip(row: tuple[torch.Tensor, int], rank: int, world: int) -> torch.Tensor:
    whole, padding = row
    part = whole.chunk(world)[rank]
    return (part[: part.numel() - padding] if rank == world - 1 else part).clone()


def _make_each(head: dict[str, Any], groups: Sequence[State], frozen: State, world: int) -> Step:
    step = Step()
    for rank in range(world):
        module = {
            name: tensor if name in head["buffer_names"] else torch.empty(0, dtype=tensor.dtype)
            for name, tensor in head["module"].items()
        }
        pieces = {name: _piece(tensor, rank, world) for name, tensor in frozen.items()}
        flat = [torch.cat([_piece(t, rank, world) for t in group.values()]) for group in groups]
        step.files[f"zero_pp_rank_{rank}_mp_rank_00_model_states.pt"] = head | {
            "module": module,
            "frozen_param_fragments": pieces,
        }
        step.files[f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt"] = {
            "optimizer_state_dict": {
                "zero_stage": 3,
                "fp32_flat_groups": flat,
                "partition_count": world,
            }
        }
    return step


def _piece(tensor: torch.Tensor, rank: int, world: int) -> torch.Tensor:
    """The rank's equal piece of one tensor, padded at the end."""
    row, length = tensor.reshape(-1), -(-tensor.numel() // world)
    padded = torch.cat([row, row.new_full((length * world - row.numel(),), torch.nan)])
    return padded[rank * length : (rank + 1) * length].clone()


def expected_of(step: int) -> dict[str, torch.Tensor]:
    """What is in a checkpoint of :func:`make_step` of a stage."""
    trained = {name: tensor for group in GROUPS for name, tensor in group.items()}
    if step == 0:
        trained = {name: tensor.to(torch.bfloat16) for name, tensor in trained.items()}
    return {**trained, **FROZEN, **BUFFERS}
