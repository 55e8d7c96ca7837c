"""A run that is killed while it replaces an output, and what the next one makes of it."""

import errno
import os
from pathlib import Path

import pytest

from ckpt_tool.common.errors import OutputError
from ckpt_tool.writers import replacing
from ckpt_tool.writers.staging import Staging
from ckpt_tool.writers.target import make_journal_path, make_partial_path
from tests.writers.test_staging import NEW, add, cannot_exchange, contents, opened, replaced

KILLED = 9
OLD = {"config.json": "before", "old": "before"}


@pytest.fixture
def out(tmp_path: Path) -> Path:
    folder = tmp_path / "out"
    folder.mkdir()
    for name, text in OLD.items():
        (folder / name).write_text(text)
    return folder


def in_child(work) -> int:
    """The exit code of a forked process that does ``work``."""
    child = os.fork()
    if not child:
        try:
            work()
        finally:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def kill_at(out: Path, step: int, *, after: bool) -> bool:
    """Replace ``out`` in a process that ends at its rename number ``step``, if it comes to it."""

    def work() -> None:
        count, plain, swap = [0], Path.rename, replacing.exchange

        def counted(call, *arguments):
            if arguments[-1].name == ".ckpt-probe":
                return call(*arguments)
            count[0] += 1
            if count[0] == step and not after:
                os._exit(KILLED)
            found = call(*arguments)
            if count[0] == step:
                os._exit(KILLED)
            return found

        Path.rename = lambda *arguments: counted(plain, *arguments)
        replacing.exchange = lambda *arguments: counted(swap, *arguments)
        plain_remove = replacing.remove_old

        def removed(*arguments):
            return counted(plain_remove, *arguments)

        from ckpt_tool.writers import staging

        staging.remove_old = removed
        replaced(out)
        os._exit(0)

    return in_child(work) == KILLED


def visible(out: Path) -> dict[str, str] | None:
    return contents(out) if out.exists() else None


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("step", [1, 2, 3])
@pytest.mark.parametrize("can_exchange", [True, False], ids=["exchanged", "renamed"])
def test_the_next_run_finds_what_was_there_or_what_is_new(
    out: Path, monkeypatch: pytest.MonkeyPatch, can_exchange: bool, step: int, after: bool
) -> None:
    if not can_exchange:
        monkeypatch.setattr(replacing, "exchange", cannot_exchange)
    assert kill_at(out, step, after=after)
    assert visible(out) in (OLD, NEW) or (not can_exchange and visible(out) is None)
    was_new = visible(out) == NEW
    said = Staging(out, fsync=False, direct=False).tidy()
    assert visible(out) == (NEW if was_new else OLD)
    assert not list(out.parent.glob(".out.ckpt-old-*"))
    assert make_partial_path(out).exists() != was_new
    assert make_journal_path(out).exists() != was_new
    assert said in ([], [f"{out}: an earlier run was killed while it replaced it: it is what it"
                         " was again"])  # fmt: skip
    staging = Staging(out, fsync=False, direct=False)
    _, kept = staging.open("plan", resume=True, replace=True)
    assert [written.name for written in kept] == ([] if was_new else ["weights"])
    staging.discard()
    assert [path.name for path in out.parent.iterdir()] == ["out"]


@pytest.mark.parametrize("can_exchange", [True, False], ids=["exchanged", "renamed"])
def test_a_run_that_does_not_go_on_finds_the_same(out: Path, monkeypatch, can_exchange) -> None:
    if not can_exchange:
        monkeypatch.setattr(replacing, "exchange", cannot_exchange)
    assert kill_at(out, 1, after=True)
    with pytest.raises(OutputError, match="exists and is not empty"):
        opened(out)
    assert visible(out) == (NEW if can_exchange else OLD)
    assert replaced(out) == []
    assert contents(out.parent) == {f"out/{name}": text for name, text in NEW.items()}


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("step", range(1, 6))
def test_in_a_mount_point_what_was_begun_is_taken_back(
    out: Path, monkeypatch: pytest.MonkeyPatch, step: int, after: bool
) -> None:
    monkeypatch.setattr(os.path, "ismount", lambda path: Path(path) == out)
    assert kill_at(out, step, after=after)
    is_done = step == 5 or (step == 4 and after)
    staging = Staging(out, fsync=False, direct=False)
    staging.tidy()
    found = {name: text for name, text in contents(out).items() if not name.startswith(".ckpt")}
    assert found == (NEW if is_done else OLD)
    assert not list(out.glob(".ckpt-old-*"))
    _, kept = Staging(out, fsync=False, direct=False).open("plan", resume=True, replace=True)
    assert [written.name for written in kept] == ([] if is_done else ["weights"])


def test_what_cannot_be_renamed_is_said_before_anything_is_written(out: Path, monkeypatch) -> None:
    """As of a lower layer of an overlay file system, and of another user in a shared folder."""
    plain = Path.rename

    def refuse(self: Path, target: Path) -> Path:
        if self == refused:
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
        return plain(self, target)

    monkeypatch.setattr(Path, "rename", refuse)
    (out / "sub").mkdir()
    for refused, is_mount in ((out, False), (out / "sub", True)):
        monkeypatch.setattr(os.path, "ismount", lambda path, m=is_mount: m and Path(path) == out)
        with pytest.raises(OutputError, match="cannot be renamed") as error:
            opened(out, replace=True)
        assert error.value.message.startswith(f"{refused}: ")
        assert contents(out.parent) == {f"out/{name}": text for name, text in OLD.items()}
        assert [path.name for path in out.parent.iterdir()] == ["out"]


def test_what_an_earlier_run_finished_stays_where_that_is_said(out: Path, monkeypatch) -> None:
    first = opened(out, replace=True)
    add(first, "weights", b"new")
    first.abandon()

    def refuse(*_: object) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", refuse)
        with pytest.raises(OutputError, match="cannot be renamed"):
            opened(out, resume=True, replace=True)
    again = Staging(out, fsync=False, direct=False)
    _, kept = again.open("plan", resume=True, replace=True)
    assert [written.name for written in kept] == ["weights"]


def test_a_journal_of_somebody_else_moves_nothing(out: Path) -> None:
    (out.parent / "precious").mkdir()
    make_journal_path(out).write_text(
        '{"plan": "plan"}\n{"old": "precious", "inode": 1, "entries": []}\n'
    )
    Staging(out, fsync=False, direct=False).tidy()
    opened(out, replace=True).discard()
    assert {path.name for path in out.parent.iterdir()} == {"out", "precious"}


def test_what_was_put_aside_and_is_not_known_of_is_named(out: Path) -> None:
    left = out.parent / ".out.ckpt-old-abc"
    left.mkdir()
    (said,) = Staging(out, fsync=False, direct=False).tidy()
    assert said.startswith(f"{left}: what was in {out} before")
    assert left.exists()
