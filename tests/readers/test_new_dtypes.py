"""The formats of safetensors that torch or numpy lack, in part or in whole."""

import json
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from ckpt_tool import MergeOptions, merge_dcp, verify_checkpoint
from ckpt_tool.common.errors import MappingError
from ckpt_tool.operations.options import ToMcoreOptions, VerifyOptions
from ckpt_tool.operations.to_mcore import plan_to_mcore
from ckpt_tool.plans.checks.safetensors import require_readable
from ckpt_tool.readers import open_checkpoint
from ckpt_tool.tensors.blocks import BlockReader, FileTable
from ckpt_tool.tensors.dtypes import BFLOAT16
from ckpt_tool.writers.safetensors import plan_file
from tests.support.merging import TINY

FORMATS = {
    "F4": ("float4_e2m1fn_x2", (3, 8), (3, 4)),
    "F6_E2M3": ("float6_e2m3fn_4in3", (2, 8), (2, 6)),
    "F6_E3M2": ("float6_e3m2fn_4in3", (4,), (3,)),
    "F8_E4M3FNUZ": ("float8_e4m3fnuz", (2, 3), (2, 3)),
    "F8_E5M2FNUZ": ("float8_e5m2fnuz", (5,), (5,)),
    "F8_E8M0": ("float8_e8m0fnu", (2, 2), (2, 2)),
}
BITS = {"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6}
#: What torch has, and safetensors writes of it.
OF_TORCH = [name for name, _, _ in FORMATS.values() if hasattr(torch, name)]

_VERSION = pytest.importorskip("safetensors").__version__
needs_new = pytest.mark.skipif(
    tuple(map(int, _VERSION.split(".")[:2])) < (0, 7) or "float4_e2m1fn_x2" not in OF_TORCH,
    reason="older safetensors and torch do not know these",
)


def write(path: Path, rows: dict[str, tuple[str, tuple[int, ...], int]]) -> bytes:
    """A file of tensors (format, shape, bytes), all of whose bytes are distinct; its data."""
    ends = [0]
    for _, _, size in rows.values():
        ends.append(ends[-1] + size)
    header = {
        name: {"dtype": kind, "shape": shape, "data_offsets": span}
        for (name, (kind, shape, _)), span in zip(rows.items(), pairwise(ends), strict=True)
    }
    text, data = json.dumps(header).encode(), bytes(range(ends[-1]))
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return data


def all_formats(path: Path) -> bytes:
    rows = {}
    for kind, (_, shape, _) in FORMATS.items():
        rows[kind] = (kind, shape, torch.Size(shape).numel() * BITS.get(kind, 8) // 8)
    return write(path, rows)


@needs_new
def test_they_are_read_and_copied_bit_for_bit(tmp_path):
    data = all_formats(tmp_path / "model.safetensors")
    found = open_checkpoint(tmp_path / "model.safetensors")
    assert found.problems == ()
    named = {name: (t.dtype.name, t.shape) for name, t in found.items()}
    assert named == {kind: (dtype, shape) for kind, (dtype, _, shape) in FORMATS.items()}
    planned = plan_file("copy.safetensors", dict(found))
    copied = bytearray(planned.items[0])
    with FileTable() as files:
        for tensor in planned.tensors:
            held = bytearray(tensor.nbytes)
            BlockReader(files).read(tensor, 0, tensor.numel, memoryview(held))
            copied += held
    (tmp_path / planned.name).write_bytes(copied)
    require_readable(planned, tmp_path / planned.name)
    with safe_open(tmp_path / planned.name, "np") as file:
        for kind, (_, shape, _) in FORMATS.items():
            piece = file.get_slice(kind)
            assert (piece.get_dtype(), tuple(piece.get_shape())) == (kind, shape)
    assert copied[-len(data) :] == data
    result = verify_checkpoint(tmp_path / "model.safetensors", tmp_path / planned.name)
    assert (result.equal, result.num_equal) == (True, len(FORMATS))


@needs_new
@pytest.mark.parametrize("at", range(6))
def test_one_bit_is_a_difference(tmp_path, at):
    data = all_formats(tmp_path / "a.safetensors")
    content = bytearray((tmp_path / "a.safetensors").read_bytes())
    kind = list(FORMATS)[at]
    begin = open_checkpoint(tmp_path / "a.safetensors").entries[kind].holdings[0].region.offset
    content[begin] ^= 1
    (tmp_path / "b.safetensors").write_bytes(content)
    result = verify_checkpoint(tmp_path / "a.safetensors", tmp_path / "b.safetensors")
    assert [each.name for each in result.mismatched] == [kind]
    assert set(result.mismatched[0].first_index) == {0}
    assert data


@needs_new
@pytest.mark.parametrize("name", OF_TORCH)
def test_what_torch_saves_is_merged_as_safetensors_saves_it(tmp_path, name):
    values = torch.arange(1, 25, dtype=torch.uint8).view(getattr(torch, name)).reshape(4, -1)
    save_file({"a": values}, tmp_path / "expected.safetensors")
    torch.save({"model": {"a": values}}, tmp_path / "run.pt")
    merge_dcp(tmp_path / "run.pt", tmp_path / "out", MergeOptions(keep_names=True))
    written = tmp_path / "out" / "model.safetensors"
    found = open_checkpoint(written)["a"]
    assert torch.equal(found.read().view(torch.uint8), values.view(torch.uint8))
    shapes = []
    for path in (written, tmp_path / "expected.safetensors"):
        with safe_open(path, "np") as file:
            shapes.append(file.get_slice("a").get_shape())
    assert shapes[0] == shapes[1]
    assert torch.equal(load_file(written)["a"].view(torch.uint8), values.view(torch.uint8))


@needs_new
@pytest.mark.parametrize("name", [n for n in OF_TORCH if n != "float8_e8m0fnu"])
def test_casts_are_refused_by_name(tmp_path, name):
    values = torch.arange(1, 17, dtype=torch.uint8).view(getattr(torch, name)).reshape(2, -1)
    torch.save({"model": {"a.weight": values}}, tmp_path / "run.pt")
    options = MergeOptions(keep_names=True, dtype="bfloat16")
    with pytest.raises(MappingError, match="not cast") as refused:
        merge_dcp(tmp_path / "run.pt", tmp_path / "out", options)
    assert refused.value.names == (f"a.weight: {name}",)
    assert not (tmp_path / "out").exists()
    with pytest.raises(ValueError, match=f"no cast from {name} to bfloat16"):
        open_checkpoint(tmp_path / "run.pt")["model.a.weight"].to(BFLOAT16)


@needs_new
def test_other_dtypes_of_one_tensor_differ_whatever_is_cast(tmp_path):
    values = torch.arange(1, 17, dtype=torch.uint8).reshape(2, -1)
    save_file({"a": values.view(torch.float8_e4m3fnuz)}, tmp_path / "a.safetensors")
    save_file({"a": torch.ones(2, 8)}, tmp_path / "b.safetensors")
    options = VerifyOptions(cast_reference=True)
    result = verify_checkpoint(tmp_path / "a.safetensors", tmp_path / "b.safetensors", options)
    assert [each.name for each in result.mismatched] == ["a"]


def test_megatron_gets_none_of_them(tmp_path):
    config = TINY | {"intermediate_size": 6}
    (tmp_path / "config.json").write_text(json.dumps(config))
    write(tmp_path / "model.safetensors", {"model.norm.weight": ("F6_E2M3", (8,), 6)})
    with pytest.raises(MappingError):
        plan_to_mcore(tmp_path, ToMcoreOptions())


def test_formats_that_torch_lacks_are_not_made_tensors(tmp_path):
    write(tmp_path / "a.safetensors", {"a": ("F6_E3M2", (4,), 3)})
    with pytest.raises(ValueError, match="has no float6_e3m2fn_4in3"):
        open_checkpoint(tmp_path / "a.safetensors")["a"].read()


@pytest.mark.parametrize(
    ("kind", "shape", "size", "said"),
    [
        ("F4", (3, 3), 5, "a: a malformed row (F4 [3, 3]: the last dimension is no multiple of 2)"),
        ("F4", (), 1, "a: a malformed row (F4 []: the last dimension is no multiple of 2)"),
        ("F6_E2M3", (2, 2), 3, "no multiple of 4"),
        ("F4", (2, 4), 8, "a: 8 bytes for float4_e2m1fn_x2 [2, 2], expected 4"),
        ("F6_E3M2", (4,), 4, "a: 4 bytes for float6_e3m2fn_4in3 [3], expected 3"),
        ("F8_E4M3FNUZ", (4,), 8, "a: 8 bytes for float8_e4m3fnuz [4], expected 4"),
        ("F2", (4,), 1, "a: dtype 'F2', which is not known here"),
        ("x" * 200, (4,), 1, "which is not known here"),
    ],
)
def test_what_no_such_tensor_can_be_is_a_problem(tmp_path, kind, shape, size, said):
    write(tmp_path / "a.safetensors", {"a": (kind, shape, size)})
    (problem,) = open_checkpoint(tmp_path / "a.safetensors").problems
    assert said in problem.message
