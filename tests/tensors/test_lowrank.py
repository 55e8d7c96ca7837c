"""Low-rank updates against torch: any part of any arrangement, the same bits however it is cut."""

import re
import tempfile
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ckpt_tool.tensors import updates
from ckpt_tool.tensors.blocks import BlockReader, FileTable
from ckpt_tool.tensors.dtypes import BFLOAT16, FLOAT16, FLOAT32, FLOAT64
from ckpt_tool.tensors.geometry import Box
from ckpt_tool.tensors.lazy import LazyTensor, cat
from ckpt_tool.tensors.lowrank import Magnitude, update_matrix, update_vector
from tests.support.backed import backed, raw, same, tilings


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as path:
        yield Path(path)


def whole(*shape: int, dtype=torch.float32, seed=0, most=64) -> torch.Tensor:
    """Small whole numbers: sums of their products are exact, in any order."""
    values = torch.Generator().manual_seed(seed)
    return torch.randint(-most, most, shape, generator=values).to(dtype)


def random(*shape: int, dtype=torch.float32, seed=0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def lazy(folder: Path, name: str, tensor: torch.Tensor, boxes=None, order=None) -> LazyTensor:
    return backed(folder / name, tensor, boxes, order)


def parts_of(tensor: LazyTensor, cuts: list[int]) -> bytes:
    """The row-major form, read in parts that end at `cuts`."""
    out = bytearray(tensor.nbytes)
    size = tensor.dtype.itemsize
    ends = sorted({0, tensor.numel, *(cut % (tensor.numel + 1) for cut in cuts)})
    with FileTable() as files:
        reader = BlockReader(files)
        for start, stop in pairwise(ends):
            reader.read(tensor, start, stop, memoryview(out)[start * size : stop * size])
    return bytes(out)


def test_by_hand(folder):
    base = lazy(folder, "base", torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]))
    left = lazy(folder, "left", torch.tensor([[1.0, 0.0], [2.0, 1.0]]))
    right = lazy(folder, "right", torch.tensor([[1.0, 10.0, 100.0], [3.0, 0.0, -1.0]]))
    found = update_matrix(base, left, right, 0.5).read()
    # left @ right: [[1, 10, 100], [5, 20, 199]]
    assert found.tolist() == [[1.5, 7.0, 53.0], [6.5, 15.0, 105.5]]


def test_magnitudes_by_hand(folder):
    base = lazy(folder, "base", torch.tensor([[1.0, 4.0], [0.0, 7.0]]))
    left = lazy(folder, "left", torch.tensor([[1.0], [3.0]]))
    right = lazy(folder, "right", torch.tensor([[1.0, 0.0]]))
    magnitude = lazy(folder, "magnitude", torch.tensor([10.0, 1.0]))
    # the sum: [[3, 4], [6, 7]], of lengths 5 and sqrt(85)
    found = update_matrix(base, left, right, 2.0, Magnitude(magnitude)).read()
    assert found[0].tolist() == [6.0, 8.0]
    assert found[1].tolist() == pytest.approx([6 / 85**0.5, 7 / 85**0.5], rel=1e-6)


@pytest.mark.slow
@given(data=st.data())
def test_any_part_of_any_arrangement_is_exact(folder, data):
    rows, columns, rank = (data.draw(st.integers(1, 9)) for _ in range(3))
    dtype = data.draw(st.sampled_from([torch.float32, torch.bfloat16, torch.float64]))
    base = whole(rows, columns, dtype=dtype, most=100)
    left = whole(rows, rank, dtype=data.draw(st.sampled_from([torch.float32, torch.bfloat16])))
    right = whole(rank, columns, seed=1)
    boxes = data.draw(tilings((rows, columns)))
    found = update_matrix(
        lazy(folder, "base", base, boxes, data.draw(st.permutations([0, 1]))),
        lazy(folder, "left", left, data.draw(tilings((rows, rank)))),
        lazy(folder, "right", right),
        0.25,
    )
    exact = base.double() + 0.25 * (left.double() @ right.double())
    expected = (exact if dtype == torch.float64 else exact.float()).to(dtype)
    if data.draw(st.booleans()):
        start = data.draw(st.integers(0, rows - 1))
        found, expected = found.narrow(0, start, rows - start), expected[start:]
    if data.draw(st.booleans()):
        found, expected = found.transpose(0, 1), expected.T
    old = updates.TILE
    updates.TILE = data.draw(st.integers(1, 40))  # so that small ranges span several tiles
    try:
        assert parts_of(found, data.draw(st.lists(st.integers(0, 81)))) == raw(expected)
    finally:
        updates.TILE = old


