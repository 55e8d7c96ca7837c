"""``ckpt to-mcore``: for each kind of model the tool, held against ``cp`` of the model's files.

The tool writes checksums and, like ``cp + sync``, waits until all is on disk; with ``--no-fsync``
it is held against ``cp`` alone. What it replaces (:mod:`tests.bench.mcore_baseline`) runs once.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.bench.generate_hf import Model, dense_model, moe_model, write_model
from tests.bench.measure import Command, Run, Runs, measure, run, run_prepared
from tests.bench.results import (
    NO_FSYNC,
    TOOL,
    Measurement,
    Result,
    Say,
    available_memory,
    copies,
    measure_held,
)

TO_MCORE = "ckpt to-mcore"
PLAN = "ckpt to-mcore --dry-run"
BASELINE = "build both models, save"

TIME_BUDGET = 1.3
MEMORY_BUDGET = 256 << 20
_BASELINE = (sys.executable, "-m", "tests.bench.mcore_baseline")


@dataclass(frozen=True)
class McoreVariant:
    """A kind of model. ``make``: the one nearest to a number of bytes."""

    name: str
    title: str
    make: Callable[[int], Model]


MCORE_VARIANTS = (
    McoreVariant("mcore", "bf16 dense", dense_model),
    McoreVariant("mcore-moe", "bf16 experts", moe_model),
)


def bench_mcore(variant: McoreVariant, size: int, repeat: int, folder: Path, say: Say) -> Result:
    """Generate, check, measure and delete a model of about ``size`` bytes.

    CommandError where anything fails, also where the tool's result is not the baseline's.
    """
    result = Result(variant.name, variant.title, TO_MCORE, MEMORY_BUDGET)
    say(f"{variant.name}: checking against the baseline on a tenth of the size")
    small = _bench_small(result, variant, size // 10, folder / "small")
    say(f"{variant.name}: generating the model")
    source = folder / "large"
    files = write_model(source, variant.make(size))
    result.input_bytes = _total(files)
    commands = _commands(source, files, result.input_bytes)
    measure_held(result, commands, files, repeat, budget=TIME_BUDGET, say=say)
    say(f"{variant.name}: baseline")
    _bench_baseline(result, source, files, small)
    plan = Command(PLAN, (*TOOL, "to-mcore", str(source), str(folder / "out"), "--dry-run"))
    result.measurements.append(Measurement(PLAN, measure([plan], [], repeat, _silent)[PLAN]))
    shutil.rmtree(source)
    return result


def _silent(_: str) -> None:
    pass


def _total(files: Sequence[Path]) -> int:
    return sum(path.stat().st_size for path in files)


def _bench_small(result: Result, variant: McoreVariant, size: int, folder: Path) -> Run:
    """The tool's result must be the baseline's; its memory here shows what grows with size.

    Returns the baseline's run.
    """
    source, out, reference = folder / "in", folder / "out", folder / "reference"
    result.small_bytes = _total(write_model(source, variant.make(size)))
    result.small_memory = run((*TOOL, "to-mcore", str(source), str(out))).anonymous
    command = (*_BASELINE, "save", str(source), str(reference))
    run(command)  # only for the libraries, which may not be in memory yet
    shutil.rmtree(reference)
    found = run(command)
    run((*_BASELINE, "compare", str(out), str(reference)))
    shutil.rmtree(folder)
    return found


def _bench_baseline(result: Result, source: Path, files: Sequence[Path], small: Run) -> None:
    """Once: it is slow. Where memory is short the run on the small model has to do."""
    needed, available = 3 * result.input_bytes + (1 << 30), available_memory()
    if available < needed:
        size = f"{result.small_bytes / 1e9:.2f} GB"
        label = f"{BASELINE}, {size}"
        found = Measurement(label, Runs([small]), input_bytes=result.small_bytes, shows_memory=True)
        result.notes.append(
            f"{result.name}: {BASELINE}: only on {size}, of which much is starting up: for all it"
            f" needs {needed / 1e9:.1f} GB of memory, {available / 1e9:.1f} GB are available"
        )
    else:
        out = source.parent / "baseline"
        argv = (*_BASELINE, "save", str(source), str(out))
        once = run_prepared(Command(BASELINE, argv, out, result.input_bytes), files)
        found = Measurement(BASELINE, Runs([once]), "cp", shows_memory=True)
    result.measurements.append(found)


def _commands(source: Path, files: Sequence[Path], size: int) -> list[tuple[Command, str | None]]:
    """The commands of a round, the tool's with the label of their reference."""
    out = source.parent / "out"
    convert = (*TOOL, "to-mcore", str(source), str(out))
    found: list[tuple[Command, str | None]] = [
        (Command(TO_MCORE, convert, out, size), "cp + sync"),
        (Command(f"{TO_MCORE} {NO_FSYNC}", (*convert, NO_FSYNC), out, size), "cp"),
    ]
    return found + [(command, None) for command in copies(files, out, size)]
