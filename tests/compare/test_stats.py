"""Differences of two tensors against brute force in float64."""

import threading
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ckpt_tool.common.errors import FormatError
from ckpt_tool.compare.measure import measure
from ckpt_tool.compare.stats import Stats, Tolerance
from ckpt_tool.tensors.equality import Pair
from ckpt_tool.tensors.geometry import Box
from tests.support.backed import backed, distinct, raw
from tests.support.measuring import EXACT, compared, normal, stored, told

BLOCK = 1 << 17
SPAN = 1 << 23
FLOATS = [torch.float64, torch.float32, torch.float16, torch.bfloat16]


def close(value: float | None):
    """Sums may run in any order."""
    return None if value is None else pytest.approx(value, rel=1e-9, abs=1e-300)


def ranks(tensor: torch.Tensor) -> np.ndarray:
    """Floats by their place in the order of all floats; both zeros have one."""
    bits = np.frombuffer(raw(tensor), f"<i{tensor.element_size()}").astype(np.int64)
    return np.where(bits < 0, -(bits & (1 << 8 * tensor.element_size() - 1) - 1), bits)


@dataclass
class Brute:
    """Every number of :class:`Stats`, from whole arrays."""

    a: torch.Tensor
    b: torch.Tensor
    tolerance: Tolerance = EXACT

    def check(self, found: Stats) -> None:
        x, y = (t.detach().double().flatten().numpy() for t in (self.a, self.b))
        if self.a.dtype == self.b.dtype:
            size = self.a.element_size()
            bits = [np.frombuffer(raw(t), f"<u{size}") for t in (self.a, self.b)]
            different = bits[0] != bits[1]
        else:
            different = (x != y) & ~(np.isnan(x) & np.isnan(y))
        finite = np.isfinite(x) & np.isfinite(y)
        p, q = x[finite], y[finite]
        d = np.abs(p - q)
        far = ~finite
        far[finite] = d > self.tolerance.atol + self.tolerance.rtol * np.abs(q)
        outside = different if self.tolerance.exact else different & far
        at = int(np.argmax(different)) if different.any() else None
        assert found.num_elements == len(x)
        assert found.num_different == np.count_nonzero(different)
        assert found.num_outside == np.count_nonzero(outside)
        assert found.first_index == at
        if at is not None:
            assert np.array_equal(found.first_values, (x[at], y[at]), equal_nan=True)
        assert found.num_nan == (np.isnan(x).sum(), np.isnan(y).sum())
        assert found.num_inf == (np.isinf(x).sum(), np.isinf(y).sum())
        assert found.max_abs == d.max(initial=0.0)
        assert found.num_unlike == np.count_nonzero(different & ~finite)
        sizes = np.abs(q)
        assert found.max_rel == (d[sizes > 0] / sizes[sizes > 0]).max(initial=0.0)
        assert found.mean_abs == close(d.sum() / max(len(x), 1))
        norms = [np.linalg.norm(v) for v in (p, q, d)]
        cosine = (p * q).sum() / norms[0] / norms[1] if norms[0] * norms[1] else None
        assert found.cosine == close(cosine)
        relative = norms[2] / norms[1] if norms[1] else None
        assert found.relative_norm == close(relative)
        unlike = found.num_unlike or (relative is None and norms[2])
        assert found.distance == close(np.inf if unlike else relative or 0.0)
        powers, counts = np.unique(np.frexp(d[d > 0])[1] - 1, return_counts=True)
        if self.a.dtype == self.b.dtype and self.a.dtype in FLOATS[1:] and at is not None:
            steps = np.abs(ranks(self.a) - ranks(self.b))[finite]
            assert found.max_ulp == steps.max(initial=0)
        assert found.exponents == dict(zip(powers.tolist(), counts.tolist(), strict=True))


def disturbed(tensor: torch.Tensor, step: int, scale: float = 1e-3) -> torch.Tensor:
    """Every `step`-th element moved by its own, different amount."""
    out = tensor.clone().flatten()
    moved = out[step - 1 :: step]
    factors = 1 + scale * torch.linspace(1, 2, len(moved), dtype=torch.float64)
    out[step - 1 :: step] = (moved.double() * factors).to(out.dtype)
    return out.reshape(tensor.shape)


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 9, BLOCK - 1, BLOCK + 1, 2 * BLOCK + 7])
def test_float32_of_several_blocks(tmp_path, count):
    right = normal(count, seed=count)
    cases = [(1, EXACT), (3, Tolerance(1e-5, 1.4e-3)), (count, Tolerance(atol=9)), (2, EXACT)]
    for step, tolerance in cases:
        left = disturbed(right, step)
        Brute(left, right, tolerance).check(compared(tmp_path, left, right, tolerance))


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_every_16_bit_pattern_of_the_left_against_another(tmp_path, dtype):
    """NaN, infinities, zeros and subnormal numbers on both sides."""
    halves = torch.float16 if dtype == torch.float16 else torch.bfloat16
    codes = torch.arange(1 << 16, dtype=torch.int32).to(torch.int16)
    order = torch.randperm(1 << 16, generator=torch.Generator().manual_seed(1))
    left, right = codes.view(halves).to(dtype), codes[order].view(halves).to(dtype)
    for tolerance in (EXACT, Tolerance(0.5, 0.25)):
        Brute(left, right, tolerance).check(compared(tmp_path, left, right, tolerance))


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.int8, torch.uint8], ids=str)
def test_integers(tmp_path, dtype):
    right = torch.arange(120).to(dtype)
    left = right.clone()
    left[7], left[110] = 120, 121
    stats = compared(tmp_path, left, right)
    Brute(left, right).check(stats)
    assert (stats.num_different, stats.first_values, stats.max_ulp) == (2, (120.0, 7.0), None)


