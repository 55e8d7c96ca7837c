"""Batches of inputs in forked children: what one does to its process reaches no other.

This process has imported everything that runs need, and runs nothing itself. A child that reports
a defect ends, as one that was killed does; the rest of its batch goes to the next child.
"""

from __future__ import annotations

import gc
import json
import mmap
import os
import selectors
import shutil
import struct
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

from tests.fuzz import guard
from tests.fuzz.case import Case, Outcome, run_case
from tests.fuzz.modules import hide_libraries, import_all
from tests.fuzz.seeds import MTIME, Target

BATCH = 200
#: Processor seconds and bytes that one input may take; seconds after which a child is stuck.
SECONDS = 5.0
ROOM = 512 << 20
_STUCK = 120.0
_MOST_SECONDS = 60  # of processor, for the whole of a child: where its own clock is put off


@dataclass(frozen=True)
class Batch:
    """Inputs ``start`` to ``end`` of a target."""

    target: Target
    start: int
    end: int


@dataclass(frozen=True)
class Finding:
    """A defect: which input of which target, and what came of it."""

    target: Target
    number: int
    outcome: Outcome


@dataclass
class Tally:
    """What was run, by target: inputs, these by outcome; the slowest: seconds, and which it is."""

    inputs: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    defects: Counter[str] = field(default_factory=Counter)
    slowest: dict[str, tuple[float, int]] = field(default_factory=dict)


#: What a child keeps in memory that is shared: the input it is at, and how many came out how.
_SHARED = struct.Struct("qqqdq")


class _Child:
    def __init__(self, batch: Batch, seed: str, root: Path) -> None:
        self.batch = batch
        self._shared = mmap.mmap(-1, _SHARED.size)
        self._shared[:] = _SHARED.pack(batch.start, 0, 0, 0.0, 0)
        self.pipe, writing = os.pipe()
        self.pid = os.fork()
        if not self.pid:
            os.close(self.pipe)
            _be_child(batch, seed, root, writing, self._shared)
        os.close(writing)
        self._seen, self._moved = batch.start, time.monotonic()

    @property
    def state(self) -> tuple[int, int, int, float, int]:
        return _SHARED.unpack(self._shared[:])

    def is_stuck(self) -> bool:
        """Whether it waits for something that does not come: that takes no processor time."""
        at = self.state[0]
        if at != self._seen:
            self._seen, self._moved = at, time.monotonic()
        return time.monotonic() - self._moved > _STUCK

    def end(self) -> Finding | None:
        """What it reports last, when it has ended."""
        said = bytearray()
        while part := os.read(self.pipe, 1 << 16):
            said += part
        os.close(self.pipe)
        _, status = os.waitpid(self.pid, 0)
        at = self.state[0]
        self._shared.close()
        if said:
            row = json.loads(said)
            return Finding(self.batch.target, row["number"], Outcome(**row["outcome"]))
        if os.WIFSIGNALED(status):
            kind = f"signal {os.WTERMSIG(status)}"
            return Finding(self.batch.target, at, Outcome(kind, f"killed by {kind}", kind))
        if os.WEXITSTATUS(status):
            return Finding(self.batch.target, at, Outcome("exit", f"ended with {status}", "exit"))
        return None


def run_apart(case: Case, root: Path, number: int = 0) -> Outcome:
    """What comes of one case, in a child with the same limits; nothing in ``root`` is changed."""
    import_all()
    reading, writing = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            _silence()
            hide_libraries()
            _limit()
            guard.start_clock(SECONDS)
            outcome = run_case(case, root, number)
            guard.start_clock(0)
            os.write(writing, json.dumps(vars(outcome)).encode())
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        said = pipe.read()
    _, status = os.waitpid(pid, 0)
    if said:
        return Outcome(**json.loads(said))
    kind = f"signal {os.WTERMSIG(status)}"
    return Outcome(kind, f"killed by {kind}", kind)


def _limit() -> None:
    guard.install()
    guard.limit_memory(ROOM)
    guard.limit_processor(_MOST_SECONDS + SECONDS)


