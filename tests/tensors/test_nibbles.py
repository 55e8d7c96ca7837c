"""Weights of four bits against what defines their formats: transformers and compressed-tensors."""

import math
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor

from ckpt_tool.common.errors import FormatError
from ckpt_tool.readers import open_checkpoint
from ckpt_tool.tensors import codes
from ckpt_tool.tensors.blocks import BlockReader, FileTable
from ckpt_tool.tensors.code_tables import PAIRS
from ckpt_tool.tensors.dtypes import BFLOAT16, BY_NAME, FLOAT16, FLOAT32, DType
from ckpt_tool.tensors.lazy import LazyTensor
from ckpt_tool.tensors.nibbles import unpack_int4, unpack_mxfp4
from ckpt_tool.tensors.rounding import CastErrors
from tests.support.backed import backed, same

FIXTURE = Path(__file__).parents[1] / "fixtures" / "compressed_tensors0.20_int4"
#: What MXFP4's numbers are, by the OCP's table.
E2M1 = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]
#: A seed, and leading sizes, rows and groups.
Case = tuple[int, tuple[int, ...], int, int]
CASES = st.tuples(
    st.integers(0, 1 << 30),
    st.lists(st.integers(1, 3), max_size=2).map(tuple),
    st.integers(1, 9),
    st.integers(1, 5),
)


def random_bytes(shape: tuple[int, ...], seed: int, end: int = 256) -> Tensor:
    source = torch.Generator().manual_seed(seed)
    return torch.randint(0, end, shape, generator=source, dtype=torch.uint8)


def multiply_mxfp4(blocks: Tensor, scales: Tensor) -> Tensor:
    """The products in float32, written down once more: a number at a time, rows by columns."""
    table = torch.tensor([*E2M1, *(-value for value in E2M1)])
    numbers = torch.stack((table[(blocks & 15).long()], table[(blocks >> 4).long()]), -1)
    powers = torch.ldexp(torch.ones(()).double(), scales.double() - 127).float()
    powers[scales == 255] = math.nan
    return (numbers.flatten(-2) * powers[..., None]).flatten(-2)


def plain_nan(tensor: Tensor) -> Tensor:
    return torch.where(tensor.isnan(), torch.tensor(math.nan, dtype=tensor.dtype), tensor)


def make_mxfp4(path: Path, case: Case, dtype: DType = BFLOAT16) -> tuple[LazyTensor, Tensor]:
    seed, lead, rows, groups = case
    blocks = random_bytes((*lead, rows, groups, 16), seed)
    scales = random_bytes((*lead, rows, groups), seed + 1)
    lazy = unpack_mxfp4(backed(path / "blocks", blocks), backed(path / "scales", scales), dtype)
    found = multiply_mxfp4(blocks, scales).transpose(-1, -2).contiguous()
    return lazy, plain_nan(found.to(getattr(torch, dtype.name)))


