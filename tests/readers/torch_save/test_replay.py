"""Pickles that repeat one another: what is taken from the first is what the second one says."""

import pickle
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ckpt_tool.common.errors import CkptError, UnsafeContentError
from ckpt_tool.readers import open_checkpoint
from ckpt_tool.readers.torch_save.names import read_storage, resolve
from ckpt_tool.readers.torch_save.replay import Replayed, Script
from ckpt_tool.readers.torch_save.unpickle import unpickle
from tests.real.fsdp_cases import CASES


def script(data: bytes) -> Script:
    return Script(data, resolve, read_storage)


def run(data: bytes) -> Any:
    return unpickle(data, resolve, read_storage)


#: {"a": (5,), "b": 7}, "a" as memo 1, the tuple as memo 2, "b" as memo 3.
PLAIN = b"\x80\x02}q\x00(X\x01\x00\x00\x00aq\x01K\x05\x85q\x02X\x01\x00\x00\x00bq\x03K\x07u."
#: The same with the tuple of "a" for "b" too.
SHARED = PLAIN.replace(b"K\x07u", b"h\x02u")


def test_the_first_items_are_the_second_ones_own():
    other = PLAIN.replace(b"K\x05", b"K\x06")
    assert script(PLAIN).replay(other) == Replayed({"a": (6,)}, {"b": 7})
    assert script(PLAIN).replay(PLAIN) == Replayed({"a": (5,)}, {"b": 7})
    assert script(PLAIN).play() == Replayed({"a": (5,)}, {"b": 7})
    elsewhere = PLAIN.replace(b"q\x02", b"q\x04")  # in the memo, where nobody asks for it
    assert script(PLAIN).replay(elsewhere) == Replayed({"a": (5,)}, {"b": 7})


def test_what_differs_and_is_used_again_is_not_taken():
    assert run(SHARED) == {"a": (5,), "b": (5,)}
    assert script(SHARED).replay(SHARED.replace(b"K\x05", b"K\x06")) is None


@pytest.mark.parametrize(
    "other",
    [
        PLAIN[:-1],
        PLAIN + b".",
        PLAIN.replace(b"aq\x01", b"cq\x01"),  # another name
        PLAIN.replace(b"K\x05\x85", b"K\x05a"),  # malformed
        PLAIN.replace(b"K\x05\x85", b"K\x05."),  # ends there
        PLAIN.replace(b"K\x07", b"K\x08"),  # in the last item, after which no other begins
    ],
)
def test_what_is_not_the_same_but_for_its_head_is_run_whole(other):
    assert script(PLAIN).replay(other) is None


def test_pickles_that_differ_far_from_their_beginning_are_run_whole():
    names = {f"name {number}": number % 256 for number in range(5000)}
    one = pickle.dumps(names, protocol=2)
    other = pickle.dumps(names | {"name 4000": 0}, protocol=2)
    assert len(one) == len(other)
    assert script(one).replay(other) is None


@st.composite
def states(draw: st.DrawFn) -> dict[str, Any]:
    """Names and plain values, of which some are there several times: as one object."""
    leaves = st.one_of(st.integers(0, 255), st.sampled_from(["x", "some text", b"ab", None, 1.5]))
    pool: list[Any] = [draw(leaves)]
    for _ in range(draw(st.integers(1, 12))):
        kind = draw(st.sampled_from([tuple, list, "leaf"]))
        picked = draw(st.lists(st.sampled_from(pool), max_size=3))
        pool.append(draw(leaves) if kind == "leaf" else kind(picked))  # type: ignore[operator]
    return {f"n{at}": draw(st.sampled_from(pool)) for at in range(draw(st.integers(1, 9)))}


@settings(max_examples=300)
@given(states(), st.data())
def test_whatever_byte_is_another_one(state, data):
    """Either it is seen that the rest cannot be taken, or what is taken is what the bytes say."""
    one = pickle.dumps(state, protocol=2)
    at = data.draw(st.integers(0, len(one) - 1))
    other = one[:at] + bytes([data.draw(st.integers(0, 255))]) + one[at + 1 :]
    try:
        found = script(one).replay(other)
    except CkptError:
        found = None
    if found is not None:
        assert repr(found.state) == repr(run(other))


@settings(max_examples=300)
@given(states(), st.data())
def test_a_pickle_is_played_as_it_is_run(state, data):
    """Whatever byte is another one: it is not, or it gives what the whole of it gives."""
    one = pickle.dumps(state, protocol=2)
    at = data.draw(st.integers(0, len(one) - 1))
    other = one[:at] + bytes([data.draw(st.integers(0, 255))]) + one[at + 1 :]
    found = script(other).play()
    if found is not None:
        assert repr(found.state) == repr(run(other))


