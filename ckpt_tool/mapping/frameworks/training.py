"""What lies beside the weights in a checkpoint of a training run, told by its names."""

from __future__ import annotations

import re

#: Parts of names that no model has: of optimizers, schedules, random states and progress, as torch
#: (``optim``), Megatron, Lightning, accelerate and torchtitan write them.
_PARTS = re.compile(
    r"optim(izer)?s?(_states|_\d+)?|chained_\d+|rng_state\w*|rerun_state_machine\w*"
    r"|(opt_param|lr)_schedulers?|schedulers?|train_state|dataloader\w*|common_state"
    r"|iteration|global_step|epoch"
)
_DEPTH = 3


def is_training_state(name: str) -> bool:
    """Whether ``name`` is of the state of a run, not of a model, maybe below a name or two."""
    first = re.split(r"[./]", name, maxsplit=_DEPTH)[:_DEPTH]
    return any(_PARTS.fullmatch(part) for part in first)


def find_training_kind(name: str) -> str:
    """The name up to the part that tells: under this, a whole kind of state can be summed up."""
    parts = re.split(r"[./]", name)
    depth = next((at for at, part in enumerate(parts) if _PARTS.fullmatch(part)), 0)
    return ".".join(parts[: depth + 1])
