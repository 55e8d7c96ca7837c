"""Archives written without torch: torch loads them, and zip tools find nothing wrong."""

import argparse
import io
import zipfile
import zlib
from math import prod

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ckpt_tool.readers.torch_save.archive import TorchArchive
from ckpt_tool.readers.torch_save.rebuilding import TensorRef
from ckpt_tool.tensors.dtypes import BY_NAME, BY_STORAGE, FLOAT32
from ckpt_tool.writers.torch_dist.archive import ALIGNMENT, make_archive, make_frame
from ckpt_tool.writers.torch_dist.pickling import Instance, Name
from tests.support.backed import distinct, dtype_of, raw, same
from tests.support.versions import torch_dtype

UNSTORED = sorted(BY_NAME.keys() - {dtype.name for dtype in BY_STORAGE.values()})
SHAPES = [(), (1,), (0,), (7,), (3, 2), (0, 4), (4, 0, 2), (1, 1, 6), (2, 3, 1, 2, 3)]


def tensor_of(shape: tuple[int, ...], name: str) -> torch.Tensor:
    dtype = torch_dtype(name)
    if dtype == torch.bool:
        return (torch.arange(prod(shape)) % 3 == 1).reshape(shape)
    return distinct(shape, dtype)


def archive(tensor: torch.Tensor, sums: bool = True) -> bytes:
    """The frame with the tensor in it, its CRC-32 put where the seal says."""
    payload = raw(tensor)
    head, seal = make_frame(tuple(tensor.shape), dtype_of(tensor), sums=sums)
    tail = bytearray(seal.content)
    assert len(seal.places) == (2 if sums else 0)
    for place in seal.places:
        tail[place : place + 4] = zlib.crc32(payload).to_bytes(4, "little")
    return head + payload + bytes(tail)


def opened(data: bytes) -> zipfile.ZipFile:
    return zipfile.ZipFile(io.BytesIO(data))


def payload_at(data: bytes) -> int:
    """Where, by the zip's own headers, the storage begins."""
    header = opened(data).getinfo("archive/data/0").header_offset
    name, extra = (int.from_bytes(data[header + at : header + at + 2], "little") for at in (26, 28))
    return header + 30 + name + extra


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", sorted(BY_NAME.keys() - set(UNSTORED)))
def test_torch_loads_every_dtype_and_shape(name, shape):
    tensor = tensor_of(shape, name)
    data = archive(tensor)
    found = torch.load(io.BytesIO(data), weights_only=True)
    assert same(found, tensor)
    assert found.is_contiguous()
    assert not found.requires_grad
    assert opened(data).testzip() is None
    assert payload_at(data) % ALIGNMENT == 0


@pytest.mark.parametrize("name", UNSTORED)
def test_torch_loads_dtypes_without_a_typed_storage(name):
    tensor = tensor_of((3, 2), name)
    assert same(torch.load(io.BytesIO(archive(tensor)), weights_only=True), tensor)


@given(st.lists(st.integers(0, 700), max_size=3), st.integers(0, 30), st.booleans())
def test_payloads_are_aligned_whatever_the_pickle_takes(shape, ones, sums):
    head, _ = make_frame((1,) * ones + tuple(shape), FLOAT32, sums=sums)
    assert len(head) % ALIGNMENT == 0


def test_every_room_before_the_payload_is_filled_rightly():
    """Names are as long as they are: the head's length varies with the numbers of the shape."""
    rooms = set()
    for size in [(1,) * n for n in range(30)] + [(1,) * n + (300, 1) for n in range(30)]:
        tensor = distinct(size)
        data = archive(tensor)
        header = opened(data).getinfo("archive/data/0").header_offset
        rooms.add(-(header + 30 + len("archive/data/0")) % ALIGNMENT)
        assert payload_at(data) % ALIGNMENT == 0
        assert opened(data).testzip() is None
        assert same(torch.load(io.BytesIO(data), weights_only=True), tensor)
    assert len(rooms) > 10
    assert {room for room in rooms if room < 4}, rooms


