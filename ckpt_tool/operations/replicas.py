"""Copies that several ranks hold: proven equal on the bytes before one of them is believed."""

from __future__ import annotations

from pathlib import Path

from ckpt_tool.common.errors import CheckpointError, Problem
from ckpt_tool.common.parallel import Team
from ckpt_tool.common.wording import count_doing
from ckpt_tool.readers.base import Checkpoint, Entry, Holding
from ckpt_tool.tensors.chunks import Chunk
from ckpt_tool.tensors.equality import Pair, locate_differences
from ckpt_tool.tensors.geometry import Box
from ckpt_tool.tensors.lazy import LazyTensor

_Replica = tuple[str, Holding, Holding]


def prove_replicas(checkpoint: Checkpoint, recorded_too: bool, team: Team) -> None:
    """Require that blocks held by several ranks are equal; CheckpointError lists those that differ.

    Every process of the team compares its share, and all learn of all.

    Where nothing in the files says that ranks are replicas (plain tensors, norms under tensor
    parallelism), equality is the only evidence, so it is always checked. Replicas that the mesh
    records (HSDP) are read only with ``recorded_too``.
    """
    pairs: list[Pair[_Replica]] = []
    for entry in checkpoint.entries.values():
        for owner, other in entry.replicas():
            if recorded_too or not other.replicated:
                label = (entry.name, owner, other)
                pairs.append(Pair(label, _block(entry, owner), _block(entry, other)))
    if not pairs:
        return
    share = [pairs[index] for index in team.world.share([pair.left.nbytes for pair in pairs])]
    team.progress.start("replicas", sum(pair.left.nbytes for pair in share))

    def compare() -> list[Problem]:
        found = locate_differences(share, team.jobs, team.progress.advance)
        return [
            Problem("replica", name, _replica_message(index, owner, other))
            for (name, owner, other), index in found.items()
        ]

    problems = [problem for part in team.world.everyone(compare) for problem in part]
    if problems:
        raise CheckpointError(
            f"{checkpoint.path}: {count_doing(len(problems), 'copy', 'differ')} between ranks,"
            " expected equal",
            problems,
            hint="The ranks diverged in training, or a file is from another step.",
        )


def _block(entry: Entry, holding: Holding) -> LazyTensor:
    """A holding's block as a tensor of its own."""
    sizes = holding.box.sizes
    chunk = Chunk(Box((0,) * len(sizes), sizes), holding.region)
    return LazyTensor(sizes, entry.dtype, entry.dtype, (chunk,))


def _replica_message(index: int, owner: Holding, other: Holding) -> str:
    one, another = map(_holder, (other, owner))
    return f"{one} differs from {another} at element {index} of {owner.box}"


def _holder(holding: Holding) -> str:
    """The rank, or the file and the folder that tells what it is of."""
    if holding.rank is not None:
        return f"rank {holding.rank}"
    path = Path(holding.region.path)
    return f"{path.parent.name}/{path.name}"
