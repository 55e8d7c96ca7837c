"""Damaged and hostile folders of torch.distributed.checkpoint: every problem is named."""

import os
import pickle
import re
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributed.checkpoint import metadata as meta

from ckpt_tool.common.errors import CheckpointError, FormatError, UnsafeContentError
from ckpt_tool.readers.dcp.folder import open_dcp
from tests.readers.dcp.test_folder import assert_reads, save
from tests.support.backed import distinct

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")

STATE = dict(zip("abcdefgh", distinct((8, 4, 4)), strict=True))
STATE |= {"long": distinct((5, 4)), "whole": distinct((4, 4), torch.int32)}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save(tmp_path / "dcp", STATE)


def edit(folder: Path, change) -> None:
    """Change the real metadata and write it again."""
    path = folder / ".metadata"
    loaded = pickle.loads(path.read_bytes())
    change(loaded)
    path.write_bytes(pickle.dumps(loaded))


def place(found: meta.Metadata, name: str, offset=(0, 0)):
    return found.storage_data[meta.MetadataIndex(name, offset)]


def problems(folder: Path) -> list[tuple[str, str]]:
    checkpoint = open_dcp(folder)
    assert all(problem.message for problem in checkpoint.problems)
    if checkpoint.problems:
        with pytest.raises(CheckpointError):
            checkpoint.require_sound()
    return [(problem.kind, problem.where) for problem in checkpoint.problems]


def test_the_undamaged_folder_is_sound(folder):
    assert_reads(open_dcp(folder), STATE)


def chunk(offsets, sizes) -> meta.ChunkStorageMetadata:
    return meta.ChunkStorageMetadata(torch.Size(offsets), torch.Size(sizes))


def test_all_problems_are_found_at_once(folder):
    secret = folder.parent / "secret.distcp"
    secret.write_bytes((folder / "__0_0.distcp").read_bytes())

    def change(found: meta.Metadata) -> None:
        entries = found.state_dict_metadata
        place(found, "a").relative_path = "__7_0.distcp"
        place(found, "b").relative_path = "__7_0.distcp"
        place(found, "c").relative_path = "../secret.distcp"
        entries["d"].chunks.clear()
        entries["e"].chunks.append(chunk((2, 0), (1, 4)))
        found.storage_data[meta.MetadataIndex("e", (2, 0))] = place(found, "e")
        entries["f"].chunks[0] = chunk((1, 0), (4, 4))
        place(found, "g").transform_descriptors = [("zstd", {})]
        found.storage_data.pop(meta.MetadataIndex("h", (0, 0)))
        entries["whole"].properties.dtype = torch.float32
        long = place(found, "long")
        long.offset, long.length = place(found, "a").offset, place(found, "a").length

    edit(folder, change)
    gone = [("missing-file", str(folder / name)) for name in ("../secret.distcp", "__7_0.distcp")]
    named = {"coverage": "deff", "encoded": "g", "missing-block": "h", "unreadable": "e"}
    expected = [(kind, name) for kind, names in named.items() for name in names]
    expected += [("unreadable", "long"), ("unreadable", "whole"), *gone]
    assert sorted(problems(folder)) == sorted(expected)
    said = {p.where: p.message for p in open_dcp(folder).problems if p.kind != "coverage"}
    assert re.search(r"float32 \[4, 4\] at byte \d+, expected float32 \[5, 4\]", said["long"])
    assert re.search(r"int32 \[4, 4\] at byte \d+, expected float32 \[4, 4\]", said["whole"])
    assert list(open_dcp(folder)) == list(STATE)


def test_coverage_is_said_by_the_block(folder):
    def change(found: meta.Metadata) -> None:
        for name, box in {"a": chunk((0, 0), (3, 4)), "f": chunk((1, 0), (4, 4))}.items():
            found.state_dict_metadata[name].chunks[0] = box

    edit(folder, change)
    assert [
        str(problem) for problem in open_dcp(folder).problems if problem.kind == "coverage"
    ] == [
        "a: [3:4, 0:4] of [4, 4] is in no block",
        "f: block [1, 0] + [4, 4] is outside of [4, 4]",
        "f: [0:4, 0:4] of [4, 4] is in no block",
    ]


