"""A path that a command does not take: what is there is said, and the command that takes it."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.numpy import save_file
from typer.testing import CliRunner

from ckpt_tool.cli.app import app
from tests.support.merging import TINY, values, write_rank

STATE = {"a.weight": values(3, 4)}
MERGES = ("merge", "merge fsdp", "merge megatron", "merge dcp", "merge deepspeed")
WRITES = (*MERGES, "to-mcore")
EVERY = (*WRITES, "verify")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refuse(command: str, path: str) -> str:
    """What is said of a path, by a command that does not take it."""
    out = [] if command == "verify" else ["out"]
    typed = [*command.split(), path, *out]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["ckpt", *typed])
        done = CliRunner().invoke(app, typed)
    assert (done.exit_code, done.stdout) == (2, ""), done.output
    assert done.stderr.startswith(f"ckpt: error: {path}: ")
    assert not Path("out").exists()
    return done.stderr


def write_model(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(TINY))
    save_file({name: value.numpy() for name, value in STATE.items()}, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize("command", MERGES)
@pytest.mark.parametrize("path", ["my model", "my model/model.safetensors"])
def test_a_model_is_no_checkpoint_to_merge(command: str, path: str) -> None:
    write_model(Path("my model"))
    said = refuse(command, path)
    assert f"{path}: this is a Hugging Face model" in said
    assert f"ckpt verify CKPT '{path}'." in said
    assert said.rstrip().endswith(f"ckpt to-mcore '{path}' OUT")
    assert ("expected: " in said) == (command != "merge")


def test_a_model_is_compared_with_something() -> None:
    write_model(Path("model"))
    said = refuse("verify", "model")
    assert "this is a Hugging Face model, without the ckpt_manifest.json" in said
    assert said.rstrip().endswith("ckpt verify model REFERENCE")
    assert "this is a file, not a folder" in refuse("verify", "model/model.safetensors")


def test_a_sharded_checkpoint_is_merged_first() -> None:
    write_rank(Path("my ranks"), STATE, TINY)
    said = refuse("to-mcore", "my ranks")
    assert "this is an FSDP checkpoint, not a Hugging Face model" in said
    assert said.rstrip().endswith("ckpt merge 'my ranks' MODEL, then: ckpt to-mcore MODEL OUT")
    assert "this is an FSDP checkpoint; expected: DeepSp" in refuse("merge deepspeed", "my ranks")
    said = refuse("verify", "my ranks")
    assert "this is an FSDP checkpoint, without the ckpt_manifest.json" in said
    assert said.rstrip().endswith("ckpt verify 'my ranks' REFERENCE")


@pytest.mark.parametrize("command", MERGES)
def test_one_rank_is_merged_with_the_others(command: str) -> None:
    write_rank(Path("ranks"), STATE, TINY, 0, 2)
    said = refuse(command, "ranks/model_world_size_2_rank_0.pt")
    assert "this is an FSDP rank file" in said
    assert said.rstrip().endswith("ckpt merge ranks OUT")


@pytest.mark.parametrize("command", EVERY)
def test_a_run_is_listed(command: str) -> None:
    for step in (5, 10):
        write_rank(Path(f"run/global_step_{step}/actor"), STATE, TINY)
    said = refuse(command, "run")
    assert "2 checkpoints are below it" in said
    if command == "verify":
        assert said.rstrip().endswith("ckpt inspect run")
    else:
        assert f"  - ckpt {command} run/global_step_10 out\n" in said


@pytest.mark.parametrize("command", EVERY)
def test_an_empty_folder_is_called_so(command: str) -> None:
    Path("empty").mkdir()
    said = refuse(command, "empty")
    assert said.endswith("empty: no checkpoint of a known format in this folder, which is empty\n")


@pytest.mark.parametrize("command", EVERY)
def test_a_folder_of_something_else_says_what_it_holds_and_what_was_expected(command: str) -> None:
    Path("code").mkdir()
    for name in ("a.py", "b.py", "c.py", "d.py", "e.py"):
        Path("code", name).touch()
    first, second, *known = refuse(command, "code").splitlines()
    assert first.endswith("in this folder, which holds a.py, b.py, c.py and 2 others")
    assert second == "  Expected one of these:"
    assert len(known) == 7
    assert all(line.startswith("  - ") and len(line) <= 100 for line in known)


@pytest.mark.parametrize("command", EVERY)
def test_a_config_without_weights_leads_to_the_weights(command: str) -> None:
    ranks = write_rank(Path("run/actor"), STATE, TINY)
    said = refuse(command, str(ranks / "huggingface"))
    assert "only config or tokenizer of a model, without weights" in said
    assert said.endswith("  The weights are above it: name run/actor instead.\n")
    Path("alone").mkdir()
    Path("alone/tokenizer.json").touch()
    assert "Expected one of these:" in refuse(command, "alone")


def test_the_folder_above_the_one_that_one_is_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(write_rank(Path("run/actor"), STATE, TINY) / "huggingface")
    assert refuse("merge", ".").endswith(f"name {Path.cwd().parent} instead.\n")


@pytest.mark.parametrize("command", EVERY)
def test_a_mistyped_path_and_a_repository(command: str) -> None:
    write_rank(Path("run/global_step_100/actor"), STATE, TINY)
    said = refuse(command, "run/global_step_10")
    assert said.endswith("no such file or folder\n  Is it run/global_step_100?\n")
    said = refuse(command, "Qwen/Qwen3-8B")
    assert said.rstrip().endswith("hf download Qwen/Qwen3-8B --local-dir Qwen3-8B")
    for path in ("nothing", "/no/such", "../no/such", "a/b/c"):
        assert len(refuse(command, path).splitlines()) == 1


def test_a_folder_that_lost_its_manifest_beside_others(tmp_path: Path) -> None:
    torch.save(STATE, tmp_path / "state.pt")
    assert "this is a file, not a folder" in refuse("verify", "state.pt")
