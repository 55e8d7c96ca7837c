"""Objects on their way to a store, all by one thread that waits for what the network does.

An object is there when it was sent whole and its upload is completed, and not before: one that is
given up leaves nothing that anybody sees.
"""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections.abc import AsyncIterator, Callable, Coroutine
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, TypeVar

from ckpt_tool.common.errors import CkptError
from ckpt_tool.common.remote.address import Address
from ckpt_tool.common.remote.failures import explain
from ckpt_tool.common.threads import start
from ckpt_tool.writers.objects.parts import PartPool

T = TypeVar("T")

#: Parts of one object that are on their way at a time.
_AT_ONCE = 12
#: How long one waits for a store to forget what was sent and is not wanted.
_PATIENCE = 20.0


class GivenUpError(CkptError):
    """Somebody does not want the object any more."""


class Sender:
    """The thread, and the memory that all its objects share; use as long as anything is sent."""

    def __init__(self) -> None:
        self.pool = PartPool()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        start(self._thread)

    def begin(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """Have the thread do ``work``."""
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def call(self, function: Callable[..., Any], *values: object) -> None:
        """Have the thread call a function."""
        self._loop.call_soon_threadsafe(function, *values)

    def close(self) -> None:
        """End the thread; what is still on its way is lost."""
        if not self._loop.is_running():
            return
        self.begin(_cancel_rest())
        self._thread.join(_PATIENCE)
        if not self._thread.is_alive():
            self._loop.close()


async def _cancel_rest() -> None:
    """Cancel what is not done, and end the loop."""
    mine = asyncio.current_task()
    rest = [task for task in asyncio.all_tasks() if task is not mine]
    for task in rest:
        task.cancel()
    await asyncio.wait(rest, timeout=1) if rest else None
    asyncio.get_running_loop().stop()


class Upload:
    """An object that is being sent in parts of ``part`` bytes, in their order.

    All but what is less than a part leaves at once; the object appears with :meth:`complete`.
    ``address``: what it is to be called.
    """

    def __init__(self, sender: Sender, store: Any, address: Address, part: int) -> None:
        self.address = address
        self._sender = sender
        self._queue: asyncio.Queue[memoryview | BaseException | None] = asyncio.Queue()
        self._part = part
        self._under_way = 0
        self._done = sender.begin(self._send(store))
        self._done.add_done_callback(self._tell)

    def send(self, content: memoryview) -> None:
        """Send what comes next; whoever calls keeps no view of it."""
        if len(content) == self._part:  # less than that waits for the end
            with self._sender.pool.changed:
                self._under_way += 1
            weakref.finalize(content, self._leave).atexit = False
        self._sender.call(self._queue.put_nowait, content)

    @property
    def is_busy(self) -> bool:
        """Whether parts are on their way."""
        return self._under_way > 0

    def complete(self) -> None:
        """All was sent: the object shall appear."""
        self._sender.call(self._queue.put_nowait, None)

    def wait(self) -> None:
        """Wait until it has appeared; raises why it cannot, GivenUpError where it was given up."""
        self._done.exception()
        if self.error is not None:
            raise self.error

    @property
    def error(self) -> Exception | None:
        """Why it cannot be sent; None as far as is known."""
        error = self._done.exception() if self._done.done() else None
        if error is None or isinstance(error, GivenUpError):
            return error
        if not isinstance(error, Exception):
            return GivenUpError(f"{self.address}: was given up")
        return explain(error, self.address)

    def give_up(self) -> None:
        """Have the store forget what was sent; :meth:`forget` waits for that."""
        self._sender.call(self._drop)

    def forget(self) -> None:
        """Wait until it is given up, as long as that may take."""
        with suppress(Exception):
            self._done.result(_PATIENCE)

    def _drop(self) -> None:
        while not self._queue.empty():
            self._queue.get_nowait()
        self._queue.put_nowait(GivenUpError(f"{self.address}: was given up"))

    def _leave(self) -> None:
        with self._sender.pool.changed:
            self._under_way -= 1
            self._sender.pool.changed.notify_all()

    async def _send(self, store: Any) -> None:
        import obstore

        await obstore.put_async(
            store,
            self.address.key,
            self._parts(),
            use_multipart=True,
            chunk_size=self._part,
            max_concurrency=_AT_ONCE,
        )

    async def _parts(self) -> AsyncIterator[memoryview]:
        while True:
            taken = [await self._queue.get()]
            if isinstance(taken[0], BaseException):
                raise taken[0]
            if taken[0] is None:
                return
            yield taken.pop()  # type: ignore[misc]  # no view of it is left here

    def _tell(self, _: object) -> None:
        with self._sender.pool.changed:
            self._sender.pool.changed.notify_all()
