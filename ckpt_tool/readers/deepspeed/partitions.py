"""How ZeRO cuts parameters into flat partitions: pure functions of sizes, no files.

Stages 1 and 2 lay the parameters of a group one after another, flat, and cut the row into one
partition per rank. Stage 3 cuts every parameter by itself into as many equal pieces as there are
ranks, the last one padded, and each rank lays its pieces one after another, in one or more groups.
Source: ``deepspeed/runtime/zero/stage_1_and_2.py``, ``partition_parameters.py``.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import NamedTuple

from ckpt_tool.tensors.geometry import Box, Shape, cut_linear


class Piece(NamedTuple):
    """Elements ``[start, stop)`` of a parameter's row-major order.

    In the flat group number ``group`` of rank ``rank`` they begin at element ``at``.
    """

    rank: int
    group: int
    at: int
    start: int
    stop: int


def cut_joined(
    sizes: Sequence[int], gaps: Sequence[int], partitions: Sequence[int], group: int
) -> list[list[Piece]]:
    """The pieces of each parameter of a group whose partitions, joined, hold one after another.

    ``sizes``: elements of each parameter; ``gaps``: of padding after it; ``partitions``: elements
    that each rank has. The padding behind the last one need not be there. ValueError where the
    partitions are too short.
    """
    if sum(sizes) + sum(gaps[:-1]) > sum(partitions):
        raise ValueError(f"{sum(sizes)} + {sum(gaps)} elements in {sum(partitions)}")
    cut: list[list[Piece]] = []
    offset = first = rank = 0
    for size, gap in zip(sizes, gaps, strict=True):
        pieces, done = [], 0
        while done < size:
            while offset + done >= first + partitions[rank]:
                first += partitions[rank]
                rank += 1
            at = offset + done - first
            taken = min(size - done, partitions[rank] - at)
            pieces.append(Piece(rank, group, at, done, done + taken))
            done += taken
        offset += size + gap
        cut.append(pieces)
    return cut


def cut_each(sizes: Sequence[int], ranks: int, groups: Sequence[int]) -> list[list[Piece]]:
    """The pieces of each parameter where every one is cut into ``ranks`` pieces by itself.

    ``sizes``: elements of each parameter; ``groups``: elements of each flat group that a rank has.
    Groups must hold exactly the pieces, padding included: ValueError where they do not.
    """
    if measure_each(sizes, ranks) != sum(groups):
        raise ValueError(f"pieces of {measure_each(sizes, ranks)} elements in {sum(groups)}")
    starts = [0, *accumulate(groups)]
    cut, offset = [], 0
    for size in sizes:
        length = measure_piece(size, ranks)
        pieces: list[Piece] = []
        for rank, start in enumerate(range(0, size, length) if length else ()):
            span = offset, min(length, size - start)
            pieces += (piece._replace(rank=rank) for piece in _split(span, start, starts))
        offset += length
        cut.append(pieces)
    return cut


def _split(span: tuple[int, int], start: int, starts: Sequence[int]) -> Iterator[Piece]:
    """A piece by the groups that it lies in; ``span``: where in all of them it is, and its size."""
    offset, left = span
    while left:
        group = bisect_right(starts, offset) - 1
        taken = min(left, starts[group + 1] - offset)
        yield Piece(0, group, offset - starts[group], start, start + taken)
        offset, start, left = offset + taken, start + taken, left - taken


def measure_piece(size: int, ranks: int) -> int:
    """Elements of each of the equal pieces, padding included, of a parameter of ``size``."""
    return -(-size // ranks)


def measure_each(sizes: Sequence[int], ranks: int) -> int:
    """Elements that a rank has of parameters that are each cut by themselves."""
    return sum(measure_piece(size, ranks) for size in sizes)


def list_boxes(shape: Shape, piece: Piece) -> Iterator[tuple[Box, int]]:
    """The boxes of a parameter that a piece is, each with its first element in the flat group.

    Each box is row-major there, without gaps; there are at most twice as many as dimensions.
    """
    at = piece.at
    for box in cut_linear(shape, piece.start, piece.stop):
        yield box, at
        at += box.volume
