"""Options that several commands have."""

from __future__ import annotations

from typing import Annotated

import typer

AsJson = Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")]
Jobs = Annotated[int, typer.Option(min=0, help="Threads. [default: one per core, 2 to 4]")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace OUT if it is there.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on where an interrupted run stopped.")]
DirectIo = Annotated[
    bool | None,
    typer.Option(
        "--direct-io/--no-direct-io",
        help="Write past the page cache. [default: unless --no-fsync]",
        show_default=False,
    ),
]
Fsync = Annotated[
    bool,
    typer.Option("--fsync/--no-fsync", help="Wait until the result is on disk before it appears."),
]
