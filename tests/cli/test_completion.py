"""Completion in real shells, as ``--show-completion`` sets it up."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from ckpt_tool.cli.app import app

BASH = """
eval "$(ckpt --show-completion bash)"
COMP_WORDS=("$@")
COMP_CWORD=$(($# - 1))
name=$(complete -p $1 | sed 's/.* -F \\([^ ]*\\) .*/\\1/')
$name $1
printf '%s\\n' "${COMPREPLY[@]}"
"""
ZSH = """
autoload -Uz compinit
compinit -u -D
eval "$(ckpt --show-completion zsh)"
_arguments() { print -r -- "$@" }
_files() { print files }
words=("$@")
CURRENT=$#
$_comps[$1]
"""
FISH = """
ckpt --show-completion fish | source
complete -C "$argv"
"""


@pytest.fixture
def program(tmp_path: Path) -> dict[str, str]:
    """An environment in which the program has both its names."""
    for name in ("ckpt", "ckpt-tool"):
        script = tmp_path / name
        run = "from ckpt_tool.cli.app import main; main()"
        script.write_text(f"#!{sys.executable}\n{run}\n")
        script.chmod(0o755)
    root = str(Path(__file__).parents[2])
    return os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHONPATH": root}


def ask(shell: str, script: str, environment: dict[str, str], *words: str) -> list[str]:
    name = [] if shell == "fish" else [shell]  # which takes the first word for none
    done = subprocess.run(
        [shell, "-c", script, *name, *words],
        capture_output=True,
        text=True,
        check=True,
        env=environment,
    )
    assert done.stderr == ""
    return done.stdout.split()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ckpt", "ckpt-tool"])
@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["me"], ["merge"]),
        ([""], ["inspect", "merge", "verify", "to-mcore"]),
        (["help", "ver"], ["verify"]),
        (["merge", ""], ["fsdp", "megatron", "dcp", "deepspeed"]),
        (["merge", "--tok"], ["--tokenizer"]),
        (["merge", "a", "--dtype", "b"], ["bfloat16"]),
        (["merge", "fsdp", "--check-r"], ["--check-replicas"]),
        (["to-mcore", "m", "--layout", ""], ["bare", "megatron-lm"]),
        (["verify", "a", "b", "--hea"], ["--heatmap"]),
    ],
)
def test_bash(name: str, words: list[str], found: list[str], program: dict[str, str]) -> None:
    assert ask("bash", BASH, program, name, *words) == found


@pytest.mark.slow
def test_bash_is_left_to_complete_paths(program: dict[str, str]) -> None:
    assert ask("bash", BASH, program, "ckpt", "inspect", "runs/") == []
    shown = CliRunner().invoke(app, ["--show-completion", "bash"]).stdout
    assert shown.count("complete -o default -F") == 2


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("zsh") is None, reason="there is no zsh")
def test_zsh(program: dict[str, str]) -> None:
    assert '"bfloat16"' in " ".join(ask("zsh", ZSH, program, "ckpt", "merge", "--dtype", "b"))
    said = " ".join(ask("zsh", ZSH, program, "ckpt-tool", "to"))
    assert '"to-mcore":' in said
    assert ask("zsh", ZSH, program, "ckpt", "inspect", "runs/") == ["files"]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("fish") is None, reason="there is no fish")
def test_fish(tmp_path: Path, program: dict[str, str]) -> None:
    """It asks for the line up to the cursor, and takes words with what they are about."""
    assert ask("fish", FISH, program, "ckpt merge a --dtype b") == ["bfloat16"]
    assert ask("fish", FISH, program, "ckpt verify a b --hea")[0] == "--heatmap"
    said = ask("fish", FISH, program, "ckpt-tool me")
    assert " ".join(said) == "merge Merge a sharded checkpoint into a Hugging Face model folder."
    tmp_path.joinpath("runs").mkdir()
    assert ask("fish", FISH, program, f"ckpt inspect {tmp_path}/ru") == [f"{tmp_path}/runs/"]


def test_a_shell_that_is_not_known_is_refused() -> None:
    refused = CliRunner().invoke(app, ["--show-completion", "tcsh"])
    assert (refused.exit_code, refused.stdout) == (2, "")
    assert "'tcsh' is none of bash, zsh, fish" in refused.stderr
