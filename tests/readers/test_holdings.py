"""Holdings of tensors that are cut alike: the same as an object for each."""

from array import array

from ckpt_tool.readers.holdings import Entry, Holding, Layout, PackedHoldings
from ckpt_tool.tensors.chunks import Region
from ckpt_tool.tensors.dtypes import BY_NAME
from ckpt_tool.tensors.geometry import Box

FLOAT = BY_NAME["float32"]

#: Two rows of two ranks, the second with none of them; ranks 2 and 3 repeat the first two.
BOXES = [Box((2, 0), (2, 3)), Box((0, 0), (2, 3)), Box((4, 0), (0, 3))]


def holdings(offsets: list[int], boxes: list[Box]) -> tuple[Holding, ...]:
    return tuple(
        Holding(rank, box, Region(f"rank {rank}", at, (3, 1)), replicated=True)
        for rank, (at, box) in enumerate(zip(offsets, boxes, strict=True))
    )


def entries(offsets: list[int], boxes: list[Box]) -> tuple[Entry, Entry]:
    plain = holdings(offsets, boxes)
    packed = PackedHoldings(Layout(holdings([0] * len(boxes), boxes)), array("Q", offsets))
    one, other = (Entry("weight", (4, 3), FLOAT, "Shard(0)", held) for held in (packed, plain))
    assert isinstance(one.holdings, PackedHoldings)
    return one, other


def test_packed_holdings_say_what_an_object_for_each_says():
    packed, plain = entries([70, 80, 90], BOXES)
    assert packed == plain
    assert hash(packed) == hash(plain)
    assert packed.owners() == plain.owners()
    assert packed.tensor() == plain.tensor()
    assert [chunk.region for chunk in packed.tensor().chunks] == [
        Region("rank 1", 80, (3, 1)),
        Region("rank 0", 70, (3, 1)),
    ]
    assert list(packed.replicas()) == []
    assert packed.holdings[1:] == plain.holdings[1:]


def test_copies_are_found_among_packed_holdings():
    packed, plain = entries([70, 80, 90, 71, 81], [*BOXES, *BOXES[:2]])
    assert packed.tensor() == plain.tensor()
    assert [chunk.region.offset for chunk in packed.tensor().chunks] == [80, 70]
    assert list(packed.replicas()) == list(plain.replicas())
    assert [(owner.rank, copy.rank) for owner, copy in packed.replicas()] == [(0, 3), (1, 4)]


def test_empty_copies_are_none():
    packed, _ = entries([70, 80, 90, 91], [*BOXES, BOXES[2]])
    assert list(packed.replicas()) == []
