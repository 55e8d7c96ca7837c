"""``ckpt to-mcore``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ckpt_tool.cli import consoles, results, ui
from ckpt_tool.cli.completion import offer
from ckpt_tool.cli.crc import CheckCrc
from ckpt_tool.cli.folding import fold, mask_numbers
from ckpt_tool.cli.options import (
    AsJson,
    DirectIo,
    DryRun,
    DType,
    Fsync,
    Jobs,
    Manifest,
    Overwrite,
    Resume,
    Verify,
)
from ckpt_tool.cli.progress import show_progress
from ckpt_tool.cli.results_json import plan_json
from ckpt_tool.cli.tables import break_name, format_shape
from ckpt_tool.common.launchers import is_first
from ckpt_tool.common.wording import count_noun, format_bytes

if TYPE_CHECKING:
    from rich.table import Table

    from ckpt_tool.operations.options import ToMcoreOptions
    from ckpt_tool.plans.mcore import McorePlan
    from ckpt_tool.tensors.tiled import TiledTensor
    from ckpt_tool.writers.places import Place


@ui.guard
def to_mcore(
    model: Annotated[
        Path,
        typer.Argument(
            metavar="HF_MODEL", help="Folder, file or address (hf://ORG/NAME) of a model."
        ),
    ],
    out: Annotated[
        Path,
        typer.Argument(metavar="OUT", help="The folder to write, or its address (s3://...)."),
    ],
    config: Annotated[
        str | None,
        typer.Option(
            metavar="DIR|ORG/NAME", help="Take config.json from there. [default: HF_MODEL's]"
        ),
    ] = None,
    dtype: DType = "auto",
    layout: Annotated[
        str,
        typer.Option(
            metavar="bare|megatron-lm",
            autocompletion=offer("bare|megatron-lm"),
            help="bare: what dist_checkpointing and verl load. megatron-lm: for its --load.",
        ),
    ] = "bare",
    layers: Annotated[
        str,
        typer.Option(
            metavar="stacked|per-layer|hybrid",
            autocompletion=offer("stacked|per-layer|hybrid"),
            help="How layers are laid out; hybrid: for a HybridModel. [default: as GPTModel does]",
        ),
    ] = "",
    tower: Annotated[
        str,
        typer.Option(
            metavar="transformers|megatron",
            autocompletion=offer("transformers|megatron"),
            help="Whose names a vision tower gets; megatron: verl's before 0.7 for Qwen2.5-VL."
            " [default: what Megatron-Bridge loads]",
        ),
    ] = "",
    pad_vocab_to_multiple: Annotated[
        int, typer.Option(metavar="N", min=1, help="Pad the vocabulary with rows of zeros.")
    ] = 1,
    crc: Annotated[
        bool, typer.Option("--crc/--no-crc", help="Write the checksums that zip tools want.")
    ] = True,
    verify: Verify = False,
    check_load: Annotated[
        bool,
        typer.Option(
            "--check-load/--no-check-load",
            help="Load the result with megatron-core's own model.",
        ),
    ] = False,
    check_crc: CheckCrc = None,
    dry_run: DryRun = False,
    overwrite: Overwrite = False,
    resume: Resume = False,
    fsync: Fsync = True,
    direct_io: DirectIo = None,
    manifest: Manifest = True,
    jobs: Jobs = 0,
    as_json: AsJson = False,
) -> None:
    """Write a Hugging Face model as a megatron-core checkpoint (torch_dist), without a GPU.

    Any number of tensor, pipeline and expert parallel ranks can load it. OUT appears complete or
    not at all. Exits with 1 where --verify finds a difference, with 2 where the model or the
    request is not sound.
    """
    from ckpt_tool.operations.options import ToMcoreOptions
    from ckpt_tool.plans.options import WriteOptions

    options = ToMcoreOptions(
        config=config,
        dtype=dtype,
        layout=layout,
        layers=layers,
        vocab_multiple=pad_vocab_to_multiple,
        tower=tower,
        sums=crc,
        jobs=jobs,
        write=WriteOptions(
            verify, check_load, overwrite, resume, fsync, direct_io, manifest, check_crc
        ),
    )
    if dry_run:
        _dry_run(model, out, options, as_json=as_json)
        return
    _write(model, out, options, as_json=as_json)


def _dry_run(model: Path, out: Path, options: ToMcoreOptions, *, as_json: bool) -> None:
    from ckpt_tool.common.parallel import choose_jobs, form_team_alone
    from ckpt_tool.operations.elsewhere import settle_out
    from ckpt_tool.operations.to_mcore import plan_to_mcore
    from ckpt_tool.plans.write import judge_plan
    from ckpt_tool.writers.places import probe_place

    place = settle_out(out, options.write, is_megatron=True)
    with show_progress(silent=as_json or not is_first()) as progress:
        plan = plan_to_mcore(model, options, form_team_alone(options.jobs, progress))
        plan.check(place, options.write)
        probe_place(place)
        judge_plan(plan, options.write, progress)
    if not is_first():
        return
    with ui.guard_output():
        if as_json:
            ui.print_json(_plan_json(plan, place, manifest=options.write.manifest))
        else:
            memory = _memory_text(plan, choose_jobs(options.jobs), direct=options.write.is_direct)
            written = f"{format_bytes(plan.total_bytes)} in {count_noun(len(plan.files), 'file')}"
            notes = [f"write    {written}", f"memory   {memory}"]
            table = _tensor_table(plan, consoles.make_console().width)
            results.show_plan(plan, place, table, notes)


def _write(model: Path, out: Path, options: ToMcoreOptions, *, as_json: bool) -> None:
    from ckpt_tool.operations.to_mcore import convert_to_mcore

    with show_progress(silent=as_json or not is_first()) as progress:
        result = convert_to_mcore(model, out, options, progress)
    with ui.guard_output(results.say_state(result)):
        if is_first():
            results.report(result, as_json=as_json, layout=options.layout)
    if result.differences:
        raise typer.Exit(ui.EXIT_DIFFERENT)


def _tensor_table(plan: McorePlan, width: int) -> Table:
    """Megatron's tensors with what each is made of; layers and experts folded."""
    from rich.table import Table

    titles = ("shape", "dtype", "bytes")
    groups = _groups(plan.folder.tensors)
    cells = [_describe(group) for group in groups]
    used = sum(2 + max(map(len, column)) for column in zip(titles, *cells, strict=True))
    table = Table(box=None, pad_edge=False, header_style="bold", show_edge=False)
    table.add_column("megatron-core  < Hugging Face", overflow="fold")
    for title in titles:
        table.add_column(title, no_wrap=True, justify="right" if title == "bytes" else "left")
    for group, row in zip(groups, cells, strict=True):
        for number, name in enumerate(fold(dict.fromkeys(name for name, _ in group))):
            shown = break_name(consoles.make_printable(name.pattern), width - used)
            table.add_row(shown, *(row if not number else ()))
        for name in fold(dict.fromkeys(name for _, tensor in group for name in tensor.sources)):
            shown = break_name(f"  < {consoles.make_printable(name.pattern)}", width - used)
            table.add_row(shown, style="dim")
    return table


