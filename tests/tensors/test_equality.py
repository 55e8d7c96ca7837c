"""Bit-equality of lazy tensors."""

import threading

import pytest
import torch

from ckpt_tool.common.errors import FormatError
from ckpt_tool.tensors.equality import Pair, locate_differences
from ckpt_tool.tensors.geometry import Box
from tests.support.backed import backed, distinct


def differences(*pairs: Pair, jobs: int = 2) -> dict:
    return locate_differences(pairs, jobs, lambda _: None)


def test_equal_bytes_in_different_layouts_are_equal(tmp_path):
    tensor = distinct((6, 4))
    left = backed(tmp_path / "l", tensor, [Box((r, 0), (2, 4)) for r in (0, 2, 4)])
    right = backed(tmp_path / "r", tensor, order=(1, 0), gap=3)
    assert differences(Pair("t", left, right)) == {}


@pytest.mark.parametrize("index", [0, 7, 23])
@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8, torch.int64, torch.bfloat16])
def test_the_first_differing_element_is_named(tmp_path, dtype, index):
    tensor = distinct((6, 4), dtype)
    other = tensor.clone()
    other.view(torch.uint8).flatten()[(index + 1) * tensor.element_size() - 1] ^= 1
    other.view(torch.uint8).flatten()[-1] ^= 2
    left, right = backed(tmp_path / "l", tensor), backed(tmp_path / "r", other, order=(1, 0))
    assert differences(Pair("t", left, right)) == {"t": index}


def test_bits_count_not_values(tmp_path):
    """-0.0 is not 0.0 here, and a NaN is itself."""
    nan = torch.tensor([torch.nan, 1.0])
    left, right = backed(tmp_path / "l", nan), backed(tmp_path / "r", nan)
    zero = backed(tmp_path / "z", torch.tensor([1.0, 0.0]))
    minus = backed(tmp_path / "m", torch.tensor([1.0, -0.0]))
    assert differences(Pair("nan", left, right), Pair("zero", zero, minus)) == {"zero": 1}


def test_many_pairs_each_under_its_label(tmp_path):
    base = backed(tmp_path / "base", distinct((50,)))
    pairs = []
    for n in range(40):
        tensor = distinct((50,))
        if n % 3 == 0:
            tensor[n] = -1.0
        pairs.append(Pair(n, base, backed(tmp_path / str(n), tensor)))
    for jobs in (1, 4):
        assert differences(*pairs, jobs=jobs) == {n: n for n in range(0, 40, 3)}


@pytest.mark.slow
def test_a_tensor_of_many_steps(tmp_path):
    """Longer than a task (64 MiB): the first difference counts, whichever thread finds one."""
    count = (80 << 20) // 8
    tensor = torch.arange(count)
    left = backed_whole(tmp_path / "l", tensor)
    tensor[5_000_000] = -5
    tensor[count - 1] = -1
    right = backed_whole(tmp_path / "r", tensor)
    told: list[int] = []
    assert locate_differences([Pair("t", left, right)], 2, told.append) == {"t": 5_000_000}
    assert differences(Pair("t", left, left)) == {}


def backed_whole(path, tensor):
    """As `backed`, without building the content in memory piece by piece."""
    lazy = backed(path, tensor[:1])
    path.write_bytes(b"\0" * 13 + tensor.numpy().tobytes())
    return lazy.__class__(
        tuple(tensor.shape),
        lazy.dtype,
        lazy.dtype,
        (lazy.chunks[0].__class__(Box((0,), tuple(tensor.shape)), lazy.chunks[0].region),),
    )


def test_progress_adds_up_to_the_bytes_of_one_side(tmp_path):
    lazy = backed(tmp_path / "t", distinct((300_001,)))
    told: list[int] = []
    lock = threading.Lock()

    def advance(amount: int) -> None:
        with lock:
            told.append(amount)

    locate_differences([Pair("a", lazy, lazy), Pair("b", lazy, lazy)], 2, advance)
    assert sum(told) == 2 * lazy.nbytes
    assert len(told) > 2


def test_progress_adds_up_where_all_differs(tmp_path):
    """Nobody reads on behind a difference, and the progress does not stop there."""
    left, right = (
        backed(tmp_path / name, distinct((300_001,)) + at) for at, name in enumerate("lr")
    )
    told: list[int] = []
    assert locate_differences([Pair("a", left, right)], 1, told.append) == {"a": 0}
    assert sum(told) == left.nbytes


def test_scalars_and_empty_tensors(tmp_path):
    scalar = backed(tmp_path / "s", torch.tensor(3.0))
    other = backed(tmp_path / "o", torch.tensor(4.0))
    empty = backed(tmp_path / "e", torch.empty(0, 3))
    found = differences(Pair("s", scalar, other), Pair("e", empty, empty), Pair("=", other, other))
    assert found == {"s": 0}
    assert differences() == {}


def test_a_truncated_side_is_an_error_not_a_difference(tmp_path):
    lazy = backed(tmp_path / "t", distinct((20,)))
    short = backed(tmp_path / "short", distinct((20,)))
    (tmp_path / "short").write_bytes((tmp_path / "short").read_bytes()[:-3])
    with pytest.raises(FormatError, match="short"):
        differences(Pair("t", lazy, short))
