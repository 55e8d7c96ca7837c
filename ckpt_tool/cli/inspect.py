"""``ckpt inspect``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ckpt_tool.cli import ui
from ckpt_tool.cli.options import AsJson
from ckpt_tool.common.wording import human_bytes, human_count

if TYPE_CHECKING:
    from rich.console import Console

    from ckpt_tool.operations.inspect import Inspection
    from ckpt_tool.readers.base import Checkpoint

_SHOWN = 20


@ui.guarded
def inspect(
    paths: Annotated[
        list[Path],
        typer.Argument(
            metavar="PATH", help="Checkpoint folder or file; several folders: one per node."
        ),
    ],
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
    as_json: AsJson = False,
) -> None:
    """Show what a checkpoint is: format, mesh, tensors, problems. Reads metadata only.

    Exits with 2 where the checkpoint has problems.
    """
    from ckpt_tool.cli import tables
    from ckpt_tool.operations import inspect as operation

    found = operation.inspect_checkpoint(paths, patterns or [])
    with ui.output():
        if as_json:
            ui.print_json(operation.as_json(found, shards=shards))
        else:
            out = ui.console()
            _summary(out, found)
            if shards and not problems:
                for line in tables.shard_lines(found.entries, found.checkpoint.files):
                    out.print(line, soft_wrap=True)
            elif not problems:
                out.print(tables.tensor_table(found.entries, out.width, folded=not everything))
            _problems(out, found, everything=problems or everything)
    if not found.ok:
        raise typer.Exit(ui.EXIT_FAILED)


def _summary(out: Console, found: Inspection) -> None:
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
    rows.append(("files", f"{len(checkpoint.files):,}, {human_bytes(size)}"))
    rows.append(("tensors", _tensors(found)))
    rows.append(("dtypes", ", ".join(f"{name} x {n:,}" for name, n in found.dtypes.items())))
    if checkpoint.side_files is not None:
        rows.append(("config", str(checkpoint.side_files)))
    count = len(checkpoint.problems)
    rows.append(("problems", f"[red]{count}[/red]" if count else "[green]none[/green]"))
    for label, text in rows:
        value = Text(text, style="") if label != "problems" else Text.from_markup(text)
        grid.add_row(Text(f"  {label}", style="dim"), value)
    out.print(grid)
    _files(out, checkpoint)


def _files(out: Console, checkpoint: Checkpoint) -> None:
    """Which rank each file is of, where one number does not say it."""
    from ckpt_tool.cli import tables

    numbered = [file for file in checkpoint.files if file.parallel is not None]
    if numbered:
        out.print(tables.file_table(numbered[:_SHOWN], checkpoint.path))
    if len(numbered) > _SHOWN:
        out.print(f"  and {len(numbered) - _SHOWN} more: --json lists them")


def _tensors(found: Inspection) -> str:
    shown, total = len(found.entries), len(found.checkpoint.entries)
    count = f"{shown:,}" if shown == total else f"{shown:,} of {total:,}"
    parameters = found.num_parameters
    size = human_bytes(found.total_bytes)
    rounded = f" ({human_count(parameters)})" if parameters >= 10**6 else ""
    return f"{count}; {parameters:,} parameters{rounded}, {size}"


def _problems(out: Console, found: Inspection, *, everything: bool) -> None:
    from rich.table import Table
    from rich.text import Text

    problems = found.checkpoint.problems
    shown = problems if everything else problems[:_SHOWN]
    grid = Table.grid(padding=(0, 2))
    for problem in shown:
        grid.add_row(Text(problem.kind, style="bold red"), Text(str(problem), overflow="fold"))
    if shown:
        out.print(grid)
    if len(shown) < len(problems):
        out.print(f"and {len(problems) - len(shown)} more: --problems lists them")