def _describe(group: list[tuple[str, TiledTensor]]) -> tuple[str, str, str]:
    """The shape and dtype that all of a group have, and the bytes of all."""
    first = group[0][1]
    size = sum(tensor.nbytes for _, tensor in group)
    return format_shape(first.shape), first.dtype.name, f"{size:,}"


def _memory_text(plan: McorePlan, jobs: int, *, direct: bool) -> str:
    from ckpt_tool.writers.stream import estimate_buffers

    memory = format_bytes(estimate_buffers(jobs, direct=direct, casting=bool(plan.casts)))
    return f"{memory} of buffers for {count_noun(jobs, 'thread')}, whatever the size"


def _groups(tensors: Mapping[str, TiledTensor]) -> list[list[tuple[str, TiledTensor]]]:
    """Tensors of one shape and dtype whose names differ only in numbers."""
    found: dict[tuple[object, ...], list[tuple[str, TiledTensor]]] = {}
    for name, tensor in tensors.items():
        key = (mask_numbers(name), tensor.shape, tensor.dtype)
        found.setdefault(key, []).append((name, tensor))
    return list(found.values())


def _plan_json(plan: McorePlan, out: Place, *, manifest: bool) -> dict[str, Any]:
    tensors = [
        {
            "name": name,
            "shape": list(tensor.shape),
            "dtype": tensor.dtype.name,
            "sources": list(tensor.sources),
        }
        for name, tensor in plan.folder.tensors.items()
    ]
    more = {"layout": plan.layout, "layers": plan.rules.layout, "tensors": tensors}
    return plan_json(plan, out, manifest=manifest) | more
