"""``ckpt_manifest.json``: where an output came from. Made, read, and held against a folder."""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ckpt_tool.common.progress import Progress
from ckpt_tool.common.version import __version__
from ckpt_tool.plans.options import Cast
from ckpt_tool.readers.base import Checkpoint, ShardFile
from ckpt_tool.tensors.chunks import Chunked
from ckpt_tool.writers.planned import PlannedFile, Seal
from ckpt_tool.writers.stream import DIGEST, WrittenFile, digest_file
from ckpt_tool.writers.target import list_files

MANIFEST_NAME = "ckpt_manifest.json"

SmallFiles = Callable[[list[WrittenFile]], Iterable[tuple[str, bytes]]]


def make_manifest(
    source: Checkpoint,
    casts: Sequence[Cast],
    written: Sequence[WrittenFile],
    more: Mapping[str, object],
) -> bytes:
    """The manifest, with ``more`` keys at its end. Sources are as they were when they were opened.

    It has no absolute paths, so that it can be published with the model.
    """
    files = [
        {"name": Path(file.path).name, "bytes": file.bytes, "mtime_ns": file.mtime_ns}
        for file in source.files
    ]
    found = {
        "tool": "ckpt-tool",
        "version": __version__,
        "source": {"format": source.format, "world_size": source.world_size, "files": files},
        "digest": DIGEST,
        "files": [{"name": w.name, "bytes": w.size, "digest": w.digest} for w in written],
        "casts": [cast_json(cast) for cast in casts],
    }
    return encode_json({**found, **more})


def encode_json(value: object) -> bytes:
    """A JSON file for people."""
    return (json.dumps(value, indent=2) + "\n").encode()


def cast_json(cast: Cast) -> dict[str, object]:
    """A cast as JSON, which has no infinity: an overflow is said in words."""
    error = cast.max_abs_error
    return {
        "from": cast.source,
        "to": cast.target,
        "num_tensors": cast.num_tensors,
        "max_abs_error": error if error < float("inf") else "overflow",
    }


@dataclass(frozen=True)
class Comparison:
    """A folder held against what would be written there.

    ``written``: the files with tensors, by its manifest. ``faults``: what is too many, missing or
    different, a sentence each; nothing where the folder is complete.
    """

    written: list[WrittenFile]
    faults: list[str]


def compare_folder(
    out: Path,
    files: Sequence[PlannedFile],
    small_files: SmallFiles,
    plan: str,
    progress: Progress,
) -> Comparison:
    """Whether ``out`` is exactly what would be written; ``plan``: the fingerprint.

    Its manifest must be the one that this plan gives, with the digests and cast errors that it
    has; so must every other small file, byte for byte; there must be no further file; and the
    tensors' files must have the digests of the manifest. They are read where nothing else is
    wrong.
    """
    path = out / MANIFEST_NAME
    if not path.exists():
        return Comparison([], [f"{MANIFEST_NAME} is missing"])
    written = _read_written(path, plan)
    if [(w.name, w.size) for w in written] != [(file.name, file.size) for file in files]:
        other = "is of another checkpoint, other options or another version of ckpt-tool"
        return Comparison([], [f"{MANIFEST_NAME} {other}"])
    small = dict(small_files(written))
    expected, there = {*small, *(w.name for w in written)}, list_files(out)
    faults = [f"{name} is missing" for name in sorted(expected - there)]
    faults += [f"{name} is no part of it" for name in sorted(there - expected)]
    for name, content in small.items():
        if name in there and (out / name).read_bytes() != content:
            faults.append(f"{name} differs")
    return Comparison(written, faults or _compare_digests(out, written, progress))


def _compare_digests(out: Path, written: list[WrittenFile], progress: Progress) -> list[str]:
    faults = []
    progress.start("checking", sum(file.size for file in written))
    for file in written:
        path = out / file.name
        if path.stat().st_size != file.size or digest_file(path) != file.digest:
            faults.append(f"{file.name} differs")
        progress.advance(file.size)
    return faults


def _read_written(manifest: Path, plan: str) -> list[WrittenFile]:
    """What a manifest says of the files with tensors; nothing where it is of another plan.

    The errors of casts go with the first file: together they are what the manifest has.
    """
    try:
        found = json.loads(manifest.read_bytes())
        errors = tuple(map(_read_cast_error, found["casts"]))
        rows = [(row["name"], row["bytes"], row["digest"]) for row in found["files"]]
        is_same = found["plan"] == plan
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return []
    if not is_same:
        return []
    return [WrittenFile(*row, () if number else errors) for number, row in enumerate(rows)]


def _read_cast_error(row: dict[str, Any]) -> tuple[str, str, float]:
    error = row["max_abs_error"]
    return str(row["from"]), str(row["to"]), float("inf") if error == "overflow" else float(error)


def take_fingerprint(sources: Sequence[ShardFile], files: Iterable[PlannedFile]) -> str:
    """Changes when a source file or any planned byte does: what ``resume`` compares.

    Where the sources lie does not matter. For 20,000 tensors of 16 chunks it takes less than half
    a second.
    """
    read = [(Path(file.path).name, file.bytes, file.mtime_ns) for file in sources]
    places = {file.path: number for number, file in enumerate(sources)}
    whole = hashlib.sha256(json.dumps([__version__, read]).encode())
    for file in files:
        whole.update("\n".join((file.name, *file.names)).encode())
        for item in file.items:
            if isinstance(item, bytes):
                whole.update(item)
            elif isinstance(item, Seal):
                whole.update(item.content + repr(item.places).encode())
            else:
                whole.update(_describe_tensor(item, places))
    return whole.hexdigest()


def _describe_tensor(tensor: Chunked, places: Mapping[str, int]) -> bytes:
    """Where every element comes from: another tensor of the same name must not pass for it.

    A large model has hundreds of thousands of chunks: their numbers are packed, not spelled out.
    """
    texts: list[object] = [tensor.shape, tensor.dtype.name, tensor.source_dtype.name]
    numbers: list[int] = []
    for chunk in tensor.chunks:
        (path, offset, strides, computed), box = chunk.region, chunk.box
        place = places.get(path, -1)
        if place < 0:
            texts.append(path)
        numbers += (place, offset, *strides, *box.offsets, *box.sizes)
        if computed is not None:
            texts.append(computed.recipe)
            texts += [_describe_tensor(operand, places) for operand in computed.operands]
    return repr(texts).encode() + array("q", numbers).tobytes()