def make_int4(path: Path, case: Case, group: int, dtype: DType) -> tuple[LazyTensor, Tensor]:
    seed, _, rows, groups = case
    words = random_bytes((rows, groups * group // 2), seed).view(torch.int32)
    source = torch.Generator().manual_seed(seed)
    scales = (torch.randn(rows, groups, generator=source) * 0.01).bfloat16()
    said = torch.tensor([rows, groups * group])
    files = [path / name for name in ("words", "factors", "said")]
    parts = [backed(*each) for each in zip(files, (words, scales, said), strict=True)]
    numbers = torch.stack([(words >> 4 * at) & 15 for at in range(8)], -1).flatten(1) - 8
    found = numbers.float() * scales.float().repeat_interleave(group, 1)
    return unpack_int4(*parts, group, dtype), found.to(getattr(torch, dtype.name))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("nibbles")


@given(CASES, st.sampled_from([BFLOAT16, FLOAT16, FLOAT32]))
def test_mxfp4_is_what_its_numbers_say(folder, case: Case, dtype: DType) -> None:
    lazy, expected = make_mxfp4(folder, case, dtype)
    assert same(plain_nan(lazy.read()), expected)


@given(CASES, st.sampled_from([8, 32, 40]), st.sampled_from([BFLOAT16, FLOAT16, FLOAT32]))
def test_int4_is_what_its_numbers_say(folder, case: Case, group: int, dtype: DType) -> None:
    lazy, expected = make_int4(folder, case, group, dtype)
    assert same(lazy.read(), expected)


def test_mxfp4_is_what_transformers_makes_of_it(folder) -> None:
    mxfp4 = pytest.importorskip("transformers.integrations.mxfp4")
    blocks = random_bytes((2, 70, 5, 16), 3)
    scales = random_bytes((2, 70, 5), 4, 247)  # beyond, powers of two that torch has as infinite
    lazy = unpack_mxfp4(backed(folder / "b", blocks), backed(folder / "s", scales), BFLOAT16)
    expected = mxfp4.convert_moe_packed_tensors(blocks, scales)
    small = (
        expected.abs() < 2.0**-126
    )  # which torch has made 0 where the factor was no normal number
    assert same(torch.where(small, 0, lazy.read()), torch.where(small, 0, expected))
    assert small.float().mean() < 0.2


def test_int4_is_what_compressed_tensors_makes_of_it() -> None:
    packed, expected = (
        open_checkpoint(FIXTURE / "model.safetensors"),
        load_file(FIXTURE / "expected.safetensors"),
    )
    assert len(expected) == 3
    for name, value in expected.items():
        words, scales, said = (packed[f"{name}_{end}"] for end in ("packed", "scale", "shape"))
        group = words.shape[1] * 8 // scales.shape[1]
        lazy = unpack_int4(words, scales, said, group, BY_NAME[str(value.dtype)[6:]])
        assert same(lazy.read(), value)


def list_parts(size: int) -> Iterator[tuple[int, int]]:
    yield from ((0, size), (0, 1), (size - 1, size), (size // 3, size // 2 + 1))


@settings(max_examples=30)
@given(CASES, st.booleans())
def test_any_part_of_any_arrangement_has_the_same_bits(folder, case: Case, turned: bool) -> None:
    kinds = make_mxfp4(folder, case), make_int4(folder, case, 32, BFLOAT16)
    for lazy, expected in kinds:
        if turned:
            last = len(lazy.shape) - 1
            lazy, expected = lazy.transpose(last - 1, last), expected.transpose(-1, -2)  # noqa: PLW2901
        flat = expected.contiguous().view(torch.int16).reshape(-1)
        with FileTable() as files:
            reader = BlockReader(files)
            for start, stop in list_parts(lazy.numel):
                out = bytearray(2 * (stop - start))
                reader.read(lazy, start, stop, memoryview(out))
                found = torch.frombuffer(out, dtype=torch.bfloat16)
                assert same(plain_nan(found), flat[start:stop].view(torch.bfloat16))


def test_large_weights_are_the_same_however_they_are_tiled(folder, monkeypatch) -> None:
    """More rows and columns than a tile has; of what is turned, strips that are read ahead."""
    monkeypatch.setattr(codes, "_AHEAD", 5_000)
    lazy, expected = make_mxfp4(folder, (1, (2,), 300, 23))
    assert same(plain_nan(lazy.read()), expected)
    turned = lazy.transpose(1, 2)
    assert same(plain_nan(turned.read()), expected.transpose(1, 2).contiguous())
    lazy, expected = make_int4(folder, (2, (), 500, 40), 32, BFLOAT16)
    assert same(lazy.read(), expected)


@pytest.mark.parametrize(
    ("factor", "spoils"), [(250, False), (253, True), (254, True), (255, False)]
)
def test_products_that_are_infinite_by_a_finite_factor_are_noted(
    folder, factor: int, spoils: bool
) -> None:
    """4 times 2^126 is more than float32 and bfloat16 have; NaN is said by the file itself."""
    blocks = torch.full((1, 1, 16), 0x66, dtype=torch.uint8)
    scales = torch.tensor([[factor]], dtype=torch.uint8)
    lazy = unpack_mxfp4(backed(folder / "b", blocks), backed(folder / "s", scales), BFLOAT16)
    with FileTable() as files:
        reader = BlockReader(files)
        reader.read(lazy, 0, 32, memoryview(bytearray(64)))
        assert reader.take_spoilt() is spoils


def test_the_shape_in_the_file_is_held_against_the_numbers(folder) -> None:
    words, scales = torch.zeros(4, 8, dtype=torch.int32), torch.ones(4, 2)
    said = torch.tensor([4, 63])
    parts = [
        backed(folder / name, value) for name, value in (("w", words), ("f", scales), ("n", said))
    ]
    lazy = unpack_int4(*parts, 32, BFLOAT16)
    with pytest.raises(FormatError, match=r"shape \[4, 64\].*weight_shape says \[4, 63\]"):
        lazy.read()


def test_a_read_that_failed_leaves_nothing_behind(folder, monkeypatch) -> None:
    lazy, expected = make_mxfp4(folder, (5, (2,), 40, 3))
    half = lazy.numel // 2
    whole = (folder / "scales").read_bytes()
    with FileTable() as files:
        reader, out = BlockReader(files), memoryview(bytearray(2 * half))
        reader.read(lazy, 0, half, out)
        os.truncate(folder / "scales", len(whole) - 60)
        with pytest.raises(FormatError):
            reader.read(lazy, half, lazy.numel, out)
        reader.read(lazy, 0, half, out)
    found = torch.frombuffer(bytearray(out), dtype=torch.bfloat16)
    assert same(plain_nan(found), expected.reshape(-1)[:half])


def test_rows_that_are_too_many_are_read_as_they_are_asked_for(folder, monkeypatch) -> None:
    monkeypatch.setattr(codes, "_MOST", 100)
    lazy, expected = make_mxfp4(folder, (6, (2,), 50, 4))
    assert same(plain_nan(lazy.read()), expected)
    part = lazy.narrow(2, 7, 20)
    assert same(plain_nan(part.read()), expected[:, :, 7:27].contiguous())


def test_nothing_of_nothing(folder) -> None:
    blocks = backed(folder / "b", torch.zeros(0, 3, 16, dtype=torch.uint8))
    scales = backed(folder / "s", torch.zeros(0, 3, dtype=torch.uint8))
    assert unpack_mxfp4(blocks, scales, BFLOAT16).read().shape == (96, 0)


@pytest.mark.parametrize(
    ("blocks", "scales", "dtype", "said"),
    [
        ((2, 3, 15), (2, 3), "uint8", r"expected \[..., R, G, 16\]"),
        ((2, 3, 16), (2, 4), "uint8", r"expected \[..., R, G, 16\]"),
        ((3, 16), (3,), "uint8", r"expected \[..., R, G, 16\]"),
        ((2, 3, 16), (2, 3), "int32", "blocks of int32, expected uint8"),
    ],
)
def test_malformed_mxfp4(folder, blocks, scales, dtype, said) -> None:
    one = backed(folder / "b", torch.zeros(blocks, dtype=getattr(torch, dtype)))
    other = backed(folder / "s", torch.zeros(scales, dtype=torch.uint8))
    with pytest.raises(ValueError, match=said):
        unpack_mxfp4(one, other, BFLOAT16)


@pytest.mark.parametrize(
    ("shapes", "group", "said"),
    [
        (((4, 8), (4, 2), (2,)), 31, "groups of 31, expected a multiple of 8"),
        (((4, 8), (4, 3), (2,)), 32, "words of shape"),
        (((4, 8), (5, 2), (2,)), 32, "words of shape"),
        (((2, 4, 8), (2, 4, 2), (2,)), 32, "words of shape"),
        (((4, 8), (4, 2), (3,)), 32, "a shape that is int64"),
    ],
)
def test_malformed_int4(folder, shapes, group, said) -> None:
    kinds = (torch.int32, torch.float32, torch.int64)
    parts = [
        backed(folder / str(number), torch.zeros(shape, dtype=kind))
        for number, (shape, kind) in enumerate(zip(shapes, kinds, strict=True))
    ]
    with pytest.raises(ValueError, match=said):
        unpack_int4(*parts, group, BFLOAT16)


def test_no_cast_to_what_is_no_float(folder) -> None:
    blocks = backed(folder / "b", torch.zeros(1, 1, 16, dtype=torch.uint8))
    scales = backed(folder / "s", torch.zeros(1, 1, dtype=torch.uint8))
    with pytest.raises(ValueError, match="no cast from MXFP4 to int32"):
        unpack_mxfp4(blocks, scales, BY_NAME["int32"])


def test_the_tables_are_those_of_the_format() -> None:
    pairs = PAIRS["MXFP4"].view(np.float32).reshape(256, 2)
    assert pairs[0x1F].tolist() == [-6.0, 0.5]
    assert PAIRS["INT4"].view(np.float32).reshape(256, 2)[0x1F].tolist() == [7.0, -7.0]


def multiply(words: Tensor, scales: Tensor) -> Tensor:
    numbers = torch.stack([(words >> 4 * at) & 15 for at in range(8)], -1).flatten(1) - 8
    return numbers.float() * scales.float().repeat_interleave(32, 1)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_int4_with_every_factor_of_16_bits(folder, dtype: torch.dtype) -> None:
    """More than are kept, in the order of their bits and at random; NaN, infinities, -0 too."""
    every = torch.arange(1 << 16).to(torch.uint16).view(torch.int16)
    random = every[torch.randperm(1 << 16, generator=torch.Generator().manual_seed(1))]
    scales = torch.cat((every, random)).view(dtype).reshape(1 << 9, 1 << 8)
    words = random_bytes((1 << 9, 1 << 12), 7).view(torch.int32)
    parts = [
        backed(folder / name, value)
        for name, value in (("w", words), ("f", scales), ("n", torch.tensor([1 << 9, 1 << 13])))
    ]
    found = unpack_int4(*parts, 32, BFLOAT16).read()
    assert same(plain_nan(found), plain_nan(multiply(words, scales).bfloat16()))


def test_errors_of_rounding_are_those_of_the_numbers_that_are_there(folder) -> None:
    """The factor is 1 + 2^-7, of which 7 times errs by less than 5 times, and 1 not at all."""
    factor = 1 + 2.0**-7
    exact = torch.arange(-8, 8).double() * factor
    by = (exact - exact.bfloat16().double()).abs()
    for numbers in ([1, 1], [1, 7], [1, 3, 5], [7], [0, -8]):
        row = (numbers * 32)[:32]
        word = torch.tensor(
            [sum((row[8 * w + at] + 8) << 4 * at for at in range(8)) for w in range(4)]
        )
        words = word.to(torch.int64).to(torch.int32)[None]
        scales, said = torch.tensor([[factor]]).bfloat16(), torch.tensor([1, 32])
        files = (("w", words), ("f", scales), ("n", said))
        parts = [backed(folder / name, value) for name, value in files]
        errors = CastErrors()
        with FileTable() as files_open:
            for _ in range(2):  # where it is known it is not more
                reader = BlockReader(files_open, errors)
                reader.read(unpack_int4(*parts, 32, BFLOAT16), 0, 32, memoryview(bytearray(64)))
        assert errors.listed() == (
            ("int32", "bfloat16", max(by[each + 8].item() for each in numbers)),
        )


def test_a_number_that_rounds_to_infinity_is_noted(folder) -> None:
    """The largest bfloat16 times 7 is; where it is multiplied by 1 it is not."""
    scales = torch.tensor([[torch.finfo(torch.bfloat16).max]]).bfloat16()
    for number, spoils in ((1, False), (7, True), (1, False)):
        word = int.from_bytes(bytes([number + 8 | number + 8 << 4]) * 4, "little", signed=True)
        words, said = torch.full((1, 4), word, dtype=torch.int32), torch.tensor([1, 32])
        files = (("w", words), ("f", scales), ("n", said))
        parts = [backed(folder / name, value) for name, value in files]
        with FileTable() as files_open:
            reader = BlockReader(files_open)
            reader.read(unpack_int4(*parts, 32, BFLOAT16), 0, 32, memoryview(bytearray(64)))
            assert reader.take_spoilt() is spoils
