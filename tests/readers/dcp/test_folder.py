"""Folders of torch.distributed.checkpoint: real ones, and ours, are read back."""

import builtins
import io
import json
import os
import pickle
import re
import tempfile
from collections import Counter
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributed.checkpoint import metadata as meta

from ckpt_tool.common.errors import CheckpointError
from ckpt_tool.readers.base import Checkpoint
from ckpt_tool.readers.dcp.folder import open_dcp
from ckpt_tool.readers.dcp.places import locate_dcp
from ckpt_tool.tensors.dtypes import BY_NAME
from ckpt_tool.tensors.tiled import Block, TiledTensor
from ckpt_tool.writers.torch_dist import layout as torch_dist
from ckpt_tool.writers.torch_dist.layout import plan_torch_dist
from tests.support.backed import distinct, layouts, same
from tests.writers.torch_dist.test_layout import lazily, one_block, stacked, write

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")

KINDS = {
    f"kind.{name}": torch.tensor([True, False, True]) if name == "bool" else
    distinct((3,), getattr(torch, name)) for name in BY_NAME
    if hasattr(torch, name)  # float8_e8m0fnu is there since 2.7
}  # fmt: skip
TENSORS = {
    **KINDS,
    "scalar": distinct(()),
    "empty": torch.empty(0, 3),
    "matrix": distinct((6, 4)),
    "five": distinct((2, 1, 3, 2, 2), torch.bfloat16),
    "columns": distinct((6, 8))[:, 2:5],
    "nested.deep.weight": distinct((2, 2)),
}
OBJECTS = {"iteration": 7, "state": io.BytesIO(b"anything"), "args": {"lr": 0.1, "names": ["a"]}}


def save(folder: Path, state: dict, **options) -> Path:
    writer = dcp.FileSystemWriter(folder, **options)
    dcp.save(state, storage_writer=writer)
    return folder


def assert_reads(checkpoint: Checkpoint, tensors: dict[str, torch.Tensor]) -> None:
    assert checkpoint.problems == ()
    assert checkpoint.keys() == tensors.keys()
    assert not [n for n, tensor in tensors.items() if not same(checkpoint[n].read(), tensor)]


@pytest.mark.parametrize("options", [{}, {"thread_count": 3}, {"single_file_per_rank": False}])
def test_what_torch_writes_is_read(tmp_path, options):
    found = open_dcp(save(tmp_path / "dcp", TENSORS | OBJECTS, **options))
    assert_reads(found, TENSORS)
    assert found.format == "dcp"
    files = sorted((tmp_path / "dcp").glob("*.distcp"))
    assert [file.path for file in found.files] == [str(path) for path in files]
    assert {file.rank for file in found.files} == {0}
    assert [file.bytes for file in found.files] == [path.stat().st_size for path in files]


@pytest.mark.parametrize("sums", [True, False])
def test_what_we_write_is_read(tmp_path, sums, monkeypatch):
    monkeypatch.setattr(torch_dist, "PIECE_BYTES", 64)
    monkeypatch.setattr(torch_dist, "FILE_BYTES", 4096)
    tensors = {"layers": distinct((2, 3, 9, 4)), "half": distinct((40, 2), torch.float16)}
    tensors |= {"scalar": distinct(()), "empty": torch.empty(0, 3), "truth": KINDS["kind.bool"]}
    planned = {name: one_block(tmp_path, tensor) for name, tensor in tensors.items()}
    planned["layers"] = stacked(tmp_path, tensors["layers"], 2)
    plan = plan_torch_dist(planned, ("a._extra_state/shard_0_1",), prefix="", sums=sums)
    write(plan, tmp_path / "out")
    found = open_dcp(tmp_path / "out")
    assert_reads(found, tensors)
    assert (found.format, len(found.files)) == ("torch_dist", len(plan.files))


@pytest.fixture(scope="module")
def scratch():
    with tempfile.TemporaryDirectory() as path:
        yield Path(path)


@pytest.mark.slow
@settings(max_examples=60)
@given(layouts(max_dims=3), st.integers(8, 40))
def test_any_tiling_by_blocks_is_read(scratch, layout, limit):
    tensor, blocks = layout["tensor"], []
    folder = Path(tempfile.mkdtemp(dir=scratch))
    boxes = [box for box in layout["boxes"] if box.volume] or layout["boxes"][:1]
    for box in boxes:
        spans = zip(box.offsets, box.sizes, strict=True)
        part = tensor[tuple(slice(at, at + size) for at, size in spans)]
        blocks += Block(box.offsets, lazily(folder, part)).pieces(limit)
    sharded = {"it": TiledTensor(tuple(tensor.shape), tuple(blocks), ())}
    write(plan_torch_dist(sharded, (), prefix="", sums=False), folder / "out")
    assert_reads(open_dcp(folder / "out"), {"it": tensor})


