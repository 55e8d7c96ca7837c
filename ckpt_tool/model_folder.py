"""Writing a planned Hugging Face model folder: weights, side files, config, manifest, checks."""

from __future__ import annotations

import os
import time
from pathlib import Path

from ckpt_tool.check_load import LoadCheck, check_load
from ckpt_tool.errors import UsageError
from ckpt_tool.output import (
    WriteOptions,
    WriteResult,
    differences,
    explained,
    fingerprint,
    forget_cached,
    json_bytes,
    write_files,
)
from ckpt_tool.parallel import ALONE, Team
from ckpt_tool.plan import MANIFEST_NAME, ModelPlan, casts_of, manifest, overflows
from ckpt_tool.progress import Progress
from ckpt_tool.readers.huggingface import open_huggingface
from ckpt_tool.writers.huggingface import INDEX_NAME, index_json
from ckpt_tool.writers.staging import Staging, check_space, check_target
from ckpt_tool.writers.stream import WrittenFile


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
    staging = Staging(
        out,
        fingerprint(plan.checkpoint.files, plan.files),
        resume=options.resume,
        fsync=options.fsync,
        direct=options.is_direct,
    )
    try:
        begun = time.monotonic()
        written = write_files(plan.files, staging, jobs, progress)
        write_seconds = time.monotonic() - begun
        _write_small_files(plan, staging, written)
        different = _read_back(plan, staging.path, jobs, progress) if options.verify else []
        if not different:
            staging.publish(replace=options.overwrite)
    except BaseException as error:
        raise explained(error, staging) from error
    if different:
        staging.discard()
    return WriteResult(
        format=plan.checkpoint.format,
        output=out,
        num_tensors=len(plan.tensors),
        total_bytes=plan.total_bytes,
        files=written,
        casts=casts_of(plan.casts(), written),
        seconds=time.monotonic() - started,
        bytes_per_second=plan.total_bytes / max(write_seconds, 1e-9),
        verified=not different if options.verify else None,
        warnings=plan.warnings + overflows(plan.casts(), written),
        dropped=plan.dropped,
        differences=different,
        load_check=loaded,
    )


def _write_small_files(plan: ModelPlan, staging: Staging, written: list[WrittenFile]) -> None:
    """Side files, manifest, index and config: in this order, the config completes the folder."""
    if plan.config is not None:
        for name, path in plan.config.side_files().items():
            staging.put(name, path.read_bytes())
    staging.put(
        MANIFEST_NAME, json_bytes(manifest(plan.checkpoint, plan.casts(), plan.dropped, written))
    )
    index = index_json(plan.files)
    if index is not None:
        staging.put(INDEX_NAME, index)
    if plan.config is not None:
        staging.put("config.json", plan.config.to_bytes())


def _read_back(plan: ModelPlan, folder: Path, jobs: int, progress: Progress) -> list[str]:
    """Names whose written tensor is not, bit for bit, what was planned."""
    for file in plan.files:
        forget_cached(folder / file.name)
    result = open_huggingface(folder)
    result.require_sound()
    return differences(plan.tensors, result, Team(ALONE, jobs, progress))
