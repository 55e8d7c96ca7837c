"""Keys that no file can be called, from a store that lists them: one clear error, and no file."""

import os
from pathlib import Path

import pytest
from typer.testing import CliRunner

from ckpt_tool.cli.app import app
from tests.support.merging import TINY, values, write_rank
from tests.support.objects.buckets import Bucket
from tests.support.objects.faults import ALWAYS

pytest.importorskip("obstore")

_KEY = b"run/model_world_size_1_rank_0.pt"


def inspect(bucket: Bucket, key: bytes) -> str:
    """What `inspect` says of a bucket that lists `key` in the place of a rank's."""
    write_rank(bucket.folder / "run", {"w": values(4)}, TINY)
    listed = b"<Key>%s</Key>" % _KEY

    def rename(body: bytes) -> bytes:
        return body.replace(listed, b"<Key>%s</Key>" % key)

    bucket.fail(key="", times=ALWAYS, change=rename)
    done = CliRunner().invoke(app, ["inspect", f"{bucket.url}/run"])
    assert done.exit_code == 2, done.output
    assert done.output.count("ckpt: error:") == 1
    assert f"{bucket.url}/run" in done.output
    return " ".join(done.output.split())


@pytest.mark.parametrize(
    ("key", "why"),
    [
        (b"run/../../../../tmp/escaped.pt", "no file of a folder can be called"),
        (b"run/..", "no file of a folder can be called"),
        (b"run/./x.pt", "no file of a folder can be called"),
        (b"run//x.pt", "no file of a folder can be called"),
        (b"run/a&#0;b.pt", "invalid list response"),
        (b"run/" + b"x" * 300, "no file of a folder can be called"),
        (b"run/" + b"x/" * 3000 + b"x", "no file of a folder can be called"),
        (b"other/x.pt", "lists 'other/x.pt', which is not below it"),
        (b"runner/x.pt", "lists 'runner/x.pt', which is not below it"),
    ],
    ids="up parent here double nul long deep elsewhere prefix".split(),
)
def test_a_key_that_no_file_can_have(bucket, key, why, tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    said = inspect(bucket, key)
    assert why in said
    assert len(said) < 700
    assert not Path("/tmp/escaped.pt").exists()
    assert not any("escaped" in name for _, _, names in os.walk(tmp_path) for name in names)


@pytest.mark.parametrize("key", [b"run/huggingface", b"run/huggingface/config.json/x"])
def test_a_key_that_is_a_file_and_a_folder(bucket, key):
    assert "is an object, and the beginning of others' names" in inspect(bucket, key)
