"""Options that several commands have."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ckpt_tool.cli.completion import offer
from ckpt_tool.common.launchers import MAX_JOBS

if TYPE_CHECKING:
    from ckpt_tool.operations.options import NameOptions

_DTYPES = "auto|keep|bfloat16|float16|float32"
_WEIGHTS = "model|optimizer"

# --- how the command works
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")]
Jobs = Annotated[
    int,
    typer.Option(
        metavar="N",
        min=0,
        max=MAX_JOBS,
        help="Threads. [default: one per core, 2 to 4]",
        show_default=False,
    ),
]
Verify = Annotated[bool, typer.Option("--verify", help="Read back what was written, bit for bit.")]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Show what would be written; write nothing.")
]
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
Manifest = Annotated[
    bool, typer.Option("--manifest/--no-manifest", help="Say in ckpt_manifest.json what it is.")
]

# --- what the result is
DType = Annotated[
    str,
    typer.Option(
        metavar=_DTYPES,
        autocompletion=offer(_DTYPES),
        help="auto: what config.json says. What its class holds as float32 stays.",
    ),
]

# --- which of a run's
Step = Annotated[
    str | None,
    typer.Option(
        metavar="N|latest",
        help="Of a run's folder the checkpoint of step N; latest: of the step that its tracker file"
        " names, else of the highest. [default: the tracker file's]",
        show_default=False,
    ),
]

# --- how tensors get their names on the Hub
LoraAlpha = Annotated[
    float | None,
    typer.Option(metavar="X", help="LoRA's alpha, where the checkpoint does not say it."),
]
Base = Annotated[
    Path | None,
    typer.Option(metavar="MODEL", help="The model folder of adapters that were saved alone."),
]
FillFrom = Annotated[
    Path | None,
    typer.Option(
        metavar="BASE",
        help="Take what the checkpoint lacks of its model from this model folder: a frozen tower,"
        " layers for multi-token prediction.",
        show_default=False,
    ),
]
Weights = Annotated[
    str,
    typer.Option(
        metavar=_WEIGHTS,
        autocompletion=offer(_WEIGHTS),
        help="optimizer: the float32 weights in the state of Megatron's distributed optimizer"
        " (torch_dist).",
    ),
]
Prefix = Annotated[
    str,
    typer.Option(
        metavar="NAMES",
        help="Take the tensors below this, like app.model, and cut it off. [default: found]",
    ),
]
Select = Annotated[
    list[str] | None,
    typer.Option(metavar="GLOB", help="Only tensors whose name in CKPT matches; may be repeated."),
]
RenameParts = Annotated[
    list[str] | None,
    typer.Option(
        "--rename",
        metavar="OLD=NEW",
        help="Replace OLD, whole parts of a name between dots (^OLD: at its beginning), by NEW;"
        " a * is anything but a dot, and the same in NEW. May be repeated, in order.",
    ),
]


def settle_config(asked: str | None) -> dict[str, Any]:
    """What ``--config`` is to the library; None: nothing was asked.

    ``./a/b`` stays what it is: the folder, and not a repository of that name.
    """
    if asked == "none":
        return {"config": None, "keep_names": True}
    return {"config": asked, "keep_names": False}


def settle_names(prefix: str, select: list[str] | None, rename: list[str] | None) -> NameOptions:
    """What ``--prefix``, ``--select`` and ``--rename`` are to the library."""
    from ckpt_tool.operations.options import NameOptions

    return NameOptions(prefix, tuple(select or ()), tuple(rename or ()))
