"""What can go wrong, as types.

::

    CkptError                 anything the tool refuses; the CLI shows it and exits with 2
    ├── UsageError            the request itself makes no sense (flags, paths)
    │   └── AmbiguousError       a folder holds several checkpoints, and one has to be named
    ├── FormatError           a file is not what its format says (truncated, corrupt, unknown)
    │   ├── UnsafeContentError   a pickle names something that is not tensor metadata
    │   └── UnknownFormatError   a folder holds nothing that is read
    ├── CheckpointError       files are readable, but the checkpoint is incomplete or contradictory
    ├── MappingError          names cannot be brought into the wanted form
    ├── OutputError           the output cannot be written (exists, no space, changed plan)
    ├── LostError             another process of the run is gone
    ├── StoreError            an object store or a server is not reached, or refuses
    └── UploadError           the Hub is not reached or refuses: token, repository, connection

``message``, which ``str`` gives, says what, where and what was expected; ``hint`` says what to do
next.
"""

from __future__ import annotations

import errno
import resource
from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike, fspath

from ckpt_tool.common.remote.naming import name_places

#: What Python and libraries raise where an import, a thread or an array gets no memory.
_OF_LITTLE_MEMORY = (ImportError, SystemError, RuntimeError)


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong with a checkpoint.

    ``kind`` is a stable machine-readable word ("missing-rank", "truncated", "coverage", ...),
    ``where`` the file or tensor it is about, ``message`` the sentence for people.
    """

    kind: str
    where: str
    message: str

    def __str__(self) -> str:
        return name_places(f"{self.where}: {self.message}")


class CkptError(Exception):
    """Base of every error this package raises on purpose."""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.reason = message
        self.hint = name_places(hint)

    @property
    def message(self) -> str:
        """The sentence for people."""
        return name_places(self.reason)

    def __str__(self) -> str:
        return self.message


class UsageError(CkptError):
    """The request cannot be carried out as given, whatever the files hold."""


class AmbiguousError(UsageError):
    """Several checkpoints are at or below what was named; ``choices``: a path for each.

    ``has_steps``: they may be steps of one run, the last of which can be asked for. ``models``:
    those that are whole models, which nobody merges.
    """

    def __init__(
        self,
        message: str,
        choices: Sequence[PathLike[str]],
        *,
        hint: str = "",
        has_steps: bool = False,
        models: Sequence[PathLike[str]] = (),
    ) -> None:
        super().__init__(message, hint=hint or "Name the one you mean.")
        self.choices = tuple(map(fspath, choices))
        self.models = tuple(map(fspath, models))
        self.has_steps = has_steps


class FormatError(CkptError):
    """The file ``path`` does not follow its format.

    ``reason`` says what is wrong with it; ``message`` begins with the path, where it is known.
    """

    def __init__(self, message: str, *, path: str | PathLike[str] = "", hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.path = fspath(path)

    @property
    def message(self) -> str:
        """``path: reason``."""
        return name_places(f"{self.path}: {self.reason}" if self.path else self.reason)


class UnsafeContentError(FormatError):
    """A pickle asks for something other than tensor metadata; nothing of it was run."""


class UnknownFormatError(FormatError):
    """The folder ``path`` holds no checkpoint; ``expected``: how those are known that are read."""

    def __init__(
        self,
        message: str,
        *,
        path: str | PathLike[str],
        expected: Sequence[str] = (),
        hint: str = "",
    ) -> None:
        super().__init__(message, path=path, hint=hint)
        self.expected = tuple(expected)


class CheckpointError(CkptError):
    """The checkpoint as a whole has problems; ``problems`` lists every one of them."""

    def __init__(self, message: str, problems: Sequence[Problem] = (), *, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.problems = tuple(problems)


class MappingError(CkptError):
    """Tensor names cannot be brought into the wanted form; ``names`` lists them."""

    def __init__(self, message: str, names: Sequence[str] = (), *, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.names = tuple(names)


class OutputError(CkptError):
    """The output cannot be written."""


class LostError(CkptError):
    """Another process is gone, and will not say why.

    ``is_said``: whether process ``rank`` is the one to say so: the first or, in its place, the
    second.
    """

    def __init__(self, lost: str, rank: int) -> None:
        """``lost``: which; empty where that was not found out."""
        who = lost or "another process of this run"
        super().__init__(f"{who} is gone: it was killed, or its machine or network is down")
        self.is_said = rank == (1 if lost.startswith("rank 0") else 0)


class StoreError(CkptError):
    """An object store or a server is not reached, or refuses what it is asked."""


class UploadError(CkptError):
    """The Hub is not reached, or refuses what it is asked."""


def say_cause(error: OSError) -> str:
    """What the system says of which file."""
    where = f"{error.filename}: " if error.filename else ""
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    why = ""
    if error.errno == errno.EFBIG and limit != resource.RLIM_INFINITY:
        why = f": no file of this process may have more than {limit:,} bytes (ulimit -f)"
    return f"{where}{error.strerror or error}{why}"


def lacks_memory(error: BaseException) -> bool:
    """Whether there was no memory; libraries report that in many ways, where there is a limit."""
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    is_limited = limit != resource.RLIM_INFINITY and isinstance(error, _OF_LITTLE_MEMORY)
    return isinstance(error, MemoryError) or is_limited


def say_lack_of_memory() -> str:
    """The sentence for what :func:`lacks_memory`, with the limit that there is."""
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    may = f", or more than the {limit:,} bytes that this process may have (ulimit -v)"
    return f"this takes more memory than there is{may if limit != resource.RLIM_INFINITY else ''}"
