"""Uploads to the Hub, against a stand-in that speaks what huggingface_hub speaks."""

import hashlib
from dataclasses import replace
from pathlib import Path

import pytest
from huggingface_hub import HfApi, constants
from huggingface_hub.utils import (
    _http,
    are_progress_bars_disabled,
    disable_progress_bars,
    enable_progress_bars,
)

from ckpt_tool import Upload, check_upload, upload_folder
from ckpt_tool.common.errors import UploadError, UsageError
from ckpt_tool.operations.merge import make_plan
from ckpt_tool.operations.upload import Target, list_weight_names
from ckpt_tool.writers.safetensors import plan_file
from ckpt_tool.writers.stream import WrittenFile
from tests.support import hub_server
from tests.support.hub_server import CUT, FINE, READS, UNKNOWN, Hub, Repo
from tests.support.merging import TINY, values, write_rank
from tests.support.versions import needs_hub_1

hub = hub_server.hub
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content:DeprecationWarning")

LARGE = [f"model-0000{number}-of-00004.safetensors" for number in (1, 2, 3, 4)]


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """A folder like a merged model."""
    folder = tmp_path / "out"
    (folder / "extra").mkdir(parents=True)
    for number, name in enumerate(LARGE):
        (folder / name).write_bytes(bytes(range(number, 200)) * 50)
    for name in ("config.json", "ckpt_manifest.json", "extra/code.py"):
        (folder / name).write_text(f"{name}\n")
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


@pytest.mark.slow
def test_every_byte_arrives_in_a_new_repository(hub: Hub, out: Path) -> None:
    before = contents(out)
    result = upload_folder(out, Upload("lab/model"))
    assert hub.repos["lab/model"].files == before
    assert contents(out) == before  # nothing of huggingface_hub's is left there
    assert not hub.repos["lab/model"].private
    assert (result.repo, result.url) == ("lab/model", f"{hub.url}/lab/model")
    assert (result.private, result.num_files) == (False, 7)
    assert int(result.commit, 16) == len(hub.repos["lab/model"].commits) - 1 == 1


def test_a_card_that_is_there_stays(hub: Hub, out: Path) -> None:
    (out / "README.md").write_text("---\nlibrary_name: transformers\n---\nours\n")
    hub.repos["lab/model"] = Repo(commits=[{"README.md": b"by hand"}])
    result = upload_folder(out, Upload("lab/model"))
    assert (result.kept_card, result.num_files) == (True, 7)
    assert hub.repos["lab/model"].files == contents(out) | {"README.md": b"by hand"}
    del hub.repos["lab/model"]
    result = upload_folder(out, Upload("lab/model"))
    assert (result.kept_card, result.num_files) == (False, 8)
    assert hub.repos["lab/model"].files == contents(out)


@pytest.mark.slow
def test_what_tools_of_the_hub_keep_in_a_folder_is_not_missed(hub: Hub, out: Path) -> None:
    before = contents(out)
    (out / ".cache" / "huggingface").mkdir(parents=True)
    (out / ".cache" / "huggingface" / ".gitignore").write_text("*")
    assert upload_folder(out, Upload("lab/model")).num_files == len(before)
    assert hub.repos["lab/model"].files == before


@pytest.mark.slow
def test_a_name_alone_is_the_users(hub: Hub, out: Path) -> None:
    assert upload_folder(out, Upload("model")).repo == "ada/model"
    assert hub.repos["ada/model"].files == contents(out)


@pytest.mark.slow
def test_private_is_private_from_its_first_moment(hub: Hub, out: Path) -> None:
    seen = []
    hub.created = lambda repo: seen.append(repo.private)
    result = upload_folder(out, Upload("model", private=True))
    assert result.private
    assert seen == [True]


@pytest.mark.slow
def test_a_private_repository_stays_so_unasked(hub: Hub, out: Path) -> None:
    hub.repos["ada/model"] = Repo(private=True)
    assert upload_folder(out, Upload("model")).private
    assert hub.repos["ada/model"].files == contents(out)
    assert "/api/repos/create" not in hub.writes


@needs_hub_1
@pytest.mark.parametrize("name", ["a/b/c", "-a", "a--b", "a/b.git", "", "a b", "../out", "ä/b"])
def test_a_name_that_cannot_be_costs_no_request(hub: Hub, name: str) -> None:
    with pytest.raises(UsageError, match="not a name that the Hub allows"):
        check_upload(Upload(name))
    assert hub.requests == []


