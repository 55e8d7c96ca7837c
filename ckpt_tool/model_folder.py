"""Writing a planned Hugging Face model folder: weights, side files, config, manifest, checks."""

from __future__ import annotations

import hashlib
import json
import os
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from ckpt_tool.blocks import FileTable
from ckpt_tool.check_load import LoadCheck, check_load
from ckpt_tool.equality import Pair, first_differences
from ckpt_tool.errors import CkptError, OutputError, UsageError
from ckpt_tool.plan import MANIFEST_NAME, Cast, ModelPlan, casts_of, manifest, overflows
from ckpt_tool.progress import Progress
from ckpt_tool.readers.huggingface import open_huggingface
from ckpt_tool.version import __version__
from ckpt_tool.writers.huggingface import INDEX_NAME, index_json
from ckpt_tool.writers.staging import Staging, check_space, check_target
from ckpt_tool.writers.stream import StreamWriter, WrittenFile


@dataclass(frozen=True)
class WriteOptions:
    """How a folder is written: see the flags of the same names.

    Without ``fsync`` the kernel writes to disk when it likes: a power cut may then lose the result.
    """

    verify: bool = False
    check_load: bool = False
    overwrite: bool = False
    resume: bool = False
    fsync: bool = True


@dataclass(frozen=True)
class WriteResult:
    """What was written. ``differences``: tensors that did not read back as planned.

    ``seconds`` is everything, checks included; ``bytes_per_second`` the writing alone.
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


def check_plan(plan: ModelPlan, out: Path, options: WriteOptions) -> LoadCheck | None:
    """Everything that can be refused before a byte is written.

    OutputError unless ``out`` may be written and there is room; with ``check_load`` MappingError
    unless transformers wants exactly these tensors.
    """
    protected = [Path(file.path) for file in plan.checkpoint.files]
    if plan.config is not None:
        protected.append(plan.config.folder)
    check_target(out, replace=options.overwrite, protected=protected)
    check_space(out, plan.total_bytes)
    if not options.check_load:
        return None
    if plan.config is None:
        raise UsageError("--check-load needs a config: it cannot go with --config none")
    return check_load(plan.config, {name: t.shape for name, t in plan.tensors.items()})


def write_model(
    plan: ModelPlan, out: Path, options: WriteOptions, jobs: int, progress: Progress
) -> WriteResult:
    """Write ``plan`` to ``out``, which appears complete or not at all.

    Raises OutputError where it cannot be written, MappingError where ``check_load`` finds that
    the model does not open. When reading back finds a difference nothing is published, and the
    result lists the tensors.
    """
    started = time.monotonic()
    out = Path(os.path.realpath(out))
    loaded = check_plan(plan, out, options)
    staging = Staging(out, _fingerprint(plan), resume=options.resume, fsync=options.fsync)
    try:
        begun = time.monotonic()
        written = _write_weights(plan, staging, jobs, progress)
        write_seconds = time.monotonic() - begun
        _write_small_files(plan, staging, written)
        differences = _read_back(plan, staging.path, jobs, progress) if options.verify else []
        if not differences:
            staging.publish(replace=options.overwrite)
    except BaseException as error:
        raise _explained(error, staging) from error
    if differences:
        staging.discard()
    return WriteResult(
        format=plan.checkpoint.format,
        output=out,
        num_tensors=len(plan.tensors),
        total_bytes=plan.total_bytes,
        files=written,
        casts=casts_of(plan, written),
        seconds=time.monotonic() - started,
        bytes_per_second=plan.total_bytes / max(write_seconds, 1e-9),
        verified=not differences if options.verify else None,
        warnings=plan.warnings + overflows(plan, written),
        dropped=plan.dropped,
        differences=differences,
        load_check=loaded,
    )


def _fingerprint(plan: ModelPlan) -> str:
    """Changes when the source files or any planned byte range do: what ``resume`` compares."""
    sources = [
        (file.path, file.bytes, os.stat(file.path).st_mtime_ns) for file in plan.checkpoint.files
    ]
    whole = hashlib.sha256(json.dumps([__version__, sources]).encode())
    for file in plan.files:
        whole.update(file.name.encode() + file.header)
    return whole.hexdigest()


def _write_weights(
    plan: ModelPlan, staging: Staging, jobs: int, progress: Progress
) -> list[WrittenFile]:
    """Stream the weight files; each is synced by a thread of its own while the next is written."""
    progress.start("writing", plan.total_bytes)
    with (
        FileTable() as sources,
        ThreadPoolExecutor(1, thread_name_prefix="ckpt-sync") as syncer,
        StreamWriter(sources, jobs, progress.advance) as writer,
    ):
        pending: list[Future[None]] = []
        for file in plan.files:
            if file.name in staging.finished:
                writer.learn(staging.finished[file.name].cast_errors)
                progress.advance(file.size)
                continue
            descriptor, written = writer.write(staging.path / file.name, file)
            pending.append(syncer.submit(_finish, descriptor, written, staging))
            if len(pending) > 4:
                pending.pop(0).result()
        for task in pending:
            task.result()
    return [staging.finished[file.name] for file in plan.files]


def _finish(descriptor: int, written: WrittenFile, staging: Staging) -> None:
    try:
        staging.sync(descriptor)
    finally:
        os.close(descriptor)
    staging.record(written)


def _write_small_files(plan: ModelPlan, staging: Staging, written: list[WrittenFile]) -> None:
    """Side files, manifest, index and config: in this order, the config completes the folder."""
    if plan.config is not None:
        for name, path in plan.config.side_files().items():
            staging.put(name, path.read_bytes())
    staging.put(MANIFEST_NAME, _json(manifest(plan, written)))
    index = index_json(plan.files)
    if index is not None:
        staging.put(INDEX_NAME, index)
    if plan.config is not None:
        staging.put("config.json", plan.config.to_bytes())


def _json(value: object) -> bytes:
    return (json.dumps(value, indent=2) + "\n").encode()


def _read_back(plan: ModelPlan, folder: Path, jobs: int, progress: Progress) -> list[str]:
    """Names whose written tensor is not, bit for bit, what was planned."""
    progress.start("verifying", plan.total_bytes)
    for file in plan.files:
        _forget_cached(folder / file.name)
    result = open_huggingface(folder)
    result.require_sound()
    names = set(result) ^ set(plan.tensors)
    pairs = []
    for name, tensor in plan.tensors.items():
        if name in names:
            continue
        found = result[name]
        if (found.shape, found.dtype) != (tensor.shape, tensor.dtype):
            names.add(name)
        else:
            pairs.append(Pair(name, tensor, found))
    return sorted(names | set(first_differences(pairs, jobs, progress.advance)))


def _forget_cached(path: Path) -> None:
    """Drop a synced file from the page cache: what is read back comes from the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


def _explained(error: BaseException, staging: Staging) -> BaseException:
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
