"""``ckpt verify``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ckpt_tool.cli import ui
from ckpt_tool.cli.options import AsJson, Jobs
from ckpt_tool.common.errors import UsageError
from ckpt_tool.common.wording import human_bytes, plural

if TYPE_CHECKING:
    from rich.console import Console

    from ckpt_tool.compare.stats import Stats
    from ckpt_tool.operations.explain import Mismatch
    from ckpt_tool.operations.verify import VerifyResult

_LISTED = 20
_FAR_ULP = 1_000_000  # a larger distance says no more than the numbers beside it


@ui.guarded
def verify(
    ckpt: Annotated[Path, typer.Argument(metavar="CKPT", help="The checkpoint to judge.")],
    reference: Annotated[
        Path, typer.Argument(metavar="REFERENCE", help="What it should be; any known format.")
    ],
    atol: Annotated[
        float, typer.Option(metavar="X", help="Accept |a-b| <= X + rtol*|b|. [default: 0, exact]")
    ] = 0.0,
    rtol: Annotated[
        float, typer.Option(metavar="X", help="Accept |a-b| <= atol + X*|b|. [default: 0, exact]")
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
    top: Annotated[int, typer.Option(min=1, help="Rows of the table: the worst N tensors.")] = 10,
    heatmap: Annotated[
        bool, typer.Option("--heatmap", help="Show layers x modules by relative difference.")
    ] = False,
    report: Annotated[
        Path | None, typer.Option(metavar="FILE.html", help="Write all of it as one HTML file.")
    ] = None,
    jobs: Jobs = 0,
    as_json: AsJson = False,
) -> None:
    """Compare two checkpoints: same names, shapes, dtypes and bits.

    Exits with 0 where they are equal, with 1 where they differ, with 2 where they cannot be
    compared (damaged, incomplete, unknown).
    """
    from ckpt_tool.cli.report.as_json import as_object
    from ckpt_tool.common.parallel import jobs_of
    from ckpt_tool.compare.stats import Tolerance
    from ckpt_tool.operations.options import VerifyOptions
    from ckpt_tool.operations.verify import verify_checkpoint

    options = VerifyOptions(
        tolerance=Tolerance(atol, rtol),
        cast_reference=cast_reference,
        ignore=tuple(ignore or ()),
        jobs=jobs_of(jobs),
    )
    if report is not None and not report.parent.is_dir():  # before the work, not after it
        raise UsageError(f"{report}: {report.parent} is no folder")
    with ui.progress_bar(quiet=as_json) as progress:
        result = verify_checkpoint(ckpt, reference, options, progress)
    if report is not None:
        _write_report(result, report)
    with ui.output():
        if as_json:
            ui.print_json(as_object(result))
        else:
            _show(result, top, heatmap=heatmap, report=report)
    if not result.equal:
        raise typer.Exit(ui.EXIT_DIFFERENT)


def _write_report(result: VerifyResult, path: Path) -> None:
    from datetime import datetime, timezone

    from ckpt_tool.cli.report.html import render

    when = datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
    path.write_text(render(result, when), encoding="utf-8")


def _show(result: VerifyResult, top: int, *, heatmap: bool, report: Path | None) -> None:
    console = ui.console()
    for side in (result.left, result.right):
        for warning in side.warnings:
            ui.warn(warning)
    colour = "green" if result.equal else "red"
    console.print(f"[bold {colour}]{verdict(result)}[/bold {colour}]", soft_wrap=True)
    for line in _notes(result):
        console.print(f"  {ui.printable(line)}", soft_wrap=True, markup=False, emoji=False)
    _show_names(console, "missing", "in the reference only", result.missing)
    _show_names(console, "unexpected", "in the checkpoint only", result.unexpected)
    if result.mismatched:
        _show_mismatches(console, worst_first(result.mismatched), top)
    if heatmap and result.num_compared:
        from ckpt_tool.cli.report.terminal import heatmap as drawn
        from ckpt_tool.compare.grid import grid
        from ckpt_tool.operations.verify import shown_distances

        shown = {ui.printable(name): d for name, d in shown_distances(result).items()}
        console.print(drawn(grid(shown), console.width))
    if report is not None:
        console.print(f"Report: {report}", soft_wrap=True, markup=False, emoji=False)


def verdict(result: VerifyResult) -> str:
    """One line: what was found."""
    if result.equal:
        how = "bit for bit" if result.exact else _leniency(result)
        if result.close:
            how += f"; {plural(len(result.close), 'tensor')} only within the tolerance"
        size = human_bytes(result.compared_bytes)
        return f"Equal: {plural(result.num_compared, 'tensor')}, {size}, {how}"
    counts = (
        (len(result.mismatched), "differ"),
        (len(result.missing), "missing"),
        (len(result.unexpected), "unexpected"),
    )
    parts = [f"{result.num_equal:,} of {plural(result.num_compared, 'tensor')} equal"]
    parts += [f"{count:,} {what}" for count, what in counts if count]
    how = "" if result.exact else f" ({_leniency(result)})"
    return f"Different: {', '.join(parts)}{how}"


def _leniency(result: VerifyResult) -> str:
    tolerance = result.options.tolerance
    cast = ["the finer side rounded first"] if result.options.cast_reference else []
    close = [] if tolerance.exact else [f"|a-b| <= {tolerance.atol:g} + {tolerance.rtol:g}*|b|"]
    return ", ".join(cast + close)


def _notes(result: VerifyResult) -> list[str]:
    notes = [f"tied     {name}: {reason}" for name, reason in result.tied.items()]
    if result.ignored:
        notes.append(f"ignored  {plural(len(result.ignored), 'tensor')}")
    if result.names_hint:
        notes.append(f"hint     {result.names_hint}")
    return notes


def _show_names(console: Console, kind: str, where: str, names: Sequence[str]) -> None:
    from ckpt_tool.cli.folding import fold

    if not names:
        return
    console.print(f"{kind} ({where}):")
    rows = fold(dict.fromkeys(names, ()))
    for row in rows[: None if ui.verbose else _LISTED]:
        count = f"  x{row.count}" if row.count > 1 else ""
        console.print(
            f"  {ui.printable(row.pattern)}{count}", soft_wrap=True, markup=False, emoji=False
        )
    if len(rows) > _LISTED and not ui.verbose:
        console.print(f"  and {len(rows) - _LISTED} more (ckpt --verbose verify lists them)")


def worst_first(mismatches: Sequence[Mismatch]) -> list[Mismatch]:
    """Other shapes and dtypes first, then by relative distance."""

    def badness(mismatch: Mismatch) -> tuple[int, float]:
        kind = ("shape", "dtype", "values").index(mismatch.kind)
        return kind, -mismatch.stats.distance if mismatch.stats is not None else 0.0

    return sorted(mismatches, key=badness)


def _show_mismatches(console: Console, mismatches: Sequence[Mismatch], top: int) -> None:
    """A row of numbers per tensor; under it, over the whole width, what is known about it."""
    from rich.padding import Padding
    from rich.text import Text

    shown = mismatches[:top]
    room = max(20, console.width - len(_row(("",) * 4)))
    width = min(room, max(len(ui.printable(mismatch.name)) for mismatch in shown))
    header = _row(("different", "max abs", "max rel", "cosine"))
    console.print(Text(f"{'tensor':{width}}{header}", style="bold"), soft_wrap=True)
    for mismatch in shown:
        name = ui.printable(mismatch.name)
        if len(name) > width:
            console.print(Text(name), soft_wrap=True)
            name = ""
        console.print(Text(f"{name:{width}}{_row(_cells(mismatch.stats))}"), soft_wrap=True)
        for style, line in _details(mismatch):
            console.print(Padding(Text(ui.printable(line), style=style), (0, 0, 0, 4)))
    if len(mismatches) > top:
        console.print(f"and {len(mismatches) - top:,} more that differ (--top N shows more)")


def _row(cells: Sequence[str]) -> str:
    return f"  {cells[0]:>18}  {cells[1]:>8}  {cells[2]:>8}  {cells[3]:>8}"


def _cells(stats: Stats | None) -> tuple[str, str, str, str]:
    if stats is None:
        return "", "", "", ""
    share = 100 * stats.num_different / max(stats.num_elements, 1)
    percent = f"{share:.0f}%" if share > 99.9 or share == 0 else f"{share:.2g}%"
    cosine = "" if stats.cosine is None else f"{stats.cosine:.5f}"
    count = f"{stats.num_different:,} ({percent})"
    return count, f"{stats.max_abs:.3g}", f"{stats.max_rel:.3g}", cosine


def _details(mismatch: Mismatch) -> Iterator[tuple[str, str]]:
    """Lines under a row, each with its style."""
    if mismatch.hint:
        yield "cyan", f"hint: {mismatch.hint}"
    if mismatch.kind != "values":
        yield "", f"{mismatch.kind}: {mismatch.left}, the reference has {mismatch.right}"
    stats = mismatch.stats
    if stats is None:
        return
    if any(stats.num_nan + stats.num_inf):
        (nan, nan_there), (inf, inf_there) = stats.num_nan, stats.num_inf
        yield (
            "yellow",
            f"NaN: {nan:,} (reference {nan_there:,}), infinite: {inf:,} (reference {inf_there:,})",
        )
    if stats.first_values is not None and mismatch.first_index is not None:
        here, there = stats.first_values
        where = f" in {Path(mismatch.source).name}" if mismatch.rank is not None else ""
        near = stats.max_ulp is not None and stats.max_ulp <= _FAR_ULP
        ulp = f", at most {stats.max_ulp:,} ulp apart" if near else ""
        yield (
            "dim",
            f"first at {list(mismatch.first_index)}{where}: {here:.7g}, expected {there:.7g};"
            f" mean abs {stats.mean_abs:.3g}{ulp}",
        )
