"""Which rows of an adapter's B are whose, where Megatron has a weight in parts, or gate and up.

The input projections of Mamba and of gated DeltaNet are several tensors in ``torch_dist``. B is so
too of Mamba; of DeltaNet it is whole, and each tensor-parallel rank's rows are those of its share
of every part: how many ranks there were is how many blocks there are. Source:
``sharded_state_dict`` of ``ParallelLinearAdapter`` in ``megatron/bridge/peft/utils.py`` of 0.6.2.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from ckpt_tool.common.errors import MappingError
from ckpt_tool.tensors.lazy import LazyTensor, cat

#: In the order in which a rank has their rows: of Mamba, and of gated DeltaNet.
_ORDERS = (("z", "x", "B", "C", "dt"), ("query", "key", "value", "z", "beta", "alpha"))
_FIRST = re.compile(r"(?P<mlp>.+\.)linear_fc1\.adapter\.linear_out\.weight")


def find_parts(weights: Mapping[str, LazyTensor], module: str) -> dict[str, LazyTensor]:
    """The tensors of a module's weight, by what follows its name; ``""``: it is one. May be none.

    In the order of their rows.
    """
    whole = weights.get(f"{module}.weight")
    if whole is not None:
        return {"": whole}
    for order in _ORDERS:
        found = {f".{part}": weights.get(f"{module}.weight.{part}") for part in order}
        parts = {part: tensor for part, tensor in found.items() if tensor is not None}
        if len(parts) == len(order):
            return parts
    return {}


def share_rows(left: LazyTensor, counts: Sequence[int]) -> list[LazyTensor]:
    """The rows of each of several parts, which have so many; ``left`` has those of every rank.

    ValueError where it has not, or its blocks are not those of ranks.
    """
    if len(left.shape) != 2:
        raise ValueError(f"B of shape {list(left.shape)}, expected rows and a rank")
    starts = sorted({chunk.box.offsets[0] for chunk in left.chunks})
    rows, ranks = left.shape[0], max(len(starts), 1)
    even = all(count % ranks == 0 for count in counts)
    if not rows or sum(counts) != rows or not even or starts != list(range(0, rows, rows // ranks)):
        raise ValueError(
            f"B of shape {list(left.shape)} in {ranks} blocks, expected rows of"
            f" {' + '.join(map(str, counts))}, each divided evenly among the blocks"
        )
    parts = []
    at = 0
    for count in counts:
        size = count // ranks
        parts.append(cat([left.narrow(0, start + at, size) for start in starts], 0))
        at += size
    return parts


def order_plain_rows(tensors: Mapping[str, LazyTensor], ranks: int) -> dict[str, LazyTensor]:
    """Rows of first layers without a gate as they are, of which files of ``ranks`` did not say it.

    Where nothing of the second layer is beside the B of a first one, its rows are taken for those
    of gate and up, of which each rank has a share. MappingError lists those of experts, of which
    nothing says how many ranks share one.
    """
    matched = {name: one for name in tensors if (one := _FIRST.fullmatch(name))}
    alone = [name for name in matched if not _says_itself(matched[name]["mlp"], tensors)]
    faults = [name for name in alone if len(tensors[name].shape) > 2]
    if faults and ranks > 1:
        raise MappingError(
            "adapters of experts' first layers alone, whose rows have no known order", faults
        )
    found = dict(tensors)
    for name in alone if ranks > 1 else ():
        tensor = tensors[name]
        size = tensor.shape[0] // (2 * ranks)
        halves = [
            tensor.narrow(0, (half * ranks + rank) * size, size)
            for rank in range(ranks)
            for half in range(2)
        ]
        found[name] = cat(halves, 0)
    return found


def _says_itself(mlp: str, tensors: Mapping[str, LazyTensor]) -> bool:
    """Whether something of the second layer is there, which says how wide the first one is."""
    ends = ("weight", "to_wrap.weight", "adapter.linear_in.weight")
    return any(f"{mlp}linear_fc2.{end}" in tensors for end in ends)
