"""The ``ckpt`` program: commands are registered here, their work is imported when they run."""

from __future__ import annotations

import gc
import io
import os
import sys
from typing import Annotated

import typer

from ckpt_tool.cli import inspect, merge, progress, to_mcore, ui, verify
from ckpt_tool.cli.completion import SHELLS, answer_shells, print_script
from ckpt_tool.cli.examples import EXAMPLES
from ckpt_tool.cli.help import MAX_WIDTH, Command, Group
from ckpt_tool.cli.interrupts import expect_interrupts, leave_stores
from ckpt_tool.common.version import __version__

app = typer.Typer(
    cls=Group,
    name="ckpt",
    help="Turn sharded training checkpoints into Hugging Face models: exact, safe, streamed."
    "\n\nckpt help COMMAND, or ckpt COMMAND --help, has its options and examples.",
    epilog=EXAMPLES[""],
    no_args_is_help=True,
    add_completion=False,
    # Both would import rich at start-up, which costs more than everything else together.
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": MAX_WIDTH},
)
app.command("inspect", cls=Command, epilog=EXAMPLES["inspect"])(inspect.inspect)
app.add_typer(merge.app, name="merge")
app.command("verify", cls=Command, epilog=EXAMPLES["verify"])(verify.verify)
app.command(
    "to-mcore",
    cls=Command,
    epilog=EXAMPLES["to-mcore"],
    short_help="Write a Hugging Face model as a megatron-core checkpoint.",
)(to_mcore.to_mcore)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"ckpt-tool {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option("-V", "--version", callback=_version, is_eager=True, help="Show the version."),
    ] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", help="Show tracebacks and complete lists with errors.")
    ] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", help="Show no progress; warnings and errors stay.")
    ] = False,
    show_completion: Annotated[
        str | None,
        typer.Option(
            metavar=SHELLS,
            callback=print_script,
            is_eager=True,
            help="Print what makes this shell complete commands and options.",
        ),
    ] = None,
) -> None:
    ui.verbose = verbose
    progress.quiet = quiet


def main() -> None:
    """Run the program; exits with 0, 1 (differs), 2 (cannot) or 130 (interrupted)."""
    expect_interrupts()
    _open_streams()
    # A short-lived process makes many small objects and no cycles of any size.
    gc.set_threshold(100_000, 50, 50)
    if isinstance(sys.stdout, io.TextIOWrapper):  # whatever the encoding, names can be shown
        sys.stdout.reconfigure(errors="backslashreplace")
    # numpy's linear algebra would start a thread per core, which ours would have to share with it.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    answer_shells()
    try:
        app()
    except SystemExit as ended:
        leave_stores(ended.code)
        raise
    finally:
        gc.freeze()  # the interpreter would look for cycles in all there is before it ends


def _open_streams() -> None:
    """Give what was closed (``>&-``) to nobody: the next file to be opened would get its number.

    Then what a library prints would go into that file.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
