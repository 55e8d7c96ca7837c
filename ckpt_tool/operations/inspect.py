"""``ckpt inspect``: what a checkpoint is, from its metadata alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from ckpt_tool.readers import Checkpoint, open_checkpoint, open_fsdp_folders
from ckpt_tool.readers.base import Entry


@dataclass(frozen=True)
class Inspection:
    """A checkpoint and the entries that were asked for, in checkpoint order."""

    checkpoint: Checkpoint
    entries: tuple[Entry, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong with the checkpoint as a whole."""
        return not self.checkpoint.problems

    @property
    def num_parameters(self) -> int:
        """Elements of all listed tensors."""
        return sum(entry.numel for entry in self.entries)

    @property
    def total_bytes(self) -> int:
        """Bytes of all listed tensors, each counted once."""
        return sum(entry.nbytes for entry in self.entries)

    @property
    def dtypes(self) -> dict[str, int]:
        """Number of listed tensors per dtype."""
        return dict(Counter(entry.dtype.name for entry in self.entries).most_common())


def inspect_checkpoint(paths: Sequence[str | Path], filters: Sequence[str] = ()) -> Inspection:
    """Open the checkpoint at ``paths``; list tensors whose name matches one of ``filters``.

    Filters are globs; none lists all. Several paths are the folders of one FSDP checkpoint.
    Raises what opening raises.
    """
    checkpoint = open_checkpoint(paths[0]) if len(paths) == 1 else open_fsdp_folders(paths)
    entries = tuple(
        entry
        for name, entry in checkpoint.entries.items()
        if not filters or any(fnmatchcase(name, pattern) for pattern in filters)
    )
    return Inspection(checkpoint, entries)
