"""Writing what is planned, by one process or several: the output appears complete or not at all."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from ckpt_tool.common.errors import UsageError
from ckpt_tool.common.parallel import Team
from ckpt_tool.plans.checks.transformers import LoadCheck
from ckpt_tool.plans.output import (
    WriteOptions,
    WriteResult,
    differences,
    explained,
    forget_cached,
    write_files,
)
from ckpt_tool.plans.plan import Casts, casts_of, overflows
from ckpt_tool.readers.base import Checkpoint
from ckpt_tool.tensors.lazy import LazyTensor
from ckpt_tool.writers.planned import PlannedFile
from ckpt_tool.writers.staging import Staging, Workplace
from ckpt_tool.writers.stream import WrittenFile


class Plan(Protocol):
    """What every plan says. ``tensors`` are those that reading back must find."""

    @property
    def checkpoint(self) -> Checkpoint: ...
    @property
    def mark(self) -> str: ...
    @property
    def tensors(self) -> dict[str, LazyTensor]: ...
    @property
    def files(self) -> list[PlannedFile]: ...
    @property
    def num_tensors(self) -> int: ...
    @property
    def total_bytes(self) -> int: ...
    @property
    def dropped(self) -> dict[str, str]: ...
    @property
    def warnings(self) -> list[str]: ...
    def casts(self) -> Casts: ...


@dataclass(frozen=True)
class Steps:
    """What differs from one kind of output to another; each is done by the first process.

    ``check`` refuses before anything is written. ``small_files`` are put beside the tensors'
    files, in order. ``read_back`` gives every process the tensors as they were written; ``load``
    lets somebody else open the result before it appears. ``find`` gives the tensors' files where
    the output is complete already.
    """

    check: Callable[[], LoadCheck | None]
    small_files: Callable[[list[WrittenFile]], Iterable[tuple[str, bytes]]]
    read_back: Callable[[Path], Mapping[str, LazyTensor]]
    load: Callable[[Path], LoadCheck] | None = None
    find: Callable[[], list[WrittenFile] | None] | None = None


def write_plan(
    plan: Plan, steps: Steps, out: Path, options: WriteOptions, team: Team
) -> WriteResult:
    """Write ``plan`` to ``out``; every process of the team writes its share of the files.

    Raises OutputError where one cannot be written, and what the steps raise. When reading back
    finds a difference nothing is published, and the result lists the tensors.
    """
    started = time.monotonic()
    loaded = team.world.first(steps.check)
    staging = _staging(plan, out, options, team)
    try:
        begun = time.monotonic()
        written = _write_tensors(plan, staging, team)
        write_seconds = time.monotonic() - begun
        team.world.first(lambda: _put(staging, steps.small_files(written)))
        different = _read_back(plan, steps, staging.path, team) if options.verify else None
        if steps.load is not None and not different:
            load = steps.load
            loaded = team.world.first(lambda: load(staging.path))
        team.world.first(lambda: _close(staging, bool(different), options))
    except BaseException as error:
        raise explained(error, staging) from error
    rate = plan.total_bytes / max(write_seconds, 1e-9)
    result = _result(plan, out, written, different, loaded)
    return replace(result, seconds=time.monotonic() - started, bytes_per_second=rate)


def already_written(
    plan: Plan, steps: Steps, out: Path, options: WriteOptions, team: Team
) -> WriteResult | None:
    """The result for an ``out`` that is what ``plan`` would write; None where it is not.

    Only a run that resumes looks. Nothing is written; ``verify`` reads back what is there.
    """
    started = time.monotonic()
    written = team.world.first(steps.find) if options.resume and steps.find else None
    if written is None:
        return None
    loaded = team.world.first(steps.check)
    different = _read_back(plan, steps, out, team) if options.verify else None
    result = _result(plan, out, written, different, loaded)
    return replace(result, seconds=time.monotonic() - started, already_complete=True)


def _result(
    plan: Plan,
    out: Path,
    written: list[WrittenFile],
    different: list[str] | None,
    loaded: LoadCheck | None,
) -> WriteResult:
    """What was written, its times still to be put in; ``different``: None if nobody looked."""
    return WriteResult(
        format=plan.checkpoint.format,
        output=out,
        num_tensors=plan.num_tensors,
        total_bytes=plan.total_bytes,
        files=written,
        casts=casts_of(plan.casts(), written),
        seconds=0.0,
        bytes_per_second=0.0,
        verified=None if different is None else not different,
        warnings=plan.warnings + overflows(plan.casts(), written),
        dropped=plan.dropped,
        differences=different or [],
        load_check=loaded,
    )


def _staging(plan: Plan, out: Path, options: WriteOptions, team: Team) -> Workplace:
    """The place to write: the first process makes it, the others work there too.

    UsageError where processes have different plans, because they see different files.
    """
    if len(set(team.world.everyone(lambda: plan.mark))) > 1:
        raise UsageError(
            f"{plan.checkpoint.path}: not the same for all processes of this run",
            hint="All of them must see the same files, with the same version of ckpt-tool.",
        )
    made: list[Workplace] = []
    how = {"fsync": options.fsync, "direct": options.is_direct}

    def make() -> dict[str, WrittenFile]:
        made.append(Staging(out, plan.mark, resume=options.resume, **how))
        return made[0].finished

    finished = team.world.first(make)
    if not made:
        made.append(Workplace(out, **how))
        made[0].finished.update(finished)
    return made[0]


def _write_tensors(plan: Plan, staging: Workplace, team: Team) -> list[WrittenFile]:
    """All files, written by all processes; the first one keeps the journal of those of others."""
    files = plan.files
    share = [files[index] for index in team.world.share([file.size for file in files])]
    outcomes = team.world.everyone(lambda: write_files(share, staging, team.jobs, team.progress))
    found = {written.name: written for outcome in outcomes for written in outcome}
    for written in found.values():
        if written.name not in staging.finished:
            staging.record(written)
    return [found[file.name] for file in files]


def _put(staging: Workplace, files: Iterable[tuple[str, bytes]]) -> None:
    assert isinstance(staging, Staging)
    for name, content in files:
        staging.put(name, content)


def _read_back(plan: Plan, steps: Steps, folder: Path, team: Team) -> list[str]:
    """Names whose tensor, taken out of what was written, is not bit for bit what was planned."""
    for file in plan.files:
        forget_cached(folder / file.name)
    found = team.world.each(lambda: steps.read_back(folder))
    return differences(plan.tensors, found, team)


def _close(staging: Workplace, different: bool, options: WriteOptions) -> None:
    """Publish, or leave nothing behind."""
    assert isinstance(staging, Staging)
    if different:
        staging.discard()
    else:
        staging.publish(replace=options.overwrite)


def real_path(out: Path) -> Path:
    """Where ``out`` is, links followed: a rename in another folder would not do."""
    return Path(os.path.realpath(out))
