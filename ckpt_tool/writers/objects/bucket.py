"""The objects below an address, to somebody who writes there."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, TypeVar

from ckpt_tool.common.remote.address import Address
from ckpt_tool.common.remote.failures import explain
from ckpt_tool.common.remote.listing import list_objects
from ckpt_tool.common.remote.objects import RemoteObject
from ckpt_tool.common.remote.patience import ask_again
from ckpt_tool.common.remote.stores import open_store
from ckpt_tool.writers.objects.parts import choose_part
from ckpt_tool.writers.objects.sending import GivenUpError, Sender, Upload

T = TypeVar("T")

#: How a server says that it does not know conditional requests.
_NOT_KNOWN = "status code: 501"
#: What obstore says of a connection that broke before there was an answer.
_BROKEN = "error sending request"
_PAUSES = (0.1, 0.5, 2.0)  # seconds


@dataclass(frozen=True)
class Stored:
    """A small object: what is in it, and the version of it."""

    content: bytes
    etag: str | None
    mtime: float


class Bucket:
    """What lies below ``out``; ``sender`` sends what is put there.

    Every method raises StoreError where the store is not reached or refuses.
    """

    def __init__(self, out: Address, sender: Sender) -> None:
        self.out = out
        self.store = open_store(out)
        self._sender = sender

    def key(self, name: str) -> str:
        """The key of an object."""
        return self.out.join(name).key

    def list(self) -> list[RemoteObject]:
        """All objects, without that which some tools put in the place of a folder."""
        rows = self._wait(lambda: [row for rows in list_objects(self.out) for row in rows])
        return [row for row in rows if row.name]

    def begin(self, name: str, size: int) -> Upload:
        """Begin to send an object of ``size`` bytes."""
        return Upload(self._sender, self.store, self.out.join(name), choose_part(size))

    def get(self, name: str) -> Stored | None:
        """An object whole; None where there is none."""
        try:
            found: Stored = self._ask(name, lambda obstore: self._fetch(obstore, name))
        except FileNotFoundError:
            return None
        return found

    def put(self, name: str, content: bytes, mode: Any = "overwrite") -> None:
        """Put a small object. ``mode``: as obstore has it.

        FileExistsError where the mode does not allow it. A store that cannot hold itself to a mode
        is not asked to.
        """
        from obstore.exceptions import AlreadyExistsError, NotSupportedError, PreconditionError

        key = self.key(name)
        try:
            self._try(lambda obs: obs.put_async(self.store, key, content, mode=mode))
        except (AlreadyExistsError, PreconditionError) as error:
            found = self.get(name)
            if found is not None and found.content == content:
                return  # it was this process, whose answer was lost
            raise FileExistsError(str(self.out.join(name))) from error
        except NotSupportedError:
            self.put(name, content)
        except Exception as error:
            if mode != "overwrite" and _NOT_KNOWN in str(error):
                self.put(name, content)
                return
            raise self._explain(error, name) from error

    def delete(self, names: Iterable[str]) -> None:
        """Delete objects; those that are not there are no reason to complain."""
        for batch in _batches(sorted(names), 1000):
            try:
                self._delete(batch)
            except FileNotFoundError:
                for name in batch:  # the others of these may be there
                    with contextlib.suppress(FileNotFoundError):
                        self._delete([name])

    def probe(self, name: str) -> None:
        """Whether an object could be put there: one is begun, and given up again."""
        upload = self.begin(name, 1)
        upload.give_up()
        with contextlib.suppress(GivenUpError):
            upload.wait()

    def _delete(self, names: Sequence[str]) -> None:
        keys = [self.key(name) for name in names]
        self._ask(names[0], lambda obs: obs.delete_async(self.store, keys))

    async def _fetch(self, obstore: Any, name: str) -> Stored:
        found = await obstore.get_async(self.store, self.key(name))
        content = bytes(await found.bytes_async())
        meta = found.meta
        return Stored(content, meta.get("e_tag"), meta["last_modified"].timestamp())

    def _ask(self, name: str, work: Callable[[Any], Any]) -> Any:
        try:
            return self._raw(work)
        except Exception as error:
            raise self._explain(error, name) from error

    def _raw(self, work: Callable[[Any], Any]) -> Any:
        """What obstore answers; Ctrl-C need not wait for that."""

        async def answer() -> Any:
            import obstore

            return await work(obstore)

        return self._sender.begin(answer()).result()

    def _try(self, work: Callable[[Any], Any]) -> Any:
        """The same, once more where a connection broke: what has a condition obstore asks once."""
        return ask_again(lambda: self._raw(work), lambda error: _BROKEN in str(error), _PAUSES)

    def _wait(self, work: Callable[[], T]) -> T:
        """The same of what has no asynchronous form."""
        import asyncio

        async def answer() -> T:
            return await asyncio.to_thread(work)

        found: Future[T] = self._sender.begin(answer())
        return found.result()

    def _explain(self, error: Exception, name: str) -> Exception:
        return explain(error, self.out.join(name))


def _batches(names: Sequence[str], size: int) -> Iterable[Sequence[str]]:
    return (names[at : at + size] for at in range(0, len(names), size))
