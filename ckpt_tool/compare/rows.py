"""Rows of two tensors as digests: any order of rows can then be tested without reading again.

A row is everything at one index of dimension 0. Equal digests (128 bits) count as equal bytes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import TypeVar

import xxhash

from ckpt_tool.compare.heads import Heads
from ckpt_tool.tensors.blocks import BlockReader, FileTable
from ckpt_tool.tensors.lazy import LazyTensor

_BLOCK = 1 << 20  # bytes
_MOST_ROWS = 1 << 20

#: Rotary dimensions of a head; none is wider.
_HEAD_DIMS = (16, 32, 64, 80, 96, 112, 128, 160, 192, 256)

Digests = list[bytes]
Item = TypeVar("Item")


def digest_rows(tensor: LazyTensor, most: int = _MOST_ROWS) -> Digests | None:
    """A digest per row, or None where that is not sensible. OSError where a file cannot be read."""
    if not tensor.shape or not 2 <= tensor.shape[0] <= most or not tensor.numel:
        return None
    width = tensor.numel // tensor.shape[0]
    size = width * tensor.dtype.itemsize
    per_block = max(_BLOCK // size, 1)
    buffer = memoryview(bytearray(per_block * size))
    found: Digests = []
    with FileTable() as files:
        reader = BlockReader(files)
        for start in range(0, tensor.shape[0], per_block):
            stop = min(start + per_block, tensor.shape[0])
            rows = buffer[: (stop - start) * size]
            reader.read(tensor, start * width, stop * width, rows)
            found += (
                xxhash.xxh3_128_digest(rows[at : at + size]) for at in range(0, len(rows), size)
            )
    return found


def explain_order(
    left: Digests,
    right: Digests,
    heads: Heads | None,
    *,
    stacked: bool,
    attention: bool | None = None,
) -> str:
    """In what order ``left`` has the rows of ``right``; empty where it does not have them.

    ``stacked``: each row is a matrix, an expert or a layer. ``attention``: whether rows are those
    of heads; None where that is not known.
    """
    if left == right or Counter(left) != Counter(right):
        return ""
    if stacked:
        return f"the {len(right)} entries of dimension 0 are permuted (expert order changed)"
    known = _known_orders(len(right), heads, attention)
    found = next((name for name, order in known if left == order(right)), "")
    dims = [] if attention is False else _head_dims(len(right), heads)
    return found or _permutation(left, right, dims)


def _permutation(left: Digests, right: Digests, dims: Sequence[int]) -> str:
    """What can be said where no known order fits: blocks that stayed together."""
    for dim in dims:
        if Counter(_block(left, dim)) == Counter(_block(right, dim)):
            return f"rows permuted in blocks of {dim}: whole heads are in another order"
    return "rows permuted: the same rows in another order"


def find_shift(part: Digests, at: int, whole: Digests) -> int | None:
    """By how many rows ``part``, which lies at row ``at``, is a shifted piece of ``whole``."""
    if len(set(part)) < 2:
        return None
    places = [index for index, digest in enumerate(whole) if digest == part[0]]
    for place in places:
        if place != at and whole[place : place + len(part)] == part:
            return place - at
    return None


Order = Callable[[Digests], Digests]


def _known_orders(
    rows: int, heads: Heads | None, attention: bool | None
) -> Sequence[tuple[str, Order]]:
    """Orders by name, those first that the config's heads have."""
    of_heads = [] if attention is False else _fused_orders(rows, heads)
    for dim in _head_dims(rows, heads) if attention is not False else ():
        name = f"rotary halves of each head (head_dim {dim})"
        if dim % 2 == 0:
            of_heads.append((f"{name} interleaved", _inside(dim, 2)))
            of_heads.append((f"{name} no longer interleaved", _inside(dim, dim // 2)))
        of_heads += _grouping_orders(rows, dim)
    if rows % 2 or attention:
        return of_heads
    gated = [
        ("gate and up halves swapped", lambda r: r[rows // 2 :] + r[: rows // 2]),
        ("gate and up rows interleaved, those of the reference are not", _transposing(2)),
        ("gate and up rows not interleaved, those of the reference are", _transposing(rows // 2)),
    ]
    known = heads is not None and rows % heads.dim == 0
    return of_heads + gated if known else gated + of_heads


def _fused_orders(rows: int, heads: Heads | None) -> list[tuple[str, Order]]:
    """Orders of a fused Q, K, V: one after the other, or each query group's together."""
    if heads is None or rows != (heads.query + 2 * heads.key_value) * heads.dim:
        return []
    found: list[tuple[str, Order]] = []
    groups = [g for g in range(1, heads.query + 1) if heads.query % g == 0]
    for mine in groups:
        for theirs in groups:
            if mine != theirs and {mine, theirs} & {heads.key_value, 1}:
                text = f"Q/K/V interleaved by {mine} query groups, the reference by {theirs}"
                found.append((text, _regrouped(heads, mine, theirs)))
    return found


def _regrouped(heads: Heads, mine: int, theirs: int) -> Order:
    q, kv = heads.query * heads.dim, heads.key_value * heads.dim

    def order(rows: Digests) -> Digests:
        if kv % mine or kv % theirs:
            return []
        plain: list[Digests] = [[], [], []]
        step = len(rows) // theirs
        for start in range(0, len(rows), step):
            group = rows[start : start + step]
            cuts = (0, q // theirs, (q + kv) // theirs, step)
            for part, (begin, end) in enumerate(pairwise(cuts)):
                plain[part] += group[begin:end]
        return [
            row
            for index in range(mine)
            for part in plain
            for row in part[index * len(part) // mine : (index + 1) * len(part) // mine]
        ]

    return order


def _grouping_orders(rows: int, dim: int) -> list[tuple[str, Order]]:
    """Whole heads transposed from [groups, heads per group] to [heads per group, groups]."""
    count = rows // dim
    return [
        (
            f"heads of another grouping (head_dim {dim}, {count} heads as {groups} groups)",
            _regrouping(dim, groups),
        )
        for groups in range(2, count)
        if count % groups == 0
    ]


def _transposing(groups: int) -> Order:
    return lambda rows: _transposed(rows, groups)


def _inside(size: int, groups: int) -> Order:
    """Transpose within each block of ``size`` rows."""
    return lambda rows: [row for block in _block(rows, size) for row in _transposed(block, groups)]


def _regrouping(size: int, groups: int) -> Order:
    """Transpose whole blocks of ``size`` rows."""
    return lambda rows: [row for block in _transposed(_block(rows, size), groups) for row in block]


def _head_dims(rows: int, heads: Heads | None) -> list[int]:
    dims = [heads.dim] if heads is not None else []
    dims += [dim for dim in _HEAD_DIMS if dim not in dims]
    return [dim for dim in dims if rows % dim == 0]


def _block(rows: Digests, size: int) -> list[tuple[bytes, ...]]:
    return [tuple(rows[at : at + size]) for at in range(0, len(rows), size)]


def _transposed(rows: Sequence[Item], groups: int) -> list[Item]:
    """Seen as [groups, n], transposed to [n, groups] and flattened."""
    step = len(rows) // groups
    return [rows[group * step + index] for index in range(step) for group in range(groups)]
