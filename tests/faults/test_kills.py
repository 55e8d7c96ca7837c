"""Real runs of `ckpt` that are killed, disks that fill up, and a rank that dies under torchrun."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.common.test_parallel import PROJECT
from tests.faults.cases import Files, read_all
from tests.support.merging import TINY, values, write_rank
from tests.support.torchrun import torchrun_command

pytestmark = pytest.mark.slow

FILES = 6
ENVIRONMENT = {
    **{name: value for name, value in os.environ.items() if not name.startswith("SLURM_")},
    "PYTHONPATH": str(PROJECT),
    "OMP_NUM_THREADS": "1",
}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six files of 4 MB each, and a tokenizer of 300 kB."""
    state = {f"layers.{n}.weight": values(1024, 1024, start=n << 20) for n in range(FILES)}
    folder = write_rank(tmp_path_factory.mktemp("source"), state, TINY)
    (folder / "huggingface" / "tokenizer.json").write_text(f'{{"x": "{"y" * 300_000}"}}')
    return folder


def words(source: Path, out: Path, *more: str) -> list[str]:
    merge = ["merge", "fsdp", str(source), str(out), "--no-check-load", "--max-shard-size", "4MB"]
    return [*merge, *more]


def ckpt(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "ckpt_tool", *arguments],
        env=ENVIRONMENT, capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip


@pytest.fixture(scope="module")
def expected(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Files:
    out = tmp_path_factory.mktemp("expected") / "out"
    assert ckpt(*words(source, out)).returncode == 0
    found = read_all(out)
    assert found
    assert len(found) == FILES + 5
    return found


def test_runs_that_are_killed_at_any_moment(source: Path, expected: Files, tmp_path: Path) -> None:
    """`CKPT_KILLS` of them, in turn over what is there, over another one, and going on."""
    rounds, chance = int(os.environ.get("CKPT_KILLS", "6")), random.Random(0)
    out, old = tmp_path / "out", {"config.json": b"before"}
    started = time.monotonic()
    assert ckpt(*words(source, out, "--overwrite")).returncode == 0
    seconds = time.monotonic() - started
    content = read_all(source)
    for turn in range(rounds):
        before = read_all(out)
        if turn % 3 == 1 and out.exists():
            for path in out.iterdir():
                path.unlink()
            (out / "config.json").write_bytes(old["config.json"])
            before = old
        more = ["--resume"] if turn % 3 == 2 else ["--overwrite"]
        line = [sys.executable, "-m", "ckpt_tool", *words(source, out, *more)]
        process = subprocess.Popen(line, env=ENVIRONMENT, stderr=subprocess.DEVNULL)
        time.sleep(chance.uniform(0, seconds))
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert read_all(out) in (before, expected)
        again = ckpt(*words(source, out, "--resume", "--overwrite"))
        assert again.returncode == 0, again.stderr
        assert read_all(out) == expected
        assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert read_all(source) == content


#: A disk of its own, in a space of mounts of its own: it is filled, and then given room again.
FULL = """
set -e
mount --make-rprivate /
case $1 in
    tmpfs) mount -t tmpfs -o size=26m tmpfs "$2";;
    ext4)
        truncate -s 40m "$2.img"
        mkfs.ext4 -q -m 0 "$2.img"
        mount -o loop "$2.img" "$2";;
esac
echo mounted
room=$(( $(stat -f -c %a "$2") * $(stat -f -c %S "$2") - $3 ))
head -c $room /dev/zero > "$2/ballast"
shift 3
set +e
"$@"; echo "code $?"; ls -A "$OUT" 2>&1
rm "${OUT%/*}/ballast"
"$@" --resume; echo "code $?"
cp -r "$OUT" "$COPY"; ls -A "${OUT%/*}"
"""


@pytest.mark.parametrize("kind", ["tmpfs", "ext4"])
def test_a_disk_that_fills_up_while_it_is_written_to(
    source: Path, expected: Files, tmp_path: Path, kind: str
) -> None:
    """There is room for the tensors, and not for all that goes along with them."""
    disk, copy = tmp_path / "disk", tmp_path / "copy"
    disk.mkdir()
    room = 25_250_000
    environment = ENVIRONMENT | {"OUT": str(disk / "out"), "COPY": str(copy)}
    line = [sys.executable, "-m", "ckpt_tool", *words(source, disk / "out", "--jobs", "1")]
    done = subprocess.run(
        ["unshare", "--mount", "bash", "-c", FULL, "bash", kind, str(disk), str(room), *line],
        env=environment, capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    if not done.stdout.startswith("mounted"):
        pytest.skip(f"nothing can be mounted here: {done.stderr}")
    assert "No space left on device" in done.stderr, done.stderr
    assert "6 finished files are kept" in done.stderr
    said = done.stdout.splitlines()
    assert said[1] == "code 2"
    assert "No such file" in said[2]
    assert [line for line in said if line.startswith("code")] == ["code 2", "code 0"], done.stderr
    assert read_all(copy) == expected
    assert {*said[said.index("code 0") + 1 :]} <= {"lost+found", "out"}


DIES = """
import os, runpy, signal
from ckpt_tool.writers import files
plain, count = files._finish, [0]
def finish(*arguments):
    plain(*arguments)
    count[0] += 1
    if os.environ["RANK"] == "{rank}" and count[0] == 2:
        os.kill(os.getpid(), signal.SIGKILL)
files._finish = finish
runpy.run_module("ckpt_tool", run_name="__main__")
"""


@pytest.mark.real
@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_dies_under_torchrun(
    source: Path, expected: Files, tmp_path: Path, rank: int
) -> None:
    program, out = tmp_path / "dies.py", tmp_path / "out"
    program.write_text(DIES.format(rank=rank))
    line = [*torchrun_command(2), str(program), *words(source, out)]
    done = subprocess.run(
        line, env=ENVIRONMENT, cwd=PROJECT, capture_output=True, text=True, check=False, timeout=180
    )
    assert done.returncode != 0
    assert not out.exists()
    again = ckpt(*words(source, out, "--resume"))
    assert again.returncode == 0, again.stderr
    assert read_all(out) == expected
    assert {path.name for path in tmp_path.iterdir()} == {"dies.py", "out"}
