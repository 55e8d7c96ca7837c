"""Writing a planned megatron-core checkpoint: tensors, metadata, manifest, checks."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ckpt_tool.check_load import LoadCheck
from ckpt_tool.errors import UsageError
from ckpt_tool.lazy import LazyTensor
from ckpt_tool.mapping.megatron.convert import Rules, from_megatron
from ckpt_tool.mapping.megatron.training_args import content_metadata, megatron_args
from ckpt_tool.output import (
    WriteOptions,
    WriteResult,
    differences,
    explained,
    fingerprint,
    forget_cached,
    json_bytes,
    write_files,
)
from ckpt_tool.parallel import Team
from ckpt_tool.plan import MANIFEST_NAME, Casts, casts_of, count_casts, manifest, overflows
from ckpt_tool.readers.base import Checkpoint
from ckpt_tool.readers.dcp import open_dcp
from ckpt_tool.writers.pickling import Instance, Name
from ckpt_tool.writers.planned import PlannedFile
from ckpt_tool.writers.staging import Staging, Workplace, check_space, check_target
from ckpt_tool.writers.stream import WrittenFile
from ckpt_tool.writers.torch_dist import TorchDistPlan

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
        from ckpt_tool.mcore_check import require_megatron

        require_megatron()


def write_mcore(plan: McorePlan, out: Path, options: WriteOptions, team: Team) -> WriteResult:
    """Write ``plan`` to ``out``, which appears complete or not at all.

    Every process of the team writes its share of the files. Raises OutputError where one cannot
    be written, MappingError where ``check_load`` finds that megatron-core does not load the
    result. When reading back finds a difference nothing is published, and the result lists the
    tensors by their Hugging Face names.
    """
    started = time.monotonic()
    out = Path(os.path.realpath(out))
    team.world.first(lambda: check_mcore_plan(plan, out, options))
    staging = _staging(plan, out, options, team)
    try:
        begun = time.monotonic()
        written = _write_tensors(plan, staging, team)
        write_seconds = time.monotonic() - begun
        team.world.first(lambda: _put_small_files(plan, staging, written))
        different = _read_back(plan, staging.path, team) if options.verify else []
        loaded = None
        if options.check_load and not different:
            loaded = team.world.first(lambda: _check_load(plan, staging.path))
        team.world.first(lambda: _close(staging, bool(different), options))
    except BaseException as error:
        raise explained(error, staging) from error
    return WriteResult(
        format=plan.checkpoint.format,
        output=out,
        num_tensors=len(plan.folder.tensors),
        total_bytes=plan.total_bytes,
        files=written,
        casts=casts_of(plan.casts(), written),
        seconds=time.monotonic() - started,
        bytes_per_second=plan.total_bytes / max(write_seconds, 1e-9),
        verified=not different if options.verify else None,
        warnings=plan.warnings + overflows(plan.casts(), written),
        dropped=plan.dropped,
        differences=different,
        load_check=loaded,
    )


def _staging(plan: McorePlan, out: Path, options: WriteOptions, team: Team) -> Workplace:
    """The place to write: the first process makes it, the others work there too.

    UsageError where processes have different plans, because they see different files.
    """
    mark = fingerprint(plan.checkpoint.files, plan.files)
    if len(set(team.world.everyone(lambda: mark))) > 1:
        raise UsageError(
            f"{plan.checkpoint.path}: not the same for all processes of this run",
            hint="All of them must see the same files, with the same version of ckpt-tool.",
        )
    made: list[Workplace] = []
    how = {"fsync": options.fsync, "direct": options.is_direct}

    def make() -> dict[str, WrittenFile]:
        made.append(Staging(out, mark, resume=options.resume, **how))
        return made[0].finished

    finished = team.world.first(make)
    if not made:
        made.append(Workplace(out, **how))
        made[0].finished.update(finished)
    return made[0]


def _write_tensors(plan: McorePlan, staging: Workplace, team: Team) -> list[WrittenFile]:
    """All files, written by all processes; the first one keeps the journal of those of others."""
    files = plan.files
    share = [files[index] for index in team.world.share([file.size for file in files])]
    outcomes = team.world.everyone(lambda: write_files(share, staging, team.jobs, team.progress))
    found = {written.name: written for outcome in outcomes for written in outcome}
    for written in found.values():
        if written.name not in staging.finished:
            staging.record(written)
    return [found[file.name] for file in files]


def _put_small_files(plan: McorePlan, staging: Workplace, written: list[WrittenFile]) -> None:
    assert isinstance(staging, Staging)
    for name, content in _small_files(plan, written):
        staging.put(name, content)


def _check_load(plan: McorePlan, folder: Path) -> LoadCheck:
    from ckpt_tool.mcore_check import check_mcore_load

    return check_mcore_load(plan.rules, folder / plan.folder.prefix)


def _close(staging: Workplace, different: bool, options: WriteOptions) -> None:
    """Publish, or leave nothing behind."""
    assert isinstance(staging, Staging)
    if different:
        staging.discard()
    else:
        staging.publish(replace=options.overwrite)


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
        "args": Instance(Name("argparse", "Namespace"), megatron_args(rules)),
        "checkpoint_version": 3.0,
        "iteration": 1,
        "num_floating_point_operations_so_far": 0,
        "content_metadata": content_metadata(rules),
    }


def _read_back(plan: McorePlan, folder: Path, team: Team) -> list[str]:
    """Names whose tensor, taken out of what was written, is not bit for bit what went in."""
    for file in plan.files:
        forget_cached(folder / file.name)
    result = open_dcp(folder / plan.folder.prefix)
    result.require_sound()
    return differences(plan.tensors, from_megatron(result, plan.rules), team)
