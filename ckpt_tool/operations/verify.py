"""``ckpt verify``: are two checkpoints the same model, bit for bit, and if not, why not.

Both sides are opened, proven complete, brought to the names of the Hub and paired by name. Pairs
are first compared as bytes; only those that differ are read again for numbers and for their cause.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from ckpt_tool.common.errors import UsageError
from ckpt_tool.common.parallel import ALONE, Team, jobs_of
from ckpt_tool.common.progress import NoProgress, Progress
from ckpt_tool.compare.grid import IMMEASURABLE
from ckpt_tool.compare.hints import Suspect, coarser
from ckpt_tool.compare.measure import measure
from ckpt_tool.compare.prefixes import prefix_hint
from ckpt_tool.operations.explain import Mismatch, explain
from ckpt_tool.operations.options import VerifyOptions
from ckpt_tool.operations.sides import Side, find_tied_heads, open_sides
from ckpt_tool.tensors.equality import Pair, first_differences
from ckpt_tool.tensors.lazy import LazyTensor


@dataclass(frozen=True)
class VerifyResult:
    """The verdict and all that it rests on.

    ``missing``: in the reference only; ``unexpected``: in the checkpoint only. ``tied``: heads on
    one side only that the config ties to an equal embedding. ``distances`` has, for every tensor
    compared by value, its :attr:`~ckpt_tool.compare.stats.Stats.distance`.
    """

    left: Side
    right: Side
    options: VerifyOptions
    num_compared: int
    missing: list[str]
    unexpected: list[str]
    mismatched: list[Mismatch]
    close: list[str]
    tied: dict[str, str]
    ignored: list[str]
    distances: dict[str, float]
    names_hint: str
    compared_bytes: int
    seconds: float

    @property
    def equal(self) -> bool:
        """Whether nothing differs, the tolerance granted."""
        return not (self.missing or self.unexpected or self.mismatched)

    @property
    def num_equal(self) -> int:
        """Tensors on both sides that do not differ."""
        return self.num_compared - len(self.mismatched)

    @property
    def exact(self) -> bool:
        """Whether equal meant the same bits: no tolerance, no cast."""
        return self.options.tolerance.exact and not self.options.cast_reference


def verify_checkpoint(
    checkpoint: str | Path,
    reference: str | Path,
    options: VerifyOptions | None = None,
    progress: Progress | None = None,
) -> VerifyResult:
    """Compare two checkpoints of any format.

    Raises CheckpointError where one is damaged or incomplete, FormatError, MappingError,
    UsageError or OSError where it cannot be read: there is then no verdict.
    """
    started = time.monotonic()
    options, progress = options or VerifyOptions(), progress or NoProgress()
    _check(options)
    jobs = jobs_of(options.jobs)
    team = Team(ALONE, jobs, progress)
    left, right = open_sides(Path(checkpoint), Path(reference), options, team)
    mine, ignored = _without(left.tensors, options.ignore)
    theirs, also = _without(right.tensors, options.ignore)
    tied = find_tied_heads(left, right, mine, theirs, team)
    common = [name for name in theirs if name in mine and name not in tied]
    missing = [name for name in theirs if name not in mine and name not in tied]
    unexpected = [name for name in mine if name not in theirs and name not in tied]
    if not common and not missing and not unexpected:
        why = "--ignore leaves" if ignored or also else "the two checkpoints have"
        raise UsageError(f"{why} no tensor to compare")
    comparison = _compare([(name, mine[name], theirs[name]) for name in common], options, team)
    return VerifyResult(
        left=left,
        right=right,
        options=options,
        num_compared=len(common),
        missing=missing,
        unexpected=unexpected,
        mismatched=explain(comparison.suspects, left, right, jobs),
        close=comparison.close,
        tied=tied,
        ignored=sorted({*ignored, *also}),
        distances=comparison.distances,
        names_hint=prefix_hint(missing, unexpected, mine, theirs, jobs),
        compared_bytes=sum(mine[name].nbytes for name in common),
        seconds=time.monotonic() - started,
    )


def shown_distances(result: VerifyResult) -> dict[str, float]:
    """The distances of a verification, with those of differences that no norm can express.

    Infinite where shapes differ, :data:`IMMEASURABLE` where only dtypes or the signs of zeros do: a
    tensor that differs is never shown as equal.
    """
    shown = dict(result.distances)
    for mismatch in result.mismatched:
        if mismatch.stats is None:
            shown[mismatch.name] = math.inf
        else:
            shown[mismatch.name] = max(shown.get(mismatch.name, 0.0), IMMEASURABLE)
    return shown


def _check(options: VerifyOptions) -> None:
    for flag, value in (("--atol", options.tolerance.atol), ("--rtol", options.tolerance.rtol)):
        if not 0 <= value < float("inf"):
            raise UsageError(f"{flag} {value}: expected a number that is 0 or more")


def _without(
    tensors: dict[str, LazyTensor], patterns: Sequence[str]
) -> tuple[dict[str, LazyTensor], list[str]]:
    """The tensors that no pattern names, and the names of the others."""
    kept, ignored = {}, []
    for name, tensor in tensors.items():
        if any(fnmatchcase(name, pattern) for pattern in patterns):
            ignored.append(name)
        else:
            kept[name] = tensor
    return kept, ignored


@dataclass(frozen=True)
class _Comparison:
    suspects: list[Suspect]
    close: list[str]
    distances: dict[str, float]


def _compare(
    rows: Iterable[tuple[str, LazyTensor, LazyTensor]], options: VerifyOptions, team: Team
) -> _Comparison:
    """Bits first; numbers for what differs."""
    progress = team.progress
    pairs: list[Pair[str]] = []
    suspects: list[Suspect] = []
    for name, left, right in rows:
        if left.shape != right.shape:
            suspects.append(Suspect(name, "shape", left, right))
            continue
        both = coarser(left, right) if options.cast_reference else None
        one, other = both or (left, right)
        pairs.append(Pair(name, one, other))
    alike = [pair for pair in pairs if pair.left.dtype == pair.right.dtype]
    progress.start("comparing", sum(pair.left.nbytes for pair in alike))
    differing = first_differences(alike, team.jobs, progress.advance)
    doubtful = [
        pair for pair in pairs if pair.label in differing or pair.left.dtype != pair.right.dtype
    ]
    progress.start("measuring", sum(pair.left.nbytes for pair in doubtful))
    stats = measure(doubtful, team.jobs, options.tolerance, progress.advance)
    close = []
    for pair in doubtful:
        kind = "values" if pair.left.dtype == pair.right.dtype else "dtype"
        if kind == "values" and not stats[pair.label].num_outside:
            close.append(pair.label)
        else:
            suspects.append(Suspect(pair.label, kind, pair.left, pair.right, stats[pair.label]))
    distances = {pair.label: 0.0 for pair in pairs}
    distances |= {name: found.distance for name, found in stats.items()}
    return _Comparison(suspects, close, distances)
