"""What every scenario yields, and what all of them hold the tool against: ``cp``."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.bench.measure import Command, Runs, measure

NO_FSYNC = "--no-fsync"
READ_BOTH = "cat both"
TOOL = (sys.executable, "-m", "ckpt_tool")
_COPY = 'out=$1; shift; mkdir "$out" && cp -- "$@" "$out/"'

Say = Callable[[str], None]


@dataclass(frozen=True)
class Measurement:
    """A command's runs. ``reference``: the label it is held against.

    ``budget``: of the ratio to it. ``limit``: seconds that it may take. ``input_bytes``: of the
    checkpoint read, where it is not the result's. ``shows_memory``: its memory too is of interest.
    """

    label: str
    runs: Runs
    reference: str | None = None
    budget: float | None = None
    input_bytes: int | None = None
    shows_memory: bool = False
    limit: float | None = None


@dataclass
class Result:
    """All that was measured on one kind of checkpoint. ``tool``: the label of the tool's runs."""

    name: str
    title: str
    tool: str
    memory_budget: int
    input_bytes: int = 0
    small_bytes: int = 0
    small_memory: int = 0
    measurements: list[Measurement] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def find(self, label: str) -> Runs:
        return next(found.runs for found in self.measurements if found.label == label)


def measure_held(
    result: Result,
    commands: Sequence[tuple[Command, str | None]],
    files: Sequence[Path],
    repeat: int,
    *,
    budget: float,
    say: Say,
) -> None:
    """Add the runs of ``commands``; those with the label of a reference have the budget."""
    alone = [command for command, _ in commands]
    runs = measure(alone, files, repeat, lambda text: say(f"{result.name}: {text}"))
    for command, reference in commands:
        held = budget if reference is not None else None
        result.measurements.append(Measurement(command.label, runs[command.label], reference, held))


def copies(files: Sequence[Path], out: Path, size: int) -> list[Command]:
    """``cp`` of the files to the new folder ``out``, with and without waiting for the disk."""
    arguments = ("sh", str(out), *map(str, files))
    return [
        Command("cp + sync", ("sh", "-c", f'{_COPY} && sync "$out"/*', *arguments), out, size),
        Command("cp", ("sh", "-c", _COPY, *arguments), out, size),
    ]


def available_memory() -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) << 10
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
