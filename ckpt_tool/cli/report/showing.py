"""How a verification is shown: on the terminal, as JSON, and in a report's file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ckpt_tool.cli import consoles, ui

if TYPE_CHECKING:
    from ckpt_tool.operations.verify import VerifyResult


@dataclass(frozen=True)
class Shown:
    """How a result is shown."""

    top: int
    heatmap: bool
    totals: bool
    report: Path | None
    as_json: bool

    @property
    def num_rows(self) -> int | None:
        """How many differences are seen: a table has the worst, reports have all."""
        return None if self.as_json or self.report is not None else self.top


def show_result(result: VerifyResult, shown: Shown) -> None:
    """Write the report, where one is wanted; OutputError where it cannot be. Then print."""
    from ckpt_tool.cli.report.as_json import make_object

    if shown.report is not None:
        _write_report(result, shown.report)
    with ui.guard_output():
        if shown.as_json:
            ui.print_json(make_object(result))
        else:
            _show_text(result, shown)


def _write_report(result: VerifyResult, path: Path) -> None:
    from datetime import datetime, timezone

    from ckpt_tool.cli.report.html import render
    from ckpt_tool.cli.report.saving import save_report

    when = datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
    save_report(path, render(result, when))


def _show_text(result: VerifyResult, shown: Shown) -> None:
    from ckpt_tool.cli.report.logits import show_logits
    from ckpt_tool.cli.report.origin import show_origin
    from ckpt_tool.cli.report.summary import show_summary
    from ckpt_tool.cli.report.totals import show_totals

    console = consoles.make_console()
    for warning in (*result.left.warnings, *result.right.warnings):
        ui.warn(warning)
    show_summary(console, result, shown.top)
    if shown.totals and result.totals is not None:
        show_totals(console, result.totals)
    if result.origin is not None:
        show_origin(console, result.origin, shown.top)
    if result.logits is not None:
        show_logits(console, result.logits)
    if shown.heatmap and result.num_compared:
        from ckpt_tool.cli.report.terminal import draw_heatmap
        from ckpt_tool.compare.grid import make_grid
        from ckpt_tool.operations.verify import collect_distances

        distances = {
            consoles.make_printable(name): d for name, d in collect_distances(result).items()
        }
        console.print("", draw_heatmap(make_grid(distances), console.width), sep="\n")
    if shown.report is not None:
        console.print(f"Report: {shown.report}", soft_wrap=True)
