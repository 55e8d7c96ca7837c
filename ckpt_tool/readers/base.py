"""What every reader hands out: a checkpoint as a mapping from FQN to lazy tensor."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from ckpt_tool.common.errors import CheckpointError, FormatError, Problem, UnsafeContentError
from ckpt_tool.readers.find import locate_config_beside
from ckpt_tool.readers.holdings import Entry as Entry  # noqa: PLC0414 (for all who read)
from ckpt_tool.readers.holdings import Holding as Holding  # noqa: PLC0414
from ckpt_tool.readers.reading import note_file
from ckpt_tool.readers.shard_file import ShardFile as ShardFile  # noqa: PLC0414
from ckpt_tool.tensors.checksums import FileSums
from ckpt_tool.tensors.geometry import Box, Shape
from ckpt_tool.tensors.lazy import LazyTensor

#: Told the FQN of a tensor, says whether to look at it.
Wanted = Callable[[str], bool]

#: The kind of problem that a file is which cannot be read.
UNREADABLE = "unreadable"

#: What is wrong with blocks of which nobody can say whether they tile their tensor.
TANGLED = "its blocks cut across each other in more ways than any writer cuts a tensor"


@dataclass(frozen=True, slots=True)
class Mesh:
    """A device mesh: ``shape``, the number of ranks per dimension, and ``dim_names``.

    ``dim_names`` has a name per dimension, or is None where the checkpoint names none.
    """

    shape: Shape
    dim_names: tuple[str, ...] | None

    def __str__(self) -> str:
        names = self.dim_names or ("",) * len(self.shape)
        return " x ".join(f"{name} {n}".strip() for name, n in zip(names, self.shape, strict=True))


@dataclass(frozen=True)
class Checkpoint(Mapping[str, LazyTensor]):
    """A checkpoint on disk: its tensors, its files, and everything that is wrong with it.

    A mapping from FQN to :class:`~ckpt_tool.tensors.lazy.LazyTensor`, in the order of the files.
    Looking one up raises CheckpointError, which lists all ``problems``, while there are any, and
    KeyError for a name that it lacks; ``entries`` can be listed all the same.

    ``format``: a row of :data:`.formats.FORMATS`. ``path``: where it was found, at or
    below what was asked for (``named``). ``files``: those with tensors. ``world_size``, ``mesh``:
    the ranks that wrote it, ``step``: of training; None where no file says it. ``side_files``: with
    config and tokenizer, if any. ``left_out``: tensors that were to be left alone. ``objects``:
    what else was saved. ``sums``: the checksums of files that have some, by path. ``others``:
    models that are read with it, whose files and checksums are among these. ``warnings``: what
    lies there and was not used. ``groups``: what a tensor's name begins with, up to the dictionary
    that it is in, where files say so.
    """

    format: str
    path: Path
    entries: dict[str, Entry]
    files: tuple[ShardFile, ...]
    problems: tuple[Problem, ...] = ()
    world_size: int | None = None
    mesh: Mesh | None = None
    side_files: Path | None = None
    left_out: dict[str, Entry] = field(default_factory=dict)
    objects: tuple[str, ...] = ()
    step: int | None = None
    named: tuple[Path, ...] = ()
    sums: dict[str, FileSums] = field(default_factory=dict, repr=False)
    others: tuple[Checkpoint, ...] = field(default=(), repr=False)
    warnings: tuple[str, ...] = ()
    groups: dict[str, str] = field(default_factory=dict, repr=False)
    _tensors: dict[str, LazyTensor] = field(default_factory=dict, repr=False, compare=False)

    def __getitem__(self, name: str) -> LazyTensor:
        entry = self.entries[name]
        self.require_sound()
        if name not in self._tensors:
            self._tensors[name] = entry.tensor()
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)

    def require_sound(self) -> None:
        """Raise CheckpointError with every problem, if there is one."""
        if self.problems:
            count = len(self.problems)
            raise CheckpointError(
                f"{self.path}: {count} problem{'s' if count > 1 else ''} in this checkpoint",
                self.problems,
                hint=f"See all of it with: ckpt inspect {self.path}",
            )


#: ``memory``: a transformers model's in memory. ``nested``: the same, nested in dictionaries or
#: spelled in a framework's own way. ``megatron``: megatron-core's. ``hub``: those on the Hub.
Names = Literal["memory", "nested", "megatron", "hub"]


@dataclass(frozen=True, slots=True)
class Parts:
    """How a checkpoint is read of which every node has a part in a folder of its own.

    ``locate``: where a part lies at or below a path, as that of a whole one; ``open``: reads the
    metadata of all parts together, leaving alone what is not wanted, where a format can do that.
    """

    locate: Callable[[Path], Path | None]
    open: Callable[[Sequence[Path], Wanted | None], Checkpoint]


@dataclass(frozen=True, slots=True)
class Format:
    """A kind of checkpoint that is read: one row of :data:`ckpt_tool.readers.formats.FORMATS`.

    ``name``: the ``format`` of its checkpoints; ``title``: what people call it. ``files``: how to
    know it by its files, said where nothing is known; empty for single files, which need no such
    advice. ``locate``: where one lies at or below a path, or None where that has none; it looks at
    names of files only. ``open``: reads the metadata of what was located. ``open_wanted``: as
    ``open``, leaving alone what is not wanted, where a format can do that. ``merge_command``:
    which ``ckpt merge`` makes a model of it; empty where none does. ``names``: whose its tensors'
    names are, which says how they are brought to the Hub. ``parts``: for those that several folders
    may hold together. ``config``: where a checkpoint that was located has its ``config.json``, or
    None; it looks at names of files only.
    """

    name: str
    title: str
    files: str
    locate: Callable[[Path], Path | None]
    open: Callable[[Path], Checkpoint]
    open_wanted: Callable[[Path, Wanted], Checkpoint] | None = None
    merge_command: str = ""
    names: Names = "memory"
    parts: Parts | None = None
    config: Callable[[Path], Path | None] = locate_config_beside


@contextmanager
def collect(
    problems: list[Problem], kind: str, where: object, block: Box | None = None
) -> Iterator[None]:
    """Add what cannot be read to ``problems``, and go on behind the block.

    ``where``: the file or tensor that it is about; ``block``: which block of it. FormatError and
    OSError are collected; UnsafeContentError, which no other problem may outweigh, is not. Whoever
    waits is told of each file that was looked at (``unreadable`` is what can be wrong with one).
    """
    try:
        yield
        return
    except UnsafeContentError:
        raise
    except FormatError as error:
        message = error.reason if error.path == str(where) else error.message
    except OSError as error:
        message = str(error)
    finally:
        if kind == UNREADABLE and block is None:
            note_file()
    if block is not None:
        message = f"block {block}: {message}"
    problems.append(Problem(kind, str(where), message))


@contextmanager
def name_file(path: str | Path) -> Iterator[None]:
    """Say in a FormatError of the block that it is about ``path``, unless it names a file."""
    try:
        yield
    except FormatError as error:
        error.path = error.path or str(path)
        raise
