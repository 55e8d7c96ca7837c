"""``ckpt merge fsdp``: for each kind of checkpoint the tool, and what it is held against.

References, each with and without durability:

- ``cp``: ``cp`` of the rank files to a new folder; ``cp + sync``: then ``sync`` of each copy
  (fsync). Where the file system shares blocks (btrfs, xfs) ``cp`` may copy nothing, and the ratio
  means nothing.
- ``floor``: for a merge with a cast, see :mod:`tests.bench.floor`: every input byte read, every
  output byte written, one thread like ``cp`` (``floor, 2 threads``: two); ``floor + sync``: then
  fsync.

The tool syncs every file, so it is compared with the reference that does; with ``--no-fsync``,
with the one that does not.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.bench.generate import generate, spec_of_size
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
from tests.bench.verifying import bench_verify

MERGE = "ckpt merge fsdp"
#: The first merge of a config: transformers is asked what its class wants.
FIRST = "the first of its config"
#: It may take this long in all or, where the merge takes long, this much of it.
_FIRST_SECONDS = 7.0
_FIRST_SHARE = 1.05
BASELINE = "load, cat, save_file"
PLAN = "ckpt inspect --json"

MEMORY_BUDGET = 64 << 20
_BASELINE = (sys.executable, "-m", "tests.bench.baseline")
_FLOOR = (sys.executable, "-S", "-E", str(Path(__file__).with_name("floor.py")))


@dataclass(frozen=True)
class Variant:
    """A kind of checkpoint, how it is merged, and what the merge may cost."""

    name: str
    title: str
    dtype: str
    matrix_dim: int
    merge_flags: tuple[str, ...]
    output_dtype: str
    reference: str
    budget: float
    with_baseline: bool

    @property
    def casts(self) -> bool:
        return self.dtype != self.output_dtype


VARIANTS = (
    Variant(
        "keep", "bf16 Shard(0)", "bfloat16", 0, ("--dtype", "keep"), "bfloat16", "cp", 1.1, True
    ),
    Variant("cast", "fp32 to bf16", "float32", 0, (), "bfloat16", "floor", 1.1, True),
    Variant(
        "shard1", "bf16 Shard(1)", "bfloat16", 1, ("--dtype", "keep"), "bfloat16", "cp", 1.5, False
    ),
)


def bench(variant: Variant, size: int, repeat: int, folder: Path, say: Say) -> Result:
    """Generate, check, measure and delete a checkpoint of about ``size`` bytes.

    CommandError or subprocess.CalledProcessError where anything fails, also where the tool's
    result is not the baseline's.
    """
    result = Result(variant.name, variant.title, MERGE, MEMORY_BUDGET)
    say(f"{variant.name}: checking against the baseline on a tenth of the size")
    _bench_small(result, variant, size // 10, folder / "small")
    say(f"{variant.name}: generating the checkpoint")
    source = folder / "large"
    spec = spec_of_size(size, variant.dtype, variant.matrix_dim)
    files = generate(source, spec)
    result.input_bytes = sum(path.stat().st_size for path in files)
    commands = _commands(variant, source, files, result.input_bytes)
    measure_held(result, commands, files, repeat, budget=variant.budget, say=say)
    if variant.with_baseline:
        say(f"{variant.name}: {FIRST}")
        _bench_first(result, variant, source, files, repeat)
    if variant.with_baseline:
        say(f"{variant.name}: baseline")
        _bench_baseline(result, variant, source, files)
    plan = Command(PLAN, (*TOOL, "inspect", str(source), "--json"))
    result.measurements.append(Measurement(PLAN, measure([plan], [], repeat, _silent)[PLAN]))
    if not variant.casts:
        say(f"{variant.name}: verify")
        merged = source.parent / "merged"
        run(_merge(variant, source, merged))
        bench_verify(result, source, merged, files, repeat)
        shutil.rmtree(merged)
    shutil.rmtree(source)
    return result


def _bench_first(
    result: Result, variant: Variant, source: Path, files: Sequence[Path], repeat: int
) -> None:
    """The same merge where nothing is known of its class yet, nor can be kept."""
    out = source.parent / "first"
    argv = ("env", "XDG_CACHE_HOME=/dev/null", *_merge(variant, source, out))
    command = Command(FIRST, argv, out, _output_bytes(variant, result.input_bytes))
    runs = measure([command], files, repeat, _silent)[FIRST]
    limit = max(_FIRST_SECONDS, _FIRST_SHARE * result.find(MERGE).seconds)
    result.measurements.append(Measurement(FIRST, runs, shows_memory=True, limit=limit))


def _silent(_: str) -> None:
    pass


def _bench_small(result: Result, variant: Variant, size: int, folder: Path) -> None:
    """The tool's result must be the baseline's; its memory here shows what grows with size."""
    files = generate(folder / "in", spec_of_size(size, variant.dtype, variant.matrix_dim))
    result.small_bytes = sum(path.stat().st_size for path in files)
    reference = str(folder / "reference.safetensors")
    found = run((*_merge(variant, folder / "in", folder / "out"), "--no-check-load"))
    result.small_memory = found.anonymous
    run((*_BASELINE, "merge", str(folder / "in"), reference, *_baseline_flags(variant)))
    run((*_BASELINE, "compare", str(folder / "out"), reference))
    shutil.rmtree(folder)


def _bench_baseline(result: Result, variant: Variant, source: Path, files: Sequence[Path]) -> None:
    """Once: it is slow, and all of it is in memory at its end."""
    out = source.parent / "baseline.safetensors"
    needed, available = 2 * result.input_bytes + (1 << 30), available_memory()
    if available < needed:
        result.notes.append(
            f"{variant.name}: {BASELINE} left out: it needs {needed / 1e9:.1f} GB of memory,"
            f" {available / 1e9:.1f} GB are available"
        )
        return
    argv = (*_BASELINE, "merge", str(source), str(out), *_baseline_flags(variant))
    size = _output_bytes(variant, result.input_bytes)
    once: Run = run_prepared(Command(BASELINE, argv, out, size), files)
    result.measurements.append(Measurement(BASELINE, Runs([once]), variant.reference))


def _baseline_flags(variant: Variant) -> tuple[str, ...]:
    return (variant.output_dtype,) if variant.casts else ()


def _commands(
    variant: Variant, source: Path, files: Sequence[Path], size: int
) -> list[tuple[Command, str | None]]:
    """The commands of a round, the tool's with the label of their reference."""
    out = source.parent / "out"
    size = _output_bytes(variant, size)
    merge = _merge(variant, source, out)
    found: list[tuple[Command, str | None]] = [
        (Command(MERGE, merge, out, size), f"{variant.reference} + sync"),
        (Command(f"{MERGE} {NO_FSYNC}", (*merge, NO_FSYNC), out, size), variant.reference),
    ]
    make = _floors if variant.casts else copies
    return found + [(command, None) for command in make(files, out, size)]


def _merge(variant: Variant, source: Path, out: Path) -> tuple[str, ...]:
    return (*TOOL, "merge", "fsdp", str(source), str(out), *variant.merge_flags)


def _floors(files: Sequence[Path], out: Path, size: int) -> list[Command]:
    arguments = (str(size), str(out), *map(str, files))
    return [
        Command("floor + sync", (*_FLOOR, "1", "1", *arguments), out, size),
        Command("floor", (*_FLOOR, "1", "0", *arguments), out, size),
        Command("floor, 2 threads", (*_FLOOR, "2", "0", *arguments), out, size),
    ]


def _output_bytes(variant: Variant, size: int) -> int:
    return size // 2 if variant.casts else size
