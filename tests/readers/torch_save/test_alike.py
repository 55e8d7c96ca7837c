"""Archives that are compared with one that was read are found to be what reading them finds."""

import io
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp

from ckpt_tool.common.errors import FormatError, UnsafeContentError
from ckpt_tool.common.regular import announce
from ckpt_tool.readers.base import Checkpoint
from ckpt_tool.readers.dcp.blocks import Blocks
from ckpt_tool.readers.dcp.folder import open_dcp
from ckpt_tool.readers.dcp.metadata import Place, read_metadata
from ckpt_tool.tensors.blocks import FileTable
from ckpt_tool.tensors.dtypes import BY_NAME
from tests.support.backed import distinct

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")

NAMES = ["a", "b", "c"]
#: Every seventh byte is of every kind.
STEP = 7


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    found = tmp_path_factory.mktemp("dcp")
    values = distinct((3, 5, 2))
    state = {name: values[number].clone() for number, name in enumerate(NAMES)}
    dcp.save(state, storage_writer=dcp.FileSystemWriter(found, thread_count=1))
    return found


def found_of(folder: Path, name: str, *, alone: bool) -> object:
    """All that is said of a tensor, opened alone or with those that are like it."""
    try:
        checkpoint: Checkpoint = open_dcp(folder, (lambda one: one == name) if alone else None)
    except UnsafeContentError as error:
        return str(error)
    said = [problem for problem in checkpoint.problems if problem.where == name]
    sums = [sums[at] for sums in checkpoint.sums.values() for at in range(len(sums))]
    held = checkpoint.entries[name].holdings
    return said, held, [each for each in sums if held and each.start == held[0].region.offset]


def test_what_is_alike_is_read_as_it_is(folder):
    checkpoint = open_dcp(folder)
    values = distinct((3, 5, 2))
    for number, name in enumerate(NAMES):
        assert torch.equal(checkpoint[name].read(), values[number])
        assert found_of(folder, name, alone=False) == found_of(folder, name, alone=True)


def test_every_damage_to_one_is_found_as_if_it_were_alone(folder, tmp_path):
    ((_, place),) = read_metadata(folder / ".metadata").tensors["c"].blocks
    (file,) = folder.glob("*.distcp")
    content = file.read_bytes()
    (tmp_path / ".metadata").write_bytes((folder / ".metadata").read_bytes())
    (tmp_path / file.name).write_bytes(content)
    whole, damaged = found_of(tmp_path, "c", alone=False), 0
    for at in range(place.offset, place.offset + place.length, STEP):
        other = content[:at] + bytes([content[at] ^ 0x55]) + content[at + 1 :]
        (tmp_path / file.name).write_bytes(other)
        found = found_of(tmp_path, "c", alone=False)
        assert found == found_of(tmp_path, "c", alone=True), at - place.offset
        damaged += found != whole
    assert damaged > 20


def test_one_that_ends_too_early_is_said(folder, tmp_path):
    (file,) = folder.glob("*.distcp")
    (tmp_path / ".metadata").write_bytes((folder / ".metadata").read_bytes())
    (tmp_path / file.name).write_bytes(file.read_bytes()[:-30])
    (problem,) = open_dcp(tmp_path).problems
    assert "ends at byte" in problem.message


FLOAT, SHAPE, END = BY_NAME["float32"], (3, 5), 22


def archive(number: int, between: bytes = b"") -> bytearray:
    """An archive of one tensor, with bytes between its directory and its end record."""
    out = io.BytesIO()
    torch.save(torch.arange(15.0).reshape(SHAPE) + number, out)
    whole = out.getvalue()
    return bytearray(whole[:-END] + between + whole[-END:])


@pytest.mark.parametrize("size", [4, 11, 12, 16])
def test_what_looks_like_a_row_behind_the_directory_is_none(tmp_path, size):
    row = b"PK\x01\x02" + bytes(size - 4)
    one, other = archive(0, row), archive(1, row)
    other[-END : -END + 4] = b"none"
    path = tmp_path / "__0_0.distcp"
    path.write_bytes(one + other)
    place, second = (Place(str(path), at, len(one), False) for at in (0, len(one)))
    with FileTable() as files:
        blocks = Blocks(files)
        assert blocks.read(str(path), place, FLOAT, SHAPE) is not None
        assert blocks.recall(str(path), second, FLOAT, SHAPE) is None
        with pytest.raises(FormatError, match="no zip directory"):
            blocks.read(str(path), second, FLOAT, SHAPE)


@pytest.mark.parametrize("offset", [-1, 1 << 62, 1 << 63, 1 << 70])
def test_none_is_recalled_from_where_no_file_reaches(tmp_path, offset):
    path = tmp_path / "__0_0.distcp"
    path.write_bytes(archive(0))
    length = path.stat().st_size
    with FileTable() as files:
        blocks = Blocks(files)
        place = Place(str(path), offset, length, False)
        announce(blocks.list_ends(str(path), place))
        blocks.read(str(path), place._replace(offset=0), FLOAT, SHAPE)
        assert blocks.recall(str(path), place._replace(offset=0), FLOAT, SHAPE) is not None
        assert blocks.recall(str(path), place, FLOAT, SHAPE) is None


def test_an_archive_with_much_in_front_of_the_elements_has_no_form(tmp_path, monkeypatch):
    monkeypatch.setattr("ckpt_tool.readers.torch_save.alike._MOST", 100)
    path = tmp_path / "__0_0.distcp"
    path.write_bytes(archive(0))
    place = Place(str(path), 0, path.stat().st_size, False)
    with FileTable() as files:
        blocks = Blocks(files)
        blocks.read(str(path), place, FLOAT, SHAPE)
        assert blocks.recall(str(path), place, FLOAT, SHAPE) is None