@pytest.mark.parametrize("target", [BFLOAT16, FLOAT16, FLOAT32, FLOAT64])
def test_it_is_rounded_once(folder, target):
    base, left, right = random(40, 33, dtype=torch.bfloat16), random(40, 3), random(3, 33, seed=1)
    found = update_matrix(
        lazy(folder, "base", base), lazy(folder, "left", left), lazy(folder, "right", right), 2.0
    )
    assert found.dtype == BFLOAT16
    exact = base.double() + 2.0 * (left.double() @ right.double())
    dtype = getattr(torch, target.name)
    off = (found.to(target).read().double() - exact).abs()
    most = exact.abs() * torch.finfo(torch.float32 if target == FLOAT64 else dtype).eps
    assert (off <= most / 2 + exact.abs().max() * 2e-7).all()
    assert found.to(BFLOAT16).to(target) == found.to(target)  # not rounded to bfloat16 between


@pytest.mark.parametrize("rank", [1, 24, 200])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(700, 401), (215, 1300), (37, 40_001)])
def test_bits_do_not_depend_on_how_it_is_cut(folder, shape, dtype, rank):
    """Of a size at which matrix products of other sizes add up in another order."""
    (rows, columns), middle = shape, shape[0] * shape[1] // 2
    base, left = random(*shape, dtype=dtype), random(rows, rank)
    right = random(rank, columns, seed=1)
    tensors = (lazy(folder, n, t) for n, t in {"b": base, "l": left, "r": right}.items())
    found = update_matrix(*tensors, 1.5)
    once, size = raw(found.read()), columns * base.element_size()
    steps = list(range(0, rows * columns, rows * columns // 29 + 7))
    for cuts in ([columns * (rows // 2)], [1], [middle, middle + 1], steps):
        assert parts_of(found, cuts) == once
    few = found.narrow(0, 33, 2)
    assert raw(few.read()) == once[33 * size : 35 * size]


@pytest.mark.parametrize("target", [BFLOAT16, FLOAT16])
def test_what_is_rounded_is_what_is_computed(folder, target):
    """With the largest error of it, known or not, in whatever parts."""
    base, left, right = random(300, 700), random(300, 5), random(5, 700, seed=1)
    tensors = (lazy(folder, n, t) for n, t in {"b": base, "l": left, "r": right}.items())
    found = update_matrix(*tensors, 0.5)
    exact = found.read()
    expected = exact.to(getattr(torch, target.name))
    assert parts_of(found.to(target), [3, 700 * 40 + 5, 700 * 90]) == raw(expected)
    with FileTable() as files:
        reader, out = BlockReader(files), memoryview(bytearray(found.numel * 2))
        reader.read(found.to(target), 0, found.numel, out)
        largest = (exact.double() - expected.double()).abs().max().item()
        assert reader.errors.listed() == (("float32", target.name, largest),)


@pytest.mark.parametrize("scale", [0.5, -4.0, 1 / 3])
def test_it_is_the_product_of_the_factors(folder, scale):
    """Every block of it, those at the edges too; the product is scaled, as peft does it."""
    base, left, right = torch.zeros(53, 1100), whole(53, 9, seed=1), whole(9, 1100, seed=2)
    tensors = (lazy(folder, n, t) for n, t in {"b": base, "l": left, "r": right}.items())
    assert same(update_matrix(*tensors, scale).read() + 0.0, scale * (left @ right) + 0.0)


def test_rows_are_scaled_as_torch_scales_them(folder):
    base, left, right = random(30, 50), random(30, 4), random(4, 50, seed=1)
    magnitude = random(30, seed=2).abs() + 1
    named = {"b": base, "l": left, "r": right, "m": magnitude}
    b, lf, r, m = (lazy(folder, name, tensor) for name, tensor in named.items())
    whole_sum = base.double() + 0.5 * left.double() @ right.double()
    expected = magnitude[:, None] * whole_sum / whole_sum.norm(dim=1, keepdim=True)
    found = update_matrix(b, lf, r, 0.5, Magnitude(m)).read()
    assert torch.allclose(found.double(), expected, rtol=3e-6, atol=1e-6)
    assert parts_of(update_matrix(b, lf, r, 0.5, Magnitude(m)), [77, 1234]) == raw(found)


def test_parts_of_it_join_as_files_do(folder):
    base, left, right = whole(6, 4), whole(6, 2), whole(2, 4)
    tensors = (lazy(folder, n, t) for n, t in {"b": base, "l": left, "r": right}.items())
    found = update_matrix(*tensors, 1.0)
    expected = base + left @ right
    assert same(cat([found.narrow(0, 4, 2), found.narrow(0, 0, 4)], 0).read(), expected.roll(2, 0))
    assert same(found.select(0, 3).read(), expected[3])


@pytest.mark.slow
def test_an_update_of_a_large_matrix_takes_little_memory(folder):
    """The base is never whole in memory: a tile and the right factor are."""
    import tracemalloc

    base = np.memmap(folder / "large", np.float32, "w+", shape=(1 << 13, 1 << 11))
    base[:] = 1
    boxes = [Box((0, 0), base.shape)]
    sample = torch.zeros(base.shape[0], 4)
    large = backed(folder / "small", torch.zeros(1, 1)).narrow(0, 0, 1)
    region = large.chunks[0].region._replace(
        path=str(folder / "large"), offset=0, strides=(1 << 11, 1)
    )
    chunk = large.chunks[0].__class__(boxes[0], region)
    tensor = LazyTensor(base.shape, FLOAT32, FLOAT32, (chunk,))
    right = lazy(folder, "r", torch.ones(4, base.shape[1]))
    found = update_matrix(tensor, lazy(folder, "l", sample), right, 1.0)
    out = memoryview(bytearray(1 << 20))
    tracemalloc.start()
    with FileTable() as files:
        reader = BlockReader(files)
        for start in range(0, found.numel, 1 << 18):
            reader.read(found, start, start + (1 << 18), out)
            assert np.frombuffer(out, np.float32).min() == 1
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 4 << 20


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (((4,), (4, 2), (2, 3), None), "shape [4], expected a matrix"),
        (((4, 3), (4, 2), (3, 3), None), "[4, 2] and [3, 3] for a base of shape [4, 3]"),
        (((4, 3), (3, 2), (2, 3), None), "[3, 2] and [2, 3] for a base of shape [4, 3]"),
        (((4, 3), (4, 2), (2, 3), (3,)), "magnitudes of shape [3], expected [4]"),
    ],
)
def test_shapes_that_do_not_fit(folder, shapes, message):
    base, left, right, magnitude = (
        None if shape is None else lazy(folder, str(n), torch.zeros(shape))
        for n, shape in enumerate(shapes)
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        update_matrix(base, left, right, 1.0, magnitude and Magnitude(magnitude))


def test_what_is_not_a_weight_is_refused(folder):
    base = lazy(folder, "base", torch.zeros(4, 3, dtype=torch.int8))
    factors = lazy(folder, "l", torch.zeros(4, 1)), lazy(folder, "r", torch.zeros(1, 3))
    with pytest.raises(ValueError, match="int8, expected a floating-point type"):
        update_matrix(base, *factors, 1.0)


def test_an_empty_matrix_stays_empty(folder):
    base = lazy(folder, "base", torch.zeros(0, 3))
    factors = lazy(folder, "l", torch.zeros(0, 1)), lazy(folder, "r", torch.zeros(1, 3))
    assert update_matrix(base, *factors, 1.0).read().shape == (0, 3)


def test_magnitudes_of_columns_by_hand(folder):
    base = lazy(folder, "base", torch.tensor([[1.0, 0.0], [4.0, 7.0]]))
    left = lazy(folder, "left", torch.tensor([[1.0], [0.0]]))
    right = lazy(folder, "right", torch.tensor([[1.0, 3.0]]))
    magnitude = lazy(folder, "magnitude", torch.tensor([10.0, 1.0]))
    # the sum: [[3, 6], [4, 7]], its columns of lengths 5 and sqrt(85)
    found = update_matrix(base, left, right, 2.0, Magnitude(magnitude, True)).read()
    assert found[:, 0].tolist() == [6.0, 8.0]
    assert found[:, 1].tolist() == pytest.approx([6 / 85**0.5, 7 / 85**0.5], rel=1e-6)


def test_columns_have_their_lengths_however_it_is_cut(folder, monkeypatch):
    base, left, right = random(50, 7), random(50, 3), random(3, 7, seed=1)
    wanted = random(7, seed=2).abs() + 0.5
    found = update_matrix(
        *(lazy(folder, n, t) for n, t in (("base", base), ("left", left), ("right", right))),
        0.5, Magnitude(lazy(folder, "magnitude", wanted), True),
    )  # fmt: skip
    exact = base.double() + 0.5 * (left.double() @ right.double())
    exact *= wanted.double() / exact.norm(dim=0)
    assert torch.allclose(found.read().double(), exact, rtol=1e-6, atol=1e-7)
    monkeypatch.setattr(updates, "TILE", 21)
    once = found.read()
    assert torch.allclose(once.double(), exact, rtol=1e-6, atol=1e-7)
    assert parts_of(found, [3, 40, 41, 200]) == raw(once)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_vector_is_updated_too(folder, dtype):
    base, update = whole(9, dtype=dtype), whole(9, seed=1)
    found = update_vector(lazy(folder, "base", base), lazy(folder, "update", update), 0.25)
    assert found.shape == (9,)
    assert same(found.read(), (base.float() + 0.25 * update).to(dtype))
    assert same(found.narrow(0, 3, 4).read(), (base.float() + 0.25 * update).to(dtype)[3:7])


def test_a_vector_of_another_length_is_refused(folder):
    base, update = (lazy(folder, str(size), torch.zeros(size)) for size in (4, 3))
    with pytest.raises(ValueError, match=re.escape("an update of shape [3] for one of [4]")):
        update_vector(base, update, 1.0)
