"""FP4 with exponents (MXFP4) or fp8 (NVFP4) as scales, against the libraries that define them."""

import math
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor

from ckpt_tool.readers import open_checkpoint
from ckpt_tool.tensors.blocks import BlockReader, FileTable
from ckpt_tool.tensors.dtypes import BFLOAT16, BY_NAME, FLOAT16, FLOAT32, UINT8, DType
from ckpt_tool.tensors.lazy import LazyTensor
from ckpt_tool.tensors.nibbles import unpack_fp4, unpack_nvfp4
from tests.support.backed import backed, same
from tests.tensors.test_nibbles import E2M1, plain_nan, random_bytes

FIXTURE = Path(__file__).parents[1] / "fixtures" / "compressed_tensors0.20_fp4"
WIDE = [BFLOAT16, FLOAT16, FLOAT32]
EXPONENT, FP4 = BY_NAME["float8_e8m0fnu"], BY_NAME["float4_e2m1fn_x2"]
SIZES = st.tuples(st.integers(1, 9), st.integers(1, 5))


def to_numbers(codes: Tensor) -> Tensor:
    """What both numbers of each byte are, one after the other: by the OCP's table."""
    table = torch.tensor([*E2M1, *(-value for value in E2M1)])
    return torch.stack((table[(codes & 15).long()], table[(codes >> 4).long()]), -1).flatten(-2)


def to_powers(scales: Tensor) -> Tensor:
    """Of exponents in a byte, written down once more; torch has it since 2.7."""
    powers = torch.ldexp(torch.ones(()).double(), scales.double() - 127).float()
    return torch.where(scales == 255, math.nan, powers)


