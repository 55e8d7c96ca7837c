"""What is written beside the output, and takes its place when all is well."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from pathlib import Path

from ckpt_tool.common.errors import CheckpointError, MappingError, UsageError
from ckpt_tool.common.parallel import Team
from ckpt_tool.common.progress import BYTES, Progress
from ckpt_tool.plans.checks.judge import Judge, Verdict
from ckpt_tool.plans.options import CrcCheck, WriteOptions
from ckpt_tool.plans.plan import Plan
from ckpt_tool.plans.reading_back import read_back
from ckpt_tool.plans.source_sums import follow, settle
from ckpt_tool.tensors.read_sums import ReadSums
from ckpt_tool.writers.files import write_files
from ckpt_tool.writers.leaving import explain
from ckpt_tool.writers.preparation import Preparation
from ckpt_tool.writers.stream import WrittenFile


@dataclass(frozen=True)
class Outcome:
    """What came of it; ``different``: None if nobody looked, ``seconds``: of the writing alone."""

    written: list[WrittenFile]
    different: list[str] | None
    verdict: Verdict
    crc: CrcCheck | None
    seconds: float | None = None
    warnings: list[str] = field(default_factory=list)


def hear(judge: Judge, folder: Path | None, progress: Progress) -> Verdict:
    """What the judge says of ``folder``; where that takes a while, it is said that one waits."""
    if judge.is_waited_for:
        progress.start(f"waiting for {judge.name}", None)
    return judge.finish(folder)


def stage(
    plan: Plan, judge: Judge, staging: Preparation, options: WriteOptions, team: Team
) -> Outcome:
    """Write beside the output, read back, have it judged, and put it in its place.

    What is raised is what :func:`ckpt_tool.plans.write.write` raises; of what was written by then,
    the error says where it is kept.
    """
    first = team.world.first
    how = {"resume": options.resume, "replace": options.overwrite}
    try:
        staging.join(*first(lambda: staging.open(plan.timed_fingerprint, **how)))
        begun, sums = time.monotonic(), follow(plan, options)
        # What an earlier run has read nobody knows, so all of it is read once more.
        every = bool(options.check_crc or staging.finished)
        written = _write_tensors(plan, staging, replace(team, progress=_Heard(team, judge)), sums)
        seconds = time.monotonic() - begun
        crc = _settle(plan, sums, staging, team, every=every)
        first(lambda: _put_small_files(plan, written, staging, manifest=options.manifest))
        warnings = first(lambda: plan.require_readable(staging.sketch(plan.files)))
        different = _read_back(plan, staging, team) if options.verify else None
        verdict = Verdict()
        if not different:
            verdict = first(lambda: hear(judge, staging.path, team.progress))
        warnings += _close(plan, staging, options, team, different=bool(different))
    except BaseException as error:
        if judge.is_early and isinstance(error, (MappingError, UsageError)):
            staging.discard()  # not the model that its config says
        raise explain(error, staging) from error
    return Outcome(written, different, verdict, crc, seconds, warnings)


class _Heard(Progress):
    """The team's progress, on which the judge may end the work."""

    def __init__(self, team: Team, judge: Judge) -> None:
        self._told = team.progress
        self._judge = judge

    def announce(self, work: str) -> None:
        self._told.announce(work)

    def start(self, what: str, total: int | None, unit: str = BYTES) -> None:
        self._told.start(what, total, unit)

    def advance(self, amount: int) -> None:
        self._told.advance(amount)
        self._judge.listen()


def _write_tensors(
    plan: Plan, staging: Preparation, team: Team, sums: ReadSums | None
) -> list[WrittenFile]:
    """All files, written by all processes; the first one keeps the journal of those of others."""
    files = plan.files
    share = [files[index] for index in team.world.share([file.size for file in files])]
    outcomes = team.world.everyone(
        lambda: write_files(share, staging, team.jobs, team.progress, sums)
    )
    found = {written.name: written for outcome in outcomes for written in outcome}
    for written in found.values():
        if written.name not in staging.finished:
            staging.record(written)
    return [found[file.name] for file in files]


def _settle(
    plan: Plan, sums: ReadSums | None, staging: Preparation, team: Team, *, every: bool
) -> CrcCheck | None:
    """:func:`.settle`; what was made of damaged sources is not kept."""
    try:
        return settle(plan, sums, team, every=every)
    except CheckpointError:
        if team.world.rank == 0:
            staging.discard()
        plan.require_unchanged()  # which explains it better
        raise


def _put_small_files(
    plan: Plan, written: list[WrittenFile], staging: Preparation, *, manifest: bool
) -> None:
    for name, content in plan.small_files(written, manifest=manifest):
        staging.put(name, content)


def _read_back(plan: Plan, staging: Preparation, team: Team) -> list[str]:
    """:func:`.read_back` of what was written, which elsewhere has to appear for that."""
    _reveal(plan, staging, team)
    folder = team.world.each(lambda: staging.read_again(plan.files, plan.completing_files()))
    return read_back(plan, folder, team)


def _reveal(plan: Plan, staging: Preparation, team: Team) -> None:
    team.world.first(lambda: staging.announce(file.name for file in plan.files))
    team.world.each(staging.reveal)


def _close(
    plan: Plan, staging: Preparation, options: WriteOptions, team: Team, *, different: bool
) -> list[str]:
    """Publish, or leave nothing behind. Warnings of publishing."""
    first = team.world.first
    first(lambda: _require_unchanged(plan, staging))
    if different:
        return [said for said in team.world.everyone(staging.discard) if said]
    if not options.verify:
        _reveal(plan, staging, team)
    return first(lambda: staging.publish(replace=options.overwrite))


def _require_unchanged(plan: Plan, staging: Preparation) -> None:
    try:
        plan.require_unchanged()
    except CheckpointError:
        staging.discard()  # of no use to anybody: nobody knows what was read
        raise
