"""The journal: believed as far as it can be checked, locked, and written through no link."""

import errno
import fcntl
import json
import os
from pathlib import Path

import pytest

from ckpt_tool.common.errors import OutputError
from ckpt_tool.writers.journal import Journal, Left, Replacing, read_finished
from ckpt_tool.writers.staging import Staging
from ckpt_tool.writers.stream import WrittenFile
from ckpt_tool.writers.target import make_journal_path, make_partial_path
from tests.writers.test_staging import NEW, add, contents, opened

ROW = {"name": "weights", "size": 3, "digest": "0", "cast_errors": [["float32", "bfloat16", 0.5]]}

FOREIGN = {
    "empty": b"",
    "zeros after a power cut": bytes(4096),
    "binary": bytes(range(256)) * 20,
    "half a line": b'{"pl',
    "no object": b"[]\n",
    "a number": b"7\n",
    "no plan": b'{"some": "json"}\n',
    "a plan of null": b'{"plan": null}\n',
    "a plan of another type": b'{"plan": ["x"]}\n',
    "not utf-8": b'{"plan": "\xff"}\n',
    "deep": b"[" * 100_000,
    "a huge number": b"9" * 10_000 + b"\n",
}


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


def journal(out: Path) -> Journal:
    found = Journal(make_journal_path(out), lambda _: None)
    found.open(out)
    return found


@pytest.mark.parametrize("content", FOREIGN.values(), ids=FOREIGN)
@pytest.mark.parametrize("resume", [False, True])
def test_what_is_no_journal_is_started_anew(out: Path, content: bytes, resume: bool) -> None:
    make_journal_path(out).write_bytes(content)
    make_partial_path(out).mkdir()
    (make_partial_path(out) / "weights").write_text("whose?")
    staging = opened(out, resume=resume)
    said = [f"{make_journal_path(out)}: is damaged: started over"]
    assert staging.warnings == (said if resume and content else [])
    add(staging, "weights", b"new")
    staging.put("config.json", b"{}")
    staging.publish(replace=False)
    assert contents(out.parent) == {f"out/{name}": text for name, text in NEW.items()}


@pytest.mark.parametrize(
    "row",
    [
        b"nonsense",
        b"{}",
        b"[1]",
        b'{"name": "weights"}',
        json.dumps(ROW | {"name": "../weights"}).encode(),
        json.dumps(ROW | {"name": "/etc/passwd"}).encode(),
        json.dumps(ROW | {"name": ""}).encode(),
        json.dumps(ROW | {"name": 5}).encode(),
        json.dumps(ROW | {"size": "3"}).encode(),
        json.dumps(ROW | {"size": True}).encode(),
        json.dumps(ROW | {"size": -3}).encode(),
        json.dumps(ROW | {"size": 10**400}).encode(),
        json.dumps(ROW | {"digest": None}).encode(),
        json.dumps(ROW | {"cast_errors": [1]}).encode(),
        b'{"old": "../x", "inode": 1, "entries": []}',
        b'{"old": "x", "inode": "y", "entries": []}',
        b'{"old": "x", "inode": 1, "entries": ["a/b"]}',
        b'{"old": "x"}',
        b'{"old": "x", "inode": 1e999, "entries": []}',
        json.dumps(ROW | {"cast_errors": [["a", "b", 10**400]]}).encode(),
    ],
)
def test_rows_that_make_no_sense_are_left_out(out: Path, row: bytes) -> None:
    good = json.dumps(ROW).encode()
    make_journal_path(out).write_bytes(b'{"plan": "p"}\n' + row + b"\n" + good + b'\n{"na')
    errors = (("float32", "bfloat16", 0.5),)
    assert journal(out).read() == Left("p", [WrittenFile("weights", 3, "0", errors)])


def test_what_was_spoilt_is_known_to_the_run_that_goes_on(out: Path) -> None:
    row = json.dumps(ROW | {"spoilt": ["a.weight"]}).encode()
    make_journal_path(out).write_bytes(b'{"plan": "p"}\n' + row + b"\n")
    assert journal(out).read().files[0].spoilt == ("a.weight",)


