"""Several steps of a run, merged one after the other: those that are there, or as they come."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path

from ckpt_tool.common.errors import CkptError, UsageError
from ckpt_tool.common.launchers import is_parallel
from ckpt_tool.common.progress import Progress
from ckpt_tool.operations.merge import Job, merge
from ckpt_tool.operations.options import MergeOptions, RunOptions
from ckpt_tool.operations.runs import LATEST, Listed, Run, list_last, list_run, say_steps
from ckpt_tool.operations.watching import Watch
from ckpt_tool.plans.options import WriteResult
from ckpt_tool.writers.places import Place, find_place

ALL = "all"
#: What happened to a step: written now, complete before, or what kept it from that.
WRITTEN, COMPLETE = "written", "complete"
DIFFERENT, FAILED, INTERRUPTED = "different", "failed", "interrupted"
#: What stands in OUT for the number of a step, and for whose weights it is.
STEP, ROLE = "{step}", "{role}"


@dataclass(frozen=True)
class RunJob:
    """The steps below ``root``, each to the folder that ``out`` says with ``{step}`` in it.

    ``kind``: as of a :class:`~ckpt_tool.operations.merge.Job`.
    """

    root: Path
    out: str
    kind: str = ""


@dataclass(frozen=True)
class StepOutcome:
    """What came of one checkpoint of a run, and how many ``seconds`` that took.

    ``result``: of the merge; ``error``: what it raised instead.
    """

    listed: Listed
    out: Place
    seconds: float
    result: WriteResult | None = None
    error: BaseException | None = None

    @property
    def happened(self) -> str:
        """One of the words above."""
        if self.result is None:
            return INTERRUPTED if isinstance(self.error, KeyboardInterrupt) else FAILED
        if self.result.differences:
            return DIFFERENT
        return COMPLETE if self.result.already_complete else WRITTEN

    @property
    def is_good(self) -> bool:
        """Whether the step is where it should be."""
        return self.happened in (WRITTEN, COMPLETE)


@dataclass(frozen=True)
class Told:
    """Who is told: ``show`` gives the progress of a merge; ``wait`` is called where none is due."""

    show: Callable[[], AbstractContextManager[Progress]]
    wait: Callable[[], None]


def merge_steps(
    job: RunJob, options: MergeOptions, chosen: RunOptions, told: Told
) -> Iterator[StepOutcome]:
    """Merge the chosen steps of a run one after the other; what each of them came to.

    A step whose output is complete, and of the same source, is not written again. One that fails
    does not stop the others. With ``chosen.watch`` each step is merged as it is finished, until all
    that were named are there; the last outcome of a step counts. KeyboardInterrupt ends it, with
    the outcome of the step in whose midst it came.

    UsageError where several would be written to one folder, a step is not there, or none is.
    """
    _require_sense(job, chosen)
    options = replace(options, write=replace(options.write, resume=True))
    if chosen.watch:
        yield from _watch(job, options, chosen, told)
        return
    for listed, out in place(choose(list_run(job.root), chosen.steps), job.out):
        outcome = _merge(Job([listed.path], out, job.kind), listed, options, told)
        yield outcome
        if outcome.happened == INTERRUPTED:
            return


def _watch(
    job: RunJob, options: MergeOptions, chosen: RunOptions, told: Told
) -> Iterator[StepOutcome]:
    """The same of steps as they are finished."""
    watch = Watch(job.root, parse_steps(chosen.steps), only_last=chosen.steps == LATEST)
    place(watch.list_wanted(), job.out)  # what would collide is refused before anything is done
    while not watch.is_over:
        for listed, out in place(watch.look(), job.out):
            outcome = _merge(Job([listed.path], out, job.kind), listed, options, told)
            watch.note(listed, has_failed=outcome.happened == FAILED)
            yield outcome
            if outcome.happened == INTERRUPTED:
                return
        if not watch.is_over:
            told.wait()
            time.sleep(chosen.watch_every)


def parse_steps(asked: str) -> frozenset[int] | None:
    """The numbers in ``100,200``; None for ``all`` and ``latest``. UsageError for anything else."""
    if asked in (ALL, LATEST):
        return None
    words = [word.strip() for word in asked.split(",")]
    if not all(word.isdecimal() and len(word) <= 18 for word in words):
        raise UsageError(
            f"`steps={asked!r}`: are no steps",
            hint="Write all, latest, or numbers with commas between them: 100,200.",
        )
    return frozenset(map(int, words))


def choose(run: Run, asked: str) -> list[Listed]:
    """The checkpoints of these steps, in their order.

    UsageError where one is not there, or none is; AmbiguousError where several runs have a last.
    """
    numbers = parse_steps(asked)
    found = [each for each in run.checkpoints if each.step is not None]
    found = [each for each in found if each.format.merge_command]
    if not found:
        raise UsageError(
            f"{run.path}: no step of a run that can be merged is below it",
            hint="Steps are folders like global_step_100, iter_0000100 or checkpoint-100.",
        )
    if asked == LATEST:
        return [each for each in list_last(run) if each in found]
    missing = sorted((numbers or set()) - {each.step for each in found})
    if missing:
        raise UsageError(f"{run.path}: no step {missing[0]} is there{say_steps(found)}")
    return [each for each in found if numbers is None or each.step in numbers]


def place(found: Iterable[Listed], out: str) -> list[tuple[Listed, Place]]:
    """Each checkpoint with its folder. UsageError where two have one, or a role is not known."""
    placed: dict[Place, Listed] = {}
    for each in found:
        if ROLE in out and each.role is None:
            said = f"{each.path}: no folder says whose weights these are"
            raise UsageError(said, hint=f"Leave {ROLE} out of OUT.")
        folder = find_place(out.replace(STEP, str(each.step)).replace(ROLE, each.role or ""))
        other = placed.setdefault(folder, each)
        if other is not each:
            lacks = f"/{STEP}" if each.step != other.step else f"-{ROLE}"
            raise UsageError(
                f"{folder}: {other.path} and {each.path} would both be written there",
                hint=f"Write {lacks[1:]} where it differs: '{out.rstrip('/')}{lacks}'.",
            )
    return [(each, folder) for folder, each in placed.items()]


def _require_sense(job: RunJob, chosen: RunOptions) -> None:
    parse_steps(chosen.steps)
    if is_parallel():
        raise UsageError(
            f"`steps={chosen.steps!r}`: several processes merge one step at a time",
            hint="Name it with `step=N`, or run one process.",
        )
    if chosen.watch and STEP not in job.out:
        raise UsageError(
            f"{job.out}: every step that comes would be written there",
            hint=f"Write {STEP} where it differs: '{job.out.rstrip('/')}/{STEP}'.",
        )


def _merge(job: Job, listed: Listed, options: MergeOptions, told: Told) -> StepOutcome:
    started = time.monotonic()
    result: WriteResult | None = None
    error: BaseException | None = None
    try:
        with told.show() as progress:
            result = merge(job, options, progress)
    except (CkptError, OSError, KeyboardInterrupt) as raised:
        error = raised
    return StepOutcome(listed, find_place(job.out), time.monotonic() - started, result, error)
