"""Block-scaled fp8 against torch: any part of any arrangement, and no more read than needed."""

import math
import subprocess
import sys
import tempfile
import tracemalloc
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ckpt_tool.common.errors import FormatError
from ckpt_tool.tensors import products
from ckpt_tool.tensors.blocks import BLOCK_BYTES, BlockReader, FileTable
from ckpt_tool.tensors.chunks import Chunk
from ckpt_tool.tensors.code_tables import E4M3
from ckpt_tool.tensors.dtypes import BFLOAT16, BY_NAME, FLOAT16, FLOAT32, FLOAT64
from ckpt_tool.tensors.fp8 import FLOAT8, scale_weight
from ckpt_tool.tensors.geometry import Box
from ckpt_tool.tensors.lazy import LazyTensor, cat, stack
from tests.support.backed import backed, raw, same, tilings
from tests.support.noting import NotedFiles

GUARD = b"\x5a" * 17
TARGETS = [BFLOAT16, FLOAT16, FLOAT32, FLOAT64]
Pair = tuple[LazyTensor, torch.Tensor]


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as path:
        yield Path(path)


def weights(shape, seed=0, nan=True):
    """Any bit patterns; without NaN where errors are measured."""
    values = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 256, shape, generator=values, dtype=torch.uint8)
    if not nan:
        codes[codes & 127 == 127] = 0
    return codes.view(torch.float8_e4m3fn)


