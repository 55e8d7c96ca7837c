"""Options that several commands have, and those that every ``ckpt merge`` gets in one piece."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ckpt_tool.cli import ui
from ckpt_tool.common.errors import UsageError

if TYPE_CHECKING:
    from ckpt_tool.operations.options import MergeOptions
    from ckpt_tool.operations.upload import Upload

# --- how the command works
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")]
Jobs = Annotated[
    int,
    typer.Option(
        metavar="N", min=0, help="Threads. [default: one per core, 2 to 4]", show_default=False
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
        metavar="auto|keep|bfloat16|float16|float32",
        help="auto: what config.json says. What its class holds as float32 stays.",
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
    """What ``--config DIR|none`` is to the library; None: nothing was asked."""
    if asked == "none":
        return {"config": None, "keep_names": True}
    return {"config": None if asked is None else Path(asked), "keep_names": False}


@dataclass(frozen=True)
class Request:
    """What the options ask for. ``values``: all of them by name, those of one command included."""

    values: dict[str, Any]

    @property
    def dry_run(self) -> bool:
        """Whether nothing is to be written."""
        return bool(self.values["dry_run"])

    @property
    def as_json(self) -> bool:
        """Whether the result is one JSON object."""
        return bool(self.values["as_json"])

    def upload(self) -> Upload | None:
        """Where the model goes when it is complete; UsageError for --private without --upload."""
        repo, private = self.values["upload"], self.values["private"]
        if repo is None and private:
            raise UsageError("--private is about --upload, which is not given")
        if repo is None:
            return None
        from ckpt_tool.operations.upload import Upload

        return Upload(repo, private)

    def options(self, **more: Any) -> MergeOptions:
        """The options as the library takes them, with ``more`` that only one command has."""
        from ckpt_tool.mapping.lora.options import LoraOptions
        from ckpt_tool.operations.options import MergeOptions
        from ckpt_tool.plans.options import WriteOptions

        values = self.values
        made = {
            "lora": LoraOptions(values["lora"], values["lora_alpha"], values["base"]),
            "write": WriteOptions(**self._take(WriteOptions), direct=values["direct_io"]),
            **settle_config(values["config"]),
        }
        return MergeOptions(**self._take(MergeOptions) | made | more)

    def _take(self, options: type) -> dict[str, Any]:
        """The values that are called as fields of these options are."""
        return {
            field.name: self.values[field.name]
            for field in fields(options)
            if field.name in self.values
        }


def _every_merge(
    config: Annotated[
        str | None,
        typer.Option(
            metavar="DIR|none",
            help="Take config and tokenizer from DIR; none: write weights and index only.",
        ),
    ] = None,
    tokenizer: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Take the tokenizer from DIR. [default: with the shards, else with the config]",
            show_default=False,
        ),
    ] = None,
    dtype: DType = "auto",
    max_shard_size: Annotated[
        str, typer.Option(metavar="SIZE", help="Largest weight file, like 5GB or 500MB.")
    ] = "5GB",
    tie_word_embeddings: Annotated[
        bool | None,
        typer.Option(
            "--tie-word-embeddings/--no-tie-word-embeddings",
            help="Drop a head that equals the embedding, or keep both. [default: config.json]",
        ),
    ] = None,
    lora: Annotated[
        str | None,
        typer.Option(
            metavar="fuse|split|both",
            help="LoRA adapters: fuse them into the model, write base model and adapter folder"
            " apart, or both. [default: fuse]",
        ),
    ] = None,
    lora_alpha: LoraAlpha = None,
    base: Base = None,
    fill_from: FillFrom = None,
    value_model: Annotated[
        bool | None,
        typer.Option(
            "--value-model/--no-value-model",
            help="Require a value head; or leave trl's out. [default: what the checkpoint has]",
        ),
    ] = None,
    verify: Verify = False,
    check_load: Annotated[
        bool | None,
        typer.Option(
            "--check-load/--no-check-load",
            help="Hold the result against the class in its config, with transformers. [default: on,"
            " with a warning where it does not know the class]",
            show_default=False,
        ),
    ] = None,
    upload: Annotated[
        str | None,
        typer.Option(
            metavar="REPO",
            help="Upload OUT to this repository of the Hugging Face Hub when it is complete.",
        ),
    ] = None,
    private: Annotated[
        bool, typer.Option("--private", help="Upload to a private repository only.")
    ] = False,
    dry_run: DryRun = False,
    overwrite: Overwrite = False,
    resume: Resume = False,
    fsync: Fsync = True,
    direct_io: DirectIo = None,
    manifest: Manifest = True,
    jobs: Jobs = 0,
    as_json: AsJson = False,
) -> None:
    """The options; typer reads them from this signature."""


def add_merge_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give ``command`` these options after its own; it gets them as its argument ``request``."""
    shared = list(inspect.signature(_every_merge, eval_str=True).parameters.values())
    own = list(inspect.signature(command, eval_str=True).parameters.values())
    own = [parameter for parameter in own if parameter.name != "request"]

    @ui.guard
    @functools.wraps(command)
    def run(**values: Any) -> None:
        mine = {parameter.name: values.pop(parameter.name) for parameter in own}
        command(**mine, request=Request(values))

    every = [*own, *shared]
    run.__signature__ = inspect.Signature(every)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in every}
    return run
