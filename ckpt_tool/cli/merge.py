"""``ckpt merge``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ckpt_tool.cli import results, ui
from ckpt_tool.cli.options import AsJson, DirectIo, Fsync, Jobs, Overwrite, Resume

if TYPE_CHECKING:
    from ckpt_tool.merge import MergeOptions
    from ckpt_tool.plan import ModelPlan

app = typer.Typer(
    help="Merge a sharded checkpoint into a Hugging Face model folder.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@app.callback()
def _group() -> None:
    """Keep ``fsdp`` a subcommand while it is the only one."""


@app.command("fsdp")
@ui.guarded
def fsdp(
    ckpt: Annotated[
        list[Path],
        typer.Argument(metavar="CKPT", help="Folder of the rank files; several: one per node."),
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The model folder to write.")],
    config: Annotated[
        str | None,
        typer.Option(
            metavar="DIR|none",
            help="Take config and tokenizer from DIR; none: write weights and index only.",
        ),
    ] = None,
    dtype: Annotated[
        str,
        typer.Option(
            metavar="auto|keep|bfloat16|float16|float32",
            help="auto: what config.json says. What must stay float32 stays.",
        ),
    ] = "auto",
    max_shard_size: Annotated[
        str, typer.Option(metavar="SIZE", help="Largest weight file, like 5GB or 500MB.")
    ] = "5GB",
    tie_word_embeddings: Annotated[
        bool | None,
        typer.Option(
            "--tie-word-embeddings/--no-tie-word-embeddings",
            help="Drop a head that equals the embedding, or keep both. [default: config.json]",
        ),
    ] = None,
    check_replicas: Annotated[
        bool, typer.Option("--check-replicas", help="Read HSDP replicas too: they must be equal.")
    ] = False,
    verify: Annotated[
        bool, typer.Option("--verify", help="Read back what was written, bit for bit.")
    ] = False,
    check_load: Annotated[
        bool,
        typer.Option(
            "--check-load", help="First require that transformers wants exactly these tensors."
        ),
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would be written; write nothing.")
    ] = False,
    overwrite: Overwrite = False,
    resume: Resume = False,
    fsync: Fsync = True,
    direct_io: DirectIo = None,
    jobs: Jobs = 0,
    as_json: AsJson = False,
) -> None:
    """Merge FSDP rank files (verl, VeOmni: FSDP1, FSDP2, HSDP, FSDP+TP).

    OUT appears complete or not at all. Exits with 1 where --verify finds a difference, with 2
    where the checkpoint or the request is not sound.
    """
    from ckpt_tool.merge import MergeOptions
    from ckpt_tool.output import WriteOptions

    options = MergeOptions(
        config=Path(config) if config not in (None, "none") else None,
        keep_names=config == "none",
        dtype=dtype,
        max_shard_size=max_shard_size,
        tie_word_embeddings=tie_word_embeddings,
        check_replicas=check_replicas,
        jobs=jobs,
        write=WriteOptions(verify, check_load, overwrite, resume, fsync, direct_io),
    )
    _run(ckpt, out, options, dry_run=dry_run, as_json=as_json)


def _run(
    folders: list[Path], out: Path, options: MergeOptions, *, dry_run: bool, as_json: bool
) -> None:
    from ckpt_tool import merge
    from ckpt_tool.model_folder import check_plan

    with ui.progress_bar(quiet=as_json) as progress:
        if dry_run:
            plan = merge.plan_fsdp(folders, options, progress)
            check_plan(plan, out, options.write)
        else:
            result = merge.merge_fsdp(folders, out, options, progress)
    with ui.output():
        if dry_run:
            ui.print_json(results.plan_json(plan, out)) if as_json else _show_plan(plan, out)
            return
        if as_json:
            ui.print_json(results.result_json(result))
        else:
            results.show_result(result)
    if result.differences:
        raise typer.Exit(ui.EXIT_DIFFERENT)


def _show_plan(plan: ModelPlan, out: Path) -> None:
    from rich import box
    from rich.table import Table

    console = ui.console()
    console.print(f"Would write to {out}", soft_wrap=True)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    table.add_column("file")
    table.add_column("tensors", justify="right")
    table.add_column("bytes", justify="right")
    for file in plan.files:
        table.add_row(file.name, f"{len(file.tensors):,}", f"{file.size:,}")
    if len(plan.files) > 1:
        table.add_section()
        table.add_row("", f"{len(plan.tensors):,}", f"{plan.total_bytes:,}")
    console.print(table)
    results.show_changes(plan.casts(), plan.dropped)
    if plan.config is not None:
        names = ", ".join(["config.json", *plan.config.side_files()])
        console.print(f"  beside   {names}", soft_wrap=True)
    for warning in plan.warnings:
        ui.warn(warning)
