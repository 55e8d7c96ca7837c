"""Casts against torch, bit for bit, and the error they report against brute force."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ckpt_tool.tensors.casts import STEP, Caster
from ckpt_tool.tensors.dtypes import BFLOAT16, BY_NAME, CASTABLE, FLOAT16, FLOAT32, FLOAT64, DType

LOW_HALVES = (0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF)
QUIET_NAN = {BFLOAT16: 0x7FC0, FLOAT16: 0x7E00}


def torch_dtype(dtype: DType) -> torch.dtype:
    return getattr(torch, dtype.name)


def cast(tensor: torch.Tensor, target: DType, floor: float = 0.0) -> tuple[torch.Tensor, float]:
    source = BY_NAME[str(tensor.dtype).removeprefix("torch.")]
    carrier = tensor.view(torch.uint8).numpy().view(source.carrier)
    out = np.full(len(carrier), 0x5A, target.carrier)
    error = Caster().cast(carrier, source, out, target, floor)
    return torch.from_numpy(out.view(np.uint8)).view(torch_dtype(target)), error


def bits(tensor: torch.Tensor) -> np.ndarray:
    return tensor.view(torch.uint8).numpy().view(f"<u{tensor.element_size()}")


def assert_as_torch(tensor: torch.Tensor, target: DType) -> torch.Tensor:
    """Every bit as torch's; NaN for NaN."""
    found, _ = cast(tensor, target)
    expected = tensor.to(torch_dtype(target))
    nan = tensor.isnan().numpy()
    assert np.array_equal(found.isnan().numpy(), nan)
    assert np.array_equal(bits(found)[~nan], bits(expected)[~nan])
    return found


def largest_error(tensor: torch.Tensor, rounded: torch.Tensor) -> float:
    """Brute force, in float64: what is finite may become infinite, NaN and infinity count not."""
    exact, now = tensor.double(), rounded.double()
    errors = (exact - now).abs()[exact.isfinite()]
    return errors.max().item() if len(errors) else 0.0


@pytest.fixture(scope="module")
def singles() -> torch.Tensor:
    """float32 with every upper half of the bits."""
    high = np.arange(1 << 16, dtype=np.uint32) << 16
    words = np.concatenate([high | np.uint32(low) for low in LOW_HALVES])
    return torch.from_numpy(words.view(np.float32))


def all_halves(dtype: torch.dtype) -> torch.Tensor:
    return torch.from_numpy(np.arange(1 << 16, dtype=np.uint16).view(np.int16)).view(dtype)


def doubles() -> torch.Tensor:
    """float64 around everything where rounding to 32 or 16 bits turns."""
    low = np.array([0, 1, 0x0FFFFFFF, 0x10000000, 0x10000001, 0x1FFFFFFF], np.uint64)
    rng = np.random.default_rng(7)
    any_bits = rng.integers(0, 1 << 64, 50_000, np.uint64).view(np.float64)
    near = all_halves(torch.bfloat16).double().numpy()
    half = all_halves(torch.float16).double().numpy()
    middles = np.concatenate([near[:-1] / 2 + near[1:] / 2, half[:-1] / 2 + half[1:] / 2])
    base = np.concatenate([near, half, middles]).view(np.uint64)
    turned = np.concatenate([base ^ bit for bit in low]).view(np.float64)
    return torch.from_numpy(np.concatenate([any_bits, turned]))


def test_float32_to_bfloat16_is_exhaustively_as_torch(singles):
    found = assert_as_torch(singles, BFLOAT16)
    assert set(bits(found)[singles.isnan().numpy()].tolist()) == {0x7FC0}


def test_float32_to_float16_is_exhaustively_as_torch(singles):
    found = assert_as_torch(singles, FLOAT16)
    assert set(bits(found)[singles.isnan().numpy()].tolist()) == {0x7E00}


@given(st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=50))
def test_random_float32_bits_are_as_torch(words):
    tensor = torch.from_numpy(np.array(words, np.uint32).view(np.float32))
    assert_as_torch(tensor, BFLOAT16)
    assert_as_torch(tensor, FLOAT16)


@pytest.mark.parametrize("target", [FLOAT32, FLOAT64])
@pytest.mark.parametrize("source", [torch.bfloat16, torch.float16])
def test_widening_is_exhaustively_as_torch_and_exact(source, target):
    tensor = all_halves(source)
    assert_as_torch(tensor, target)
    assert cast(tensor, target)[1] == 0.0


def test_float32_to_float64_is_exact(singles):
    assert_as_torch(singles, FLOAT64)
    assert cast(singles, FLOAT64)[1] == 0.0


@pytest.mark.parametrize(
    ("source", "target"), [(torch.bfloat16, FLOAT16), (torch.float16, BFLOAT16)]
)
def test_from_one_half_precision_to_the_other(source, target):
    found = assert_as_torch(all_halves(source), target)
    nan = all_halves(source).isnan().numpy()
    assert set(bits(found)[nan].tolist()) == {QUIET_NAN[target]}


@pytest.mark.parametrize("target", [FLOAT32, BFLOAT16, FLOAT16])
def test_float64_is_as_torch(target):
    assert_as_torch(doubles(), target)


