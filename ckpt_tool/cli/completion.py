"""Completion in shells: the script for one, and the answers to what it asks."""

from __future__ import annotations

import os
from typing import Any

import typer

SHELLS = "bash|zsh|fish"
#: Both names of the program; each script asks through a variable of its own.
_PROGRAMS = ("ckpt", "ckpt-tool")


def answer_shells() -> None:
    """Make the program answer where a shell asks it; typer alone would do it at every start."""
    if any(_spell_variable(program) in os.environ for program in _PROGRAMS):
        from typer.completion import completion_init  # type: ignore[attr-defined]

        completion_init()


def print_script(shell: str | None) -> None:
    """The callback of ``--show-completion``: the script for ``shell``, on stdout."""
    if shell is None:
        return
    from typer.completion import get_completion_script  # type: ignore[attr-defined]

    if shell not in SHELLS.split("|"):
        raise typer.BadParameter(f"{shell!r} is none of {SHELLS.replace('|', ', ')}")
    for program in _PROGRAMS:
        variable = _spell_variable(program)
        typer.echo(get_completion_script(prog_name=program, complete_var=variable, shell=shell))
    raise typer.Exit


def offer(words: str) -> Any:
    """What completes the value of an option: ``auto|keep`` offers two.

    >>> offer("auto|keep")()
    ['auto', 'keep']
    """
    return lambda: words.split("|")


def _spell_variable(program: str) -> str:
    return f"_{program.replace('-', '_').upper()}_COMPLETE"