INDEX = "model.safetensors.index.json"
HELD = {
    "one file": ({"model.safetensors": "weights"}, []),
    "two files": ({"a.safetensors": "weights", "b.safetensors": "weights"}, [INDEX]),
    "an adapter": ({"adapter_model.safetensors": "adapter"}, []),
    "both": ({"model.safetensors": "weights", "lora/adapter_model.safetensors": "adapter"}, []),
    "an adapter at the top": ({"model.safetensors": "weights", "x.safetensors": "adapter"}, []),
}


@pytest.mark.parametrize(("files", "more"), HELD.values(), ids=HELD)
def test_the_index_is_of_the_models_files_alone(tmp_path: Path, files, more) -> None:
    state = {"a.weight": values(8, 8), "b.weight": values(8, 8, start=64)}
    plan = make_plan(write_rank(tmp_path / "in", state, TINY), "fsdp")
    planned = [
        plan_file(name, {name: plan.model["a.weight"]}, role) for name, role in files.items()
    ]
    plan = replace(plan, files=planned)
    assert list_weight_names(plan) == [*files, *more]
    small = dict(plan.small_files([WrittenFile(file.name, file.size, "") for file in plan.files]))
    assert (INDEX in small) == bool(more)


@pytest.mark.parametrize(
    ("token", "repo", "said"),
    [
        (UNKNOWN, "ada/model", "refuses the token: .*HF_TOKEN"),
        (READS, "ada/model", "the token of ada is for reading only"),
        (FINE, "ada/model", "may write to lab only"),
        ("hf_writes", "other/model", "may write to ada, lab only"),
    ],
)
def test_a_token_that_cannot_do_it(hub, monkeypatch, token, repo, said) -> None:
    monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(UploadError, match=said) as error:
        check_upload(Upload(repo))
    assert error.value.hint
    assert hub.writes == []


def test_a_fine_grained_token_may_do_what_it_says(hub: Hub, monkeypatch) -> None:
    monkeypatch.setenv("HF_TOKEN", FINE)
    assert check_upload(Upload("Lab/model")).repo == "Lab/model"
    assert hub.writes == []


def test_no_token_is_said_before_anything_is_asked(hub: Hub, monkeypatch) -> None:
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(UploadError, match="no token") as error:
        check_upload(Upload("model"))
    assert "hf auth login" in error.value.hint
    assert "HF_TOKEN" in error.value.hint
    assert hub.requests == []


@needs_hub_1
def test_a_repository_that_may_not_be_written(hub: Hub) -> None:
    hub.repos["lab/model"] = Repo(writable=False)
    with pytest.raises(UploadError, match="lab/model: the token may not write there"):
        check_upload(Upload("lab/model"))


def test_offline_is_said(hub: Hub, monkeypatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UploadError, match="HF_HUB_OFFLINE"):
        check_upload(Upload("model"))
    assert hub.requests == []


