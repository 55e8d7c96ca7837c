"""Where DTensor puts a rank's block: hand-computed, and against torch's own arithmetic."""

from itertools import product
from math import prod

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributed.tensor import Replicate, Shard
from torch.distributed.tensor import _utils as torch_utils
from torch.distributed.tensor.placement_types import _StridedShard

from ckpt_tool.readers.fsdp.placements import Placement, cut, find_local_box
from ckpt_tool.tensors.geometry import Box, check_coverage, is_in_bounds
from tests.support.versions import needs_torch_2_7

REPLICATE = Placement("Replicate")


def shard(dim: int) -> Placement:
    return Placement("Shard", dim)


def strided(dim: int) -> Placement:
    return Placement("_StridedShard", dim)


def coordinates(mesh: tuple[int, ...]) -> list[tuple[int, ...]]:
    return list(product(*map(range, mesh)))


def boxes(shape, mesh, placements, order=None) -> list[Box]:
    return [find_local_box(shape, mesh, at, placements, order) for at in coordinates(mesh)]


@pytest.mark.parametrize(
    ("length", "parts", "expected"),
    [
        (10, 2, [(0, 5), (5, 5)]),
        (10, 4, [(0, 3), (3, 3), (6, 3), (9, 1)]),
        (5, 4, [(0, 2), (2, 2), (4, 1), (5, 0)]),
        (2, 4, [(0, 1), (1, 1), (2, 0), (2, 0)]),
        (0, 2, [(0, 0), (0, 0)]),
        (7, 1, [(0, 7)]),
    ],
)
def test_cuts_are_those_of_torch_chunk(length, parts, expected):
    assert [cut(length, parts, index) for index in range(parts)] == expected


def test_shard_0_of_two_ranks():
    assert boxes((97, 32), (2,), [shard(0)]) == [Box((0, 0), (49, 32)), Box((49, 0), (48, 32))]


def test_shard_1():
    assert boxes((5, 6), (3,), [shard(1)]) == [Box((0, c), (5, 2)) for c in (0, 2, 4)]
    assert boxes((5, 6), (3,), [shard(-1)]) == [Box((0, c), (5, 2)) for c in (0, 2, 4)]


def test_hybrid_sharding_repeats_blocks():
    low, high = Box((0,), (3,)), Box((3,), (2,))
    assert boxes((5,), (2, 2), [REPLICATE, shard(0)]) == [low, high, low, high]


def test_replicas_hold_everything():
    assert boxes((), (2,), [REPLICATE]) == [Box((), ())] * 2
    assert boxes((3, 0), (2,), [REPLICATE]) == [Box((0, 0), (3, 0))] * 2


def test_two_shards_of_one_dimension_cut_in_mesh_order():
    starts = [box.offsets[0] for box in boxes((8,), (2, 2), [shard(0), shard(0)])]
    assert starts == [0, 2, 4, 6]


def test_a_strided_shard_cuts_after_those_that_follow():
    """FSDP over tensor parallelism: mesh (fsdp, tp); tp cut first."""
    starts = [box.offsets[0] for box in boxes((8,), (2, 2), [strided(0), shard(0)])]
    assert starts == [0, 4, 2, 6]


def test_an_uneven_strided_shard():
    # 7 rows: tp has 4 and 3; fsdp (3 ranks) cuts these into 2, 2, 0 and 1, 1, 1.
    assert boxes((7,), (3, 2), [strided(0), shard(0)]) == [
        Box((0,), (2,)),
        Box((4,), (1,)),
        Box((2,), (2,)),
        Box((5,), (1,)),
        Box((4,), (0,)),
        Box((6,), (1,)),
    ]


def test_hybrid_fsdp_over_tensor_parallelism():
    found = boxes((8, 2), (2, 2, 2), [REPLICATE, strided(0), shard(0)])
    assert [box.offsets[0] for box in found] == [0, 4, 2, 6] * 2
    assert {box.sizes for box in found} == {(2, 2)}


def test_fsdp_and_row_parallelism_cut_different_dimensions():
    found = boxes((4, 6), (2, 2), [shard(0), shard(1)])
    assert [box.offsets for box in found] == [(0, 0), (0, 3), (2, 0), (2, 3)]


def test_shard_order_overrides_mesh_order():
    placements = [shard(0), shard(0)]
    starts = [box.offsets[0] for box in boxes((8,), (2, 2), placements, {0: (1, 0)})]
    assert starts == [0, 4, 2, 6]
    assert boxes((8,), (2, 2), placements, {0: (0, 1)}) == boxes((8,), (2, 2), placements)


