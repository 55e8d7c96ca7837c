"""Ctrl-C and SIGTERM end the program with 130: before a command is at work as in its midst."""

from __future__ import annotations

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
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _interrupt(signum: int, frame: object) -> None:
    raise KeyboardInterrupt


def _leave(signum: int, frame: object) -> None:
    with suppress(OSError):
        print("ckpt: interrupted.", file=sys.stderr)  # noqa: T201
    raise SystemExit(EXIT_INTERRUPTED)
