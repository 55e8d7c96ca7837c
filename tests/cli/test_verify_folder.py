"""`ckpt verify OUT`: a folder held against its own manifest."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from ckpt_tool.cli.app import app
from tests.cli.test_reference import keys
from tests.common.test_parallel import PROJECT
from tests.operations.test_check_folder import flip
from tests.plans.test_manifest import MANIFEST_NAME, contents, write_run
from tests.support import hub_server
from tests.support.hub_server import Hub
from tests.support.torchrun import ranks_command

hub = hub_server.hub


def run(*arguments: object) -> Result:
    return CliRunner(env={"COLUMNS": "200"}).invoke(app, [*map(str, arguments)])


@pytest.fixture
def out(tmp_path: Path) -> Path:
    source = write_run(tmp_path / "here")
    done = run("merge", "fsdp", source, tmp_path / "out", "--no-check-load")
    assert done.exit_code == 0, done.output
    return tmp_path / "out"


def test_what_is_as_it_was_written_is_equal(out: Path) -> None:
    done = run("verify", out)
    assert done.exit_code == 0
    first, second = done.stdout.splitlines()
    assert first.startswith("Equal: 4 files, ")
    assert second.split() == "from fsdp of run qwen-grpo, step 100 (actor); ckpt-tool 0.1.0".split()
    assert done.stderr == ""


def test_what_is_not_is_named(out: Path) -> None:
    flip(out / "model.safetensors", 5000)
    (out / "tokenizer.json").unlink()
    (out / "na\x1b[31mme").touch()
    done = run("verify", out)
    assert done.exit_code == 1
    first, _, *rows = done.stdout.splitlines()
    assert first == "Different: 2 of 4 files not as ckpt_manifest.json says, 1 too many"
    assert [row.split()[:2] for row in rows] == [
        ["missing", "tokenizer.json"],
        ["unexpected", r"na\x1b[31mme"],
        ["different", "model.safetensors:"],
    ]
    assert "has other bytes" in rows[2]


def test_long_lists_are_cut_unless_they_are_wanted(out: Path) -> None:
    for number in range(30):
        (out / f"x{number}").touch()
    done = run("verify", out)
    assert done.stdout.count("unexpected") == 20
    assert "and 10 more (--verbose lists them)" in done.stdout
    assert run("--verbose", "verify", out).stdout.count("unexpected") == 30


@pytest.mark.parametrize("spoiled", [False, True])
def test_all_of_it_is_in_the_json(out: Path, spoiled: bool) -> None:
    if spoiled:
        flip(out / "config.json", 5)
    done = run("verify", out, "--json")
    found = json.loads(done.stdout)
    assert found.keys() == keys("`ckpt verify OUT --json`")
    assert (found["equal"], done.exit_code) == (not spoiled, int(spoiled))
    assert list(found["different"]) == ["config.json"] * spoiled
    assert found["source"] == {"run": "qwen-grpo", "step": 100, "role": "actor", "format": "fsdp"}


def spoil_manifest(out: Path) -> None:
    (out / MANIFEST_NAME).write_text('{"schema": 1}')


NO_VERDICT = {
    "no manifest": (lambda out: (out / MANIFEST_NAME).unlink(), f"without the {MANIFEST_NAME}"),
    "damaged": (spoil_manifest, "not a manifest of this version"),
    "no folder": (lambda out: out.rename(out.parent / "moved"), "no such file or folder"),
}


@pytest.mark.parametrize(("spoil", "said"), NO_VERDICT.values(), ids=NO_VERDICT)
def test_where_nothing_says_what_it_should_be_there_is_no_verdict(out: Path, spoil, said) -> None:
    spoil(out)
    done = run("verify", out)
    assert done.exit_code == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize(
    "words", [("--atol", "1"), ("--heatmap",), ("--top", "10"), ("--ignore", "x"), ("--prefix", "")]
)
def test_what_is_said_of_a_comparison_needs_a_reference(out: Path, words) -> None:
    done = run("verify", out, *words)
    assert done.exit_code == 2
    assert f"{words[0]}: nothing to compare with" in done.stderr


@pytest.mark.slow
def test_it_needs_neither_torch_nor_transformers(out: Path) -> None:
    program = (
        "import sys; from ckpt_tool.cli.app import app\n"
        f"try: app(['verify', {str(out)!r}])\n"
        "except SystemExit as end: assert not end.code\n"
        "print([m for m in ('torch', 'transformers', 'safetensors') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.real
@pytest.mark.slow
def test_of_several_processes_one_says_it(out: Path) -> None:
    flip(out / "config.json", 5)
    words = [*ranks_command(2), "-m", "ckpt_tool", "verify", str(out)]
    done = subprocess.run(words, cwd=PROJECT, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    assert done.stdout.count("Different: 1 of 4 files") == 1


def test_a_merge_without_one_says_so(tmp_path: Path) -> None:
    words = ("merge", "fsdp", write_run(tmp_path / "here"))
    bare = run(*words, tmp_path / "bare", "--no-check-load", "--no-manifest", "--json")
    assert json.loads(bare.stdout)["manifest"] is None
    assert MANIFEST_NAME not in contents(tmp_path / "bare")
    whole = run(*words, tmp_path / "whole", "--no-check-load", "--json")
    assert json.loads(whole.stdout)["manifest"] == MANIFEST_NAME


@pytest.mark.slow
@pytest.mark.parametrize("manifest", [True, False])
@pytest.mark.filterwarnings("ignore:Use 'content:DeprecationWarning")
def test_an_upload_says_whether_it_is_included(hub: Hub, tmp_path: Path, manifest: bool) -> None:
    source, switch = write_run(tmp_path / "here"), [] if manifest else ["--no-manifest"]
    words = ("merge", "fsdp", source, tmp_path / "out", "--no-check-load", "--upload", "m", *switch)
    planned, done = run(*words, "--dry-run"), run(*words)
    assert done.exit_code == 0, done.output
    said = "with ckpt_manifest.json: run, step, names and sizes of the source"
    assert (said in planned.stdout, said in done.stdout) == (manifest, manifest)
    assert (MANIFEST_NAME in hub.repos["ada/m"].files) == manifest
