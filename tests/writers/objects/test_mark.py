"""The mark of a run that writes to a store: one run at a time, and none that is gone for ever."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator

import obstore
import pytest

from ckpt_tool.common.errors import OutputError
from ckpt_tool.common.remote import stores
from ckpt_tool.common.remote.address import Address
from ckpt_tool.writers.objects import mark as marks
from ckpt_tool.writers.objects.bucket import Bucket
from ckpt_tool.writers.objects.mark import MARK, Mark
from ckpt_tool.writers.objects.sending import Sender
from tests.support.objects import buckets


@pytest.fixture
def sender() -> Iterator[Sender]:
    found = Sender()
    yield found
    found.close()


@pytest.fixture
def place(sink: buckets.Bucket, sender: Sender) -> Bucket:
    address = Address.parse(f"{sink.url}/out")
    assert address is not None
    return Bucket(address, sender)


def leave(place: Bucket, **said: object) -> None:
    """The mark of another run."""
    row = {"host": "elsewhere", "pid": 7, "token": "other", "names": [], **said}
    place.put(MARK, json.dumps(row).encode())


def find_ended() -> int:
    """The number of a process that was, and is no more."""
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    return process.pid


def test_a_second_run_is_told_who_writes(place: Bucket, sender: Sender) -> None:
    first, second = Mark(place, sender), Mark(place, sender)
    assert first.take() == []
    with pytest.raises(OutputError, match="another ckpt is writing it just now") as raised:
        second.take()
    assert f"process {os.getpid()} of {socket.gethostname()}" in str(raised.value)
    second.remove()  # it has none
    assert place.get(MARK) is not None
    first.remove()
    assert place.get(MARK) is None
    assert second.take() == []


def test_a_mark_of_a_process_that_is_gone_counts_no_more(place: Bucket, sender: Sender) -> None:
    names = ["model.safetensors", "sub/code.py"]
    leave(place, host=socket.gethostname(), pid=find_ended(), names=[*names, "../up", 7, "/etc"])
    assert Mark(place, sender).take() == names


def test_a_mark_of_another_machine_counts_as_long_as_it_is_renewed(
    place: Bucket, sender: Sender, monkeypatch: pytest.MonkeyPatch
) -> None:
    leave(place, names=["a"])
    with pytest.raises(OutputError, match="process 7 of elsewhere"):
        Mark(place, sender).take()
    monkeypatch.setattr(marks, "_STALE", -60.0)
    assert Mark(place, sender).take() == ["a"]


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"host": 7, "pid": "x"}', b"\xff"])
def test_a_mark_that_is_damaged_counts_like_any(
    place: Bucket, sender: Sender, content: bytes
) -> None:
    place.put(MARK, content)
    with pytest.raises(OutputError, match=r"another ckpt is writing it just now$"):
        Mark(place, sender).take()


def test_a_mark_is_renewed(
    place: Bucket, sender: Sender, sink: buckets.Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(marks, "_EVERY", 0.01)
    mark = Mark(place, sender)
    mark.take()
    sink.fail(method="PUT", times=2, status=403, code="AccessDenied")  # does not end it
    for _ in range(1000):
        obstore.list(place.store).collect()
        puts = [each.status for each in sink.requests if each.method == "PUT"]
        if puts[1:].count(200) > 1:
            break
    assert puts[1:4] == [403, 403, 200]
    mark.remove()


def test_whoever_was_taken_over_lets_nothing_appear(place: Bucket, sender: Sender) -> None:
    mark = Mark(place, sender)
    mark.take()
    mark.announce(["a"])
    found = place.get(MARK)
    assert found is not None
    assert json.loads(found.content)["names"] == ["a"]
    leave(place)
    with pytest.raises(OutputError, match="of another run by now"):
        mark.announce(["a"])


def test_of_two_that_come_at_once_one_has_it_where_the_store_can_tell(
    place: Bucket, sender: Sender
) -> None:
    """rclone does not look at conditions; obstore's own store in memory does."""
    place.store = obstore.store.MemoryStore()
    place.put(MARK, b"of one that was faster", "create")
    with pytest.raises(FileExistsError):
        place.put(MARK, b"too late", "create")
    found = place.get(MARK)
    assert found is not None
    assert found.content == b"of one that was faster"
    place.put(MARK, b"taken over", {"e_tag": found.etag})
    with pytest.raises(FileExistsError):
        place.put(MARK, b"too late", {"e_tag": found.etag})


def test_a_store_that_knows_no_conditions_is_asked_without(
    place: Bucket, sink: buckets.Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(stores._RETRY, "max_retries", 0)
    place.store = stores._OPENERS["s3"](sink.name)
    fault = sink.fail(method="PUT", status=501, code="NotImplemented")
    place.put(MARK, b"mine", "create")
    assert fault.times == 0
    found = place.get(MARK)
    assert found is not None
    assert found.content == b"mine"
