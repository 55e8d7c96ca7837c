"""Ctrl-C and SIGTERM end the program with 130: before a command is at work as in its midst."""

from __future__ import annotations

import os
import signal
import sys
from contextlib import suppress

EXIT_INTERRUPTED = 130


def expect_interrupts() -> None:
    """Leave at once on Ctrl-C, while nothing is done yet: typer would leave with 1."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not under nohup
        signal.signal(signal.SIGINT, _leave)


def raise_interrupts() -> None:
    """From now on both are KeyboardInterrupt, so that what is at work can clear up."""
    signal.signal(signal.SIGTERM, _interrupt)
    if signal.getsignal(signal.SIGINT) is _leave:
        signal.signal(signal.SIGINT, _interrupt)


def _interrupt(signum: int, frame: object) -> None:
    remote = sys.modules.get("ckpt_tool.common.remote.files")
    if remote is not None:  # who waits for a server that is silent would not hear of it
        remote.give_up()
    raise KeyboardInterrupt


def leave_requests() -> None:
    """End the program where requests are under way that nobody waits for any more."""
    remote = sys.modules.get("ckpt_tool.common.remote.files")
    if remote is None or not remote.is_busy():
        return
    from ckpt_tool.common.remote.shadow import clear

    clear()
    with suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(EXIT_INTERRUPTED)


def _leave(signum: int, frame: object) -> None:
    with suppress(OSError):
        print("ckpt: interrupted.", file=sys.stderr)  # noqa: T201
    raise SystemExit(EXIT_INTERRUPTED)
