"""``ckpt verify``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

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
from ckpt_tool.common.launchers import is_first


@ui.guard
def verify(
    context: typer.Context,
    ckpt: Annotated[
        Path,
        typer.Argument(metavar="CKPT", help="The checkpoint to judge, or its address (s3://...)."),
    ],
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
    totals: Annotated[
        bool,
        typer.Option("--totals", help="Show how far each layer and each kind of module moved."),
    ] = False,
    rank: Annotated[
        bool,
        typer.Option("--rank", help="Show whether a LoRA would hold the difference of each row."),
    ] = False,
    origin: Annotated[
        Path | None,
        typer.Option(metavar="MODEL", help="Show who moved what from there: a third checkpoint."),
    ] = None,
    logits: Annotated[
        str | None,
        typer.Option(metavar="TEXT", help="Run both models on a text: do next tokens agree?"),
    ] = None,
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
    from ckpt_tool.cli.report.saving import require_place
    from ckpt_tool.cli.report.showing import Shown, show_result
    from ckpt_tool.common.parallel import Team, choose_jobs, join_world
    from ckpt_tool.compare.stats import Tolerance
    from ckpt_tool.mapping.lora.options import LoraOptions
    from ckpt_tool.operations.options import VerifyOptions
    from ckpt_tool.operations.verify import verify_as_team

    shown = Shown(top, heatmap, totals, report, as_json)
    options = VerifyOptions(
        tolerance=Tolerance(atol, rtol),
        cast_reference=cast_reference,
        ignore=tuple(ignore or ()),
        explained=shown.num_rows,
        totals=totals or shown.num_rows is None,
        origin=origin,
        logits=logits,
        ranks=top if rank else 0,
        names=settle_names(prefix, select, rename),
        lora=LoraOptions(alpha=lora_alpha, base=base),
        fill_from=fill_from,
        weights=weights,
        step=step,
        check_crc=check_crc,
        **settle_config(config),
    )
    if report is not None:
        require_place(report)  # before the work, not after it
    with join_world() as world:
        with show_progress(silent=as_json or not is_first()) as progress:
            team = Team(world, choose_jobs(jobs), progress)
            result = verify_as_team(ckpt, reference, options, team)
        world.first(lambda: show_result(result, shown))  # the others wait, lest torchrun stop it
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
