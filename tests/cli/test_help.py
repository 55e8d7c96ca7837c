"""Help: options in groups, one default each, examples that hold, the width of the terminal."""

import os
import re
import shlex
import subprocess
import sys
from typing import Any

import pytest
from typer.testing import CliRunner

from ckpt_tool.cli.app import app
from ckpt_tool.cli.help import GROUPS
from tests.support.commands import COMMANDS

NAMES = [name.removesuffix(" *") for name in COMMANDS]


def show(*words: str, width: int = 80) -> str:
    done = CliRunner().invoke(app, words, terminal_width=width)
    assert done.exit_code == 0, done.stderr
    return done.stdout


def find_sections(text: str) -> dict[str, str]:
    """The parts of a help text by their titles; lines of one are joined."""
    parts = re.split(r"^([A-Z].*):\n", text, flags=re.M)
    return {
        title: " ".join(body.split()) for title, body in zip(parts[1::2], parts[2::2], strict=True)
    }


def test_every_option_is_in_one_group() -> None:
    grouped = [name for names in GROUPS.values() for name in names.split()]
    assert len(grouped) == len(set(grouped))
    options = {
        param.name
        for command in COMMANDS.values()
        for param in command.params
        if param.param_type_name == "option"
    }
    assert options | {"help"} == set(grouped)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("width", [60, 80, 160])
def test_lines_fit_and_end_with_a_word(name: str, width: int) -> None:
    lines = show(*name.split(), "--help", width=width).splitlines()
    whole = [line for line in lines if "  ckpt " not in line]  # an example is one line
    assert max(map(len, whole)) <= width
    assert [line for line in lines if line != line.rstrip()] == []


@pytest.mark.slow
def test_the_width_is_the_terminals() -> None:
    command = [sys.executable, "-m", "ckpt_tool", "merge", "--help"]
    for width, widest in ((72, 70), (150, 148), (400, 158)):
        text = subprocess.check_output(command, text=True, env=os.environ | {"COLUMNS": f"{width}"})
        lines = [line for line in text.splitlines() if "  ckpt " not in line]
        assert widest - 12 <= max(map(len, lines)) <= widest


@pytest.mark.parametrize("name", [name for name in NAMES if name])
def test_words_are_broken_at_their_hyphens_only(name: str) -> None:
    narrow, wide = (show(*name.split(), "--help", width=width) for width in (60, 160))
    assert re.sub(r"-\n +", "-", narrow).split() == re.sub(r"-\n +", "-", wide).split()


@pytest.mark.parametrize("name", NAMES)
def test_no_option_has_two_defaults(name: str) -> None:
    text = " ".join(show(*name.split(), "--help").split())
    options = re.split(r" (?=--?[a-z-]+(?: |,))", text)
    assert max(option.count("[default:") for option in options) <= 1
    assert "x<=" not in text
    assert "<path>" not in text.lower()


@pytest.mark.parametrize(
    ("name", "arguments"),
    [("inspect", "PATH..."), ("merge", "CKPT... OUT"), ("verify", "CKPT [REFERENCE]")],
)
def test_the_first_line_says_what_to_type(name: str, arguments: str) -> None:
    assert show(name, "--help").splitlines()[0] == f"Usage: ckpt {name} [OPTIONS] {arguments}"


def test_defaults_are_said() -> None:
    sections = find_sections(show("merge", "--help"))
    assert "--max-shard-size SIZE Largest weight file:" in sections["Files and dtypes"]
    assert "[default: 5GB]" in sections["Files and dtypes"]
    assert "before it appears. [default: --fsync]" in sections["Writing"]
    mcore = find_sections(show("to-mcore", "--help"))
    assert "own model. [default: --no-check-load]" in mcore["Checks"]
    assert sections["Arguments"].startswith("CKPT")


def list_examples(name: str) -> list[list[str]]:
    epilog = COMMANDS[name].epilog
    return [shlex.split(re.split(" {2,}", line)[0]) for line in epilog.strip().splitlines()]


@pytest.mark.parametrize("name", list(COMMANDS))
def test_every_command_has_examples_that_parse(name: str) -> None:
    examples = list_examples(name)
    assert len(examples) >= 2
    words = name.removesuffix(" *").split()
    shown = find_sections(show(*words, "--help", width=160))["Examples"]
    for program, *typed in examples:
        assert program == "ckpt"
        assert typed[: len(words)] == words
        command: Any = COMMANDS[name]
        context = command.make_context(name, typed[len(words) :], resilient_parsing=False)
        assert context.params
        assert " ".join(typed).replace("'", "") in shown.replace("'", "")


@pytest.mark.parametrize("words", ["merge", "merge fsdp", "verify", ""])
def test_help_is_a_command(words: str) -> None:
    assert show("help", *words.split()) == show(*words.split(), "--help")


def test_commands_are_in_the_order_of_their_use() -> None:
    commands = find_sections(show("--help", width=160))["Commands"]
    places = [commands.index(f"{name} ") for name in ("inspect", "merge", "verify", "to-mcore")]
    assert places == sorted(places)
    assert "..." not in commands
    assert "..." not in find_sections(show("merge", "--help", width=160))["Commands"]


def test_the_version_has_a_short_flag() -> None:
    assert show("-V") == show("--version")
