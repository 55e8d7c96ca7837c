"""Folders in torch.distributed.checkpoint's format: read by torch itself, and by zip tools."""

import io
import json
import pickle
import zipfile
from itertools import count, pairwise, product
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import metadata as meta
from torch.distributed.checkpoint.filesystem import _StorageInfo

from ckpt_tool.tensors.blocks import FileTable
from ckpt_tool.tensors.chunks import Chunk, Region
from ckpt_tool.tensors.geometry import Box, make_strides
from ckpt_tool.tensors.lazy import LazyTensor
from ckpt_tool.tensors.tiled import Block, TiledTensor
from ckpt_tool.writers.outfile import OutputFile
from ckpt_tool.writers.planned import Seal
from ckpt_tool.writers.stream import StreamWriter, WrittenFile, digest_file
from ckpt_tool.writers.torch_dist import layout as torch_dist
from ckpt_tool.writers.torch_dist.layout import Slice, TorchDistPlan, plan_torch_dist
from tests.support.backed import distinct, dtype_of, raw, same

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")

_NUMBERS = count()
TASK = 4 << 20  # StreamWriter fills so many bytes at a time


def lazily(folder: Path, tensor: torch.Tensor) -> LazyTensor:
    path, shape, dtype = folder / f"source{next(_NUMBERS)}", tuple(tensor.shape), dtype_of(tensor)
    path.write_bytes(raw(tensor))
    region = Region(str(path), 0, make_strides(shape))
    chunks = (Chunk(Box((0,) * len(shape), shape), region),) * bool(tensor.numel())
    return LazyTensor(shape, dtype, dtype, chunks)


def one_block(folder: Path, tensor: torch.Tensor) -> TiledTensor:
    block = Block((0,) * tensor.ndim, lazily(folder, tensor))
    return TiledTensor(tuple(tensor.shape), (block,), ("it",))


def stacked(folder: Path, tensor: torch.Tensor, lead: int) -> TiledTensor:
    """A block, which lacks them, for each entry of the leading dimensions."""
    places, rest = product(*map(range, tensor.shape[:lead])), (0,) * (tensor.ndim - lead)
    blocks = tuple(Block(place + rest, lazily(folder, tensor[place])) for place in places)
    return TiledTensor(tuple(tensor.shape), blocks, ("it",))


def write(plan: TorchDistPlan, folder: Path, jobs: int = 2) -> list[WrittenFile]:
    written = []
    folder.mkdir()
    with FileTable() as sources, StreamWriter(sources, jobs, lambda _: None) as writer:
        for file in plan.files:
            output = OutputFile(folder / file.name, file.size, direct=False)
            written.append(writer.write(output, file))
            output.close()
    for name, content in plan.small_files({}):
        (folder / name).write_bytes(content)
    return written


def slices(plan: TorchDistPlan) -> list[Slice]:
    return [plan.nothing, *(where for found in plan.pieces.values() for _, where in found)]


def broken(folder: Path, plan: TorchDistPlan) -> list[Slice]:
    """Slices that zip tools find fault with."""
    files = {file.name: (folder / file.name).read_bytes() for file in plan.files}

    def sound(at: Slice) -> bool:
        archive = io.BytesIO(files[at.file][at.offset : at.offset + at.length])
        return zipfile.ZipFile(archive).testzip() is None

    return [where for where in slices(plan) if not sound(where)]


def assert_loads(folder: Path, tensors: dict[str, torch.Tensor], *objects: str) -> None:
    """That torch reads these tensors, into others that hold zeros, and [None] for each object."""
    state = {name: torch.zeros_like(tensor) for name, tensor in tensors.items()}
    state |= dict.fromkeys(objects, "before")
    dcp.load(state, storage_reader=dcp.FileSystemReader(folder))
    assert not [name for name in tensors if not same(state[name], tensors[name])]
    assert [state[name] for name in objects] == [[None]] * len(objects)


def metadata_of(folder: Path) -> meta.Metadata:
    return pickle.loads((folder / ".metadata").read_bytes())


TENSORS = {
    "a.weight": distinct((6, 4)),
    "a.bias": distinct((6,), torch.bfloat16),
    "scalar": distinct(()),
    "empty": torch.empty(0, 3),
    "numbers": distinct((5,), torch.int64),
    "truth": torch.tensor([True, False, True]),
    "half": distinct((2, 1, 3), torch.float16),
    "complex": distinct((3,), torch.complex64),
    "layers": distinct((2, 3, 4, 2)),
}
OBJECTS = ("a._extra_state/shard_0_1", "b._extra_state/shard_1.2_2.3")


