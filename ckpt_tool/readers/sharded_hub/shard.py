"""One rank's file of a sharded save: safetensors, and which part of each tensor they are.

``shard-RRRRR-model-KKKKK-of-NNNNN.safetensors``: rank R, counted from 1, and which of the N files
of the model its tensors are for. ``__metadata__["DCP_SHARDING_INFO"]`` is a text, JSON of ``{name:
{"saved_offsets": [...]}}``, in elements. No shape of a whole tensor is written anywhere. Source:
``torch/distributed/checkpoint/{hf_storage,_hf_utils,filesystem}.py``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from ckpt_tool.common.errors import FormatError
from ckpt_tool.common.untrusted import parse_json, require_object, show
from ckpt_tool.common.wording import count_noun
from ckpt_tool.readers.base import Holding
from ckpt_tool.readers.huggingface import read_safetensors
from ckpt_tool.tensors.dtypes import DType
from ckpt_tool.tensors.geometry import MOST_ELEMENTS, Box, Shape

_NAME = re.compile(r"shard-(\d{5,9})-model-(\d{5,9})-of-(\d{5,9})\.safetensors", re.ASCII)
_INFO = "DCP_SHARDING_INFO"
_MOST = 1 << 48


@dataclass(frozen=True, order=True)
class Shard:
    """A file by the numbers in its name: ``rank`` from 0, ``part`` from 1 of ``parts`` files."""

    rank: int
    part: int
    parts: int
    path: Path

    @classmethod
    def parse(cls, path: Path) -> Shard | None:
        """What the name says; None where it is no shard's."""
        if (matched := _NAME.fullmatch(path.name)) is None:
            return None
        number, part, parts = map(int, matched.groups())
        return cls(number - 1, part, parts, path)

    @property
    def number(self) -> int:
        """As its name counts ranks, from 1."""
        return self.rank + 1


@dataclass(frozen=True)
class Piece:
    """A part of the tensor ``name`` in one file; ``holding.box``: which."""

    name: str
    dtype: DType
    holding: Holding

    @property
    def reach(self) -> Shape:
        """How far it reaches in each dimension: the whole tensor has this many, or more."""
        box = self.holding.box
        return tuple(o + s for o, s in zip(box.offsets, box.sizes, strict=True))


def read_shard(shard: Shard) -> list[Piece]:
    """All pieces in a file; FormatError where it is damaged, or does not say where they belong."""
    entries, described = read_safetensors(shard.path)
    offsets = _read_info(described, shard.path)
    if strangers := sorted(offsets.keys() - {entry.name for entry in entries}):
        raise FormatError(f"{_INFO}: {strangers[0]} is not in the file", path=shard.path)
    pieces = []
    for entry in entries:
        region = entry.holdings[0].region
        box = Box(_find_offsets(offsets, entry.name, entry.shape, shard.path), entry.shape)
        pieces.append(Piece(entry.name, entry.dtype, Holding(shard.rank, box, region)))
    return pieces


def _read_info(described: Any, path: Path) -> dict[str, Any]:
    info = described.get(_INFO) if isinstance(described, dict) else None
    if not isinstance(info, str):
        raise FormatError(
            f"no {_INFO} in its header: nothing says which part of each tensor this is", path=path
        )
    try:
        return require_object(parse_json(info.encode(), path), path)
    except FormatError as error:
        raise FormatError(f"{_INFO}: {error.reason}", path=path) from error


def _find_offsets(offsets: dict[str, Any], name: str, sizes: Shape, path: Path) -> Shape:
    row = offsets.get(name)
    if row is None:
        raise FormatError(f"{_INFO}: nothing about {name}, which is in the file", path=path)
    found = row.get("saved_offsets") if isinstance(row, dict) else row
    if not isinstance(found, list) or not all(type(n) is int and 0 <= n < _MOST for n in found):
        raise FormatError(
            f"{_INFO}: {name}: saved_offsets is {show(found)}, expected offsets", path=path
        )
    if len(found) != len(sizes):
        raise FormatError(
            f"{_INFO}: {name}: {count_noun(len(found), 'offset')} for {list(sizes)}, expected"
            f" {len(sizes)}",
            path=path,
        )
    if prod(o + s for o, s in zip(found, sizes, strict=True)) >= MOST_ELEMENTS:
        raise FormatError(
            f"{_INFO}: {name}: {show(found)}: more elements than files can have",
            path=path,
        )
    return tuple(found)


def list_shards(folder: Path) -> Iterator[Shard]:
    """Every shard in ``folder``, by its name; none where that cannot be read."""
    yield from filter(None, map(Shard.parse, sorted(folder.glob("shard-*.safetensors"))))
