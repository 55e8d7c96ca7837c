"""CRC-32 of runs of bytes put together, against zlib's of the whole."""

import random
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckpt_tool.common.crc import combine, combine_plainly, crc32

both = pytest.mark.parametrize("combine", [combine, combine_plainly], ids=["library", "plain"])


@given(st.binary(max_size=300))
def test_the_sum_is_that_of_zip(data):
    assert crc32(data) == zlib.crc32(data)


@both
@given(st.binary(max_size=300), st.binary(max_size=300))
def test_two_runs_are_combined(combine, first, second):
    whole = zlib.crc32(first + second)
    assert combine(zlib.crc32(first), zlib.crc32(second), len(second)) == whole


@both
@given(st.lists(st.binary(max_size=40), max_size=12))
def test_many_runs_are_combined(combine, parts):
    total = 0
    for part in parts:
        total = combine(total, zlib.crc32(part), len(part))
    assert total == zlib.crc32(b"".join(parts))


@both
@pytest.mark.parametrize("length", [1, 255, 256, 65_535, (1 << 20) + 1, (1 << 22) + 3])
def test_long_runs_are_combined(combine, length):
    second = random.Random(length).randbytes(length)
    whole = zlib.crc32(b"begin" + second)
    assert combine(zlib.crc32(b"begin"), zlib.crc32(second), length) == whole


sums_of_any = st.integers(0, (1 << 32) - 1)
lengths = st.integers(0, 1 << 50)  # more than fits in memory


@both
@given(st.tuples(sums_of_any, sums_of_any, sums_of_any), lengths, lengths)
def test_it_does_not_matter_which_runs_are_combined_first(combine, sums, size, rest):
    first, second, third = sums
    one = combine(combine(first, second, size), third, rest)
    assert one == combine(first, combine(second, third, rest), size + rest)
