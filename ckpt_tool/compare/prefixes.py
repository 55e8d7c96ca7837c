"""Names on one side only: do they differ by a prefix, and are the tensors then equal."""

from __future__ import annotations

from collections.abc import Sequence

from ckpt_tool.tensors.equality import Pair, first_differences
from ckpt_tool.tensors.lazy import LazyTensor

#: Names to look for with something in front: some may be missing for another reason.
_TRIED = 20


def prefix_hint(
    missing: Sequence[str],
    unexpected: Sequence[str],
    left: dict[str, LazyTensor],
    right: dict[str, LazyTensor],
    jobs: int,
) -> str:
    """Whether names differ by a prefix only, tested on the tensors; empty where they do not."""
    sides = ((missing, unexpected, "checkpoint"), (unexpected, missing, "reference"))
    for kept, extra, longer in sides:
        found = _common_prefix(kept, extra)
        if not found:
            continue
        prefix, names = found
        theirs, mine = (right, left) if longer == "checkpoint" else (left, right)
        pairs = [
            Pair(name, mine[prefix + name], theirs[name])
            for name in names
            if _alike(mine[prefix + name], theirs[name])
        ]
        equal = len(pairs) - len(first_differences(pairs, jobs, lambda _: None))
        if equal:
            return (
                f"{len(names)} names differ by the prefix {prefix!r}, which the {longer} has:"
                f" without it {equal} of {len(names)} tensors are equal"
            )
    return ""


def _common_prefix(names: Sequence[str], longer: Sequence[str]) -> tuple[str, list[str]] | None:
    """The prefix that turns most of ``names`` into one of ``longer``, and those names."""
    known = set(longer)
    prefixes: dict[str, list[str]] = {}
    for name in names[:_TRIED]:
        for other in longer:
            if other.endswith(f".{name}"):
                prefix = other.removesuffix(name)
                prefixes[prefix] = [each for each in names if prefix + each in known]
    return max(prefixes.items(), key=lambda item: len(item[1]), default=None)


def _alike(one: LazyTensor, other: LazyTensor) -> bool:
    return (one.shape, one.dtype) == (other.shape, other.dtype)
