"""Records that are not what was written, for people: where, and which tensors lie in them."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence

from ckpt_tool.common.errors import Problem
from ckpt_tool.readers.base import Checkpoint
from ckpt_tool.tensors.checksums import say_damage
from ckpt_tool.tensors.read_sums import Damage


def describe_damage(checkpoint: Checkpoint, damaged: Iterable[Damage]) -> list[Problem]:
    """A problem for each, with the names of the tensors of ``checkpoint`` that lie there."""
    damaged = list(damaged)
    held = _list_places(checkpoint, {damage.path for damage in damaged})
    problems = []
    for path, record, found in damaged:
        names = _names_in(held.get(path, []), record.start, record.size)
        said = say_damage(record.name, record.crc, found, names)
        problems.append(Problem("crc", path, said))
    return problems


def _list_places(checkpoint: Checkpoint, paths: set[str]) -> dict[str, list[tuple[int, str]]]:
    """Where in these files tensors begin, ascending, with their names."""
    places: dict[str, list[tuple[int, str]]] = {path: [] for path in paths}
    for name, entry in checkpoint.entries.items():
        for holding in entry.holdings:
            if holding.region.path in places:
                places[holding.region.path].append((holding.region.offset, name))
    return {path: sorted(found) for path, found in places.items()}


def _names_in(places: Sequence[tuple[int, str]], start: int, size: int) -> list[str]:
    first, last = bisect_left(places, (start,)), bisect_left(places, (start + size,))
    return list(dict.fromkeys(name for _, name in places[first:last]))
