"""How the program ends early: with 130 on Ctrl-C and SIGTERM, at work as before it.

And with its own exit code where a store was asked.
"""

from __future__ import annotations

import atexit
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


def leave_stores(code: object) -> None:
    """End the program with ``code`` where a store was asked: nobody waits for it any more.

    What its library has under way comes back into an interpreter that is ending, which ends such
    threads: they cannot be, and abort the program with a code that says nothing.
    """
    if "ckpt_tool.common.remote.listing" not in sys.modules:
        return
    atexit._run_exitfuncs()
    with suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code if isinstance(code, int) else int(code is not None))


def _leave(signum: int, frame: object) -> None:
    with suppress(OSError):
        print("ckpt: interrupted.", file=sys.stderr)  # noqa: T201
    raise SystemExit(EXIT_INTERRUPTED)
