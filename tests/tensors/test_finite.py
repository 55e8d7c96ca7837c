"""Elements that are not finite though all that they are made of is: noticed, and no others."""

from pathlib import Path

import pytest
import torch

from ckpt_tool.tensors.blocks import BlockReader, FileTable
from ckpt_tool.tensors.casts import STEP
from ckpt_tool.tensors.dtypes import BFLOAT16, FLOAT16, FLOAT32
from ckpt_tool.tensors.fp8 import scale_weight
from ckpt_tool.tensors.lazy import LazyTensor
from ckpt_tool.tensors.lowrank import Magnitude, update_matrix, update_vector
from ckpt_tool.tensors.reshaped import reshape
from tests.support.backed import backed

INF, NAN, HUGE = float("inf"), float("nan"), 3e38


def notices(tensor: LazyTensor) -> bool:
    """Whether reading all of it does; only the first to ask is told."""
    with FileTable() as files:
        reader = BlockReader(files)
        reader.read(tensor, 0, tensor.numel, memoryview(bytearray(tensor.nbytes)))
        found = reader.take_spoilt()
        assert not reader.take_spoilt()
    return found


def fused(folder: Path, base, left, right, scale=1.0, *, magnitude=None) -> LazyTensor:
    named = {"base": base, "left": left, "right": right}
    lazy = [backed(folder / name, torch.tensor(rows)) for name, rows in named.items()]
    if magnitude is not None:
        lengths = backed(folder / "lengths", torch.tensor(magnitude[0]))
        magnitude = Magnitude(lengths, magnitude[1])
    return update_matrix(*lazy, scale, magnitude)


BASE, LEFT, RIGHT = [[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]], [[1.0], [2.0]], [[1.0, 2.0, 3.0]]


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ((BASE, LEFT, RIGHT, 1.0), False),
        ((BASE, LEFT, RIGHT, HUGE), True),
        ((BASE, [[1.0], [HUGE]], RIGHT, 1.0), True),
        (([[HUGE, 0.0, 0.0], [0.0, 0.0, 0.0]], [[HUGE], [0.0]], [[1.0, 0.0, 0.0]], 1.0), True),
        ((BASE, [[1.0], [1e19]], [[1.0, 1e19, 1.0]], 1.0), False),  # its square alone is too large
        (([[1.0, INF, 3.0], [4.0, NAN, 6.0]], LEFT, RIGHT, 1.0), False),
        ((BASE, [[1.0], [NAN]], RIGHT, 1.0), False),
        ((BASE, LEFT, [[1.0, -INF, 3.0]], 1.0), False),
        (([[1.0, INF, 3.0], [4.0, 5.0, 6.0]], [[1.0], [HUGE]], RIGHT, 1.0), True),
    ],
)
def test_an_update(tmp_path, parts, expected):
    tensor = fused(tmp_path, *parts)
    assert notices(tensor) == expected
    assert notices(tensor.to(BFLOAT16)) == expected
    assert notices(reshape(tensor, (3, 2))) == expected


@pytest.mark.parametrize(
    ("base", "lengths", "of_columns", "expected"),
    [
        (BASE, [1.0, 2.0], False, False),
        (BASE, [1.0, NAN], False, False),
        ([[-1.0, -2.0, -3.0], [4.0, 5.0, 6.0]], [1.0, 2.0], False, True),  # a row of zeros
        (BASE, [1.0, INF, 2.0], True, False),
        ([[-1.0, 2.0, 3.0], [-2.0, 5.0, 6.0]], [1.0, 1.0, 2.0], True, True),  # a column of zeros
    ],
)
def test_lengths(tmp_path, base, lengths, of_columns, expected):
    tensor = fused(tmp_path, base, LEFT, RIGHT, magnitude=(lengths, of_columns))
    assert notices(tensor) == expected


def test_only_what_is_read_counts(tmp_path):
    tensor = fused(tmp_path, BASE, [[1.0], [HUGE]], RIGHT)
    assert not notices(tensor.narrow(0, 0, 1))
    assert not notices(tensor.narrow(1, 0, 1))
    assert notices(tensor.narrow(1, 1, 1))


def test_a_vector(tmp_path):
    base, update = torch.tensor([1.0, 2.0]), torch.tensor([1.0, HUGE])
    lazy = backed(tmp_path / "base", base), backed(tmp_path / "update", update)
    assert notices(update_vector(*lazy, 2.0))
    assert not notices(update_vector(*lazy, 1.0))


