"""Gated DeltaNet's tensors in a rank's file, cut into their parts, with numbers by hand."""

import pytest

from ckpt_tool.common.errors import FormatError
from ckpt_tool.readers.megatron.file import Part
from ckpt_tool.readers.megatron.linear import is_linear, separate_linear
from ckpt_tool.tensors.chunks import Region
from ckpt_tool.tensors.dtypes import BY_NAME

STEM = "decoder.layers.1.self_attention."
#: Two value heads of five, and six rows of keys.
BESIDE = {f"{STEM}A_log": (2,), f"{STEM}out_proj.weight": (7, 10)}


def part(name: str, rows: int) -> Part:
    region = Region("file", 1000, (6, 1))
    return Part(f"{STEM}{name}.weight", None, (rows, 6), BY_NAME["bfloat16"], region)


@pytest.mark.parametrize(
    ("name", "rows", "expected"),
    [
        ("in_proj", 36, {"query": 6, "key": 6, "value": 10, "z": 10, "beta": 2, "alpha": 2}),
        ("conv1d", 22, {"query": 6, "key": 6, "value": 10}),
    ],
)
def test_rows_of_each(name, rows, expected):
    whole = part(name, rows)
    assert is_linear(whole, BESIDE)
    found = list(separate_linear(whole, BESIDE))
    assert {each.name: each.shape for each in found} == {
        f"{STEM}{name}.weight.{kind}": (count, 6) for kind, count in expected.items()
    }
    starts = [sum(list(expected.values())[:number]) for number in range(len(found))]
    assert [each.region.offset for each in found] == [1000 + start * 6 * 2 for start in starts]


def test_what_else_is_called_so_is_none():
    assert not is_linear(part("in_proj", 36), {})
    assert not is_linear(part("linear_attn.conv1d", 22), BESIDE)
    assert not is_linear(part("linear_qkv", 22), BESIDE)


@pytest.mark.parametrize(
    ("name", "rows", "beside"),
    [
        ("in_proj", 36, {f"{STEM}A_log": (2,)}),
        ("in_proj", 36, BESIDE | {f"{STEM}A_log": (2, 3)}),
        ("in_proj", 37, BESIDE),
        ("in_proj", 24, BESIDE),
        ("conv1d", 10, BESIDE),
        ("conv1d", 0, BESIDE),
    ],
)
def test_what_does_not_fit_is_refused(name, rows, beside):
    with pytest.raises(FormatError, match=f"{STEM}{name}.weight"):
        list(separate_linear(part(name, rows), beside))
