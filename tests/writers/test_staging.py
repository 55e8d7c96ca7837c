"""Putting an output in its place: in one step where the system can, and never half."""

import errno
import fcntl
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TextIO

import pytest

from ckpt_tool.common.errors import OutputError
from ckpt_tool.writers import staging as staging_module
from ckpt_tool.writers.renames import exchange, move_all
from ckpt_tool.writers.staging import Staging, explain
from ckpt_tool.writers.stream import WrittenFile, digest_file
from ckpt_tool.writers.target import check_space, check_target, make_journal_path, make_partial_path


def opened(out: Path, *, resume: bool = False, replace: bool = False) -> Staging:
    staging = Staging(out, fsync=False, direct=False)
    staging.open("plan", resume=resume, replace=replace)
    return staging


def add(staging: Staging, name: str, content: bytes) -> None:
    """A file as writing leaves it: complete, and noted."""
    path = staging.path / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    staging.record(WrittenFile(name, len(content), digest_file(path)))


def contents(folder: Path) -> dict[str, str]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_text() for path in files}


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """An output that is there."""
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "old").write_text("before")
    return folder


def replaced(out: Path) -> list[str]:
    staging = opened(out, replace=True)
    add(staging, "weights", b"new")
    staging.put("config.json", b"{}")
    return staging.publish(replace=True)


NEW = {"weights": "new", "config.json": "{}"}


def test_two_folders_are_exchanged(tmp_path: Path) -> None:
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    if not exchange(tmp_path / "one", tmp_path / "other"):
        pytest.skip("this system cannot")
    assert contents(tmp_path) == {"one/other": "", "other/one": ""}
    assert not exchange(tmp_path / "one", tmp_path / "absent")


def test_the_output_is_never_absent_while_it_is_replaced(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not exchange(out, out):
        pytest.skip("this system cannot exchange folders")
    plain, seen = Path.rename, []

    def watch(self: Path, target: Path) -> Path:
        seen.append(contents(out))
        moved = plain(self, target)
        seen.append(contents(out))
        return moved

    monkeypatch.setattr(Path, "rename", watch)
    assert replaced(out) == []
    assert seen == [NEW, NEW]
    assert contents(out.parent) == {f"out/{name}": text for name, text in NEW.items()}


def cannot_exchange(*_: object) -> bool:
    return False


def test_where_folders_cannot_be_exchanged_two_renames_do(out: Path, monkeypatch) -> None:
    monkeypatch.setattr(staging_module, "exchange", cannot_exchange)
    assert replaced(out) == []
    assert contents(out) == NEW
    assert [path.name for path in out.parent.iterdir()] == ["out"]


@pytest.mark.parametrize("interrupt", [KeyboardInterrupt, OSError(errno.EBUSY, "busy")], ids=str)
def test_between_the_two_the_old_output_comes_back(out: Path, monkeypatch, interrupt) -> None:
    monkeypatch.setattr(staging_module, "exchange", cannot_exchange)
    plain = Path.rename

    def stop(self: Path, target: Path) -> Path:
        if target == out and self == make_partial_path(out):
            raise interrupt
        return plain(self, target)

    monkeypatch.setattr(Path, "rename", stop)
    with pytest.raises((KeyboardInterrupt, OutputError)):
        replaced(out)
    assert contents(out) == {"old": "before"}
    assert contents(make_partial_path(out)) == NEW
    assert make_journal_path(out).exists()


def test_where_it_cannot_come_back_the_error_says_where_it_is(tmp_path: Path, monkeypatch) -> None:
    plain = Path.rename

    def stop(self: Path, target: Path) -> Path:
        if self.name != "a":
            raise OSError(errno.EBUSY, "busy")
        return plain(self, target)

    (tmp_path / "a").touch()
    monkeypatch.setattr(Path, "rename", stop)
    moves = [(tmp_path / "a", tmp_path / "b"), (tmp_path / "c", tmp_path / "a")]
    with pytest.raises(OutputError, match=f"{tmp_path}/a is now {tmp_path}/b"):
        move_all(moves)


def test_an_old_output_that_cannot_be_removed_is_a_warning(out: Path, monkeypatch) -> None:
    plain = shutil.rmtree

    def refuse(path: Path, ignore_errors: bool = False) -> None:
        if "ckpt-old" in str(path):
            raise PermissionError(errno.EPERM, "Operation not permitted", str(path))
        plain(path, ignore_errors=ignore_errors)

    monkeypatch.setattr(shutil, "rmtree", refuse)
    (warning,) = replaced(out)
    assert contents(out) == NEW
    (left,) = out.parent.glob(".out.ckpt-old-*")
    assert contents(left) == {"old": "before"}
    assert str(left) in warning
    assert "could not be removed (Operation not permitted)" in warning
    assert len(replaced(out)) == 1  # and it is in nobody's way


def test_a_rename_that_fails_keeps_what_was_written(tmp_path: Path, monkeypatch) -> None:
    """The message promises `--resume`: the journal is still there."""
    out = tmp_path / "out"
    staging = opened(out)
    add(staging, "weights", b"new")

    def busy(self: Path, target: Path) -> Path:
        raise OSError(errno.EBUSY, "Device or resource busy")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", busy)
        with pytest.raises(OutputError, match="cannot be put in place") as error:
            staging.publish(replace=False)
    assert "1 finished files are kept" in explain(error.value, staging).hint
    again = Staging(out, fsync=False, direct=False)
    _, kept = again.open("plan", resume=True, replace=False)
    assert [written.name for written in kept] == ["weights"]
    again.join(again.path, kept)
    again.publish(replace=False)
    assert contents(tmp_path) == {"out/weights": "new"}


def test_what_appeared_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    out = tmp_path / "out"
    staging = opened(out)
    add(staging, "weights", b"new")
    out.mkdir()
    (out / "mine").touch()
    with pytest.raises(OutputError, match="cannot be put in place"):
        staging.publish(replace=False)
    assert contents(out) == {"mine": ""}


def test_what_an_unfinished_run_left_counts_as_room(tmp_path: Path, monkeypatch) -> None:
    out = tmp_path / "out"
    add(opened(out), "weights", bytes(3 << 20))
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1 << 20))
    check_space(out, 4 << 20)
    with pytest.raises(OutputError, match=r"1,048,576 are free .* 3,1\d\d,\d{3} are in") as error:
        check_space(out, 5 << 20)
    assert str(make_partial_path(out)) in error.value.message


