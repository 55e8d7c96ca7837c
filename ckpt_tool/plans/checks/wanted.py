"""What a class of transformers wants of a folder of weights: names on the Hub, shapes, dtypes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Wanted:
    """``shapes``: of every tensor that has to be there; ``tied``: of those that may be, as copies.

    ``architecture``: the class; ``library``: whose it is, with its version. ``dtypes``: by torch's
    names, of those that it holds in another one than its config names. ``overlooked``: regular
    expressions of names that it leaves alone where it finds them (multi-token prediction).
    """

    architecture: str
    library: str
    shapes: Shapes
    tied: Shapes
    dtypes: dict[str, str] = field(default_factory=dict)
    overlooked: tuple[str, ...] = ()

    def list_faults(self, planned: Shapes) -> list[str]:
        """What is missing, too many, or has another shape, in lines; empty where nothing is."""
        return [*self._missing(planned), *self._unexpected(planned), *self._mismatched(planned)]

    def count_overlooked(self, planned: Shapes) -> int:
        """How many of these tensors the class leaves alone."""
        return sum(not self._has(name) and self._overlooks(name) for name in planned)

    def _has(self, name: str) -> bool:
        return name in self.shapes or name in self.tied

    def _overlooks(self, name: str) -> bool:
        return any(re.search(pattern, name) for pattern in self.overlooked)

    def _missing(self, planned: Shapes) -> Iterator[str]:
        for name, shape in self.shapes.items():
            if name not in planned:
                yield f"missing: {name} {list(shape)}"

    def _unexpected(self, planned: Shapes) -> Iterator[str]:
        for name in planned:
            if not self._has(name) and not self._overlooks(name):
                yield f"unexpected: {name}"

    def _mismatched(self, planned: Shapes) -> Iterator[str]:
        both = self.tied | self.shapes
        for name, shape in planned.items():
            if name in both and both[name] != shape:
                yield f"mismatched: {name}: {list(shape)}, expected {list(both[name])}"
