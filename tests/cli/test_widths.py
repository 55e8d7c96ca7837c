"""What is shown at 80 and 160 columns: lines end with a word, names are broken before dots only."""

import json
import re
from pathlib import Path

import pytest
import torch
from rich.text import Text
from safetensors.torch import save_file
from typer.testing import CliRunner

from ckpt_tool.cli import consoles
from ckpt_tool.cli.app import app
from tests.real.megatron_models import write_model
from tests.support.merging import TINY, write_rank

NAME = "model.layers.{}.post_attention_layernorm_of_some_length.weight"
STATE = {NAME.format(n): torch.arange(6.0) + n for n in range(3)} | {"a.weight": torch.ones(2)}


def show(width: int, *words: object, code: int = 0) -> list[str]:
    done = CliRunner(env={"COLUMNS": str(width)}).invoke(app, list(map(str, words)))
    assert done.exit_code == code, done.stderr
    return done.stdout.splitlines()


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """The ranks of :data:`STATE` as a model of which one tensor differs."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(TINY))
    save_file(STATE | {"a.weight": torch.zeros(2)}, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize("width", [80, 160])
def test_no_line_ends_with_blanks(width: int, model: Path, tmp_path: Path) -> None:
    ranks = [write_rank(tmp_path / f"run/step-{step}", STATE, TINY) for step in (1, 2)]
    shown = show(width, "inspect", ranks[0])
    shown += show(width, "inspect", tmp_path / "run")
    shown += show(width, "merge", ranks[0], tmp_path / "out", "--dry-run", "--config", "none")
    shown += show(width, "verify", ranks[0], model, "--config", "none", "--heatmap", code=1)
    assert len(shown) > 25
    assert [line for line in shown if line != line.rstrip()] == []


@pytest.mark.parametrize("width", [80, 160])
def test_names_of_megatron_are_broken_before_dots(width: int, tmp_path: Path) -> None:
    model = write_model("qwen3", tmp_path / "model")
    words = ("to-mcore", model, tmp_path / "out", "--dry-run")
    shown = [line for line in show(width, *words) if str(tmp_path) not in line]
    assert [line for line in shown if len(line) > width or line != line.rstrip()] == []
    joined = re.sub(r"(?:  +[^<\n]+)?\n    \.", ".", "\n".join(shown))
    names = [row["name"] for row in json.loads("\n".join(show(80, *words, "--json")))["tensors"]]
    assert [name for name in names if not re.search(rf"(?m)^{re.escape(name)}( |$)", joined)] == []
    assert "  < model.layers.{0..3}.post_attention_layernorm.weight" in joined


def test_blanks_on_a_colour_stay(capsys: pytest.CaptureFixture[str]) -> None:
    console = consoles.make_console()
    with console.capture() as capture:
        console.print(Text.assemble("a", ("  ", "on red"), "  \n b  \n"))
    assert capture.get() == "a  \n b\n\n"


@pytest.mark.parametrize("width", [60, 200])
def test_commands_of_a_run_are_never_broken(
    width: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run = Path("a-run-with-a-long-name-that-no-narrow-table-holds")
    ranks = [write_rank(run / f"global_step_{step}/actor", STATE) for step in (1, 2)]
    shown = show(width, "inspect", run)
    commands = [f"ckpt merge {path.parent} OUT --config MODEL" for path in ranks]
    assert [line for line in shown if line.endswith(tuple(commands))] == [
        f"    {step}   actor   FSDP checkpoint   {command}" if width == 200 else f" {command}"
        for step, command in enumerate(commands, 1)
    ]
    assert [line.split()[:2] for line in shown if "FSDP checkpoint" in line] == [
        ["1", "actor"],
        ["2", "actor"],
    ]


def test_nothing_is_no_table(tmp_path: Path) -> None:
    file = tmp_path / "notes.txt"
    file.write_text("no checkpoint")
    shown = show(80, "inspect", file, code=2)
    assert "dtype" not in "\n".join(shown)
    assert any(line.startswith("unreadable") for line in shown)
    assert "" not in shown


def test_a_terminal_breaks_facts_between_words(monkeypatch: pytest.MonkeyPatch) -> None:
    line = f"  load     {'x' * 40} of {'/y' * 30}\n           and z"
    for wanted, is_terminal in (
        (line.splitlines(), False),
        ([f"  load     {'x' * 40} of", " " * 11 + "/y" * 30, " " * 11 + "and z"], True),
    ):
        console = consoles.make_console()
        console.width = 60
        monkeypatch.setattr(type(console), "is_terminal", is_terminal)
        with console.capture() as capture:
            consoles.print_fact(console, line)
        assert capture.get().splitlines() == wanted