def test_files_that_are_cut_short_lack_what_lay_behind(folder):
    path = folder / "__0_0.distcp"
    found, size = pickle.loads((folder / ".metadata").read_bytes()), path.stat().st_size
    for cut in (1, size // 2, size - 1, size):
        os.truncate(path, size - cut)
        expected = {
            ("unreadable", index.fqn)
            for index, where in found.storage_data.items()
            if where.offset + where.length > size - cut
        }
        assert set(problems(folder)) == expected
        assert expected
    path.unlink()
    assert problems(folder) == [("missing-file", str(path))]


def damage(found: meta.Metadata, kind: str) -> None:
    entry = found.state_dict_metadata["a"]
    if kind == "ranks differ":
        entry.chunks[0] = chunk((0,), (4, 4))
    elif kind == "one dimension":
        entry.chunks[0] = chunk((0,), (4,))
    elif kind == "a long name":
        place(found, "a").relative_path = "x" * 300
    else:
        where = {"before": (-5, 9), "behind": (1 << 40, 9), "backwards": (0, -1)}[kind]
        place(found, "a").offset, place(found, "a").length = where


@pytest.mark.parametrize(
    "kind", ["one dimension", "before", "behind", "backwards", "ranks differ", "a long name"]
)
def test_impossible_places_are_problems(folder, kind):
    edit(folder, lambda found: damage(found, kind))
    assert {kind for kind, _ in problems(folder)} <= {"coverage", "unreadable", "missing-file"}
    assert problems(folder)


class Bomb:
    """Makes a file when it is unpickled by Python."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("where", ["entries", "storage", "top", "planner"])
def test_metadata_that_would_run_code_runs_nothing(folder, where, tmp_path):
    marker, bomb = tmp_path / "marker", Bomb(tmp_path / "marker")
    found = pickle.loads((folder / ".metadata").read_bytes())
    if where == "entries":
        found.state_dict_metadata["a"] = bomb
    elif where == "storage":
        found.storage_data[meta.MetadataIndex("a", (0, 0))] = bomb
    elif where == "planner":
        found.planner_data = {"a": bomb}
    (folder / ".metadata").write_bytes(pickle.dumps(bomb if where == "top" else found))
    pickle.loads((folder / ".metadata").read_bytes())
    assert marker.exists()  # it does work on Python's unpickler
    marker.unlink()
    with pytest.raises(UnsafeContentError, match=r"system.*nothing was run") as refused:
        open_dcp(folder)
    assert str(folder / ".metadata") in refused.value.message
    assert not marker.exists()


def test_an_archive_that_would_run_code_runs_nothing(folder, tmp_path):
    path = folder / "__1_0.distcp"
    torch.save(Bomb(tmp_path / "marker"), path)

    def change(found: meta.Metadata) -> None:
        spot = place(found, "a")
        spot.relative_path, spot.offset, spot.length = path.name, 0, path.stat().st_size

    edit(folder, change)
    with pytest.raises(UnsafeContentError, match="system"):
        open_dcp(folder)
    assert not (tmp_path / "marker").exists()


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """A small folder, sound, and its metadata."""
    state = {"a": distinct((2, 3)), "b": distinct((4,), torch.bfloat16), "n": 7}
    folder = save(tmp_path_factory.mktemp("real") / "dcp", state)
    return folder, (folder / ".metadata").read_bytes()


@pytest.mark.slow
def test_metadata_cut_short_anywhere_is_a_format_error(real):
    folder, content = real
    for end in range(len(content)):
        (folder / ".metadata").write_bytes(content[:end])
        with pytest.raises(FormatError) as refused:
            open_dcp(folder)
        assert str(folder / ".metadata") in refused.value.message
        assert type(refused.value) is FormatError


@pytest.mark.slow
@settings(max_examples=400)
@given(st.data())
def test_changed_bytes_of_metadata_give_problems_or_a_format_error(real, data):
    folder, content = real
    changed = bytearray(content)
    for _ in range(data.draw(st.integers(1, 3))):
        changed[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    (folder / ".metadata").write_bytes(changed)
    with suppress(FormatError):
        assert all(problem.message for problem in open_dcp(folder).problems)


def described(size, chunks) -> meta.Metadata:
    entry = meta.TensorStorageMetadata(meta.TensorProperties(), size, chunks)
    return meta.Metadata({"a": entry}, None, {})


MALFORMED = {
    "a number": 7,
    "a dict": {"state_dict_metadata": {}, "storage_data": {}},
    "no entries": meta.Metadata(None, None, {}),
    "no storage": meta.Metadata({}, None, None),
    "entries in a list": meta.Metadata([], None, {}),
    "an index that is none": meta.Metadata({}, None, {"a": 1}),
    "a place that is none": meta.Metadata({}, None, {meta.MetadataIndex("a"): 1}),
    "a tensor without a size": described(None, []),
    "a tensor without chunks": described(torch.Size([2]), None),
    "a chunk that is none": described(torch.Size([2]), [7]),
    "a negative size": described((-2,), []),
    "a size that is text": described(("2",), []),
}


@pytest.mark.parametrize("value", MALFORMED.values(), ids=MALFORMED.keys())
def test_metadata_of_another_kind_is_a_format_error(real, value):
    folder, _ = real
    (folder / ".metadata").write_bytes(pickle.dumps(value))
    with pytest.raises(FormatError) as refused:
        open_dcp(folder)
    assert str(folder / ".metadata") in refused.value.message
