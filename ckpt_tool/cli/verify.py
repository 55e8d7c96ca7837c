"""``ckpt verify``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ckpt_tool.cli import ui
from ckpt_tool.cli.crc import CheckAllCrc
from ckpt_tool.cli.options import (
    AsJson,
    Base,
    FillFrom,
    Jobs,
    LoraAlpha,
    Prefix,
    RenameParts,
    Select,
    Step,
    Weights,
    settle_config,
    settle_names,
)
from ckpt_tool.cli.progress import show_progress
from ckpt_tool.common.errors import UsageError
from ckpt_tool.common.parallel import is_first

if TYPE_CHECKING:
    from ckpt_tool.operations.verify import VerifyResult


@ui.guard
def verify(
    context: typer.Context,
    ckpt: Annotated[Path, typer.Argument(metavar="CKPT", help="The checkpoint to judge.")],
    reference: Annotated[
        Path | None,
        typer.Argument(
            metavar="REFERENCE",
            help="What it should be; any known format. [default: what CKPT's own manifest says]",
            show_default=False,
        ),
    ] = None,
    step: Step = None,
    atol: Annotated[
        float,
        typer.Option(
            metavar="X", help="Accept |a-b| <= X + rtol*|b|. [default: 0]", show_default=False
        ),
    ] = 0.0,
    rtol: Annotated[
        float,
        typer.Option(
            metavar="X", help="Accept |a-b| <= atol + X*|b|. [default: 0]", show_default=False
        ),
    ] = 0.0,
    cast_reference: Annotated[
        bool,
        typer.Option(
            "--cast-reference", help="Where dtypes differ, round the finer side, then compare."
        ),
    ] = False,
    ignore: Annotated[
        list[str] | None,
        typer.Option(metavar="GLOB", help="Leave out tensors of these names; can be repeated."),
    ] = None,
    config: Annotated[
        str | None,
        typer.Option(
            metavar="DIR|ORG/NAME|none",
            help="Take config.json from there; none: compare names as they are."
            " [default: what is beside the checkpoints]",
        ),
    ] = None,
    lora_alpha: LoraAlpha = None,
    base: Base = None,
    fill_from: FillFrom = None,
    weights: Weights = "model",
    prefix: Prefix = "",
    select: Select = None,
    rename: RenameParts = None,
    top: Annotated[
        int, typer.Option(metavar="N", min=1, help="Rows of the table: the worst N tensors.")
    ] = 10,
    heatmap: Annotated[
        bool, typer.Option("--heatmap", help="Show layers x modules by relative difference.")
    ] = False,
    report: Annotated[
        Path | None, typer.Option(metavar="FILE.html", help="Write all of it as one HTML file.")
    ] = None,
    check_crc: CheckAllCrc = False,
    jobs: Jobs = 0,
    as_json: AsJson = False,
) -> None:
    """Compare two checkpoints: same names, shapes, dtypes and bits.

    A folder that ckpt wrote, alone, is held against its manifest: every file, and no other.

    Exits with 0 where they are equal, with 1 where they differ, with 2 where they cannot be
    compared (damaged, incomplete, unknown).
    """
    if reference is None:
        _require_reference(context)
        _check_alone(ckpt, jobs, as_json=as_json)
        return
    from ckpt_tool.common.parallel import Team, choose_jobs, join_world
    from ckpt_tool.compare.stats import Tolerance
    from ckpt_tool.mapping.lora.options import LoraOptions
    from ckpt_tool.operations.options import VerifyOptions
    from ckpt_tool.operations.verify import verify_as_team

    shown = _Shown(top, heatmap, report, as_json)
    options = VerifyOptions(
        tolerance=Tolerance(atol, rtol),
        cast_reference=cast_reference,
        ignore=tuple(ignore or ()),
        explained=shown.num_rows,
        names=settle_names(prefix, select, rename),
        lora=LoraOptions(alpha=lora_alpha, base=base),
        fill_from=fill_from,
        weights=weights,
        step=step,
        check_crc=check_crc,
        **settle_config(config),
    )
    if report is not None:
        _require_place(report)  # before the work, not after it
    with join_world() as world:
        with show_progress(silent=as_json or not is_first()) as progress:
            team = Team(world, choose_jobs(jobs), progress)
            result = verify_as_team(ckpt, reference, options, team)
        world.first(lambda: _show(result, shown))  # the others wait, lest torchrun stop it
    if not result.equal:
        raise typer.Exit(ui.EXIT_DIFFERENT)


def _require_reference(context: typer.Context) -> None:
    """UsageError where something is said of a comparison, and there is nothing to compare with."""
    asked = [
        parameter.opts[0]
        for parameter in context.command.params
        if parameter.name not in ("ckpt", "reference", "jobs", "as_json")
        and getattr(context.get_parameter_source(str(parameter.name)), "name", "") == "COMMANDLINE"
    ]
    if asked:
        raise UsageError(
            f"{', '.join(asked)}: nothing to compare with",
            hint="Name a REFERENCE; without, CKPT's files are held against its manifest.",
        )


def _check_alone(folder: Path, jobs: int, *, as_json: bool) -> None:
    from ckpt_tool.cli.report.folder import make_folder_json, show_folder
    from ckpt_tool.common.parallel import Team, choose_jobs, join_world
    from ckpt_tool.operations.check_folder import check_folder_as_team

    def show() -> None:
        with ui.guard_output():
            if as_json:
                ui.print_json(make_folder_json(result))
            else:
                show_folder(result)

    with join_world() as world:
        with show_progress(silent=as_json or not is_first()) as progress:
            result = check_folder_as_team(folder, Team(world, choose_jobs(jobs), progress))
        world.first(show)
    if not result.equal:
        raise typer.Exit(ui.EXIT_DIFFERENT)


@dataclass(frozen=True)
class _Shown:
    """How a result is shown."""

    top: int
    heatmap: bool
    report: Path | None
    as_json: bool

    @property
    def num_rows(self) -> int | None:
        """How many differences are seen: a table has the worst, reports have all."""
        return None if self.as_json or self.report is not None else self.top


def _show(result: VerifyResult, shown: _Shown) -> None:
    from ckpt_tool.cli.report.as_json import make_object

    if shown.report is not None:
        _write_report(result, shown.report)
    with ui.guard_output():
        if shown.as_json:
            ui.print_json(make_object(result))
        else:
            _show_text(result, shown)


def _require_place(report: Path) -> None:
    from ckpt_tool.cli.report.saving import require_place

    require_place(report)


def _write_report(result: VerifyResult, path: Path) -> None:
    from datetime import datetime, timezone

    from ckpt_tool.cli.report.html import render
    from ckpt_tool.cli.report.saving import save_report

    when = datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
    save_report(path, render(result, when))


def _show_text(result: VerifyResult, shown: _Shown) -> None:
    from ckpt_tool.cli.report.summary import show_summary

    console = ui.make_console()
    for warning in (*result.left.warnings, *result.right.warnings):
        ui.warn(warning)
    show_summary(console, result, shown.top)
    if shown.heatmap and result.num_compared:
        from ckpt_tool.cli.report.terminal import draw_heatmap
        from ckpt_tool.compare.grid import make_grid
        from ckpt_tool.operations.verify import collect_distances

        distances = {ui.make_printable(name): d for name, d in collect_distances(result).items()}
        console.print("", draw_heatmap(make_grid(distances), console.width), sep="\n")
    if shown.report is not None:
        console.print(f"Report: {shown.report}", soft_wrap=True)
