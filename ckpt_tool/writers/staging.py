"""Output that appears whole or not at all.

Everything is written into a folder beside the output, ``.<name>.ckpt-partial``, each file synced
and then noted in a journal; publishing is one rename. Whatever interrupts the work, the output is
absent, or what it was, and the journal tells a later run which files are finished.

Nothing can be renamed to a mount point. There the folder is in the output, ``.ckpt-partial``, and
publishing is a rename per entry: what completes the output comes last.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from ckpt_tool.common.errors import CkptError, OutputError
from ckpt_tool.writers.journal import Journal
from ckpt_tool.writers.renames import exchange, move_all
from ckpt_tool.writers.stream import WrittenFile, digest_file
from ckpt_tool.writers.target import (
    check_target,
    list_entries,
    make_journal_path,
    make_partial_path,
)


class Staging:
    """A folder in which an output is prepared; ``path`` is where to write.

    One process of a run calls :meth:`open`, and publishes; the others :meth:`join`.
    ``fsync=False`` leaves it to the kernel when data reaches the disk. ``direct``: files with
    tensors are to be written past the page cache. ``finished``: those that are complete, by name.
    """

    def __init__(self, out: Path, *, fsync: bool, direct: bool) -> None:
        self.out = out.absolute()
        self.path = make_partial_path(self.out)
        self.direct = direct
        self.finished: dict[str, WrittenFile] = {}
        self._fsync = fsync
        self._small: list[str] = []
        self._journal = Journal(make_journal_path(self.out), self.sync)

    def open(self, plan: str, *, resume: bool, replace: bool) -> tuple[Path, list[WrittenFile]]:
        """Make the folder; with ``resume`` keep what an earlier run has finished there.

        ``plan``: the fingerprint of what is written. What it returns is for :meth:`join`.
        OutputError where another run writes, or has just written, or has left another plan's work.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._journal.open(self.out)
        before, files = self._journal.read()
        try:
            check_target(self.out, replace=replace, protected=())
            kept = []
            if resume and before:
                self._require_plan(before, plan)
                kept = [written for written in files if self._is_intact(written)]
            if not kept:
                shutil.rmtree(self.path, ignore_errors=True)
                self.path.mkdir()
            self._journal.start(plan)
            for written in kept:
                self.record(written)
        except BaseException:
            self._journal.close(remove=not before)
            raise
        return self.path, kept

    def join(self, path: Path, finished: list[WrittenFile]) -> None:
        """Work where another process has opened the folder."""
        self.path = path
        self.finished = {written.name: written for written in finished}

    def record(self, written: WrittenFile) -> None:
        """Note a file that is complete and synced."""
        self._journal.note(written)
        self.finished[written.name] = written

    def sync(self, descriptor: int) -> None:
        """Wait until a file is on disk, unless that is not wanted."""
        if self._fsync:
            os.fsync(descriptor)

    def put(self, name: str, content: bytes) -> None:
        """Write and sync a small file. What completes the output is put last."""
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "wb") as file:
            file.write(content)
            file.flush()
            self.sync(file.fileno())
        self._small.append(name)

    def publish(self, *, replace: bool) -> list[str]:
        """Make the folder the output; with ``replace`` what is there gives way. Warnings, if any.

        OutputError where it cannot be put in place: what was there is there, and all that was
        written is kept.
        """
        for folder, _, _ in os.walk(self.path):
            self._sync_folder(folder)
        try:
            if self.path.parent == self.out:
                old = self._move_into_output(replace=replace)
            else:
                old = self._become_output(replace=replace)
        except OSError as error:
            raise OutputError(f"{self.out}: cannot be put in place ({error})") from error
        self.finished = {}  # nothing is left that a later run could go on with
        self._sync_folder(self.path.parent)
        self._journal.close(remove=True)
        return [] if old is None else _remove_old(old, self.out)

    def abandon(self) -> int:
        """Leave without publishing; returns how many finished files are kept for a resume."""
        if not self._journal.is_open:
            return 0
        if not self.finished:
            self.discard()
        self._journal.close()
        return len(self.finished)

    def discard(self) -> None:
        """Leave nothing behind."""
        self.finished = {}
        shutil.rmtree(self.path, ignore_errors=True)
        self._journal.close(remove=True)

    def _become_output(self, *, replace: bool) -> Path | None:
        """Rename the folder to the output; the place of what was there."""
        if not (replace and self.out.exists()):
            self.path.rename(self.out)
            return None
        with _make_place(self.out.parent, f".{self.out.name}.ckpt-old-") as old:
            if exchange(self.path, self.out):
                self.path.rename(old)
            else:
                move_all([(self.out, old), (self.path, self.out)])
        return old

    def _move_into_output(self, *, replace: bool) -> Path | None:
        """Move all entries of the folder up into the output; the place of what was there."""
        check_target(self.out, replace=replace, protected=())
        entries = dict.fromkeys(name.split("/")[0] for name in [*self.finished, *self._small])
        moves = [(self.path / name, self.out / name) for name in entries]
        there = list_entries(self.out)
        with _make_place(self.out, ".ckpt-old-") as old:
            move_all([(self.out / name, old / name) for name in there] + moves)
        shutil.rmtree(self.path, ignore_errors=True)
        return old

    def _require_plan(self, found: str, plan: str) -> None:
        if found != plan:
            raise OutputError(
                f"{self.path}: was left by a merge of another checkpoint or with other options",
                hint="Run again without `write.resume` to start over.",
            )

    def _is_intact(self, written: WrittenFile) -> bool:
        path = self.path / written.name
        same_size = path.is_file() and path.stat().st_size == written.size
        return same_size and digest_file(path) == written.digest

    def _sync_folder(self, path: str | Path) -> None:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            self.sync(descriptor)
        finally:
            os.close(descriptor)


@contextlib.contextmanager
def _make_place(folder: Path, prefix: str) -> Iterator[Path]:
    """An empty folder of a new name, in which something is put; gone again where that fails."""
    place = Path(tempfile.mkdtemp(prefix=prefix, dir=folder))
    try:
        yield place
    except BaseException:
        with contextlib.suppress(OSError):
            place.rmdir()
        raise


def _remove_old(old: Path, out: Path) -> list[str]:
    """Remove what an output took the place of; a warning where that cannot be."""
    try:
        shutil.rmtree(old)
    except OSError as error:
        return [f"{old}: what was in {out} before, could not be removed ({error.strerror})"]
    return []


def explain(error: BaseException, staging: Staging) -> BaseException:
    """Leave ``staging``; the error to raise for ``error``, with what is kept and how to go on."""
    kept = staging.abandon()
    note = (
        f"{kept} finished files are kept in {staging.path}:"
        " `write.resume=True` continues with them."
    )
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        error = OutputError(f"{staging.out}: {where}{error.strerror or error}")
    if kept and isinstance(error, CkptError):
        error.hint = f"{error.hint} {note}".strip()
    elif kept and isinstance(error, KeyboardInterrupt):
        error = KeyboardInterrupt(note)
    return error
