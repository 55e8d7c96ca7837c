"""Names on one side only: do they differ by a prefix, and are the tensors then equal."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from ckpt_tool.common.parallel import Team
from ckpt_tool.common.wording import count_doing
from ckpt_tool.compare.pairs import find_differences
from ckpt_tool.tensors.equality import Pair
from ckpt_tool.tensors.lazy import LazyTensor


@dataclass(frozen=True)
class _Side:
    """Names that only this side has, and all its tensors."""

    title: str
    names: Sequence[str]
    tensors: Mapping[str, LazyTensor]


def explain_prefix(
    missing: Sequence[str],
    unexpected: Sequence[str],
    left: Mapping[str, LazyTensor],
    right: Mapping[str, LazyTensor],
    team: Team,
) -> str:
    """Whether names differ by a prefix only, tested on the tensors; empty where they do not.

    ``missing`` are names of ``right``, the reference, and ``unexpected`` of ``left``. Every process
    of the team compares its share, and all learn of all. OSError and FormatError where a file
    cannot be read.
    """
    checkpoint = _Side("checkpoint", unexpected, left)
    reference = _Side("reference", missing, right)
    return _explain(reference, checkpoint, team) or _explain(checkpoint, reference, team)


def _explain(shorter: _Side, longer: _Side, team: Team) -> str:
    """What ``longer`` has in front of names, if some tensors are equal without it."""
    prefix, names = _find_prefix(shorter.names, longer.names)
    pairs = [Pair(name, longer.tensors[prefix + name], shorter.tensors[name]) for name in names]
    alike = [pair for pair in pairs if _are_alike(pair.left, pair.right)]
    equal = len(alike) - len(find_differences(alike, "names", team))
    if not equal:
        return ""
    differ, are = (
        count_doing(len(names), *said) for said in (("name", "differ"), ("tensor", "are"))
    )
    return (
        f"{differ} by the prefix {prefix!r}, which the {longer.title} has: without it {equal} of"
        f" {are} equal"
    )


def _find_prefix(names: Iterable[str], longer: Iterable[str]) -> tuple[str, list[str]]:
    """The prefix that turns most of ``names`` into one of ``longer``, and those names.

    Each of ``longer`` is looked up by its endings, which are as many as it has dots.
    """
    known = set(names)
    found: dict[str, list[str]] = defaultdict(list)
    for other in longer:
        for start in _starts_of_parts(other):
            if other[start:] in known:
                found[other[:start]].append(other[start:])
    return max(found.items(), key=lambda item: len(item[1]), default=("", []))


def _starts_of_parts(name: str) -> list[int]:
    """Where the parts of a name begin, but the first."""
    return [at + 1 for at, letter in enumerate(name) if letter == "."]


def _are_alike(one: LazyTensor, other: LazyTensor) -> bool:
    return (one.shape, one.dtype) == (other.shape, other.dtype)
