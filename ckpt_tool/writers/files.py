"""Writing the files with tensors: several one after the other, each by several threads."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future

from ckpt_tool.common.progress import Progress
from ckpt_tool.common.threads import Threads
from ckpt_tool.tensors.blocks import FileTable
from ckpt_tool.tensors.followed_files import FollowedFiles
from ckpt_tool.tensors.read_sums import ReadSums
from ckpt_tool.writers.outfile import Output
from ckpt_tool.writers.planned import PlannedFile
from ckpt_tool.writers.preparation import Preparation
from ckpt_tool.writers.stream import StreamWriter, WrittenFile, count_tasks

#: Files that may wait for the disk, or the network, while the next is written.
_UNSYNCED = 4


def write_files(
    files: Sequence[PlannedFile],
    staging: Preparation,
    jobs: int,
    progress: Progress,
    sums: ReadSums | None = None,
) -> list[WrittenFile]:
    """Write ``files`` with ``jobs`` threads, those that are finished already excepted.

    Each is synced by a thread of its own while the next is written. ``sums`` is told of all that is
    read. OSError where the disk is full or a source cannot be read, StoreError where a store
    refuses.
    """
    jobs = min(jobs, max((count_tasks(file.size) for file in files), default=1))
    progress.start("writing", sum(file.size for file in files))
    with (
        FileTable(passes=True) if sums is None else FollowedFiles(sums) as sources,
        Threads(1, "ckpt-sync") as syncer,
        StreamWriter(sources, jobs, progress.advance, direct=staging.direct) as writer,
    ):
        try:
            _write_each(files, staging, writer, syncer)
        except BaseException:
            staging.stop()
            raise
    return [staging.finished[file.name] for file in files]


def _write_each(
    files: Sequence[PlannedFile], staging: Preparation, writer: StreamWriter, syncer: Threads
) -> None:
    pending: list[Future[None]] = []
    for file in files:
        if file.name in staging.finished:
            writer.errors.learn_all(staging.finished[file.name].cast_errors)
            writer.advance(file.size)
            continue
        output = staging.create(file)
        written = writer.write(output, file)
        pending.append(syncer.submit(_finish, output, written, staging))
        if len(pending) > _UNSYNCED:
            pending.pop(0).result()
    for task in pending:
        task.result()


def _finish(output: Output, written: WrittenFile, staging: Preparation) -> None:
    """Wait until a file is where it goes, and only then note that it is complete."""
    try:
        output.settle()
    finally:
        output.close()
    staging.record(written)
