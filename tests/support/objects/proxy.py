"""A proxy before an object store: it mends what rclone does otherwise than S3, and plays faults.

Of rclone 1.75 it mends: the status of a part of an object, which is 200 there and not 206, and
`If-Match` of what is read, which rclone does not look at, nor at conditions of what is written.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from http.client import HTTPConnection, HTTPResponse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

from tests.support.objects.faults import Fault, Faults, Request

_BLOCK = 1 << 20
#: Of one connection, not of what is passed on.
_OF_CONNECTION = {"connection", "keep-alive", "transfer-encoding", "content-length"}
_ERROR = (
    '<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>{}</Code><Message>{}</Message></Error>'
)


@dataclass
class Proxy:
    """What came by, and what is to go wrong."""

    url: str = ""
    faults: Faults = field(default_factory=Faults)
    requests: list[Request] = field(default_factory=list)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    proxy: Proxy
    behind: tuple[str, int]
    _upstream: HTTPConnection | None = None

    def do_GET(self) -> None:
        path = urlsplit(self.path)
        bucket, _, key = unquote(path.path).removeprefix("/").partition("/")
        asked = Request(self.command, bucket, key, path.query, self.headers.get("Range", ""))
        fault = self.proxy.faults.take(asked) or Fault()
        if fault.before:
            fault.before()
        if fault.status:
            for _ in self._read_body():
                pass
            self._send(asked, fault.status, {}, _say(fault.code))
        else:
            self._pass_on(asked, fault)

    do_HEAD = do_PUT = do_POST = do_DELETE = do_GET  # noqa: N815

    def _read_body(self) -> Iterator[bytes]:
        left = int(self.headers.get("Content-Length", 0))
        while left:
            block = self.rfile.read(min(left, _BLOCK))
            assert block, "the body ended too soon"
            left -= len(block)
            yield block

    def _pass_on(self, asked: Request, fault: Fault) -> None:
        with self._ask() as answer:
            headers = {k: v for k, v in answer.getheaders() if k.lower() not in _OF_CONNECTION}
            status = answer.status
            is_read = self.command in ("GET", "HEAD")
            wanted = self.headers.get("If-Match", "").strip('"') if is_read else ""
            if status == 200 and wanted and wanted != headers.get("Etag", "").strip('"'):
                self._send(asked, 412, {}, _say("PreconditionFailed"))
            elif self.command == "HEAD" or status in (204, 304):
                headers["Content-Length"] = answer.getheader("Content-Length") or "0"
                self._send(asked, status, headers, b"")
            else:
                status = 206 if status == 200 and "Content-Range" in headers else status
                self._relay(asked, status, headers, answer, fault)

    @contextmanager
    def _ask(self) -> Iterator[HTTPResponse]:
        if self._upstream is None:
            self._upstream = HTTPConnection(*self.behind)
        try:
            self._upstream.putrequest(
                self.command, self.path, skip_host=True, skip_accept_encoding=True
            )
            for name, value in self.headers.items():
                self._upstream.putheader(name, value)
            self._upstream.endheaders()
            for block in self._read_body():
                self._upstream.send(block)
            answer = self._upstream.getresponse()
            yield answer
            if not answer.isclosed():
                self._forget()
        except BaseException:
            self._forget()
            raise

    def _forget(self) -> None:
        if self._upstream is not None:
            self._upstream.close()
            self._upstream = None

    def _relay(
        self,
        asked: Request,
        status: int,
        headers: dict[str, str],
        answer: HTTPResponse,
        fault: Fault,
    ) -> None:
        length = answer.length
        if length is None or fault.change:
            body = answer.read()
            body = fault.change(body) if fault.change else body
            self._send(asked, status, headers, body)
            return
        noted = self._note(asked, status)
        self._start(status, {**headers, "Content-Length": str(length)})
        breaks = fault.cut or fault.stall
        while noted.size < length:
            most = fault.after - noted.size if breaks and noted.size <= fault.after else _BLOCK
            if most == 0 and fault.cut:
                self.close_connection = True
                return
            if most == 0:
                time.sleep(fault.stall)
                breaks = False
                continue
            block = answer.read(min(most, _BLOCK))
            noted.size += len(block)
            self.wfile.write(block)

    def _send(self, asked: Request, status: int, headers: dict[str, str], body: bytes) -> None:
        self._note(asked, status).size = len(body)
        self._start(status, {"Content-Length": str(len(body)), **headers})
        if self.command != "HEAD":
            self.wfile.write(body)

    def _start(self, status: int, headers: dict[str, str]) -> None:
        self.send_response_only(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def _note(self, asked: Request, status: int) -> Request:
        """Before it is answered: who has the answer may look here at once."""
        noted = replace(asked, status=status)
        self.proxy.requests.append(noted)
        return noted

    def handle(self) -> None:
        with suppress(ConnectionError):  # who asked has gone
            super().handle()
        self._forget()

    def log_message(self, *_: object) -> None:
        pass


def _say(code: str) -> bytes:
    return _ERROR.format(code, "Refused by the proxy of the tests").encode()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64


@contextmanager
def before(behind: tuple[str, int]) -> Iterator[Proxy]:
    """A proxy that listens on this machine while the context lasts."""
    proxy = Proxy()
    handler = type("Handler", (_Handler,), {"proxy": proxy, "behind": behind})
    with _Server(("127.0.0.1", 0), handler) as server:
        proxy.url = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield proxy
        finally:
            server.shutdown()
            thread.join()
