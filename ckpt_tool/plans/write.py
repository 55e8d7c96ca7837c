"""Writing what is planned, by one process or several: the output appears complete or not at all."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from ckpt_tool.common.errors import OutputError, UsageError, say_cause
from ckpt_tool.common.parallel import Team
from ckpt_tool.common.progress import Progress
from ckpt_tool.common.wording import count_noun, format_bytes
from ckpt_tool.plans.checks.judge import Judge, Verdict
from ckpt_tool.plans.finding import find_folder, find_output
from ckpt_tool.plans.holding import Comparison
from ckpt_tool.plans.options import Cast, WriteOptions, WriteResult
from ckpt_tool.plans.plan import Plan
from ckpt_tool.plans.provenance import find_role, find_step, keep_times, say_source
from ckpt_tool.plans.reading_back import read_back
from ckpt_tool.plans.source_sums import follow, settle
from ckpt_tool.plans.stage import Outcome, hear, stage
from ckpt_tool.writers.places import Place, open_staging, settle_place
from ckpt_tool.writers.preparation import Preparation
from ckpt_tool.writers.stream import WrittenFile


def write(plan: Plan, out: Place, options: WriteOptions, team: Team) -> WriteResult:
    """Write ``plan`` to ``out``, which appears complete or not at all.

    Every process of the team writes its share of the files. With ``resume`` nothing is written
    where ``out`` is what this plan would write. When reading back finds a difference nothing is
    published, and the result lists the tensors.

    Raises OutputError where ``out`` may not or cannot be written; CheckpointError where a source
    is damaged or was changed meanwhile, FormatError where it ends too early; MappingError where
    ``check_load`` finds that the result does not load, UsageError where it cannot be asked.
    """
    started = time.monotonic()
    out = settle_place(out)
    _require_one_plan(plan, team)
    size = f"{format_bytes(plan.total_bytes)} in {count_noun(len(plan.files), 'file')}"
    team.progress.announce(f"{say_source(plan.checkpoint)}: {size}, to {out}")
    staging = open_staging(out, fsync=options.fsync, direct=options.is_direct)
    try:
        warnings = team.world.first(staging.tidy)
        outcome = _write(plan, staging, options, team)
    except OSError as error:
        raise OutputError(f"{out}: {say_cause(error)}") from error
    outcome.warnings[:0] = warnings
    result = _make_result(plan, out, outcome, started, has_manifest=options.manifest)
    if options.manifest and not result.differences:
        seconds, timed = result.seconds, plan.timed_fingerprint
        team.world.first(lambda: keep_times(out, timed, plan.checkpoint, seconds))
    return result


def _write(plan: Plan, staging: Preparation, options: WriteOptions, team: Team) -> Outcome:
    there = find_output(plan, staging.out, options, team) if options.resume else Comparison([], [])
    if there.written and not there.faults:
        outcome = _check_complete(plan, there.written, staging.out, options, team)
        cleared = team.world.first(lambda: staging.clear(plan.timed_fingerprint))
        outcome.warnings.extend(cleared)
        return outcome
    return _write_new(plan, there.faults, staging, options, team)


def _require_one_plan(plan: Plan, team: Team) -> None:
    """UsageError where processes have different plans, because they see different files."""
    if len(set(team.world.everyone(lambda: plan.timed_fingerprint))) > 1:
        raise UsageError(
            f"{plan.checkpoint.path}: not the same for all processes of this run",
            hint="All of them must see the same files, with the same version of ckpt-tool.",
        )


def judge_plan(plan: Plan, options: WriteOptions, progress: Progress) -> Verdict:
    """What is said of whether the output would load; nothing is written."""
    with _ask(plan, options) as judge:
        judge.start()
        return hear(judge, None, progress)


@contextmanager
def _ask(plan: Plan, options: WriteOptions) -> Iterator[Judge]:
    """Who says whether the output loads; nobody is left waiting in the end."""
    judge = plan.make_judge(options.check_load) or Judge()
    try:
        yield judge
    finally:
        judge.stop()


def _check_complete(
    plan: Plan, written: list[WrittenFile], out: Place, options: WriteOptions, team: Team
) -> Outcome:
    """Nothing is written; what is asked for is checked on what is there."""
    folder = team.world.each(lambda: find_folder(out))
    with _ask(plan, options) as judge:
        team.world.first(judge.start)
        verdict = team.world.first(lambda: hear(judge, folder, team.progress))
    different = read_back(plan, folder, team) if options.verify else None
    crc = None
    if options.check_crc:
        crc = settle(plan, follow(plan, options), team, every=True)
    return Outcome(written, different, verdict, crc)


def _write_new(
    plan: Plan, faults: list[str], staging: Preparation, options: WriteOptions, team: Team
) -> Outcome:
    """Check, write, read back, have it judged, publish; ``faults`` are those of what is there."""
    first = team.world.first
    first(lambda: plan.check(staging.out, options, faults))
    with _ask(plan, options) as judge:
        first(judge.start)
        return stage(plan, judge, staging, options, team)


def _make_result(
    plan: Plan, out: Place, outcome: Outcome, started: float, *, has_manifest: bool
) -> WriteResult:
    casts = plan.measured_casts(outcome.written)
    spoilt = _warn_of_spoilt(outcome.written, casts)
    rate = 0.0
    if outcome.seconds is not None:
        rate = plan.total_bytes / max(outcome.seconds, 1e-9)
    return WriteResult(
        format=plan.checkpoint.format,
        source=plan.checkpoint.path,
        step=find_step(plan.checkpoint),
        role=find_role(plan.checkpoint.path),
        output=out,
        num_tensors=plan.num_tensors,
        total_bytes=plan.total_bytes,
        files=outcome.written,
        casts=casts,
        seconds=time.monotonic() - started,
        bytes_per_second=rate,
        verified=None if outcome.different is None else not outcome.different,
        warnings=[*plan.warnings, *outcome.verdict.warnings, *spoilt, *outcome.warnings],
        dropped=plan.dropped,
        differences=outcome.different or [],
        load_check=outcome.verdict.check,
        lora=plan.lora,
        filled=plan.filled,
        already_complete=outcome.seconds is None,
        manifest=has_manifest,
        crc=outcome.crc,
        float32=plan.float32,
        usage=plan.usage,
    )


def _warn_of_spoilt(written: Iterable[WrittenFile], casts: Iterable[Cast]) -> Iterator[str]:
    """What has values that its sources did not have: a narrow dtype, a wrong alpha or scale."""
    names = [name for file in written for name in file.spoilt]
    large = [
        f"some {cast.source} values are too large for {cast.target}"
        for cast in casts
        if cast.max_abs_error == float("inf")
    ]
    if names:
        have = f"{count_noun(len(names), 'tensor')} {'has' if len(names) == 1 else 'have'}"
        made = "values that are not finite, made of finite ones by a cast, adapters or fp8 scales"
        cause = f" ({', '.join(large)})" if large else ""
        yield f"{have} {made}{cause}: {', '.join(names)}"