@pytest.mark.parametrize(("scale", "expected"), [(2.0, False), (HUGE, True), (INF, False)])
def test_scales(tmp_path, scale, expected):
    weight = torch.tensor([[1.5, 1.0, NAN], [0.5, 448.0, 0.0]]).to(torch.float8_e4m3fn)
    scales = torch.tensor([[1.0, 1.0], [1.0, scale]])
    tensor = scale_weight(
        backed(tmp_path / "weight", weight), backed(tmp_path / "scales", scales), (1, 2), BFLOAT16
    )
    assert not notices(tensor)  # the last block is a zero
    swapped = scale_weight(
        backed(tmp_path / "weight", weight),
        backed(tmp_path / "swapped", scales.flip(1)),
        (1, 2),
        BFLOAT16,
    )
    assert notices(swapped) == expected


#: The least float32 numbers that are infinite in narrower dtypes, and the greatest that are not.
LEAST = {BFLOAT16: 2.0**128 - 2.0**119, FLOAT16: 65520.0}
DTYPES = {"float32": torch.float32, "float64": torch.float64}


@pytest.mark.parametrize(("number", "sign"), [(1, -1), (STEP + 5, 1)])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("target", LEAST)
def test_a_cast(tmp_path, target, dtype, number, sign):
    values = torch.linspace(1, 60000, number + 3, dtype=DTYPES[dtype])
    for name, value, expected in (
        ("least", LEAST[target], True),
        ("greatest", LEAST[target] * (1 - 2**-24), False),
        ("infinite", INF, False),
        ("none", NAN, False),
    ):
        values[number] = sign * value
        assert notices(backed(tmp_path / name, values).to(target)) == expected, name


def test_a_cast_to_float32(tmp_path):
    assert notices(
        backed(tmp_path / "a", torch.tensor([1.0, -1e39], dtype=torch.float64)).to(FLOAT32)
    )
    assert not notices(
        backed(tmp_path / "b", torch.tensor([1.0, -3e38], dtype=torch.float64)).to(FLOAT32)
    )


def test_each_tensor_of_a_cast_is_noticed_after_another_and_no_sound_one(tmp_path):
    found = []
    with FileTable() as files:
        reader = BlockReader(files)
        for number, value in enumerate([3.0, 3.4e38, 5.0, -3.4e38, 7.0]):
            lazy = backed(tmp_path / str(number), torch.tensor([1.5, value])).to(BFLOAT16)
            reader.read(lazy, 0, 2, memoryview(bytearray(4)))
            found.append(reader.take_spoilt())
    assert found == [False, True, False, True, False]
    assert reader.errors.listed() == (("float32", "bfloat16", INF),)


@pytest.mark.parametrize(("scale", "expected"), [(7.59e35, True), (7.5e35, False)])
def test_a_scale_that_only_rounding_makes_too_large(tmp_path, scale, expected):
    weight = torch.tensor([[1.0, 448.0]]).to(torch.float8_e4m3fn)
    lazy = backed(tmp_path / "weight", weight), backed(tmp_path / "scales", torch.tensor([[scale]]))
    assert notices(scale_weight(*lazy, (1, 2), BFLOAT16)) == expected
    assert notices(scale_weight(*lazy, (1, 2), FLOAT16))
    assert not notices(scale_weight(*lazy, (1, 2), FLOAT32))


@pytest.mark.parametrize(("scale", "expected"), [(1e4, False), (1e5, True)])
def test_an_update_that_only_rounding_makes_too_large(tmp_path, scale, expected):
    tensor = fused(tmp_path, BASE, LEFT, [[0.25, 0.5, 1.0]], scale)
    assert notices(tensor.to(FLOAT16)) == expected
    assert not notices(tensor)


def test_an_infinite_scale_beside_one_that_could_have_overflown(tmp_path):
    weight = torch.tensor([[0.5, 0.25, 2.0, 1.0]]).to(torch.float8_e4m3fn)
    for factor, expected in ((INF, False), (HUGE, True)):
        lazy = (
            backed(tmp_path / "weight", weight),
            backed(tmp_path / "scales", torch.tensor([[HUGE, factor]])),
        )
        assert notices(scale_weight(*lazy, (1, 2), BFLOAT16)) == expected
