"""The numbers as a table for people and as JSON, with what they were measured on."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from tests.bench.results import READ_BOTH, Measurement, Result

WIDTH = 100
_MEMORY = "peak memory"
#: Besides what is held against a reference, the commands that move the whole checkpoint.
_MOVES_ALL = {READ_BOTH, "cp", "cp + sync", "floor", "floor + sync", "floor, 1 thread"}


def facts(folder: Path) -> dict[str, Any]:
    """The machine and the versions; ``load`` tells whether others were busy on it."""
    return {
        "cores": len(os.sched_getaffinity(0)),
        "cpu": _first_value(Path("/proc/cpuinfo"), "model name"),
        "memory": _first_value(Path("/proc/meminfo"), "MemTotal"),
        "kernel": platform.release(),
        "file_system": _file_system(folder),
        "load": os.getloadavg()[0],
        "python": platform.python_version(),
        **{name: version(name) for name in ("numpy", "torch", "safetensors")},
    }


def as_json(machine: dict[str, Any], results: Sequence[Result]) -> dict[str, Any]:
    """Everything: each run, and the table's ratios and verdicts."""
    return {"machine": machine, "variants": [_variant_json(result) for result in results]}


def show(machine: dict[str, Any], results: Sequence[Result]) -> None:
    """Print the table to stdout, in plain text of at most :data:`WIDTH` columns."""
    console = Console(width=WIDTH, highlight=False)
    with console.capture() as shown:
        _print(console, machine, results)
    sys.stdout.write(
        "\n".join(line.rstrip() for line in shown.get().splitlines()).strip("\n") + "\n"
    )


def _print(console: Console, machine: dict[str, Any], results: Sequence[Result]) -> None:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    table.add_column("", no_wrap=True)
    for name in ("seconds", "GB/s", "user", "sys"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("result", no_wrap=True)
    table.add_column("budget", justify="right", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    for result in results:
        title = f"{result.name}: {_gigabytes(result.input_bytes)} {result.title}"
        table.add_row(f"[bold]{title}[/bold]")
        for row in _rows(result):
            table.add_row(*row)
        table.add_section()
    console.print(table)
    console.print(
        "seconds: whole process, median; user, sys: its CPU time. GB/s: of the checkpoint read."
        " Peak memory: of ckpt merge fsdp or ckpt to-mcore, anonymous, any run; else of the"
        " largest process."
    )
    for result in results:
        for note in result.notes:
            console.print(note)
    console.print(
        "{cores} cores of {cpu}, {memory}, Linux {kernel}, {file_system}, load {load:.1f};"
        " Python {python}, numpy {numpy}, torch {torch}".format(**machine)
    )


def _rows(result: Result) -> Iterator[tuple[str, ...]]:
    for found in result.measurements:
        runs, ratio = found.runs, _ratio(result, found)
        whole = found.reference or found.input_bytes or found.label in _MOVES_ALL
        yield (
            f"  {found.label}",
            f"{runs.seconds:.2f}",
            f"{_rate(result, found) / 1e9:.2f}" if whole else "",
            f"{runs.user:.2f}",
            f"{runs.system:.2f}",
            "" if ratio is None else f"{ratio:.2f} x {found.reference}",
            _budget_text(found),
            _judge(found, ratio),
        )
        if found.shows_memory:
            yield ("    its peak memory", *("",) * 4, _mebibytes(runs.largest))
            yield ("    with files mapped", *("",) * 4, _mebibytes(runs.resident))
    memory = result.find(result.tool).anonymous
    yield (
        f"  {_MEMORY}",
        *("",) * 4,
        _mebibytes(memory),
        _mebibytes(result.memory_budget),
        _verdict(memory, result.memory_budget),
    )
    small = f"  {_MEMORY} at {_gigabytes(result.small_bytes)}"
    yield (small, *("",) * 4, _mebibytes(result.small_memory))


def _variant_json(result: Result) -> dict[str, Any]:
    memory = result.find(result.tool).anonymous
    return {
        "name": result.name,
        "checkpoint": result.title,
        "input_bytes": result.input_bytes,
        "measurements": [_measurement_json(result, found) for found in result.measurements],
        "memory": {
            "peak_bytes": memory,
            "budget_bytes": result.memory_budget,
            "verdict": _verdict(memory, result.memory_budget),
            "small_input_bytes": result.small_bytes,
            "small_peak_bytes": result.small_memory,
        },
        "notes": result.notes,
    }


def _measurement_json(result: Result, found: Measurement) -> dict[str, Any]:
    ratio = _ratio(result, found)
    return {
        "what": found.label,
        "median_seconds": found.runs.seconds,
        "input_bytes": found.input_bytes or result.input_bytes,
        "bytes_per_second": _rate(result, found),
        "reference": found.reference,
        "ratio": ratio,
        "median_round_ratio": _round_ratio(result, found),
        "budget": found.budget,
        "budget_seconds": found.limit,
        "verdict": _judge(found, ratio) or None,
        "peak_anonymous_bytes": found.runs.anonymous,
        "peak_of_one_process_bytes": found.runs.largest,
        "peak_resident_bytes": found.runs.resident,
        "runs": [vars(run) for run in found.runs.runs],
    }


def _rate(result: Result, found: Measurement) -> float:
    """Bytes of the checkpoint read per second."""
    return (found.input_bytes or result.input_bytes) / found.runs.seconds


def _ratio(result: Result, found: Measurement) -> float | None:
    """Of the medians."""
    if found.reference is None:
        return None
    return found.runs.seconds / result.find(found.reference).seconds


def _round_ratio(result: Result, found: Measurement) -> float | None:
    """The median of each round's ratio: steadier where the machine's speed drifts."""
    if found.reference is None:
        return None
    others = result.find(found.reference).runs
    pairs = zip(found.runs.runs, others, strict=False)  # the baseline runs once
    return median(run.seconds / other.seconds for run, other in pairs)


def _budget_text(found: Measurement) -> str:
    if found.limit is not None:
        return f"{found.limit:.1f} s"
    return "" if found.budget is None else f"{found.budget}"


def _judge(found: Measurement, ratio: float | None) -> str:
    """Whether it keeps to its budget, of the ratio or in seconds; empty where it has none."""
    return _verdict(ratio, found.budget) or _verdict(found.runs.seconds, found.limit)


def _verdict(value: float | None, budget: float | None) -> str:
    if value is None or budget is None:
        return ""
    return "ok" if value <= budget else "over"


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.2f} GB"


def _mebibytes(size: int) -> str:
    return f"{size / (1 << 20):.0f} MiB"


def _first_value(path: Path, key: str) -> str:
    for line in path.read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() == key:
            return value.strip()
    return "unknown"


def _file_system(folder: Path) -> str:
    """The type of the longest mount point above ``folder``."""
    best, kind = Path("/"), "unknown"
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, mount, found, *_ = line.split()
        where = Path(mount.replace("\\040", " "))
        if folder.resolve().is_relative_to(where) and len(where.parts) >= len(best.parts):
            best, kind = where, found
    return kind
