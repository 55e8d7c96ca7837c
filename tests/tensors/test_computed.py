"""A source that no module knows: what computes its elements is read as what lies in a file is."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from ckpt_tool.tensors.blocks import BlockReader, FileTable
from ckpt_tool.tensors.chunks import Chunk, Filler, Reader, Region
from ckpt_tool.tensors.dtypes import BFLOAT16, BY_NAME, FLOAT16, FLOAT32, FLOAT64, DType
from ckpt_tool.tensors.geometry import Box, Shape, make_strides
from ckpt_tool.tensors.lazy import LazyTensor, cat, stack
from ckpt_tool.tensors.rounding import CastErrors
from ckpt_tool.writers.outfile import OutputFile
from ckpt_tool.writers.planned import PlannedFile
from ckpt_tool.writers.stream import StreamWriter
from tests.support.backed import backed, raw, same

TARGETS = [FLOAT32, BFLOAT16, FLOAT16, FLOAT64]


@dataclass(frozen=True, eq=False)
class Ramp:
    """``begin``, an int64 in a file, and then 1.01 more with every element, in float32."""

    begin: LazyTensor
    shape: Shape
    dtype: DType = FLOAT32
    origin: DType = BY_NAME["int64"]
    recipe: str = "a ramp in steps of 1.01"

    @property
    def operands(self) -> tuple[LazyTensor, ...]:
        return (self.begin,)

    def open(self, reader: Reader) -> Filler:
        opened.append(self)
        return RampFiller(self, reader)


class RampFiller(Filler):
    def __init__(self, ramp: Ramp, reader: Reader) -> None:
        found = np.empty(1, np.int64)
        reader.read(ramp.begin, 0, 1, found.data.cast("B"))
        self._shape, self._begin = ramp.shape, found[0]

    def fill(self, box: Box, out: memoryview) -> None:
        starts = zip(box.offsets, box.sizes, strict=True)
        places = np.ix_(*(range(start, start + size) for start, size in starts))
        index = np.ravel_multi_index(np.broadcast_arrays(*places), self._shape)
        np.frombuffer(out, np.float32)[:] = (index * 1.01 + self._begin).astype(np.float32).ravel()


opened: list[Ramp] = []


@pytest.fixture(autouse=True)
def _nothing_opened() -> None:
    opened.clear()


def ramp(
    path: Path, begin: int, shape: Shape, kind: type[Ramp] = Ramp
) -> tuple[LazyTensor, torch.Tensor]:
    """A ramp, and what it should be."""
    computed = kind(backed(path, torch.tensor([begin])), shape)
    region = Region(str(path), 0, make_strides(shape), computed)
    whole = Chunk(Box((0,) * len(shape), shape), region)
    count = int(np.prod(shape))
    expected = (torch.arange(count, dtype=torch.float64) * 1.01 + begin).float().reshape(shape)
    return LazyTensor(shape, FLOAT32, FLOAT32, (whole,)), expected


def test_a_whole_one(tmp_path):
    lazy, expected = ramp(tmp_path / "r", 7, (3, 4, 5))
    assert lazy.is_computed
    assert lazy.origin == BY_NAME["int64"]
    assert same(lazy.read(), expected)


def test_parts_turned_and_joined(tmp_path):
    lazy, expected = ramp(tmp_path / "r", 7, (3, 4, 5))
    plain = torch.rand(3, 4, 2)
    beside = backed(tmp_path / "plain", plain)
    assert same(lazy.narrow(1, 1, 2).read(), expected[:, 1:3])
    assert same(lazy.narrow(2, 4, 1).transpose(0, 2).read(), expected[:, :, 4:].transpose(0, 2))
    assert same(lazy.select(0, 2).transpose(0, 1).read(), expected[2].t())
    assert same(lazy.unsqueeze(1).read(), expected.unsqueeze(1))
    assert same(cat([lazy, beside], 2).read(), torch.cat([expected, plain], 2))
    other, its = ramp(tmp_path / "other", -3, (3, 4, 5))
    assert same(stack([other, lazy]).read(), torch.stack([its, expected]))


def test_any_range_is_filled_by_one_opened_filler(tmp_path):
    lazy, expected = ramp(tmp_path / "r", 0, (7, 11))
    out = bytearray(lazy.nbytes)
    with FileTable() as files:
        reader = BlockReader(files)
        for start, stop in pairwise([0, 1, 13, 22, 60, 77]):
            reader.read(lazy, start, stop, memoryview(out)[start * 4 : stop * 4])
    assert bytes(out) == raw(expected)
    assert len(opened) == 1


@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_it_is_rounded_once_and_errors_are_of_its_origin(tmp_path, target):
    lazy, expected = ramp(tmp_path / "r", 1, (40, 50))
    rounded = expected.to(getattr(torch, target.name))
    lazy = lazy.to(FLOAT16).to(target)  # the second takes the place of the first
    with FileTable() as files:
        reader, out = BlockReader(files), bytearray(lazy.nbytes)
        reader.read(lazy, 0, lazy.numel, memoryview(out))
    assert bytes(out) == raw(rounded)
    error = (expected.double() - rounded.double()).abs().max().item()
    found = reader.errors.listed()
    assert found == (() if target == FLOAT32 else (("int64", target.name, error),))


@pytest.fixture
def written(tmp_path: Path) -> Iterator[tuple[bytes, torch.Tensor, StreamWriter]]:
    """A ramp of several blocks, rounded and between other bytes, as the writer streams it."""
    lazy, expected = ramp(tmp_path / "r", 1, (2000, 1500))
    lazy, head = lazy.transpose(0, 1).to(BFLOAT16), b"8 bytes!"
    size = len(head) + lazy.nbytes
    plan = PlannedFile("out", ("it",), (head, lazy), (0, len(head)), size)
    with FileTable() as files, StreamWriter(files, 2, lambda _: None) as writer:
        file = OutputFile(tmp_path / "out", plan.size, direct=False)
        writer.write(file, plan)
        file.close()
        yield (tmp_path / "out").read_bytes(), expected.t().contiguous(), writer


def test_the_writer_streams_it(written):
    content, expected, writer = written
    rounded = expected.bfloat16()
    assert content == b"8 bytes!" + raw(rounded)
    error = (expected.double() - rounded.double()).abs().max().item()
    assert writer.errors.listed() == (("int64", "bfloat16", error),)


class Flat(Ramp):
    """Says that it is 2.0 everywhere when rounded to bfloat16."""

    def open(self, reader: Reader) -> Filler:
        return FlatFiller(self, reader)


class FlatFiller(RampFiller):
    def fill_rounded(self, box: Box, out: memoryview, dtype: DType, errors: CastErrors) -> bool:
        if dtype != BFLOAT16:
            return False
        np.frombuffer(out, np.uint16)[:] = 0x4000  # 2.0
        errors.learn("int64", "bfloat16", 5.0)
        return True


def test_who_rounds_himself_is_asked_first(tmp_path):
    lazy, expected = ramp(tmp_path / "r", 1, (4, 5), Flat)
    with FileTable() as files:
        reader, out = BlockReader(files), bytearray(40)
        reader.read(lazy.to(BFLOAT16).transpose(0, 1), 0, 20, memoryview(out))
        assert bytes(out) == b"\x00\x40" * 20
        assert reader.errors.listed() == (("int64", "bfloat16", 5.0),)
    assert same(lazy.to(FLOAT16).read(), expected.half())
    mixed = cat([lazy, backed(tmp_path / "plain", torch.ones(1, 5))], 0).to(BFLOAT16)
    assert same(mixed.read(), torch.cat([expected, torch.ones(1, 5)]).bfloat16())
