"""``ckpt merge``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ckpt_tool.cli.every_merge import Request, add_merge_options
from ckpt_tool.cli.examples import EXAMPLES
from ckpt_tool.cli.merging import run_merge
from ckpt_tool.cli.options import Prefix, RenameParts, Select, settle_names
from ckpt_tool.cli.words import NO_WORD, PathsCommand, WordGroup, WordlessCommand

app = typer.Typer(
    cls=WordGroup,
    help="Merge a sharded checkpoint into a Hugging Face model folder.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

Out = Annotated[
    Path,
    typer.Argument(metavar="OUT", help="The model folder to write, or its address (s3://...)."),
]


Ckpt = Annotated[
    list[Path],
    typer.Argument(
        metavar="CKPT",
        help="A checkpoint, or the run above it: folder or address (s3://...); several: per node.",
    ),
]
CheckReplicas = Annotated[
    bool, typer.Option("--check-replicas", help="Read HSDP replicas too: they must be equal.")
]


@app.command(NO_WORD, cls=WordlessCommand, hidden=True, epilog=EXAMPLES["merge"])
@add_merge_options
def any_format(
    ckpt: Ckpt,
    out: Out,
    request: Request,
    prefix: Prefix = "",
    select: Select = None,
    rename: RenameParts = None,
    check_replicas: CheckReplicas = False,
) -> None:
    """Merge a sharded checkpoint into a Hugging Face model folder.

    The format is recognised, and said. A word before CKPT insists on one: COMMAND below, which has
    a help of its own; write ./fsdp where a folder is called so.

    OUT appears complete or not at all. Exits with 1 where --verify finds a difference, with 2
    where the checkpoint or the request is not sound.
    """
    names = settle_names(prefix, select, rename)
    options = request.options(names=names, check_replicas=check_replicas)
    run_merge("", ckpt, out, options, request)


@app.command(
    "fsdp",
    cls=PathsCommand,
    short_help="FSDP rank files (verl, VeOmni: FSDP1, FSDP2, HSDP, FSDP+TP).",
    epilog=EXAMPLES["merge fsdp"],
)
@add_merge_options
def fsdp(ckpt: Ckpt, out: Out, request: Request, check_replicas: CheckReplicas = False) -> None:
    """Merge FSDP rank files (verl, VeOmni: FSDP1, FSDP2, HSDP, FSDP+TP).

    OUT appears complete or not at all. Exits with 1 where --verify finds a difference, with 2
    where the checkpoint or the request is not sound.
    """
    run_merge("fsdp", ckpt, out, request.options(check_replicas=check_replicas), request)


@app.command(
    "megatron",
    cls=PathsCommand,
    short_help="Megatron (verl, Megatron-LM, slime, NeMo): torch_dist or rank files.",
    epilog=EXAMPLES["merge megatron"],
)
@add_merge_options
def megatron(ckpt: Ckpt, out: Out, request: Request) -> None:
    """Merge a checkpoint of Megatron (verl, Megatron-LM, slime, NeMo): torch_dist or rank files.

    Of any tensor, pipeline and expert parallel sizes; the padding of the vocabulary is cut off,
    and optimizer state beside the model left out. OUT appears complete or not at all. Exits with 1
    where --verify finds a difference, with 2 where the checkpoint or the request is not sound.
    """
    run_merge("megatron", ckpt, out, request.options(), request)


@app.command(
    "dcp",
    cls=PathsCommand,
    short_help="torch.distributed.checkpoint (accelerate, Lightning, torchtitan).",
    epilog=EXAMPLES["merge dcp"],
)
@add_merge_options
def dcp(
    ckpt: Ckpt,
    out: Out,
    request: Request,
    prefix: Prefix = "",
    select: Select = None,
    rename: RenameParts = None,
) -> None:
    """Merge a folder of torch.distributed.checkpoint (accelerate, Lightning, torchtitan).

    Also its shards of a Hugging Face model, and a state dict in one file of torch.save.
    Dictionaries around the model are found, and state of training beside it is left out. OUT
    appears complete or not at all. Exits with 1 where --verify finds a difference, with 2 where
    the checkpoint or the request is not sound.
    """
    names = settle_names(prefix, select, rename)
    run_merge("dcp", ckpt, out, request.options(names=names), request)


@app.command(
    "deepspeed",
    cls=PathsCommand,
    short_help="DeepSpeed (ZeRO 0 to 3; the Trainer's, accelerate's, Lightning's).",
    epilog=EXAMPLES["merge deepspeed"],
)
@add_merge_options
def deepspeed(
    ckpt: Ckpt,
    out: Out,
    request: Request,
    prefix: Prefix = "",
    select: Select = None,
    rename: RenameParts = None,
) -> None:
    """Merge a checkpoint of DeepSpeed (ZeRO 0 to 3; the Trainer's, accelerate's, Lightning's).

    What was trained is taken from the float32 weights of the optimizer, and cast as --dtype says.
    OUT appears complete or not at all. Exits with 1 where --verify finds a difference, with 2
    where the checkpoint or the request is not sound.
    """
    names = settle_names(prefix, select, rename)
    run_merge("deepspeed", ckpt, out, request.options(names=names), request)
