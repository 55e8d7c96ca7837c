"""How far the work is: a line now and then where there is no terminal, bars where there is one."""

import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest
from rich.progress import Progress as Bars

from ckpt_tool.cli.progress import Bar, Lines
from tests.common.test_parallel import PROJECT
from tests.support.merging import TINY, values, write_rank
from tests.support.torchrun import ranks_command

#: The program, which speaks whenever it is told of something in place of every 30 seconds.
TALKS = """
import runpy, threading
from ckpt_tool.cli import progress
plain, lock = progress.Lines.advance, threading.Lock()
def advance(self, amount):
    with lock:
        plain(self, amount)
        self.speak()
progress.Lines.advance = advance
runpy.run_module("ckpt_tool", run_name="__main__")
"""
#: The same, with the clock that it has, which is a fast one.
HURRIES = """
import runpy
from ckpt_tool.cli import progress
progress.SECONDS = 0.002
runpy.run_module("ckpt_tool", run_name="__main__")
"""
ENVIRONMENT = {
    **{k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "RANK", "WORLD_SIZE"))},
    "PYTHONPATH": str(PROJECT),
    "OMP_NUM_THREADS": "1",
}


class Clock:
    """Shows what it is set to."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def lines(said: list[str], clock: Clock) -> Lines:
    return Lines(said.append, clock)


def test_bytes_have_a_share_a_rate_and_an_end(lines: Lines, said: list[str], clock: Clock) -> None:
    lines.start("writing", 80_000_000_000)
    lines.advance(20_000_000_000)
    clock.now += 40
    lines.speak()
    lines.advance(10_000_000_000)
    clock.now += 30
    lines.speak()
    assert said == [
        "writing: 20 GB of 80 GB (25%), 500 MB/s, 2 min 00 s left",
        "writing: 30 GB of 80 GB (38%), 333 MB/s, 2 min 30 s left",
    ]


def test_where_nothing_moves_there_is_no_end(lines: Lines, said: list[str], clock: Clock) -> None:
    lines.start("verifying", 80)
    clock.now += 30
    lines.speak()
    clock.now += 8000
    lines.speak()
    assert said == [
        "verifying: 0 B of 80 B (0%), 0 B/s, for 30 s so far",
        "verifying: 0 B of 80 B (0%), 0 B/s, for 2 h 14 min so far",
    ]


def test_files_are_counted(lines: Lines, said: list[str], clock: Clock) -> None:
    lines.start("reading metadata", 64, "files")
    for _ in range(48):
        lines.advance(1)
    clock.now += 30
    lines.speak()
    lines.start("reading metadata", None, "files")
    lines.advance(1200)
    clock.now += 30
    lines.speak()
    lines.start("planning", None)
    lines.speak()
    assert said == [
        "reading metadata: 48 of 64 files (75%), 10 s left",
        "reading metadata: 1,200 files, for 30 s so far",
        "planning, for 0 s so far",
    ]


def test_what_the_work_is_comes_first_or_when_it_is_known(
    said: list[str], lines: Lines, clock: Clock
) -> None:
    lines.start("writing", 4)
    lines.announce("FSDP checkpoint")
    assert said == []
    lines.speak()
    lines.speak()
    assert [line.split(":")[0] for line in said] == ["FSDP checkpoint", "writing", "writing"]
    lines.announce("at last")
    assert said[3:] == ["at last"]


def test_there_is_nothing_to_say_before_there_is(lines: Lines, said: list[str]) -> None:
    lines.advance(3)
    lines.speak()
    assert said == []


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two ranks that hold the same; each file of the model has 16 kB."""
    folder = tmp_path_factory.mktemp("run") / "global_step_7"
    state = {f"layers.{n}.weight": values(64, 64, start=n << 12) for n in range(4)}
    for rank in range(2):
        write_rank(folder, state, TINY, rank, 2)
    return folder


def words(source: Path, out: Path, *more: str) -> list[str]:
    merge = ["merge", "fsdp", str(source), str(out), "--no-check-load", "--max-shard-size", "20KB"]
    return [*more, *merge]


def run(
    program: str, *arguments: str, launcher: tuple[str, ...] = (sys.executable,)
) -> subprocess.CompletedProcess[str]:
    command = [*launcher, program, *arguments]
    done = subprocess.run(
        command, env=ENVIRONMENT, capture_output=True, text=True, check=False, timeout=180
    )
    assert done.returncode == 0, done.stderr
    return done


@pytest.fixture
def talks(tmp_path: Path) -> str:
    (tmp_path / "talks.py").write_text(TALKS)
    return str(tmp_path / "talks.py")


