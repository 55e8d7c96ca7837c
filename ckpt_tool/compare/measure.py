"""Measuring how far tensors are apart, block by block, in a few threads."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

import numpy as np
import xxhash

from ckpt_tool.common.threads import Threads
from ckpt_tool.compare.block import BlockMeasure
from ckpt_tool.compare.stats import Stats, Tolerance
from ckpt_tool.tensors.ahead import flow_ahead
from ckpt_tool.tensors.blocks import FileTable
from ckpt_tool.tensors.equality import (
    Label,
    Pair,
    count_steps,
    count_tasks,
    cut_tasks,
    list_pair_reads,
)
from ckpt_tool.tensors.sweep import find_step

_ELEMENTS = 1 << 17  # per step: enough that threads rarely meet at the interpreter lock
_STEPS = 64  # per task
_RANKED = 4  # steps at once where tensors are ranked: little is done with each element


def measure(
    pairs: Sequence[Pair[Label]],
    jobs: int,
    tolerance: Tolerance | None,
    advance: Callable[[int], None],
) -> dict[Label, Stats]:
    """The differences of every pair; its tensors have one shape, their dtypes may differ.

    Where a side is cast, elements that are NaN on both are equal: casts do not keep their bits.
    Without a ``tolerance`` only what :attr:`~.Stats.distance` rests on is found, to six digits, and
    the digests, in an eighth of the time. ``advance`` is told the bytes of the left side. OSError
    and FormatError where a file cannot be read.
    """
    found = {pair.label: Stats() for pair in pairs}
    hashes = {pair.label: (xxhash.xxh3_128(), xxhash.xxh3_128()) for pair in pairs}
    local = threading.local()
    count = count_tasks(pairs, _find_span)
    with FileTable() as files, Threads(jobs, tasks=count) as pool:

        def work(task: tuple[Pair[Label], int, int]) -> tuple[Label, list[Stats]]:
            if not hasattr(local, "blocks"):
                local.blocks = BlockMeasure(files)
            pair, start, stop = task
            step = _find_step(pair) * (1 if tolerance else _RANKED)
            local.blocks.begin(pair, (start, stop), step)
            with np.errstate(all="ignore"):  # float64 may overflow, and zeros divide
                parts = [
                    _measure(local.blocks, pair, (at, min(at + step, stop)), tolerance)
                    for at in range(start, stop, step)
                ]
            advance((stop - start) * pair.left.dtype.itemsize)
            return pair.label, parts

        tasks = cut_tasks(pairs, _find_span)
        for label, parts in flow_ahead(pool, work, tasks, list_pair_reads):
            for part in parts:
                found[label].add(part)
                for side, digest in zip(hashes[label], part.digests, strict=True):
                    side.update(digest.encode())
    for label, (left, right) in hashes.items():
        found[label].digests = (left.hexdigest(), right.hexdigest())
    return found


def _measure(
    blocks: BlockMeasure,
    pair: Pair[Label],
    span: tuple[int, int],
    tolerance: Tolerance | None,
) -> Stats:
    if tolerance is None:
        return blocks.rank(pair, span, _find_step(pair))
    return blocks.measure(pair, span, tolerance)


def _find_step(pair: Pair[Label]) -> int:
    return find_step(pair.left.shape, _ELEMENTS)


def _find_span(pair: Pair[Label]) -> int:
    """The elements of a task."""
    return count_steps(_STEPS) * _find_step(pair)
