"""Hugging Face folders and files: whole ones read back, damaged ones say what is wrong."""

import json
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from ckpt_tool.common.errors import CheckpointError, CkptError
from ckpt_tool.readers import Checkpoint, open_checkpoint
from tests.support.backed import distinct, same
from tests.support.versions import needs_safetensors_0_5

DTYPES = [
    *("float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2"),
    *("int64", "int32", "int16", "int8", "uint64", "uint32", "uint16", "uint8", "bool"),
    "complex64",
]


def tensors() -> dict[str, torch.Tensor]:
    made = {
        "matrix": distinct((5, 3)),
        "vector": distinct((7,), torch.bfloat16),
        "scalar": torch.tensor(3, dtype=torch.int64),
        "empty": torch.empty(0, 4),
    }
    for name in DTYPES:
        values = torch.arange(1, 49, dtype=torch.uint8)
        values = values % 2 if name == "bool" else values
        made[f"of {name}"] = values.view(getattr(torch, name)).reshape(2, -1)
    return made


def assert_reads(checkpoint: Checkpoint, expected: dict[str, torch.Tensor]) -> None:
    assert checkpoint.problems == ()
    assert checkpoint.format == "huggingface"
    assert set(checkpoint) == set(expected)
    for name, value in expected.items():
        assert same(checkpoint[name].read(), value), name


def only_problem(path: Path) -> tuple[str, str, str]:
    """The kind, place (a file's name or a tensor's) and message of the one problem."""
    checkpoint = open_checkpoint(path)
    (problem,) = checkpoint.problems
    with pytest.raises(CheckpointError):
        checkpoint.require_sound()
    where = Path(problem.where).name if problem.where.startswith("/") else problem.where
    return problem.kind, where, problem.message


def sharded(folder: Path, suffix: str = "safetensors") -> dict[str, torch.Tensor]:
    """Two files and an index; the expected tensors."""
    folder.mkdir(exist_ok=True)
    expected = {"a": distinct((4, 3)), "b": distinct((5,)), "c": distinct((2, 2), torch.int64)}
    files = {"model-1." + suffix: ["a"], "model-2." + suffix: ["b", "c"]}
    if suffix == "bin":
        files = {f"pytorch_{name}": names for name, names in files.items()}
    for file, names in files.items():
        part = {name: expected[name] for name in names}
        save_file(part, folder / file) if suffix == "safetensors" else torch.save(
            part, folder / file
        )
    weight_map = {name: file for file, names in files.items() for name in names}
    write_index(folder, weight_map, suffix)
    return expected


def write_index(folder: Path, weight_map: object, suffix: str = "safetensors") -> None:
    name = "model.safetensors" if suffix == "safetensors" else "pytorch_model.bin"
    index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    (folder / f"{name}.index.json").write_text(json.dumps(index))


@needs_safetensors_0_5
def test_a_single_file(tmp_path):
    save_file(tensors(), tmp_path / "any name.safetensors", metadata={"format": "pt"})
    assert_reads(open_checkpoint(tmp_path / "any name.safetensors"), tensors())


