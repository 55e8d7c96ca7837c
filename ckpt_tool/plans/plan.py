"""What will be written, before anything is: what all kinds of output have in common."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path

from ckpt_tool.common.errors import CheckpointError, OutputError, Problem
from ckpt_tool.common.progress import Progress
from ckpt_tool.common.remote.address import Address, find_address
from ckpt_tool.mapping.lora.options import LoraNote
from ckpt_tool.plans.checks.judge import Judge
from ckpt_tool.plans.fingerprint import add_times, take_fingerprint
from ckpt_tool.plans.holding import Comparison, compare_folder
from ckpt_tool.plans.manifest import MANIFEST_NAME, make_manifest
from ckpt_tool.plans.options import Cast, WriteOptions
from ckpt_tool.plans.provenance import describe_source
from ckpt_tool.plans.usage import Usage
from ckpt_tool.readers.base import Checkpoint, ShardFile
from ckpt_tool.tensors.dtypes import DType
from ckpt_tool.tensors.lazy import LazyTensor
from ckpt_tool.writers.journal import read_finished
from ckpt_tool.writers.places import Place
from ckpt_tool.writers.planned import PlannedFile
from ckpt_tool.writers.stream import WrittenFile, digest_bytes
from ckpt_tool.writers.target import check_space, check_target, list_entries, make_journal_path

#: Number of tensors per (source, target) dtype.
Casts = dict[tuple[DType, DType], int]


@dataclass(frozen=True, kw_only=True)
class Plan(ABC):
    """Everything that will be written.

    ``checkpoint``: the source. ``model``: the model's tensors by their names on the Hub.
    ``files``: those that hold tensors, in order. ``dropped`` maps names that are left out on
    purpose to the reason, ``tied`` those of them that repeat another tensor to its name. ``lora``:
    what was done with adapters. ``filled``: names of tensors that the checkpoint lacked, and
    another model had. ``float32``: why the weights are, where nobody asked for it; else empty.
    """

    checkpoint: Checkpoint
    model: dict[str, LazyTensor]
    files: list[PlannedFile]
    dropped: dict[str, str]
    warnings: list[str]
    lora: LoraNote | None = None
    filled: list[str] = field(default_factory=list)
    tied: dict[str, str] = field(default_factory=dict)
    float32: str = ""

    @property
    def tensors(self) -> dict[str, LazyTensor]:
        """All tensors, by the names under which :meth:`read_back` finds them."""
        return self.model

    @property
    def usage(self) -> Usage | None:
        """What opens the output, where it is a model of a library for people."""
        return None

    @property
    def num_tensors(self) -> int:
        """How many tensors the output has."""
        return len(self.tensors)

    @property
    def total_bytes(self) -> int:
        """Bytes of all files with tensors."""
        return sum(file.size for file in self.files)

    @cached_property
    def fingerprint(self) -> str:
        """Another one for whatever else would be written: see :func:`.take_fingerprint`."""
        return take_fingerprint(self.checkpoint.files, self.files)

    @cached_property
    def timed_fingerprint(self) -> str:
        """The same, and another one where a source file was written again."""
        return add_times(self.fingerprint, self.checkpoint.files)

    @cached_property
    def casts(self) -> Casts:
        """Number of tensors per (source, target) dtype where these differ."""
        found: Casts = {}
        for tensor in self.tensors.values():
            if tensor.dtype != tensor.origin:
                key = (tensor.origin, tensor.dtype)
                found[key] = found.get(key, 0) + 1
        return found

    def measured_casts(self, written: Sequence[WrittenFile]) -> list[Cast]:
        """The casts with the errors that writing measured."""
        errors: dict[tuple[str, str], float] = {}
        for file in written:
            for source, target, error in file.cast_errors:
                errors[source, target] = max(error, errors.get((source, target), 0.0))
        return [
            Cast(
                source.name,
                target.name,
                count,
                errors.get((source.name, target.name), 0.0),
                abs(source.offset),
            )
            for (source, target), count in self.casts.items()
        ]

    def small_files(
        self, written: Sequence[WrittenFile], *, manifest: bool = True
    ) -> Iterator[tuple[str, bytes]]:
        """Name and content of the files without tensors; what completes the output comes last.

        ``written``: those with tensors. ``manifest``: whether what lists them all is among them.
        """
        last = list(self.completing_files())
        rows = [WrittenFile(name, len(made), digest_bytes(made)) for name, made in last]
        for name, made in self.side_files():
            rows.append(WrittenFile(name, len(made), digest_bytes(made)))
            yield name, made
        if manifest:
            listed = sorted(rows, key=lambda row: row.name)
            yield MANIFEST_NAME, self._make_manifest(written, listed)
        yield from last

    def _make_manifest(self, written: Sequence[WrittenFile], small: Sequence[WrittenFile]) -> bytes:
        more = {
            "dropped": self.dropped,
            "tied": self.tied,
            "filled": self.filled,
            "lora": None if self.lora is None else asdict(self.lora),
            "plan": self.fingerprint,
        }
        source, casts = describe_source(self.checkpoint), self.measured_casts(written)
        return make_manifest(source, casts, [*written, *small], more)

    def check(self, out: Place, options: WriteOptions, faults: Sequence[str] = ()) -> None:
        """OutputError unless ``out`` may be written and there is room.

        With ``faults``, those of :meth:`compare`, where it is not empty. StoreError where a store
        is not reached, or refuses.
        """
        if isinstance(out, Address):
            from ckpt_tool.writers.objects.target import check_object_target

            protected, replace = self.protected(), options.overwrite
            names = check_object_target(out, replace=replace, protected=protected, faults=faults)
            _require_no_part_elsewhere(out, names, self.checkpoint.path)
            return
        check_target(out, replace=options.overwrite, protected=self.protected(), faults=faults)
        _require_no_part(out, self.checkpoint.path)
        finished = read_finished(make_journal_path(out.absolute())) if options.resume else {}
        check_space(out, self.total_bytes, finished)

    def compare(self, out: Path, progress: Progress | None) -> Comparison:
        """Whether ``out`` is what would be written, by its manifest.

        It is read where nothing else differs; without ``progress``, its tensors are not. Whether
        the sources still hold what they did when it was written, their sizes alone say.
        """
        try:
            return compare_folder(out, self.files, self.small_files, self.fingerprint, progress)
        except FileNotFoundError as error:  # another run replaces it just now
            return Comparison([], [f"{error.filename} is missing"])

    def protected(self) -> list[Path]:
        """What is still to be read, so that the output must not take its place."""
        return [Path(file.path) for file in self.checkpoint.files]

    @property
    def sources(self) -> Sequence[ShardFile]:
        """All files that are read, as they were when they were opened."""
        return self.checkpoint.files

    def require_unchanged(self) -> None:
        """CheckpointError that lists the sources that were changed since they were opened."""
        changed = [
            Problem("changed", file.path, said)
            for file in self.sources
            if (said := file.say_change())
        ]
        if changed:
            raise CheckpointError(
                f"{self.checkpoint.path}: changed while it was read",
                changed,
                hint="Nothing was written. Run again when nobody writes there any more.",
            )

    @abstractmethod
    def make_judge(self, check_load: bool | None) -> Judge | None:
        """Who says whether the output loads; None: nobody has to.

        UsageError where ``check_load`` asks for what makes no sense here.
        """

    @abstractmethod
    def require_readable(self, folder: Path) -> list[str]:
        """OutputError unless the library that its files are for reads them in ``folder``.

        A warning where it is not installed.
        """

    @abstractmethod
    def side_files(self) -> Iterable[tuple[str, bytes]]:
        """Name and content of the files without tensors that are written first, one at a time."""

    @abstractmethod
    def completing_files(self) -> Iterable[tuple[str, bytes]]:
        """Name and content of those that make a model of the folder, in the order of writing."""

    @abstractmethod
    def read_back(self, folder: Path) -> Mapping[str, LazyTensor]:
        """The tensors that were written to ``folder``, by the names in :attr:`tensors`."""


def _require_no_part(out: Path, source: Path) -> None:
    """OutputError where what would be replaced belongs to the checkpoint, and is no output of ours.

    It may hold what nobody reads to merge it, and what is needed to go on: optimizer, adapters.
    """
    folder = Path(os.path.realpath(source if source.is_dir() else source.parent))
    inside = Path(os.path.realpath(out)).is_relative_to(folder)
    if inside and out.is_dir() and list_entries(out) and not (out / MANIFEST_NAME).is_file():
        raise OutputError(
            f"{out}: is a part of the checkpoint {source}, and no output of ckpt: it is kept",
            hint="Choose another output folder.",
        )


def _require_no_part_elsewhere(out: Address, names: Sequence[str], source: Path) -> None:
    """The same of objects; ``names``: those that are there."""
    folder = find_address(source)
    is_inside = folder is not None and folder.holds(out)
    if is_inside and names and MANIFEST_NAME not in names:
        raise OutputError(
            f"{out}: is a part of the checkpoint {folder}, and no output of ckpt: it is kept",
            hint="Choose another output.",
        )