def test_each_file_is_opened_once(tmp_path, monkeypatch):
    state = {f"layers.{number}": distinct((3,)) for number in range(60)}
    folder = save(tmp_path / "dcp", state, thread_count=3)
    opened: Counter[str] = Counter()

    def counting(real):
        def open_and_count(path, *arguments, **options):
            opened[Path(str(path)).name] += 1
            return real(path, *arguments, **options)

        return open_and_count

    monkeypatch.setattr(os, "open", counting(os.open))
    monkeypatch.setattr(builtins, "open", counting(builtins.open))
    found = open_dcp(folder)
    assert (len(found), found.problems) == (60, ())
    assert {name: opened[name] for name in opened if name.endswith(".distcp")} == {
        "__0_0.distcp": 1, "__0_1.distcp": 1, "__0_2.distcp": 1
    }  # fmt: skip


@pytest.fixture
def small(tmp_path: Path) -> Path:
    return save(tmp_path / "dcp", {"a": distinct((2, 3))})


def test_a_place_without_an_offset_is_that_of_the_tensor(small):
    found = pickle.loads((small / ".metadata").read_bytes())
    where = found.storage_data.pop(meta.MetadataIndex("a", (0, 0)))
    found.storage_data[meta.MetadataIndex("a")] = where
    (small / ".metadata").write_bytes(pickle.dumps(found))
    assert_reads(open_dcp(small), {"a": distinct((2, 3))})


def test_an_archive_of_something_else_is_a_problem(small):
    torch.save([None], small / "__0_0.distcp")
    found = pickle.loads((small / ".metadata").read_bytes())
    where = found.storage_data[meta.MetadataIndex("a", (0, 0))]
    where.offset, where.length = 0, (small / "__0_0.distcp").stat().st_size
    (small / ".metadata").write_bytes(pickle.dumps(found))
    (problem,) = open_dcp(small).problems
    assert (problem.kind, problem.where) == ("unreadable", "a")
    assert "no tensor at byte 0" in problem.message


@pytest.mark.parametrize("backend", ["torch_dist", "torch_dcp"])
def test_metadata_json_makes_it_megatrons(small, backend):
    (small / "metadata.json").write_text(json.dumps({"sharded_backend": backend}))
    found = open_dcp(small)
    assert_reads(found, {"a": distinct((2, 3))})
    assert found.format == "torch_dist"


REFUSED = {
    "zarr": (b'{"sharded_backend": "zarr"}', "sharded_backend is 'zarr'"),
    "no backend": (b"{}", "sharded_backend is None"),
    "a backend that is no text": (b'{"sharded_backend": [1]}', r"sharded_backend is \[1\]"),
    "cut short": (b'{"sharded_backend": "tor', "not JSON"),
    "empty": (b"", "not JSON"),
    "a list": (b"[]", "not a JSON object"),
    "no text": (b"\xff\xfe\x00", "not JSON"),
    "deep": (b"[" * 100_000, "not JSON"),
}


@pytest.mark.parametrize(("content", "said"), REFUSED.values(), ids=REFUSED.keys())
def test_another_metadata_json_is_a_problem(small, content, said):
    (small / "metadata.json").write_bytes(content)
    found = open_dcp(small)
    assert found.format == "torch_dist"
    (problem,) = found.problems
    assert (problem.kind, problem.where) == ("metadata", str(small / "metadata.json"))
    assert re.search(said, problem.message)
    with pytest.raises(CheckpointError):
        found["a"]


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("1", "iter_0000001"),
        ("0012\n", "iter_0000012"),
        ("12345678", "iter_12345678"),
        ("release", "release"),
        (" release\n", "release"),
    ],
)
def test_a_tracker_file_names_the_folder(tmp_path, text, name):
    for folder in ("iter_0000001", "iter_0000012", "iter_12345678", "release"):
        save(tmp_path / folder, {folder: distinct((2,))})
    (tmp_path / "latest_checkpointed_iteration.txt").write_text(text)
    found = locate_dcp(tmp_path)
    assert found == tmp_path / name
    assert list(open_dcp(found)) == [name]


@pytest.mark.parametrize("text", ["7", "", "-1", "../other", "9" * 40, "\0"])
def test_a_tracker_file_of_a_folder_that_is_not_there(tmp_path, text):
    base = tmp_path / "base"
    save(base / "iter_0000001", {"a": distinct((2,))})
    save(tmp_path / "other", {"a": distinct((2,))})
    (base / "latest_checkpointed_iteration.txt").write_text(text)
    assert locate_dcp(base) is None


def test_a_folder_is_found_without_a_tracker_file(small):
    assert locate_dcp(small) == small
    assert locate_dcp(small.parent) is None
    assert locate_dcp(small / "nothing") is None


def test_config_is_found_here_or_beside(small):
    assert open_dcp(small).side_files is None
    beside = small.parent / "huggingface"
    beside.mkdir()
    (beside / "config.json").write_text("{}")
    assert open_dcp(small).side_files == beside
    (small / "config.json").write_text("{}")
    assert open_dcp(small).side_files == small
