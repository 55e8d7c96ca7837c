"""`hf://ORG/NAME`: listed as it is at one commit, and read there by ranges."""

import itertools
import json

import pytest
from huggingface_hub import constants
from safetensors.torch import save
from typer.testing import CliRunner

from ckpt_tool import CkptError, StoreError
from ckpt_tool.cli.app import app
from ckpt_tool.common.regular import read_regular
from ckpt_tool.common.remote.address import Address
from ckpt_tool.common.remote.listing import list_objects
from ckpt_tool.common.remote.shadow import reach
from tests.support import hub_server
from tests.support.hub_server import CUT, Hub, Repo
from tests.support.merging import TINY, assert_same, load_folder, values, write_rank

pytest.importorskip("obstore")

hub = hub_server.hub
_NUMBERS = itertools.count()
STATE = {"model.norm.weight": values(8), "lm_head.weight": values(16, 8, start=9)}
FILES = {
    "config.json": json.dumps(TINY).encode(),
    "model.safetensors": save(STATE),
    "onnx/config.json": b"{}",
}


@pytest.fixture
def name(hub: Hub) -> str:
    """A repository of a model: what is listed at an address is known for as long as a process."""
    name = f"lab/tiny{next(_NUMBERS)}"
    hub.repos[name] = Repo(commits=[FILES])
    return name


def found(address: str) -> dict[str, int]:
    parsed = Address.parse(address)
    assert parsed
    return {each.name: each.size for rows in list_objects(parsed) for each in rows}


def refusal(address: str) -> CkptError:
    with pytest.raises(CkptError) as caught:
        found(address)
    assert "hf://" in str(caught.value)
    return caught.value


def ckpt(*words: object) -> str:
    done = CliRunner().invoke(app, [*map(str, words)])
    assert done.exit_code == 0, done.output
    return done.output


@pytest.mark.parametrize("form", ["hf://{}", "hf://models/{}", "hf://{}@main", "hf://{}/"])
def test_files_are_listed_with_their_sizes(name, form):
    assert found(form.format(name)) == {each: len(data) for each, data in FILES.items()}


def test_a_folder_and_a_file_of_a_repository_have_addresses_too(name):
    assert found(f"hf://{name}/onnx") == {"config.json": 2}
    assert found(f"hf://{name}/model.safetensors") == {"": len(FILES["model.safetensors"])}
    assert found(f"hf://{name}/onn") == {}


def test_a_model_of_the_hub_is_a_reference(name, tmp_path):
    write_rank(tmp_path / "actor", STATE, TINY)
    ckpt("verify", tmp_path / "actor", f"hf://{name}")
    ckpt(
        "merge", tmp_path / "actor", tmp_path / "out", "--config", f"hf://{name}", "--no-check-load"
    )
    assert_same(load_folder(tmp_path / "out"), STATE)


def test_what_is_pushed_later_is_not_read(name, hub):
    folder = reach(f"hf://{name}")
    hub.repos[name].commits.append({**FILES, "config.json": bytes(len(FILES["config.json"]))})
    assert read_regular(folder / "config.json") == FILES["config.json"]
    assert all("/resolve/main/" not in path for _, path in hub.requests)


def test_a_file_on_another_host_is_read_there_without_the_token(name, hub):
    hub.far["model.safetensors"] = FILES["model.safetensors"]
    said = json.loads(ckpt("inspect", "--json", f"hf://{name}"))
    assert said["path"] == f"hf://{name}"
    assert set(hub.told) == {""}


def test_a_busy_hub_is_asked_again(name, hub):
    statuses = iter([429, 503, CUT])
    hub.fails = lambda _method, path: next(statuses, None) if path.startswith("/api/mod") else None
    assert found(f"hf://{name}")
    assert next(statuses, None) is None


def test_a_busy_hub_is_asked_again_for_bytes(name, hub):
    folder = reach(f"hf://{name}")
    statuses = iter([429, 503, 500])
    hub.fails = lambda _method, path: next(statuses, None) if "/resolve/" in path else None
    assert read_regular(folder / "config.json") == FILES["config.json"]
    assert next(statuses, None) is None


def test_a_token_that_ends_meanwhile(name, hub):
    folder = reach(f"hf://{name}")
    hub.fails = lambda *_: 401
    with pytest.raises(StoreError, match=f"hf://{name}/config.json: refused") as caught:
        read_regular(folder / "config.json")
    assert "HF_TOKEN" in caught.value.hint


@pytest.mark.parametrize("kind", ["datasets", "spaces"])
def test_what_is_no_model_is_refused(kind):
    assert f"models are read, and no {kind}" in str(refusal(f"hf://{kind}/lab/data"))


def test_a_repository_that_is_not_there_or_private(hub):
    error = refusal("hf://lab/nothing")
    assert "no such model, or it is private" in str(error)
    assert "HF_TOKEN" in error.hint


def test_a_gated_repository(name, hub):
    hub.codes[403] = "GatedRepo"
    hub.fails = lambda *_: 403
    error = refusal(f"hf://{name}")
    assert "gated" in str(error)
    assert f"{hub.url}/{name}" in error.hint


def test_a_wrong_token(name, hub, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    error = refusal(f"hf://{name}")
    assert "hf auth login" in error.hint


def test_a_revision_that_is_not_there(name, hub):
    hub.codes[404] = "RevisionNotFound"
    hub.fails = lambda *_: 404
    assert "no revision v9" in str(refusal(f"hf://{name}@v9"))


def test_the_hub_is_not_asked_offline(name, hub, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE" in str(refusal(f"hf://{name}"))
    assert hub.requests == []


@pytest.mark.slow
def test_a_hub_that_is_not_there(name, hub, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    error = refusal(f"hf://{name}")
    assert "http://127.0.0.1:9" in str(error)
    assert "HF_ENDPOINT" in error.hint
