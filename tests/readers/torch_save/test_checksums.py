"""Checksums, names and sizes of the records in archives of torch.save."""

import io
import struct
import zipfile
from pathlib import Path

import pytest
import torch
from torch.serialization import set_crc32_options, skip_data

from ckpt_tool.common.errors import FormatError
from ckpt_tool.readers import open_checkpoint
from ckpt_tool.readers.torch_save.archive import TorchArchive
from tests.support.crafted import archive, dumps, floats, longs, storage, tensor
from tests.support.versions import TORCH

STATE = {"a": torch.arange(10.0), "b": torch.arange(6)}


def saved(path: Path) -> bytes:
    torch.save(STATE, path)
    return path.read_bytes()


def content_of(path: Path, name: str) -> int:
    """Where the content of a record begins."""
    with zipfile.ZipFile(path) as file:
        header = file.getinfo(f"{path.stem}/{name}").header_offset
    raw = path.read_bytes()
    name_length, extra = struct.unpack_from("<2H", raw, header + 26)
    return header + 30 + name_length + extra


def flip(path: Path, at: int, bit: int = 0) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1 << bit
    path.write_bytes(content)


def refused(path: Path) -> str:
    """What is wrong with a file, as its checkpoint says it."""
    checkpoint = open_checkpoint(path)
    return "; ".join(problem.message for problem in checkpoint.problems)


@pytest.mark.parametrize("name", ["data.pkl", "byteorder"])
def test_small_records_are_held_against_their_checksum(tmp_path, name):
    path = tmp_path / "m.pt"
    saved(path)
    flip(path, content_of(path, name) + 1)
    said = refused(path)
    assert f"record m/{name} is damaged: its CRC-32 is " in said
    assert ", and was " in said


def test_the_error_says_what_to_do(tmp_path):
    path = tmp_path / "m.pt"
    saved(path)
    flip(path, content_of(path, "data.pkl") + 50)
    with TorchArchive(path) as opened, pytest.raises(FormatError) as raised:
        opened.load()
    assert raised.value.message.startswith(f"{path}: record m/data.pkl is damaged")
    assert raised.value.message.endswith("Copy the file again from the cluster.")


def test_a_device_mesh_is_held_against_its_checksum(tmp_path):
    mesh = tensor(storage("0", 4, "LongStorage"), (2, 2), (2, 1))
    path = archive(tmp_path / "m.pt", dumps({"a": mesh}), {"0": longs(0, 1, 2, 3)}, root="m")
    with TorchArchive(path) as opened:
        assert opened.read_integers(opened.load()["a"]) == [0, 1, 2, 3]
    flip(path, content_of(path, "data/0") + 8)
    with TorchArchive(path) as opened, pytest.raises(FormatError, match="data/0 is damaged"):
        opened.read_integers(opened.load()["a"])


def test_what_torch_wrote_without_checksums_is_read(tmp_path):
    set_crc32_options(False)
    try:
        content = saved(tmp_path / "m.pt")
    finally:
        set_crc32_options(True)
    with zipfile.ZipFile(io.BytesIO(content)) as file:
        assert {info.CRC for info in file.infolist()} == {0}
    checkpoint = open_checkpoint(tmp_path / "m.pt")
    for name, expected in STATE.items():
        assert torch.equal(checkpoint[name].read(), expected)
    assert [record.crc for record in checkpoint.sums[str(tmp_path / "m.pt")]] == [0, 0]


def test_storages_that_are_written_later_have_no_checksum(tmp_path):
    """torch.serialization.skip_data leaves room for somebody else."""
    with skip_data():
        torch.save(STATE, tmp_path / "m.pt")
    checkpoint = open_checkpoint(tmp_path / "m.pt")
    assert not checkpoint.problems
    assert [record.crc for record in checkpoint.sums[str(tmp_path / "m.pt")]] == [0, 0]


@pytest.mark.parametrize("change", [4, -4, 1], ids=["larger", "smaller", "no whole element"])
def test_a_record_of_another_size_than_its_storage_is_refused(tmp_path, change):
    """torch.load says: record size (16 bytes) does not match expected size (12 bytes).

    That of torch 2.13; of 2.6 it does not look.
    """
    raw = floats(1, 2, 3)
    raw = raw + bytes(change) if change > 0 else raw[:change]
    pickled = dumps({"a": tensor(storage("0", 3), (3,), (1,))})
    path = archive(tmp_path / "m.pt", pickled, {"0": raw})
    with zipfile.ZipFile(path, "a") as file:
        file.writestr("archive/version", b"3\n")
    if TORCH >= (2, 13):
        with pytest.raises(RuntimeError, match=r"record size \(\d+ bytes\) does not match"):
            torch.load(path)
    assert f"storage 0 of a has {12 + change} bytes, expected 12" in refused(path)


LOCAL = {
    "name": (30, "is called"),
    "length of the name": (26, "is called"),
    "flags: encrypted": (6, "contradicts the directory"),
    "compression": (8, "contradicts the directory"),
    "CRC-32": (14, "contradicts the directory"),
    "packed size": (18, "contradicts the directory"),
    "size": (22, "contradicts the directory"),
}


@pytest.mark.parametrize(("offset", "said"), LOCAL.values(), ids=LOCAL)
@pytest.mark.parametrize("name", ["data.pkl", "data/0"])
def test_a_local_header_of_another_record_is_refused(tmp_path, name, offset, said):
    path = tmp_path / "m.pt"
    saved(path)
    with zipfile.ZipFile(path) as file:
        header = file.getinfo(f"m/{name}").header_offset
    flip(path, header + offset)
    found = refused(path)
    assert f"record m/{name} " in found
    assert said in found


def test_names_with_bytes_that_are_no_text_are_compared_as_they_are(tmp_path):
    path = tmp_path / "m.pt"
    saved(path)
    raw = path.read_bytes()
    for name in (b"/data.pkl", b"/data/", b"/byteorder"):
        raw = raw.replace(b"m" + name, b"\xff" + name)
    path.write_bytes(raw)
    assert refused(path) == ""
    path.write_bytes(raw.replace(b"\xff/data/0", b"\xfe/data/0", 1))
    assert "is called" in refused(path)
