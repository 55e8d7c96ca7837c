"""How far apart two checkpoints are, as a grid of layers and modules that a renderer can colour."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

#: The row of tensors that belong to no numbered layer.
OTHER = "(other)"

_PARAMETER = re.compile(r"(weight|bias)(_\w+)?|(input|output|k|v)_scale")
_EXPERT = re.compile(r"(?<=experts\.)\d+(?=\.)")
#: The order of a forward pass, as far as names tell; a later pattern is a later module.
_FORWARD = tuple(
    re.compile(pattern)
    for pattern in (
        r"input_layernorm$|norm1$|ln_1$",
        r"attn.*\.(q|query)\w*$",
        r"attn.*\.(k|key)\w*$",
        r"attn.*\.(v|value)\w*$",
        r"attn|attention\.",
        r"post_attention|norm2$|ln_2$",
        r"pre_feedforward",
        r"(router|mlp\.gate|moe\.gate)\b",
        r"gate\w*$|fc1$",
        r"up_proj$|c_fc$",
        r"down\w*$|fc2$|(mlp|ffn).*c_proj$",
    )
)


@dataclass(frozen=True)
class Grid:
    """``rows`` are layers (``model.layers.0``), ``columns`` modules (``self_attn.q_proj``).

    A cell is the largest distance of the tensors that share it: weight and bias of a module, all
    experts of a layer. Pairs of row and column without a tensor have no cell.
    """

    rows: tuple[str, ...]
    columns: tuple[str, ...]
    cells: Mapping[tuple[str, str], float]


@dataclass(frozen=True)
class Section:
    """Rows of a grid that number the same list of layers, with the columns that these have.

    ``title`` is the list's name (``model.layers``), or :data:`OTHER` for that row alone.
    """

    title: str
    rows: tuple[str, ...]
    columns: tuple[str, ...]

    @property
    def numbers(self) -> tuple[str, ...]:
        """The rows' names without the title: layer numbers."""
        return tuple(row.removeprefix(f"{self.title}.") for row in self.rows)


def make_grid(distances: Mapping[str, float]) -> Grid:
    """The grid of ``distances``: relative distance by tensor name, as a verification has them."""
    cells: dict[tuple[str, str], float] = {}
    for name, distance in distances.items():
        place = find_place(name)
        known = cells.get(place, 0.0)
        cells[place] = distance if math.isnan(distance) else max(known, distance)
    rows = sorted({row for row, _ in cells}, key=lambda row: (row == OTHER, _natural(row)))
    inside = {column for row, column in cells if row != OTHER}
    outside = {column for row, column in cells if row == OTHER} - inside
    columns = (*sorted(inside, key=_forward), *sorted(outside, key=_outside))
    return Grid(tuple(rows), columns, cells)


def list_sections(found: Grid) -> tuple[Section, ...]:
    """The grid's rows by the list of layers they number, in order; other tensors come last."""
    rows: dict[str, list[str]] = {}
    for row in found.rows:
        rows.setdefault(_title_of(row), []).append(row)
    columns: dict[str, set[str]] = {title: set() for title in rows}
    for row, column in found.cells:
        columns[_title_of(row)].add(column)
    places = {column: at for at, column in enumerate(found.columns)}
    return tuple(
        Section(title, tuple(rows[title]), tuple(sorted(columns[title], key=places.__getitem__)))
        for title in rows
    )


def find_place(name: str) -> tuple[str, str]:
    """Row and column of a tensor.

    The first number is a layer's if a module follows it: a number before the parameter itself
    (``merger.mlp.0.weight``) is a step of a sequence.
    """
    parts = name.split(".")
    if len(parts) > 1 and _PARAMETER.fullmatch(parts[-1]):
        parts.pop()
    for at, part in enumerate(parts[:-1]):
        if at and part.isdecimal():
            module = ".".join(parts[at + 1 :])
            return ".".join(parts[: at + 1]), _EXPERT.sub("*", module)
    return OTHER, _EXPERT.sub("*", ".".join(parts).removeprefix("model."))


def _title_of(row: str) -> str:
    """The list of layers that a row is of."""
    return row if row == OTHER else row.rpartition(".")[0]


def _natural(name: str) -> list[str | int]:
    """A sort key that orders numbers within a name by their value."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d{1,9})", name)]


def _forward(column: str) -> tuple[int, list[str | int]]:
    places = (at for at, pattern in enumerate(_FORWARD) if pattern.search(column))
    return next(places, len(_FORWARD)), _natural(column)


def _outside(column: str) -> tuple[bool, bool, list[str | int]]:
    """Embeddings first, heads last."""
    return "embed" not in column, "head" in column, _natural(column)