def test_a_log_shows_what_a_merge_is_and_how_far(source: Path, talks: str, tmp_path: Path) -> None:
    done = run(talks, *words(source, tmp_path / "out", "--verbose"))
    found = done.stderr.splitlines()
    size = "66 kB in 4 files"
    first = f"ckpt: FSDP checkpoint of step 7 in {source}: {size}, to {tmp_path / 'out'}"
    assert found[0].startswith("ckpt: reading metadata: 1 of 2 files (50%)")
    assert found[1].startswith("ckpt: reading metadata: 2 of 2 files (100%)")
    replicas = [line for line in found if line.startswith("ckpt: replicas: ")]
    assert "of 65.5 kB" in replicas[-1]
    assert "(100%)" in replicas[-1]
    writing = found[found.index(first) + 1 :]
    assert len(writing) == 4
    shares = [re.match(r"ckpt: writing: .* of 66 kB \((\d+)%\), .*B/s, \d+ s left", line)
              for line in writing]  # fmt: skip
    assert [int(share[1]) for share in shares if share] == [25, 50, 75, 100]
    assert "Wrote 4 tensors" in done.stdout


@pytest.mark.parametrize("how", ["--quiet", "--json"])
def test_it_can_be_silenced(source: Path, talks: str, tmp_path: Path, how: str) -> None:
    arguments = words(source, tmp_path / "out")
    arguments = [how, *arguments] if how == "--quiet" else [*arguments, how]
    assert run(talks, *arguments).stderr == ""


def test_what_takes_no_time_says_nothing(source: Path, tmp_path: Path) -> None:
    command = ("-m", "ckpt_tool", *words(source, tmp_path / "out"))
    assert run(*command).stderr == ""


def test_other_commands_say_how_far_they_are(source: Path, talks: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(talks, *words(source, out))
    said = {
        "inspect": run(talks, "inspect", str(source)).stderr,
        "dry run": run(talks, *words(source, tmp_path / "no"), "--dry-run").stderr,
        "verify": run(talks, "verify", str(source), str(out)).stderr,
        "verify OUT": run(talks, "verify", str(out)).stderr,
    }
    for command in ("inspect", "dry run", "verify"):
        assert "ckpt: reading metadata: 2 of 2 files (100%)" in said[command], command
    assert f"ckpt: FSDP checkpoint of step 7 in {source} and Hugging Face model" in said["verify"]
    assert re.search(r"ckpt: comparing: .* of 65\.5 kB \(100%\)", said["verify"])
    assert re.search(r"ckpt: checking: .*\(100%\)", said["verify OUT"])


def test_a_clock_of_its_own_makes_it_speak(source: Path, tmp_path: Path) -> None:
    program = tmp_path / "hurries.py"
    program.write_text(HURRIES)
    found = run(str(program), *words(source, tmp_path / "out")).stderr.splitlines()
    assert len(found) > 1
    assert all(line.startswith("ckpt: ") for line in found)
    assert sum("FSDP checkpoint of step 7" in line for line in found) <= 1


@pytest.mark.slow
def test_of_several_processes_one_speaks(source: Path, talks: str, tmp_path: Path) -> None:
    launcher = tuple(ranks_command(2))
    found = run(talks, *words(source, tmp_path / "out"), launcher=launcher).stderr.splitlines()
    first = [line for line in found if "FSDP checkpoint of step 7" in line]
    assert len(first) == 1
    assert first[0].endswith("; of 2 processes this is the first")
    assert sum("1 of 1 files" in line for line in found) == 1  # its share
    assert sum("2 of 2 files" in line for line in found) == 1  # what all have told
    assert sum("ckpt: writing: " in line and "of 33 kB" in line for line in found) == 2


@pytest.mark.parametrize("width", [80, 120])
def test_a_terminal_has_bars(source: Path, tmp_path: Path, width: int) -> None:
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "ckpt_tool", *words(source, tmp_path / "out")]
    environment = {**ENVIRONMENT, "TERM": "xterm", "COLUMNS": str(width)}
    with subprocess.Popen(
        command, env=environment, stderr=theirs, stdout=subprocess.DEVNULL
    ) as running:
        os.close(theirs)
        shown = b""
        while True:
            try:
                part = os.read(ours, 4096)
            except OSError:  # how Linux says that the other end is closed
                break
            if not part:
                break
            shown += part
    os.close(ours)
    assert running.returncode == 0
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.decode())
    last = text.splitlines()[-4:]
    assert any("reading metadata" in line and "2 of 2 files (100%)" in line for line in last)
    assert any("writing" in line and "66.0/66.0 kB" in line for line in last)
    assert not any("planning" in line for line in last)
    assert max(map(len, last)) <= width


def test_nothing_to_do_has_no_bar() -> None:
    bars = Bars()
    bar = Bar(bars)
    for total in (0, 5):
        bar.start("directions", total)
    assert [task.visible for task in bars.tasks] == [False, True]