def spread(factors: Tensor, numbers: Tensor) -> Tensor:
    return factors.repeat_interleave(numbers.shape[-1] // factors.shape[-1], -1)


def cast(exact: Tensor, dtype: DType) -> Tensor:
    return plain_nan(exact.to(getattr(torch, dtype.name)))


def call(tensor: LazyTensor, dtype: DType) -> LazyTensor:
    """The same bytes, of another dtype of a byte."""
    return replace(tensor, dtype=dtype, source_dtype=dtype)


def every_code() -> tuple[Tensor, Tensor]:
    """Each byte of two numbers with each exponent: 256 rows of 16 groups."""
    return torch.arange(256, dtype=torch.uint8).repeat(256, 1), torch.arange(256).to(
        torch.uint8
    ).unsqueeze(1).repeat(1, 16)


def make_fp4(folder: Path, codes: Tensor, scales: Tensor, dtype: DType) -> LazyTensor:
    parts = backed(folder / "codes", codes), backed(folder / "scales", scales)
    return unpack_fp4(*parts, dtype)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fp4")


@pytest.mark.parametrize("dtype", WIDE, ids=str)
def test_every_number_with_every_exponent(folder, dtype: DType) -> None:
    """NaN, 2**-127 and products beyond what is wanted too; a zero keeps its sign."""
    codes, scales = every_code()
    numbers = to_numbers(codes)
    expected = numbers * spread(to_powers(scales), numbers)
    found = make_fp4(folder, codes, scales, dtype).read()
    assert same(plain_nan(found), cast(expected, dtype))
    assert torch.signbit(found[:255, 1::32]).eq(torch.signbit(numbers[:255, 1::32])).all()
    assert found[255].isnan().all()
    assert found[:255].isinf().any()
    assert found[:255].isnan().sum() == 0


@given(st.integers(0, 99), SIZES, st.sampled_from(WIDE))
def test_fp4_is_what_its_numbers_say(folder, seed: int, sizes: tuple[int, int], dtype) -> None:
    rows, groups = sizes
    codes, scales = random_bytes((rows, groups * 16), seed), random_bytes((rows, groups), seed + 1)
    numbers = to_numbers(codes)
    expected = cast(numbers * spread(to_powers(scales), numbers), dtype)
    assert same(plain_nan(make_fp4(folder, codes, scales, dtype).read()), expected)


@pytest.mark.parametrize("codes_as", [UINT8, BY_NAME["int8"], FP4], ids=str)
@pytest.mark.parametrize("scales_as", [UINT8, EXPONENT], ids=str)
def test_bytes_mean_the_same_whatever_they_are_called(folder, codes_as, scales_as) -> None:
    codes, scales = random_bytes((70, 96), 3), random_bytes((70, 6), 4)
    plain = make_fp4(folder, codes, scales, BFLOAT16)
    parts = backed(folder / "codes", codes), backed(folder / "scales", scales)
    other = unpack_fp4(call(parts[0], codes_as), call(parts[1], scales_as), BFLOAT16)
    assert same(plain_nan(other.read()), plain_nan(plain.read()))
    assert (other.shape, other.origin) == ((70, 192), codes_as)


def test_fp4_is_what_transformers_makes_of_it(folder) -> None:
    module = pytest.importorskip("transformers.integrations.finegrained_fp8")
    unpacker = getattr(module, "Fp8Dequantize", None)
    if not hasattr(unpacker, "_unpack_fp4") or not hasattr(torch, "float8_e8m0fnu"):
        pytest.skip("before FP4")
    codes, scales = random_bytes((70, 96), 5), random_bytes((70, 6), 6)
    shaped = codes.view(torch.int8), scales.view(torch.float8_e8m0fnu)
    expected = unpacker(None)._dequantize_one(*shaped, output_dtype=torch.bfloat16)
    found = make_fp4(folder, codes, scales, BFLOAT16).read()
    assert same(plain_nan(found), plain_nan(expected))


@given(st.integers(0, 99), SIZES, st.booleans(), st.sampled_from(WIDE))
def test_nvfp4_is_what_its_numbers_say(folder, seed: int, sizes, is_divisor: bool, dtype) -> None:
    """Of every byte of fp8, NaN too, and of numbers of all that give infinite factors."""
    rows, groups = sizes
    codes, scales = random_bytes((rows, groups * 8), seed), random_bytes((rows, groups), seed + 1)
    over = torch.tensor([[1.7e-3, 2300.7, 3e38, 1e-38][seed % 4]])[0]
    fp8 = scales.view(torch.float8_e4m3fn)
    factors = fp8.float() / over if is_divisor else fp8.float() * over
    numbers = to_numbers(codes)
    parts = [
        backed(folder / name, tensor)
        for name, tensor in (("codes", codes), ("scales", fp8), ("over", over))
    ]
    lazy = unpack_nvfp4(*parts, dtype, is_divisor=is_divisor)
    assert same(plain_nan(lazy.read()), cast(numbers * spread(factors, numbers), dtype))


def test_both_are_what_compressed_tensors_makes_of_them() -> None:
    packed = open_checkpoint(FIXTURE / "model.safetensors")
    expected = load_file(FIXTURE / "expected.safetensors")
    assert len(expected) == 5
    for name, value in expected.items():
        stem, dtype = name.removesuffix(".exact"), BY_NAME[str(value.dtype)[6:]]
        codes, scales = (packed[f"{stem}_{end}"] for end in ("packed", "scale"))
        if f"{stem}_global_scale" in packed:
            over = packed[f"{stem}_global_scale"]
            lazy = unpack_nvfp4(codes, scales, over, dtype, is_divisor=True)
        else:
            lazy = unpack_fp4(codes, scales, dtype)
        assert same(lazy.read(), value)
        assert len(value.unique()) > 14


def test_any_part_has_the_same_bits(folder) -> None:
    codes, scales = random_bytes((41, 40), 8), random_bytes((41, 5), 9, 127)
    over = torch.tensor([0.013])
    files = [folder / name for name in ("c", "s", "o")]
    tensors = codes, scales.view(torch.float8_e4m3fn), over
    parts = [backed(*each) for each in zip(files, tensors, strict=True)]
    lazy = unpack_nvfp4(*parts, BFLOAT16, is_divisor=False)
    whole = lazy.read()
    with FileTable() as table:
        reader = BlockReader(table)
        for start, stop in ((0, 1), (79, 82), (1000, 3280), (3279, 3280), (17, 2900)):
            out = bytearray(2 * (stop - start))
            reader.read(lazy, start, stop, memoryview(out))
            assert same(torch.frombuffer(out, dtype=torch.bfloat16), whole.flatten()[start:stop])
    assert same(lazy.transpose(0, 1).narrow(0, 7, 30).read(), whole.t()[7:37].contiguous())


@pytest.mark.parametrize(
    ("scale", "over", "spoils"),
    [
        (126, 1e30, False),
        (126, 3e38, True),  # the factor is infinite
        (88, 1e38, True),  # of 16 times 1e38, times 6, only the product is
        (88, math.inf, False),
        (127, 3e38, False),  # no number
        (0, 0.0, True),  # nothing by nothing
        (0, math.nan, False),
    ],
)
@pytest.mark.parametrize("dtype", [BFLOAT16, FLOAT32], ids=str)
def test_what_is_not_finite_of_finite_numbers_is_noticed(
    folder, scale, over, spoils, dtype
) -> None:
    codes = torch.full((2, 8), 0x57, dtype=torch.uint8)
    scales = torch.full((2, 1), scale, dtype=torch.uint8).view(torch.float8_e4m3fn)
    files = [folder / name for name in ("c", "s", "o")]
    tensors = codes, scales, torch.tensor(over)
    parts = [backed(*each) for each in zip(files, tensors, strict=True)]
    lazy = unpack_nvfp4(*parts, dtype, is_divisor=not scale)
    with FileTable() as table:
        reader = BlockReader(table)
        reader.read(lazy, 0, lazy.numel, memoryview(bytearray(lazy.nbytes)))
        assert reader.take_spoilt() is spoils


def refused(*parts: LazyTensor, dtype: DType = BFLOAT16) -> str:
    unpack = unpack_fp4 if len(parts) == 2 else partial(unpack_nvfp4, is_divisor=False)
    with pytest.raises(ValueError, match=r"\w") as found:
        unpack(*parts, dtype)
    return str(found.value)


def test_what_does_not_fit_is_refused(folder) -> None:
    codes, scales = backed(folder / "a", random_bytes((4, 32), 1)), random_bytes((4, 2), 1)
    exponents = backed(folder / "b", scales)
    fp8 = backed(folder / "c", random_bytes((4, 4), 1).view(torch.float8_e4m3fn))
    one = backed(folder / "d", torch.ones(1))
    wrong = backed(folder / "e", random_bytes((4, 3), 1))
    assert refused(codes, wrong) == (
        "codes of shape [4, 32] and scales of shape [4, 3] by groups of 32, expected"
        " [..., R, C / 2] and [..., R, C / 32]"
    )
    assert refused(codes, fp8) == "scales of float8_e4m3fn, expected float8_e8m0fnu or uint8"
    assert refused(fp8, exponents).startswith("codes of float8_e4m3fn, expected two numbers")
    assert refused(codes, exponents, one) == "scales of uint8, expected float8_e4m3fn"
    two = backed(folder / "f", torch.ones(2))
    assert refused(codes, fp8, two).startswith("a scale of all that is float32 [2]")
    assert refused(codes, fp8, exponents).startswith("a scale of all that is uint8 [4, 2]")
    assert refused(codes, exponents, dtype=UINT8) == "no cast from FP4 to uint8"
