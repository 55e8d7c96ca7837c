"""Halves of heads that change places, as slime has an indexer's."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ckpt_tool.mapping.megatron.halves_ops import HeadHalves
from tests.support.saved import write_tensors


@given(heads=st.integers(1, 4), half=st.integers(1, 5), columns=st.integers(0, 3))
def test_halves_change_places_and_come_back(heads, half, columns, tmp_path_factory):
    shape = (heads * 2 * half, *([columns] if columns else []))
    tensor = torch.arange(torch.Size(shape).numel()).reshape(shape)
    path = tmp_path_factory.mktemp("halves") / "m.safetensors"
    whole = write_tensors(path, {"w": tensor})["w"]
    op = HeadHalves(2 * half, half)
    assert op.find_fault([shape]) == ""
    ((there,),) = op.join([whole])
    rows = tensor.unflatten(0, (heads, 2, half))
    assert torch.equal(there.read(), rows.flip(1).flatten(0, 2))
    (back,) = op.split([there])
    assert torch.equal(back.read(), tensor)


@pytest.mark.parametrize(
    ("op", "shape", "said"),
    [
        (HeadHalves(4, 2), (6, 3), "expected heads of 4 rows"),
        (HeadHalves(4, 2), (), "expected heads of 4 rows"),
        (HeadHalves(4, 1), (8, 3), "of which 1 turn"),
        (HeadHalves(0, 0), (8, 3), "heads of 0 rows"),
    ],
)
def test_other_heads_are_refused(op, shape, said, tmp_path):
    assert said in op.find_fault([shape])
    tensor = write_tensors(tmp_path / "m.safetensors", {"w": torch.zeros(shape)})["w"]
    with pytest.raises(ValueError, match=said):
        op.split([tensor])
