"""What preparing an output is, in a folder or in an object store."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from pathlib import Path

from ckpt_tool.common.remote.address import Address
from ckpt_tool.writers.outfile import Output
from ckpt_tool.writers.planned import PlannedFile
from ckpt_tool.writers.stream import WrittenFile


class Preparation(ABC):
    """What is written is not the output yet: that appears whole or not at all.

    One process of a run calls :meth:`open`, and publishes; the others :meth:`join`. ``out``: the
    output. ``path``: a folder in which what was written can be looked at. ``direct``: files with
    tensors are written past the page cache. ``finished``: those that are complete, by name.
    ``warnings``: what is to be said of what earlier runs left.

    What is done here is right where nothing of an output appears before all of it does.
    """

    out: Path | Address
    path: Path
    direct: bool
    finished: dict[str, WrittenFile]
    warnings: list[str]

    @abstractmethod
    def open(self, plan: str, *, resume: bool, replace: bool) -> tuple[Path, list[WrittenFile]]:
        """Begin, alone; ``plan``: the fingerprint of what is written. It is for :meth:`join`.

        OutputError where another run writes, or what is there must stay.
        """

    @abstractmethod
    def join(self, path: Path, finished: list[WrittenFile]) -> None:
        """Work where another process has begun."""

    @abstractmethod
    def create(self, file: PlannedFile) -> Output:
        """Begin a file with tensors."""

    def stop(self) -> None:  # noqa: B027 - nothing to do for a folder
        """Nobody wants it any more: whoever waits for what was begun need not."""

    @abstractmethod
    def record(self, written: WrittenFile) -> None:
        """Note a file that is complete."""

    @abstractmethod
    def put(self, name: str, content: bytes) -> None:
        """Write a small file. What completes the output is put last."""

    def sketch(self, files: Sequence[PlannedFile]) -> Path:
        """``path``, in which files are as long as these, and begin as they do."""
        return self.path

    def announce(self, names: Iterable[str]) -> None:  # noqa: B027
        """Files of these names are about to appear; one process says so."""

    def reveal(self) -> None:  # noqa: B027
        """Let those with tensors appear that this process has written."""

    def read_again(self, files: Sequence[PlannedFile], small: Iterable[tuple[str, bytes]]) -> Path:
        """``path``, to read what was written from it; ``small``: what is not there yet."""
        return self.path

    @abstractmethod
    def publish(self, *, replace: bool) -> list[str]:
        """Make it the output; with ``replace`` what is there gives way. Warnings, if any."""

    @property
    @abstractmethod
    def is_published(self) -> bool:
        """Whether the output is what was prepared, whatever happened since."""

    @abstractmethod
    def tidy(self) -> list[str]:
        """Settle what a run that was killed left half done; warnings, also of what stays."""

    @abstractmethod
    def clear(self, plan: str) -> list[str]:
        """Where the output is complete: remove what an interrupted run left; warnings."""

    @abstractmethod
    def abandon(self) -> str:
        """Leave without publishing; what there is to say of what is kept or lost."""

    @abstractmethod
    def discard(self) -> str:
        """The same, and keep nothing."""

    @abstractmethod
    def leave(self) -> None:
        """Leave what is published."""
