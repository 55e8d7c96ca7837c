"""``python -m tests.bench.paced FOLDER WAIT RATE``: a server as far away as an object store is.

Each answer begins after ``WAIT`` seconds, and comes at ``RATE`` bytes a second; how many come at a
time is the client's choice. It prints its port. So a bench shows how well requests are laid side by
side, whatever else the machine does.
"""

from __future__ import annotations

import asyncio
import re
import sys
import time
from functools import partial
from pathlib import Path

_BLOCK = 128 << 10
_RANGE = re.compile(rb"^range: bytes=(\d+)-(\d+)", re.I | re.M)
_HEAD = 'HTTP/1.1 {}\r\nContent-Length: {}\r\nETag: "one"\r\nContent-Type: {}\r\n{}\r\n'


async def _answer(
    root: Path,
    wait: float,
    rate: float,
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
) -> None:
    try:
        while True:
            asked = await reader.readuntil(b"\r\n\r\n")
            method, name, _ = asked.decode().split(" ", 2)
            path = root / name.strip("/")
            await asyncio.sleep(wait)
            if path.is_dir():
                names = (each.name + "/" * each.is_dir() for each in path.iterdir())
                page = "".join(f"<a href='{name}'>1</a>" for name in names).encode()
                writer.write(_HEAD.format("200 OK", len(page), "text/html", "").encode() + page)
            elif not path.is_file():
                writer.write(_HEAD.format("404 Not Found", 0, "text/plain", "").encode())
            else:
                await _send(path, method, _RANGE.search(asked), rate, writer)
            await writer.drain()
    except (asyncio.IncompleteReadError, ConnectionError):
        writer.close()


async def _send(
    path: Path,
    method: str,
    asked: re.Match[bytes] | None,
    rate: float,
    writer: asyncio.StreamWriter,
) -> None:
    size = path.stat().st_size
    first, last = (int(asked[1]), min(int(asked[2]), size - 1)) if asked else (0, size - 1)
    more = f"Content-Range: bytes {first}-{last}/{size}\r\n" if asked else ""
    status = "206 Partial Content" if asked else "200 OK"
    writer.write(_HEAD.format(status, last - first + 1, "application/octet-stream", more).encode())
    begun, at = time.monotonic(), first
    with path.open("rb") as file:
        file.seek(first)
        while method == "GET" and at <= last:
            block = file.read(min(_BLOCK, last + 1 - at))
            at += len(block)
            writer.write(block)
            await writer.drain()
            await asyncio.sleep(max(0, begun + (at - first) / rate - time.monotonic()))


async def _serve(root: str, wait: str, rate: str) -> None:
    answer = partial(_answer, Path(root), float(wait), float(rate))
    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(_serve(*sys.argv[1:]))
