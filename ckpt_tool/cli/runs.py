"""``ckpt inspect`` of a run's folder: its checkpoints, and the command for each."""

from __future__ import annotations

import shlex
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

    from ckpt_tool.operations.runs import Listed, Run

#: Behind the command of a checkpoint that has no config.json.
_CONFIG = " --config MODEL"


def make_run_json(run: Run) -> dict[str, Any]:
    """The object of ``--json``."""
    return {
        "path": str(run.path),
        "checkpoints": [
            {
                "path": str(each.path),
                "format": each.format.name,
                "step": each.step,
                "role": each.role,
                "command": _spell_command(each) or None,
            }
            for each in run.checkpoints
        ],
        "is_whole": run.is_whole,
        "ok": True,
    }


def show_run(out: Console, run: Run) -> None:
    """A row for each checkpoint; where commands do not fit beside it, they are below."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    out.print(Text.assemble(("Run", "bold"), "  ", str(run.path)), soft_wrap=True)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    table.add_column("step", justify="right", no_wrap=True)
    table.add_column("role", no_wrap=True)
    table.add_column("is", no_wrap=True)
    table.add_column("to merge it", no_wrap=True)
    commands = [
        _spell_command(each) or f"{each.path} (nothing to merge)" for each in run.checkpoints
    ]
    for each, command in zip(run.checkpoints, commands, strict=True):
        step = "" if each.step is None else str(each.step)
        table.add_row(step, each.role or "", each.format.title, Text(command))
    wide = out.measure(table, options=out.options.update(max_width=sys.maxsize)).maximum
    if wide > out.width:
        table.columns.pop()
        out.print(table)
        for command in commands:
            out.print(f" {command}", soft_wrap=True)
    else:
        out.print(table)
    if any(command.endswith(_CONFIG) for command in commands):
        out.print("MODEL: the folder of the model that was trained, for its config.json.")
    if not run.is_whole:
        out.print("Not all folders were looked at: name one of those in it.")


def _spell_command(listed: Listed) -> str:
    """What makes a model of it; empty where it is one, or nothing does."""
    if not listed.format.merge_command:
        return ""
    named = "" if listed.config is not None else _CONFIG
    return f"ckpt merge {shlex.quote(str(listed.path))} OUT{named}"
