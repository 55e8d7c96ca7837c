"""The program as a whole: start-up, exit codes, one place for errors."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import ckpt_tool
from tests.support.merging import TINY, values, write_rank


def run(*arguments: object, **settings: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "ckpt_tool", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, **settings)


def modules_after(*arguments: object) -> set[str]:
    """Top-level modules that are loaded when a command has run."""
    script = (
        "import sys, json\n"
        "from ckpt_tool.cli.app import app\n"
        "try:\n    app(sys.argv[1:])\n"
        "except SystemExit as stop:\n    assert not stop.code, stop.code\n"
        "print(json.dumps(sorted({name.split('.')[0] for name in sys.modules})), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=True,
    )
    return set(json.loads(done.stderr.splitlines()[-1]))


HEAVY = {"torch", "transformers", "accelerate", "safetensors", "megatron"}


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["merge", "fsdp", "--help"]])
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    assert not modules_after(*arguments) & (HEAVY | {"numpy", "rich", "xxhash"})


def test_inspecting_and_merging_import_no_torch(
    checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    actor = checkpoints["fsdp2_moe_w2"] / "actor"
    assert not modules_after("inspect", actor) & HEAVY
    loaded = modules_after(
        "merge", "fsdp", actor, tmp_path / "out", "--dtype", "bfloat16", "--verify"
    )
    assert loaded & HEAVY == {"safetensors"}  # which opens what was written
    assert (tmp_path / "out" / "model.safetensors").exists()


def test_the_version_is_the_packages() -> None:
    assert run("--version").stdout.strip() == f"ckpt-tool {ckpt_tool.__version__}"


def test_errors_are_a_few_lines_on_stderr_and_exit_2(tmp_path: Path) -> None:
    done = run("inspect", tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"ckpt: error: {tmp_path}: no checkpoint of a known format")
    assert len(done.stderr.splitlines()) <= 4
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_verbose_shows_the_traceback(tmp_path: Path) -> None:
    done = run("--verbose", "inspect", tmp_path)
    assert done.returncode == 2
    assert "Traceback" in done.stderr
    assert "FormatError" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments",
    [["nonsense"], ["inspect"], ["inspect", "x", "--nonsense"], ["merge", "fsdp", "only-one"]],
)
def test_bad_usage_is_exit_2(arguments: list[str]) -> None:
    done = run(*arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    assert "Usage:" in done.stderr


@pytest.mark.slow
def test_a_hostile_pickle_is_refused_and_runs_nothing(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return Path.touch, (str(tmp_path / "ran"),)  # type: ignore[return-value]

    write_rank(tmp_path / "in", {"a.weight": values(4), "bomb": Bomb()}, TINY)
    for command in (
        ["inspect", tmp_path / "in"],
        ["merge", "fsdp", tmp_path / "in", tmp_path / "o"],
    ):
        done = run(*command)
        assert done.returncode == 2
        assert "Path.touch" in done.stderr or "getattr" in done.stderr or "Path" in done.stderr
        assert "nothing was run" in done.stderr
    assert not (tmp_path / "ran").exists()
    assert not (tmp_path / "o").exists()


@pytest.mark.slow
def test_many_problems_are_cut_short_unless_verbose(tmp_path: Path) -> None:
    state = {f"layers.{n}.weight": values(4) for n in range(40)}
    write_rank(tmp_path / "in", state, TINY, 0, 2)
    write_rank(tmp_path / "in", {}, None, 1, 2)
    short = run("merge", "fsdp", tmp_path / "in", tmp_path / "out")
    full = run("--verbose", "merge", "fsdp", tmp_path / "in", tmp_path / "out")
    assert "and 20 more (--verbose lists them)" in short.stderr
    assert short.stderr.count("missing-on-rank") == 20
    assert full.stderr.count("[missing-on-rank]") == 40


def test_a_closed_pipe_is_no_error(checkpoints: dict[str, Path]) -> None:
    actor = checkpoints["fsdp2_layers12_w2"] / "actor"
    command = (
        f"{sys.executable} -m ckpt_tool inspect {actor} --shards | head -1; exit ${{PIPESTATUS[0]}}"
    )
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert done.stderr == ""
    assert "FSDP checkpoint" in done.stdout


def test_no_color_and_no_escape_codes_outside_of_a_terminal(checkpoints: dict[str, Path]) -> None:
    done = run("inspect", checkpoints["fsdp2_w2"])
    assert "\x1b" not in done.stdout + done.stderr
