"""Putting an output in its place: in one step where the system can, and never half."""

import errno
import fcntl
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from ckpt_tool.common.errors import OutputError
from ckpt_tool.writers import replacing
from ckpt_tool.writers import staging as staging_module
from ckpt_tool.writers.journal import Journal, read_finished
from ckpt_tool.writers.leaving import explain
from ckpt_tool.writers.outfile import OutputFile
from ckpt_tool.writers.renames import exchange, move_all
from ckpt_tool.writers.staging import Staging
from ckpt_tool.writers.stream import WrittenFile, digest_file
from ckpt_tool.writers.target import check_space, check_target, make_journal_path, make_partial_path


def opened(
    out: Path, *, resume: bool = False, replace: bool = False, fsync: bool = False
) -> Staging:
    staging = Staging(out, fsync=fsync, direct=False)
    _, kept = staging.open("plan", resume=resume, replace=replace)
    staging.join(staging.path, kept)
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


def replaced(out: Path, *, fsync: bool = False) -> list[str]:
    staging = opened(out, replace=True, fsync=fsync)
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
        if target.name == ".ckpt-probe":
            return plain(self, target)
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
    monkeypatch.setattr(replacing, "exchange", cannot_exchange)
    assert replaced(out) == []
    assert contents(out) == NEW
    assert [path.name for path in out.parent.iterdir()] == ["out"]


@pytest.mark.parametrize("interrupt", [KeyboardInterrupt, OSError(errno.EBUSY, "busy")], ids=str)
def test_between_the_two_the_old_output_comes_back(out: Path, monkeypatch, interrupt) -> None:
    monkeypatch.setattr(replacing, "exchange", cannot_exchange)
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
    assert len(replaced(out)) == 2  # that it is still there, and another; neither is in the way
    monkeypatch.undo()
    (said,) = Staging(out, fsync=False, direct=False).tidy()  # the one that nobody knows any more
    assert str(left) in said
    assert list(out.parent.glob(".out.ckpt-old-*")) == [left]


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
    assert "1 finished file is kept" in explain(error.value, staging).hint
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


@pytest.mark.parametrize("below", ["", "model"])
def test_an_output_behind_links_in_a_circle_is_refused_by_its_name(
    tmp_path: Path, below: str
) -> None:
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(OutputError, match=r"loop.* is a link that leads back to itself"):
        check_target(tmp_path / "loop" / below, replace=False, protected=[tmp_path / "rank.pt"])
    check_target(tmp_path / "new" / below, replace=False, protected=[tmp_path / "loop"])


def test_a_lock_on_a_journal_that_is_gone_is_none(tmp_path: Path, monkeypatch) -> None:
    """The run that holds it ends after another has opened the file, and before that has the lock.

    A third one would make a new file, and have a lock on that.
    """
    out = tmp_path / "out"
    first, plain = opened(out), fcntl.flock

    def end_first(file: int, how: int) -> None:
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
    make_partial_path(out).mkdir()

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


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EOPNOTSUPP], ids=errno.errorcode.get)
def test_a_file_system_without_sync_of_folders_is_one_to_write_to(
    out: Path, monkeypatch, number: int
) -> None:
    fail_sync(monkeypatch, lambda path: path.is_dir(), number)
    assert replaced(out, fsync=True) == []
    assert contents(out.parent) == {f"out/{name}": text for name, text in NEW.items()}


def fail_sync(monkeypatch, which: Callable[[Path], bool], number: int) -> None:
    plain = os.fsync

    def fail(descriptor: int) -> None:
        if which(Path(f"/proc/self/fd/{descriptor}").readlink()):
            raise OSError(number, os.strerror(number))
        plain(descriptor)

    monkeypatch.setattr(os, "fsync", fail)


def test_an_error_when_all_is_in_place_says_that_it_is(out: Path, monkeypatch) -> None:
    staging = opened(out, replace=True, fsync=True)
    add(staging, "weights", b"new")
    staging.put("config.json", b"{}")
    with monkeypatch.context() as patch:
        fail_sync(patch, lambda path: path == out.parent, errno.EIO)
        with pytest.raises(OutputError) as error:
            staging.publish(replace=True)
    said = explain(error.value, staging)
    assert "is complete and in its place" in str(said)
    assert "(Input/output error)" in str(said)
    assert "kept" not in f"{said}{said.hint}"
    assert contents(out) == NEW
    assert Staging(out, fsync=False, direct=False).tidy() == []  # by the next run
    assert [path.name for path in out.parent.iterdir()] == ["out"]


@pytest.mark.parametrize("interrupt", [KeyboardInterrupt(), OSError(errno.EIO, "broken")], ids=str)
def test_so_does_an_interruption_behind_the_rename(out: Path, monkeypatch, interrupt) -> None:
    def stop(*_: object) -> None:
        raise interrupt

    staging = opened(out, replace=True)
    add(staging, "weights", b"new")
    staging.put("config.json", b"{}")
    with monkeypatch.context() as patch:
        patch.setattr(staging_module, "remove_old", stop)
        with pytest.raises(type(interrupt)) as error:
            staging.publish(replace=True)
    said = explain(error.value, staging)
    assert f"{out} is complete and in its place" in str(said)
    assert "write.resume" not in str(said)
    assert replaced(out) == []
    assert [path.name for path in out.parent.iterdir()] == ["out"]


