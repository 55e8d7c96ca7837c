"""`ckpt merge --upload`: against a stand-in for the Hub, through the real huggingface_hub."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants
from typer.testing import CliRunner, Result

from ckpt_tool.cli.app import app
from tests.hub_server import CUT, FINE, READS, UNKNOWN, WRITES, Hub, Repo, serving
from tests.merging import TINY, values, write_rank


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """A hub to which huggingface_hub of this process goes, with a token that may write."""
    with serving() as found:
        monkeypatch.setattr(constants, "ENDPOINT", found.url)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setenv("HF_TOKEN", WRITES)
        yield found


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A checkpoint that becomes two weight files of 16 kB."""
    state = {
        f"model.layers.{number}.mlp.up_proj.weight": values(64, 64, start=1 + 4096 * number)
        for number in range(2)
    }
    return write_rank(tmp_path / "in", state, TINY)


def run(source: Path, out: Path, *flags: object) -> Result:
    words = ["merge", "fsdp", source, out, "--max-shard-size", "20KB", *flags]
    return CliRunner(env={"COLUMNS": "100"}).invoke(app, list(map(str, words)))


def content(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_what_the_hub_gets_is_what_was_written(hub: Hub, source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = run(source, out, "--upload", "lab/model", "--verify")
    assert result.exit_code == 0, result.stderr
    assert hub.repos["lab/model"].files == content(out)
    assert not hub.repos["lab/model"].private
    assert len(content(out)) == 5  # config, manifest, index, and no cache of huggingface_hub
    assert f"upload   {hub.url}/lab/model  5 files" in result.stdout


def test_a_name_alone_is_the_users_and_private_is_private(
    hub: Hub, source: Path, tmp_path: Path
) -> None:
    result = run(source, tmp_path / "out", "--upload", "model", "--private", "--json")
    found = json.loads(result.stdout)["upload"]
    assert (found["repo"], found["private"]) == ("ada/model", True)
    assert found["url"] == f"{hub.url}/ada/model"
    assert int(found["commit"], 16) == len(hub.repos["ada/model"].commits) - 1
    assert hub.repos["ada/model"].private


def test_an_adapter_goes_along(hub: Hub, checkpoints: dict[str, Path], tmp_path: Path) -> None:
    flags = ("--lora", "both", "--upload", "model")
    assert run(checkpoints["lora_w2"], tmp_path / "out", *flags).exit_code == 0
    found = hub.repos["ada/model"].files
    assert found == content(tmp_path / "out")
    assert "lora_adapter/adapter_model.safetensors" in found


def test_without_upload_nobody_is_asked(hub: Hub, source: Path, tmp_path: Path) -> None:
    result = run(source, tmp_path / "out", "--json")
    assert json.loads(result.stdout)["upload"] is None
    assert not hub.requests


@pytest.mark.parametrize("name", ["a/b/c", "what is this", "-x", "a..b"])
def test_a_name_that_cannot_be(hub: Hub, source: Path, tmp_path: Path, name: str) -> None:
    result = run(source, tmp_path / "out", f"--upload={name}")
    assert result.exit_code == 2
    assert "not a name that the Hub allows" in result.stderr
    assert not hub.requests
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("token", "repo", "message"),
    [
        (None, "ada/model", "hf auth login"),
        (UNKNOWN, "ada/model", "refuses the token"),
        (READS, "ada/model", "is for reading only"),
        (WRITES, "elsewhere/model", "may write to ada, lab only"),
        (FINE, "ada/model", "may write to lab only"),
    ],
)
def test_a_token_that_may_not(
    hub: Hub,
    source: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    token: str | None,
    repo: str,
    message: str,
) -> None:
    """Said before anything is written, here or there."""
    monkeypatch.delenv("HF_TOKEN")
    if token is not None:
        monkeypatch.setenv("HF_TOKEN", token)
    result = run(source, tmp_path / "out", "--upload", repo)
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.split())
    assert "Traceback" not in result.stderr
    assert not hub.repos
    assert not (tmp_path / "out").exists()


