"""``ckpt inspect``: what a checkpoint is, from its metadata; whether all of it is as written."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path

from ckpt_tool.common.parallel import Team
from ckpt_tool.common.progress import Progress
from ckpt_tool.common.remote.shadow import reach
from ckpt_tool.operations.runs import choose_steps
from ckpt_tool.readers import Checkpoint, open_folders
from ckpt_tool.readers.archives import list_records
from ckpt_tool.readers.base import Entry
from ckpt_tool.readers.damage import describe_damage
from ckpt_tool.tensors.followed_files import prove
from ckpt_tool.tensors.read_sums import DAMAGED, SOUND, UNREAD, UNSAID, ReadSums


@dataclass(frozen=True)
class Scrub:
    """What reading every record of every archive has found.

    ``num_records``: that were read and have a checksum, ``num_damaged`` of them not as written;
    ``num_files``: in which they are; ``num_bytes``: of them. ``unsaid``: files that have no
    checksums, at least in part.
    """

    num_files: int
    num_records: int
    num_damaged: int
    num_bytes: int
    unsaid: list[str]


@dataclass(frozen=True)
class Inspection:
    """A checkpoint and the entries that were asked for, in checkpoint order.

    ``crc``: what its checksums say; None: nobody asked.
    """

    checkpoint: Checkpoint
    entries: tuple[Entry, ...]
    crc: Scrub | None = None

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


def inspect_checkpoint(
    paths: Sequence[str | Path],
    filters: Sequence[str] = (),
    check_crc: Team | None = None,
    progress: Progress | None = None,
    *,
    step: int | str | None = None,
) -> Inspection:
    """Open the checkpoint at ``paths``; list tensors whose name matches one of ``filters``.

    Filters are globs; none lists all. Several paths are the folders of one checkpoint.
    ``check_crc``: whose threads read every record of every archive, and hold it against its CRC-32;
    what is damaged is among the checkpoint's problems then. ``progress`` is told of files.
    ``step``: which one of a run's, as :func:`~ckpt_tool.operations.runs.choose_step` takes it.
    Raises what opening raises.
    """
    checkpoint = open_folders(choose_steps([*map(reach, paths)], step), progress=progress)
    crc = None
    if check_crc is not None:
        checkpoint, crc = scrub(checkpoint, check_crc)
    entries = tuple(
        entry
        for name, entry in checkpoint.entries.items()
        if not filters or any(fnmatchcase(name, pattern) for pattern in filters)
    )
    return Inspection(checkpoint, entries, crc)


def scrub(checkpoint: Checkpoint, team: Team) -> tuple[Checkpoint, Scrub]:
    """Read every record once, in the threads of ``team``.

    The checkpoint with all that is damaged among its problems, archives that lie beside it, as the
    optimizer's do, included. OSError where a file cannot be read.
    """
    records = list_records(checkpoint)
    read = ReadSums(records.sums)
    size = prove(read, list(read.gaps(read.places(UNREAD))), team)
    found = [*records.problems, *describe_damage(checkpoint, read.damaged())]
    known = {(problem.where, problem.message) for problem in checkpoint.problems}
    more = [problem for problem in found if (problem.where, problem.message) not in known]
    checked = read.places(SOUND, DAMAGED)
    result = Scrub(
        num_files=len({path for path, _ in checked}),
        num_records=len(checked),
        num_damaged=len(read.places(DAMAGED)),
        num_bytes=size,
        unsaid=sorted({*records.plain, *(path for path, _ in read.places(UNSAID))}),
    )
    return replace(checkpoint, problems=(*checkpoint.problems, *more)), result
