"""`ckpt merge ... --upload`: asked before anything is written, sent when all is complete."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from ckpt_tool.cli.app import app
from tests.common.test_parallel import PROJECT
from tests.operations.test_upload import contents
from tests.plans.test_resume_complete import files
from tests.support import hub_server, megatron
from tests.support.hub_server import READS, UNKNOWN, WRITES, Hub, Repo, serving
from tests.support.merging import TINY, values, write_rank
from tests.support.torchrun import ranks_command

hub = hub_server.hub
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content:DeprecationWarning")

#: Many files of weights that are no model's.
SMALL = ("--max-shard-size", "20KB")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Four weight files of 16 kB each with `SMALL`."""
    state = {f"layers.{n}.weight": values(64, 64, start=n << 12) for n in range(1, 5)}
    return write_rank(tmp_path / "in", state, TINY)


def run(*arguments: object, command: str = "fsdp") -> Result:
    words = ["merge", command, "--no-check-load", *map(str, arguments)]
    return CliRunner(env={"COLUMNS": "200"}).invoke(app, words)


def partials(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if "ckpt" in path.name or path.name == "out"]


@pytest.mark.slow
def test_people_are_told_where_it_went(hub: Hub, source: Path, tmp_path: Path) -> None:
    result = run(source, tmp_path / "out", "--upload", "model", "--private", *SMALL)
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("Wrote 4 tensors, 66 kB in 4 files to ")
    assert f"  upload   {hub.url}/ada/model (private)  8 files\n" in result.stdout
    assert result.stderr == ""
    assert hub.repos["ada/model"].files == contents(tmp_path / "out")
    assert str(tmp_path) not in (tmp_path / "out" / "ckpt_manifest.json").read_text()


@pytest.mark.slow
def test_the_upload_is_in_the_json(hub: Hub, source: Path, tmp_path: Path) -> None:
    result = run(source, tmp_path / "out", "--upload", "lab/model", "--json")
    found = json.loads(result.stdout)
    assert found["upload"] == {
        "repo": "lab/model",
        "url": f"{hub.url}/lab/model",
        "private": False,
        "commit": f"{1:040x}",
    }
    assert found["already_complete"] is False
    assert hub.repos["lab/model"].files == contents(tmp_path / "out")
    alone = json.loads(run(source, tmp_path / "alone", "--json").stdout)
    assert alone["upload"] is None


@pytest.mark.parametrize("command", ["megatron", "dcp"])
def test_every_merge_uploads(hub, checkpoints, megatron_cases, tmp_path, command) -> None:
    source = checkpoints["fsdp2_w3"] / "dcp"
    config = checkpoints["fsdp2_w3"] / "actor" / "huggingface"
    if command == "megatron":
        source = megatron.saved(megatron_cases, "llama", "tp1")
        config = megatron.hf(megatron_cases, "llama")
    out = tmp_path / "out"
    result = run(source, out, "--config", config, "--upload", "model", command=command)
    assert result.exit_code == 0, result.output
    assert hub.repos["ada/model"].files == contents(out)


@pytest.mark.slow
def test_a_dry_run_asks_and_makes_nothing(hub: Hub, source: Path, tmp_path: Path) -> None:
    arguments = (source, tmp_path / "out", "--upload", "model", "--dry-run")
    shown = run(*arguments, "--private")
    assert shown.exit_code == 0
    assert f"  upload   would go to {hub.url}/ada/model (private, new)\n" in shown.stdout
    found = json.loads(run(*arguments, "--json").stdout)
    assert found["upload"] == {
        "repo": "ada/model",
        "url": f"{hub.url}/ada/model",
        "private": False,
        "commit": None,
    }
    assert hub.requests
    assert hub.writes == []
    assert partials(tmp_path) == []
    assert json.loads(run(*arguments[:2], "--dry-run", "--json").stdout)["upload"] is None