def _be_child(batch: Batch, seed: str, root: Path, pipe: int, shared: mmap.mmap) -> NoReturn:
    """Run the inputs; end at the first defect, and say what it is."""
    code = 9
    try:
        _silence()
        _run_batch(batch, seed, root, pipe, shared)
        code = 0
    finally:
        os._exit(code)


def _silence() -> None:
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    if "FUZZ_STDERR" not in os.environ:
        os.dup2(null, 2)


def _run_batch(batch: Batch, seed: str, root: Path, pipe: int, shared: mmap.mmap) -> None:
    shutil.rmtree(root, ignore_errors=True)
    batch.target.write(root)
    _limit()
    refused = 0
    slowest = (0.0, 0)
    for done, number in enumerate(range(batch.start, batch.end)):
        shared[:] = _SHARED.pack(number, done, refused, *slowest)
        begun = time.process_time()
        outcome = _run_input(batch.target, seed, number, root)
        slowest = max(slowest, (time.process_time() - begun, number))
        refused += outcome.kind == "refused"
        shared[:] = _SHARED.pack(number, done + 1, refused, *slowest)
        if outcome.is_defect:
            row = {"number": number, "outcome": vars(outcome)}
            os.write(pipe, json.dumps(row).encode())
            return


def _run_input(target: Target, seed: str, number: int, root: Path) -> Outcome:
    name, content = target.mutate(seed, number)
    path = root / name
    path.write_bytes(content)
    os.utime(path, (MTIME, MTIME))
    guard.start_clock(SECONDS)
    try:
        return run_case(target.case, root, number)
    finally:
        guard.start_clock(0)
        path.write_bytes(target.files[name])
        os.utime(path, (MTIME, MTIME))


@dataclass(frozen=True)
class Setting:
    """``seed`` of the inputs, ``jobs`` at a time, ``work``: a folder for their files."""

    seed: str
    jobs: int
    work: Path


def run_batches(
    batches: Iterator[Batch],
    setting: Setting,
    found: Callable[[Finding], None],
    told: Callable[[Tally], None],
) -> Tally:
    """Run them; ``found`` is told of every defect, ``told`` of every batch."""
    gc.collect()
    gc.freeze()
    sys.stdout.flush()
    tally = Tally()
    waiting: deque[Batch] = deque()
    running: dict[int, tuple[int, _Child]] = {}
    selector = selectors.DefaultSelector()
    slots = list(range(setting.jobs))
    try:
        while True:
            while slots:
                batch = waiting.popleft() if waiting else next(batches, None)
                if batch is None:
                    break
                slot = slots.pop()
                child = _Child(batch, setting.seed, setting.work / f"job{slot}")
                running[child.pid] = slot, child
                selector.register(child.pipe, selectors.EVENT_READ, child)
            if not running:
                return tally
            for key, _ in selector.select(timeout=1.0):
                child = key.data
                selector.unregister(child.pipe)
                slot, _ = running.pop(child.pid)
                slots.append(slot)
                rest = _end(child, tally, found)
                if rest is not None:
                    waiting.append(rest)
                told(tally)
            for _, child in running.values():
                if child.is_stuck():
                    os.kill(child.pid, 9)
    finally:
        for _, child in running.values():
            os.kill(child.pid, 9)
            os.waitpid(child.pid, 0)


def _end(child: _Child, tally: Tally, found: Callable[[Finding], None]) -> Batch | None:
    """Count what a child has done; what of its batch is left, if it did not do all of it."""
    name = child.batch.target.name
    _, done, refused, *slowest = child.state
    finding = child.end()
    tally.inputs[name] += done
    tally.refused[name] += refused
    tally.slowest[name] = max(tally.slowest.get(name, (0.0, 0)), (slowest[0], int(slowest[1])))
    if finding is None:
        return None
    if finding.outcome.kind.startswith(("signal", "exit")):
        tally.inputs[name] += 1
    tally.defects[name] += 1
    found(finding)
    left = Batch(child.batch.target, finding.number + 1, child.batch.end)
    return left if left.start < left.end else None
