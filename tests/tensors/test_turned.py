"""Matrices that are turned: by hand, against torch, any part of them, and what they are made of."""

import tempfile
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from queue import SimpleQueue

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from ckpt_tool.common.threads import Threads
from ckpt_tool.tensors import strips, turned
from ckpt_tool.tensors.blocks import BlockReader, FileTable
from ckpt_tool.tensors.dtypes import BFLOAT16, FLOAT16, FLOAT32
from ckpt_tool.tensors.lazy import LazyTensor
from ckpt_tool.tensors.nibbles import unpack_mxfp4, unpack_nvfp4
from ckpt_tool.tensors.repeated import repeat
from ckpt_tool.tensors.rounding import CastErrors
from ckpt_tool.tensors.turned import Pairs, turn
from tests.support.backed import backed, distinct, raw, same, tilings
from tests.support.noting import NotedFiles

KINDS: tuple[Pairs, ...] = ("", "apart", "in turns")
kinds = st.sampled_from(KINDS)


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as path:
        yield Path(path)


def by_torch(tensor: Tensor, pairs: Pairs) -> Tensor:
    found = tensor.mT
    if pairs == "apart":
        found = torch.cat([found[:, ::2], found[:, 1::2]], 1)
    elif pairs == "in turns":
        first, second = found.chunk(2, -1)
        found = torch.stack([first, second], -1).flatten(-2)
    return found.contiguous()


def read(tensor: LazyTensor, cuts: Sequence[int]) -> bytes:
    """All of it, in parts that begin at ``cuts``, by one reader."""
    size = tensor.dtype.itemsize
    out = memoryview(bytearray(tensor.nbytes))
    with FileTable() as files:
        reader = BlockReader(files)
        for start, stop in pairwise([0, *cuts, tensor.numel]):
            reader.read(tensor, start, stop, out[start * size : stop * size])
    return bytes(out)


def torch_backed(folder: Path, lazy: LazyTensor) -> LazyTensor:
    """The same elements, of a file that has them as they are."""
    return backed(folder / "again", lazy.read())


def test_by_hand(folder) -> None:
    tensor = torch.tensor([[[1, 2, 3, 4], [5, 6, 7, 8]]])
    lazy = backed(folder / "hand", tensor)
    assert turn(lazy).read().tolist() == [[[1, 5], [2, 6], [3, 7], [4, 8]]]
    assert turn(lazy, "apart").read().tolist() == [[[1, 5], [3, 7], [2, 6], [4, 8]]]
    assert turn(lazy, "in turns").read().tolist() == [[[1, 5], [2, 6], [3, 7], [4, 8]]]


