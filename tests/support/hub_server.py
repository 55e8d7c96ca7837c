"""A stand-in for the Hugging Face Hub: what huggingface_hub asks while it uploads or downloads.

Large files go by LFS with the basic transfer, or by Xet into a folder. Everything that was asked is
in `requests`, as (method, path).
"""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

import pytest
import yaml

#: Tokens, and what `whoami` says of them.
WRITES, READS, FINE, UNKNOWN = "hf_writes", "hf_reads", "hf_fine", "hf_unknown"
_SCOPES = {
    "global": ["discussion.write"],
    "scoped": [
        {"entity": {"type": "org", "name": "lab"}, "permissions": ["repo.write"]},
        {"entity": {"type": "user", "name": "ada"}, "permissions": ["repo.content.read"]},
    ],
}
_ROLES = {
    WRITES: {"role": "write"},
    READS: {"role": "read"},
    FINE: {"role": "fineGrained", "fineGrained": _SCOPES},
}
CUT = 0  # in place of a status: the connection ends without an answer


@dataclass
class Repo:
    """A model repository: `commits` are all its states, oldest first, files by name."""

    private: bool = False
    commits: list[dict[str, bytes]] = field(default_factory=lambda: [{}])
    large: dict[str, str] = field(default_factory=dict)  # name -> sha256
    ignored: str = ""
    writable: bool = True

    @property
    def files(self) -> dict[str, bytes]:
        return self.commits[-1]