@pytest.fixture
def sources(tmp_path: Path) -> dict[str, TiledTensor]:
    found = {name: one_block(tmp_path, tensor) for name, tensor in TENSORS.items()}
    return found | {"layers": stacked(tmp_path, TENSORS["layers"], 2)}


@pytest.mark.parametrize("sums", [True, False])
def test_torch_reads_what_was_written(sources, sums, tmp_path):
    plan = plan_torch_dist(sources, OBJECTS, prefix="", sums=sums)
    write(plan, tmp_path / "out")
    assert_loads(tmp_path / "out", TENSORS, *OBJECTS)
    assert bool(broken(tmp_path / "out", plan)) != sums


def test_metadata_is_what_torch_writes_for_the_same_tensors(sources, tmp_path):
    whole = {name: found for name, found in sources.items() if name != "layers"}
    state = {name: TENSORS[name] for name in whole} | dict.fromkeys(OBJECTS, io.BytesIO(b"x"))
    dcp.save(state, storage_writer=dcp.FileSystemWriter(tmp_path / "torch"))
    write(plan_torch_dist(whole, OBJECTS, prefix="", sums=True), tmp_path / "out")
    ours, theirs = metadata_of(tmp_path / "out"), metadata_of(tmp_path / "torch")
    assert type(ours) is meta.Metadata
    assert ours.state_dict_metadata == theirs.state_dict_metadata
    assert ours.storage_data.keys() == theirs.storage_data.keys()
    assert {type(index.offset) for index in ours.storage_data} == {torch.Size, type(None)}
    assert {type(where) for where in ours.storage_data.values()} == {_StorageInfo}


def test_metadata_of_torch_types_can_be_looked_up(sources, tmp_path):
    plan = plan_torch_dist(sources, OBJECTS, prefix="", sums=True)
    write(plan, tmp_path / "out")
    found = metadata_of(tmp_path / "out")
    entry = found.state_dict_metadata["layers"]
    offsets, sizes = torch.Size([1, 1, 0, 0]), torch.Size([1, 1, 4, 2])
    assert entry.chunks[4] == meta.ChunkStorageMetadata(offsets, sizes)
    sizes = [size for chunk in entry.chunks for size in (chunk.offsets, chunk.sizes)]
    assert {type(size) for size in [entry.size, *sizes]} == {torch.Size}
    place = plan.pieces["layers"][4][1]
    for offsets, hint in (([1, 1, 0, 0], None), ((1, 1, 0, 0), 9)):
        index = meta.MetadataIndex("layers", offsets, hint)
        assert found.storage_data[index] == _StorageInfo(place.file, place.offset, place.length)
    assert [index.index for index in found.storage_data if index.fqn == "layers"] == [*range(6)]
    assert found.storage_data[meta.MetadataIndex(OBJECTS[1])].offset == 0


def test_small_files_and_their_order(sources):
    plan = plan_torch_dist(sources, OBJECTS, prefix="release/", sums=True)
    files = dict(plan.small_files({"iteration": 1}))
    assert list(files) == ["release/.metadata", "release/common.pt", "release/metadata.json"]
    assert torch.load(io.BytesIO(files["release/common.pt"])) == {"iteration": 1}
    assert json.loads(files["release/metadata.json"])["sharded_backend"] == "torch_dist"
    assert [file.name for file in plan.files] == ["release/__0_0.distcp"]
    found = pickle.loads(files["release/.metadata"])
    assert {where.relative_path for where in found.storage_data.values()} == {"__0_0.distcp"}


def test_archives_are_aligned_and_gaps_are_zeros(sources, tmp_path):
    plan = plan_torch_dist(sources, OBJECTS, prefix="", sums=True)
    write(plan, tmp_path / "out")
    whole = (tmp_path / "out" / "__0_0.distcp").read_bytes()
    found = sorted(slices(plan), key=lambda where: where.offset)
    gaps = [whole[a.offset + a.length : b.offset] for a, b in pairwise(found)]
    assert all(where.offset % 64 == 0 for where in found)
    assert all(a.offset + a.length <= b.offset for a, b in pairwise(found))
    assert set(b"".join(gaps)) == {0}
    assert max(map(len, gaps)) < 64
    assert found[-1].offset + found[-1].length == len(whole) == plan.files[0].size


