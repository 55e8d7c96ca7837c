"""``python -m tests.bench.sending``: a merge to an object store, beside a plain upload of the same.

The server is ``rclone serve s3`` on this machine, over the same disk. The upload is obstore's own,
of the files that a merge to a folder makes, one after the other, twelve parts of 8 MiB at a time.
Each round runs all commands, each to a place of its own, which is removed again.

The server works on the cores of this machine, too. So without ``--limit`` it is the processor that
is measured; with it, a network of that many bytes a second.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.bench import servers
from tests.bench.generate import generate, spec_of_size
from tests.bench.measure import Command, measure
from tests.support.objects import rclone
from tests.support.objects.buckets import ACCESS_KEY, SECRET_KEY

#: Both remove what they have sent, lest the disk be filled.
_BEGIN = """
import runpy, sys, time
import obstore
from obstore.store import S3Store
key = f"out-{time.time_ns()}"
store = S3Store("bucket", client_options={"allow_http": True})
"""
_UPLOAD = """
for name in sys.argv[1:]:
    with open(name, "rb") as file:
        to = f"{key}/{name.rpartition('/')[2]}"
        obstore.put(store, to, file, use_multipart=True, chunk_size=8 << 20, max_concurrency=12)
"""
_MERGE = """
sys.argv += [f"s3://bucket/{key}"]
try:
    runpy.run_module("ckpt_tool", run_name="__main__")
except SystemExit as end:
    assert not end.code, end.code
"""
_END = """
obstore.delete(store, [row["path"] for row in obstore.list(store, key).collect()])
"""

_SENT, _UPLOADED = "merge, to the server", "upload of its files"


def _list_commands(folder: Path, size: int) -> list[Command]:
    words = ("merge", "--no-check-load", "--no-check-crc", str(folder / "ranks"))
    model = folder / "model"
    once = [sys.executable, "-m", "ckpt_tool", "--quiet", *words, str(model)]
    subprocess.run(once, check=True, stdout=subprocess.DEVNULL)
    files = sorted(map(str, model.glob("*.safetensors")))
    upload, merge = (_BEGIN + work + _END for work in (_UPLOAD, _MERGE))
    return [
        Command(_SENT, (sys.executable, "-c", merge, *words)),
        Command(_UPLOADED, (sys.executable, "-c", upload, *files)),
        Command(
            "merge, to the disk",
            (sys.executable, "-m", "ckpt_tool", *words, str(folder / "out")),
            folder / "out",
            size,
        ),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.sending", description=__doc__)
    parser.add_argument("--gb", type=float, default=1.0, help="size (default: %(default)s)")
    parser.add_argument("--limit", type=int, default=0, help="megabytes per second (default: none)")
    parser.add_argument("--repeat", type=int, default=5, help="rounds (default: %(default)s)")
    parser.add_argument("--dir", type=Path, default=Path(), help="where a temporary folder is made")
    options = parser.parse_args()
    spec = spec_of_size(int(options.gb * 1e9), "bfloat16", 0)
    with tempfile.TemporaryDirectory(dir=options.dir) as scratch:
        folder = Path(scratch).resolve()
        generate(folder / "ranks", spec)
        files = sorted((folder / "ranks").glob("*.pt"))
        (folder / "bucket").mkdir()
        more = ["--auth-key", f"{ACCESS_KEY},{SECRET_KEY}", *servers.QUICK]
        more += servers.limit(options.limit)
        with rclone.serving("s3", folder, *more) as (host, port):
            os.environ |= {
                "AWS_ENDPOINT_URL": f"http://{host}:{port}",
                "AWS_ACCESS_KEY_ID": ACCESS_KEY,
                "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
                "AWS_REGION": "us-east-1",
            }
            commands = _list_commands(folder, spec.nbytes)
            found = measure(commands, files, options.repeat, lambda text: print(text, end="\r"))
        servers.show(found, spec.nbytes, _SENT, _UPLOADED)


if __name__ == "__main__":
    main()
