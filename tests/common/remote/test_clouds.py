"""`gs://` and `az://`: obstore's clients of them, against what is to be had on this machine."""

import base64
import hashlib
import hmac
import shutil
import subprocess
import time
from collections.abc import Iterator
from email.utils import formatdate
from pathlib import Path
from urllib.request import Request, urlopen

import pytest
from typer.testing import CliRunner

from ckpt_tool.cli.app import app
from ckpt_tool.common.remote import credentials, stores
from ckpt_tool.common.remote.address import Address
from tests.support.merging import TINY, values, write_rank
from tests.support.objects import buckets

obstore = pytest.importorskip("obstore")


def ckpt(*words: object, code: int = 0) -> str:
    done = CliRunner().invoke(app, [*map(str, words)])
    assert done.exit_code == code, done.output
    return done.output


def merge_both(near: Path, far: str, out: Path) -> None:
    """Merge a folder and the same at an address: bit for bit the same."""
    for source, name in ((near, "near"), (far, "far")):
        ckpt("merge", source, out / name, "--config", "none")
    here, there = (out / name / "model.safetensors" for name in ("near", "far"))
    assert here.read_bytes() == there.read_bytes()


@pytest.fixture(scope="module")
def google(tmp_path_factory: pytest.TempPathFactory) -> Iterator[buckets.Store]:
    """A store that asks for no keys.

    Google's own, in the dialect that obstore speaks with it, is asked as S3 is, and so rclone can
    answer. That shows that addresses, lists, ranges and errors of `gs://` go the right way; not how
    Google's servers and its logins behave, for which nothing here can stand.
    """
    with buckets.serving(tmp_path_factory.mktemp("google"), anonymous=True) as store:
        yield store


def test_a_checkpoint_at_gs_is_merged_bit_for_bit(google, tmp_path, monkeypatch):
    buckets.forget_clouds(monkeypatch)
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", google.proxy.url)
    bucket = google.make_bucket()
    folder = write_rank(bucket.folder / "run", {"w": values(300, 900)}, TINY)
    merge_both(folder, f"gs://{bucket.name}/run", tmp_path)
    assert set(bucket.sizes()) == {"run/model_world_size_1_rank_0.pt"}


def test_what_is_not_at_gs(google, tmp_path, monkeypatch):
    buckets.forget_clouds(monkeypatch)
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", google.proxy.url.removeprefix("http://"))
    said = ckpt("inspect", "gs://no-such-bucket/run", code=2)
    assert "gs://no-such-bucket/run: there is no bucket no-such-bucket" in said
    assert "GOOGLE_APPLICATION_CREDENTIALS" in said


#: Those of every emulator of Azure's, and no secret.
_ACCOUNT = "devstoreaccount1"
_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="


