"""Archives that are compared with one that was read are found to be what reading them finds."""

from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp

from ckpt_tool.common.errors import UnsafeContentError
from ckpt_tool.readers.base import Checkpoint
from ckpt_tool.readers.dcp.folder import open_dcp
from ckpt_tool.readers.dcp.metadata import read_metadata
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