@pytest.mark.parametrize("more", [[], ["--dry-run"]])
@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ((WRITES, ["--upload", "a/b/c"]), "a/b/c: not a name that the Hub allows"),
        ((UNKNOWN, ["--upload", "model"]), "refuses the token"),
        ((READS, ["--upload", "model"]), "is for reading only"),
        (("", ["--upload", "model"]), "hf auth login"),
        ((WRITES, ["--upload", "ada/public", "--private"]), "is public"),
        (
            (WRITES, ["--upload", "ada/public"]),
            "would not replace: model-00001-of-00009.safetensors",
        ),
        ((WRITES, ["--private"]), "--private is about --upload"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_written(  # noqa: PLR0917
    hub, source, tmp_path, monkeypatch, asked, said, more
) -> None:
    token, upload = asked
    monkeypatch.setenv("HF_TOKEN", token)
    hub.repos["ada/public"] = Repo(commits=[{"model-00001-of-00009.safetensors": b"old"}])
    result = run(source, tmp_path / "out", *upload, *more)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert said in result.stderr
    assert hub.writes == []
    assert partials(tmp_path) == []


def test_a_checkpoint_is_not_even_opened_for_a_bad_token(hub, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("HF_TOKEN", UNKNOWN)
    result = run(tmp_path / "no checkpoint", tmp_path / "out", "--upload", "model")
    assert "refuses the token" in result.stderr


def test_a_merge_that_is_refused_uploads_nothing(hub: Hub, source: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "file").touch()
    result = run(source, tmp_path / "out", "--upload", "model")
    assert result.exit_code == 2
    assert "not empty" in result.stderr
    assert hub.requests
    assert hub.writes == []


def test_a_difference_is_never_uploaded(hub, source, tmp_path, monkeypatch) -> None:
    honest = os.pwrite

    def flip(descriptor: int, data: memoryview, offset: int) -> int:
        data[len(data) // 2] ^= 1
        return honest(descriptor, data, offset)

    monkeypatch.setattr(os, "pwrite", flip)
    for more in ([], ["--json"]):
        result = run(source, tmp_path / "out", "--upload", "model", "--verify", *more)
        assert result.exit_code == 1
    assert json.loads(result.stdout)["upload"] is None
    assert json.loads(result.stdout)["differences"]
    assert hub.requests
    assert hub.writes == []


@pytest.mark.slow
@pytest.mark.parametrize("more", [[], ["--json"]])
def test_an_upload_that_dies_is_gone_on_with(hub, source, tmp_path, more) -> None:
    arguments = (source, tmp_path / "out", "--upload", "model", "--private", *SMALL, *more)
    hub.fails = lambda method, _path: 507 if method == "PUT" and hub.sent else None
    failed = run(*arguments)
    assert failed.exit_code == 2
    assert "upload  " not in failed.stdout
    assert "507" in failed.stderr
    assert f"The model is complete in {tmp_path / 'out'}" in failed.stderr
    assert "--resume" in failed.stderr
    assert f"hf upload model {tmp_path / 'out'} --private" in failed.stderr
    before, sent = files(tmp_path / "out"), list(hub.sent)
    assert len(before) == 8
    assert len(sent) == 1
    hub.fails = lambda _method, _path: None
    done = run(*arguments, "--resume")
    assert done.exit_code == 0, done.output
    assert files(tmp_path / "out") == before
    assert len(hub.sent) == len(set(hub.sent)) == 4
    assert hub.repos["ada/model"].files == contents(tmp_path / "out")
    assert hub.repos["ada/model"].private
    if more:
        found = json.loads(done.stdout)
        assert (found["already_complete"], found["upload"]["repo"]) == (True, "ada/model")
        assert [row["path"] for row in found["files"]] == sorted(
            name for name in before if name.endswith(".safetensors")
        )
    else:
        assert done.stdout.startswith("Already complete: 4 tensors, 66 kB in 4 files in ")
        assert "(private)  8 files" in done.stdout


def test_what_differs_in_a_complete_folder_is_left_there(source, tmp_path, monkeypatch) -> None:
    run(source, tmp_path / "out")
    monkeypatch.setattr(
        "ckpt_tool.plans.reading_back.find_differences", lambda *_: ["layers.1.weight"]
    )
    result = run(source, tmp_path / "out", "--resume", "--verify")
    assert result.exit_code == 1
    assert f"1 tensor did not read back as written; {tmp_path / 'out'} was left" in result.stdout
    assert (tmp_path / "out" / "model.safetensors").exists()


def program(hub: Hub, home: Path) -> dict[str, str]:
    """The environment in which the program finds the hub."""
    settings = {"HF_ENDPOINT": hub.url, "HF_TOKEN": WRITES, "HF_HUB_DISABLE_XET": "1"}
    settings |= {"HF_HOME": str(home), "PYTHONPATH": str(PROJECT), "OMP_NUM_THREADS": "1"}
    return os.environ | settings


def run_together(hub: Hub, *arguments: object) -> subprocess.CompletedProcess[str]:
    launcher = ranks_command(2)
    return subprocess.run(
        [*launcher, "-m", "ckpt_tool", "merge", "fsdp", "--no-check-load", *map(str, arguments)],
        cwd=PROJECT,
        env=program(hub, Path(str(arguments[1])).parent / "home"),
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.real
def test_of_two_ranks_one_uploads(source: Path, tmp_path: Path) -> None:
    with serving() as hub:
        arguments = (source, tmp_path / "out", "--upload", "lab/model", *SMALL)
        hub.fails = lambda _method, path: 413 if "/commit/" in path else None
        failed = run_together(hub, *arguments)
        assert failed.returncode != 0
        assert failed.stderr.count("ckpt: error:") == 1
        assert "The model is complete in" in failed.stderr
        before, first = files(tmp_path / "out"), list(hub.sent)
        assert len(first) == len(set(first)) == 4
        hub.fails = lambda _method, _path: None
        done = run_together(hub, *arguments, "--resume", "--json")
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["upload"]["repo"] == "lab/model"
        assert files(tmp_path / "out") == before
        assert hub.sent == first
        assert len(hub.repos["lab/model"].commits) == 2
        assert hub.repos["lab/model"].files == contents(tmp_path / "out")


@pytest.mark.real
def test_of_two_ranks_one_is_refused_for_both(source: Path, tmp_path: Path) -> None:
    with serving() as hub:
        done = run_together(hub, source, tmp_path / "out", "--upload", "other/model")
    assert done.returncode != 0
    assert done.stderr.count("ckpt: error:") == 1
    assert "may write to ada, lab only" in done.stderr
    assert sum(path == "/api/whoami-v2" for _, path in hub.requests) == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_without_an_upload_nothing_of_the_hub_is_imported(source: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-X", "importtime", "-m", "ckpt_tool", "merge", "fsdp"]
    more = [str(source), str(tmp_path / "out"), "--config", "none"]
    done = subprocess.run([*command, *more], capture_output=True, text=True, check=True)
    imported = {line.rsplit("|", 1)[-1].strip() for line in done.stderr.splitlines()}
    assert "ckpt_tool.operations.upload" in imported
    assert not {name for name in imported if name.startswith("huggingface_hub")}


def test_an_adapter_goes_along(hub: Hub, checkpoints: dict[str, Path], tmp_path: Path) -> None:
    flags = ("--lora", "both", "--upload", "model")
    assert run(checkpoints["lora_w2"], tmp_path / "out", *flags).exit_code == 0
    found = hub.repos["ada/model"].files
    assert found == contents(tmp_path / "out")
    assert "lora_adapter/adapter_model.safetensors" in found
