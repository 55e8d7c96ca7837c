"""The commands of the program, as typer has them."""

from collections.abc import Iterator
from typing import Any

import typer

from ckpt_tool.cli.app import app


def _commands(command: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if not path or not hasattr(command, "commands"):
        yield path, command
    for name, inner in getattr(command, "commands", {}).items():
        yield from _commands(inner, f"{path} {name}".strip())


#: Every command that can be given options, by what one types; the program itself as "".
COMMANDS = dict(_commands(typer.main.get_command(app)))
