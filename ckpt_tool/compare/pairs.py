"""Many pairs of tensors, compared by every process of a team: bits first, then numbers.

Only what differs in its bits is read again to be measured; where the worst few are asked for, the
others no further than it takes to know which these are.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from ckpt_tool.common.parallel import Team
from ckpt_tool.compare.stats import Stats, Tolerance
from ckpt_tool.compare.suspects import Suspect, count_near, keep_worst, sort_worst_first
from ckpt_tool.compare.totals import Totals, find_company, make_totals
from ckpt_tool.tensors.dtypes import CASTABLE
from ckpt_tool.tensors.equality import Pair, locate_differences
from ckpt_tool.tensors.lazy import LazyTensor

Result = TypeVar("Result")


@dataclass(frozen=True)
class Comparison:
    """What differs, and how far.

    ``suspects``: tensors that differ, in the order in which they were given, the worst with their
    numbers. ``close``: names of those that differ only within the tolerance. ``distances``: for
    every pair of one shape, its :attr:`~ckpt_tool.compare.stats.Stats.distance`, where numbers
    were not wanted to six digits; 0 where the bits are equal. ``known``: of all pairs that were
    measured or ranked, what is known.
    """

    suspects: list[Suspect]
    close: list[str]
    distances: dict[str, float]
    known: dict[str, Stats]


def compare_tensors(
    rows: Iterable[tuple[str, LazyTensor, LazyTensor]],
    tolerance: Tolerance,
    team: Team,
    *,
    rounded: bool = False,
    most: int | None = None,
) -> Comparison:
    """Compare the two tensors of each row, the checkpoint's and the reference's.

    ``rounded``: where dtypes differ, the finer side is rounded to the coarser one's first.
    ``most``: how many of those that differ are wanted with their numbers, the worst first; None:
    all. Every process of the team reads its share, and all learn of all. OSError and FormatError
    where a file cannot be read.
    """
    pairs = [_make_pair(*row, rounded=rounded) for row in rows]
    kinds = {pair.label: _kind_of(pair) for pair in pairs}
    alike = [pair for pair in pairs if kinds[pair.label] == "values"]
    differing = find_differences(alike, "comparing", team)
    doubtful = [pair for pair in pairs if kinds[pair.label] == "dtype" or pair.label in differing]
    ranked, wanted = _choose(pairs, doubtful, tolerance, team, most)
    stats = _measure(wanted, "measuring", tolerance, team)
    suspects, close = [], []
    for pair in pairs:
        kind, found = kinds[pair.label], stats.get(pair.label)
        if kind == "values" and found is not None and not found.num_outside:
            close.append(pair.label)
        elif kind != "values" or pair.label in differing:
            place = found or ranked.get(pair.label)
            first = found.first_index if found is not None else differing.get(pair.label)
            suspects.append(_make_suspect(pair, found, place, first))
    if ranked and most is not None:
        suspects = keep_worst(suspects, ranked, most)
    distances = {name: 0.0 for name, kind in kinds.items() if kind != "shape"}
    distances |= {name: each.distance for name, each in (ranked | stats).items()}
    return Comparison(suspects, close, distances, ranked | stats)


def sum_up(
    rows: Iterable[tuple[str, LazyTensor, LazyTensor]], found: Comparison, team: Team
) -> Totals:
    """How far layers and modules moved, of all ``rows`` of one shape, of which ``found`` is known.

    Equal tensors are read again where they are in the company of those that differ. Raises what
    :func:`compare_tensors` does.
    """
    rights = {name: right for name, left, right in rows if left.shape == right.shape}
    parts = {name: Stats(num_elements=right.numel) for name, right in rights.items()} | found.known
    near = find_company([name for name in rights if name not in found.known], found.known)
    equal = [Pair(name, rights[name], rights[name]) for name in near]
    return make_totals(parts | _measure(equal, "summing up", None, team))


def _choose(
    pairs: Sequence[Pair[str]],
    doubtful: Sequence[Pair[str]],
    tolerance: Tolerance,
    team: Team,
    most: int | None,
) -> tuple[dict[str, Stats], list[Pair[str]]]:
    """Which of ``doubtful`` to measure: those that are judged by it, and the worst ``most``.

    With them, what ranks the others; nothing where all are measured.
    """
    undecided = [pair for pair in doubtful if not _is_judged(pair, tolerance)]
    if most is None or len(undecided) <= most:
        return {}, list(doubtful)
    ranked = _measure(undecided, "ranking", None, team)
    named = {pair.label: pair for pair in undecided}
    differ = [
        _make_suspect(pair, None, ranked.get(pair.label), None)
        for pair in pairs
        if pair.label in named or _kind_of(pair) == "shape"
    ]
    order = sort_worst_first(differ)
    worst = {suspect.name for suspect in order[: most + count_near(order, most)]}
    return ranked, [pair for pair in doubtful if pair.label in worst or pair.label not in named]


def _is_judged(pair: Pair[str], tolerance: Tolerance) -> bool:
    """Whether other bits need be no difference: only numbers tell."""
    if _kind_of(pair) != "values":
        return False
    return not tolerance.exact or any(each.dtype != each.origin for each in (pair.left, pair.right))


def _make_suspect(
    pair: Pair[str], stats: Stats | None, place: Stats | None, first: int | None
) -> Suspect:
    """``place``: what has its distance and digests; None where shapes differ."""
    distance, digests = (0.0, None) if place is None else (place.distance, place.digests)
    kind = _kind_of(pair)
    return Suspect(pair.label, kind, pair.left, pair.right, stats, distance, digests, first)


def find_differences(pairs: Sequence[Pair[str]], what: str, team: Team) -> dict[str, int]:
    """The labels of pairs that differ, each with the first differing element (row-major).

    Both tensors of a pair have one shape and dtype. ``what`` the progress says that is done.
    """
    if not pairs:
        return {}
    share = _take_share(pairs, what, team)
    parts = team.world.everyone(lambda: locate_differences(share, team.jobs, team.progress.advance))
    return _joined(pairs, parts)


def _measure(
    pairs: Sequence[Pair[str]], what: str, tolerance: Tolerance | None, team: Team
) -> dict[str, Stats]:
    if not pairs:
        return {}
    from ckpt_tool.compare.measure import measure  # numpy: not where everything is equal

    share = _take_share(pairs, what, team)
    parts = team.world.everyone(lambda: measure(share, team.jobs, tolerance, team.progress.advance))
    return _joined(pairs, parts)


def _take_share(pairs: Sequence[Pair[str]], what: str, team: Team) -> list[Pair[str]]:
    """What this process reads of ``pairs``; its progress is told how much that is."""
    share = [pairs[at] for at in team.world.share([pair.left.nbytes for pair in pairs])]
    team.progress.start(what, sum(pair.left.nbytes for pair in share))
    return share


def _joined(pairs: Sequence[Pair[str]], parts: Iterable[dict[str, Result]]) -> dict[str, Result]:
    """What all processes found, in the order of ``pairs``."""
    found = {label: each for part in parts for label, each in part.items()}
    return {pair.label: found[pair.label] for pair in pairs if pair.label in found}


def _make_pair(name: str, left: LazyTensor, right: LazyTensor, *, rounded: bool) -> Pair[str]:
    both = round_to_coarser(left, right) if rounded and left.shape == right.shape else None
    return Pair(name, *(both or (left, right)))


def _kind_of(pair: Pair[str]) -> str:
    """In what the two can differ at most: ``shape``, ``dtype``, or else ``values``."""
    if pair.left.shape != pair.right.shape:
        return "shape"
    return "values" if pair.left.dtype == pair.right.dtype else "dtype"


def round_to_coarser(left: LazyTensor, right: LazyTensor) -> tuple[LazyTensor, LazyTensor] | None:
    """Both in the dtype of the coarser one; None where neither is finer (float16, bfloat16)."""
    if not {left.dtype, right.dtype} <= CASTABLE or left.dtype.itemsize == right.dtype.itemsize:
        return (left, right) if left.dtype == right.dtype else None
    if left.dtype.itemsize > right.dtype.itemsize:
        return left.to(right.dtype), right
    return left, right.to(left.dtype)
