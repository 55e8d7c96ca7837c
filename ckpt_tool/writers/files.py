"""Writing the files with tensors: several one after the other, each by several threads."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import Future

from ckpt_tool.common.progress import Progress
from ckpt_tool.common.threads import Threads
from ckpt_tool.tensors.blocks import FileTable
from ckpt_tool.tensors.followed_files import FollowedFiles
from ckpt_tool.tensors.read_sums import ReadSums
from ckpt_tool.writers.planned import PlannedFile
from ckpt_tool.writers.staging import Staging
from ckpt_tool.writers.stream import StreamWriter, WrittenFile, count_tasks

#: Files that may wait for the disk while the next is written.
_UNSYNCED = 4


def write_files(
    files: Sequence[PlannedFile],
    staging: Staging,
    jobs: int,
    progress: Progress,
    sums: ReadSums | None = None,
) -> list[WrittenFile]:
    """Write ``files`` with ``jobs`` threads, those that are finished already excepted.

    Each is synced by a thread of its own while the next is written. ``sums`` is told of all that is
    read. OSError where the disk is full or a source cannot be read.
    """
    jobs = min(jobs, max((count_tasks(file.size) for file in files), default=1))
    progress.start("writing", sum(file.size for file in files))
    with (
        FileTable(passes=True) if sums is None else FollowedFiles(sums) as sources,
        Threads(1, "ckpt-sync") as syncer,
        StreamWriter(sources, jobs, progress.advance, direct=staging.direct) as writer,
    ):
        pending: list[Future[None]] = []
        for file in files:
            if file.name in staging.finished:
                writer.errors.learn_all(staging.finished[file.name].cast_errors)
                progress.advance(file.size)
                continue
            path = staging.path / file.name
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor, written = writer.write(path, file)
            pending.append(syncer.submit(_finish, descriptor, written, staging))
            if len(pending) > _UNSYNCED:
                pending.pop(0).result()
        for task in pending:
            task.result()
    return [staging.finished[file.name] for file in files]


def _finish(descriptor: int, written: WrittenFile, staging: Staging) -> None:
    """Sync and close a file, and only then note that it is complete."""
    try:
        staging.sync(descriptor)
    finally:
        os.close(descriptor)
    staging.record(written)
