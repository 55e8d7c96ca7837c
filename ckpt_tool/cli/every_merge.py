"""The options that every ``ckpt merge`` gets in one piece."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ckpt_tool.cli import ui
from ckpt_tool.cli.completion import offer
from ckpt_tool.cli.crc import CheckCrc
from ckpt_tool.cli.options import (
    AsJson,
    Base,
    DirectIo,
    DryRun,
    DType,
    FillFrom,
    Fsync,
    Jobs,
    LoraAlpha,
    Manifest,
    Overwrite,
    Resume,
    Step,
    Verify,
    Weights,
    settle_config,
)
from ckpt_tool.common.errors import UsageError

if TYPE_CHECKING:
    from ckpt_tool.operations.options import MergeOptions, RunOptions
    from ckpt_tool.operations.upload import Upload


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

    @property
    def is_of_run(self) -> bool:
        """Whether several steps are asked for; UsageError for what is about them without them."""
        asked = self.values["steps"] is not None
        if self.values["watch"] and not asked:
            raise UsageError("--watch: needs --steps", hint="Name them: --steps all, or latest.")
        if self.values["watch_every"] is not None and not self.values["watch"]:
            raise UsageError("--watch-every is about --watch, which is not given")
        return asked

    def run_options(self) -> RunOptions:
        """Which steps of a run are asked for."""
        from ckpt_tool.operations.options import RunOptions

        values = self._take(RunOptions)
        return RunOptions(**{name: value for name, value in values.items() if value is not None})

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
            metavar="DIR|ORG/NAME|none",
            help="Take config and tokenizer from DIR, or from a repository of the Hub; none: write"
            " weights and index only.",
        ),
    ] = None,
    step: Step = None,
    steps: Annotated[
        str | None,
        typer.Option(
            metavar="all|N,N|latest",
            help="Merge these steps of a run's folder, one after the other, into OUT with {step} in"
            " it; what is complete there is not written again.",
        ),
    ] = None,
    watch: Annotated[
        bool,
        typer.Option("--watch", help="With --steps: go on with each step that comes, till Ctrl-C."),
    ] = False,
    watch_every: Annotated[
        float | None,
        typer.Option(
            metavar="SECONDS",
            min=0.1,
            help="With --watch: between two looks. [default: 30]",
            show_default=False,
        ),
    ] = None,
    tokenizer: Annotated[
        str | None,
        typer.Option(
            metavar="DIR|ORG/NAME",
            help="Take the tokenizer from there. [default: with the shards, else with the config]",
            show_default=False,
        ),
    ] = None,
    dtype: DType = "auto",
    max_shard_size: Annotated[
        str, typer.Option(metavar="SIZE", help="Largest weight file: 5GB, 500MB, 4GiB.")
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
            autocompletion=offer("fuse|split|both"),
            help="LoRA adapters: fuse them into the model, write base model and adapter folder"
            " apart, or both. [default: fuse]",
        ),
    ] = None,
    lora_alpha: LoraAlpha = None,
    base: Base = None,
    fill_from: FillFrom = None,
    weights: Weights = "model",
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
    check_crc: CheckCrc = None,
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
    card: Annotated[
        bool,
        typer.Option("--card/--no-card", help="Write a model card, README.md, for people."),
    ] = True,
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
