"""Running commands as the reader of the numbers would: whole processes, page cache warm.

On a virtual machine the first touch of a page costs more than all else, and free memory goes back
to the host within a second. So before every timed command the inputs are read, the disks are
synced, and memory for the output and half as much again is taken and touched; it is given back in
the moment in which the command creates its output, whether that comes at once (``cp``) or after
planning. None of this is timed, nor is the removal of outputs.
"""

from __future__ import annotations

import os
import resource
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from tests.bench.watch import Reserve, Sampler

_BLOCK = 4 << 20


class CommandError(Exception):
    """A measured command failed."""


@dataclass(frozen=True)
class Command:
    """A process to time. ``out``: the file or folder it creates, absent before it starts."""

    label: str
    argv: tuple[str, ...]
    out: Path | None = None
    out_bytes: int = 0


@dataclass(frozen=True)
class Run:
    """One run: wall time from start to exit, CPU time, largest anonymous memory in bytes.

    ``largest``: of any one process alone. Processes share what they have from before a fork, which
    ``anonymous`` counts for each. ``resident``: of any one process, with the files it has mapped.
    """

    seconds: float
    user: float
    system: float
    anonymous: int
    largest: int
    resident: int


@dataclass
class Runs:
    """The timed runs of one command, in the order of the rounds."""

    runs: list[Run] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        return median(run.seconds for run in self.runs)

    @property
    def user(self) -> float:
        return median(run.user for run in self.runs)

    @property
    def system(self) -> float:
        return median(run.system for run in self.runs)

    @property
    def anonymous(self) -> int:
        return max(run.anonymous for run in self.runs)

    @property
    def largest(self) -> int:
        return max(run.largest for run in self.runs)

    @property
    def resident(self) -> int:
        return max(run.resident for run in self.runs)


def measure(
    commands: Sequence[Command],
    inputs: Sequence[Path],
    rounds: int,
    say: Callable[[str], None],
) -> dict[str, Runs]:
    """Time ``commands`` in interleaved rounds, after one that only warms up; by label.

    Every other round goes backwards, so that none always runs after the same other one.
    CommandError where one fails.
    """
    found = {command.label: Runs() for command in commands}
    for number in range(rounds + 1):
        say(f"round {number} of {rounds}" if number else "warm-up")
        for command in commands if number % 2 else reversed(commands):
            result = run_prepared(command, inputs)
            if number:
                found[command.label].runs.append(result)
    return found


def run_prepared(command: Command, inputs: Sequence[Path]) -> Run:
    """One run under the conditions described above; its output is removed."""
    if command.out is not None:
        _remove(command.out)
    for path in inputs:
        _read(path)
    os.sync()
    if command.out is None:
        return run(command.argv)
    try:
        with Reserve(command.out_bytes * 3 // 2, command.out.parent):
            return run(command.argv)
    finally:
        _remove(command.out)


def run(argv: Sequence[str]) -> Run:
    """Run a command to its end, sampling its memory; CommandError unless it exits with 0."""
    with tempfile.TemporaryFile() as errors, open(os.devnull, "wb") as null:
        actions = [
            (os.POSIX_SPAWN_DUP2, null.fileno(), 1),
            (os.POSIX_SPAWN_DUP2, errors.fileno(), 2),
        ]
        started = time.perf_counter()
        pid = os.posix_spawnp(argv[0], list(argv), _environment(), file_actions=actions)
        with Sampler(pid) as sampler:
            status, usage = _wait(pid)
            seconds = time.perf_counter() - started
        if status:
            errors.seek(0)
            text = errors.read().decode(errors="replace").strip()
            code = os.waitstatus_to_exitcode(status)
            raise CommandError(f"exit status {code}: {' '.join(argv)[:400]}\n{text[-2000:]}")
    memory = (sampler.peak, sampler.largest, sampler.resident)
    return Run(seconds, usage.ru_utime, usage.ru_stime, *memory)


def _environment() -> dict[str, str]:
    """That of this process; but modules are kept compiled, as those of a package are."""
    return {name: at for name, at in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}


def _wait(pid: int) -> tuple[int, resource.struct_rusage]:
    try:
        _, status, usage = os.wait4(pid, 0)
    except BaseException:  # interrupted: it must not write on into a folder about to go
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        raise
    return status, usage


def _read(path: Path) -> None:
    buffer = bytearray(_BLOCK)
    with open(path, "rb", buffering=0) as file:
        while file.readinto(buffer):
            pass


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
