"""Output that appears whole or not at all.

Everything is written into ``.<name>.ckpt-partial`` beside the output, each file synced and then
noted in a journal; publishing is one rename. Whatever interrupts the work, the output is absent,
and the journal tells a later run which files are finished.

The journal is a text file of JSON lines: first ``{"plan": <fingerprint>}``, then one
``{"name", "size", "digest", "cast_errors"}`` per finished file.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import TextIO

from ckpt_tool.common.errors import OutputError
from ckpt_tool.writers.stream import WrittenFile, digest_file

_JOURNAL = ".ckpt-journal"


def check_target(out: Path, *, replace: bool, protected: list[Path]) -> None:
    """OutputError unless ``out`` may be written.

    It must be absent or empty, or ``replace`` is set; and it must not be, or contain, any of the
    ``protected`` paths, which are still to be read.
    """
    real = out.resolve()
    for path in protected:
        source = path.resolve()
        if real == source or real in source.parents:
            raise OutputError(
                f"{out}: is or contains the checkpoint itself ({path})",
                hint="Choose another output folder.",
            )
    if out.exists() and not out.is_dir():
        raise OutputError(f"{out}: exists and is not a folder")
    if out.exists() and any(out.iterdir()) and not replace:
        raise OutputError(
            f"{out}: exists and is not empty",
            hint="Choose another folder, or replace it with --overwrite.",
        )


def check_space(out: Path, needed: int) -> None:
    """OutputError unless the file system of ``out`` has ``needed`` bytes free."""
    place = out.absolute()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if free < needed:
        raise OutputError(
            f"{out}: needs {needed:,} bytes, {free:,} are free on its file system",
            hint="Free some space, choose another place, or a smaller --dtype.",
        )


class Workplace:
    """A folder in which an output is prepared; ``path`` is where to write.

    ``fsync=False`` leaves it to the kernel when data reaches the disk. ``direct``: weight files are
    to be written past the page cache.
    """

    def __init__(self, out: Path, *, fsync: bool, direct: bool) -> None:
        self.out = out.absolute()
        self.path = self.out.parent / f".{self.out.name}.ckpt-partial"
        self.finished: dict[str, WrittenFile] = {}
        self._fsync = fsync
        self.direct = direct

    def record(self, written: WrittenFile) -> None:
        """Note a file that is complete and synced."""
        self.finished[written.name] = written

    def sync(self, descriptor: int) -> None:
        """Wait until a file is on disk, unless that is not wanted."""
        if self._fsync:
            os.fsync(descriptor)

    def abandon(self) -> int:
        """Leave without publishing; returns how many finished files are kept for a resume."""
        return 0


class Staging(Workplace):
    """The workplace of the process that publishes: it keeps the journal, and cleans up."""

    def __init__(self, out: Path, plan: str, *, resume: bool, fsync: bool, direct: bool) -> None:
        super().__init__(out, fsync=fsync, direct=direct)
        self._plan = plan
        self.out.parent.mkdir(parents=True, exist_ok=True)
        kept = self._read_journal() if resume else None
        if kept is None:
            self._clear()
        self._journal = open(self.path / _JOURNAL, "a", encoding="utf-8")  # noqa: SIM115
        self._lock(self._journal)
        self._journal.truncate(0)  # a run that was killed may have left half a line
        self._note({"plan": plan})
        for written in (kept or {}).values():
            self.record(written)

    def record(self, written: WrittenFile) -> None:
        """Note a file that is complete and synced."""
        self._note(asdict(written))
        super().record(written)

    def put(self, name: str, content: bytes) -> None:
        """Write and sync a small file."""
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "wb") as file:
            file.write(content)
            file.flush()
            self.sync(file.fileno())

    def publish(self, *, replace: bool) -> None:
        """Make the folder the output; with ``replace`` an existing one gives way."""
        for folder, _, _ in os.walk(self.path):
            self._sync_folder(folder)
        (self.path / _JOURNAL).unlink()
        old = None
        if replace and self.out.exists():
            old = self.out.parent / f".{self.out.name}.ckpt-old-{os.getpid()}"
            self.out.rename(old)
        try:
            self.path.rename(self.out)
        except OSError as error:
            if old is not None:
                old.rename(self.out)
            raise OutputError(f"{self.out}: cannot be put in place ({error})") from error
        self._sync_folder(self.out.parent)
        self._journal.close()
        if old is not None:
            shutil.rmtree(old)

    def abandon(self) -> int:
        """Leave without publishing; returns how many finished files are kept for a resume."""
        if not self.finished:
            self.discard()
        self._journal.close()
        return len(self.finished)

    def discard(self) -> None:
        """Leave nothing behind."""
        self._journal.close()
        shutil.rmtree(self.path, ignore_errors=True)

    def _sync_folder(self, path: str | Path) -> None:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            self.sync(descriptor)
        finally:
            os.close(descriptor)

    def _note(self, row: dict[str, object]) -> None:
        self._journal.write(json.dumps(row) + "\n")
        self._journal.flush()
        self.sync(self._journal.fileno())

    def _clear(self) -> None:
        """Make an empty folder, unless a running process is still writing there."""
        with contextlib.suppress(FileNotFoundError), open(self.path / _JOURNAL, "a") as journal:
            self._lock(journal)
        shutil.rmtree(self.path, ignore_errors=True)
        self.path.mkdir()

    def _lock(self, journal: TextIO) -> None:
        try:
            fcntl.flock(journal, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise OutputError(f"{self.out}: another ckpt is writing it just now") from error
        except OSError:
            pass  # a file system without locks: nothing to hold on to

    def _read_journal(self) -> dict[str, WrittenFile] | None:
        """The finished files of an earlier run, each checked against its digest; None: no run."""
        try:
            lines = (self.path / _JOURNAL).read_text(encoding="utf-8").splitlines()
        except FileNotFoundError:
            return None
        rows = []
        for line in lines:
            with contextlib.suppress(ValueError):  # the last line of a run that was killed
                rows.append(json.loads(line))
        if not rows or rows[0].get("plan") != self._plan:
            raise OutputError(
                f"{self.path}: was left by a merge of another checkpoint or with other options",
                hint="Run again without --resume to start over.",
            )
        noted = [
            WrittenFile(**row | {"cast_errors": tuple(map(tuple, row["cast_errors"]))})
            for row in rows[1:]
        ]
        return {written.name: written for written in noted if self._is_intact(written)}

    def _is_intact(self, written: WrittenFile) -> bool:
        path = self.path / written.name
        same_size = path.is_file() and path.stat().st_size == written.size
        return same_size and digest_file(path) == written.digest