def factors(shape, block, seed=0, dtype=torch.float32):
    values = torch.Generator().manual_seed(seed + 1)
    sizes = [-(-size // step) for size, step in zip(shape, block, strict=True)]
    return (torch.randn(sizes, generator=values) * 1e-3).to(dtype)


def dequantised(weight, scales, block, target=BFLOAT16):
    """What torch gives, the whole tensor at once, each NaN as `Caster` writes it."""
    rows, columns = weight.shape
    spread = scales.repeat_interleave(block[0], 0)[:rows].repeat_interleave(block[1], 1)
    product = weight.to(torch.float32) * spread[:, :columns]
    return plain_nan(product.to(getattr(torch, target.name)))


def plain_nan(tensor: torch.Tensor) -> torch.Tensor:
    return torch.where(tensor.isnan(), torch.tensor(math.nan, dtype=tensor.dtype), tensor)


def pair(path, shape, block=(128, 128), *, target=BFLOAT16, seed=0, dtype=torch.float32) -> Pair:
    """A scaled tensor over files, and what it should be."""
    weight, scales = weights(shape, seed), factors(shape, block, seed, dtype)
    where = path.with_name(path.name + ".scales")
    lazy = scale_weight(backed(path, weight), backed(where, scales), block, target)
    return lazy, dequantised(weight, scales, block, target)


def part(reader: BlockReader, lazy: LazyTensor, start: int, stop: int) -> torch.Tensor:
    """Elements `[start, stop)`, read to an odd address; asserts that no more was written."""
    size, dtype = (stop - start) * lazy.dtype.itemsize, getattr(torch, lazy.dtype.name)
    buffer = bytearray(GUARD + b"\xcc" * size + GUARD)
    reader.read(lazy, start, stop, memoryview(buffer)[len(GUARD) : len(GUARD) + size])
    assert buffer[: len(GUARD)] == buffer[len(GUARD) + size :] == GUARD
    if start == stop:
        return torch.empty(0, dtype=dtype)
    return as_compared(torch.frombuffer(buffer[len(GUARD) : len(GUARD) + size], dtype=dtype))


def agree(lazy: LazyTensor, expected: torch.Tensor) -> bool:
    return same(as_compared(lazy.read()), expected)


def as_compared(found: torch.Tensor) -> torch.Tensor:
    """Which NaN a wide type has is not said; that of a narrow one is always the same."""
    return found if found.itemsize == 2 else plain_nan(found)


@pytest.mark.parametrize("target", TARGETS, ids=str)
@pytest.mark.parametrize("scale", [1.0, 0.0123, -3e-39, 1e38, math.inf, -0.0, math.nan, 2.0**-140])
def test_every_bit_pattern(tmp_path, target, scale):
    """With scales that make products subnormal, infinite or NaN too."""
    codes = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).reshape(16, 16)
    scales = torch.tensor([[scale]])
    lazy = scale_weight(
        backed(tmp_path / "w", codes), backed(tmp_path / "s", scales), (128, 128), target
    )
    assert agree(lazy, dequantised(codes, scales, (128, 128), target))


def exponents(codes: torch.Tensor) -> torch.Tensor:
    """The powers of two that bytes stand for; torch has them as a dtype since 2.7."""
    powers = torch.ldexp(torch.ones(()).double(), codes.double() - 127).float()
    return torch.where(codes == 255, math.nan, powers)


@pytest.mark.parametrize("target", TARGETS, ids=str)
@pytest.mark.parametrize("called", ["float8_e8m0fnu", "uint8"])
def test_every_bit_pattern_with_every_exponent(tmp_path, target, called):
    """A row of all fp8 for each exponent: infinite, subnormal, NaN, and zeros of both signs."""
    codes = torch.arange(256, dtype=torch.uint8).repeat(256, 1).view(torch.float8_e4m3fn)
    scales = torch.arange(256, dtype=torch.int32).to(torch.uint8).reshape(256, 1)
    stored, dtype = backed(tmp_path / "s", scales), BY_NAME[called]
    stored = replace(stored, dtype=dtype, source_dtype=dtype)
    lazy = scale_weight(backed(tmp_path / "w", codes), stored, (1, 256), target)
    expected = dequantised(codes, exponents(scales), (1, 256), target)
    assert agree(lazy, expected)
    assert expected[255].isnan().all()
    assert torch.signbit(expected[0, 128])


def test_exponents_are_what_torch_and_transformers_make_of_them(tmp_path):
    module = pytest.importorskip("transformers.integrations.finegrained_fp8")
    if not hasattr(torch, "float8_e8m0fnu"):
        pytest.skip("before torch 2.7")
    every = torch.arange(256, dtype=torch.int32).to(torch.uint8)
    assert same(plain_nan(every.view(torch.float8_e8m0fnu).float()), plain_nan(exponents(every)))
    weight, scales = weights((256, 384)), every[100:106].reshape(2, 3).view(torch.float8_e8m0fnu)
    expected = module.Fp8Dequantize(None)._dequantize_one(weight, scales)
    lazy = scale_weight(
        backed(tmp_path / "w", weight), backed(tmp_path / "s", scales), (128, 128), BFLOAT16
    )
    assert agree(lazy, plain_nan(expected))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("target", TARGETS, ids=str)
@pytest.mark.parametrize("shape", [(128, 128), (300, 200), (1, 1), (1, 300), (300, 1), (129, 255)])
def test_whole_matrices(tmp_path, shape, target, dtype):
    lazy, expected = pair(tmp_path / "w", shape, target=target, dtype=dtype)
    assert (lazy.shape, lazy.dtype, lazy.origin) == (shape, target, FLOAT8)
    assert agree(lazy, expected)


def test_ties_are_rounded_to_even(tmp_path):
    """Scales of few digits give products that are halfway between two of the target."""
    weight = weights((64, 64))
    scales = 1 + torch.arange(256, dtype=torch.float32).reshape(16, 16) / 256
    lazy = scale_weight(
        backed(tmp_path / "w", weight), backed(tmp_path / "s", scales), (4, 4), BFLOAT16
    )
    assert agree(lazy, dequantised(weight, scales, (4, 4)))


@pytest.mark.slow
@settings(max_examples=150)
@given(st.data())
def test_any_range_of_any_shape_in_any_blocks(folder, data):
    size = st.integers(1, 40)
    shape, block = data.draw(st.tuples(size, size)), data.draw(st.tuples(size, size))
    target = data.draw(st.sampled_from(TARGETS))
    seed = data.draw(st.integers(0, 9))
    lazy, expected = pair(folder / "range", shape, block, target=target, seed=seed)
    if data.draw(st.booleans()):
        lazy, expected = lazy.transpose(0, 1), expected.t()
    expected = expected.flatten()
    with FileTable() as files:
        reader = BlockReader(files)
        for _ in range(4):  # scratch memory, indices and tables are reused
            start = data.draw(st.integers(0, expected.numel()))
            stop = data.draw(st.integers(start, expected.numel()))
            assert same(part(reader, lazy, start, stop), expected[start:stop])


@pytest.mark.parametrize("kind", ["rows", "matrix", "one"])
@settings(max_examples=20)
@given(st.data())
def test_any_range_of_rows_or_matrices_that_have_a_factor_each(folder, kind, data):
    """As compressed-tensors and Mistral have them, whatever blocks the config has."""
    rows, columns = data.draw(st.tuples(st.integers(2, 300), st.integers(1, 40)))
    weight = weights((rows, columns), data.draw(st.integers(0, 9)))
    count = rows if kind == "rows" else 1
    scales = (torch.randn(count, 1) * 1e-3).bfloat16()
    stored = {"rows": scales, "matrix": scales[0, 0], "one": scales[0]}[kind].clone()
    lazy = scale_weight(
        backed(folder / "each", weight), backed(folder / "each.scales", stored), (1, 7), BFLOAT16
    )
    expected = dequantised(weight, scales.expand(rows, 1).float(), (1, columns))
    if data.draw(st.booleans()):
        lazy, expected = lazy.narrow(1, 0, -(-columns // 2)), expected[:, : -(-columns // 2)]
    if data.draw(st.booleans()):
        lazy, expected = lazy.transpose(0, 1), expected.t()
    expected = expected.flatten()
    with FileTable() as files:
        reader = BlockReader(files)
        for _ in range(3):
            start = data.draw(st.integers(0, expected.numel()))
            stop = data.draw(st.integers(start, expected.numel()))
            assert same(part(reader, lazy, start, stop), expected[start:stop])


@pytest.mark.parametrize("scaled", ["blocks", "each", "all"])
def test_experts_in_one_tensor(tmp_path, scaled):
    """As Qwen3-VL-MoE is released in fp8, turned or not."""
    shape = (3, 130, 200)
    weight = torch.stack([weights(shape[1:], seed).view(torch.uint8) for seed in range(3)])
    weight = weight.view(torch.float8_e4m3fn)
    blocks = torch.stack([factors(shape[1:], (128, 128), seed) for seed in range(3)])
    stored = {"blocks": blocks, "each": blocks[:, :1, :1], "all": blocks[0, 0, 0]}[scaled]
    stored = stored.contiguous().clone()
    lazy = scale_weight(
        backed(tmp_path / "w", weight), backed(tmp_path / "s", stored), (128, 128), BFLOAT16
    )
    spread = stored if scaled == "blocks" else stored.expand(3, 2, 2)
    each = [dequantised(weight[e], spread[e], (128, 128)) for e in range(3)]
    assert agree(lazy, torch.stack(each))
    assert agree(lazy.transpose(1, 2), torch.stack(each).transpose(1, 2))


@st.composite
def operations(draw, tensor: torch.Tensor):
    """One operation that `tensor` allows, as the same function of a lazy and a torch tensor."""
    names = ["unsqueeze", "stack", *(["narrow", "transpose", "cat", "select"] * bool(tensor.ndim))]
    name = draw(st.sampled_from(names))
    if name == "unsqueeze":
        dim = draw(st.integers(0, tensor.ndim))
        return lambda t: t.unsqueeze(dim)
    if name == "stack":
        return lambda t: stack([t, t]) if isinstance(t, LazyTensor) else torch.stack([t, t])
    dim = draw(st.integers(0, tensor.ndim - 1))
    other = draw(st.integers(0, tensor.ndim - 1))
    start = draw(st.integers(0, tensor.shape[dim] - 1))
    length = draw(st.integers(1, tensor.shape[dim] - start))
    if name == "cat":
        return lambda t: (cat if isinstance(t, LazyTensor) else torch.cat)([t, t], dim)
    if name == "narrow":
        return lambda t: t.narrow(dim, start, length)
    return lambda t: t.select(dim, start) if name == "select" else t.transpose(dim, other)


@pytest.mark.slow
@settings(max_examples=150)
@given(st.data())
def test_any_sequence_of_operations_is_what_torch_gives(folder, data):
    size = st.integers(1, 9)
    lazy, expected = pair(folder / "ops", data.draw(st.tuples(size, size)), (4, 3))
    for _ in range(data.draw(st.integers(1, 6))):
        operation = data.draw(operations(expected))
        lazy, expected = operation(lazy), operation(expected)
        if expected.numel() > 2000 or expected.ndim > 6:
            break
    assert agree(lazy, expected.contiguous())


@pytest.mark.slow
def test_parts_of_several_matrices(tmp_path):
    """As a checkpoint with an expert per matrix is turned into one tensor of all experts."""
    ones, twos = zip(*(pair(tmp_path / str(n), (200, 300), seed=n) for n in range(3)), strict=True)
    lazy, expected = stack(ones), torch.stack(twos)
    assert agree(lazy, expected)
    assert agree(lazy.select(0, 1), expected[1])
    assert agree(lazy.select(1, 130), expected[:, 130])
    assert agree(lazy.transpose(1, 2), expected.transpose(1, 2))
    assert agree(lazy.narrow(1, 100, 90).narrow(2, 7, 250), expected[:, 100:190, 7:257])
    assert agree(cat(ones, 0), torch.cat(twos))
    assert agree(cat(ones, 1), torch.cat(twos, 1))
    assert agree(ones[0].unsqueeze(1), twos[0].unsqueeze(1))
    assert agree(ones[0].select(0, 3).select(0, 299), twos[0][3, 299])


@pytest.mark.slow
@pytest.mark.parametrize(
    "block", [(128, 128), (1, 128), (128, 1), (1, 140000), (9, 140000), (1, 1)]
)
def test_matrices_wider_than_a_step_and_a_table(tmp_path, block):
    assert products.STEP < 132000
    lazy, expected = pair(tmp_path / "w", (5, 140000), block)
    assert agree(lazy, expected)
    assert agree(lazy.narrow(1, 129, 132000), expected[:, 129:132129])
    assert agree(lazy.transpose(0, 1), expected.t())


@pytest.mark.slow
def test_several_blocks_of_output(tmp_path):
    lazy, expected = pair(tmp_path / "w", (700, 1801))
    assert lazy.nbytes > BLOCK_BYTES
    assert agree(lazy, expected)
    with FileTable() as files:
        reader = BlockReader(files)
        cuts = [*range(0, lazy.numel, 50_021), lazy.numel]
        pieces = [part(reader, lazy, a, b) for a, b in pairwise(cuts)]
    assert same(torch.cat(pieces), expected.flatten())


def test_matrices_by_turns(tmp_path):
    """One reader, which works in the same memory for all of them."""
    first, second, third = (
        pair(tmp_path / "1", (64, 40), (8, 8)),
        pair(tmp_path / "2", (64, 40), (8, 5), seed=2),
        pair(tmp_path / "3", (30, 90), (16, 16), seed=3, target=FLOAT16),
    )
    with FileTable() as files:
        reader = BlockReader(files)
        for lazy, expected in (first, second, third, first, third, second):
            assert same(part(reader, lazy, 0, lazy.numel), expected.flatten())


def test_an_empty_matrix(tmp_path):
    for shape in [(0, 5), (5, 0), (0, 0)]:
        lazy, expected = pair(tmp_path / "w", shape)
        assert agree(lazy, expected)
    lazy, expected = pair(tmp_path / "w", (5, 7))
    assert agree(lazy.narrow(0, 2, 0), expected[2:2])


def test_another_target_takes_the_place_of_the_first(tmp_path):
    lazy, _ = pair(tmp_path / "w", (20, 30))
    for target in TARGETS:
        _, expected = pair(tmp_path / "w", (20, 30), target=target)
        assert agree(lazy.to(FLOAT16).to(target), expected)
    for name in ("float8_e4m3fn", "float8_e5m2", "int8"):
        with pytest.raises(ValueError, match="no cast from bfloat16"):
            lazy.to(BY_NAME[name])


def test_fp8_without_scales_stays_what_it_is(tmp_path):
    plain = backed(tmp_path / "w", weights((4, 4)))
    assert not plain.is_computed
    assert plain.origin == FLOAT8
    assert same(plain.read(), weights((4, 4)))
    with pytest.raises(ValueError, match="no cast from float8_e4m3fn to bfloat16"):
        plain.to(BFLOAT16)
    with pytest.raises(ValueError, match="cat of"):
        cat([plain, pair(tmp_path / "other", (4, 4))[0]], 0)


def test_cat_of_different_targets_is_refused(tmp_path):
    lazy, _ = pair(tmp_path / "w", (4, 4))
    with pytest.raises(ValueError, match="cat of"):
        cat([lazy, lazy.to(FLOAT32)], 0)


def refused(weight, scales, block=(128, 128), dtype=BFLOAT16) -> str:
    with pytest.raises(ValueError, match=r"\w") as found:
        scale_weight(weight, scales, block, dtype)
    return str(found.value)


def test_what_does_not_fit_is_refused(tmp_path):
    weight = backed(tmp_path / "w", weights((130, 200)))
    scales = backed(tmp_path / "s", torch.ones(2, 2))
    for shape in [(2, 1), (1, 1), (3, 2), (2, 2, 1), (4,), (130,), (1, 200), (0, 0)]:
        other = backed(tmp_path / "other", torch.ones(shape))
        assert refused(weight, other) == (
            f"scales of shape {list(shape)} for a weight of shape [130, 200] in blocks of"
            " [128, 128], expected [2, 2]"
        )
    assert "in blocks of [64, 128], expected [3, 2]" in refused(weight, scales, (64, 128))
    assert refused(weight, scales, (0, 128)) == "blocks of [0, 128], expected rows and columns"
    three = backed(tmp_path / "three", weights((1, 130, 200)))
    assert refused(three, scales) == (
        "scales of shape [2, 2] for weights of shape [1, 130, 200], expected as many"
    )
    many = backed(tmp_path / "many", weights(((1 << 14) + 1, 1, 1)))
    assert refused(many, scales) == (
        "a weight of shape [16385, 1, 1], expected 16,384 matrices at most"
    )
    one = backed(tmp_path / "one", weights((130,)))
    assert refused(one, scales) == "a weight of shape [130], expected a matrix, or several"


def test_other_dtypes_are_refused(tmp_path):
    weight = backed(tmp_path / "w", weights((4, 4)))
    scales = backed(tmp_path / "s", torch.ones(1, 1))
    expected = "expected float8_e4m3fn without scales"
    for dtype in (torch.float8_e5m2, torch.int8, torch.bfloat16):
        other = backed(tmp_path / "other", torch.ones(4, 4).to(dtype))
        assert refused(other, scales).endswith(expected)
    assert refused(scale_weight(weight, scales, (4, 4), BFLOAT16), scales).endswith(expected)
    known = "expected one of float32, bfloat16, float16, float8_e8m0fnu, uint8 on disk"
    for dtype in (torch.float64, torch.int8):
        other = backed(tmp_path / "other", torch.ones(1, 1).to(dtype))
        assert refused(weight, other).endswith(known)
    assert refused(weight, scales.to(BFLOAT16)).endswith(known)
    for name in ("int8", "float8_e4m3fn"):
        assert refused(weight, scales, dtype=BY_NAME[name]).endswith(f"to {name}")


@pytest.mark.slow
@given(st.data())
def test_operands_may_lie_in_any_way(folder, data):
    """Cut into parts, in several files, turned."""
    shape = data.draw(st.tuples(st.integers(1, 9), st.integers(1, 9)))
    weight, scales = weights(shape), factors(shape, (2, 3))
    turned, order = data.draw(st.booleans()), data.draw(st.permutations([0, 1]))
    if turned:
        lazy = backed(folder / "w", weight.t(), data.draw(tilings(shape[::-1]))).transpose(0, 1)
    else:
        lazy = backed(folder / "w", weight, data.draw(tilings(shape)), order)
    factor = backed(folder / "s", scales, data.draw(tilings(tuple(scales.shape))), order)
    assert agree(scale_weight(lazy, factor, (2, 3), BFLOAT16), dequantised(weight, scales, (2, 3)))


@pytest.mark.slow
def test_each_byte_is_read_once_and_each_row_of_scales_once(tmp_path):
    lazy, expected = pair(tmp_path / "w", (256, 6000))
    with NotedFiles() as files:
        reader = BlockReader(files)
        part(reader, lazy, 0, 6000)
        for at in range(6000, lazy.numel, 12_000 + 7):
            stop = min(at + 12_007, lazy.numel)
            assert same(part(reader, lazy, at, stop), expected.flatten()[at:stop])
        assert sum(files.sizes("w")) == 256 * 6000
        # 47 blocks a row; where a range begins within the second band, a part of its row is extra
        assert files.sizes("w.scales").count(47 * 4) == 2
        assert sum(files.sizes("w.scales")) < 3 * 47 * 4


@pytest.mark.slow
def test_a_few_columns_need_a_few_scales(tmp_path):
    lazy, expected = pair(tmp_path / "w", (300, 6000))
    with NotedFiles() as files:
        narrow = lazy.narrow(1, 250, 10)
        reader = BlockReader(files)
        assert same(part(reader, narrow, 0, 3000), expected[:, 250:260].flatten())
        assert files.sizes("w") == [10] * 300
        assert files.sizes("w.scales") == [8] * 3


@pytest.mark.slow
@pytest.mark.parametrize("turned", [False, True])
def test_memory_does_not_grow_with_the_matrix(tmp_path, turned):
    lazy, _ = pair(tmp_path / "w", (3000, 4000))
    lazy = lazy.transpose(0, 1) if turned else lazy
    out = memoryview(bytearray(lazy.nbytes))
    tracemalloc.start()
    try:
        with FileTable() as files:
            BlockReader(files).read(lazy, 0, lazy.numel, out)
        assert tracemalloc.get_traced_memory()[1] < 9 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("target", TARGETS, ids=str)
@pytest.mark.parametrize("seed", range(5))
def test_reading_learns_the_largest_error_of_what_was_read(tmp_path, target, seed):
    """Of the elements, not of all that a block's scale could give."""
    weight = weights((40, 30), seed, nan=False)
    weight[:, 3:] = 0  # only a few values of each block are there
    scales = factors((40, 30), (8, 8), seed)
    lazy = scale_weight(
        backed(tmp_path / "w", weight), backed(tmp_path / "s", scales), (8, 8), target
    )
    exact = dequantised(weight, scales, (8, 8), FLOAT32).double()
    errors = (exact - dequantised(weight, scales, (8, 8), target).double()).abs().flatten()
    with FileTable() as files:
        out = memoryview(bytearray(lazy.nbytes))
        for start, stop in [(0, 1200), (0, 31), (500, 700), (3, 30), (0, 1200)]:
            largest = errors[start:stop].max().item()
            for known in (0.0, 1e9, largest / 2):
                reader = BlockReader(files)
                reader.errors.learn("float8_e4m3fn", target.name, known)
                reader.read(lazy, start, stop, out[: (stop - start) * target.itemsize])
                found = reader.errors.largest("float8_e4m3fn", target.name)
                assert found == max(known, largest)


def test_the_largest_error_is_found_where_few_could_have_it(tmp_path):
    """Of large blocks, with scales by which the same codes err more and more, or less and less."""
    weight = weights((96, 64), nan=False)
    for name, (first, last) in (("rising", (1.0, 1.9)), ("falling", (1.9, 1.0))):
        scales = torch.linspace(first, last, 12)[:, None] * 1.003
        lazy = scale_weight(
            backed(tmp_path / name, weight),
            backed(tmp_path / f"{name}.s", scales),
            (8, 64),
            BFLOAT16,
        )
        exact = dequantised(weight, scales, (8, 64), FLOAT32).double()
        errors = (exact - dequantised(weight, scales, (8, 64)).double()).abs()
        with FileTable() as files:
            reader, out = BlockReader(files), memoryview(bytearray(lazy.nbytes))
            for row in range(0, 96, 3):
                reader.read(lazy, row * 64, (row + 3) * 64, out[: 3 * 64 * 2])
                found = reader.errors.largest("float8_e4m3fn", "bfloat16")
                assert found == errors[: row + 3].max().item()


def test_errors_are_those_of_the_elements_that_are_read(tmp_path):
    """Not of those that lie between them, which may be computed along."""
    weight = torch.tensor([[1.0, 1.5]] * 4).to(torch.float8_e4m3fn)
    scales = torch.tensor([[1.0, 1.0], [1.0, 1.0 + 2**-9], [1.0, 1.0], [1.0, 1.0]])
    lazy = scale_weight(
        backed(tmp_path / "w", weight), backed(tmp_path / "s", scales), (1, 1), BFLOAT16
    )
    region = lazy.chunks[0].region._replace(strides=(4, 1))
    every_second = replace(lazy, shape=(2, 2), chunks=(Chunk(Box((0, 0), (2, 2)), region),))
    for tensor, error in (
        (lazy, 1.5 * 2**-9),
        (lazy.narrow(1, 0, 1), 0.0),
        (lazy.narrow(1, 1, 1), 1.5 * 2**-9),
        (every_second, 0.0),
    ):
        with FileTable() as files:
            reader, out = BlockReader(files), memoryview(bytearray(tensor.nbytes))
            reader.read(tensor, 0, tensor.numel, out)
            assert reader.errors.listed() == (("float8_e4m3fn", "bfloat16", error),)
    assert agree(every_second, dequantised(weight, scales, (1, 1))[::2])


@pytest.mark.parametrize(
    ("scale", "target", "error"),
    [
        (1000.0, FLOAT16, math.inf),
        (0.75, FLOAT16, 0.0),
        (1e6, FLOAT32, 0.0),
        (3.3e38, FLOAT32, 0.0),  # infinite in float32 already
        (3e38, BFLOAT16, abs(float(np.float32(3e38)) - torch.tensor(3e38).bfloat16().item())),
        (math.nan, BFLOAT16, 0.0),
    ],
)
def test_only_what_the_target_cannot_hold_is_an_infinite_error(tmp_path, scale, target, error):
    weight = torch.tensor([[448.0, 1.0]]).to(torch.float8_e4m3fn)
    scales = backed(tmp_path / "s", torch.tensor([[scale]]))
    lazy = scale_weight(backed(tmp_path / "w", weight), scales, (1, 2), target)
    with FileTable() as files:
        reader, out = BlockReader(files), memoryview(bytearray(lazy.nbytes))
        reader.read(lazy, 0, 2, out)
        assert reader.errors.largest("float8_e4m3fn", target.name) == error


def test_truncated_files_are_format_errors_that_name_them(tmp_path):
    lazy, _ = pair(tmp_path / "w", (10, 10))
    (tmp_path / "w.scales").write_bytes(bytes(15))
    with pytest.raises(FormatError, match=r"w\.scales: ends at byte 15, expected 2 more"):
        lazy.read()
    (tmp_path / "w").write_bytes(bytes(50))
    with pytest.raises(FormatError, match="w: ends at byte 50"):
        lazy.read()
    (tmp_path / "w").unlink()
    with pytest.raises(FileNotFoundError):
        lazy.read()


def test_values_are_those_of_torch():
    codes = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn)
    found = torch.from_numpy(np.array(E4M3))
    assert raw(plain_nan(found)) == raw(plain_nan(codes.to(torch.float32)))


def test_describing_computed_tensors_needs_no_numpy():
    code = (
        "import ckpt_tool.tensors.fp8, ckpt_tool.tensors.lowrank, sys;"
        " sys.exit('numpy' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