@pytest.mark.parametrize(
    ("values", "target", "error"),
    [
        ([1.0, -2.5, 0.0, math.inf, -math.inf, math.nan], BFLOAT16, 0.0),
        ([1.0 + 2**-9], BFLOAT16, 2**-9),
        ([-1.0 - 2**-8], BFLOAT16, 2**-8),  # a tie, to even
        ([1.0 + 3 * 2**-8], BFLOAT16, 2**-8),  # a tie, to even, upwards
        ([1.0 + 2**-9, 256.0 + 0.5, 3.0], BFLOAT16, 0.5),
        ([2.0**-149], BFLOAT16, 2.0**-149),  # the smallest subnormal is lost
        ([2.0**-133 + 2.0**-140], BFLOAT16, 2.0**-140),
        ([3.4e38, 3.4028234663852886e38], BFLOAT16, math.inf),
        ([1.0 + 2**-12], FLOAT16, 2**-12),
        ([2.0**-25], FLOAT16, 2.0**-25),
        ([2.0**-24 + 2.0**-26], FLOAT16, 2.0**-26),
        ([65519.0], FLOAT16, 15.0),
        ([65520.0], FLOAT16, math.inf),
        ([65504.0, math.inf, math.nan], FLOAT16, 0.0),
    ],
)
def test_hand_computed_errors(values, target, error):
    assert cast(torch.tensor(values), target)[1] == error


@pytest.mark.parametrize("exponent", [-149, -140, -130, -126, -30, -24, -14, 0, 15, 100, 126])
@pytest.mark.parametrize("target", [BFLOAT16, FLOAT16])
def test_the_error_is_exact_at_every_scale(exponent, target):
    generator = torch.Generator().manual_seed(exponent + 200)
    tensor = torch.randn(1000, generator=generator).double() * 2.0**exponent
    tensor = tensor.float()
    rounded = tensor.to(torch_dtype(target))
    assert cast(tensor, target)[1] == largest_error(tensor, rounded)


@given(st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=20))
def test_the_error_is_exact_for_random_bits(words):
    tensor = torch.from_numpy(np.array(words, np.uint32).view(np.float32))
    for target in (BFLOAT16, FLOAT16):
        rounded = tensor.to(torch_dtype(target))
        assert cast(tensor, target)[1] == largest_error(tensor, rounded)


@pytest.mark.parametrize("target", [FLOAT32, BFLOAT16, FLOAT16])
def test_the_error_from_float64_is_that_of_the_whole_cast(target):
    """Rounding twice adds two errors up: the larger of them is not the whole."""
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        tensor = torch.randn(2000, dtype=torch.float64, generator=generator)
        rounded = tensor.to(torch_dtype(target))
        assert cast(tensor, target)[1] == largest_error(tensor, rounded)


def test_float64_beyond_float32_overflows():
    assert cast(torch.tensor([1e300, 1.0], dtype=torch.float64), FLOAT32)[1] == math.inf


@pytest.mark.parametrize("target", [BFLOAT16, FLOAT16])
@pytest.mark.parametrize("scale", [1e-40, 1e-37, 1e-3, 1.0, 1e30])
def test_a_floor_spares_work_but_changes_no_larger_error(target, scale):
    generator = torch.Generator().manual_seed(5)
    tensor = (torch.randn(500, dtype=torch.float64, generator=generator) * scale).float()
    exact = cast(tensor, target)[1]
    assert exact > 0
    below, above = math.nextafter(exact, 0), math.nextafter(exact, math.inf)
    for floor in (0.0, exact / 1000, exact / 2, below, exact):
        found, error = cast(tensor, target, floor)
        assert error == exact
        assert torch.equal(found, tensor.to(torch_dtype(target)))
    for floor in (above, exact * 2, math.inf):
        assert cast(tensor, target, floor)[1] == floor


@given(st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=20), st.floats(0, 1e39))
def test_the_result_is_the_larger_of_floor_and_error(words, floor):
    tensor = torch.from_numpy(np.array(words, np.uint32).view(np.float32))
    exact = largest_error(tensor, tensor.to(torch.bfloat16))
    assert cast(tensor, BFLOAT16, floor)[1] == max(floor, exact)


def test_long_inputs_are_cast_in_steps_with_one_largest_error():
    """The largest error is in the middle step; small ones before and after must not hide it."""
    tensor = torch.arange(1, 2 * STEP + 12, dtype=torch.float32) / 3
    tensor[STEP + 5] = 2.0**30 + 2.0**21
    found, error = cast(tensor, BFLOAT16)
    assert np.array_equal(bits(found), bits(tensor.to(torch.bfloat16)))
    assert error == 2.0**21 == largest_error(tensor, tensor.to(torch.bfloat16))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("target", sorted(CASTABLE, key=str))
@pytest.mark.parametrize("source", sorted(CASTABLE, key=str))
def test_no_bits_make_numpy_warn(source, target):
    """Signalling NaNs, overflow: a warning would be printed amid people's progress bars."""
    if source == target:
        return
    size = source.itemsize
    carrier = np.arange(1 << 16, dtype=f"<u{size}") << np.uint8(8 * size - 16)
    out = np.empty(len(carrier), target.carrier)
    Caster().cast(carrier, source, out, target, 0.0)


def test_nothing_casts_to_nothing():
    assert cast(torch.empty(0), BFLOAT16)[1] == 0.0


def test_a_caster_is_used_again_for_other_types():
    caster = Caster()
    for source in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
        tensor = torch.arange(1, 40).to(source)
        dtype = BY_NAME[str(source).removeprefix("torch.")]
        out = np.zeros(39, "<u2")
        other = FLOAT16 if source == torch.bfloat16 else BFLOAT16
        caster.cast(tensor.view(torch.uint8).numpy().view(dtype.carrier), dtype, out, other, 0.0)
        assert np.array_equal(out, bits(tensor.to(torch_dtype(other))))
