"""`cli/README.md` has every option of every command and every key of the JSON, and no other."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from ckpt_tool.cli import app as program
from ckpt_tool.cli.report.as_json import make_object
from ckpt_tool.compare.moves import Moves
from ckpt_tool.compare.totals import Total, Totals
from ckpt_tool.operations.origin import Origin
from tests.real.megatron_models import write_model
from tests.support.commands import COMMANDS
from tests.support.merging import TINY, values, write_rank
from tests.support.verifications import FOLDER, mismatch, result, side

README = (Path(program.__file__).parent / "README.md").read_text()

#: The sections that say what a command can be given.
SECTIONS = {
    "": ["`ckpt`"],
    "inspect": ["`ckpt inspect`"],
    "verify": ["`ckpt verify`"],
    "to-mcore": ["`ckpt to-mcore`"],
    "merge *": ["Every `ckpt merge`", "`ckpt merge CKPT OUT`"],
    "merge fsdp": ["Every `ckpt merge`", "`ckpt merge fsdp`"],
    "merge megatron": ["Every `ckpt merge`", "`ckpt merge megatron`"],
    "merge dcp": ["Every `ckpt merge`", "`ckpt merge dcp`"],
    "merge deepspeed": ["Every `ckpt merge`", "`ckpt merge deepspeed`"],
}


def section(title: str) -> str:
    """What stands under a heading, up to the next one."""
    (text,) = re.findall(rf"^#+ {re.escape(title)}\n(.*?)(?=^#|\Z)", README, re.M | re.S)
    return text


def tables(title: str) -> list[list[str]]:
    """For each table of a section what its first column has in code, without the heading."""
    found: list[list[str]] = []
    for line in section(title).splitlines():
        if line.startswith("|---"):
            found.append([])
        elif line.startswith("| `"):
            cell = re.split(r"(?<!\\)\|", line)[1].replace(r"\|", "|")
            found[-1] += re.findall(r"`([^`]+)`", cell)
    return found


def as_written(parameter: Any) -> list[str]:
    """A parameter as the tables have it: ``--name VALUE``, both names of a switch, ``CKPT``."""
    if parameter.param_type_name == "argument":
        return [parameter.metavar]
    names = [*parameter.opts, *parameter.secondary_opts]
    value = "" if parameter.is_flag else f" {parameter.metavar}"
    return [name + value for name in names]


def test_every_command_has_its_sections() -> None:
    assert COMMANDS.keys() == SECTIONS.keys()


@pytest.mark.parametrize("name", SECTIONS)
def test_the_options_of_a_command_are_those_of_its_tables(name: str) -> None:
    written = [each for title in SECTIONS[name] for table in tables(title) for each in table]
    known = [each for found in COMMANDS[name].params for each in as_written(found)]
    assert sorted(written) == sorted(each for each in known if each not in ("--help", "-h"))
    assert all(found.metavar or found.is_flag for found in COMMANDS[name].params)


def keys(title: str, number: int = 0) -> set[str]:
    return set(tables(title)[number])


def run(*words: object) -> dict[str, Any]:
    done = CliRunner().invoke(program.app, [*map(str, words), "--json"])
    assert done.exit_code == 0, done.stderr
    found = json.loads(done.stdout)
    assert isinstance(found, dict)
    return found


@pytest.fixture
def ranks(tmp_path: Path) -> Path:
    return write_rank(tmp_path / "ranks", {"a.weight": values(4)}, TINY)


def test_keys_of_inspect(ranks: Path) -> None:
    found = run("inspect", ranks, "--shards")
    assert found.keys() == keys("`ckpt inspect --json`")
    assert [file.keys() for file in found["files"]] == [{"path", "bytes", "rank", "parallel"}]
    assert run("inspect", ranks).keys() == keys("`ckpt inspect --json`") - {"shards"}


def test_keys_of_merge(ranks: Path, tmp_path: Path) -> None:
    written = keys("`ckpt merge --json`")
    words = ("merge", "fsdp", ranks, tmp_path / "out", "--config", "none")
    not_there = {"already_complete", "differences"}
    assert run(*words, "--dry-run").keys() == written - not_there | {"dry_run"}
    assert run(*words).keys() == written


def test_keys_of_merge_of_steps(ranks: Path, tmp_path: Path) -> None:
    ranks.rename(tmp_path / "step_1")
    words = ["merge", tmp_path, tmp_path / "out", "--steps", "all", "--config", "none", "--json"]
    (found,) = json.loads(CliRunner().invoke(program.app, [*map(str, words)]).stdout)
    assert found.keys() == keys("`ckpt merge --steps --json`")
    assert found["result"].keys() == keys("`ckpt merge --json`") - {"upload"}


@pytest.mark.slow
def test_keys_of_to_mcore(tmp_path: Path) -> None:
    words = ("to-mcore", write_model("qwen3", tmp_path / "model"), tmp_path / "out")
    shared, only_planned = keys("`ckpt merge --json`") - {"upload"}, {"tensors", "layers"}
    written = shared | keys("`ckpt to-mcore --json`")
    not_there = {"already_complete", "differences"}
    assert run(*words, "--dry-run").keys() == written - not_there | {"dry_run"}
    assert run(*words, "--no-fsync").keys() == written - only_planned


def test_keys_of_verify() -> None:
    row = Total("a", 1, 1, 8, 2, 0, 0.5)
    moves = Moves("a", 8, (1.0, 1.0, 1.0, 2.0), 0.0)
    known = {
        "totals": Totals((row,), (row,)),
        "origin": Origin(side(FOLDER, ["a"]), [moves], moves, ["b"]),
    }
    found = make_object(result({}, [mismatch("a"), mismatch("b", kind="shape")], **known))
    assert found.keys() == keys("`ckpt verify --json`")
    for row in found["mismatched"]:
        assert row.keys() == keys("`ckpt verify --json`", 1)
    for row in found["totals"]["layers"]:
        assert row.keys() == keys("`ckpt verify --json`", 2)
    for row in found["origin"]["moves"]:
        assert row.keys() == keys("`ckpt verify --json`", 3)
    assert found["origin"].keys() == {"path", "total", "moves", "left_out"}
