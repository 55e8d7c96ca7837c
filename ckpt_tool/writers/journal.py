"""What a run has finished, on disk, and the lock that keeps other runs away from its folder.

A text file of JSON lines: first ``{"plan": <fingerprint>}``, then one ``{"name", "size", "digest",
"cast_errors"}`` per finished file. It lies beside the folder that is prepared, so that it is there
until that folder has become the output. Whoever writes holds a lock on it from before he looks at
the folder until the end.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, TextIO

from ckpt_tool.common.errors import OutputError
from ckpt_tool.writers.stream import WrittenFile


class Journal:
    """The journal of one output. One that is not open (another process has it) takes no notes."""

    def __init__(self, path: Path, sync: Callable[[int], None]) -> None:
        self.path = path
        self._sync = sync
        self._file: TextIO | None = None

    def open(self, out: Path) -> None:
        """Take the lock; OutputError where another run that writes ``out`` has it."""
        while self._file is None:
            file = open(self.path, "a+", encoding="utf-8")  # noqa: SIM115
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                file.close()
                raise OutputError(f"{out}: another ckpt is writing it just now") from error
            except OSError:
                pass  # a file system without locks: nothing to hold on to
            if self._is_still(file):
                self._file = file
            else:  # the run that had it ended just now, and removed the file
                file.close()

    @property
    def is_open(self) -> bool:
        """Whether this process keeps it."""
        return self._file is not None

    def read(self) -> tuple[str, list[WrittenFile]]:
        """The fingerprint of the plan and the finished files; an empty text if it is a new one."""
        rows = []
        for line in self.path.read_text(encoding="utf-8").splitlines():
            with contextlib.suppress(ValueError):  # the last line of a run that was killed
                rows.append(json.loads(line))
        if not rows:
            return "", []
        return str(rows[0].get("plan")), list(map(_read_row, rows[1:]))

    def start(self, plan: str) -> None:
        """Begin anew: a run that was killed may have left half a line."""
        if self._file is not None:
            self._file.truncate(0)
        self._write({"plan": plan})

    def note(self, written: WrittenFile) -> None:
        """Add a file that is finished."""
        self._write(asdict(written))

    def close(self, *, remove: bool = False) -> None:
        """Let go of the lock; with ``remove`` there is no journal any more."""
        if self._file is None:
            return
        if remove:
            self.path.unlink(missing_ok=True)
        self._file.close()
        self._file = None

    def _write(self, row: dict[str, object]) -> None:
        if self._file is None:
            return
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()
        self._sync(self._file.fileno())

    def _is_still(self, file: TextIO) -> bool:
        """Whether the path still names this file."""
        try:
            return os.path.samestat(os.fstat(file.fileno()), self.path.stat())
        except FileNotFoundError:
            return False


def _read_row(row: dict[str, Any]) -> WrittenFile:
    errors = tuple((source, target, error) for source, target, error in row["cast_errors"])
    return WrittenFile(row["name"], row["size"], row["digest"], errors)
