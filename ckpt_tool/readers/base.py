"""What every reader hands out: a checkpoint as a mapping from FQN to lazy tensor."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path

from ckpt_tool.common.errors import CheckpointError, Problem
from ckpt_tool.tensors.dtypes import DType
from ckpt_tool.tensors.geometry import Box, Shape
from ckpt_tool.tensors.lazy import Chunk, LazyTensor, Region


@dataclass(frozen=True, slots=True)
class ShardFile:
    """A file of the checkpoint; ``rank`` is None where files belong to no rank.

    ``parallel``: the rank in each kind of parallelism, where the file has several such numbers.
    """

    path: str
    bytes: int
    rank: int | None
    parallel: dict[str, int] | None = None


@dataclass(frozen=True, slots=True)
class Mesh:
    """A device mesh: sizes and names of its dimensions (names may be absent)."""

    shape: Shape
    dim_names: tuple[str, ...] | None

    def __str__(self) -> str:
        names = self.dim_names or ("",) * len(self.shape)
        return " x ".join(f"{name} {n}".strip() for name, n in zip(names, self.shape, strict=True))


@dataclass(frozen=True, slots=True)
class Holding:
    """A block of a tensor that one rank's file holds.

    ``replicated``: the file itself says that other ranks hold the same block.
    """

    rank: int | None
    box: Box
    region: Region
    replicated: bool = False


@dataclass(frozen=True, slots=True)
class Entry:
    """A tensor as the files describe it, before anything is proven about it."""

    name: str
    shape: Shape
    dtype: DType
    placements: str
    holdings: tuple[Holding, ...]

    @property
    def numel(self) -> int:
        """Number of elements."""
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return self.numel * self.dtype.itemsize

    def owners(self) -> dict[Box, Holding]:
        """One holding per distinct block, the first of its replicas."""
        owners: dict[Box, Holding] = {}
        for holding in self.holdings:
            owners.setdefault(holding.box, holding)
        return owners

    def tensor(self) -> LazyTensor:
        """The lazy tensor over one holding per block."""
        held = [h for h in self.owners().values() if h.box.volume]
        chunks = tuple(Chunk(h.box, h.region) for h in held)
        return LazyTensor(self.shape, self.dtype, self.dtype, chunks)

    def replicas(self) -> Iterator[tuple[Holding, Holding]]:
        """Each holding of a block that another holding, the first of the pair, stands for."""
        owners = self.owners()
        for holding in self.holdings:
            owner = owners[holding.box]
            if owner is not holding and holding.box.volume:
                yield owner, holding


@dataclass(frozen=True)
class Checkpoint(Mapping[str, LazyTensor]):
    """A checkpoint on disk: its tensors, its files, and everything that is wrong with it.

    Looking a tensor up raises CheckpointError while there are problems; ``entries`` can be
    listed all the same. ``side_files`` is the folder with config and tokenizer, if any.
    ``left_out``: tensors that the reader was told to leave alone, without holdings; nothing is
    proven about them. ``objects``: names of what else was saved.
    """

    format: str
    path: Path
    entries: dict[str, Entry]
    files: tuple[ShardFile, ...]
    problems: tuple[Problem, ...] = ()
    world_size: int | None = None
    mesh: Mesh | None = None
    side_files: Path | None = None
    left_out: dict[str, Entry] = field(default_factory=dict)
    objects: tuple[str, ...] = ()
    _tensors: dict[str, LazyTensor] = field(default_factory=dict, repr=False, compare=False)

    def __getitem__(self, name: str) -> LazyTensor:
        entry = self.entries[name]
        self.require_sound()
        if name not in self._tensors:
            self._tensors[name] = entry.tensor()
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)

    def require_sound(self) -> None:
        """Raise CheckpointError with every problem, if there is one."""
        if self.problems:
            count = len(self.problems)
            raise CheckpointError(
                f"{self.path}: {count} problem{'s' if count > 1 else ''} in this checkpoint",
                self.problems,
                hint=f"See all of it with: ckpt inspect {self.path} --problems",
            )


def size_of(path: Path) -> int:
    """The size of a file in bytes; 0 for a link to nowhere, which reading it will report."""
    try:
        return path.stat().st_size
    except OSError:
        return 0
