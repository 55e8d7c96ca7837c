"""The processes of a run read the files of ranks once among them, and each has what all found."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from ckpt_tool.common.errors import CkptError
from ckpt_tool.common.garbage import pause_collection
from ckpt_tool.common.parallel import Team
from ckpt_tool.readers import formats
from ckpt_tool.readers.fsdp.ranks import locate_fsdp
from ckpt_tool.readers.fsdp.shares import Share, hand_out, read_share
from ckpt_tool.readers.runs import find_only


@contextmanager
def read_together(paths: Sequence[Path], team: Team) -> Iterator[None]:
    """What of the checkpoint at ``paths`` is opened inside the block is read by all of ``team``.

    Each process reads some of the rank files of FSDP, and tells the others what is in them. Other
    formats each process reads whole. What cannot be read says whoever opens it. To be entered
    where all processes are, as :meth:`~ckpt_tool.common.parallel.World.everyone` is called;
    PeerError where one of them fails.
    """
    if team.world.size == 1:
        yield
        return
    shares = team.world.everyone(lambda: _read(paths, team))
    with hand_out([share for share in shares if share is not None]):
        yield


def _read(paths: Sequence[Path], team: Team) -> Share | None:
    try:
        folders = [_find(path, alone=len(paths) == 1) for path in paths]
        found = [folder for folder in folders if folder is not None]
        if len(found) < len(folders):
            return None
        with pause_collection():
            return read_share(found, team)
    except (CkptError, OSError, ValueError):  # the last: no file is there any more
        return None


def _find(path: Path, *, alone: bool) -> Path | None:
    """The folder of rank files at or below ``path``, found as opening it does; None: no ranks."""
    found = locate_fsdp(path)
    return locate_fsdp(find_only(path, formats.FORMATS)) if found is None and alone else found
