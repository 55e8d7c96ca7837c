"""The table of formats: one row is all that a new one needs."""

import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

import ckpt_tool.readers
from ckpt_tool.cli.app import app
from ckpt_tool.common.errors import FormatError, UnknownFormatError
from ckpt_tool.readers import find_format, formats, open_checkpoint
from ckpt_tool.readers.base import Checkpoint, Entry, Format, Holding, ShardFile
from ckpt_tool.tensors.chunks import Region
from ckpt_tool.tensors.dtypes import BY_NAME
from ckpt_tool.tensors.geometry import Box, make_strides
from tests.support.backed import distinct, same

FORMATS = formats.FORMATS
TENSORS = {"first": distinct((3, 4)), "second": distinct((5,))}


def locate_tape(path: Path) -> Path | None:
    return path if (path / "tape.json").is_file() else None


def open_tape(folder: Path, wanted=None) -> Checkpoint:
    """An invented format: `tape.json` says where in `tape.raw` each float32 tensor lies."""
    raw = ShardFile.stat(folder / "tape.raw")
    entries, left_out = {}, {}
    for name, (offset, shape) in json.loads((folder / "tape.json").read_text()).items():
        region = Region(raw.path, offset, make_strides(shape))
        box = Box((0,) * len(shape), tuple(shape))
        held = (Holding(None, box, region),)
        chosen = entries if wanted is None or wanted(name) else left_out
        chosen[name] = Entry(name, tuple(shape), BY_NAME["float32"], "whole", held)
    return Checkpoint("tape", folder, entries, (raw,), left_out=left_out)


@pytest.fixture
def tape(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of the invented format, and its row in the table."""
    row = Format("tape", "Tape", "a tape (tape.json)", locate_tape, open_tape, open_tape, "tape")
    monkeypatch.setattr(formats, "FORMATS", (*FORMATS, row))
    folder, content, places = tmp_path / "tape", b"", {}
    for name, tensor in TENSORS.items():
        places[name] = (len(content), list(tensor.shape))
        content += tensor.numpy().tobytes()
    folder.mkdir()
    (folder / "tape.raw").write_bytes(content)
    (folder / "tape.json").write_text(json.dumps(places))
    return folder


def test_a_row_makes_a_format_known(tape):
    found = open_checkpoint(tape)
    assert (found.format, found.problems, list(found)) == ("tape", (), list(TENSORS))
    assert all(same(found[name].read(), tensor) for name, tensor in TENSORS.items())
    assert find_format(found.format).merge_command == "tape"


def test_a_format_that_can_leaves_alone_what_is_not_wanted(tape):
    found = open_checkpoint(tape, lambda name: name != "first")
    assert (list(found), list(found.left_out)) == (["second"], ["first"])


def test_a_format_of_one_row_is_inspected(tape):
    result = CliRunner().invoke(app, ["inspect", str(tape)])
    assert result.exit_code == 0
    assert result.stdout.startswith(f"Tape  {tape}")
    assert re.search(r"first +\[3, 4\] +float32", result.stdout)


def test_where_nothing_is_known_every_format_of_folders_is_offered(tape, tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "train.py").touch()
    with pytest.raises(UnknownFormatError) as refused:
        open_checkpoint(tmp_path / "other")
    assert "a tape (tape.json)" in refused.value.expected
    offered = [row.files for row in formats.FORMATS if row.files]
    assert list(refused.value.expected) == offered


def test_names_and_titles_are_each_of_one_row():
    assert len({row.name for row in FORMATS}) == len({row.title for row in FORMATS}) == len(FORMATS)
    assert all(find_format(row.name) is row for row in FORMATS)
    with pytest.raises(KeyError):
        find_format("tape")


def test_commands_that_merge_exist():
    for command in {row.merge_command for row in FORMATS} - {""}:
        assert CliRunner().invoke(app, ["merge", command, "--help"]).exit_code == 0


def test_the_reference_has_every_format_and_says_how_it_is_merged():
    reference = (Path(ckpt_tool.readers.__file__).parent / "README.md").read_text()
    read, _, tried = reference.partition("### Written by, judged by")
    rows = {line.split("`")[1]: line for line in read.splitlines() if line.startswith("| `")}
    for row in FORMATS:
        if row.name in ("zarr", "dcp-unfinished"):  # which are known to be refused
            continue
        assert not row.merge_command or f"| `{row.name}` |" in tried
        assert row.title.split()[0] in rows[row.name]
        merged = f"`ckpt merge {row.merge_command}`" if row.merge_command else ""
        assert merged in rows[row.name]


def test_zarr_is_known_and_refused(tmp_path):
    (tmp_path / "metadata.json").write_text('{"sharded_backend": "zarr"}')
    with pytest.raises(FormatError, match="zarr checkpoint of megatron-core") as refused:
        open_checkpoint(tmp_path)
    assert refused.value.path == str(tmp_path)
    assert "torch_dist" in refused.value.hint
