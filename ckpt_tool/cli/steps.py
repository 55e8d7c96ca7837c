"""``ckpt merge RUN OUT --steps``: several steps of a run, and a table of what came of each."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from ckpt_tool.cli import consoles, progress, ui
from ckpt_tool.cli.interrupts import EXIT_INTERRUPTED
from ckpt_tool.cli.results_json import result_json
from ckpt_tool.common.errors import CkptError, UsageError
from ckpt_tool.common.remote.address import find_address
from ckpt_tool.common.wording import format_bytes

if TYPE_CHECKING:
    from rich.console import Console

    from ckpt_tool.cli.every_merge import Request
    from ckpt_tool.operations.options import MergeOptions
    from ckpt_tool.operations.run_steps import StepOutcome


def merge_run(
    word: str, ckpt: Sequence[Path], out: str, options: MergeOptions, request: Request
) -> None:
    """Merge the steps that are asked for; exits as the worst of them does, with 2, 1 or 0."""
    from ckpt_tool.operations import run_steps
    from ckpt_tool.operations.run_steps import RunJob, Told

    _require_alone(ckpt, request)
    job, chosen = RunJob(ckpt[0], out, word), request.run_options()
    signs = _Signs(silent=request.as_json or progress.quiet)
    root = find_address(job.root) or job.root
    line = f"waiting for steps in {root}: a look every {chosen.watch_every:g} s, until Ctrl-C"
    told = Told(lambda: progress.show_progress(silent=signs.silent), lambda: signs.say_once(line))
    done = _collect(run_steps.merge_steps(job, options, chosen, told), request, signs)
    with ui.guard_output():
        if request.as_json:
            ui.print_json([_make_json(each) for each in done.outcomes])
        elif done.outcomes:
            _show_table(consoles.make_console(), done.outcomes)
    happened = {outcome.happened for outcome in done.outcomes}
    if done.is_broken or run_steps.FAILED in happened:
        raise typer.Exit(ui.EXIT_FAILED)
    if not chosen.watch and (done.is_stopped or run_steps.INTERRUPTED in happened):
        raise typer.Exit(EXIT_INTERRUPTED)
    if run_steps.DIFFERENT in happened:
        raise typer.Exit(ui.EXIT_DIFFERENT)


@dataclass(frozen=True)
class _Done:
    """The last outcome of each checkpoint; whether Ctrl-C, or an error, ended all of it."""

    outcomes: list[StepOutcome]
    is_stopped: bool = False
    is_broken: bool = False


def _collect(found: Iterator[StepOutcome], request: Request, signs: _Signs) -> _Done:
    """Say of each what came of it; what ends all of it is said, too, where there are some."""
    outcomes: dict[Path, StepOutcome] = {}
    try:
        for outcome in found:
            outcomes[outcome.listed.path] = outcome
            _say(outcome, request.values.keys() - {"resume"}, signs)
    except KeyboardInterrupt:
        return _Done([*outcomes.values()], is_stopped=True)
    except (CkptError, OSError) as error:
        if not outcomes:
            raise
        ui.explain(error, request.values)
        return _Done([*outcomes.values()], is_broken=True)
    return _Done([*outcomes.values()])


class _Signs:
    """Says how far all of it is, unless nobody wants to know."""

    def __init__(self, *, silent: bool) -> None:
        self.silent = silent
        self._said: set[str] = set()

    def say_once(self, line: str) -> None:
        if not self.silent and line not in self._said:
            ui.say(line)
        self._said.add(line)


def _require_alone(ckpt: Sequence[Path], request: Request) -> None:
    """UsageError for what makes sense for one checkpoint only."""
    if len(ckpt) > 1:
        raise UsageError("--steps: of one run's folder, and several were named")
    for name, flag in (("step", "--step"), ("upload", "--upload"), ("dry_run", "--dry-run")):
        if request.values[name]:
            raise UsageError(
                f"{flag}: is about one checkpoint, and --steps about several",
                hint="Name one with --step, without --steps.",
            )


def _say(outcome: StepOutcome, parameters: Iterable[str], signs: _Signs) -> None:
    """A line when a step is done, and what is wrong with it."""
    name = _name(outcome)
    if outcome.result is not None:
        for warning in outcome.result.warnings:
            ui.warn(f"{name}: {warning}")
        signs.say_once(f"{name}: {_say_happened(outcome)}: {outcome.out}")
    elif isinstance(outcome.error, KeyboardInterrupt):
        ui.say(f"{name}: {outcome.happened}. {outcome.error}".rstrip())
    elif outcome.error is not None:
        ui.explain(outcome.error, parameters, f"{name}: ")


def _name(outcome: StepOutcome) -> str:
    listed = outcome.listed
    return f"step {listed.step}{f' ({listed.role})' if listed.role else ''}"


def _say_happened(outcome: StepOutcome) -> str:
    """What happened, as people are told."""
    from ckpt_tool.operations.run_steps import COMPLETE, DIFFERENT

    said = {COMPLETE: "was complete", DIFFERENT: "differs, not kept"}
    return said.get(outcome.happened, outcome.happened)


def _show_table(out: Console, outcomes: Sequence[StepOutcome]) -> None:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    table.add_column("step", justify="right", no_wrap=True)
    table.add_column("role", no_wrap=True)
    table.add_column("OUT", overflow="fold")
    table.add_column("is", no_wrap=True)
    table.add_column("size", justify="right", no_wrap=True)
    table.add_column("seconds", justify="right", no_wrap=True)
    for each in outcomes:
        table.add_row(
            str(each.listed.step),
            each.listed.role or "",
            Text(str(each.out)),
            Text(_say_happened(each), style="" if each.is_good else "red"),
            "" if each.result is None else format_bytes(each.result.total_bytes),
            f"{each.seconds:.1f}",
        )
    out.print(table)


def _make_json(outcome: StepOutcome) -> dict[str, Any]:
    error = outcome.error
    return {
        "step": outcome.listed.step,
        "role": outcome.listed.role,
        "path": str(outcome.listed.path),
        "output": str(outcome.out),
        "happened": outcome.happened,
        "error": None if error is None else ui.spell_error(error),
        "seconds": outcome.seconds,
        "result": None if outcome.result is None else result_json(outcome.result),
    }
