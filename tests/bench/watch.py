"""Threads of the benchmark that watch while a command runs: its memory, and its output."""

from __future__ import annotations

import mmap
import threading
from pathlib import Path
from typing import TypeVar

_BLOCK = 4 << 20
_SAMPLE_SECONDS = 0.005
#: Looking for new children costs more than a sample: done for every so many samples.
_SAMPLES_PER_SEARCH = 10

Watcher = TypeVar("Watcher", bound="_Watcher")


class _Watcher:
    """A thread that watches while a command runs."""

    def __init__(self) -> None:
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self: Watcher) -> Watcher:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        raise NotImplementedError


class Sampler(_Watcher):
    """Watches a process and its descendants in a thread. ``peak``: their RssAnon together;
    ``largest`` and ``resident``: of one of them, the latter as the kernel keeps it (VmHWM; what
    wait4 tells includes memory of the process that started it).

    Every command is watched, the references too: it costs each the same.
    """

    def __init__(self, pid: int) -> None:
        super().__init__()
        self.peak = self.largest = self.resident = 0
        self._pid = pid

    def _watch(self) -> None:
        pids, count = [self._pid], 0
        while not self._stop.wait(_SAMPLE_SECONDS):
            if count % _SAMPLES_PER_SEARCH == 0:
                pids = _with_descendants(self._pid)
            count += 1
            anonymous, resident = zip(*map(_memory, pids), strict=True)
            self.peak = max(self.peak, sum(anonymous))
            self.largest = max(self.largest, *anonymous)
            self.resident = max(self.resident, *resident)


def _memory(pid: int) -> tuple[int, int]:
    """The process's anonymous memory, and the most that was resident so far."""
    try:
        with open(f"/proc/{pid}/status", "rb") as file:
            status = file.read()
    except (FileNotFoundError, ProcessLookupError):
        return 0, 0
    return _kibibytes(status, b"RssAnon:") << 10, _kibibytes(status, b"VmHWM:") << 10


def _kibibytes(status: bytes, key: bytes) -> int:
    _, found, rest = status.partition(key)
    return int(rest.split(maxsplit=1)[0]) if found else 0


def _with_descendants(pid: int) -> list[int]:
    found = [pid]
    try:
        for thread in Path(f"/proc/{pid}/task").iterdir():
            children = (thread / "children").read_text()
            for child in children.split():
                found += _with_descendants(int(child))
    except (FileNotFoundError, ProcessLookupError):
        pass
    return found


class Reserve(_Watcher):
    """Memory that the host backs, held until a new name appears in ``folder``."""

    def __init__(self, size: int, folder: Path) -> None:
        super().__init__()
        self._folder = folder
        self._before = set(folder.iterdir())
        self._memory = mmap.mmap(-1, max(size, 1))
        self._memory.madvise(mmap.MADV_HUGEPAGE)
        zeros = bytes(_BLOCK)
        for start in range(0, size, _BLOCK):
            self._memory[start : start + _BLOCK] = zeros[: size - start]

    def _watch(self) -> None:
        while set(self._folder.iterdir()) == self._before and not self._stop.wait(0.001):
            pass
        self._memory.close()
