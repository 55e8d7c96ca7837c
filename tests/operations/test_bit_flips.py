"""Every flipped bit of a checkpoint's archives is found, or is where nothing is."""

import random
import shutil
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp

from ckpt_tool import MergeOptions, merge_fsdp
from ckpt_tool.plans.options import WriteOptions
from ckpt_tool.readers.dcp.metadata import list_places
from tests.support.flips import Tally, find_unused, flips, scrub, try_flips

FIXTURES = Path(__file__).parent.parent / "fixtures"
#: How many flips a test of the fast lane tries.
FEW = 15


def save_rank(folder: Path) -> tuple[Path, dict[int, str]]:
    """One rank file of FSDP; what nobody looks at in it."""
    folder.mkdir()
    file = folder / "model_world_size_1_rank_0.pt"
    torch.save({"a": torch.arange(10.0), "b": torch.arange(6).reshape(2, 3)}, file)
    return with_unused(file)


def copy_rank(folder: Path) -> tuple[Path, dict[int, str]]:
    """One of the rank files, with DTensors and device meshes, that real FSDP2 wrote."""
    name = "model_world_size_3_rank_1.pt"
    folder.mkdir()
    shutil.copy(FIXTURES / "torch2.9.1_fsdp2_w3" / name, folder / name)
    return with_unused(folder / name)


def copy_megatron(folder: Path) -> tuple[Path, dict[int, str]]:
    """The file of one of two pipeline ranks, with what their optimizer has, of real Megatron."""
    shutil.copytree(FIXTURES / "mcore0.15_ranks" / "checkpoint", folder)
    return with_unused(folder / "iter_0000007" / "mp_rank_00_001" / "model_optim_rng.pt")


def copy_adapter(folder: Path) -> tuple[Path, dict[int, str]]:
    """The adapter of one of two tensor parallel ranks, which verl wrote."""
    shutil.copytree(FIXTURES / "bridge0.3_adapter_ranks", folder)
    return with_unused(folder / "adapter_checkpoint" / "mp_rank_01_adapter.pt")


def with_unused(file: Path) -> tuple[Path, dict[int, str]]:
    content = file.read_bytes()
    return file, find_unused(content, 0, len(content))


def save_dcp(folder: Path) -> tuple[Path, dict[int, str]]:
    """The file of torch.distributed.checkpoint, which is an archive per block."""
    state = {"model": {"a": torch.arange(10.0), "b": torch.arange(6).reshape(2, 3)}, "epoch": 3}
    dcp.save(state, checkpoint_id=folder)
    (file,) = folder.glob("*.distcp")
    content, unused = file.read_bytes(), {}
    for place in list_places(folder / ".metadata"):
        unused |= find_unused(content, place.offset, place.length)
    return file, unused


CHECKPOINTS = {
    "rank file": save_rank,
    "file of DTensors": copy_rank,
    "rank of Megatron": copy_megatron,
    "adapter of a rank": copy_adapter,
    "distcp": save_dcp,
}
each = pytest.mark.parametrize("save", CHECKPOINTS.values(), ids=CHECKPOINTS)


def expect(tally: Tally, count: int, record) -> None:
    """All flips were accounted for, and most were found; the figures are kept."""
    assert tally.tried == count == tally.found + sum(tally.harmless.values())
    assert tally.found > tally.tried / 2
    record("flips", str(tally))


@each
@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_some_flips(tmp_path, save, record_property):
    file, unused = save(tmp_path / "c")
    drawn, size = random.Random(3), file.stat().st_size
    used = [at for at in range(size) if at not in unused]
    places = [(drawn.choice(used), drawn.randrange(8)) for _ in range(FEW)]
    expect(try_flips(file, places, unused), FEW, record_property)


@pytest.mark.slow
@each
@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_flips_all_over_a_file(tmp_path, save, record_property):
    """In one of a few bytes, all over the file; the bit is drawn."""
    file, unused = save(tmp_path / "c")
    drawn, size = random.Random(5), file.stat().st_size
    places = [(at, drawn.randrange(8)) for at in range(0, size, 1 + size // 700)]
    expect(try_flips(file, places, unused), len(places), record_property)


@pytest.mark.sweep
@pytest.mark.slow
def test_every_bit_of_a_file(tmp_path, record_property):
    file, unused = save_rank(tmp_path / "c")
    places = [(at, bit) for at in range(file.stat().st_size) for bit in range(8)]
    expect(try_flips(file, places, unused), len(places), record_property)


@pytest.mark.slow
def test_what_is_accepted_merges_to_the_same_bytes(tmp_path):
    """Flips in bytes that nobody looks at: the merged file is what it was."""
    file, unused = save_rank(tmp_path / "c")
    options = MergeOptions(keep_names=True, write=WriteOptions(fsync=False, overwrite=True))

    def merged() -> bytes:
        result = merge_fsdp(file.parent, tmp_path / "out", options)
        return (result.output / "model.safetensors").read_bytes()

    original, expected, accepted = file.read_bytes(), merged(), 0
    for _, changed in flips(original, [(at, 1) for at in sorted(unused)[::4]]):
        file.write_bytes(changed)
        if scrub(file.parent) is not None:
            assert merged() == expected
            accepted += 1
    assert accepted > len(unused) / 8