@pytest.mark.parametrize("name", CASES)
def test_real_ranks_are_read_as_each_by_itself(checkpoints, monkeypatch, name):
    folder = checkpoints[name]
    replayed = []
    replay = Script.replay

    def counted(self: Script, data: bytes) -> Replayed | None:
        replayed.append(replay(self, data))
        return replayed[-1]

    monkeypatch.setattr(Script, "replay", counted)
    found = _open(folder)
    monkeypatch.setattr(Script, "replay", lambda *_: None)
    played = _open(folder)
    monkeypatch.setattr(Script, "play", lambda *_: None)
    alone = _open(folder)
    for each in (found, played):
        assert each.entries == alone.entries
        assert list(each.entries) == list(alone.entries)
        assert {**each} == {**alone}
        assert each.problems == alone.problems
        assert (each.mesh, each.sums.keys()) == (alone.mesh, alone.sums.keys())
    if name in ("fsdp2_w3", "fsdp2_shard1_w2"):  # whose first tensors are cut evenly
        assert replayed[0] is not None


def _open(folder: Path):
    return open_checkpoint(folder / "actor" if (folder / "actor").is_dir() else folder)


def text(value: str) -> bytes:
    return b"X" + len(value).to_bytes(4, "little") + value.encode()


#: What begins a dictionary; what is put under the names a and b.
NEW, A, B, C = b"\x80\x02}q\x00(", text("a"), text("b"), text("c")
MESH = b"ctorch.distributed.device_mesh\nDeviceMesh\n)\x81q\x01}" + text("k") + b"K\x05sb"
CRAFTED = {
    "set before": b"\x80\x02}q\x00" + A + b"K\x05s(" + B + b"K\x07" + C + b"K\x08u.",
    "taken and consumed": NEW + A + b"](K\x05eq\x02" + B + b"ctorch\nSize\nh\x02\x85Ru.",
    "made and dropped": b"\x80\x02}q\x00(K\x05\x85q\x020" + A + b"K\x01" + B + b"h\x02u.",
    "a name again": NEW + A + b"K\x05\x85q\x02" + B + b"K\x01" + A + b"K\x05\x85u.",
    "a mesh's state again": NEW
    + A
    + MESH
    + B
    + b"K\x01"
    + C
    + b"h\x01}"
    + text("k")
    + b"K\x05sbu.",
    "its items dropped": NEW + A + b"K\x05" + B + b"1(" + B + b"K\x07u.",
    "its items in a list": NEW + A + b"K\x05" + B + b"K\x07l0.",
    "its items in another": NEW + A + b"K\x05" + B + b"K\x07d0.",
    "more taken than put": NEW + A + b"K\x05" + B + b"00.",
    "itself": NEW + A + b"(K\x05h\x00t" + B + b"K\x01" + C + b"K\x02u.",
}


@pytest.mark.parametrize("data", CRAFTED.values(), ids=CRAFTED.keys())
def test_a_tail_that_reaches_into_the_head_is_not_taken_by_itself(data):
    at = data.index(b"K\x05")
    other = data[:at] + b"K\x06" + data[at + 2 :]
    run(other)
    assert script(data).replay(other) is None
    played = script(data).play()
    assert played is None or played.state == run(data)


def test_code_that_the_second_alone_asks_for_is_refused():
    def ask(module: str, name: str, rest: str) -> bytes:
        head = A + text(module) + b"q\x01" + text(name) + b"q\x02" + text(rest) + b"q\x03\x87q\x04"
        return NEW + head + B + b"h\x01h\x02\x93" + text("touch it") + b"\x85Ru."

    one, other = ask("torch.distributed.tensor", "DTensor", "x"), ask("posix", "system", "x" * 21)
    assert len(one) == len(other)
    assert script(one).replay(other) is None
    with pytest.raises(UnsafeContentError):
        run(other)


@pytest.mark.parametrize(
    "data",
    [
        b"\x80\x02}q\x00()" + b"2\x86" * 60 + b"K\x01" + B + b"K\x02u.",
        NEW + b")" + b"\x85" * 100_000 + b"K\x01" + B + b"K\x02u.",
        NEW + A + b"]q\x01(" + b"N" * 100_000 + b"h\x01e" + B + b"K\x02u.",
        NEW
        + A
        + b"("
        + text("x" * 1_000_000)
        + b"q\x01"
        + b"h\x01" * 16_000
        + b"t"
        + B
        + b"K\x02u.",
    ],
    ids=["pairs of pairs", "a deep name", "a list in itself", "a text again and again"],
)
def test_comparing_takes_time_for_what_there_is(data):
    Script(data, resolve, read_storage).replay(data)  # seconds, or the test's limit is reached
