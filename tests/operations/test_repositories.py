"""`ORG/NAME` for a folder: small files from the Hub's cache or the Hub, weights from the cache."""

import json
from pathlib import Path

import pytest
from huggingface_hub import constants, snapshot_download
from safetensors.torch import save
from typer.testing import CliRunner

from ckpt_tool import LoraOptions, MergeOptions, UsageError, WriteOptions, merge_checkpoint
from ckpt_tool.cli.app import app
from ckpt_tool.operations.options import ToMcoreOptions
from ckpt_tool.operations.repositories import settle_repositories
from tests.support import hub_server
from tests.support.hub_server import Hub, Repo
from tests.support.merging import TINY, values, write_rank

NAME = "lab/tiny"
STATE = {"model.norm.weight": values(8)}
SMALL = {
    "config.json": json.dumps(TINY | {"_name_or_path": NAME}).encode(),
    "tokenizer.json": b'{"version": "1.0"}',
    "tokenizer_config.json": b"{}",
    "modeling_own.py": b"raise SystemExit",
}
WEIGHTS = {
    "model.safetensors": save(STATE),
    "model.safetensors.index.json": b'{"weight_map": {}}',
    "onnx/model.json": b"{}",
}

hub = hub_server.hub


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the Hub's with nothing in it, and nothing in the folder that one is in."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "cache"


@pytest.fixture
def repo(hub: Hub) -> Hub:
    """The hub, with a repository of a model."""
    hub.repos[NAME] = Repo(commits=[SMALL | WEIGHTS])
    return hub


def settled(config: str | Path) -> Path:
    found = settle_repositories(MergeOptions(config=config)).config
    assert isinstance(found, Path)
    return found


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def download(*names: str) -> Path:
    return Path(
        snapshot_download(NAME, allow_patterns=list(names), cache_dir=constants.HF_HUB_CACHE)
    )


def test_small_files_are_fetched_and_weights_are_not(repo: Hub) -> None:
    folder = settled(NAME)
    assert files(folder) == SMALL.keys()
    assert {name: (folder / name).read_bytes() for name in SMALL} == SMALL
    assert not [path for _, path in repo.requests if "safetensors" in path or "onnx" in path]


def test_what_is_in_the_cache_is_not_asked_for(repo: Hub) -> None:
    folder = settled(NAME)
    repo.requests.clear()
    assert settled(NAME) == folder
    assert repo.requests == []
    tokenizer = settle_repositories(MergeOptions(tokenizer=NAME)).tokenizer
    assert (tokenizer, repo.requests) == (folder, [])
    assert settle_repositories(ToMcoreOptions(config=NAME)).config == folder


def test_a_merge_takes_config_and_tokenizer(repo: Hub, tmp_path: Path) -> None:
    source = write_rank(tmp_path / "in", STATE)
    options = MergeOptions(config=NAME, write=WriteOptions(check_load=False))
    merge_checkpoint(source, tmp_path / "out", options)
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert written["hidden_size"] == TINY["hidden_size"]
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == SMALL["tokenizer.json"]
    assert not (tmp_path / "out" / "tokenizer.json").is_symlink()


def test_a_folder_of_that_name_counts_first(repo: Hub) -> None:
    Path(NAME).mkdir(parents=True)
    assert settled(NAME) == Path(NAME)
    assert repo.requests == []


@pytest.mark.parametrize("path", ["./lab/tiny", "/lab/tiny", "lab", "a/b/c", "../tiny", "lab/.x"])
def test_paths_are_no_names(repo: Hub, path: str) -> None:
    assert settled(path) == Path(path)
    assert repo.requests == []
    found = CliRunner().invoke(app, ["merge", str(Path.cwd()), "out", "--config", path])
    assert found.exit_code == 2
    assert repo.requests == []


@pytest.mark.parametrize("option", ["config", "tokenizer"])
def test_without_a_hub_it_is_said_what_to_do(
    hub: Hub, option: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = MergeOptions(**{option: NAME})  # type: ignore[arg-type]
    with pytest.raises(UsageError) as refused:
        settle_repositories(asked)  # the hub has no such repository
    assert f"`{option}='{NAME}'`: no such folder, not in the Hub's cache" in str(refused.value)
    assert f"hf download {NAME} --include" in refused.value.hint
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UsageError, match="not to be had from the Hub: HF_HUB_OFFLINE or"):
        settle_repositories(asked)


def test_offline_a_part_serves_for_what_it_has(repo: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = download("config.json")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert settled(NAME) == folder
    with pytest.raises(UsageError, match="not to be had"):
        settle_repositories(MergeOptions(tokenizer=NAME))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    assert files(settled(NAME)) == SMALL.keys()


@pytest.mark.parametrize("option", ["lora.base", "fill_from"])
def test_weights_are_looked_up_and_never_fetched(repo: Hub, option: str) -> None:
    asked = MergeOptions(fill_from=NAME)
    if option == "lora.base":
        asked = MergeOptions(lora=LoraOptions(base=Path(NAME)))
    with pytest.raises(UsageError, match="weights are never fetched") as refused:
        settle_repositories(asked)
    assert refused.value.hint == f"Fetch it yourself: hf download {NAME}"
    assert repo.requests == []
    folder = download("*")
    found = settle_repositories(asked)
    assert (found.fill_from or found.lora.base) == folder


def test_on_the_command_line(repo: Hub, tmp_path: Path) -> None:
    source = write_rank(tmp_path / "in", STATE)
    words = ["merge", str(source), str(tmp_path / "out"), "--no-check-load", "--config"]
    refused = CliRunner().invoke(app, [*words, "lab/other"])
    assert refused.exit_code == 2
    assert "error: --config lab/other: no such folder, not in the Hub's cache" in refused.stderr
    assert CliRunner().invoke(app, [*words, NAME]).exit_code == 0
    assert files(tmp_path / "out") >= {"config.json", "tokenizer.json", "model.safetensors"}