def test_what_is_public_is_not_given_what_was_to_be_private(
    hub: Hub, source: Path, tmp_path: Path
) -> None:
    hub.repos["ada/model"] = Repo(private=False)
    result = run(source, tmp_path / "out", "--upload", "model", "--private")
    assert result.exit_code == 2
    assert "is public, and --private was asked for" in result.stderr
    assert hub.repos["ada/model"].files == {}
    assert not (tmp_path / "out").exists()


def test_weights_that_would_stay_beside_the_model(hub: Hub, source: Path, tmp_path: Path) -> None:
    hub.repos["ada/model"] = Repo(commits=[{"model.safetensors": b"old"}])
    result = run(source, tmp_path / "out", "--upload", "model")
    assert result.exit_code == 2
    assert "model.safetensors" in result.stderr
    assert not (tmp_path / "out").exists()


def test_a_hub_that_is_not_there(
    hub: Hub, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    result = run(source, tmp_path / "out", "--upload", "model")
    assert result.exit_code == 2
    assert "http://127.0.0.1:9: not reached" in result.stderr
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    result = run(source, tmp_path / "out", "--upload", "model")
    assert "HF_HUB_OFFLINE" in result.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("status", [400, CUT])
def test_an_upload_that_dies_goes_on_with_resume(
    hub: Hub, source: Path, tmp_path: Path, status: int
) -> None:
    """The model is complete then; what the hub has is not sent again, and nothing is rewritten."""
    out = tmp_path / "out"
    hub.fails = lambda method, path: (
        status if method == "POST" and path.endswith("/commit/main") else None
    )
    result = run(source, out, "--upload", "model")
    assert result.exit_code == 2
    told = " ".join(result.stderr.split())
    assert f"The model is complete in {out}" in told
    assert "--resume" in told
    assert "Traceback" not in result.stderr
    assert len(hub.sent) == 2
    assert hub.repos["ada/model"].files == {}

    written = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    hub.fails = lambda _method, _path: None
    refused = run(source, out, "--upload", "model")  # a folder that is not empty
    assert refused.exit_code == 2
    again = run(source, out, "--upload", "model", "--resume")
    assert again.exit_code == 0, again.stderr
    assert "complete" in again.stdout
    assert hub.repos["ada/model"].files == content(out)
    assert len(hub.sent) == 2
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == written


def test_resume_does_not_take_another_model_for_this_one(
    hub: Hub, source: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert run(source, out).exit_code == 0
    file = next(out.glob("model-00001*"))
    damaged = bytearray(file.read_bytes())
    damaged[-1] ^= 1
    file.write_bytes(damaged)
    result = run(source, out, "--upload", "model", "--resume")
    assert result.exit_code == 2
    assert not hub.writes
    file.write_bytes(bytes([*damaged[:-1], damaged[-1] ^ 1]))
    assert run(source, out, "--upload", "model", "--resume").exit_code == 0


def test_a_difference_is_not_uploaded(
    hub: Hub, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ckpt_tool.publish.differences", lambda *_: ["some.weight"])
    result = run(source, tmp_path / "out", "--upload", "model", "--verify")
    assert result.exit_code == 1
    assert not hub.writes
    assert not (tmp_path / "out").exists()


def test_a_dry_run_asks_and_changes_nothing(hub: Hub, source: Path, tmp_path: Path) -> None:
    result = run(source, tmp_path / "out", "--upload", "model", "--private", "--dry-run")
    assert result.exit_code == 0
    assert f"would go to {hub.url}/ada/model (private, new)" in result.stdout
    assert hub.requests
    assert not hub.writes
    assert not hub.repos


def test_private_without_upload(source: Path, tmp_path: Path) -> None:
    result = run(source, tmp_path / "out", "--private")
    assert result.exit_code == 2
    assert "--private is about --upload" in result.stderr


def test_of_several_processes_one_uploads(hub: Hub, source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = ["merge", "fsdp", source, out, "--max-shard-size", "20KB", "--upload", "model"]
    launch = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "ckpt_tool"]
    environment = {"HF_ENDPOINT": hub.url, "HF_TOKEN": WRITES, "HF_HUB_DISABLE_XET": "1"}
    done = subprocess.run(
        [sys.executable, *launch, *map(str, words)],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert hub.repos["ada/model"].files == content(out)
    commits = [path for path in hub.writes if "/commit/" in path]
    assert len(commits) == 1
    assert len(hub.sent) == 2
