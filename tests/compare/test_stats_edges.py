"""Numbers of a comparison that are easily wrong: signs of zero, NaN, ULP, digests, single bits."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ckpt_tool.compare.measure import measure
from ckpt_tool.compare.stats import Tolerance
from ckpt_tool.tensors.dtypes import BFLOAT16, BY_NAME, FLOAT32
from ckpt_tool.tensors.equality import Pair, locate_differences
from tests.support.backed import distinct, raw
from tests.support.measuring import compared, normal, of_bytes, patterns, stored, told

SPAN = 1 << 23


@pytest.mark.slow
@given(
    st.sampled_from(sorted(BY_NAME)),
    st.lists(st.integers(1, 5), max_size=3).map(tuple),
    st.data(),
)
@settings(max_examples=100)
def test_one_flipped_bit_is_one_difference_at_its_place(tmp_path_factory, name, shape, data):
    dtype = BY_NAME[name]
    folder, count = tmp_path_factory.mktemp("bit"), math.prod(shape)
    content = bytearray(patterns(count, dtype))
    right = of_bytes(folder / "right", content, dtype, shape)
    index = data.draw(st.integers(0, count - 1))
    bit = data.draw(st.integers(0, 8 * dtype.itemsize - 1))
    content[index * dtype.itemsize + bit // 8] ^= 1 << bit % 8
    pair = Pair("t", of_bytes(folder / "left", content, dtype, shape), right)
    stats = told(pair.left, pair.right)
    assert (stats.num_different, stats.num_outside, stats.first_index) == (1, 1, index)
    assert stats.digests[0] != stats.digests[1]
    assert locate_differences([pair], 2, lambda _: None) == {"t": index}


@pytest.mark.parametrize("seam", [1 << 17, SPAN])
@pytest.mark.parametrize("side", [-1, 0])
def test_one_flipped_bit_on_either_side_of_a_seam(tmp_path, seam, side):
    index = seam + side
    tensor = torch.arange(seam + 1).to(torch.int16)
    right = stored(tmp_path / "right", tensor)
    tensor[index] ^= 1 << 14
    left = stored(tmp_path / "left", tensor)
    stats = told(left, right)
    assert (stats.num_different, stats.first_index) == (1, index)
    assert stats.max_abs == 2**14


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("steps", [1, 2, 17])
def test_ulp_are_steps_between_neighbours(tmp_path, dtype, steps):
    right = torch.tensor([1.0, -2.0, 3.0, 0.0, 500.0], dtype=dtype)
    left = right.clone()
    bits = left.view(torch.int16 if dtype.itemsize == 2 else torch.int32)
    bits[2] -= steps
    bits[0] += 1
    stats = compared(tmp_path, left, right)
    assert stats.max_ulp == steps
    both = torch.tensor([math.inf, torch.nan, 1.0], dtype=dtype)
    assert compared(tmp_path, both, both.flip(0)).max_ulp == 0  # not finite: not counted


def test_ulp_are_counted_across_zero(tmp_path):
    smallest = torch.tensor([2.0**-149, -0.0])
    assert compared(tmp_path, smallest, -3 * smallest).max_ulp == 4


def test_ulp_of_float64(tmp_path):
    right = torch.tensor([1.0, -3.0, 5.0], dtype=torch.float64)
    left = right.clone()
    left[1] = torch.nextafter(right[1], torch.tensor(0.0, dtype=torch.float64))
    assert compared(tmp_path, left, right).max_ulp == 1


def test_ulp_of_equal_tensors_are_not_known(tmp_path):
    assert compared(tmp_path, normal(9), normal(9)).max_ulp is None


def test_zeros_of_different_sign_differ_in_bits_and_by_no_amount(tmp_path):
    left, right = torch.tensor([1.0, -0.0, 2.0]), torch.tensor([1.0, 0.0, 2.0])
    exact = compared(tmp_path, left, right)
    assert (exact.num_different, exact.num_outside, exact.first_index) == (1, 1, 1)
    assert (exact.max_abs, exact.max_rel, exact.max_ulp, exact.exponents) == (0.0, 0.0, 0, {})
    lenient = compared(tmp_path, left, right, Tolerance(atol=1e-30))
    assert (lenient.num_different, lenient.num_outside) == (1, 0)
    other = compared(tmp_path, left, right.double())
    assert other.num_different == 0  # by value, where the dtypes differ


def test_nans_of_different_bits_differ_but_not_under_a_cast(tmp_path):
    nans = np.array([0x7FC00000, 0x7FC00001, 0x3F800000], "<u4"), [0xFFC00000, 0x7FC00001, 0]
    left = of_bytes(tmp_path / "left", nans[0].tobytes(), FLOAT32, (3,))
    right = of_bytes(tmp_path / "right", np.array(nans[1], "<u4").tobytes(), FLOAT32, (3,))
    stats = told(left, right)
    assert (stats.num_different, stats.first_index, stats.num_nan) == (2, 0, (2, 2))
    assert told(left, right, Tolerance(1e3, 1e3)).num_outside == 1  # a NaN is close to nothing
    halves = of_bytes(
        tmp_path / "h", np.array([0xFFC1, 0x7FC0, 0], "<u2").tobytes(), BFLOAT16, (3,)
    )
    for pair in ((left.to(BFLOAT16), halves), (halves, right.to(BFLOAT16)), (halves, right)):
        assert told(*pair).num_different == (pair[0] is not halves)


def test_a_nan_or_infinity_on_one_side_is_outside_any_tolerance(tmp_path):
    left = torch.tensor([torch.nan, 1.0, torch.inf, -torch.inf, torch.inf])
    right = torch.tensor([1.0, torch.nan, 2.0, torch.inf, torch.inf])
    stats = compared(tmp_path, left, right, Tolerance(1e30, 1e3))
    assert (stats.num_different, stats.num_outside, stats.first_index) == (4, 4, 0)
    assert (stats.num_nan, stats.num_inf) == ((1, 1), (3, 2))
    assert (stats.max_abs, stats.squares) == (0.0, (0.0, 0.0, 0.0))


def test_a_complex_element_differs_where_either_part_does(tmp_path):
    right = torch.tensor([1 + 2j, 3 + 4j, 5 + 2j], dtype=torch.complex64)
    left = torch.tensor([1 + 2j, 3.5 + 4j, 5 + 6j], dtype=torch.complex64)
    stats = compared(tmp_path, left, right, Tolerance(atol=1.0))
    assert (stats.num_elements, stats.num_different, stats.num_outside) == (3, 2, 1)
    assert (stats.first_index, stats.max_abs, stats.exponents) == (1, 4.0, {-1: 1, 2: 1})


def test_the_first_values_of_complex_elements_are_those_that_differ(tmp_path):
    right = torch.tensor([1 + 2j, 3 + 4j], dtype=torch.complex64)
    left = torch.tensor([1 + 2j, 3 + 9j], dtype=torch.complex64)
    one, other = compared(tmp_path, left, right).first_values
    assert one != other


def test_a_complex_tensor_and_a_real_one(tmp_path):
    right = torch.tensor([1.0, 3.0])
    stats = compared(tmp_path, torch.tensor([1 + 0j, 3 + 4j], dtype=torch.complex64), right)
    assert (stats.num_elements, stats.num_different, stats.first_index) == (2, 1, 1)


def test_a_nan_beside_an_equal_part_is_equal_to_a_real_nan(tmp_path):
    nan = torch.tensor([torch.nan, torch.nan])
    left = torch.complex(nan, torch.tensor([5.0, 0.0]))
    assert compared(tmp_path, left, nan).num_different == 1


def test_the_direction_of_a_tolerance(tmp_path):
    """Relative to the reference, and the bound itself is close."""
    left, right = torch.tensor([1.0, 3.0, 7.0]), torch.tensor([2.0, 2.0, 4.0])
    assert compared(tmp_path, left, right, Tolerance(rtol=0.5)).num_outside == 1
    assert compared(tmp_path, right, left, Tolerance(rtol=0.5)).num_outside == 1
    assert compared(tmp_path, left, right, Tolerance(rtol=0.75)).num_outside == 0
    assert compared(tmp_path, left, right, Tolerance(atol=1.0)).num_outside == 1


def test_integers_of_64_bits_are_not_close_because_float64_cannot_tell_them_apart(tmp_path):
    left, right = torch.tensor([2**60 + 1, 5]), torch.tensor([2**60, 5])
    assert compared(tmp_path, left, right, Tolerance(atol=0.5)).num_outside == 1


@pytest.mark.slow
@given(st.binary(min_size=1, max_size=6), st.data())
@settings(max_examples=60)
def test_digests_are_equal_where_the_bytes_are(tmp_path_factory, content, data):
    size = len(content)
    other = data.draw(st.one_of(st.just(content), st.binary(min_size=size, max_size=size)))
    folder, dtype = tmp_path_factory.mktemp("digests"), BY_NAME["uint8"]
    left = of_bytes(folder / "left", content, dtype, (size,))
    right = of_bytes(folder / "right", other, dtype, (size,))
    digests = told(left, right).digests
    assert (digests[0] == digests[1]) == (content == other)
    assert told(right, left).digests == digests[::-1]


def test_digests_tell_the_order_of_blocks(tmp_path):
    tensor = distinct((3 << 17,))
    blocks = tensor.reshape(3, -1)
    digests = compared(tmp_path, tensor, blocks[[0, 2, 1]].flatten()).digests
    assert digests[0] != digests[1]


def test_float64_beyond_the_squares_range(tmp_path):
    """Squares of 1e200 overflow: an angle that is not known must not pass for none at all."""
    left = torch.tensor([1e200, 2e200], dtype=torch.float64)
    right = torch.tensor([1e200, -2e200], dtype=torch.float64)
    cosine = compared(tmp_path, left, right).cosine
    assert cosine is None or cosine == pytest.approx(-0.6)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "dtype",
    [
        torch.float64,
        torch.float32,
        torch.float16,
    ],
    ids=str,
)
def test_extreme_numbers_make_numpy_warn_of_nothing(tmp_path, dtype):
    info = torch.finfo(dtype)
    left = torch.tensor([info.max, -info.max, 0.0, torch.inf, torch.nan], dtype=dtype)
    right = torch.tensor([-info.max, info.tiny, 1.0, -torch.inf, 2.0], dtype=dtype)
    stats = compared(tmp_path, left, right)
    assert (stats.num_different, stats.num_nan, stats.num_inf) == (5, (1, 0), (1, 1))


def test_pairs_keep_their_labels(tmp_path):
    pairs = []
    for index in range(5):
        right = normal(20 + index, seed=index)
        left = right.clone()
        left[index] += 1
        sides = stored(tmp_path / f"a{index}", left), stored(tmp_path / f"b{index}", right)
        pairs.append(Pair(("label", index), *sides))
    found = measure(pairs, 3, Tolerance(), lambda _: None)
    assert {label: stats.first_index for label, stats in found.items()} == {
        ("label", index): index for index in range(5)
    }
    assert raw(pairs[0].right.read()) == raw(normal(20, seed=0))


def test_what_is_no_number_on_one_side_only_is_counted(tmp_path):
    nan, inf = math.nan, math.inf
    left = torch.tensor([nan, nan, inf, -inf, inf, 1.0, nan, 2.0])
    right = torch.tensor([1.0, nan, 1.0, inf, inf, -inf, inf, 2.5])
    stats = compared(tmp_path, left, right)
    assert (stats.num_nan_alone, stats.num_inf_alone, stats.num_unlike) == (2, 3, 5)
    assert (stats.num_nan, stats.num_inf) == ((3, 1), (3, 4))
    assert stats.max_abs == 0.5  # of what is finite on both sides
    pair = torch.view_as_complex(torch.stack((left, right), 1))
    assert compared(tmp_path, pair, pair.flip(0)).num_nan_alone == 4
