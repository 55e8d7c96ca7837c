"""Parameters that were trained: ranges of flat partitions, proven to hold each of them once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import prod

from ckpt_tool.common.errors import FormatError
from ckpt_tool.common.wording import count_noun
from ckpt_tool.readers.base import Entry, Holding, collect
from ckpt_tool.readers.deepspeed.model_states import ModelStates
from ckpt_tool.readers.deepspeed.optim_states import OptimStates, read_fragment
from ckpt_tool.readers.deepspeed.partitions import (
    Piece,
    cut_each,
    cut_joined,
    list_boxes,
    measure_each,
)
from ckpt_tool.readers.deepspeed.ranks import Ranks
from ckpt_tool.readers.deepspeed.values import read_counts
from ckpt_tool.readers.torch_save.archive import StoredTensor
from ckpt_tool.tensors.chunks import Region
from ckpt_tool.tensors.dtypes import FLOAT32, DType
from ckpt_tool.tensors.geometry import Shape, make_strides

Group = Mapping[str, Shape]
Cut = dict[str, list[Piece]]

_SHOWN = 8


def join_trained(first: ModelStates, ranks: Ranks) -> dict[str, Entry]:
    """Every trained parameter; without blocks where partitions do not hold them as they should."""
    groups = first.groups or []
    shapes = {name: shape for group in groups for name, shape in group.items()}
    if len(shapes) < sum(map(len, groups)):
        ranks.report("duplicate", ranks.folder, "param_shapes has a parameter in two groups")
    if not ranks.each:
        _check_module(shapes, first, ranks)
    dtype = _find_dtype(ranks)
    cut: Cut = {}
    if groups and ranks.is_whole and _are_alike(groups, ranks):
        cut = _cut_each(shapes, ranks) if ranks.each else _cut_joined(groups, ranks)
    placed = f"flat / {ranks.world}"
    return {
        name: Entry(name, shape, dtype, placed, tuple(_hold(shape, cut.get(name, ()), ranks)))
        for name, shape in shapes.items()
    }


def hold_piece(shape: Shape, piece: Piece, stored: StoredTensor) -> Iterator[Holding]:
    """The blocks of a tensor of ``shape`` that a piece is, which lies in ``stored``, flat."""
    for box, at in list_boxes(shape, piece):
        offset = stored.region.offset + at * stored.dtype.itemsize
        region = Region(stored.region.path, offset, make_strides(box.sizes))
        yield Holding(piece.rank, box, region)


def _hold(shape: Shape, pieces: Sequence[Piece], ranks: Ranks) -> Iterator[Holding]:
    for piece in pieces:
        yield from hold_piece(shape, piece, ranks.optims[piece.rank].groups[piece.group])


def _check_module(shapes: Group, first: ModelStates, ranks: Ranks) -> None:
    """The state dict has, rounded, what partitions have; of the same shapes."""
    for name, shape in shapes.items():
        found = first.module.refs.get(name)
        if found is not None and found.shape != shape:
            message = f"{list(shape)} in param_shapes, {list(found.shape)} in the state dict"
            ranks.report("contradiction", name, message)


def _find_dtype(ranks: Ranks) -> DType:
    """The one dtype of all partitions."""
    found = {group.dtype for optim in ranks.optims.values() for group in optim.groups}
    if len(found) > 1:
        said = ", ".join(sorted(map(str, found)))
        ranks.report("contradiction", ranks.folder, f"partitions of several dtypes: {said}")
    return min(found, key=str, default=FLOAT32)


def _are_alike(groups: Sequence[Group], ranks: Ranks) -> bool:
    """Whether all ranks have partitions of these groups, of one size with their padding."""
    for rank, optim in ranks.optims.items():
        if not ranks.each and len(optim.groups) != len(groups):
            said = count_noun(len(optim.groups), "partition")
            message = f"{said}, expected {len(groups)}: one for each group"
            ranks.report("contradiction", ranks.files.optim[rank], message)
    expected = _measure(ranks.optims[0])
    for rank, optim in ranks.optims.items() if ranks.is_whole else ():
        if not _has_sizes(optim, expected, each=ranks.each):
            found = [group.shape[0] for group in optim.groups[:_SHOWN]]
            message = f"rank {rank} has partitions of {found} elements"
            said = f"{message}, expected {expected[:_SHOWN]}"
            ranks.report("contradiction", ranks.files.optim[rank], said)
    return ranks.is_whole


def _measure(optim: OptimStates) -> list[int]:
    """Elements of each partition, with its padding."""
    sizes = [group.shape[0] for group in optim.groups]
    return [n + pad for n, pad in zip(sizes, _list_paddings(optim), strict=True)]


def _list_paddings(optim: OptimStates) -> list[int]:
    known = not optim.each and len(optim.paddings) == len(optim.groups)
    return optim.paddings if known else [0] * len(optim.groups)


def _has_sizes(optim: OptimStates, expected: Sequence[int], *, each: bool) -> bool:
    """Whether partitions are of these sizes, with or without the padding at their end."""
    sizes = [group.shape[0] for group in optim.groups]
    if each:
        return sizes == list(expected)
    rows = zip(sizes, _list_paddings(optim), expected, strict=True)
    return not optim.paddings or all(n in (size, _strip(size, pad)) for n, pad, size in rows)


def _strip(size: int, padding: int) -> int:
    """Elements that DeepSpeed leaves of a partition: it slices ``[:size - padding]``, as Python."""
    return size - padding if padding <= size else max(2 * size - padding, 0)


def _cut_each(shapes: Group, ranks: Ranks) -> Cut:
    sizes = [prod(shape) for shape in shapes.values()]
    lengths = [group.shape[0] for group in ranks.optims[0].groups]
    needed = measure_each(sizes, ranks.world)
    if needed != sum(lengths):
        message = f"{sum(lengths)} elements in each partition, expected {needed}"
        ranks.report(
            "coverage", ranks.files.optim[0], f"{message} for {count_noun(len(sizes), 'parameter')}"
        )
        return {}
    return dict(zip(shapes, cut_each(sizes, ranks.world, lengths), strict=True))


def _cut_joined(groups: Sequence[Group], ranks: Ranks) -> Cut:
    cut: Cut = {}
    for index, group in enumerate(groups):
        sizes = [prod(shape) for shape in group.values()]
        gaps = _read_gaps(index, len(sizes), ranks)
        lengths = [ranks.optims[rank].groups[index].shape[0] for rank in range(ranks.world)]
        if gaps is None:
            continue
        if not _fits(sum(sizes), gaps, sum(lengths), ranks):
            message = f"group {index}: partitions of {sum(lengths)} elements, expected {sum(sizes)}"
            ranks.report(
                "coverage", ranks.folder, f"{message} for {count_noun(len(sizes), 'parameter')}"
            )
            continue
        found = dict(zip(group, cut_joined(sizes, gaps, lengths, index), strict=True))
        _check_fragments(index, found, ranks)
        cut |= found
    return cut


def _read_gaps(index: int, count: int, ranks: Ranks) -> list[int] | None:
    """Elements of padding behind each of ``count`` parameters of a group."""
    optim = ranks.optims[0]
    if not optim.gaps:
        return [0] * count
    with collect(ranks.problems, "unreadable", ranks.files.optim[0]):
        row = optim.gaps[index] if index < len(optim.gaps) else ()
        if not isinstance(row, (list, tuple)) or len(row) != count:
            raise FormatError(
                f"param_alignment_paddings[{index}] has not a number for each parameter"
            )
        return read_counts(row, "param_alignment_paddings")
    ranks.is_whole = False
    return None


def _fits(size: int, gaps: Sequence[int], held: int, ranks: Ranks) -> bool:
    """Whether partitions of ``held`` elements are those of parameters of ``size``, and padding.

    The padding at the end fills up multiples of twice the number of ranks, or was left out.
    """
    needed, step = size + sum(gaps), 2 * ranks.world
    return size + sum(gaps[:-1]) <= held and -(-needed // step) == -(-held // step)


def _check_fragments(group: int, cut: Cut, ranks: Ranks) -> None:
    """No file says that its partition is that of another rank.

    Each lists where in it parameters are; with ``round_robin_gradients`` DeepSpeed has them there
    in another order than they are, so that only what fits another rank exactly counts.
    """
    expected: dict[int, dict[str, tuple[int, int]]] = {rank: {} for rank in ranks.optims}
    for name, pieces in cut.items():
        for piece in pieces:
            expected[piece.rank][name] = (piece.at, piece.stop - piece.start)
    alike: dict[frozenset[object], list[int]] = {}
    for rank, places in expected.items():
        alike.setdefault(frozenset(places.items()), []).append(rank)
    for rank, optim in ranks.optims.items():
        row = optim.fragments[group] if group < len(optim.fragments) else None
        found = row.items() if isinstance(row, dict) else ()
        owners = alike.get(frozenset((name, read_fragment(value)) for name, value in found))
        if owners is not None and found and rank not in owners:
            message = f"the partition of rank {owners[0]}, in a file of rank {rank}"
            ranks.report("contradiction", ranks.files.optim[rank], message)