def test_what_is_written_is_read(out: Path) -> None:
    mine = journal(out)
    files = [WrittenFile("a/b", 1, "x", (("float32", "float16", float("inf")),))]
    replacing = Replacing("old", 5, ("one", "other"))
    mine.start("plan")
    mine.note(files[0])
    mine.note_replacing(replacing)
    assert mine.read() == Left("plan", files, replacing)
    mine.close()
    assert read_finished(make_journal_path(out)) == {"a/b": 1}
    again = journal(out)
    again.start("plan", files)
    assert again.read() == Left("plan", files)


def test_going_on_needs_no_room(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a full disk nothing of what an earlier run has noted is lost."""
    mine, file = journal(out), WrittenFile("a", 1, "x")
    mine.start("plan")
    mine.note(file)
    mine.close()
    with open(make_journal_path(out), "ab") as rest:
        rest.write(b'{"name": "b", "si')

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "write", full)
    again = journal(out)
    again.start("plan", [file])
    assert again.read() == Left("plan", [file])
    with pytest.raises(OSError, match="No space left"):
        again.note(WrittenFile("b", 1, "y"))
    assert again.read() == Left("plan", [file])


@pytest.mark.parametrize("which", [make_journal_path, make_partial_path])
@pytest.mark.parametrize("there", [True, False])
def test_a_planted_link_is_not_followed(out: Path, which, there: bool) -> None:
    mine = out.parent / "mine"
    if there and which is make_partial_path:
        mine.mkdir()
        (mine / "file").write_text("precious")
    elif there:
        mine.write_text("precious")
    which(out).symlink_to(mine)
    for resume in (False, True):
        with pytest.raises(OutputError, match="is a symbolic link") as error:
            opened(out, resume=resume)
        assert str(which(out)) in error.value.message
    assert mine.exists() == there
    assert contents(out.parent).get("mine/file", "precious") == "precious"
    assert not make_journal_path(out).exists() or which is make_journal_path


def test_a_link_that_is_planted_among_finished_files_is_not_published(out: Path) -> None:
    first = opened(out)
    add(first, "weights", b"new")
    add(first, "sub/more", b"new")
    first.abandon()
    partial, mine = make_partial_path(out), out.parent / "mine"
    mine.mkdir()
    (partial / "weights").rename(mine / "weights")
    (partial / "weights").symlink_to(mine / "weights")
    (partial / "sub").rename(mine / "sub")
    (partial / "sub").symlink_to(mine / "sub")
    (partial / "tokenizer.json").symlink_to(mine / "tokenizer.json")
    again = Staging(out, fsync=False, direct=False)
    _, kept = again.open("plan", resume=True, replace=False)
    assert kept == []
    again.put("tokenizer.json", b"{}")
    again.publish(replace=False)
    assert contents(out) == {"tokenizer.json": "{}"}
    assert contents(mine) == {"weights": "new", "sub/more": "new"}


@pytest.mark.parametrize("kind", ["pipe", "folder"])
def test_a_journal_that_is_no_file_is_refused_by_name(out: Path, kind: str) -> None:
    path = make_journal_path(out)
    os.mkfifo(path) if kind == "pipe" else path.mkdir()
    with pytest.raises((OutputError, IsADirectoryError), match=path.name):
        opened(out)


def test_a_file_where_the_folder_goes_is_refused_by_name(out: Path) -> None:
    make_partial_path(out).write_text("mine")
    with pytest.raises(OutputError, match="is not a folder"):
        opened(out)
    assert make_partial_path(out).read_text() == "mine"


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK])
def test_a_file_system_without_locks_is_one_to_write_to(out: Path, monkeypatch, number) -> None:
    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    opened(out).discard()


def test_a_lock_that_fails_otherwise_is_an_error(out: Path, monkeypatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(OSError, match="Input/output error"):
        opened(out)


def test_a_journal_of_somebody_else_is_named_with_what_to_do(tmp_path: Path, monkeypatch) -> None:
    """Whoever may do everything, as tests often may, is told by the system that he may not."""
    path = tmp_path / "journal"
    path.touch()

    def refuse(*_: object) -> int:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(OutputError, match="is there, and may not be written") as error:
        Journal(path, lambda _: None).open(tmp_path / "out")
    assert "another user" in error.value.hint
    path.unlink()
    with pytest.raises(PermissionError):  # the folder's fault, which the system says
        Journal(path, lambda _: None).open(tmp_path / "out")
