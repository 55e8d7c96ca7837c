"""What a verification says of a tensor that differs: its numbers, the place, and the cause."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ckpt_tool.common.parallel import Team
from ckpt_tool.common.threads import Threads
from ckpt_tool.compare.heads import Heads
from ckpt_tool.compare.ranks import Spectrum
from ckpt_tool.compare.stats import Stats
from ckpt_tool.compare.suspects import Suspect, sort_worst_first
from ckpt_tool.tensors.dtypes import DType
from ckpt_tool.tensors.geometry import unravel
from ckpt_tool.tensors.lazy import LazyTensor
from ckpt_tool.tensors.reshaped import find_path, list_paths

RankOf = Callable[[str], int | None]


@dataclass(frozen=True)
class Mismatch:
    """A tensor on both sides that differs.

    ``kind``: ``shape``, ``dtype`` or ``values``.
    ``left``, ``right``: dtype and shape on either side, as text.
    ``stats``: how far they are apart; None where shapes differ, and where no cause was looked for
    because others are worse. ``distance``: theirs, known of all of one shape; 0 of other shapes.
    ``first_index``: the first element that differs, an index per dimension; None where shapes
    differ, and where dtypes do and there are no ``stats``.
    ``source``: the file of the checkpoint in which that element lies; ``rank``: who wrote it, if a
    rank did.
    ``hint``: the cause, tested on the bytes; empty where none was found or looked for.
    ``spectrum``: how many directions the difference has; None where that was not asked or has none.
    """

    name: str
    kind: str
    left: str
    right: str
    stats: Stats | None
    distance: float
    first_index: tuple[int, ...] | None
    source: str
    rank: int | None
    hint: str
    spectrum: Spectrum | None = None


def explain(
    suspects: Sequence[Suspect],
    heads: Heads | None,
    rank_of: RankOf,
    most: int | None,
    team: Team,
) -> list[Mismatch]:
    """The mismatches in the order of ``suspects``, each with its place.

    The worst ``most`` of them (None: all) have their cause too: finding it reads both tensors
    again, some of them several times. Every process of the team explains its share, and all learn
    of all. ``rank_of`` says which rank wrote a file of the checkpoint, None where no rank did.
    OSError and FormatError where a file cannot be read.
    """
    hints = _find_causes(suspects, sort_worst_first(suspects)[:most], heads, rank_of, team)
    return [_describe(suspect, rank_of, hints.get(suspect.name, "")) for suspect in suspects]


def _find_causes(
    suspects: Sequence[Suspect],
    chosen: Sequence[Suspect],
    heads: Heads | None,
    rank_of: RankOf,
    team: Team,
) -> dict[str, str]:
    """A hint for each of ``chosen``; empty where no known cause holds."""
    if not chosen:
        return {}
    from ckpt_tool.compare.hints import Diagnosis  # numpy: not where everything is equal

    share = [chosen[at] for at in team.world.share([_count_bytes(each) for each in chosen])]
    threads = min(team.jobs, max(len(share), 1))
    diagnosis = Diagnosis(suspects, heads, rank_of, team.jobs // threads)
    team.progress.start("explaining", sum(map(_count_bytes, share)))

    def find_cause(suspect: Suspect) -> tuple[str, str]:
        hint = diagnosis.hint(suspect)
        team.progress.advance(_count_bytes(suspect))
        return suspect.name, hint

    def find_all() -> list[tuple[str, str]]:
        with Threads(threads) as pool:
            return list(pool.map(find_cause, share))

    return {name: hint for part in team.world.everyone(find_all) for name, hint in part}


def _count_bytes(suspect: Suspect) -> int:
    return suspect.left.nbytes


def _describe(suspect: Suspect, rank_of: RankOf, hint: str) -> Mismatch:
    place = None if suspect.first is None else unravel(suspect.first, suspect.left.shape)
    source = _find_source(suspect.left, place)
    return Mismatch(
        name=suspect.name,
        kind=suspect.kind,
        left=_describe_type(suspect.left),
        right=_describe_type(suspect.right),
        stats=suspect.stats,
        distance=suspect.distance,
        first_index=place,
        source=source,
        rank=rank_of(source),
        hint=hint,
    )


def _find_source(tensor: LazyTensor, place: tuple[int, ...] | None) -> str:
    """The file that holds the element at ``place``, or the tensor's only file."""
    if place is not None:
        return find_path(tensor, place)
    paths = list_paths(tensor)
    return paths.pop() if len(paths) == 1 else ""


def find_stored_dtype(tensor: LazyTensor) -> DType:
    """The dtype that elements had before any cast; of sums, which none has, that of these."""
    return tensor.dtype if tensor.origin.offset else tensor.origin


def _describe_type(tensor: LazyTensor) -> str:
    dtype = find_stored_dtype(tensor)
    cast = f" as {tensor.dtype}" if tensor.dtype != dtype else ""
    return f"{dtype} {list(tensor.shape)}{cast}"
