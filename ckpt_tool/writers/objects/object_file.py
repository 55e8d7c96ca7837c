"""A file with tensors that becomes an object: several threads fill its parts, in any order."""

from __future__ import annotations

from ckpt_tool.writers.objects.parts import choose_part
from ckpt_tool.writers.objects.sending import GivenUpError, Sender, Upload

#: How often one who waits looks whether there is still something to wait for, in seconds.
_LOOK = 0.5


class ObjectFile:
    """``size`` bytes for ``upload``; threads write disjoint parts of it.

    A part is sent when all of it is there and those before it are sent. Memory for parts is taken
    in their order: whoever waits for it waits for parts that are filled.
    """

    def __init__(self, sender: Sender, upload: Upload, size: int) -> None:
        self._pool = sender.pool
        self._upload = upload
        self._size = size
        self._part = choose_part(size)
        self._parts: dict[int, memoryview] = {}
        self._filled: dict[int, int] = {}
        self._begun = 0
        self._sent = 0
        self._is_stopped = False

    def write(self, buffer: memoryview, length: int, offset: int) -> None:
        """Write the first ``length`` bytes of ``buffer`` at ``offset``.

        Waits where too much is on its way. Raises why the object cannot be sent.
        """
        done = 0
        while done < length:
            number, start = divmod(offset + done, self._part)
            part = self._open(number)
            count = min(length - done, len(part) - start)
            part[start : start + count] = buffer[done : done + count]
            del part
            self._close(number, count)
            done += count

    def finish(self) -> None:
        """All threads are done."""

    def settle(self) -> None:
        """Wait until every byte has left; raises why it cannot."""
        with self._pool.changed:
            while self._upload.is_busy:
                self._require_wanted()
                self._pool.changed.wait(_LOOK)
            self._require_wanted()

    def stop(self) -> None:
        """Nobody wants it: whoever waits here need not."""
        with self._pool.changed:
            self._is_stopped = True
            self._parts.clear()
            self._pool.changed.notify_all()

    def close(self) -> None:
        """Nothing is open."""

    def _open(self, number: int) -> memoryview:
        """The memory of a part, when there is some for all before it."""
        with self._pool.changed:
            while number >= self._begun:
                self._require_wanted()
                size = min(self._part, self._size - self._begun * self._part)
                is_rest = size < self._part  # waits for the end: it is not to keep a buffer
                view = memoryview(bytearray(size)) if is_rest else self._pool.take(size)
                if view is None:
                    self._pool.changed.wait(_LOOK)
                    continue
                self._parts[self._begun] = view
                self._begun += 1
                self._pool.changed.notify_all()
            self._require_wanted()
            return self._parts[number]

    def _close(self, number: int, count: int) -> None:
        """``count`` more bytes of a part are there; send what is complete, in order."""
        with self._pool.changed:
            self._filled[number] = self._filled.get(number, 0) + count
            while self._sent in self._parts:
                if self._filled.get(self._sent, 0) < len(self._parts[self._sent]):
                    break
                self._upload.send(self._parts.pop(self._sent))
                self._filled.pop(self._sent)
                self._sent += 1

    def _require_wanted(self) -> None:
        error = self._upload.error
        if error is not None:
            raise error
        if self._is_stopped:
            raise GivenUpError(f"{self._upload.address}: was given up")
