"""How far whole layers moved, and all modules of a kind: sums over the tensors of each."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from ckpt_tool.compare.grid import OTHER, Grid, find_place, list_sections, make_grid
from ckpt_tool.compare.stats import Stats


@dataclass(frozen=True)
class Total:
    """The tensors of one shape on both sides that belong together.

    ``num_changed``: how many of ``num_tensors`` differ; ``num_different``: elements with other
    bits, of ``num_elements``. ``relative_norm``: ``|a - b| / |b|`` of all of them as one vector,
    of elements that are finite on both sides; None where ``b`` is zero and ``a`` is not.
    ``num_unlike``: elements that differ and are not finite on a side.
    """

    name: str
    num_tensors: int
    num_changed: int
    num_elements: int
    num_different: int
    num_unlike: int
    relative_norm: float | None


@dataclass(frozen=True)
class Totals:
    """``layers``: each layer, then what is outside of them; ``modules``: each kind of module."""

    layers: tuple[Total, ...]
    modules: tuple[Total, ...]


def find_company(names: Collection[str], changed: Collection[str]) -> list[str]:
    """Those of ``names``, which do not differ, that share a layer or a module with a changed one.

    Totals of all others are 0 whatever they hold.
    """
    layers = {find_place(name)[0] for name in changed}
    modules = {_find_module(name) for name in changed}
    return [
        name for name in names if find_place(name)[0] in layers or _find_module(name) in modules
    ]


def make_totals(parts: Mapping[str, Stats]) -> Totals:
    """The totals of tensors, given by name: numbers and squares of ``b`` and ``a - b`` of each.

    Layers and modules are in the order of the grid (:func:`ckpt_tool.compare.grid.make_grid`).
    """
    layers: dict[str, list[Stats]] = {}
    modules: dict[str, list[Stats]] = {}
    for name, part in parts.items():
        layers.setdefault(find_place(name)[0], []).append(part)
        modules.setdefault(_find_module(name), []).append(part)
    grid = make_grid(dict.fromkeys(parts, 0.0))
    return Totals(
        tuple(_add("outside the layers" if n == OTHER else n, layers[n]) for n in grid.rows),
        tuple(_add(name, modules[name]) for name in _list_modules(grid)),
    )


def _find_module(name: str) -> str:
    """``model.layers.*.self_attn.q_proj``; what is outside of layers by its own name."""
    row, column = find_place(name)
    return column if row == OTHER else f"{row.rpartition('.')[0]}.*.{column}"


def _list_modules(grid: Grid) -> list[str]:
    found: list[str] = []
    for section in list_sections(grid):
        start = "" if section.title == OTHER else f"{section.title}.*."
        found += [f"{start}{column}" for column in section.columns]
    return found


def _add(name: str, parts: Collection[Stats]) -> Total:
    there = Stats()
    for part in parts:
        there.add(part)
    moved = there.squares[2] > 0
    return Total(
        name=name,
        num_tensors=len(parts),
        num_changed=sum(part.num_different > 0 for part in parts),
        num_elements=there.num_elements,
        num_different=there.num_different,
        num_unlike=there.num_unlike,
        relative_norm=there.relative_norm if moved else 0.0,
    )