def test_a_file_of_many_gigabytes(tmp_path):
    """Sparse on disk: tensors behind the fourth gigabyte are found where they are."""
    rows, path = 1 << 30, tmp_path / "model.safetensors"
    table = {
        name: {
            "dtype": "BF16",
            "shape": [rows, 2],
            "data_offsets": [at * 4 * rows, at * 4 * rows + 4 * rows],
        }
        for at, name in enumerate("abc")
    }
    header = json.dumps(table).encode()
    with open(path, "wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        start = file.tell()
        file.truncate(start + 12 * rows)
        file.seek(start + 8 * rows + 4)
        file.write(b"\x80\x3f\x00\x40")
    checkpoint = open_checkpoint(path)
    assert not checkpoint.problems
    assert checkpoint["c"].narrow(0, 0, 3).read().tolist() == [[0, 0], [1, 2], [0, 0]]


@needs_safetensors_0_5
def test_a_folder_with_one_file(tmp_path):
    save_file(tensors(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("{}")
    checkpoint = open_checkpoint(tmp_path)
    assert_reads(checkpoint, tensors())
    assert checkpoint.side_files == tmp_path
    assert checkpoint.world_size is None


def test_a_folder_with_an_index(tmp_path):
    expected = sharded(tmp_path)
    checkpoint = open_checkpoint(tmp_path)
    assert_reads(checkpoint, expected)
    names = [Path(file.path).name for file in checkpoint.files]
    assert names == ["model-1.safetensors", "model-2.safetensors"]


def test_a_folder_of_several_files_without_an_index(tmp_path):
    expected = sharded(tmp_path)
    (tmp_path / "model.safetensors.index.json").unlink()
    assert_reads(open_checkpoint(tmp_path), expected)


@needs_safetensors_0_5
def test_model_safetensors_stands_for_the_model_alone(tmp_path):
    save_file(tensors(), tmp_path / "model.safetensors")
    save_file({"lora": distinct((2,))}, tmp_path / "adapter_model.safetensors")
    assert_reads(open_checkpoint(tmp_path), tensors())


@pytest.mark.parametrize("with_index", [True, False])
def test_bin_files(tmp_path, with_index):
    expected = sharded(tmp_path, "bin")
    if not with_index:
        (tmp_path / "pytorch_model.bin.index.json").unlink()
    assert_reads(open_checkpoint(tmp_path), expected)


def test_one_bin_file(tmp_path):
    state = {"a": distinct((4, 3)).t(), "b": distinct((3,))}
    torch.save(state, tmp_path / "pytorch_model.bin")
    expected = {name: value.contiguous() for name, value in state.items()}
    assert_reads(open_checkpoint(tmp_path), expected)


def test_safetensors_come_before_bin_files(tmp_path):
    save_file({"a": distinct((2,))}, tmp_path / "model.safetensors")
    torch.save({"a": torch.zeros(2)}, tmp_path / "pytorch_model.bin")
    assert_reads(open_checkpoint(tmp_path), {"a": distinct((2,))})


def test_an_index_of_bin_files_that_were_not_downloaded(tmp_path):
    """Hub repositories keep both; people download one, and `*.json` with it."""
    save_file({"a": distinct((2,))}, tmp_path / "model.safetensors")
    write_index(tmp_path, {"a": "pytorch_model-1.bin"}, "bin")
    assert_reads(open_checkpoint(tmp_path), {"a": distinct((2,))})


def test_what_transformers_writes(checkpoints):
    folder = checkpoints["fsdp2_moe_w2"] / "reference"
    assert_reads(open_checkpoint(folder), load_file(folder / "model.safetensors"))


# --- damage of a safetensors file


def crafted(path: Path, header: object, data: bytes = b"", length: int | None = None) -> Path:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    size = len(raw) if length is None else length
    path.write_bytes(size.to_bytes(8, "little") + raw + data)
    return path


def row(dtype: object = "U8", shape: object = (2,), begin: object = 0, end: object = 2) -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def test_the_crafted_file_is_good(tmp_path):
    path = crafted(tmp_path / "t.safetensors", {"a": row(), "__metadata__": {"x": "y"}}, b"\1\2")
    assert_reads(open_checkpoint(path), {"a": torch.tensor([1, 2], dtype=torch.uint8)})


def test_spaces_after_the_header_are_allowed(tmp_path):
    header = json.dumps({"a": row()}).encode() + b"   "
    path = crafted(tmp_path / "t.safetensors", header, b"\1\2")
    assert_reads(open_checkpoint(path), {"a": torch.tensor([1, 2], dtype=torch.uint8)})


HEADERS = {
    "not JSON": b"{,}",
    "not text": b"\xff\xfe\xfd",
    "a list": b"[]",
    "a number": b"7",
    "deeply nested": b"[" * 200_000,
    "nested objects": b'{"a":' * 200_000,
    "a row that is a list": {"a": [1, 2]},
    "a row that is null": {"a": None},
    "no dtype": {"a": {"shape": [2], "data_offsets": [0, 2]}},
    "no shape": {"a": {"dtype": "U8", "data_offsets": [0, 2]}},
    "no offsets": {"a": {"dtype": "U8", "shape": [2]}},
    "one offset": {"a": {"dtype": "U8", "shape": [2], "data_offsets": [0]}},
    "three offsets": {"a": {"dtype": "U8", "shape": [2], "data_offsets": [0, 1, 2]}},
    "an unknown dtype": {"a": row("F4")},
    "a dtype in torch's name": {"a": row("uint8")},
    "a dtype that is a list": {"a": row(["U8"])},
    "a gap": {"a": row("U8", (1,), 1, 2)},
    "a gap between": {"a": row("U8", (0,), 0, 0), "b": row("U8", (1,), 1, 2)},
    "an overlap": {"a": row("U8", (2,), 0, 2), "b": row("U8", (1,), 1, 2)},
    "twice the same": {"a": row("U8", (2,), 0, 2), "b": row("U8", (2,), 0, 2)},
    "less than the data": {"a": row("U8", (1,), 0, 1)},
    "more than the data": {"a": row("U8", (3,), 0, 3)},
    "nothing": {},
    "a shape that does not fit": {"a": row("U8", (3,), 0, 2)},
    "a dtype that does not fit": {"a": row("U16", (2,), 0, 2)},
    "a negative size": {"a": row("U8", (-2,), 0, 2)},
    "two negative sizes": {"a": row("U8", (-1, -2), 0, 2)},
    "negative offsets": {"a": row("U8", (2,), -2, 0)},
    "offsets the wrong way round": {"a": row("U8", (2,), 2, 0)},
    "a size of text": {"a": row("U8", ["x"], 0, 2)},
    "a broken size": {"a": row("U8", [2.5], 0, 2)},
    "a shape of text": {"a": row("U8", "2", 0, 2)},
    "infinite size": b'{"a":{"dtype":"U8","shape":[1e999],"data_offsets":[0,2]}}',
    "infinite offset": b'{"a":{"dtype":"U8","shape":[2],"data_offsets":[0,1e999]}}',
    "NaN": b'{"a":{"dtype":"U8","shape":[NaN],"data_offsets":[0,2]}}',
    "sizes whose product cannot be shown": {"a": row("U8", [10**4000, 10**4000], 0, 2)},
    "a size that cannot be shown": b'{"a":{"dtype":"U8","shape":[1' + b"0" * 5000 + b"]}}",
    "huge sizes of nothing": {"a": row("U8", [10**4000, 0, 10**4000], 0, 0), "b": row()},
}


@pytest.mark.parametrize("header", HEADERS.values(), ids=HEADERS.keys())
def test_damaged_headers(tmp_path, header):
    path = crafted(tmp_path / "t.safetensors", header, b"\1\2")
    kind, where, message = only_problem(path)
    assert (kind, where) == ("unreadable", "t.safetensors")
    assert message
    crafted(tmp_path / "model.safetensors", header, b"\1\2")
    path.unlink()
    assert only_problem(tmp_path)[:2] == ("unreadable", "model.safetensors")


@pytest.mark.parametrize("length", [0, 3, 10_000, 2**63, 2**64 - 1])
def test_header_lengths_that_are_not_true(tmp_path, length):
    path = crafted(tmp_path / "t.safetensors", {"a": row()}, b"\1\2", length)
    assert only_problem(path)[0] == "unreadable"


def test_duplicate_names_in_one_header(tmp_path):
    """JSON readers keep the last: the first's bytes are then nobody's."""
    one, other = json.dumps(row("U8", (1,), 0, 1)), json.dumps(row("U8", (1,), 1, 2))
    path = crafted(tmp_path / "t.safetensors", f'{{"a":{one},"a":{other}}}'.encode(), b"\1\2")
    assert only_problem(path)[0] == "unreadable"


@pytest.mark.slow
def test_truncation_at_any_byte(tmp_path):
    path = tmp_path / "model.safetensors"
    save_file({"a": distinct((3, 2)), "b": distinct((4,), torch.int64)}, path)
    content = path.read_bytes()
    for end in range(len(content)):
        path.write_bytes(content[:end])
        assert only_problem(tmp_path)[:2] == ("unreadable", "model.safetensors")


def test_bytes_that_belong_to_nobody(tmp_path):
    path = tmp_path / "model.safetensors"
    save_file({"a": distinct((3, 2))}, path)
    path.write_bytes(path.read_bytes() + b"\0")
    assert "expected 24" in only_problem(tmp_path)[2]


@pytest.mark.slow
@settings(max_examples=200)
@given(st.data())
def test_changed_bytes_are_reported_or_harmless(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "changed.safetensors"
    save_file({"a": distinct((3, 2)), "b": distinct((4,), torch.int64)}, path)
    content = bytearray(path.read_bytes())
    header = int.from_bytes(content[:8], "little") + 8
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, header - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    with suppress(CkptError):
        checkpoint = open_checkpoint(path)
        if not checkpoint.problems:
            assert sum(entry.nbytes for entry in checkpoint.entries.values()) == 56
            assert all(len(raw(checkpoint, name)) >= 0 for name in checkpoint)


def raw(checkpoint: Checkpoint, name: str) -> bytes:
    return bytes(checkpoint[name].read().flatten().view(torch.uint8).numpy())


# --- damage of a folder


def test_a_file_that_the_index_names_is_missing(tmp_path):
    sharded(tmp_path)
    (tmp_path / "model-2.safetensors").unlink()
    assert only_problem(tmp_path)[:2] == ("missing-file", "model-2.safetensors")


def test_a_tensor_that_the_index_names_is_missing(tmp_path):
    sharded(tmp_path)
    save_file({"b": distinct((5,))}, tmp_path / "model-2.safetensors")
    kind, where, message = only_problem(tmp_path)
    assert (kind, where) == ("missing-tensor", "c")
    assert "model-2.safetensors" in message


def test_a_tensor_that_is_not_in_the_index(tmp_path):
    expected = sharded(tmp_path)
    save_file({"a": expected["a"], "extra": distinct((1,))}, tmp_path / "model-1.safetensors")
    assert only_problem(tmp_path)[:2] == ("index", "extra")


def test_a_tensor_in_another_file_than_the_index_says(tmp_path):
    sharded(tmp_path)
    files = {"a": "model-1.safetensors", "b": "model-1.safetensors", "c": "model-2.safetensors"}
    write_index(tmp_path, files)
    assert only_problem(tmp_path)[:2] == ("index", "b")


@pytest.mark.parametrize("with_index", [True, False])
def test_a_tensor_in_two_files(tmp_path, with_index):
    expected = sharded(tmp_path)
    save_file({"a": expected["a"], "b": distinct((5,))}, tmp_path / "model-1.safetensors")
    if not with_index:
        (tmp_path / "model.safetensors.index.json").unlink()
    kind, where, message = only_problem(tmp_path)
    assert kind == "duplicate"
    assert where.startswith("b (")
    assert "model-1.safetensors" in message


@pytest.mark.parametrize("outside", ["../out.safetensors", "/etc/passwd", "sub/x.safetensors"])
def test_an_index_that_points_outside(tmp_path, outside):
    folder = tmp_path / "model"
    expected = sharded(folder)
    save_file({"a": expected["a"]}, tmp_path / "out.safetensors")
    files = {"a": outside, "b": "model-2.safetensors", "c": "model-2.safetensors"}
    write_index(folder, files)
    checkpoint = open_checkpoint(folder)
    assert ("index", outside) in {(p.kind, p.where) for p in checkpoint.problems}
    assert "a" not in checkpoint.entries
    assert {Path(file.path).parent for file in checkpoint.files} == {folder}


@pytest.mark.parametrize("outside", ["..", ".", "", "\0"])
def test_an_index_that_names_no_file(tmp_path, outside):
    sharded(tmp_path)
    write_index(tmp_path, {"a": outside})
    assert open_checkpoint(tmp_path).problems


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "7", '{"weight_map": []}', '{"weight_map": {"a": 7}}', "{}", "[" * 200_000],
)
def test_a_damaged_index(tmp_path, text):
    sharded(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text(text)
    assert only_problem(tmp_path)[:2] == ("index", "model.safetensors.index.json")


def test_an_index_that_is_no_text(tmp_path):
    sharded(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_bytes(b"\xff\xfe")
    assert only_problem(tmp_path)[:2] == ("index", "model.safetensors.index.json")


def test_a_link_to_nowhere(tmp_path):
    """A download cache whose blobs are gone."""
    (tmp_path / "model.safetensors").symlink_to(tmp_path / "blobs" / "gone")
    assert only_problem(tmp_path)[:2] == ("unreadable", "model.safetensors")


def test_a_folder_in_place_of_a_file(tmp_path):
    (tmp_path / "model.safetensors").mkdir()
    assert only_problem(tmp_path)[:2] == ("unreadable", "model.safetensors")


def test_a_truncated_bin_file(tmp_path):
    sharded(tmp_path, "bin")
    path = tmp_path / "pytorch_model-2.bin"
    path.write_bytes(path.read_bytes()[:-50])
    problems = {(p.kind, Path(p.where).name) for p in open_checkpoint(tmp_path).problems}
    assert ("unreadable", "pytorch_model-2.bin") in problems


def test_a_git_lfs_pointer_in_place_of_weights(tmp_path):
    (tmp_path / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid")
    assert only_problem(tmp_path)[:2] == ("unreadable", "model.safetensors")


def test_several_faults_are_all_listed(tmp_path):
    expected = sharded(tmp_path)
    (tmp_path / "model-2.safetensors").write_bytes(b"")
    save_file({"a": expected["a"], "extra": distinct((1,))}, tmp_path / "model-1.safetensors")
    files = {"a": "model-1.safetensors", "b": "model-2.safetensors", "d": "model-3.safetensors"}
    write_index(tmp_path, files)
    found = {(p.kind, Path(p.where).name) for p in open_checkpoint(tmp_path).problems}
    assert found >= {
        ("unreadable", "model-2.safetensors"),
        ("missing-file", "model-3.safetensors"),
        ("index", "extra"),
    }


@pytest.mark.parametrize("name", ["a" * 300, "a" * 5000, "a\0b", "", "..", "\x1b[31m"], ids=ascii)
def test_names_of_files_that_no_file_system_takes_are_problems(tmp_path, name):
    sharded(tmp_path)
    write_index(tmp_path, {"a": name})
    problems = open_checkpoint(tmp_path).problems
    assert {"index", "missing-file"} & {problem.kind for problem in problems}


@pytest.mark.parametrize(
    "content", [b"{}", b"[]", b'{"weight_map": {"a": 1}}', b'{"a": "\\udc00"}']
)
def test_an_index_that_is_none_is_a_problem(tmp_path, content):
    sharded(tmp_path)
    index = tmp_path / "model.safetensors.index.json"
    index.write_bytes(content)
    found = [p for p in open_checkpoint(tmp_path).problems if p.where == str(index)]
    assert [problem.kind for problem in found] == ["index"]
