"""Values of raw elements against torch, pattern by pattern, and distances in ULP."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ckpt_tool.compare.values import decode_values, is_ordered, order_bits, view_bits
from ckpt_tool.tensors.dtypes import BY_NAME
from tests.support.backed import dtype_of, raw
from tests.support.versions import torch_dtype

FNUZ = ["float8_e4m3fnuz", "float8_e5m2fnuz"]
SMALL = ["float8_e4m3fn", "float8_e5m2", "float8_e8m0fnu", *FNUZ, "float16", "bfloat16"]
HALVES = [torch.float16, torch.bfloat16]
ORDERED = [torch.float64, torch.float32, *HALVES]
INTEGERS = [
    torch.int64, torch.int32, torch.int16, torch.int8,
    torch.uint64, torch.uint32, torch.uint16, torch.uint8,
]  # fmt: skip
# Upper halves of float32 with these lower ones: around every turn of sign, exponent and mantissa.
LOW_HALVES = (0, 1, 0x7FFF, 0x8000, 0xFFFF)


def every_pattern(dtype: torch.dtype) -> torch.Tensor:
    size = dtype.itemsize
    codes = np.arange(1 << 8 * size, dtype=f"<u{size}")
    return torch.from_numpy(codes.view(f"<i{size}")).view(dtype)


def values(tensor: torch.Tensor) -> np.ndarray:
    return decode_values(memoryview(raw(tensor)), dtype_of(tensor))


def ordinals_of(tensor: torch.Tensor) -> np.ndarray:
    dtype = dtype_of(tensor)
    bits = view_bits(memoryview(raw(tensor)), dtype)
    return order_bits(bits, np.empty_like(bits), np.empty_like(bits)).astype(np.int64)


def assert_same_values(found: np.ndarray, expected: torch.Tensor) -> None:
    """Equal, signs of zeros too; NaN for NaN."""
    wide = expected.double().numpy()
    assert found.dtype == np.float64
    assert np.array_equal(found, wide, equal_nan=True)
    number = ~np.isnan(wide)
    assert np.array_equal(np.signbit(found)[number], np.signbit(wide)[number])


@pytest.mark.parametrize("name", SMALL)
def test_every_pattern_has_torchs_value(name):
    tensor = every_pattern(torch_dtype(name))
    assert_same_values(values(tensor), tensor.float())


def test_some_values_by_hand():
    codes = memoryview(bytes([0x00, 0x01, 0x08, 0x38, 0x7E, 0xFE, 0x80]))
    expected = [0, 2**-9, 2**-6, 1, 448, -448, 0]
    assert decode_values(codes, BY_NAME["float8_e4m3fn"]).tolist() == expected
    codes = memoryview(bytes([0x01, 0x04, 0x3C, 0x7B, 0x7C, 0xFC]))
    expected = [2**-16, 2**-14, 1, 57344, math.inf, -math.inf]
    assert decode_values(codes, BY_NAME["float8_e5m2"]).tolist() == expected
    codes = memoryview(bytes([0, 127, 128, 254]))
    assert decode_values(codes, BY_NAME["float8_e8m0fnu"]).tolist() == [2**-127, 1, 2, 2**127]


def test_float32_values_are_exact():
    high = np.arange(1 << 16, dtype=np.uint32) << 16
    words = np.concatenate([high | np.uint32(low) for low in LOW_HALVES])
    tensor = torch.from_numpy(words.view(np.float32))
    assert_same_values(values(tensor), tensor)


@given(st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=30))
def test_float64_elements_are_their_own_values(words):
    content = np.array(words, "<u8").tobytes()
    assert decode_values(memoryview(content), BY_NAME["float64"]).tobytes() == content


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("dtype", [torch.float32, *HALVES], ids=str)
def test_signalling_nans_make_numpy_warn_of_nothing(dtype):
    size = dtype.itemsize
    one = {torch.float16: 0x7C01, torch.bfloat16: 0x7F81, torch.float32: 0x7F800001}[dtype]
    content = np.array([one, one + 1], f"<u{size}").tobytes()
    found = decode_values(memoryview(content), BY_NAME[str(dtype).removeprefix("torch.")])
    assert np.isnan(found).all()


@pytest.mark.parametrize("dtype", INTEGERS, ids=str)
def test_integers(dtype):
    info = torch.iinfo(dtype)
    numbers = sorted({info.min, info.max, 0, 1, 2, 100, info.max // 3, info.min // 3})
    found = values(torch.tensor(numbers, dtype=dtype))
    assert found.tolist() == [float(number) for number in numbers]


def test_integers_of_64_bits_are_rounded_beyond_53():
    found = values(torch.tensor([2**53 - 1, 2**53 + 1, -(2**53) - 3]))
    assert found.tolist() == [2**53 - 1, 2**53, -(2**53) - 4]


def test_truth_values():
    assert values(torch.tensor([False, True, True])).tolist() == [0.0, 1.0, 1.0]


def test_a_complex_element_is_two_values():
    tensor = torch.tensor([1.5 - 2.0j, complex(math.inf, -0.0)], dtype=torch.complex64)
    assert_same_values(values(tensor), torch.view_as_real(tensor).flatten())


def test_bits_are_unsigned_integers_of_the_elements_size():
    for dtype in BY_NAME.values():
        size = dtype.itemsize
        found = view_bits(memoryview(bytes(range(2 * size))), dtype)
        assert found.itemsize == size
        assert found.tolist() == [
            int.from_bytes(bytes(range(at, at + size)), "little") for at in (0, size)
        ]


def test_only_ieee_like_floats_are_ordered():
    ordered = {name for name, dtype in BY_NAME.items() if is_ordered(dtype)}
    assert ordered == {"float64", "float32", "float16", "bfloat16"}


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_every_16_bit_number_is_one_from_the_next(dtype):
    tensor = every_pattern(dtype)
    numbers = tensor[~tensor.isnan()]
    ordered = numbers[numbers.double().sort().indices]
    steps = np.diff(ordinals_of(ordered))
    expected = np.where(np.diff(ordered.double().numpy()) == 0, 0, 1)
    assert np.count_nonzero(expected == 0) == 1  # between the two zeros
    assert steps.tolist() == expected.tolist()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_neighbours_are_one_apart(dtype):
    info = torch.finfo(dtype)
    scales = torch.logspace(-37, 37, 75, dtype=torch.float64)
    edges = torch.tensor([0.0, info.tiny, info.tiny / 2, 1.0, 2.0, info.max], dtype=torch.float64)
    tensor = torch.cat([scales, -scales, edges, -edges]).to(dtype)
    for towards, expected in ((math.inf, 1), (-math.inf, -1)):
        next_ones = torch.nextafter(tensor, torch.tensor(towards, dtype=dtype))
        steps = ordinals_of(next_ones) - ordinals_of(tensor)
        assert steps.tolist() == [expected] * len(tensor)


@pytest.mark.parametrize("dtype", ORDERED, ids=str)
def test_zeros_are_no_distance_apart(dtype):
    assert ordinals_of(torch.tensor([0.0, -0.0], dtype=dtype)).tolist() == [0, 0]


@given(st.sampled_from(ORDERED), st.lists(st.floats(width=32), min_size=2, max_size=20))
def test_the_order_is_that_of_the_numbers(dtype, numbers):
    tensor = torch.tensor([n for n in numbers if not math.isnan(n)], dtype=torch.float64).to(dtype)
    wide, found = tensor.double().numpy(), ordinals_of(tensor)
    for sign in (np.less, np.equal):
        assert np.array_equal(sign.outer(wide, wide), sign.outer(found, found))


def test_any_two_floats_have_their_steps_between_them():
    one = torch.tensor([1.0, 1.0, -1.0])
    other = torch.tensor([2.0, 1.5, 1.0])
    steps = ordinals_of(other) - ordinals_of(one)
    assert steps.tolist() == [2**23, 2**22, 2 * 127 * 2**23]
