"""Relations of two tensors element by element: rounded, scaled."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ckpt_tool.compare.elements import find_scale, rounds_to
from ckpt_tool.tensors.dtypes import BFLOAT16, BY_NAME, FLOAT16, FLOAT32
from tests.support.backed import backed
from tests.support.measuring import normal, of_bytes, stored, touched

FLOATS = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
NARROW = FLOATS[1:]
STEP = 1 << 17  # elements that are looked at together


def rounds(folder, source: torch.Tensor, rounded: torch.Tensor, via: torch.dtype) -> bool:
    name = str(via).removeprefix("torch.")
    return rounds_to(stored(folder / "s", source), stored(folder / "r", rounded), BY_NAME[name])


def scale(folder, left: torch.Tensor, right: torch.Tensor) -> float | None:
    return find_scale(stored(folder / "l", left), stored(folder / "r", right))


def product(right: torch.Tensor, factor: float) -> torch.Tensor:
    """Computed in float64 and rounded once."""
    return (right.double() * factor).to(right.dtype)


def flipped(tensor: torch.Tensor, index: int) -> torch.Tensor:
    """The element at `index` moved by one ULP."""
    out = tensor.clone()
    out.view(torch.uint8)[index * tensor.element_size()] ^= 1
    return out


@pytest.mark.parametrize("via", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_a_cast_and_back_is_recognised(tmp_path, dtype, via):
    source = normal(1000, seed=1, dtype=dtype)
    rounded = source.to(via).to(dtype)
    assert rounds(tmp_path, source, rounded, via)
    for index in (0, 500, 999):
        assert not rounds(tmp_path, source, flipped(rounded, index), via)
    if (dtype, via) in ((torch.float32, via), (torch.float64, via)):
        assert not rounds(tmp_path, rounded, source, via)
        assert not rounds(tmp_path, source, source, via)


def test_truncation_is_not_rounding(tmp_path):
    source = normal(100)
    cut = (source.view(torch.int32) & -0x10000).view(torch.float32)
    assert not rounds(tmp_path, source, cut, torch.bfloat16)
    assert rounds(tmp_path, source, source.bfloat16().float(), torch.bfloat16)


def test_one_kind_of_rounding_is_not_another(tmp_path):
    source = normal(100)
    halves = {via: source.to(via).float() for via in (torch.float16, torch.bfloat16)}
    assert not rounds(tmp_path, source, halves[torch.float16], torch.bfloat16)
    assert not rounds(tmp_path, source, halves[torch.bfloat16], torch.float16)


def test_overflow_subnormal_numbers_and_infinity_round_too(tmp_path):
    source = torch.tensor([65520.0, -70000.0, 2.0**-25, 3e-8, torch.inf, -0.0, 65519.0])
    expected = torch.tensor([torch.inf, -torch.inf, 0.0, 2.0**-24, torch.inf, -0.0, 65504.0])
    assert rounds(tmp_path, source, expected, torch.float16)
    expected[5] = 0.0
    assert not rounds(tmp_path, source, expected, torch.float16)


def test_a_nan_becomes_the_quiet_one(tmp_path):
    source = of_bytes(tmp_path / "s", np.array([0xFF812345], "<u4").tobytes(), FLOAT32, (1,))
    for via, bits in ((BFLOAT16, 0x7FC00000), (FLOAT16, 0x7FC00000)):
        right = of_bytes(tmp_path / "r", np.array([bits], "<u4").tobytes(), FLOAT32, (1,))
        assert rounds_to(source, right, via)
        assert not rounds_to(source, source, via)


@pytest.mark.parametrize("index", [0, STEP - 1, STEP, STEP + 8])
def test_every_step_of_a_long_tensor_counts(tmp_path, index):
    source = normal(STEP + 9)
    rounded = source.bfloat16().float()
    assert rounds(tmp_path, source, rounded, torch.bfloat16)
    assert not rounds(tmp_path, source, flipped(rounded, index), torch.bfloat16)
    assert scale(tmp_path, source * -0.5, source) == -0.5
    assert scale(tmp_path, touched(source * -0.5, index, by=1e-6), source) is None


@pytest.mark.parametrize("factor", [0.5, 3.0, 0.1, 1e-3, -1.0, -2.0, -0.7, 100.0, 1.1])
@pytest.mark.parametrize("dtype", NARROW, ids=str)
def test_a_product_is_recognised_and_its_factor_is_short(tmp_path, dtype, factor):
    right = normal(500, seed=2, dtype=dtype)
    left = product(right, factor)
    assert scale(tmp_path, left, right) == factor
    assert scale(tmp_path, touched(left, 250, by=left.abs().max() / 16), right) is None


@pytest.mark.parametrize("dtype", NARROW, ids=str)
def test_a_factor_of_many_digits_is_near(tmp_path, dtype):
    right = normal(500, seed=3, dtype=dtype)
    found = scale(tmp_path, product(right, 0.123456789), right)
    assert found == pytest.approx(0.123456789, rel=torch.finfo(dtype).eps / 2)
    assert torch.equal(product(right, found), product(right, 0.123456789))


@pytest.mark.parametrize("dtype", NARROW, ids=str)
def test_one_ulp_off_is_not_scaled(tmp_path, dtype):
    """The last number, just below a power of two, leaves a factor the least room."""
    right = torch.tensor([1.0, 2.5, 6.0, 14.0, 31.5, 1.9921875], dtype=dtype)
    right[5] = 2 - torch.finfo(dtype).eps
    assert scale(tmp_path, right * 2, right) == 2.0
    for index in range(5):
        assert scale(tmp_path, flipped(right * 2, index), right) is None


@pytest.mark.parametrize("dtype", NARROW, ids=str)
def test_equal_mantissas_do_not_round_two_ways(tmp_path, dtype):
    right = torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0], dtype=dtype)
    left = right * 2
    left[::2] *= 1 + torch.finfo(dtype).eps
    assert scale(tmp_path, left, right) is None


def test_equal_tensors_and_last_bits_are_not_scaled(tmp_path):
    for dtype in NARROW:
        right = normal(50, dtype=dtype)
        assert scale(tmp_path, right, right) is None
        for index in (0, 20, 49):
            assert scale(tmp_path, flipped(right, index), right) is None
        near = torch.tensor([2 - torch.finfo(dtype).eps, 1.0], dtype=dtype)
        assert scale(tmp_path, flipped(near, 0), near) is None


def test_zeros_and_signs(tmp_path):
    right = torch.tensor([0.0, -0.0, 1.0, -3.0])
    assert scale(tmp_path, right * 2, right) == 2.0
    assert scale(tmp_path, right * -2, right) == -2.0
    for wrong in ([1e-45, -0.0, 2.0, -6.0], [0.0, -0.0, 0.0, -6.0], [0.0, -0.0, 2.0, 6.0]):
        assert scale(tmp_path, torch.tensor(wrong), right) is None
    assert scale(tmp_path, torch.tensor([-0.0, -0.0, 2.0, -6.0]), right) is None
    assert scale(tmp_path, torch.zeros(4), torch.zeros(4)) is None


def test_what_is_not_finite_or_of_another_kind_has_no_factor(tmp_path):
    for number in (torch.nan, torch.inf):
        right = touched(normal(20), 7, by=number)
        assert scale(tmp_path, right * 2, right) is None
    for dtype in (torch.float64, torch.int32, torch.float8_e5m2):
        right = torch.arange(1.0, 9.0).to(dtype)
        assert scale(tmp_path, (right.double() * 2).to(dtype), right) is None


def test_subnormal_products_may_lose_half_the_smallest_number(tmp_path):
    right = torch.tensor([1.0, 3.0, 5.0, 7.0], dtype=torch.float16)
    left = torch.tensor([1, 2, 3, 4], dtype=torch.int16).view(torch.float16)  # times 2**-24
    found = scale(tmp_path, left, right)
    assert 3.5 / 7 <= found * 2**24 <= 3.5 / 5
    assert scale(tmp_path, left.flip(0), right) is None


def test_layouts_do_not_matter(tmp_path):
    right = normal(30, 20, seed=4)
    left = backed(tmp_path / "l", right.bfloat16().float(), order=(1, 0), gap=2)
    assert rounds_to(stored(tmp_path / "r", right), left, BFLOAT16)
    doubled = backed(tmp_path / "d", right * 2, order=(1, 0))
    assert find_scale(doubled, stored(tmp_path / "r", right)) == 2.0
    flat = stored(tmp_path / "t", right.T.reshape(30, 20))
    assert find_scale(flat, doubled) is None


NUMBERS = st.lists(st.floats(2**-6, 1000, width=16), min_size=2, max_size=9)


@pytest.mark.slow
@given(st.sampled_from(NARROW), NUMBERS, st.floats(1.03, 50) | st.floats(-50, -0.01))
@settings(max_examples=60)
def test_any_product_has_a_factor(tmp_path_factory, dtype, numbers, factor):
    right = torch.tensor(numbers, dtype=dtype)
    left = product(right, factor)
    found = scale(tmp_path_factory.mktemp("scaled"), left, right)
    assert found == pytest.approx(factor, rel=2 * torch.finfo(dtype).eps)
    assert_explains(found, left, right)


@given(st.sampled_from(NARROW), st.integers(-3, 3), st.integers(2, 4), st.data())
@settings(max_examples=60)
def test_a_factor_explains_every_element(tmp_path_factory, dtype, power, count, data):
    """Whatever is named, few numbers of few bits and a factor by chance too."""
    number = st.integers(-9, 9).map(lambda n: n * 2.0**power)
    left, right = (
        torch.tensor(data.draw(st.lists(number, min_size=count, max_size=count)), dtype=dtype)
        for _ in range(2)
    )
    found = scale(tmp_path_factory.mktemp("chance"), left, right)
    if found is not None:
        assert_explains(found, left, right)


def assert_explains(factor: float, left: torch.Tensor, right: torch.Tensor) -> None:
    """Between the middles to the neighbours of each element lies its product."""
    middles = []
    for towards in (-torch.inf, torch.inf):
        if left.dtype == torch.float16:  # torch has no neighbours of these
            beside = torch.from_numpy(np.nextafter(left.numpy(), np.float16(towards)))
        else:
            beside = torch.nextafter(left, torch.tensor(towards, dtype=left.dtype))
        middles.append((left.double() + beside.double()) / 2)
    exact = right.double() * factor
    slack = exact.abs() * 1e-15
    assert bool(((middles[0] - slack <= exact) & (exact <= middles[1] + slack)).all())
