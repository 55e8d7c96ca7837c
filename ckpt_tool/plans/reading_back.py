"""What was written, read from disk and compared bit for bit with what was planned."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from ckpt_tool.common.parallel import Team
from ckpt_tool.common.remote.files import find_number
from ckpt_tool.plans.plan import Plan
from ckpt_tool.tensors.equality import Pair, locate_differences
from ckpt_tool.tensors.lazy import LazyTensor


def read_back(plan: Plan, folder: Path, team: Team) -> list[str]:
    """Names whose tensor, taken out of what was written, is not bit for bit what was planned."""
    for file in plan.files:
        forget_cached(folder / file.name)
    found = team.world.each(lambda: plan.read_back(folder))
    return find_differences(plan.tensors, found, team)


def forget_cached(path: Path) -> None:
    """Drop a synced file from the page cache: what is read back comes from the disk.

    What lies elsewhere is in none.
    """
    if find_number(str(path)):
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


def find_differences(
    planned: Mapping[str, LazyTensor], found: Mapping[str, LazyTensor], team: Team
) -> list[str]:
    """Names that only one side has, or whose tensors are not equal bit for bit.

    Every process of the team compares its share, and all learn of all.
    """
    names = set(found) ^ set(planned)
    pairs = []
    for name, tensor in planned.items():
        if name in names:
            continue
        other = found[name]
        if (other.shape, other.dtype) != (tensor.shape, tensor.dtype):
            names.add(name)
        else:
            pairs.append(Pair(name, tensor, other))
    share = [pairs[index] for index in team.world.share([pair.left.nbytes for pair in pairs])]
    team.progress.start("verifying", sum(pair.left.nbytes for pair in share))
    different = team.world.everyone(
        lambda: list(locate_differences(share, team.jobs, team.progress.advance))
    )
    return sorted(names.union(*different))
