"""``ckpt merge dcp``: any folder of torch.distributed.checkpoint becomes a Hugging Face folder.

accelerate (``SHARDED_STATE_DICT``), Lightning and torchtitan save models that way, nested in
dictionaries of their own and with the optimizer's state beside them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from ckpt_tool.common.errors import CheckpointError, UsageError
from ckpt_tool.common.parallel import Team
from ckpt_tool.common.progress import Progress
from ckpt_tool.mapping.frameworks.nested import prefix_of, renamed, under
from ckpt_tool.mapping.frameworks.torchtitan import from_torchtitan, is_torchtitan
from ckpt_tool.mapping.frameworks.training import is_training_state
from ckpt_tool.mapping.megatron.keys import is_megatron
from ckpt_tool.operations.merge import (
    MergeOptions,
    config_of,
    opened,
    plan_model,
    team_of,
    write_planned,
)
from ckpt_tool.operations.training_state import left_out
from ckpt_tool.plans.output import WriteResult
from ckpt_tool.plans.plan import ModelPlan
from ckpt_tool.readers import open_checkpoint
from ckpt_tool.readers.base import Checkpoint
from ckpt_tool.tensors.lazy import LazyTensor

_OTHERS = {
    "fsdp": "Merge FSDP rank files with: ckpt merge fsdp",
    "torch_dist": "Merge checkpoints of megatron-core with: ckpt merge megatron",
    "megatron-ranks": "Merge checkpoints of Megatron with: ckpt merge megatron",
    "huggingface": "This is a Hugging Face model already: there is nothing to merge.",
}


@dataclass(frozen=True)
class NameOptions:
    """Which tensors are the model, and how they are called.

    ``prefix``: only those below it, which is cut off; empty: found. ``select``: only those whose
    name in the checkpoint matches one of these globs. ``rename``: ``OLD=NEW``, as
    :func:`ckpt_tool.mapping.frameworks.nested.renamed` takes them, in order.
    """

    prefix: str = ""
    select: tuple[str, ...] = ()
    rename: tuple[str, ...] = ()

    @property
    def start(self) -> str:
        """The prefix with its last dot."""
        return f"{self.prefix.rstrip('.')}." if self.prefix else ""


def merge_dcp(
    path: str | Path,
    out: str | Path,
    options: MergeOptions | None = None,
    names: NameOptions | None = None,
    progress: Progress | None = None,
) -> WriteResult:
    """Merge the torch.distributed.checkpoint folder ``path`` into the Hugging Face folder ``out``.

    Under torchrun every process calls this and writes its share; the result is the same.
    Raises CheckpointError, MappingError, OutputError, UsageError or FormatError; ``out`` then
    does not exist, or is what it was.
    """
    options = options or MergeOptions()
    return write_planned(
        lambda team: plan_dcp(path, options, names, team), Path(out), options, progress
    )


def plan_dcp(
    path: str | Path,
    options: MergeOptions | None = None,
    names: NameOptions | None = None,
    team: Team | None = None,
) -> ModelPlan:
    """What :func:`merge_dcp` would write; writes nothing. Raises what it raises."""
    options, names = options or MergeOptions(), names or NameOptions()
    team = team or team_of(options)

    def plan() -> ModelPlan:
        checkpoint = opened(_open(path, names), options)
        tensors = _model(checkpoint, options, names)
        return plan_model(checkpoint, tensors, options, left_out(checkpoint))

    return team.world.each(plan)


def _open(path: str | Path, names: NameOptions) -> Checkpoint:
    checkpoint = open_checkpoint(path, _wanted(names))
    if checkpoint.format != "dcp":
        raise UsageError(
            f"{path}: a checkpoint of format {checkpoint.format}, not a plain folder of"
            " torch.distributed.checkpoint",
            hint=_OTHERS.get(checkpoint.format, f"See what it is with: ckpt inspect {path}"),
        )
    if not checkpoint.entries and not checkpoint.problems:
        _refuse_without_weights(checkpoint, names)
    if is_megatron(checkpoint.entries):
        raise UsageError(
            f"{path}: its tensors are named as megatron-core names them",
            hint=f"Merge them with: ckpt merge megatron {path} OUT",
        )
    return checkpoint


def _wanted(names: NameOptions) -> Callable[[str], bool]:
    """Which tensors are opened at all; state of training only where a pattern asks for it."""

    def wanted(name: str) -> bool:
        if not name.startswith(names.start):
            return False
        if names.select:
            return any(fnmatchcase(name, pattern) for pattern in names.select)
        return not is_training_state(name.removeprefix(names.start))

    return wanted


def _refuse_without_weights(checkpoint: Checkpoint, names: NameOptions) -> None:
    if names.prefix or names.select:
        some = ", ".join(list(checkpoint.left_out)[:4])
        raise UsageError(
            f"{checkpoint.path}: no tensor is under --prefix or matches --select",
            hint=f"Names are like: {some}",
        )
    held = ", ".join(left_out(checkpoint)) or "no tensor"
    raise CheckpointError(
        f"{checkpoint.path}: {held}, and no weights of a model",
        hint="Frameworks that save the optimizer by itself have the weights in a folder beside.",
    )


def _model(
    checkpoint: Checkpoint, options: MergeOptions, names: NameOptions
) -> dict[str, LazyTensor]:
    """The model's tensors as transformers has them in memory; as they are where that is wanted."""
    tensors = under(checkpoint, names.start or prefix_of(checkpoint))
    tensors = renamed(tensors, names.rename)
    config = config_of(checkpoint, options)
    if config is not None and is_torchtitan(tensors):
        return from_torchtitan(tensors, config)
    return tensors
