"""How far the work is: bars on a terminal; where there is none, a line now and then for a log."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from ckpt_tool.cli import ui
from ckpt_tool.common.launchers import count_processes
from ckpt_tool.common.progress import BYTES, NoProgress, Progress
from ckpt_tool.common.wording import format_bytes, format_seconds

#: Between two lines where there is no terminal; of what takes less time nothing is said.
SECONDS = 30.0

#: Set by the global ``--quiet``.
quiet = False


@contextmanager
def show_progress(*, silent: bool) -> Iterator[Progress]:
    """What is told how far the work is, and shows it on stderr; nothing where that is not wanted.

    A bar where stderr is a terminal; otherwise a line every :data:`SECONDS`.
    """
    if quiet or silent:
        yield NoProgress()
    elif sys.stderr.isatty():
        with _show_bars() as bars:
            yield bars
    else:
        lines = Lines(ui.say)
        with _repeat(lines.speak, SECONDS):
            yield lines


@contextmanager
def _repeat(work: Callable[[], None], seconds: float) -> Iterator[None]:
    """Do ``work`` every so many seconds, in a thread of its own, if one is to be had."""
    from ckpt_tool.common.threads import start

    over = threading.Event()

    def run() -> None:
        while not over.wait(seconds):
            work()

    thread = threading.Thread(target=run, name="ckpt-signs", daemon=True)
    with suppress(MemoryError, RuntimeError):
        start(thread)
    try:
        yield
    finally:
        over.set()
        if thread.ident is not None:
            thread.join()


@dataclass
class _Phase:
    """What is being done; when something was said last, ``at`` then, ``seen`` of it were done."""

    what: str
    total: int | None
    unit: str
    began: float
    at: float
    done: int = 0
    seen: int = 0

    def describe(self, now: float) -> str:
        """What is done, the share of all, how fast since the last time, and how long it will take.

        Where nothing moved, or nobody knows how much there is: for how long it has gone on.
        """
        said = [f"{self.what}{self.amount()}"]
        speed = (self.done - self.seen) / max(now - self.at, 1e-9)
        if self.unit == BYTES and self.total is not None:
            said.append(f"{format_bytes(speed)}/s")
        if self.total is not None and speed > 0:
            said.append(f"{format_seconds((self.total - self.done) / speed)} left")
        else:
            said.append(f"for {format_seconds(now - self.began)} so far")
        self.seen, self.at = self.done, now
        return ", ".join(said)

    def amount(self) -> str:
        """How much is done, of how much; empty where there is nothing to count."""
        if self.total is None:
            return f": {self._count(self.done)}" if self.done else ""
        share = min(1.0, self.done / max(self.total, 1))
        done = f"{self.done:,}" if self.unit != BYTES else format_bytes(self.done)
        return f": {done} of {self._count(self.total)} ({share:.0%})"

    def _count(self, amount: int) -> str:
        return format_bytes(amount) if self.unit == BYTES else f"{amount:,} {self.unit}"


class Lines:
    """Says in a line how far the work is, whenever it is asked to.

    ``say``: is given each line; ``clock``: seconds. Before the first line, or as soon as it is
    known, what all of the work is. Of several processes each has its share, and one speaks.
    """

    def __init__(
        self, say: Callable[[str], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._say = say
        self._clock = clock
        self._lock = threading.Lock()
        self._work = ""
        self._has_spoken = False
        self._phase: _Phase | None = None

    def announce(self, work: str) -> None:
        """What all of the work is."""
        with self._lock:
            count = count_processes()
            self._work = work if count == 1 else f"{work}; of {count} processes this is the first"
            if self._has_spoken:
                self._say_work()

    def start(self, what: str, total: int | None, unit: str = BYTES) -> None:
        """A new phase: see :class:`~ckpt_tool.common.progress.Progress`."""
        with self._lock:
            now = self._clock()
            self._phase = _Phase(what, total, unit, now, now)

    def advance(self, amount: int) -> None:
        """So much more of it is done."""
        with self._lock:
            if self._phase is not None:
                self._phase.done += amount

    def speak(self) -> None:
        """Say how far it is."""
        with self._lock:
            if self._phase is not None:
                self._has_spoken = True
                self._say_work()
                self._say(self._phase.describe(self._clock()))

    def _say_work(self) -> None:
        if self._work:
            self._say(self._work)
            self._work = ""


@contextmanager
def _show_bars() -> Iterator[Progress]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )
    from rich.progress import Progress as Bars
    from rich.table import Column

    def whole() -> Column:
        return Column(no_wrap=True)

    columns = (
        TextColumn("{task.description:10}"),
        BarColumn(),
        _counting(DownloadColumn(table_column=whole())),
        _measured(TransferSpeedColumn(table_column=whole())),
        _measured(TimeRemainingColumn(elapsed_when_finished=True, table_column=whole())),
    )
    with Bars(*columns, console=Console(stderr=True)) as bars:
        yield Bar(bars)


def _counting(column: Any) -> Any:
    """The column; what was counted in words is in its place."""
    measured = _measured(column)
    show = measured.render
    measured.render = lambda task: task.fields["counted"] or show(task)
    return measured


def _measured(column: Any) -> Any:
    """The column, empty where there are no bytes to measure."""
    show = column.render
    column.render = lambda task: "" if task.total is None or task.fields["counted"] else show(task)
    return column


class Bar:
    """Adapts Rich's progress to :class:`ckpt_tool.common.progress.Progress`.

    What nobody can measure is gone when it is over: its bar would go on moving.
    """

    def __init__(self, bars: Any) -> None:
        self._bars = bars
        self._task: Any = None
        self._phase = _Phase("", None, BYTES, 0.0, 0.0)

    def announce(self, work: str) -> None:
        """The result will say it."""

    def start(self, what: str, total: int | None, unit: str = BYTES) -> None:
        """A new bar, which is not shown where there is nothing to do."""
        if self._task is not None and self._phase.total is None:
            self._bars.remove_task(self._task)
        self._phase = _Phase(what, total, unit, 0.0, 0.0)
        self._task = self._bars.add_task(what, total=total, counted="", visible=total != 0)

    def advance(self, amount: int) -> None:
        """So much more of it is done; what is no bytes is counted in words."""
        if self._phase.unit == BYTES:
            self._bars.advance(self._task, amount)
            return
        self._phase.done += amount
        self._bars.update(
            self._task, advance=amount, counted=self._phase.amount().removeprefix(": ")
        )
