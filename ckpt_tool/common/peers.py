"""Whether the other processes of a run are still there, and which of them is not.

A process that is killed says nothing any more, and neither does one whose machine is gone; those at
work wait for nobody who could be missed.
So every process counts up a number in the store in which they found each other, and looks whether
the next one does. Silence is counted in looks, not in seconds: who was asleep has missed none.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any

from ckpt_tool.common.threads import start

#: Seconds between two looks.
PERIOD = 2.0

#: Looks without a sign of life after which a process is gone: before torchrun kills all of them.
LIMIT = 10

_ANSWER = timedelta(seconds=30)


class Watch:
    """Shows that this process, ``rank`` of ``size``, lives, and looks after the next one.

    ``lost``: which process is gone, in words, once somebody has noticed; ``failed``: whether
    another one has failed at what all are at, and waits for them to hear why. Either interrupts the
    main thread at :meth:`work`. Threads of its own do all that; ``leave`` ends them.
    """

    def __init__(self, store: Any, begin: str, rank: int, size: int) -> None:
        """``store``: a client of its own, for what waits in one keeps others out.

        ``begin``: of all keys.
        """
        self.lost = ""
        self.failed = False
        self._store = store
        self._begin, self._rank, self._next = begin, rank, (rank + 1) % size
        self._turn = 0
        self._is_busy = False
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._looks = 0
        store.set(self._key("host", rank), os.uname().nodename)
        for work in (self._look_often, self._look_after_store):
            start(threading.Thread(target=work, name="ckpt-watch", daemon=True))

    def leave(self) -> None:
        """Look no more."""
        self._over.set()

    def tell_failure(self) -> None:
        """Have the others stop what they are at, to hear what failed here."""
        if not self.lost:
            with suppress(RuntimeError):
                self._store.set(self._key("failed", self._turn), str(self._rank))

    @contextmanager
    def work(self) -> Iterator[None]:
        """What all are at, each its part: it ends early where a process is gone or has failed."""
        with self._lock:
            self._turn += 1
            self.failed = False
            self._is_busy = threading.current_thread() is threading.main_thread()
            if self.lost:
                self._interrupt()
        try:
            yield
        finally:
            with self._lock:
                self._is_busy = False

    def _look_often(self) -> None:
        silence, known = 0, -1
        while not self._over.wait(PERIOD):
            try:
                self._store.add(self._key("lives", self._rank), 1)
                count = self._count(self._next)
                silence, known = silence + 1 if count == known else 0, count
                if silence >= LIMIT and not self._has("left", self._next):
                    self._store.set(self._key("lost"), self.name(self._next))
                if self._has("lost"):
                    self._note_lost(self._store.get(self._key("lost")).decode())
                self._look_for_failure(self._turn)
            except RuntimeError:  # what is closed stays so: see `_look_after_store`
                return
            self._looks += 1

    def _look_after_store(self) -> None:
        """Whoever keeps the store may be gone: then no look comes to an end any more."""
        silence, known = 0, -1
        while not self._over.wait(PERIOD):
            silence, known = silence + 1 if self._looks == known else 0, self._looks
            if silence >= LIMIT:
                self._note_lost(self._name_store())

    def _note_lost(self, lost: str) -> None:
        self._over.set()
        with self._lock:
            self.lost = lost
            self._interrupt()

    def _look_for_failure(self, turn: int) -> None:
        if self.failed or not self._has("failed", turn):
            return
        rank = int(self._store.get(self._key("failed", turn)))
        with self._lock:
            self.failed = rank != self._rank and turn == self._turn
            if self.failed:
                self._interrupt()

    def _interrupt(self) -> None:
        """As Ctrl-C or SIGTERM would, whichever is listened to; nothing where nobody works."""
        if not self._is_busy:
            return
        self._is_busy = False
        for number in (signal.SIGTERM, signal.SIGINT):
            if callable(signal.getsignal(number)):
                signal.pthread_kill(threading.main_thread().ident or 0, number)
                return

    def _count(self, rank: int) -> int:
        return int(self._store.add(self._key("lives", rank), 0))

    def _has(self, *what: object) -> bool:
        return bool(self._store.check([self._key(*what)]))

    def _key(self, *what: object) -> str:
        return self._begin + "/".join(map(str, what))

    def name(self, rank: int) -> str:
        """Process ``rank`` and its machine, in words; the first, if its store cannot be asked."""
        try:
            return f"rank {rank} (on {self._store.get(self._key('host', rank)).decode()})"
        except RuntimeError:
            return self._name_store()

    def _name_store(self) -> str:
        place = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        return f"rank 0, or what started it (at {place})"


def watch_peers(begin: str, rank: int, size: int) -> Watch:
    """Begin to watch, in the store that the environment names; RuntimeError where it is not.

    ``begin``: of keys, as the board has it.
    """
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    place = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = TCPStore(*place, is_master=False, timeout=_ANSWER, wait_for_workers=False)
    return Watch(store, begin, rank, size)
