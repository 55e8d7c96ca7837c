"""Options that several commands have."""

from __future__ import annotations

from typing import Annotated

import typer

AsJson = Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")]
Jobs = Annotated[int, typer.Option(min=0, help="Threads. [default: one per core, 2 to 4]")]
