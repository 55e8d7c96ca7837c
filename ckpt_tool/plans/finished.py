"""Whether an output folder is already what a plan would write: then it is not written again."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from ckpt_tool.common.progress import Progress
from ckpt_tool.plans.plan import MANIFEST_NAME
from ckpt_tool.writers.planned import PlannedFile
from ckpt_tool.writers.stream import WrittenFile, digest_file

SmallFiles = Callable[[list[WrittenFile]], Iterable[tuple[str, bytes]]]


def finished_files(
    out: Path, files: list[PlannedFile], small_files: SmallFiles, progress: Progress
) -> list[WrittenFile] | None:
    """The files with tensors, as written before, if ``out`` is exactly what would be written.

    Its manifest must be the one that this plan gives, with the digests and cast errors that it
    has; so must every other small file, byte for byte; there must be no further file; and the
    tensors' files must have the digests of the manifest, for which they are read. None if not.
    """
    written = _written(out / MANIFEST_NAME)
    if [(w.name, w.size) for w in written] != [(file.name, file.size) for file in files]:
        return None
    small = dict(small_files(written))
    if _names(out) != {*small, *(w.name for w in written)}:
        return None
    if any((out / name).read_bytes() != content for name, content in small.items()):
        return None
    progress.start("checking", sum(w.size for w in written))
    for file in written:
        path = out / file.name
        if path.stat().st_size != file.size or digest_file(path) != file.digest:
            return None
        progress.advance(file.size)
    return written


def _written(manifest: Path) -> list[WrittenFile]:
    """What a manifest says of the files with tensors; nothing where it is none of ours.

    The errors of casts go with the first file: together they are what the manifest has.
    """
    try:
        found = json.loads(manifest.read_bytes())
        errors = tuple(map(_cast_error, found["casts"]))
        rows = [(row["name"], row["bytes"], row["digest"]) for row in found["files"]]
    except (OSError, ValueError, KeyError, TypeError):
        return []
    return [WrittenFile(*row, () if number else errors) for number, row in enumerate(rows)]


def _cast_error(row: dict[str, Any]) -> tuple[str, str, float]:
    error = row["max_abs_error"]
    return row["from"], row["to"], float("inf") if error == "overflow" else float(error)


def _names(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir()}