def test_large_tensors_are_several_pieces_in_several_files(tmp_path, monkeypatch):
    monkeypatch.setattr(torch_dist, "PIECE_BYTES", 256)
    monkeypatch.setattr(torch_dist, "FILE_BYTES", 8 << 10)
    tensors = {"rows": distinct((64, 10)), "odd": distinct((37, 16)), "layers": distinct((3, 8, 9))}
    tensors["one row"] = distinct((1, 3000))  # larger than a file
    planned = {name: one_block(tmp_path, tensor) for name, tensor in tensors.items()}
    planned["layers"] = stacked(tmp_path, tensors["layers"], 1)
    plan = plan_torch_dist(planned, (), prefix="", sums=True)
    write(plan, tmp_path / "out")
    assert len(plan.files) > 2
    assert [file.name for file in plan.files] == [f"__0_{n}.distcp" for n in range(len(plan.files))]
    assert [box.sizes for box, _ in plan.pieces["rows"]] == [(4, 10)] * 16
    assert [box.sizes[0] for box, _ in plan.pieces["odd"]] == [3] * 12 + [1]
    places = [(layer, row, 0) for layer in range(3) for row in (0, 4)]
    assert [box.offsets for box, _ in plan.pieces["layers"]] == places
    # what a piece's archive adds to it is not counted
    assert all(file.size <= (8 << 10) + 2048 for file in plan.files[:-1])
    assert plan.files[-1].names == ("one row",)
    assert {where.file for where in slices(plan)} == {file.name for file in plan.files}
    assert broken(tmp_path / "out", plan) == []
    assert_loads(tmp_path / "out", tensors)


def bytes_of(size: int) -> torch.Tensor:
    """Bytes that do not repeat themselves, as far as four of them together go."""
    return torch.arange(size // 4 + 1, dtype=torch.int32).view(torch.uint8)[:size]


#: Where in a seal the boundary is: which of its CRCs (or none), and bytes from there on.
BOUNDARIES = [(None, 0), (None, 1), (None, -1), *product((0, 1), range(5))]


def straddling(folder: Path, crc: int | None, at: int, tasks: int) -> TorchDistPlan:
    """A plan whose second tensor ends so that its seal meets a boundary of tasks there."""

    def plan(size: int) -> TorchDistPlan:
        tensors = {"first": distinct((9, 3)), "it": bytes_of(size), "last": distinct((5, 5))}
        planned = {name: one_block(folder, tensor) for name, tensor in tensors.items()}
        return plan_torch_dist(planned, (), prefix="", sums=True)

    file = plan(TASK).files[0]
    seal = file.items[6]
    assert isinstance(seal, Seal)
    inside = at % len(seal.content) if crc is None else seal.places[crc] + at
    result = plan(TASK + tasks * TASK - file.starts[6] - inside)
    assert result.files[0].starts[6] == tasks * TASK - inside
    return result


@pytest.mark.slow
@pytest.mark.parametrize("tasks", [1, 3])
@pytest.mark.parametrize(("crc", "at"), BOUNDARIES)
def test_seals_across_a_boundary_of_tasks(crc, at, tasks, tmp_path):
    plan = straddling(tmp_path, crc, at, tasks)
    contents = set()
    for jobs in (1, 2, 3, 4):
        out = tmp_path / f"out{jobs}"
        (written,) = write(plan, out, jobs)
        assert broken(out, plan) == []
        assert written.digest == digest_file(out / "__0_0.distcp")
        assert written.size == plan.files[0].size == (out / "__0_0.distcp").stat().st_size
        contents.add((out / "__0_0.distcp").read_bytes())
    assert len(contents) == 1
    assert_loads(out, {"it": bytes_of(plan.tensors["it"].nbytes), "last": distinct((5, 5))})


def test_many_threads_write_the_same_bytes_as_one(tmp_path):
    planned = {f"t{n}": one_block(tmp_path, distinct((n + 1, 260_000))) for n in range(5)}
    plan = plan_torch_dist(planned, OBJECTS, prefix="", sums=True)
    assert plan.files[0].size > 3 * TASK
    for jobs in (1, 4):
        write(plan, tmp_path / f"out{jobs}", jobs)
    outs = [tmp_path / f"out{jobs}" for jobs in (1, 4)]
    one, four = ({path.name: path.read_bytes() for path in out.iterdir()} for out in outs)
    assert one == four
    assert broken(tmp_path / "out4", plan) == []
