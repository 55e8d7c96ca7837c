"""Writing a planned megatron-core checkpoint: tensors, metadata, manifest, checks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ckpt_tool.common.parallel import Team
from ckpt_tool.mapping.megatron.convert import from_megatron
from ckpt_tool.mapping.megatron.rules import Rules
from ckpt_tool.mapping.megatron.training_args import describe_content, make_args
from ckpt_tool.plans.checks.transformers import LoadCheck
from ckpt_tool.plans.output import WriteOptions, WriteResult, json_bytes
from ckpt_tool.plans.plan import MANIFEST_NAME, Casts, count_casts, fingerprint, manifest
from ckpt_tool.plans.write import Steps, real_path, write_plan
from ckpt_tool.readers.base import Checkpoint
from ckpt_tool.readers.dcp.folder import open_dcp
from ckpt_tool.tensors.lazy import LazyTensor
from ckpt_tool.writers.planned import PlannedFile
from ckpt_tool.writers.staging import check_space, check_target
from ckpt_tool.writers.stream import WrittenFile
from ckpt_tool.writers.torch_dist.layout import TorchDistPlan
from ckpt_tool.writers.torch_dist.pickling import Instance, Name

#: ``bare``: the checkpoint itself. ``megatron-lm``: in ``release/``, with a tracker file beside it.
LAYOUTS = ("bare", "megatron-lm")


@dataclass(frozen=True)
class McorePlan:
    """Everything that will be written, before anything is.

    ``tensors`` are Hugging Face's, as they go in. ``dropped`` maps names that are left out on
    purpose to the reason.
    """

    checkpoint: Checkpoint
    rules: Rules
    layout: str
    tensors: dict[str, LazyTensor]
    folder: TorchDistPlan
    dropped: dict[str, str]
    warnings: list[str]

    @cached_property
    def mark(self) -> str:
        """The fingerprint, taken once."""
        return fingerprint(self.checkpoint.files, self.files)

    @property
    def num_tensors(self) -> int:
        """How many tensors Megatron will find."""
        return len(self.folder.tensors)

    @property
    def total_bytes(self) -> int:
        """Bytes of all files with tensors."""
        return sum(file.size for file in self.files)

    @property
    def files(self) -> list[PlannedFile]:
        """The files with tensors."""
        return self.folder.files

    def casts(self) -> Casts:
        """Number of tensors per (source, target) dtype where these differ."""
        return count_casts(self.tensors.values())


def check_mcore_plan(plan: McorePlan, out: Path, options: WriteOptions) -> None:
    """OutputError unless ``out`` may be written and there is room.

    UsageError where ``check_load`` is asked for and megatron-core is not installed.
    """
    protected = [Path(file.path) for file in plan.checkpoint.files]
    check_target(out, replace=options.overwrite, protected=[*protected, plan.rules.config.folder])
    check_space(out, plan.total_bytes)
    if options.check_load:
        from ckpt_tool.plans.checks.megatron import require_megatron

        require_megatron()


def write_mcore(plan: McorePlan, out: Path, options: WriteOptions, team: Team) -> WriteResult:
    """Write ``plan`` to ``out``, which appears complete or not at all.

    Every process of the team writes its share of the files. Raises OutputError where one cannot
    be written, MappingError where ``check_load`` finds that megatron-core does not load the
    result. When reading back finds a difference nothing is published, and the result lists the
    tensors by their Hugging Face names.
    """
    out = real_path(out)
    steps = Steps(
        check=lambda: check_mcore_plan(plan, out, options),
        small_files=lambda written: _small_files(plan, written),
        read_back=lambda folder: _hugging_face(plan, folder),
        load=(lambda folder: _check_load(plan, folder)) if options.check_load else None,
    )
    return write_plan(plan, steps, out, options, team)


def _check_load(plan: McorePlan, folder: Path) -> LoadCheck:
    from ckpt_tool.plans.checks.megatron import check_mcore_load

    return check_mcore_load(plan.rules, folder / plan.folder.prefix)


def _small_files(plan: McorePlan, written: list[WrittenFile]) -> Iterator[tuple[str, bytes]]:
    """The other files: what marks the checkpoint as complete comes last."""
    source = manifest(plan.checkpoint, plan.casts(), plan.dropped, written)
    yield MANIFEST_NAME, json_bytes(source)
    if plan.layout == "bare":
        yield from plan.folder.small_files({})
        return
    yield from plan.folder.small_files(_common_state(plan.rules))
    yield "latest_checkpointed_iteration.txt", b"release"


def _common_state(rules: Rules) -> dict[str, Any]:
    """What Megatron-LM's loader reads besides tensors: arguments, version, kind of keys.

    ``release`` in the tracker file tells it that there is no optimizer and no iteration to go on
    from; some of its releases read ``iteration`` all the same.
    """
    return {
        "args": Instance(Name("argparse", "Namespace"), make_args(rules)),
        "checkpoint_version": 3.0,
        "iteration": 1,
        "num_floating_point_operations_so_far": 0,
        "content_metadata": describe_content(rules),
    }


def _hugging_face(plan: McorePlan, folder: Path) -> dict[str, LazyTensor]:
    """Hugging Face's tensors, taken out of what was written."""
    result = open_dcp(folder / plan.folder.prefix)
    result.require_sound()
    return from_megatron(result, plan.rules)
