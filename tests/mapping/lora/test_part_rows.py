"""Rows of an adapter's B: those of several parts by rank, and those taken for a gate's."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ckpt_tool.common.errors import MappingError
from ckpt_tool.mapping.lora.part_rows import find_parts, order_plain_rows, share_rows
from ckpt_tool.tensors.lazy import cat
from tests.support.saved import write_tensors

FIRST = "decoder.layers.0.mlp.linear_fc1.adapter.linear_out.weight"


def of_ranks(parts: list[torch.Tensor], ranks: int, folder):
    """What a reader makes of each rank's rows, one block each."""
    blocks = {
        str(rank): torch.cat([part.chunk(ranks)[rank] for part in parts]) for rank in range(ranks)
    }
    found = write_tensors(folder / "m.safetensors", blocks)
    return cat([found[name] for name in blocks], 0)


@given(ranks=st.sampled_from([1, 2, 4]), shares=st.lists(st.integers(1, 3), min_size=1, max_size=6))
def test_each_part_has_its_rows_of_every_rank(ranks, shares, tmp_path_factory):
    counts = [ranks * share for share in shares]
    whole = torch.arange(sum(counts) * 2.0).reshape(-1, 2)
    parts = list(whole.split(counts))
    left = of_ranks(parts, ranks, tmp_path_factory.mktemp("ranks"))
    found = share_rows(left, counts)
    assert all(torch.equal(a.read(), b) for a, b in zip(found, parts, strict=True))


@pytest.mark.parametrize(
    ("sizes", "counts"),
    [((4, 2), (2, 4)), ((3, 3), (3, 3)), ((6,), (2, 3)), ((0,), (0, 0))],
    ids=["uneven blocks", "uneven parts", "other rows", "nothing"],
)
def test_other_rows_are_refused(sizes, counts, tmp_path):
    blocks = {str(at): torch.ones(size, 2) for at, size in enumerate(sizes)}
    found = write_tensors(tmp_path / "m.safetensors", blocks)
    with pytest.raises(ValueError, match="expected rows of"):
        share_rows(cat([found[name] for name in blocks], 0), counts)


@pytest.mark.parametrize("shape", [(), (6,), (1, 6, 2)])
def test_what_is_no_matrix_is_refused(shape, tmp_path):
    left = write_tensors(tmp_path / "m.safetensors", {"m": torch.ones(shape)})["m"]
    with pytest.raises(ValueError, match="expected rows and a rank"):
        share_rows(left, (6,))


def test_parts_are_in_the_order_of_rows(tmp_path):
    names = ("alpha", "beta", "key", "query", "value", "z")
    tensors = {f"m.weight.{n}": torch.ones(2) for n in names}
    found = dict(write_tensors(tmp_path / "m.safetensors", tensors))
    expected = [".query", ".key", ".value", ".z", ".beta", ".alpha"]
    assert list(find_parts(found, "m")) == expected
    assert list(find_parts(found | {"m.weight": found["m.weight.z"]}, "m")) == [""]
    assert find_parts({"m.weight.z": found["m.weight.z"]}, "m") == {}


@given(ranks=st.sampled_from([1, 2, 3]), half=st.integers(1, 3))
def test_rows_taken_for_gate_and_up_are_put_back(ranks, half, tmp_path_factory):
    plain = torch.arange(2 * half * ranks * 2.0).reshape(-1, 2)
    each = plain.chunk(ranks)
    gated = torch.cat([part.chunk(2)[number] for number in range(2) for part in each])
    path = tmp_path_factory.mktemp("gated") / "m.safetensors"
    found = order_plain_rows(write_tensors(path, {FIRST: gated}), ranks)
    assert torch.equal(found[FIRST].read(), plain)


@pytest.mark.parametrize("end", ["weight", "adapter.linear_in.weight"])
def test_what_the_second_layer_says_stays(end, tmp_path):
    beside = FIRST.partition("linear_fc1")[0] + f"linear_fc2.{end}"
    tensors = write_tensors(
        tmp_path / "m.safetensors", {FIRST: torch.ones(8, 2), beside: torch.ones(4, 8)}
    )
    assert order_plain_rows(tensors, 2) == dict(tensors)


def test_experts_alone_have_no_known_order(tmp_path):
    name = FIRST.replace("mlp.", "mlp.experts.experts.")
    tensors = write_tensors(tmp_path / "m.safetensors", {name: torch.ones(3, 8, 2)})
    assert order_plain_rows(tensors, 1) == dict(tensors)
    with pytest.raises(MappingError, match="no known order") as caught:
        order_plain_rows(tensors, 2)
    assert caught.value.names == (name,)
