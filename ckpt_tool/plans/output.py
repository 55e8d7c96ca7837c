"""What writing a model folder and writing a checkpoint share: options, result, files, errors."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from ckpt_tool.common.errors import CkptError, OutputError
from ckpt_tool.common.parallel import Team
from ckpt_tool.common.progress import Progress
from ckpt_tool.mapping.lora.options import LoraNote
from ckpt_tool.plans.checks.transformers import LoadCheck
from ckpt_tool.plans.plan import Cast
from ckpt_tool.tensors.blocks import FileTable
from ckpt_tool.tensors.equality import Pair, first_differences
from ckpt_tool.tensors.lazy import LazyTensor
from ckpt_tool.writers.planned import PlannedFile
from ckpt_tool.writers.staging import Workplace
from ckpt_tool.writers.stream import StreamWriter, WrittenFile


@dataclass(frozen=True)
class WriteOptions:
    """How a folder is written: see the flags of the same names.

    Without ``fsync`` the kernel writes to disk when it likes: a power cut may then lose the result.
    ``direct``: past the page cache; None: where there is ``fsync``.
    """

    verify: bool = False
    check_load: bool = False
    overwrite: bool = False
    resume: bool = False
    fsync: bool = True
    direct: bool | None = None

    @property
    def is_direct(self) -> bool:
        """Whether weight files are written past the page cache, where the file system can."""
        return self.fsync if self.direct is None else self.direct


@dataclass(frozen=True)
class WriteResult:
    """What was written. ``differences``: tensors that did not read back as planned.

    ``seconds`` is everything, checks included; ``bytes_per_second`` the writing alone.
    ``already_complete``: all of it was there before, and nothing was written again.
    """

    format: str
    output: Path
    num_tensors: int
    total_bytes: int
    files: list[WrittenFile]
    casts: list[Cast]
    seconds: float
    bytes_per_second: float
    verified: bool | None
    warnings: list[str]
    dropped: dict[str, str]
    differences: list[str] = field(default_factory=list)
    load_check: LoadCheck | None = None
    lora: LoraNote | None = None
    already_complete: bool = False


def write_files(
    files: Sequence[PlannedFile], staging: Workplace, jobs: int, progress: Progress
) -> list[WrittenFile]:
    """Stream the weight files; each is synced by a thread of its own while the next is written."""
    progress.start("writing", sum(file.size for file in files))
    with (
        FileTable() as sources,
        ThreadPoolExecutor(1, thread_name_prefix="ckpt-sync") as syncer,
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
            if len(pending) > 4:
                pending.pop(0).result()
        for task in pending:
            task.result()
    return [staging.finished[file.name] for file in files]


def differences(
    planned: Mapping[str, LazyTensor], found: Mapping[str, LazyTensor], team: Team
) -> list[str]:
    """Names that only one side has, or whose tensors are not equal bit for bit.

    Every process of the team compares its share, and all learn of all.
    """
    names = set(found) ^ set(planned)
    pairs = []
    for name, tensor in planned.items():
        if name in names:
            continue
        other = found[name]
        if (other.shape, other.dtype) != (tensor.shape, tensor.dtype):
            names.add(name)
        else:
            pairs.append(Pair(name, tensor, other))
    share = [pairs[index] for index in team.world.share([pair.left.nbytes for pair in pairs])]
    team.progress.start("verifying", sum(pair.left.nbytes for pair in share))
    different = team.world.everyone(
        lambda: list(first_differences(share, team.jobs, team.progress.advance))
    )
    return sorted(names.union(*different))


def _finish(descriptor: int, written: WrittenFile, staging: Workplace) -> None:
    try:
        staging.sync(descriptor)
    finally:
        os.close(descriptor)
    staging.record(written)


def json_bytes(value: object) -> bytes:
    return (json.dumps(value, indent=2) + "\n").encode()


def forget_cached(path: Path) -> None:
    """Drop a synced file from the page cache: what is read back comes from the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


def explained(error: BaseException, staging: Workplace) -> BaseException:
    """The error to raise for ``error``: with what is left on disk, and how to go on."""
    kept = staging.abandon()
    note = f"{kept} finished files are kept in {staging.path}: --resume continues with them."
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        error = OutputError(f"{staging.out}: {where}{error.strerror or error}")
    if kept and isinstance(error, CkptError):
        error.hint = f"{error.hint} {note}".strip()
    elif kept and isinstance(error, KeyboardInterrupt):
        error = KeyboardInterrupt(note)
    return error