@pytest.mark.parametrize("mask", [0o022, 0o002, 0o027, 0o077])
def test_every_file_has_the_mode_that_umask_leaves(tmp_path: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        staging = opened(tmp_path / "out")
        for direct in (False, True):
            name = f"weights{direct:d}"
            file = OutputFile(staging.path / name, 3, direct=direct)
            os.close(file.descriptor)
            staging.record(WrittenFile(name, 3, ""))
        staging.put("sub/code.py", b"")
        staging.put("config.json", b"{}")
        staging.publish(replace=False)
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "out").rglob("*")}
    folders = {"sub": 0o777 & ~mask}
    assert modes == dict.fromkeys(("weights0", "weights1", "code.py", "config.json"),
                                  0o666 & ~mask) | folders  # fmt: skip
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o777 & ~mask


def test_only_what_is_finished_stays_where_a_run_goes_on(tmp_path: Path) -> None:
    """A small file of the earlier run, which this one does not write, is no part of the output."""
    out = tmp_path / "out"
    first = opened(out)
    add(first, "weights", b"new")
    add(first, "lost", b"new")
    first.put("tokenizer.json", b"{}")
    first.put("sub/code.py", b"")
    (first.path / "lost").unlink()
    first.abandon()
    again = opened(out, resume=True)
    assert list(again.finished) == ["weights"]
    again.put("config.json", b"{}")
    again.publish(replace=False)
    assert contents(out) == NEW
    assert [path.name for path in out.iterdir() if path.is_dir()] == []


def test_what_is_finished_counts_whole_on_a_disk_that_compresses(tmp_path, monkeypatch) -> None:
    out = tmp_path / "out"
    first = opened(out)
    add(first, "weights", bytes(3 << 20))
    os.truncate(first.path / "weights", 0)
    os.truncate(first.path / "weights", 3 << 20)  # now it takes no room
    first.abandon()
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1 << 20))
    check_space(out, 4 << 20, read_finished(make_journal_path(out)))
    with pytest.raises(OutputError, match="are free"):
        check_space(out, 4 << 20)


def test_somebody_may_remove_what_is_counted(tmp_path: Path, monkeypatch) -> None:
    out = tmp_path / "out"
    add(opened(out), "weights", b"new")
    plain = os.walk

    def walk(folder: Path):
        for found in plain(folder):
            shutil.rmtree(folder)
            yield found

    monkeypatch.setattr(os, "walk", walk)
    check_space(out, 1)


def test_a_process_without_the_lock_removes_nothing(tmp_path: Path) -> None:
    """Another rank of a run that failed, when the next run is at work already."""
    out = tmp_path / "out"
    first = opened(out)
    add(first, "weights", b"new")
    other = Staging(out, fsync=False, direct=False)
    other.join(first.path, [])
    other.discard()
    assert other.abandon() == ""
    assert contents(first.path) == {"weights": "new"}


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
    rounds, workers = 150, 8
    command = [sys.executable, "-c", RACE, str(tmp_path), str(rounds), str(workers)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.stderr == ""
    won, codes = done.stdout.split(" ", 1)
    assert codes.strip() == str([0] * workers)
    assert rounds <= int(won) <= rounds * workers
    for out in (tmp_path / str(number) for number in range(rounds // 3)):
        assert len(set(contents(out).values())) == 1


def test_nothing_stays_where_nothing_is_finished_whatever_umask_and_memory(
    tmp_path: Path, monkeypatch
) -> None:
    """A folder that may not be listed, and memory that ends once more while one leaves."""

    def refuse(*_: object, **__: object) -> None:
        return None

    staging = opened(tmp_path / "out")
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", refuse)  # as for whoever may not list it
        staging.abandon()
    assert list(tmp_path.iterdir()) == []

    def end(*_: object, **__: object) -> None:
        raise MemoryError

    staging = opened(tmp_path / "out")
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", end)
        with pytest.raises(MemoryError):
            staging.abandon()
    assert [path.name for path in tmp_path.iterdir()] == [".out.ckpt-partial"]  # goes the next time
    opened(tmp_path / "out").abandon()
    assert list(tmp_path.iterdir()) == []


def test_a_journal_that_says_nothing_does_not_stay(tmp_path: Path, monkeypatch) -> None:
    def end(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(Journal, "read", end)
    with pytest.raises(MemoryError):
        opened(tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_what_is_kept_is_said_however_libraries_say_that_memory_ended(tmp_path: Path) -> None:
    limit = resource.getrlimit(resource.RLIMIT_AS)
    staging = opened(tmp_path / "out")
    add(staging, "weights", b"new")
    resource.setrlimit(resource.RLIMIT_AS, (1 << 46, limit[1]))
    try:
        error = explain(ImportError("failed to map segment"), staging)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limit)
    assert isinstance(error, OutputError)
    assert "more memory than there is, or more than the 70,368,744,177,664 bytes" in str(error)
    assert "1 finished file is kept" in error.hint
