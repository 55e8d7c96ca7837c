"""Rank files of Megatron that are damaged on purpose, and what is said of them."""

from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import torch

from ckpt_tool.common.errors import CheckpointError
from ckpt_tool.common.parallel import ALONE, Team
from ckpt_tool.common.progress import NoProgress
from ckpt_tool.operations.replicas import prove_replicas
from ckpt_tool.readers import Checkpoint, open_checkpoint

Damage = Callable[[dict], object]


def edit(folder: Path, rank: str, change: Damage, chunk: int = 0) -> Path:
    """Change the state of one rank's chunk."""
    (path,) = (folder / f"mp_rank_{rank}").iterdir()
    content = torch.load(path, weights_only=False)
    state = content[chunk] if isinstance(content, list) else content["model"]
    state = OrderedDict((name, v) for name, v in state.items())
    change(state)
    if isinstance(content, list):
        content[chunk] = state
    else:
        content["model"] = state
    torch.save(content, path)
    return path


def problems(folder: Path) -> list[tuple[str, str]]:
    return [(problem.kind, str(problem)) for problem in open_checkpoint(folder).problems]


def differing(checkpoint: Checkpoint) -> dict[str, str]:
    """What a proof on the bytes says of copies, by tensor."""
    checkpoint.require_sound()
    try:
        prove_replicas(checkpoint, False, Team(ALONE, 2, NoProgress()))
    except CheckpointError as error:
        return {problem.where: problem.message for problem in error.problems}
    return {}


def add_one(name: str, *index: int) -> Damage:
    def change(state: dict) -> None:
        state[name] = state[name].clone()
        state[name][index] += 1

    return change
