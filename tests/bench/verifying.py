"""``ckpt verify`` against reading both sides once: where they are equal, and where all differs.

The checkpoint is compared with what was merged from it, and then with the same of which every
element is its neighbour: its last bit is another.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tests.bench.measure import Command, Runs, measure, run_prepared
from tests.bench.results import READ_BOTH, TOOL, Measurement, Result

EQUAL = "ckpt verify, equal"
DIFFERENT = "ckpt verify, all differ"
NUMBERS = "ckpt verify --json, all differ"

#: Of the time that reading both sides once takes.
_BUDGET = 1.3
_STEP = 1 << 20  # elements
#: 1 says that they differ; all else is a failure.
_DIFFERS = ("sh", "-c", '"$@"; test $? -eq 1', "sh")


def bench_verify(
    result: Result, source: Path, merged: Path, files: Sequence[Path], repeat: int
) -> None:
    """Measure it on ``source``, whose files are ``files``, and ``merged``, which is changed.

    Both are bfloat16. CommandError where anything fails, also where the verdict is wrong.
    """
    weights = sorted(merged.glob("*.safetensors"))
    verify = (*TOOL, "verify", str(source), str(merged))
    both = [*files, *weights]
    read = Command(READ_BOTH, ("sh", "-c", 'cat -- "$@" > /dev/null', "sh", *map(str, both)))
    commands = [Command(EQUAL, verify), read]
    runs = measure(commands, both, repeat, _silent)
    for path in weights:
        _change(path)
    commands = [Command(DIFFERENT, (*_DIFFERS, *verify)), read]
    runs[DIFFERENT] = measure(commands, both, repeat, _silent)[DIFFERENT]
    once = run_prepared(Command(NUMBERS, (*_DIFFERS, *verify, "--json")), both)
    for label in (EQUAL, DIFFERENT):
        found = Measurement(label, runs[label], READ_BOTH, _BUDGET, shows_memory=True)
        result.measurements.append(found)
    result.measurements.append(Measurement(NUMBERS, Runs([once]), READ_BOTH, shows_memory=True))
    result.measurements.append(Measurement(READ_BOTH, runs[READ_BOTH]))


def _change(path: Path) -> None:
    """Flip the last bit of every element of a safetensors file of 16-bit elements."""
    with path.open("rb") as file:
        (size,) = struct.unpack("<Q", file.read(8))
    elements = np.memmap(path, "<u2", "r+", offset=8 + size)
    for at in range(0, len(elements), _STEP):
        elements[at : at + _STEP] ^= 1
    elements.flush()


def _silent(_: str) -> None:
    pass
