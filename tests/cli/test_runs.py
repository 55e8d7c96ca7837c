"""A run's folder: `inspect` lists what is in it, and other commands say which to name."""

import json
import shutil
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from ckpt_tool.cli.app import app
from tests.real.megatron_models import write_model
from tests.support.merging import TINY, values, write_rank

STATE = {"a.weight": values(3, 4)}


@pytest.fixture
def verl_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Named as from the folder above it; two steps of two roles, the second the last."""
    monkeypatch.chdir(tmp_path)
    for step in (9, 10):
        for role in ("actor", "critic"):
            write_rank(Path(f"my run/global_step_{step}/{role}"), STATE, TINY)
    Path("my run/latest_checkpointed_iteration.txt").write_text("10")
    return Path("my run")


def ckpt(*words: object, monkeypatch: pytest.MonkeyPatch | None = None) -> Result:
    typed = [*map(str, words)]
    if monkeypatch is not None:
        monkeypatch.setattr(sys, "argv", ["/usr/bin/ckpt", *typed])
    return CliRunner(env={"COLUMNS": "100"}).invoke(app, typed)


def test_inspect_lists_steps_roles_and_commands(verl_run: Path) -> None:
    done = ckpt("inspect", verl_run)
    assert done.exit_code == 0, done.stderr
    rows = [
        line.strip().split(maxsplit=4) for line in done.stdout.splitlines() if "global_step" in line
    ]
    assert rows == [
        [
            str(step),
            role,
            "FSDP",
            "checkpoint",
            f"ckpt merge 'my run/global_step_{step}/{role}' OUT",
        ]
        for step in (9, 10)
        for role in ("actor", "critic")
    ]


def test_inspect_lists_them_as_json(verl_run: Path) -> None:
    found = json.loads(ckpt("inspect", verl_run, "--json").stdout)
    assert found.keys() == {"path", "checkpoints", "is_whole", "ok"}
    assert (found["path"], found["ok"], found["is_whole"]) == ("my run", True, True)
    assert found["checkpoints"][0] == {
        "path": "my run/global_step_9/actor",
        "format": "fsdp",
        "step": 9,
        "role": "actor",
        "command": "ckpt merge 'my run/global_step_9/actor' OUT",
    }
    assert len(found["checkpoints"]) == 4


def test_a_model_in_a_run_needs_no_command(verl_run: Path) -> None:
    assert (
        ckpt("merge", verl_run / "global_step_9/actor", "my run/hf", "--config", "none").exit_code
        == 0
    )
    found = json.loads(ckpt("inspect", verl_run, "--json").stdout)["checkpoints"]
    (model,) = [row for row in found if row["format"] == "huggingface"]
    assert (model["path"], model["command"], model["step"]) == ("my run/hf", None, None)
    assert "my run/hf" in ckpt("inspect", verl_run).stdout


def test_a_command_names_the_config_where_there_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Typed as it is written, with a model in the place of MODEL, it does what it says."""
    monkeypatch.chdir(tmp_path)
    write_model("qwen3", Path("made")).rename("model")
    for step in (1, 2):
        done = ckpt("to-mcore", "model", f"run/iter_{step}")
        assert done.exit_code == 0, done.stderr
    (tmp_path / "run" / "iter_2" / "huggingface").mkdir()
    shutil.copy("model/config.json", "run/iter_2/huggingface")
    found = json.loads(ckpt("inspect", "run", "--json").stdout)["checkpoints"]
    commands = [row["command"] for row in found]
    assert commands == ["ckpt merge run/iter_1 OUT --config MODEL", "ckpt merge run/iter_2 OUT"]
    for number, command in enumerate(commands):
        words = command.replace("OUT", f"hf-{number}").replace("MODEL", "model").split()
        done = ckpt(*words[1:], "--no-check-load")
        assert done.exit_code == 0, done.stderr
    shown = ckpt("inspect", "run").stdout
    assert "MODEL: the folder of the model that was trained, for its config.json." in shown
    assert commands[0] in shown
    shutil.copytree("model", "run/huggingface")
    assert "MODEL" not in ckpt("inspect", "run").stdout


@pytest.mark.parametrize("option", ["--shards", "--filter=*", "--all", "--problems", "--check-crc"])
def test_what_is_asked_about_one_is_not_answered_with_a_list(verl_run: Path, option: str) -> None:
    done = ckpt("inspect", verl_run, option)
    assert done.exit_code == 2
    assert "global_step_10: holds an actor and a critic" in done.stderr
    for step in (9, 10):
        (verl_run / f"global_step_{step}" / "critic").rename(verl_run / f"old-{step}")
    done = ckpt("inspect", verl_run, option)
    assert done.exit_code == 0, done.stderr
    assert done.stdout.startswith("FSDP checkpoint  my run/global_step_10/actor")


def test_the_only_checkpoint_of_a_run_is_shown_itself(tmp_path: Path) -> None:
    folder = write_rank(tmp_path / "outputs" / "checkpoint-7", STATE, TINY)
    done = ckpt("inspect", tmp_path, "--json")
    assert json.loads(done.stdout)["path"] == str(folder)


@pytest.mark.parametrize(
    "words",
    [
        ("merge", "{}", "out"),
        ("merge", "fsdp", "{}", "out", "--json"),
        ("verify", "{}", "other"),
        ("verify", "other", "{}"),
    ],
)
def test_others_say_what_to_type(
    verl_run: Path, words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_rank(Path("other"), STATE, TINY)
    step = f"{verl_run}/global_step_9"
    done = ckpt(*[step if word == "{}" else word for word in words], monkeypatch=monkeypatch)
    assert done.exit_code == 2
    lines = done.stderr.splitlines()
    assert lines[0] == f"ckpt: error: {step}: holds an actor and a critic"
    assert lines[1:] == [
        *("  - ckpt " + " ".join(f"'{step}/{role}'" if word == "{}" else word for word in words)
          for role in ("actor", "critic")),
        "  Name the one you mean.",
    ]  # fmt: skip
    assert not Path("out").exists()


def test_the_last_step_is_taken_and_said(verl_run: Path) -> None:
    for step in (9, 10):
        (verl_run / f"global_step_{step}" / "critic").rename(verl_run / f"old-{step}")
    done = ckpt("merge", verl_run, "out", "--config", "none")
    assert done.exit_code == 0, done.stderr
    said = "  from     FSDP checkpoint of step 10 (actor): my run/global_step_10/actor\n"
    assert said in done.stdout
    assert said in ckpt("merge", verl_run, "other", "--config", "none", "--dry-run").stdout
    for more in (["--dry-run"], []):
        words = ("merge", verl_run, f"out{len(more)}", "--config", "none", "--json", *more)
        found = json.loads(ckpt(*words).stdout)
        assert (found["step"], found["role"]) == (10, "actor")
    source = json.loads(Path("out/ckpt_manifest.json").read_text())["source"]
    assert (source["step"], source["role"]) == (10, "actor")
    assert "step 10 (actor)" in ckpt("verify", "out").stdout
