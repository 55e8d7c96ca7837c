"""``ckpt inspect``."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ckpt_tool.cli import consoles, ui
from ckpt_tool.cli.crc import CheckAllCrc, list_scrub_lines, make_crc_json
from ckpt_tool.cli.options import AsJson, Jobs, Step
from ckpt_tool.cli.progress import show_progress
from ckpt_tool.cli.runs import make_run_json, show_run
from ckpt_tool.common.wording import format_bytes, format_count

if TYPE_CHECKING:
    from rich.console import Console

    from ckpt_tool.operations.inspect import Inspection
    from ckpt_tool.operations.runs import Run
    from ckpt_tool.readers.base import Checkpoint, Entry

_SHOWN = 20


@ui.guard
def inspect(
    paths: Annotated[
        list[Path],
        typer.Argument(
            metavar="PATH",
            help="Checkpoint folder or file, or its address (s3://...); several: one per node.",
        ),
    ],
    step: Step = None,
    shards: Annotated[
        bool, typer.Option("--shards", help="Show every rank's piece: offsets and local shape.")
    ] = False,
    patterns: Annotated[
        list[str] | None,
        typer.Option("--filter", metavar="GLOB", help="Only tensors whose name matches."),
    ] = None,
    problems: Annotated[
        bool, typer.Option("--problems", help="Only what is missing or broken, all of it.")
    ] = False,
    everything: Annotated[
        bool, typer.Option("--all", help="A row for every tensor; do not fold layers.")
    ] = False,
    check_crc: CheckAllCrc = False,
    jobs: Jobs = 0,
    as_json: AsJson = False,
) -> None:
    """Show what a checkpoint is: format, mesh, tensors, problems. Reads metadata only.

    Of a run's folder with several checkpoints: each of them, and the command that merges it,
    unless an option asks about one.

    With --check-crc it reads all of it once, and lists what is not as it was written.

    Exits with 2 where the checkpoint has problems.
    """
    from ckpt_tool.cli import tables
    from ckpt_tool.common.parallel import form_team_alone
    from ckpt_tool.operations import inspect as operation
    from ckpt_tool.operations.runs import find_run_of_several

    asked = (step, shards, patterns, problems, everything, check_crc)
    is_of_one = any(asked) or len(paths) > 1
    run = None if is_of_one else find_run_of_several(paths[0])
    if run is not None:
        _show_several(run, as_json=as_json)
        return
    with show_progress(silent=as_json) as progress:
        team = form_team_alone(jobs, progress) if check_crc else None
        found = operation.inspect_checkpoint(paths, patterns or [], team, progress, step=step)
    with ui.guard_output():
        if as_json:
            ui.print_json(_as_object(found, shards=shards))
        else:
            out = consoles.make_console()
            _show_summary(out, found)
            if shards and not problems:
                for line in tables.list_shards(found.entries, found.checkpoint.files):
                    out.print(line, soft_wrap=True)
            elif found.entries and not problems:
                out.print(tables.make_tensor_table(found.entries, out.width, folded=not everything))
            _show_problems(out, found, everything=problems or everything)
    if not found.ok:
        raise typer.Exit(ui.EXIT_FAILED)


def _show_several(run: Run, *, as_json: bool) -> None:
    with ui.guard_output():
        if as_json:
            ui.print_json(make_run_json(run))
        else:
            show_run(consoles.make_console(), run)


#: What is said of a file; by what else it is known again is nothing for others.
_OF_FILES = ("path", "bytes", "rank", "parallel")


def _as_object(found: Inspection, *, shards: bool) -> dict[str, Any]:
    """The object of ``--json``, as the contract has it; more keys may come."""
    checkpoint = found.checkpoint
    mesh = checkpoint.mesh
    result: dict[str, Any] = {
        "format": checkpoint.format,
        "path": str(checkpoint.path),
        "world_size": checkpoint.world_size,
        "mesh": {"shape": mesh.shape, "dim_names": mesh.dim_names} if mesh else None,
        "files": [{key: getattr(file, key) for key in _OF_FILES} for file in checkpoint.files],
        "num_tensors": len(found.entries),
        "num_parameters": found.num_parameters,
        "total_bytes": found.total_bytes,
        "dtypes": found.dtypes,
        "tensors": [_tensor_json(entry) for entry in found.entries],
        "problems": [asdict(problem) for problem in checkpoint.problems],
        "warnings": checkpoint.warnings,
        "ok": found.ok,
        "crc": make_crc_json(found.crc),
    }
    if shards:
        result["shards"] = [row for entry in found.entries for row in _shards_json(entry)]
    return result


def _tensor_json(entry: Entry) -> dict[str, Any]:
    return {
        "name": entry.name,
        "shape": entry.shape,
        "dtype": entry.dtype.name,
        "placements": entry.placements,
        "num_chunks": len(entry.owners()),
    }


def _shards_json(entry: Entry) -> list[dict[str, Any]]:
    return [
        {
            "name": entry.name,
            "rank": held.rank,
            "file": held.region.path,
            "offsets": held.box.offsets,
            "shape": held.box.sizes,
        }
        for held in entry.holdings
    ]


def _show_summary(out: Console, found: Inspection) -> None:
    from rich.table import Table
    from rich.text import Text

    from ckpt_tool.readers import find_format

    checkpoint = found.checkpoint
    title = find_format(checkpoint.format).title
    out.print(Text.assemble((title, "bold"), "  ", str(checkpoint.path)), soft_wrap=True)
    grid = Table.grid(padding=(0, 2))
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    rows: list[tuple[str, str]] = []
    if checkpoint.world_size is not None:
        rows.append(("world size", str(checkpoint.world_size)))
    if checkpoint.mesh is not None:
        rows.append(("mesh", str(checkpoint.mesh)))
    size = sum(file.bytes for file in checkpoint.files)
    rows.append(("files", f"{len(checkpoint.files):,}, {format_bytes(size)}"))
    rows.append(("tensors", _tensors_text(found)))
    if found.dtypes:
        dtypes = ", ".join(f"{name} x {n:,}" for name, n in found.dtypes.items())
        rows.append(("dtypes", dtypes))
    if checkpoint.side_files is not None:
        rows.append(("config", str(checkpoint.side_files)))
    rows += [("crc", line) for line in list_scrub_lines(found.crc)]
    count = len(checkpoint.problems)
    rows += [("warning", consoles.make_printable(warning)) for warning in checkpoint.warnings]
    rows.append(("problems", f"[red]{count}[/red]" if count else "[green]none[/green]"))
    for label, text in rows:
        value = Text(text, style="") if label != "problems" else Text.from_markup(text)
        grid.add_row(Text(f"  {label}", style="dim"), value)
    out.print(grid)
    _show_files(out, checkpoint)


def _show_files(out: Console, checkpoint: Checkpoint) -> None:
    """Which rank each file is of, where one number does not say it."""
    from ckpt_tool.cli import tables

    numbered = [file for file in checkpoint.files if file.parallel is not None]
    if numbered:
        out.print(tables.make_file_table(numbered[:_SHOWN], checkpoint.path))
    if len(numbered) > _SHOWN:
        out.print(f"  and {len(numbered) - _SHOWN} more: --json lists them")


def _tensors_text(found: Inspection) -> str:
    shown, total = len(found.entries), len(found.checkpoint.entries)
    count = f"{shown:,}" if shown == total else f"{shown:,} of {total:,}"
    parameters = found.num_parameters
    size = format_bytes(found.total_bytes)
    rounded = f" ({format_count(parameters)})" if parameters >= 10**6 else ""
    return f"{count}; {parameters:,} parameters{rounded}, {size}"


def _show_problems(out: Console, found: Inspection, *, everything: bool) -> None:
    from rich.table import Table
    from rich.text import Text

    problems = found.checkpoint.problems
    shown = problems if everything else problems[:_SHOWN]
    grid = Table.grid(padding=(0, 2))
    for problem in shown:
        said = consoles.make_printable(str(problem))
        grid.add_row(Text(problem.kind, style="bold red"), Text(said, overflow="fold"))
    if shown:
        out.print(grid)
    if len(shown) < len(problems):
        out.print(f"and {len(problems) - len(shown)} more: --problems lists them")