def test_a_view_of_the_bytes_is_what_was_put_in():
    tensor = distinct((5, 3))
    data = archive(tensor)
    at = payload_at(data)
    assert data[at : at + tensor.nbytes] == raw(tensor)
    assert opened(data).read("archive/data/0") == raw(tensor)


def test_records_are_those_of_torch_save():
    names = ["archive/data.pkl", "archive/byteorder", "archive/version", "archive/data/0"]
    file = opened(archive(distinct((2,))))
    assert file.namelist() == names
    assert file.read("archive/byteorder") == b"little"
    assert file.read("archive/version") == b"3\n"
    assert {info.compress_type for info in file.infolist()} == {zipfile.ZIP_STORED}


@pytest.mark.parametrize("shape", [(), (6,), (2, 3)], ids=str)
def test_torch_loads_archives_without_sums(shape):
    tensor = distinct(shape)
    data = archive(tensor, sums=False)
    assert same(torch.load(io.BytesIO(data), weights_only=True), tensor)
    assert opened(data).testzip() == "archive/data/0"  # what zip tools then say


def test_a_flipped_bit_is_found_by_zip_tools():
    data = bytearray(archive(distinct((5, 3))))
    data[payload_at(bytes(data)) + 7] ^= 1
    assert opened(bytes(data)).testzip() == "archive/data/0"


def test_torch_loads_from_a_file_and_by_memory_map(tmp_path):
    tensor, path = distinct((300, 7)), tmp_path / "t.pt"
    path.write_bytes(archive(tensor))
    assert same(torch.load(path, weights_only=True), tensor)
    assert same(torch.load(path, weights_only=True, mmap=True), tensor)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_our_reader_reads_them(shape, tmp_path):
    path, tensor = tmp_path / "t.pt", distinct(shape)
    path.write_bytes(b"x" * 77 + archive(tensor) + b"y" * 9)
    with TorchArchive(path, 77, path.stat().st_size - 86) as file:
        ref = file.load()
        assert isinstance(ref, TensorRef)
        assert (ref.shape, ref.dtype) == (shape, FLOAT32)
        offset = file.locate_tensor(ref, "it").region.offset
    assert path.read_bytes()[offset : offset + tensor.nbytes] == raw(tensor)


PLAIN = [{}, [None], None, {"a": [1, 2.5, "x", (True,)], "b": {"c": None}}]


@pytest.mark.parametrize("value", PLAIN, ids=repr)
def test_torch_loads_objects(value):
    data = make_archive(value)
    assert torch.load(io.BytesIO(data), weights_only=True) == value
    assert opened(data).testzip() is None


def test_torch_loads_arguments_as_a_namespace():
    state = {"num_layers": 2, "moe_layer_freq": [0, 1], "lr": 1e-5, "name": None}
    data = make_archive({"args": Instance(Name("argparse", "Namespace"), state), "iteration": 1})
    expected = {"args": argparse.Namespace(**state), "iteration": 1}
    assert torch.load(io.BytesIO(data), weights_only=False) == expected
    with torch.serialization.safe_globals([argparse.Namespace]):
        assert torch.load(io.BytesIO(data), weights_only=True) == expected


def test_the_same_archive_is_the_same_bytes():
    assert make_archive([None]) == make_archive([None])
    assert archive(distinct((4,))) == archive(distinct((4,)))


def test_dates_do_not_depend_on_the_day():
    infos = opened(archive(distinct((4,)))).infolist()
    assert {info.date_time[:3] for info in infos} == {(1980, 1, 1)}


def test_a_tensor_of_more_than_four_gibibytes_is_refused():
    with pytest.raises(ValueError, match="zip64"):
        make_frame((1, 1 << 31), FLOAT32, sums=True)