@given(st.data(), kinds, st.sampled_from([1, 30, 1 << 20]), st.sampled_from([2, 256]))
def test_any_part_of_it(folder, data, pairs, strip, side) -> None:
    """Whatever memory there is for strips, and however the file is cut."""
    experts, rows, columns = (data.draw(st.integers(1, 4)) for _ in range(3))
    shape = (experts, rows * (1 + (pairs == "in turns")), columns * (1 + (pairs == "apart")))
    tensor = distinct(shape)
    lazy = turn(backed(folder / "part", tensor, data.draw(tilings(shape))), pairs)
    cuts = sorted(data.draw(st.lists(st.integers(0, tensor.numel()), max_size=3)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(strips, "STRIP_BYTES", strip)
        patch.setattr(turned, "_SIDE", side)
        patch.setattr(turned, "_CROWDED", data.draw(st.sampled_from([1, 512])))
        assert read(lazy, cuts) == raw(by_torch(tensor, pairs))


@pytest.mark.parametrize("pairs", KINDS)
def test_threads_turn_it_together(folder, pairs) -> None:
    """Each takes some of its elements; no element of the file is read twice."""
    tensor = distinct((2, 64, 96))
    lazy = turn(backed(folder / "together", tensor), pairs)
    size, step = lazy.dtype.itemsize, 500
    out = memoryview(bytearray(lazy.nbytes))
    with NotedFiles() as files, Threads(4) as pool:
        readers: SimpleQueue[BlockReader] = SimpleQueue()
        for _ in range(4):
            readers.put(BlockReader(files))

        def put(start: int) -> None:
            stop, reader = min(start + step, lazy.numel), readers.get()
            reader.read(lazy, start, stop, out[start * size : stop * size])
            readers.put(reader)

        list(pool.flow(put, range(0, lazy.numel, step)))
        assert sum(files.sizes()) == lazy.nbytes
    assert bytes(out) == raw(by_torch(tensor, pairs))


@pytest.mark.parametrize("pairs", KINDS)
def test_pieces_of_it_are_pieces_of_torchs(folder, pairs) -> None:
    tensor = distinct((3, 4, 6))
    lazy = turn(backed(folder / "pieces", tensor), pairs)
    expected = by_torch(tensor, pairs)
    assert same(lazy.select(0, 1).narrow(0, 1, 3).read(), expected[1, 1:4].contiguous())
    assert same(lazy.narrow(2, 1, 2).read(), expected[..., 1:3].contiguous())


@pytest.mark.parametrize("pairs", KINDS)
def test_it_is_cast_as_the_matrices_are(folder, pairs) -> None:
    tensor = torch.randn(2, 4, 6)
    lazy = backed(folder / "cast", tensor)
    expected = by_torch(tensor.bfloat16(), pairs)
    assert same(turn(lazy.to(BFLOAT16), pairs).read(), expected)
    assert same(turn(lazy, pairs).to(BFLOAT16).read(), expected)


@pytest.mark.parametrize("pairs", KINDS)
def test_what_is_computed_is_rounded_once_to_what_is_asked_for_last(folder, pairs) -> None:
    """Through bfloat16, which the matrices were to have, another number would come of some."""
    codes = distinct((2, 4, 24), torch.uint8)
    scales = distinct((2, 4, 3), torch.uint8).view(torch.float8_e4m3fn)
    over = backed(folder / "over", torch.tensor(977.0))
    parts = backed(folder / "codes", codes), backed(folder / "scales8", scales), over
    exact = unpack_nvfp4(*parts, FLOAT32, is_divisor=False).read()
    lazy = unpack_nvfp4(*parts, BFLOAT16, is_divisor=False)
    assert not same(exact.half(), exact.bfloat16().half())
    assert same(turn(lazy, pairs).to(FLOAT16).read(), by_torch(exact.half(), pairs))


@pytest.mark.parametrize("move", [turn, lambda each: repeat(each, 3)], ids=["turned", "repeated"])
def test_what_is_computed_is_rounded_as_it_lies_and_its_errors_are_known(folder, move) -> None:
    """Whichever threads take parts of it, each byte of the file is read once."""
    codes = distinct((2, 64, 48), torch.uint8)
    scales = distinct((2, 64, 6), torch.uint8).view(torch.float8_e4m3fn)
    over = backed(folder / "whole", torch.tensor(977.0))
    parts = backed(folder / "some", codes), backed(folder / "scaled", scales), over
    lazy = unpack_nvfp4(*parts, BFLOAT16, is_divisor=False)
    read_by, found, out = {}, {}, {}
    for name, each in (("as it lies", lazy), ("moved", move(lazy))):
        errors, out[name] = CastErrors(), memoryview(bytearray(each.nbytes))
        with NotedFiles() as files:
            readers = [BlockReader(files, errors) for _ in range(3)]
            for at, start in enumerate(range(0, each.numel, 1000)):
                stop = min(start + 1000, each.numel)
                readers[at % 3].read(each, start, stop, out[name][start * 2 : stop * 2])
            read_by[name], found[name] = sum(files.sizes()), errors.listed()
    assert found["moved"] == found["as it lies"] != ()
    assert bytes(out["moved"]) == raw(move(torch_backed(folder, lazy)).read())
    assert move is not turn or read_by["moved"] <= read_by["as it lies"]


@pytest.mark.parametrize("pairs", KINDS)
def test_what_was_turned_when_it_was_unpacked(folder, pairs) -> None:
    source = torch.Generator().manual_seed(3)
    blocks = torch.randint(0, 256, (2, 6, 2, 16), generator=source, dtype=torch.uint8)
    scales = torch.randint(100, 150, (2, 6, 2), generator=source, dtype=torch.uint8)
    parts = backed(folder / "blocks", blocks), backed(folder / "scales", scales)
    lazy = unpack_mxfp4(*parts, BFLOAT16)
    found = turn(lazy, pairs)
    assert same(found.read(), by_torch(lazy.read(), pairs))
    assert found.dtype == BFLOAT16
    part = turn(lazy.narrow(1, 0, 32), pairs)
    assert same(part.read(), by_torch(lazy.read()[:, :32], pairs))


@pytest.mark.parametrize(
    ("shape", "pairs"), [((3, 4), ""), ((2, 3, 5), "apart"), ((2, 3, 4), "in turns"), ((), "")]
)
def test_what_cannot_be_turned_is_said(folder, shape, pairs) -> None:
    with pytest.raises(ValueError, match="no matrices"):
        turn(backed(folder / "no", distinct(shape)), pairs)


def test_nothing_is_turned_into_nothing(folder) -> None:
    assert turn(backed(folder / "empty", torch.ones(2, 0, 4))).shape == (2, 4, 0)
