"""Where each difference lies, and why: what a verification says of a mismatch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ckpt_tool.compare.hints import Diagnosis, Suspect
from ckpt_tool.compare.rows import Heads
from ckpt_tool.compare.stats import Stats
from ckpt_tool.operations.sides import Side
from ckpt_tool.tensors.lazy import LazyTensor


@dataclass(frozen=True)
class Mismatch:
    """A tensor on both sides that differs: ``kind`` is ``shape``, ``dtype`` or ``values``.

    ``left`` and ``right`` say dtype and shape; ``first_index`` is per dimension, ``source`` the
    file of the checkpoint in which that element lies (with ``rank``, where a rank wrote it).
    """

    name: str
    kind: str
    left: str
    right: str
    stats: Stats | None
    first_index: tuple[int, ...] | None
    source: str
    rank: int | None
    hint: str


def explain(suspects: Sequence[Suspect], left: Side, right: Side, jobs: int) -> list[Mismatch]:
    """The mismatches in the order of the reference, each with its place and cause."""
    diagnosis = Diagnosis(suspects, _heads(left, right), left.rank_of, jobs)
    order = {name: index for index, name in enumerate(right.tensors)}
    found = []
    for suspect in sorted(suspects, key=lambda s: order[s.name]):
        index = suspect.stats.first_index if suspect.stats else None
        place = None if index is None else _unravel(index, suspect.left.shape)
        source = _source(suspect.left, place)
        found.append(
            Mismatch(
                name=suspect.name,
                kind=suspect.kind,
                left=_described(suspect.left),
                right=_described(suspect.right),
                stats=suspect.stats,
                first_index=place,
                source=source,
                rank=left.rank_of(source),
                hint=diagnosis.hint(suspect),
            )
        )
    return found


def _unravel(index: int, shape: Sequence[int]) -> tuple[int, ...]:
    place = []
    for size in reversed(shape):
        index, here = divmod(index, size)
        place.append(here)
    return tuple(reversed(place))


def _source(tensor: LazyTensor, place: tuple[int, ...] | None) -> str:
    """The file that holds the element at ``place``, or the tensor's only file."""
    for chunk in tensor.chunks:
        spans = zip(place or (), chunk.box.offsets, chunk.box.sizes, strict=False)
        if place is not None and all(o <= at < o + size for at, o, size in spans):
            return chunk.region.path
    paths = {chunk.region.path for chunk in tensor.chunks}
    return paths.pop() if len(paths) == 1 else ""


def _described(tensor: LazyTensor) -> str:
    dtype = tensor.source_dtype
    cast = f" as {tensor.dtype}" if tensor.dtype != dtype else ""
    return f"{dtype} {list(tensor.shape)}{cast}"


def _heads(left: Side, right: Side) -> Heads | None:
    """Head counts and size, from whichever config says them."""
    for side in (left, right):
        text = side.config.text if side.config is not None else {}
        query, hidden = text.get("num_attention_heads"), text.get("hidden_size")
        if isinstance(query, int) and query > 0:
            key_value = text.get("num_key_value_heads") or query
            dim = text.get("head_dim") or (hidden // query if isinstance(hidden, int) else 0)
            if isinstance(key_value, int) and isinstance(dim, int) and dim > 0:
                return Heads(query, key_value, dim)
    return None
