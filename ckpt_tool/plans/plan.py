"""What will be written, and what was: the plan of a model folder, its casts and its manifest."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

from ckpt_tool.common.version import __version__
from ckpt_tool.mapping.config import ModelConfig
from ckpt_tool.mapping.hub.form import View
from ckpt_tool.mapping.lora.options import AdapterFiles, LoraNote
from ckpt_tool.readers.base import Checkpoint, ShardFile
from ckpt_tool.tensors.chunks import Chunked
from ckpt_tool.tensors.dtypes import DType
from ckpt_tool.tensors.lazy import LazyTensor
from ckpt_tool.writers.planned import PlannedFile
from ckpt_tool.writers.stream import DIGEST, WrittenFile

MANIFEST_NAME = "ckpt_manifest.json"

#: Number of tensors per (source, target) dtype.
Casts = dict[tuple[DType, DType], int]


@dataclass(frozen=True)
class ModelPlan:
    """Everything that will be written, before anything is.

    ``model``: tensors of the model by their names on the Hub; ``adapter``: what is written for
    peft, ``lora`` what was done with the adapters. ``dropped`` maps names that are left out on
    purpose to the reason. ``views``: as in HubForm.
    """

    checkpoint: Checkpoint
    config: ModelConfig | None
    model: dict[str, LazyTensor]
    files: list[PlannedFile]
    dropped: dict[str, str]
    warnings: list[str]
    lora: LoraNote | None = None
    adapter: AdapterFiles | None = None
    views: tuple[View, ...] = ()

    @cached_property
    def mark(self) -> str:
        """The fingerprint, taken once: for many tensors it is long work."""
        return fingerprint(self.checkpoint.files, self.files)

    @property
    def tensors(self) -> dict[str, LazyTensor]:
        """All tensors; those of an adapter in a folder have names that begin with it."""
        if self.adapter is None:
            return self.model
        beside = {self.adapter.path(name): t for name, t in self.adapter.tensors.items()}
        return self.model | beside

    @property
    def num_tensors(self) -> int:
        """How many tensors are written."""
        return len(self.tensors)

    @property
    def total_bytes(self) -> int:
        """Bytes of all weight files."""
        return sum(file.size for file in self.files)

    def casts(self) -> Casts:
        """Number of tensors per (source, target) dtype where these differ."""
        return count_casts(self.tensors.values())


@dataclass(frozen=True)
class Cast:
    """Tensors that changed dtype; ``max_abs_error`` over all their elements."""

    source: str
    target: str
    num_tensors: int
    max_abs_error: float


def count_casts(tensors: Iterable[LazyTensor]) -> Casts:
    """Number of tensors per (source, target) dtype where these differ."""
    found: Casts = {}
    for tensor in tensors:
        if tensor.dtype != tensor.origin:
            key = (tensor.origin, tensor.dtype)
            found[key] = found.get(key, 0) + 1
    return found


def manifest(
    source: Checkpoint,
    casts: Casts,
    dropped: dict[str, str],
    written: list[WrittenFile],
    lora: LoraNote | None = None,
) -> dict[str, object]:
    """Where the model came from; no absolute paths, so that it can be published with the model."""
    files = [
        {
            "name": Path(file.path).name,
            "bytes": file.bytes,
            "mtime_ns": os.stat(file.path).st_mtime_ns,
        }
        for file in source.files
    ]
    return {
        "tool": "ckpt-tool",
        "version": __version__,
        "source": {"format": source.format, "world_size": source.world_size, "files": files},
        "digest": DIGEST,
        "files": [{"name": w.name, "bytes": w.size, "digest": w.digest} for w in written],
        "casts": [cast_json(cast) for cast in casts_of(casts, written)],
        "dropped": dropped,
        **({"lora": asdict(lora)} if lora is not None else {}),
    }


def cast_json(cast: Cast) -> dict[str, object]:
    """A cast as JSON, which has no infinity: an overflow is said in words."""
    error = cast.max_abs_error
    return {
        "from": cast.source,
        "to": cast.target,
        "num_tensors": cast.num_tensors,
        "max_abs_error": error if error < float("inf") else "overflow",
    }


def casts_of(casts: Casts, written: list[WrittenFile]) -> list[Cast]:
    """The casts with the errors that writing measured."""
    errors: dict[tuple[str, str], float] = {}
    for file in written:
        for source, target, error in file.cast_errors:
            errors[source, target] = max(error, errors.get((source, target), 0.0))
    return [
        Cast(source.name, target.name, count, errors.get((source.name, target.name), 0.0))
        for (source, target), count in casts.items()
    ]


def overflows(casts: Casts, written: list[WrittenFile]) -> list[str]:
    """A warning per cast that lost a finite value to infinity."""
    return [
        f"some {cast.source} values are too large for {cast.target} and became infinite"
        for cast in casts_of(casts, written)
        if cast.max_abs_error == float("inf")
    ]


def fingerprint(sources: Sequence[ShardFile], files: Iterable[PlannedFile]) -> str:
    """Changes when the source files or any planned byte range do: what ``resume`` compares.

    Where the sources lie does not matter.
    """
    read = [(Path(file.path).name, file.bytes, os.stat(file.path).st_mtime_ns) for file in sources]
    places = {file.path: str(number) for number, file in enumerate(sources)}
    whole = hashlib.sha256(json.dumps([__version__, read]).encode())
    for file in files:
        whole.update("\n".join((file.name, *file.names)).encode())
        for item in file.items:
            if isinstance(item, LazyTensor):
                whole.update(_begin(item, places))
            elif isinstance(item, bytes):
                whole.update(item)
    return whole.hexdigest()


def _begin(tensor: Chunked, places: Mapping[str, str]) -> bytes:
    """Where a tensor comes from: another one of the same name must not pass for it."""
    found = []
    for chunk in tensor.chunks[:1]:
        region, computed = chunk.region, chunk.region.computed
        found.append(
            repr(region._replace(path=places.get(region.path, region.path), computed=None))
        )
        if computed is not None:
            found += [str(_begin(operand, places)) for operand in computed.operands]
            found.append(computed.recipe)
    return repr(found).encode()
