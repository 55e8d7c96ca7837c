"""What Megatron has several times and the Hub once: all of it must be equal, or nothing is written.

megatron-core trains a row of gate for each element of a head where Step-3.5 has one for the head.
Where they differ no model on the Hub computes the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from ckpt_tool.common.errors import MappingError
from ckpt_tool.common.parallel import Team
from ckpt_tool.common.wording import count_doing
from ckpt_tool.mapping.hub.form import Copies, HubModel
from ckpt_tool.tensors.equality import Pair, locate_differences
from ckpt_tool.tensors.lazy import LazyTensor, cat
from ckpt_tool.tensors.repeated import repeat

if TYPE_CHECKING:
    import torch

_HINT = (
    "Keep the training in Megatron's form. Megatron-Bridge exports the first row of each head and"
    " leaves the others out, so that its model on the Hub computes something else; for one that is"
    " exact the run has to keep the rows of a head equal, by giving all of them the mean of their"
    " gradients or by freezing them."
)


def require_equal_copies(model: HubModel, team: Team) -> None:
    """MappingError where copies are not equal bit for bit: which, and how far apart they are.

    Every process of the team compares its share.
    """
    if not model.copies:
        return
    pairs = [Pair(name, each.rows, _repeat_first(each)) for name, each in model.copies.items()]
    share = [pairs[index] for index in team.world.share([pair.left.nbytes for pair in pairs])]
    team.progress.start("copies of gates", sum(pair.left.nbytes for pair in share))
    found = team.world.everyone(
        lambda: list(locate_differences(share, team.jobs, team.progress.advance))
    )
    differing = {name: model.copies[name] for part in found for name in part}
    if differing:
        raise MappingError(_describe(differing), _list_faults(differing), hint=_HINT)


def _repeat_first(copies: Copies) -> LazyTensor:
    """The first row of each head as often as all of them are there."""
    starts = range(0, copies.rows.shape[0], copies.times)
    return repeat(cat([copies.rows.narrow(0, start, 1) for start in starts], 0), copies.times)


def _describe(differing: Mapping[str, Copies]) -> str:
    times = next(iter(differing.values())).times
    what = count_doing(len(differing), "tensor", "have")
    return (
        f"{what} a gate of {times} rows for each head, which differ; on the Hub it is one row, so"
        " that no model there computes the same"
    )


def _list_faults(differing: Mapping[str, Copies]) -> list[str]:
    faults = []
    for name, copies in differing.items():
        count, most = _measure(copies)
        faults.append(
            f"{copies.where} -> {name}: {count} of {copies.rows.shape[0]} rows differ from the"
            f" first of their head, by {most:.3g} at most"
        )
    return faults


def _measure(copies: Copies) -> tuple[int, float]:
    """How many rows differ from the first of theirs in bits, and by how much at most."""
    count, most = 0, 0.0
    for start in range(0, copies.rows.shape[0], copies.times):
        rows = copies.rows.narrow(0, start, copies.times).read()
        count += int(_differ(rows).sum())
        apart = float((rows.double() - rows[:1].double()).abs().max())
        most = most if apart <= most else apart  # NaN is more than any
    return count, most


def _differ(rows: torch.Tensor) -> torch.Tensor:
    """Which rows have other bits than the first."""
    import torch

    bits = rows.reshape(len(rows), -1).view(torch.uint8)
    return (bits != bits[:1]).any(1)