@pytest.mark.parametrize("dim", [2, -3])
def test_a_dimension_that_is_not_there_is_refused(dim):
    with pytest.raises(ValueError, match="2 dimensions"):
        find_local_box((4, 4), (2,), (0,), [shard(dim)])


def test_a_scalar_cannot_be_cut():
    with pytest.raises(ValueError, match="0 dimensions"):
        find_local_box((), (2,), (0,), [shard(0)])


def test_only_cuts_and_copies_are_known():
    assert shard(0).known
    assert strided(0).known
    assert REPLICATE.known
    assert not Placement("Partial").known
    assert not Placement("_MaskPartial", 0).known


meshes = st.lists(st.integers(1, 4), min_size=1, max_size=3).map(tuple)
shapes = st.lists(st.integers(0, 13), min_size=1, max_size=3).map(tuple)


def assert_as_torch(shape, mesh, ours, theirs) -> None:
    for at in coordinates(mesh):
        sizes, offsets = torch_utils._compute_local_shape_and_global_offset(
            shape, mesh, list(at), theirs
        )
        box = find_local_box(shape, mesh, at, ours)
        assert box.sizes == sizes
        assert is_in_bounds(shape, box)
        if box.volume:  # torch puts empty blocks at the end of the tensor
            assert box.offsets == offsets


@st.composite
def plain_placements(draw, mesh, shape, replicate=True):
    kinds = [*range(len(shape)), *([None] if replicate else [])]
    return [draw(st.sampled_from(kinds)) for _ in mesh]


@pytest.mark.slow
@needs_torch_2_7
@settings(max_examples=150)
@given(meshes, shapes, st.data())
def test_shard_and_replicate_are_as_in_torch(mesh, shape, data):
    dims = data.draw(plain_placements(mesh, shape))
    ours = [REPLICATE if d is None else shard(d) for d in dims]
    theirs = [Replicate() if d is None else Shard(d) for d in dims]
    assert_as_torch(shape, mesh, ours, theirs)


@pytest.mark.slow
@needs_torch_2_7
@settings(max_examples=150)
@given(meshes, shapes, st.data())
def test_fsdp_outside_of_other_cuts_is_as_in_torch(mesh, shape, data):
    """The outermost sharding is strided by all that cut the same dimension, as FSDP2 writes it.

    Even splits only: FSDP2 cuts the pieces that tensor parallelism made, of which torch's left to
    right reading differs where they are uneven (see the test of chunks of chunks).
    """
    dims = data.draw(plain_placements(mesh, shape))
    ours = [REPLICATE if d is None else shard(d) for d in dims]
    theirs = [Replicate() if d is None else Shard(d) for d in dims]
    first = next((i for i, d in enumerate(dims) if d is not None), None)
    if first is not None:
        dim = dims[first]
        later = [mesh[i] for i in range(first + 1, len(mesh)) if dims[i] == dim]
        even = shape[dim] * prod(later) * mesh[first]
        shape = (*shape[:dim], even, *shape[dim + 1 :])
        if later:
            ours[first] = strided(dim)
            theirs[first] = _StridedShard(dim, split_factor=prod(later))
    assert_as_torch(shape, mesh, ours, theirs)


@pytest.mark.slow
@settings(max_examples=100)
@given(meshes, shapes, st.data())
def test_blocks_of_shards_tile_the_tensor(mesh, shape, data):
    dims = data.draw(plain_placements(mesh, shape, replicate=False))
    kinds = [data.draw(st.sampled_from([shard, strided])) for _ in mesh]
    placements = [kind(d) for kind, d in zip(kinds, dims, strict=True)]
    assert check_coverage(shape, boxes(shape, mesh, placements))


@settings(max_examples=60)
@given(st.integers(1, 4), st.integers(1, 4), st.integers(0, 40))
def test_fsdp_over_tp_is_chunk_of_chunk(fsdp, tp, length):
    """What really happened in training, done with torch.chunk: tp cuts, then fsdp."""

    def chunk(tensor, parts, index):
        pieces = tensor.chunk(parts)
        return pieces[index] if index < len(pieces) else tensor[:0]

    rows = torch.arange(length)
    for at in coordinates((fsdp, tp)):
        expected = chunk(chunk(rows, tp, at[1]), fsdp, at[0])
        box = find_local_box((length,), (fsdp, tp), at, [strided(0), shard(0)])
        assert rows[box.offsets[0] : box.offsets[0] + box.sizes[0]].tolist() == expected.tolist()
