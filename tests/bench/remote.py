"""``python -m tests.bench.remote``: a merge from a server, beside a plain download of the same.

The server is ``rclone serve http`` on this machine, over the same disk. It stands for an object
store: requests, ranges and connections are the same code of obstore's, and rclone's own S3 server
does not answer ranges as S3 does. The download asks for 8 MiB at a time, 16 at once, as the
clouds' own tools do, and writes what comes to a file. Each round runs all commands.

The server works on the cores of this machine, too, so that it is the processor that is measured.
With ``--limit`` it sends so many megabytes a second in all, as a network does. With ``--each`` it
is one that waits 50 ms before each answer, and sends so many to each connection, as object stores
do (:mod:`tests.bench.paced`).
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.bench import servers
from tests.bench.generate import generate, spec_of_size
from tests.bench.measure import Command, measure
from tests.support.objects import rclone

_DOWNLOAD = """
import os, sys
from concurrent.futures import ThreadPoolExecutor
import obstore
from obstore.store import HTTPStore
url, out, *names = sys.argv[1:]
store, block = HTTPStore.from_url(url, client_options={"allow_http": True}), 8 << 20
pieces, at = [], 0
for name in names:
    size = obstore.head(store, name)["size"]
    starts = range(0, size, block)
    pieces += [(name, start, min(block, size - start), at + start) for start in starts]
    at += size
file = os.open(out, os.O_WRONLY | os.O_CREAT) if out else -1
def fetch(piece):
    name, start, length, to = piece
    content = obstore.get_range(store, name, start=start, length=length)
    if file >= 0:
        os.pwrite(file, content, to)
with ThreadPoolExecutor(16) as threads:
    list(threads.map(fetch, pieces))
"""

_MERGE, _DOWNLOADED = "merge, from the server", "download to a file"


@contextmanager
def _serving(folder: Path, each: float | None, most: int) -> Iterator[int]:
    if each is None:
        with rclone.serving("http", folder, *servers.QUICK, *servers.limit(most)) as (_, port):
            yield port
        return
    command = [sys.executable, "-m", "tests.bench.paced", str(folder), "0.05", str(each * 1e6)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield int(process.stdout.readline())
        process.kill()


def _list_commands(folder: Path, url: str, names: list[str], size: int) -> list[Command]:
    merge = (sys.executable, "-m", "ckpt_tool", "merge", "--no-check-load", "--no-fsync")
    download = (sys.executable, "-c", _DOWNLOAD, url)
    out, file = folder / "out", folder / "file"
    local = str(folder / "ranks")
    return [
        Command(_MERGE, (*merge, url, str(out)), out, size),
        Command("merge, from the disk", (*merge, local, str(out)), out, size),
        Command(_DOWNLOADED, (*download, str(file), *names), file, size),
        Command("download to nowhere", (*download, "", *names)),
        Command(servers.LOOKING, (sys.executable, "-m", "ckpt_tool", "inspect", "--json", url)),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.remote", description=__doc__)
    parser.add_argument("--gb", type=float, default=2.0, help="size (default: %(default)s)")
    parser.add_argument("--each", type=float, help="megabytes per second of a connection")
    parser.add_argument("--limit", type=int, default=0, help="megabytes per second (default: none)")
    parser.add_argument("--repeat", type=int, default=5, help="rounds (default: %(default)s)")
    parser.add_argument("--dir", type=Path, default=Path(), help="where a temporary folder is made")
    options = parser.parse_args()
    spec = spec_of_size(int(options.gb * 1e9), "bfloat16", 0)
    with tempfile.TemporaryDirectory(dir=options.dir) as scratch:
        folder = Path(scratch).resolve()
        generate(folder / "ranks", spec)
        files = sorted(path for path in (folder / "ranks").glob("*.pt"))
        with _serving(folder, options.each, options.limit) as port:
            url = f"http://127.0.0.1:{port}/ranks"
            names = [path.name for path in files]
            commands = _list_commands(folder, url, names, spec.nbytes)
            found = measure(commands, files, options.repeat, lambda text: print(text, end="\r"))
        servers.show(found, sum(path.stat().st_size for path in files), _MERGE, _DOWNLOADED)


if __name__ == "__main__":
    main()
