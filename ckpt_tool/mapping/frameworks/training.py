"""What lies beside the weights in a checkpoint of a training run, told by its names."""

from __future__ import annotations

import re

#: Parts of names that no model has: of optimizers, schedules, random states and progress, as torch
#: (``optim``), Megatron, Lightning, accelerate, torchtitan and loops of one's own write them.
_PARTS = re.compile(
    r"(\w+_)?optim(izer)?s?(_states|_state|_state_dict|_dict|_\d+)?|chained_\d+"
    r"|(\w+_)?rng_state\w*|random_states?|rerun_state_machine\w*"
    r"|(opt_param_|lr_)?schedulers?(_states|_state|_state_dict|_dict)?"
    r"|(grad_|loss_)?scaler_state(_dict)?|grad_scaler|train_state|dataloader\w*|common_state"
    r"|iteration|global_step|epoch"
)
#: A name that begins with one of them, maybe below one or two others; the first are Lightning's.
_TRAINING = re.compile(
    r"(callbacks|loops|hyper_parameters)[./]"
    rf"|([^./]*[./]){{0,2}}({_PARTS.pattern})(?:[./]|\Z)"
)


def is_training_state(name: str) -> bool:
    """Whether ``name`` is of the state of a run, not of a model, maybe below a name or two."""
    return _TRAINING.match(name) is not None


def find_training_kind(name: str) -> str:
    """The name up to the part that tells: under this, a whole kind of state can be summed up."""
    parts = re.split(r"[./]", name)
    depth = next((at for at, part in enumerate(parts) if _PARTS.fullmatch(part)), 0)
    return ".".join(parts[: depth + 1])
