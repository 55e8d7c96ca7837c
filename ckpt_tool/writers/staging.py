"""Output that appears whole or not at all.

Everything is written into a folder beside the output, ``.<name>.ckpt-partial``, each file synced
and then noted in a journal; publishing is one rename. Whatever interrupts the work, the output is
absent, or what it was, and the journal tells a later run which files are finished.

Nothing can be renamed to a mount point. There the folder is in the output, ``.ckpt-partial``, and
publishing is a rename per entry: what completes the output comes last, and a run that is killed
between two of them is taken back by the next.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from ckpt_tool.common.errors import OutputError
from ckpt_tool.common.wording import count_noun
from ckpt_tool.writers.clearing import clear_but, drop_folder, is_intact, remove_folder
from ckpt_tool.writers.journal import Journal, Left
from ckpt_tool.writers.opening import open_small, require_folder, sync_folder
from ckpt_tool.writers.outfile import OutputFile
from ckpt_tool.writers.planned import PlannedFile
from ckpt_tool.writers.preparation import Preparation
from ckpt_tool.writers.replacing import (
    Place,
    become_output,
    move_into_output,
    name_stale,
    remove_old,
    require_movable,
    settle,
)
from ckpt_tool.writers.stream import WrittenFile
from ckpt_tool.writers.target import check_target, make_journal_path, make_partial_path


class Staging(Preparation):
    """A folder in which an output is prepared; ``path`` is where to write.

    ``fsync=False`` leaves it to the kernel when data reaches the disk.
    """

    out: Path

    def __init__(self, out: Path, *, fsync: bool, direct: bool) -> None:
        self.out = out.absolute()
        self.path = make_partial_path(self.out)
        self.direct = direct
        self.finished: dict[str, WrittenFile] = {}
        self.warnings: list[str] = []
        self._fsync = fsync
        self._small: list[str] = []
        self._journal = Journal(make_journal_path(self.out), self.sync)
        self._inode: int | None = None

    def open(self, plan: str, *, resume: bool, replace: bool) -> tuple[Path, list[WrittenFile]]:
        """Make the folder; with ``resume`` keep what an earlier run has finished there.

        ``plan``: the fingerprint of what is written. What it returns is for :meth:`join`.
        OutputError where another run writes, or has left other work, or what is there must stay.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        left = self._begin()
        try:
            check_target(self.out, replace=replace, protected=())
            kept = self._choose_kept(left, plan) if resume else []
            if resume and left.is_damaged:
                self.warnings.append(f"{self._journal.path}: is damaged: started over")
            if kept:
                clear_but(self.path, {written.name for written in kept})
            else:
                remove_folder(self.path)
                self.path.mkdir()
            if replace:
                require_movable(Place(self.out, self.path))
            self._journal.start(plan, kept)
            self.finished = {written.name: written for written in kept}
        except BaseException:
            with contextlib.suppress(OSError):
                self.path.rmdir()  # empty but for what is kept
            self._journal.close(remove=not left.plan and not left.is_damaged)
            raise
        return self.path, kept

    def tidy(self) -> list[str]:
        """Settle what a run that was killed left half done; warnings, also of what stays.

        Nothing is done where another run is at work.
        """
        said: list[str] = []
        if os.path.lexists(self._journal.path):
            with contextlib.suppress(OutputError):
                self._begin()
                self._journal.close(remove=not os.path.lexists(self.path))
                said, self.warnings = self.warnings, []
        return [*said, *name_stale(self.out)]

    def clear(self, plan: str) -> list[str]:
        """Where the output is complete: remove what an interrupted run left; warnings.

        What is of another plan stays, and is named. Nothing is done where another run is at work.
        """
        if not os.path.lexists(self._journal.path):
            return []
        with contextlib.suppress(OutputError):
            left = self._begin()
            if left.plan in ("", plan):
                self.discard()
                return []
            self._journal.close()
        return [f"{self.path}: is of a run with other options: remove it if it is not to go on"]

    def join(self, path: Path, finished: list[WrittenFile]) -> None:
        """Work where another process has opened the folder."""
        self.path = path
        self.finished = {written.name: written for written in finished}

    def create(self, file: PlannedFile) -> OutputFile:
        """Begin a file with tensors; OSError where it cannot be, or the disk is full."""
        path = self.path / file.name
        path.parent.mkdir(parents=True, exist_ok=True)
        return OutputFile(path, file.size, direct=self.direct, sync=self.sync)

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
        with open_small(path) as file:
            file.write(content)
            file.flush()
            self.sync(file.fileno())
        self._small.append(name)

    @property
    def is_published(self) -> bool:
        """Whether the output is what was prepared, whatever happened since."""
        if self._inode is None or self.path.parent == self.out:
            return self._inode == 0
        try:
            return self.out.stat().st_ino == self._inode
        except OSError:
            return False

    def publish(self, *, replace: bool) -> list[str]:
        """Make the folder the output; with ``replace`` what is there gives way. Warnings, if any.

        OutputError where it cannot be put in place: what was there is there, and all that was
        written is kept; or where :attr:`is_published` and the disk may not have it yet.
        """
        for folder, _, _ in os.walk(self.path):
            sync_folder(folder, self.sync)
        try:
            old = self._put_in_place(replace=replace)
        except OSError as error:
            if self.is_published:
                raise
            raise OutputError(f"{self.out}: cannot be put in place ({error})") from error
        try:
            sync_folder(self.path.parent, self.sync)
        except OSError as error:
            raise OutputError(
                f"{self.out}: is complete and in its place, but the file system does not say that"
                f" it is on disk ({error.strerror})",
                hint="Hold it against its plan with `write.resume=True`.",
            ) from error
        left = [] if old is None else remove_old(old, self.out)
        if self.path.parent == self.out:
            drop_folder(self.path)
        # What could not be removed is the next run's to try again.
        self._journal.close(remove=not left and not os.path.lexists(self.path))
        self.warnings += left
        return self.warnings

    def abandon(self) -> str:
        """Leave without publishing; what is kept for a resume, in a sentence."""
        if not self._journal.is_open:
            return ""
        if not self.finished:
            self.discard()
        self._journal.close()
        kept = len(self.finished)
        are, them = ("is", "it") if kept == 1 else ("are", "them")
        how = f"`write.resume=True` continues with {them}."
        held = f"{count_noun(kept, 'finished file')} {are} kept in {self.path}: {how}"
        return held if kept else ""

    def leave(self) -> None:
        """Leave what is published; the next run clears up what this one could not."""
        self._journal.close()

    def discard(self) -> str:
        """Leave nothing behind; only the process that has opened the folder does."""
        if self._journal.is_open:
            self.finished = {}
            try:
                drop_folder(self.path)
            finally:
                self._journal.close(remove=True)
        return ""

    def _begin(self) -> Left:
        """Take the lock, and settle what an earlier run left half done; what is left then."""
        self._journal.open(self.out)
        left = None
        try:
            left = self._journal.read()
            require_folder(self.path)
            if left.replacing is not None:
                is_done, said = settle(Place(self.out, self.path), left.replacing)
                sync_folder(self.path.parent, self.sync)
                self.warnings += said
                left = Left() if is_done else left
        except BaseException:
            self._journal.close(remove=left == Left())
            raise
        return left

    def _choose_kept(self, left: Left, plan: str) -> list[WrittenFile]:
        """What is finished and intact; OutputError where it is of another plan."""
        if left.plan and left.plan != plan:
            raise OutputError(
                f"{self.path}: was left by a merge of another checkpoint or with other options",
                hint="Run again without `write.resume` to start over.",
            )
        return [written for written in left.files or () if is_intact(self.path, written)]

    def _put_in_place(self, *, replace: bool) -> Path | None:
        place = Place(self.out, self.path)
        if not place.is_inside:
            self._inode = self.path.lstat().st_ino
            return become_output(place, self._journal, replace=replace)
        check_target(self.out, replace=replace, protected=())
        entries = dict.fromkeys(name.split("/")[0] for name in [*self.finished, *self._small])
        old = move_into_output(place, self._journal, list(entries))
        self._inode = 0
        return old
