"""``ckpt merge``, once its options are read: one checkpoint, or several steps of a run."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from ckpt_tool.cli import results, ui, uploads
from ckpt_tool.cli.every_merge import Request
from ckpt_tool.cli.next_steps import show_next
from ckpt_tool.cli.progress import show_progress
from ckpt_tool.cli.results_json import plan_json
from ckpt_tool.cli.steps import merge_run
from ckpt_tool.common.launchers import is_first

if TYPE_CHECKING:
    from rich.table import Table

    from ckpt_tool.operations.merge import Job
    from ckpt_tool.operations.options import MergeOptions
    from ckpt_tool.operations.upload import Target, Upload
    from ckpt_tool.plans.huggingface import HubPlan
    from ckpt_tool.plans.options import WriteOptions, WriteResult


def run_merge(
    word: str, ckpt: list[Path], out: Path, options: MergeOptions, request: Request
) -> None:
    """Merge what ``word`` is for; empty: whatever it is."""
    from ckpt_tool.operations.merge import Job

    if request.is_of_run:
        merge_run(word, ckpt, str(out), options, request)
        return
    job, upload = Job(ckpt, out, word), request.upload()
    if request.dry_run:
        _dry_run(job, options, upload, as_json=request.as_json)
    else:
        _write(job, options, upload, as_json=request.as_json)


def _dry_run(job: Job, options: MergeOptions, upload: Upload | None, *, as_json: bool) -> None:
    from ckpt_tool.operations.merge import preview_merge

    with show_progress(silent=as_json or not is_first()) as progress:
        found = preview_merge(job, options, progress, upload)
    if not is_first():
        return
    with ui.guard_output():
        if as_json:
            sent = {"upload": uploads.make_target_json(found.target)}
            planned = plan_json(
                found.plan, found.out, found.verdict, manifest=options.write.manifest
            )
            ui.print_json(planned | sent)
        else:
            notes = _notes(found.plan, found.target, options.write)
            table = _file_table(found.plan)
            results.show_plan(found.plan, found.out, table, notes, found.verdict)


def _write(job: Job, options: MergeOptions, upload: Upload | None, *, as_json: bool) -> None:
    from ckpt_tool.common.parallel import Team, choose_jobs, join_world
    from ckpt_tool.operations.merge import merge_as_team

    with join_world() as world:
        with show_progress(silent=as_json or not is_first()) as progress:
            team = Team(world, choose_jobs(options.jobs), progress)
            result = merge_as_team(job, options, team, upload)
        # The others wait, lest torchrun stop the one that speaks and sends.
        world.first(lambda: _report(result, upload, as_json=as_json))
    if result.differences:
        raise typer.Exit(ui.EXIT_DIFFERENT)


def _report(result: WriteResult, upload: Upload | None, *, as_json: bool) -> None:
    """Say what was written, and send it: the first process of several, by itself."""
    state = results.say_state(result)
    if not as_json:
        with ui.guard_output(state + (" Nothing was uploaded." if upload is not None else "")):
            results.show_result(result)
    sent = None
    if upload is not None and not result.differences:
        from ckpt_tool.operations.merge import send

        sent = send(result, upload, show=not as_json and sys.stderr.isatty())
    with ui.guard_output(state + (" It was uploaded." if sent is not None else "")):
        if as_json:
            results.report(result, as_json=True, upload=uploads.upload_json(sent))
            return
        if sent is not None:
            uploads.show_upload(sent)
        show_next(result, is_uploaded=sent is not None)


def _file_table(plan: HubPlan) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    table.add_column("file")
    table.add_column("tensors", justify="right")
    table.add_column("bytes", justify="right")
    for file in plan.files:
        table.add_row(file.name, f"{len(file.tensors):,}", f"{file.size:,}")
    if len(plan.files) > 1:
        table.add_section()
        table.add_row("", f"{plan.num_tensors:,}", f"{plan.total_bytes:,}")
    return table


def _notes(plan: HubPlan, target: Target | None, options: WriteOptions) -> list[str]:
    """What else is written beside the weights, and where all of it would go."""
    notes = []
    names = ["config.json", *plan.beside.files] if plan.config is not None else []
    names += ["README.md"] if plan.card is not None else []
    if names:
        notes.append(f"beside   {', '.join(names)}")
    if target is not None:
        notes.append(uploads.describe_target(target, with_manifest=options.manifest))
    return notes