@pytest.fixture
def container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The name of a container of Microsoft's own emulator, which the environment leads to."""
    program = shutil.which("azurite-blob")
    if program is None:
        pytest.skip("azurite-blob is not on PATH: npm install azurite")
    options = ["--inMemoryPersistence", "--skipApiVersionCheck", "--disableTelemetry"]
    options += ["--blobHost", "127.0.0.1", "--blobPort", "0"]
    with subprocess.Popen([program, *options], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        ready = next(line for line in process.stdout if "successfully" in line)
        endpoint = f"{ready.split()[-1]}/{_ACCOUNT}"
        _make_container(endpoint, "models")
        buckets.forget_clouds(monkeypatch)
        monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", _ACCOUNT)
        monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", _KEY)
        monkeypatch.setenv("AZURE_STORAGE_ENDPOINT", endpoint)
        yield "models"
        process.terminate()


def _make_container(endpoint: str, name: str) -> None:
    """Source: "Authorize with Shared Key" of the reference of Azure's Storage Services."""
    headers = {"x-ms-date": formatdate(time.time(), usegmt=True), "x-ms-version": "2021-08-06"}
    lines = ["PUT", *[""] * 11, *(f"{key}:{value}" for key, value in headers.items())]
    signed = "\n".join([*lines, f"/{_ACCOUNT}/{_ACCOUNT}/{name}", "restype:container"])
    mac = hmac.new(base64.b64decode(_KEY), signed.encode(), hashlib.sha256)
    headers["Authorization"] = f"SharedKey {_ACCOUNT}:{base64.b64encode(mac.digest()).decode()}"
    headers["Content-Length"] = "0"
    url = f"{endpoint}/{name}?restype=container"
    with urlopen(Request(url, method="PUT", headers=headers)) as answer:
        assert answer.status == 201


def test_a_checkpoint_at_az_is_merged_bit_for_bit(container, tmp_path, monkeypatch):
    from obstore.store import AzureStore

    folder = write_rank(tmp_path / "run", {"w": values(300, 900)}, TINY)
    store = AzureStore(container, client_options={"allow_http": True})
    for path in folder.rglob("*"):
        if path.is_file():
            obstore.put(store, path.relative_to(tmp_path).as_posix(), path.read_bytes())
    merge_both(folder, f"az://{container}/run", tmp_path / "out")

    said = ckpt("inspect", "az://missing/run", code=2)
    assert "az://missing/run: there is no container missing" in said
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", "d3Jvbmc=")
    said = ckpt("inspect", "az://other/run", code=2)
    assert "az://other/run: refused: 403" in said
    assert "AZURE_STORAGE_ACCOUNT_KEY" in said


def test_no_account_is_named_for_az(monkeypatch):
    buckets.forget_clouds(monkeypatch)
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", _KEY)
    said = ckpt("inspect", "az://unnamed/run", code=2)
    assert "az://unnamed/run: Generic MicrosoftAzure error: Account must be specified" in said
    assert "Debug" not in said
    assert "AZURE_STORAGE_ACCOUNT_NAME" in said


@pytest.mark.parametrize(
    ("scheme", "variable"),
    [
        ("s3", "AWS_ACCESS_KEY_ID"),
        ("gs", "GOOGLE_APPLICATION_CREDENTIALS"),
        ("az", "AZURE_STORAGE_ACCOUNT_NAME"),
    ],
)
def test_nothing_says_who_asks(monkeypatch, scheme, variable):
    """And so nobody is asked, where no service of a cloud says who this machine is."""
    buckets.forget_clouds(monkeypatch)
    monkeypatch.setenv("HOME", "/nowhere")

    def refuse(*_: object) -> None:
        raise ConnectionRefusedError

    monkeypatch.setattr(credentials.socket, "create_connection", refuse)
    said = ckpt("inspect", f"{scheme}://unnamed/run", code=2)
    assert f"{scheme}://unnamed/run: there are no credentials in the environment" in said
    assert f"Set {variable}" in said


def test_a_model_at_gs_is_that_of_a_folder(tmp_path_factory, tmp_path, monkeypatch):
    buckets.forget_clouds(monkeypatch)
    with buckets.taking(tmp_path_factory.mktemp("google"), anonymous=True) as google:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", google.proxy.url)
        stores._open.cache_clear()  # of another one's buckets
        bucket = google.make_bucket()
        folder = write_rank(tmp_path / "run", {"w": values(3000, 900)}, TINY)
        words = ("merge", folder, "--config", "none", "--verify")
        ckpt(*words, tmp_path / "out")
        assert f"gcloud storage rsync --recursive gs://{bucket.name}/out DIR" in ckpt(
            *words, f"gs://{bucket.name}/out"
        )
        require_same(tmp_path / "out", bucket.folder / "out")
        assert "Already complete" in ckpt(*words, f"gs://{bucket.name}/out", "--resume")


def require_same(folder: Path, other: Path) -> None:
    names = [path.name for path in sorted(folder.iterdir())]
    assert names == [path.name for path in sorted(other.iterdir()) if path.is_file()]
    for name in names:
        assert (folder / name).read_bytes() == (other / name).read_bytes()


def test_a_model_at_az_is_that_of_a_folder(container, tmp_path):
    stores._open.cache_clear()  # of an emulator that is gone
    folder = write_rank(tmp_path / "run", {"w": values(3000, 900)}, TINY)
    words = ("merge", folder, "--config", "none", "--verify")
    ckpt(*words, tmp_path / "out")
    ckpt(*words, f"az://{container}/out")
    assert "exists and is not empty" in ckpt(*words, f"az://{container}/out", code=2)
    assert "Already complete" in ckpt(*words, f"az://{container}/out", "--resume")
    ckpt(*words, f"az://{container}/out", "--overwrite")
    store = stores.open_store(Address("az", container, "out"))
    (tmp_path / "there").mkdir()
    for row in obstore.list(store, "out").collect():
        name = row["path"].removeprefix("out/")
        (tmp_path / "there" / name).write_bytes(obstore.get(store, row["path"]).bytes())
    require_same(tmp_path / "out", tmp_path / "there")
