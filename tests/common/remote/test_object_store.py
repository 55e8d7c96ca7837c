"""The object store that the tests read from does what S3 does, and its faults happen."""

import os

import pytest

from tests.support.objects.faults import ALWAYS

obstore = pytest.importorskip("obstore")

CONTENT = bytes(range(256)) * 4096


@pytest.fixture
def store(bucket):
    """A client that does not try again what failed."""
    from obstore.store import S3Store

    (bucket.folder / "run").mkdir()
    (bucket.folder / "run" / "rank_0.pt").write_bytes(CONTENT)
    never = {
        "max_retries": 0,
        "backoff": {"init_backoff": 0.01, "max_backoff": 0.02, "base": 2},
        "retry_timeout": 1,
    }
    options = {"allow_http": True, "timeout": "1s"}
    return S3Store(
        bucket.name,
        endpoint=os.environ["AWS_ENDPOINT_URL"],
        client_options=options,
        retry_config=_as_durations(never),
    )


def _as_durations(retry):
    from datetime import timedelta

    backoff = {
        name: timedelta(seconds=value) if "backoff" in name else value
        for name, value in retry["backoff"].items()
    }
    timeout = timedelta(seconds=retry["retry_timeout"])
    return {**retry, "backoff": backoff, "retry_timeout": timeout}


def read(store, start, length, **options):
    asked = {"range": (start, start + length), **options}
    return bytes(obstore.get(store, "run/rank_0.pt", options=asked).bytes())


def test_what_is_on_disk_is_listed_and_parts_of_it_are_read(bucket, store):
    ((found,),) = obstore.list(store)
    assert (found["path"], found["size"]) == ("run/rank_0.pt", len(CONTENT))
    assert read(store, 1000, 50) == CONTENT[1000:1050]
    assert bucket.sizes() == {"run/rank_0.pt": 50}


def test_what_has_changed_is_refused(bucket, store):
    tag = obstore.head(store, "run/rank_0.pt")["e_tag"]
    assert read(store, 0, 5, if_match=tag) == CONTENT[:5]
    (bucket.folder / "run" / "rank_0.pt").write_bytes(CONTENT[::-1])
    with pytest.raises(obstore.exceptions.PreconditionError):
        read(store, 0, 5, if_match=tag)


def test_what_is_put_there_is_on_disk(bucket, store):
    parts = iter([CONTENT] * 12)
    obstore.put(store, "out/model.bin", parts, use_multipart=True, chunk_size=5 << 20)
    assert (bucket.folder / "out" / "model.bin").read_bytes() == CONTENT * 12
    obstore.delete(store, "out/model.bin")
    assert not (bucket.folder / "out" / "model.bin").exists()


@pytest.mark.parametrize(
    "fault",
    [
        {"status": 503, "code": "SlowDown"},
        {"cut": True, "after": 100},
        {"stall": 3, "after": 100},
        {"change": lambda body: body[:-1]},
    ],
    ids=["throttled", "cut", "stalled", "short"],
)
def test_a_fault_happens_as_often_as_asked(bucket, store, fault):
    bucket.fail(key="run/*", times=1, **fault)
    try:
        got = read(store, 0, 1 << 16)
    except obstore.exceptions.BaseError:
        got = b""
    assert got != CONTENT[: 1 << 16]
    assert read(store, 0, 1 << 16) == CONTENT[: 1 << 16]


def test_a_fault_may_last(bucket, store):
    bucket.fail(times=ALWAYS, status=503, code="SlowDown")
    for _ in range(3):
        with pytest.raises(obstore.exceptions.BaseError):
            read(store, 0, 10)
