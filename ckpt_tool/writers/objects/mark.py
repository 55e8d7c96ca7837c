"""The mark of a run that writes: a small object, lest two of them write to one place.

Whoever has put it writes it again every minute. One that is ten minutes old, or of a process of
this machine that is gone, is of a run that was killed: the next one takes it over, and removes what
that had let appear, which the mark says. Stores that know conditional requests let only one of two
that come at once have it; others are asked before and after.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import time
import uuid
from collections.abc import Sequence
from concurrent.futures import Future, TimeoutError
from contextlib import suppress
from typing import Any

from ckpt_tool.common.errors import CkptError, FormatError, OutputError
from ckpt_tool.common.untrusted import parse_json
from ckpt_tool.writers.journal import is_plain_name
from ckpt_tool.writers.objects.bucket import Bucket, Stored
from ckpt_tool.writers.objects.sending import Sender
from ckpt_tool.writers.target import PARTIAL as MARK

_EVERY = 60.0
#: Older ones are nobody's; clocks of stores and of those who ask them differ by less.
_STALE = 600.0
_PATIENCE = 20.0


class Mark:
    """The mark in ``bucket``; held from :meth:`take` to :meth:`remove`."""

    def __init__(self, bucket: Bucket, sender: Sender) -> None:
        self._bucket = bucket
        self._sender = sender
        self._token = uuid.uuid4().hex
        self._names: tuple[str, ...] = ()
        self._found: Stored | None = None
        self._beat: Future[None] | None = None
        self._ended = asyncio.Event()

    @property
    def is_held(self) -> bool:
        """Whether this process has it."""
        return self._beat is not None

    def look(self) -> list[str]:
        """Names of objects that a run let appear that was killed then.

        OutputError where another run has the mark. Raises what :class:`.Bucket` raises.
        """
        self._found = self._bucket.get(MARK)
        said = {} if self._found is None else _read(self._found)
        if self._found is not None and not _is_stale(self._found, said):
            raise self._say_taken(said)
        return [name for name in said.get("names", ()) if _is_inside(name)]

    def take(self) -> list[str]:
        """Put it; returns and raises what :meth:`look` does."""
        left = self.look()
        mode: Any = "create" if self._found is None else {"e_tag": self._found.etag}
        try:
            self._bucket.put(MARK, self._make(), mode)
        except FileExistsError as error:
            raise self._say_taken({}) from error
        self._ended.clear()
        self._beat = self._sender.begin(self._keep())
        return left

    def announce(self, names: Sequence[str]) -> None:
        """Say which objects are going to appear; OutputError where another run has taken over."""
        found = self._bucket.get(MARK)
        if found is None or _read(found).get("token") != self._token:
            raise OutputError(
                f"{self._bucket.out}: its mark {MARK} is gone, or of another run by now",
                hint="This one did not get on for ten minutes, or somebody removed it. Run again.",
            )
        self._names = tuple(names)
        self._bucket.put(MARK, self._make())

    def remove(self) -> None:
        """Let others write there."""
        if self._beat is None:
            return
        beat, self._beat = self._beat, None
        self._sender.call(self._ended.set)
        with suppress(TimeoutError):
            beat.result(_PATIENCE)  # or it would be put once more
        self._bucket.delete([MARK])

    async def _keep(self) -> None:
        """Write it again and again; a store that is not reached just then is asked again later."""
        import obstore

        while not self._ended.is_set():
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._ended.wait(), _EVERY)
                return
            with suppress(Exception):
                key = self._bucket.key(MARK)
                await obstore.put_async(self._bucket.store, key, self._make())

    def _make(self) -> bytes:
        said = {
            "tool": "ckpt-tool",
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "token": self._token,
            "names": self._names,
        }
        return json.dumps(said).encode()

    def _say_taken(self, said: dict[str, Any]) -> CkptError:
        who = f" (process {said['pid']} of {said['host']})" if "pid" in said else ""
        return OutputError(
            f"{self._bucket.out}: another ckpt is writing it just now{who}",
            hint=f"Wait for it to end, or choose another output. If it was killed, its mark {MARK}"
            " counts for ten minutes: wait, or remove it.",
        )


def _read(found: Stored) -> dict[str, Any]:
    """What a mark says; nothing where it is damaged."""
    try:
        said = parse_json(found.content, MARK)
    except FormatError:
        return {}
    if not isinstance(said, dict) or not isinstance(said.get("names", []), list):
        return {}
    is_sound = isinstance(said.get("host"), str) and _is_pid(said.get("pid"))
    return said if is_sound else {}


def _is_stale(found: Stored, said: dict[str, Any]) -> bool:
    if time.time() - found.mtime > _STALE:
        return True
    return bool(said) and said["host"] == socket.gethostname() and not _is_running(said["pid"])


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _is_pid(value: object) -> bool:
    return isinstance(value, int) and 0 < value < 1 << 31


def _is_inside(name: object) -> bool:
    return isinstance(name, str) and all(map(is_plain_name, name.split("/")))
