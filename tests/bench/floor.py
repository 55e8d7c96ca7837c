"""The least a merge with a cast can do: read every input byte once, write every output byte once.

``python floor.py THREADS SYNC OUTSIZE OUT INPUT...`` takes the inputs in blocks of 4 MiB. For each
block it reads, it writes the block's share of OUTSIZE bytes from the memory just read, that is
while it is in cache: nothing is looked at, converted or hashed. SYNC is 0 or 1: the output is
fsynced. The output is preallocated by its length only.

With one thread it is what ``cat INPUT... > /dev/null; head -c OUTSIZE /dev/zero > OUT`` does,
without the price of head's 8 KiB writes, and as many threads as ``cp`` has. With two it is what
two cores can do.
"""

from __future__ import annotations

import os
import sys
from threading import Lock, Thread

_BLOCK = 4 << 20


class _Copier:
    """Hands out blocks to threads. The lock is taken once per 4 MiB."""

    def __init__(self, inputs: list[str], out: str, size: int) -> None:
        self._sources = [os.open(path, os.O_RDONLY) for path in inputs]
        self._blocks = [
            (source, start)
            for source in self._sources
            for start in range(0, os.fstat(source).st_size, _BLOCK)
        ]
        self._share = -(-size // len(self._blocks))
        self._size = size
        self._next = 0
        self._lock = Lock()
        self.out = os.open(out, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        os.ftruncate(self.out, size)

    def work(self) -> None:
        buffer = memoryview(bytearray(_BLOCK))
        while True:
            with self._lock:
                number, self._next = self._next, self._next + 1
            if number >= len(self._blocks):
                return
            source, start = self._blocks[number]
            os.preadv(source, [buffer], start)
            at = number * self._share
            os.pwrite(self.out, buffer[: max(0, min(self._share, self._size - at))], at)


def _main(threads: int, sync: bool, size: int, out: str, inputs: list[str]) -> None:
    copier = _Copier(inputs, out, size)
    pool = [Thread(target=copier.work) for _ in range(threads)]
    for thread in pool:
        thread.start()
    for thread in pool:
        thread.join()
    if sync:
        os.fsync(copier.out)


if __name__ == "__main__":
    threads, sync, size = map(int, sys.argv[1:4])
    _main(threads, bool(sync), size, sys.argv[4], sys.argv[5:])