@dataclass
class Hub:
    """`fails` gives a status for a request (method, path) that is to fail, or `CUT`.

    `created` is told of a repository that was just made; `xet` is where hf_xet puts its chunks.
    `codes` says what a status means, as the Hub does beside it. Files of `far` come from another
    host, to which they are redirected; `told` are the tokens that were sent there.
    """

    url: str = ""
    repos: dict[str, Repo] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)
    requests: list[tuple[str, str]] = field(default_factory=list)
    fails: Callable[[str, str], int | None] = lambda _method, _path: None
    created: Callable[[Repo], object] = lambda _repo: None
    xet: str = ""
    codes: dict[int, str] = field(default_factory=lambda: {404: "RepoNotFound"})
    far: dict[str, bytes] = field(default_factory=dict)
    told: list[str] = field(default_factory=list)

    @property
    def writes(self) -> list[str]:
        """Requests that are to change something, refused or not."""
        return [path for method, path in self.requests if not method.endswith(("GET", "HEAD"))]

    @property
    def sent(self) -> list[str]:
        """The sha256 of every large file that was sent, and arrived."""
        return [path.removeprefix("/lfs/") for method, path in self.requests if method == "PUT"]

    def answer(self, path: str, token: str, body: bytes) -> tuple[int, object]:
        if path == "/api/whoami-v2":
            who = {"type": "user", "name": "ada", "orgs": [{"name": "lab"}]}
            return 200, who | {"auth": {"accessToken": _ROLES[token]}}
        if path == "/api/repos/create":
            return self._create(json.loads(body))
        if path == "/api/validate-yaml":  # of a README.md, before it is sent
            said = yaml.safe_load(json.loads(body)["content"].split("---\n")[1])
            assert said["library_name"] in ("transformers", "peft")
            return 200, {"errors": [], "warnings": []}
        if found := re.fullmatch(r"/lfs/(\w+)", path):
            assert hashlib.sha256(body).hexdigest() == found[1]
            self.objects[found[1]] = body
            return 200, {}
        found = re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/([\w-]+)(?:/(.+))?)?", path)
        found = found or re.fullmatch(r"/([^/]+/[^/]+)\.git/info/lfs/objects/(batch)()", path)
        assert found, path
        if found[1] not in self.repos:
            return 404, {"error": "Repository not found"}
        return self._of_repo(found[1], found[2] or "revision", found[3], body)

    def _of_repo(self, name: str, what: str, rest: str, body: bytes) -> tuple[int, object]:
        repo = self.repos[name]
        if what == "auth-check" and not repo.writable:
            return 403, {"error": "Forbidden: no write access"}
        answers = {
            "auth-check": dict,
            "batch": lambda: self._batch(json.loads(body)),
            "commit": lambda: self._commit(name, repo, body),
            "preupload": lambda: {"files": [_mode(repo, r) for r in json.loads(body)["files"]]},
            "revision": lambda: _info(name, repo, rest),
            "tree": lambda: _list_tree(repo),
            "xet-write-token": lambda: {
                "casUrl": f"local://{self.xet}",
                "exp": 4_000_000_000,
                "accessToken": "chunks",
            },
        }
        return 200, answers[what]()

    def _create(self, asked: dict) -> tuple[int, object]:
        name = f"{asked['organization'] or 'ada'}/{asked['name']}"
        if name in self.repos:
            return 409, {"error": "You already created this model repo"}
        private = asked.get("visibility") == "private" or asked.get("private", False)
        self.repos[name] = Repo(private=private)
        self.created(self.repos[name])
        return 200, {"url": f"{self.url}/{name}", "name": name}

    def _batch(self, asked: dict) -> dict:
        rows = [{"oid": row["oid"], "size": row["size"]} for row in asked["objects"]]
        for row in rows:
            if row["oid"] not in self.objects:
                row["actions"] = {"upload": {"href": f"{self.url}/lfs/{row['oid']}"}}
        return {"transfer": "basic", "objects": rows}

    def _commit(self, name: str, repo: Repo, body: bytes) -> dict:
        files = dict(repo.files)
        for row in map(json.loads, body.splitlines()):
            value = row["value"]
            if row["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif row["key"] == "lfsFile":
                known = self.objects.get(value["oid"])
                assert known is not None or self.xet, f"{value} was not sent"
                files[value["path"]] = known or bytes(value["size"])  # xet: the chunks have it
                repo.large[value["path"]] = value["oid"]
            else:
                assert row["key"] == "header", row
        repo.commits.append(files)
        oid = _oid(len(repo.commits) - 1)
        return {"success": True, "commitOid": oid, "commitUrl": f"{self.url}/{name}/commit/{oid}"}


def _oid(number: int) -> str:
    return f"{number:040x}"


def _info(name: str, repo: Repo, revision: str | None) -> dict:
    number = len(repo.commits) - 1 if revision in (None, "main") else int(revision, 16)
    files = repo.commits[number]
    siblings = [{"rfilename": path, "size": len(data)} for path, data in files.items()]
    about = {"id": name, "modelId": name, "private": repo.private, "tags": []}
    about |= {"lastModified": "2026-11-30T08:00:00.000Z"}
    return about | {"sha": _oid(number), "siblings": siblings, "downloads": 0, "likes": 0}


def _find_commit(repo: Repo, revision: str) -> dict[str, bytes]:
    return repo.commits[int(revision, 16)] if re.fullmatch("[0-9a-f]{40}", revision) else repo.files


def _list_tree(repo: Repo) -> list[dict]:
    return [
        {"type": "file", "path": path, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
        for path, data in repo.files.items()
    ]


def _mode(repo: Repo, row: dict) -> dict:
    path = row["path"]
    mode = {"path": path, "uploadMode": "lfs" if path.endswith(".safetensors") else "regular"}
    if path in repo.large:
        mode["oid"] = repo.large[path]
    elif path in repo.files:
        data = repo.files[path]
        mode["oid"] = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
    return mode | {"shouldIgnore": path == repo.ignored}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # headers and content are sent one after the other
    hub: Hub

    def do_GET(self) -> None:
        body = self._body()
        path = unquote(urlsplit(self.path).path)
        if path == "/api/agent-harnesses":  # which programs call: asked of itself
            self._send(200, {})
            return
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        status = self.hub.fails(self.command, path)
        if path.startswith("/far/"):
            self.hub.told.append(token)
        elif status is None and token not in _ROLES and not path.startswith("/lfs/"):
            status = 401
        self.hub.requests.append(
            (self.command if status is None else f"refused {self.command}", path)
        )
        resolved = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        if status is None and path.startswith("/far/"):
            self._send_file(self.hub.far[path.removeprefix("/far/")])
        elif status is None and resolved is not None and resolved[3] in self.hub.far:
            self._redirect(f"{self.hub.url.replace('127.0.0.1', 'localhost')}/far/{resolved[3]}")
        elif status is None and resolved is not None:
            repo, revision, name = resolved.groups()
            self._send_file(_find_commit(self.hub.repos[repo], revision)[name])
        elif status is None:
            self._send(*self.hub.answer(path, token, body))
        elif status == CUT:
            self.close_connection = True
        else:
            self._send(status, {"error": "Refused by the stand-in"})

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_POST(self) -> None:
        self.do_GET()

    def do_PUT(self) -> None:
        self.do_GET()

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _redirect(self, url: str) -> None:
        self.send_response(302)
        self.send_header("Location", url)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _send_file(self, content: bytes) -> None:
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        first, last = (int(asked[1]), int(asked[2])) if asked else (0, len(content) - 1)
        part = content[first : last + 1]
        self.send_response(206 if asked else 200)
        if asked:
            last = first + len(part) - 1
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(content)}")
        self.send_header("Content-Length", str(len(part)))
        self.send_header("ETag", f'"{hashlib.sha1(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", _oid(0))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(part)

    def _send(self, status: int, value: object) -> None:
        content = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        if status in self.hub.codes:
            self.send_header("X-Error-Code", self.hub.codes[status])
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    """A hub that huggingface_hub in this process talks to, with a token that may write."""
    from huggingface_hub import constants, file_download

    home = tmp_path_factory.mktemp("home")
    with serving() as found:
        monkeypatch.setattr(constants, "ENDPOINT", found.url)
        files = f"{found.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        for module in (constants, file_download):  # before 1.0 each has it
            monkeypatch.setattr(module, "HUGGINGFACE_CO_URL_TEMPLATE", files, raising=False)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(home / "token"))
        if hasattr(constants, "AGENT_HARNESSES_PATH"):
            monkeypatch.setattr(constants, "AGENT_HARNESSES_PATH", str(home / "harnesses"))
        monkeypatch.setenv("HF_TOKEN", WRITES)
        yield found


@contextmanager
def serving() -> Iterator[Hub]:
    """A hub that listens on this machine while the context lasts."""
    hub = Hub()
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