def test_what_is_to_be_read_is_not_replaced(out: Path) -> None:
    for source in (out, out / "old"):
        with pytest.raises(OutputError, match="is or contains the checkpoint itself"):
            check_target(out, replace=True, protected=[source])


def test_a_lock_on_a_journal_that_is_gone_is_none(tmp_path: Path, monkeypatch) -> None:
    """The run that holds it ends after another has opened the file, and before that has the lock.

    A third one would make a new file, and have a lock on that.
    """
    out = tmp_path / "out"
    first, plain = opened(out), fcntl.flock

    def end_first(file: TextIO, how: int) -> None:
        monkeypatch.undo()
        first.discard()
        plain(file, how)

    monkeypatch.setattr(fcntl, "flock", end_first)
    second = opened(out)
    with pytest.raises(OutputError, match="another ckpt is writing it just now"):
        opened(out)
    second.discard()
    opened(out).discard()
    assert list(tmp_path.iterdir()) == []


def test_nobody_comes_between_clearing_and_writing(tmp_path: Path, monkeypatch) -> None:
    out, plain, refused = tmp_path / "out", shutil.rmtree, []

    def clear(path: Path, ignore_errors: bool = False) -> None:
        plain(path, ignore_errors=ignore_errors)
        monkeypatch.undo()
        with pytest.raises(OutputError, match="another ckpt is writing it just now"):
            opened(out)
        refused.append(path)

    monkeypatch.setattr(shutil, "rmtree", clear)
    staging = opened(out)
    assert refused == [make_partial_path(out)]
    staging.discard()


RACE = """
import multiprocessing, os, sys
from pathlib import Path
from ckpt_tool.common.errors import OutputError
from ckpt_tool.writers.staging import Staging
from ckpt_tool.writers.stream import WrittenFile, digest_file

folder, rounds, workers = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])

def work(number, barrier, won):
    try:
        race(number, barrier, won)
    except BaseException:
        barrier.abort()  # nobody waits for this one
        raise

def race(number, barrier, won):
    for turn in range(rounds):
        out = folder / str(turn // 3)  # the second and third find what the first has left
        staging = Staging(out, fsync=False, direct=False)
        barrier.wait()
        for _ in range(5):  # so that some come as others leave
            try:
                staging.open("plan", resume=False, replace=True)
            except OutputError:
                continue
            alone = folder / f"holder-{turn // 3}"
            os.close(os.open(alone, os.O_CREAT | os.O_EXCL))  # FileExistsError: two at a time
            for name in "abc":
                staging.put(name, str(number).encode())
            found = {(staging.path / name).read_text() for name in "abc"}
            assert found == {str(number)}, found
            alone.unlink()
            with won.get_lock():
                won.value += 1
            if turn % 3 == 0:
                staging.publish(replace=True)
            elif turn % 3 == 1:
                staging.discard()
            else:
                staging.record(WrittenFile("a", 1, digest_file(staging.path / "a")))
                staging.abandon()
            break

context = multiprocessing.get_context("fork")
barrier, won = context.Barrier(workers), context.Value("i", 0)
them = [context.Process(target=work, args=(n, barrier, won)) for n in range(workers)]
for one in them: one.start()
for one in them: one.join()
print(won.value, [one.exitcode for one in them])
"""


@pytest.mark.slow
def test_of_several_that_start_at_once_one_writes_at_a_time(tmp_path: Path) -> None:
    rounds, workers = 150, 4
    command = [sys.executable, "-c", RACE, str(tmp_path), str(rounds), str(workers)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.stderr == ""
    won, codes = done.stdout.split(" ", 1)
    assert codes.strip() == str([0] * workers)
    assert rounds <= int(won) <= rounds * workers
    for out in (tmp_path / str(number) for number in range(rounds // 3)):
        assert len(set(contents(out).values())) == 1