def test_an_endpoint_that_is_not_there_is_named(hub: Hub, monkeypatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(UploadError, match=r"http://127\.0\.0\.1:9: not reached") as error:
        check_upload(Upload("model"))
    assert "HF_ENDPOINT" in error.value.hint


def test_what_is_public_gets_nothing_private(hub: Hub, out: Path) -> None:
    hub.repos["ada/model"] = Repo()
    for ask in (check_upload, lambda upload: upload_folder(out, upload)):
        with pytest.raises(UploadError, match=r"public, and `upload\.private=True` was asked for"):
            ask(Upload("model", private=True))
    assert hub.writes == []


def test_what_became_public_meanwhile_gets_nothing_private(hub: Hub, out: Path) -> None:
    hub.created = lambda repo: setattr(repo, "private", False)
    with pytest.raises(UploadError, match="is public") as error:
        upload_folder(out, Upload("model", private=True))
    assert "`write.resume=True`" in error.value.hint
    assert hub.writes == ["/api/repos/create"]


@pytest.mark.parametrize(
    ("there", "left"),
    [
        (["model.safetensors"], "model.safetensors"),
        (["model.safetensors.index.json", *LARGE], "model.safetensors.index.json"),
        (["pytorch_model-00001-of-00002.bin"], "pytorch_model-00001-of-00002.bin"),
        ([*LARGE, "README.md", "training_args.bin", "old/model.safetensors"], None),
    ],
)
def test_no_weights_are_left_beside_the_new_ones(there: list[str], left: str | None) -> None:
    target = Target("ada/model", "there", private=False, exists=True, files=tuple(there))
    if left is None:
        target.require_replaced(LARGE)
        return
    with pytest.raises(UploadError, match=f"would not replace: {left}$"):
        target.require_replaced(LARGE)


@pytest.mark.slow
def test_a_file_that_the_hub_leaves_out_is_said(hub: Hub, out: Path) -> None:
    hub.repos["ada/model"] = Repo(ignored="config.json")
    with pytest.raises(UploadError, match=r"not there after the upload: config\.json$") as error:
        upload_folder(out, Upload("model"))
    assert ".gitignore" in error.value.hint


@pytest.mark.slow
def test_a_connection_that_ends_is_gone_on_with(hub: Hub, out: Path, monkeypatch) -> None:
    monkeypatch.setattr(_http.time, "sleep", lambda _seconds: None)
    hub.fails = lambda method, _path: CUT if method == "PUT" and hub.sent else None
    with pytest.raises(UploadError, match=hub.url) as error:
        upload_folder(out, Upload("model", private=True))
    assert f"complete in {out}" in error.value.hint
    assert "`write.resume=True`" in error.value.hint
    assert f"hf upload model {out} --private" in error.value.hint
    (first,) = hub.sent
    assert hub.repos["ada/model"].files == {}
    hub.fails = lambda _method, _path: None
    upload_folder(out, Upload("model", private=True))
    digests = [hashlib.sha256((out / name).read_bytes()).hexdigest() for name in LARGE]
    assert sorted(hub.sent) == sorted(digests)  # each once: the first was not sent again
    assert hub.sent[0] == first
    assert hub.repos["ada/model"].files == contents(out)


@pytest.mark.slow
def test_a_commit_that_is_refused_is_said(hub: Hub, out: Path) -> None:
    hub.fails = lambda _method, path: 413 if "/commit/" in path else None
    with pytest.raises(UploadError, match="413"):
        upload_folder(out, Upload("model"))


@pytest.mark.slow
def test_what_is_there_already_is_not_sent_again(hub: Hub, out: Path) -> None:
    first = upload_folder(out, Upload("model"))
    sent = list(hub.sent)
    assert upload_folder(out, Upload("model")) == first
    assert hub.sent == sent
    assert len(hub.repos["ada/model"].commits) == 2


def test_who_interrupts_is_told_how_to_go_on(hub: Hub, out: Path, monkeypatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(HfApi, "upload_folder", interrupted)
    with pytest.raises(KeyboardInterrupt, match=r"`write\.resume=True`"):
        upload_folder(out, Upload("model"))


@needs_hub_1
def test_chunks_go_by_xet_where_it_is_installed(hub, out, tmp_path, monkeypatch) -> None:
    """As for most users: what hf_xet takes is in its storage, and the commit names its digests."""
    pytest.importorskip("hf_xet")
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", False)
    storage = tmp_path / "xet"
    storage.mkdir()
    hub.xet = str(storage)
    upload_folder(out, Upload("model"))
    digests = {name: hashlib.sha256((out / name).read_bytes()).hexdigest() for name in LARGE}
    assert hub.repos["ada/model"].large == digests
    assert hub.sent == []
    assert any(path.is_file() for path in storage.rglob("*"))


@pytest.mark.slow
@pytest.mark.parametrize("before", [disable_progress_bars, enable_progress_bars])
def test_no_progress_bars_unless_they_are_wanted(hub: Hub, out: Path, capfd, before) -> None:
    """Whatever somebody else, such as transformers, has done to them in this process."""
    was_off = are_progress_bars_disabled()
    before()
    state = are_progress_bars_disabled()
    try:
        upload_folder(out, Upload("model"))
        assert capfd.readouterr().err == ""
        hub.objects.clear()
        upload_folder(out, Upload("other"), show=True)
        assert "Upload" in capfd.readouterr().err
        assert are_progress_bars_disabled() == state
    finally:
        (disable_progress_bars if was_off else enable_progress_bars)()
