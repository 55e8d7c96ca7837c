"""What goes wrong on the way from a bucket: got over where that can be, else one clear error."""

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from ckpt_tool import StoreError, merge_checkpoint
from ckpt_tool.cli.app import app
from ckpt_tool.common.remote import patience, stores
from tests.support.merging import TINY, values, write_rank
from tests.support.objects.buckets import Bucket
from tests.support.objects.faults import ALWAYS

pytest.importorskip("obstore")

RANKS = "run/actor/*.pt"
STATE = {"model.norm.weight": values(300, 900), "lm_head.weight": values(160, 8, start=9)}


@pytest.fixture(autouse=True)
def _hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is waited for half a minute is waited for a second or two."""
    short = {"read_timeout": timedelta(seconds=1)}
    monkeypatch.setattr(stores, "_CLIENT", stores._CLIENT | short)
    backoff = stores._RETRY["backoff"] | {"max_backoff": timedelta(milliseconds=300)}
    short = {"retry_timeout": timedelta(seconds=2), "backoff": backoff}
    monkeypatch.setattr(stores, "_RETRY", stores._RETRY | short)
    monkeypatch.setattr(patience, "_PAUSES", (0.01,) * 4)
    monkeypatch.setattr(patience, "_PATIENCE", 1)


@pytest.fixture
def actor(bucket: Bucket) -> str:
    """The address of a rank file and its config."""
    write_rank(bucket.folder / "run" / "actor", STATE, TINY)
    return f"{bucket.url}/run/actor"


def start(source: object, out: Path) -> Any:
    return CliRunner().invoke(app, ["merge", str(source), str(out), "--config", "none"])


def merge(source: object, out: Path) -> str:
    """What a merge says that is refused."""
    done = start(source, out)
    assert done.exit_code == 2, done.output
    assert not out.exists()
    assert list(out.parent.iterdir()) == []
    assert "Traceback" not in done.output
    assert done.output.count("ckpt: error:") == 1
    return " ".join(done.output.split())


@pytest.mark.parametrize(
    "fault",
    [
        {"cut": True, "after": 1000, "times": 3},
        {"cut": True, "after": 70_000, "times": 3},
        {"status": 503, "code": "SlowDown", "times": 3},
        {"status": 429, "code": "TooManyRequests", "times": 3},
        {"status": 500, "code": "InternalError", "times": 1},
        {"stall": 3, "after": 1000},
        {"change": lambda body: body[:-1]},
        {"change": lambda body: body[:0]},
    ],
    ids="cut cut-late throttled limited broken stalled short empty".split(),
)
def test_it_is_got_over_bit_for_bit(bucket, actor, tmp_path, fault):
    assert start(bucket.folder / "run" / "actor", tmp_path / "near").exit_code == 0
    fault = bucket.fail(key=RANKS, **fault)
    assert start(actor, tmp_path / "far").exit_code == 0
    assert fault.times == 0
    near, far = (tmp_path / name / "model.safetensors" for name in ("near", "far"))
    assert near.read_bytes() == far.read_bytes()


def test_a_list_is_asked_for_again(bucket, actor, tmp_path):
    fault = bucket.fail(key="", status=503, code="SlowDown", times=2)
    assert start(actor, tmp_path / "far").exit_code == 0
    assert fault.times == 0


def test_a_bit_that_turned_on_the_way_is_found(bucket, actor, tmp_path):
    def turn(body: bytes) -> bytes:
        return body if len(body) < 500_000 else body[:99] + bytes([body[99] ^ 1]) + body[100:]

    bucket.fail(key=RANKS, times=ALWAYS, change=turn)
    said = merge(actor, tmp_path / "out")
    assert f"{actor}/model_world_size_1_rank_0.pt: record" in said
    assert "CRC-32" in said


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ({"status": 503, "code": "SlowDown"}, "too busy for half a minute: 503 SlowDown"),
        ({"status": 500, "code": "InternalError"}, "not to be had: 500 InternalError"),
        ({"cut": True, "after": 1000}, "not to be had"),
        ({"stall": 60, "after": 1000}, "not to be had"),
        ({"change": lambda body: body[:-1]}, "The store or a proxy on the way cuts answers short"),
        ({"status": 403, "code": "AccessDenied"}, "refused: 403 AccessDenied"),
    ],
    ids="throttled broken cut stalled short denied".split(),
)
@pytest.mark.slow
def test_what_lasts_is_said(bucket, actor, tmp_path, fault, words):
    bucket.fail(key=RANKS, times=ALWAYS, **fault)
    said = merge(actor, tmp_path / "out")
    assert f"{actor}/model_world_size_1_rank_0.pt: " in said
    assert words in said


@pytest.mark.slow
def test_a_server_that_goes_away_within_a_merge_leaves_nothing(bucket, actor, tmp_path):
    """The metadata come, which are at both ends of the file; nothing of what is between."""
    size = (bucket.folder / "run" / "actor" / "model_world_size_1_rank_0.pt").stat().st_size
    bucket.fail(key=RANKS, at=size // 2, times=ALWAYS, status=503, code="SlowDown")
    assert CliRunner().invoke(app, ["inspect", actor]).exit_code == 0
    assert "503 SlowDown" in merge(actor, tmp_path / "out")


def test_an_object_that_changes_meanwhile(bucket, actor, tmp_path):
    path = bucket.folder / "run" / "actor" / "model_world_size_1_rank_0.pt"
    bucket.fail(key=RANKS, before=lambda: path.write_bytes(path.read_bytes() + b"x"))
    said = merge(actor, tmp_path / "out")
    assert f"{actor}/{path.name}: was written again after it was opened" in said


def test_an_object_that_goes_meanwhile(bucket, actor, tmp_path):
    path = bucket.folder / "run" / "actor" / "model_world_size_1_rank_0.pt"
    bucket.fail(key=RANKS, before=path.unlink)
    assert f"{actor}/{path.name}" in merge(actor, tmp_path / "out")


def test_a_wrong_secret(bucket, actor, tmp_path, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "another-secret-key")
    said = merge(actor, tmp_path / "out")
    assert f"{actor}: refused: 403 SignatureDoesNotMatch" in said
    assert "AWS_SECRET_ACCESS_KEY" in said
    assert "another-secret-key" not in said


def test_an_unknown_user(bucket, actor, tmp_path, monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "anotheraccesskey")
    said = merge(actor, tmp_path / "out")
    assert f"{actor}: refused: 403 InvalidAccessKeyId" in said
    assert "Set AWS_ACCESS_KEY_ID" in said


@pytest.mark.parametrize("side", ["source", "config", "reference"])
def test_nothing_is_there(bucket, actor, tmp_path, side):
    missing = f"{bucket.url}/run/missing"
    words = {
        "source": ["merge", missing, tmp_path / "out"],
        "config": ["merge", actor, tmp_path / "out", "--config", missing],
        "reference": ["verify", actor, missing],
    }[side]
    done = CliRunner().invoke(app, [*map(str, words)])
    assert done.exit_code == 2
    assert f"{missing}: nothing is there" in done.output
    assert list(tmp_path.iterdir()) == []


def test_there_is_no_such_bucket(bucket, tmp_path):
    said = merge("s3://no-such-bucket/run", tmp_path / "out")
    assert "s3://no-such-bucket/run: there is no bucket no-such-bucket" in said


@pytest.mark.slow
def test_a_server_that_is_not_there(bucket, actor, tmp_path, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    said = merge(actor, tmp_path / "out")
    assert f"{actor}: not to be had: http://127.0.0.1:9 does not answer" in said
    assert "AWS_ENDPOINT_URL" in said


def test_the_library_raises_what_the_command_line_says(bucket, actor, tmp_path):
    bucket.fail(key=RANKS, times=ALWAYS, status=403, code="AccessDenied")
    with pytest.raises(StoreError, match="refused: 403 AccessDenied"):
        merge_checkpoint(actor, tmp_path / "out")
