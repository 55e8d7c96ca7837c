"""Products that a reader has looked up: they are of one format, and of one weight's factors."""

from itertools import permutations
from pathlib import Path

import pytest
import torch

from ckpt_tool.tensors.blocks import BlockReader, FileTable
from ckpt_tool.tensors.dtypes import BFLOAT16, FLOAT32, DType
from ckpt_tool.tensors.lazy import LazyTensor
from ckpt_tool.tensors.nibbles import unpack_fp4, unpack_int4, unpack_nvfp4
from ckpt_tool.tensors.rounding import CastErrors
from tests.support.backed import backed, same
from tests.tensors.test_nibbles import plain_nan, random_bytes

ROWS, COLUMNS = 5, 128


def make_all(folder: Path, dtype: DType) -> list[LazyTensor]:
    """Two weights of NVFP4, one of MXFP4, two of INT4, of the same codes."""
    raw = random_bytes((ROWS, COLUMNS // 2), 1)
    codes = backed(folder / "codes", raw)
    fp8 = backed(folder / "fp8", random_bytes((ROWS, 8), 2).view(torch.float8_e4m3fn))
    overs = [backed(folder / f"over{n}", torch.tensor(0.013 * n)) for n in (1, 2)]
    powers = backed(folder / "powers", random_bytes((ROWS, 4), 3))
    said = backed(folder / "said", torch.tensor([ROWS, COLUMNS]))
    words = backed(folder / "words", raw.view(torch.int32))
    halves = [
        backed(folder / f"halves{n}", (torch.arange(1, 21).reshape(ROWS, 4) / 77).to(kind))
        for n, kind in enumerate((torch.bfloat16, torch.float16))
    ]
    return [
        *(unpack_nvfp4(codes, fp8, over, dtype, is_divisor=False) for over in overs),
        unpack_fp4(codes, powers, dtype),
        *(unpack_int4(words, each, said, 32, dtype) for each in halves),
    ]


@pytest.mark.parametrize("start", [0, 1, 2])
def test_a_reader_takes_weights_in_any_order(tmp_path, start: int) -> None:
    """Into memory of any alignment, the second time round by what is known of errors."""
    weights = make_all(tmp_path, BFLOAT16)
    wanted = [plain_nan(each.read().bfloat16()) for each in make_all(tmp_path, FLOAT32)]
    memory = bytearray(start + weights[0].nbytes)
    with FileTable() as files:
        reader = BlockReader(files)
        for pair in permutations(range(len(weights)), 2):
            for number in pair:
                reader.read(weights[number], 0, ROWS * COLUMNS, memoryview(memory)[start:])
                found = torch.frombuffer(memory[start:], dtype=torch.bfloat16)
                assert same(plain_nan(found), wanted[number].flatten())


@pytest.mark.parametrize("odd", [float("nan"), float("inf")])
def test_what_is_no_number_hides_no_error(tmp_path, odd: float) -> None:
    """A factor that is not finite is beside one of which products are rounded."""
    factor = 1 + 2.0**-7
    scales = backed(tmp_path / "f", torch.tensor([[odd, factor]]).bfloat16())
    words = backed(tmp_path / "w", torch.full((1, 8), -1, dtype=torch.int32))  # 7, each
    said = backed(tmp_path / "n", torch.tensor([1, 64]))
    errors = CastErrors()
    with FileTable() as files:
        lazy = unpack_int4(words, scales, said, 32, BFLOAT16)
        BlockReader(files, errors).read(lazy, 0, 64, memoryview(bytearray(128)))
    exact = torch.tensor(7 * factor).double()
    assert errors.largest("int32", "bfloat16") == (exact - exact.bfloat16().double()).abs() > 0


def test_what_is_looked_up_is_a_cast_without_error(tmp_path) -> None:
    """Every product of FP4 and a power of two that is a bfloat16 at all."""
    codes, powers = random_bytes((9, 64), 4), random_bytes((9, 4), 5, 230)
    lazy = unpack_fp4(backed(tmp_path / "c", codes), backed(tmp_path / "p", powers | 16), BFLOAT16)
    errors = CastErrors()
    with FileTable() as files:
        BlockReader(files, errors).read(lazy, 0, lazy.numel, memoryview(bytearray(lazy.nbytes)))
    assert errors.listed() == (("uint8", "bfloat16", 0.0),)


def test_that_one_number_became_infinite_hides_no_other(tmp_path) -> None:
    """7 times this factor is finite in float32, and rounded halfway up, each time it is read."""
    factor = 2.0**125 * (1 + 18 / 128)
    assert torch.tensor(7 * factor).isfinite()
    scales = backed(tmp_path / "f", torch.full((1, 1), factor).bfloat16())
    words = backed(tmp_path / "w", torch.full((1, 4), -1, dtype=torch.int32))
    said = backed(tmp_path / "n", torch.tensor([1, 32]))
    lazy = unpack_int4(words, scales, said, 32, BFLOAT16)
    with FileTable() as files:
        reader = BlockReader(files)
        for _ in range(3):
            reader.read(lazy, 0, 32, memoryview(bytearray(64)))
            assert reader.take_spoilt()
