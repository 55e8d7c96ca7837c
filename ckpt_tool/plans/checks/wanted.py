"""What a class of transformers wants of a folder of weights: names on the Hub, shapes, dtypes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Wanted:
    """``shapes``: of every tensor that has to be there; ``tied``: of those that may be, as copies.

    ``architecture``: the class; ``library``: whose it is, with its version. ``dtypes``: by torch's
    names, of those that it holds in another one than its config names.
    """

    architecture: str
    library: str
    shapes: Shapes
    tied: Shapes
    dtypes: dict[str, str] = field(default_factory=dict)

    def list_faults(self, planned: Shapes) -> list[str]:
        """What is missing, too many, or has another shape, in lines; empty where nothing is."""
        return [*self._missing(planned), *self._unexpected(planned), *self._mismatched(planned)]

    def _missing(self, planned: Shapes) -> Iterator[str]:
        for name, shape in self.shapes.items():
            if name not in planned:
                yield f"missing: {name} {list(shape)}"

    def _unexpected(self, planned: Shapes) -> Iterator[str]:
        for name in planned:
            if name not in self.shapes and name not in self.tied:
                yield f"unexpected: {name}"

    def _mismatched(self, planned: Shapes) -> Iterator[str]:
        both = self.tied | self.shapes
        for name, shape in planned.items():
            if name in both and both[name] != shape:
                yield f"mismatched: {name}: {list(shape)}, expected {list(both[name])}"