@pytest.mark.slow
@given(st.sampled_from(FLOATS), st.integers(1, 12), st.sampled_from([0.0, 0.5]), st.data())
@settings(max_examples=60)
def test_any_bits_of_floats(tmp_path_factory, dtype, count, rtol, data):
    words = st.lists(st.floats(width=32), min_size=count, max_size=count)
    left, right = (torch.tensor(data.draw(words), dtype=torch.float64).to(dtype) for _ in range(2))
    folder, tolerance = tmp_path_factory.mktemp("any"), Tolerance(rtol=rtol)
    Brute(left, right, tolerance).check(compared(folder, left, right, tolerance))


def test_dtypes_that_differ_are_compared_by_value(tmp_path):
    right = torch.cat([normal(300, seed=3), torch.tensor([torch.nan, torch.inf, -0.0])])
    left = right.bfloat16()
    stats = compared(tmp_path, left, right)
    Brute(left, right).check(stats)
    assert stats.num_different == (left[:300].float() != right[:300]).sum() > 250
    assert stats.max_ulp is None
    whole = torch.arange(100, dtype=torch.int64)
    assert compared(tmp_path, whole, whole.float()).num_different == 0


@pytest.mark.slow
def test_a_task_is_not_the_end_of_a_tensor(tmp_path):
    """Two tasks; the first difference is in the second block, most are in the second task."""
    right = 1 + torch.arange(SPAN + 5) % 4096 / 4096
    left = right.clone()
    left[BLOCK + 3] += 0.5
    left[SPAN - 2 :] += 0.25
    a, b = stored(tmp_path / "a", left), stored(tmp_path / "b", right)
    amounts: list[int] = []
    lock = threading.Lock()

    def advance(amount: int) -> None:
        with lock:
            amounts.append(amount)

    stats = measure([Pair("t", a, b)], 2, Tolerance(atol=0.3), advance)["t"]
    assert (stats.num_elements, stats.num_different, stats.num_outside) == (SPAN + 5, 8, 1)
    assert (stats.first_index, stats.max_abs, stats.max_ulp) == (BLOCK + 3, 0.5, 1 << 22)
    assert (stats.sum_abs, stats.exponents) == (2.25, {-1: 1, -2: 7})
    assert sum(amounts) == a.nbytes
    assert len(amounts) == 2


@pytest.mark.slow
def test_the_number_of_jobs_changes_nothing(tmp_path):
    pairs = []
    for index in range(4):
        right = normal(BLOCK + 10 * index + 1, seed=index)
        left = disturbed(right, index + 1)
        names = (tmp_path / f"a{index}", tmp_path / f"b{index}")
        pairs.append(Pair(index, stored(names[0], left), stored(names[1], right)))
    one, many = (measure(pairs, jobs, EXACT, lambda _: None) for jobs in (1, 4))
    assert one == many
    assert [one[index].num_different for index in range(4)] == [
        (BLOCK + 10 * index + 1) // (index + 1) for index in range(4)
    ]


def test_layouts_do_not_matter(tmp_path):
    right = normal(40, 30, seed=2)
    left = disturbed(right, 7)
    pieces = [Box((row, 0), (8, 30)) for row in range(0, 40, 8)]
    a, b = backed(tmp_path / "a", left, pieces), backed(tmp_path / "b", right, None, (1, 0), 2)
    found = told(a, b)
    Brute(left, right).check(found)
    assert found.digests == compared(tmp_path, left, right).digests


def test_casts_are_compared_in_the_dtype_of_the_cast(tmp_path):
    right = normal(500, seed=4)
    left = disturbed(right.bfloat16(), 5, 0.1)
    cast = stored(tmp_path / "r", right).to(stored(tmp_path / "l", left).dtype)
    found = told(stored(tmp_path / "l", left), cast)
    Brute(left, right.bfloat16()).check(found)
    assert found.digests == compared(tmp_path, left, right.bfloat16()).digests


def test_empty_tensors_and_scalars(tmp_path):
    stats = compared(tmp_path, torch.empty(0, 3), torch.empty(0, 3))
    assert (stats.num_elements, stats.num_different, stats.mean_abs) == (0, 0, 0.0)
    assert (stats.first_index, stats.cosine, stats.relative_norm) == (None, None, None)
    assert stats.digests[0] == stats.digests[1] != ""
    scalars = torch.tensor(3.0), torch.tensor(-4.0)
    stats = compared(tmp_path, *scalars)
    Brute(*scalars).check(stats)
    assert (stats.first_index, stats.max_rel, stats.cosine) == (0, 1.75, -1.0)


def test_a_truncated_file_is_an_error(tmp_path):
    left, right = (stored(tmp_path / name, distinct((9,))) for name in "ab")
    (tmp_path / "b").write_bytes((tmp_path / "b").read_bytes()[:-1])
    with pytest.raises(FormatError, match="b: ends at byte"):
        told(left, right)
