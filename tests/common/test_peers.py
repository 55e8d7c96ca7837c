"""Processes of several nodes, as Slurm starts them: one job, and what comes of one that dies.

Nothing stops the others here but they themselves: no torchrun, no srun that kills them.
"""

import os
import re
from pathlib import Path

import pytest

from ckpt_tool import MergeOptions, WriteOptions, merge_fsdp
from ckpt_tool.common.errors import LostError
from tests.common.test_parallel import assert_same_folders
from tests.support.merging import TINY, values, write_rank
from tests.support.slurm import sbatch

pytestmark = [pytest.mark.slow, pytest.mark.real]

FILES = 60
SMALL = "5KB"
#: Looks after the others ten times a second, and takes half a second for each of its files.
SLOW = """
import os, runpy, signal, time
from ckpt_tool.common import peers
from ckpt_tool.writers import files
peers.PERIOD = 0.1
plain, count, rank = files._finish, [0], int(os.environ["RANK"])
def finish(*arguments):
    plain(*arguments)
    count[0] += 1
    if rank == {rank} and count[0] == 2:
        {end}
    time.sleep(0.5)
files._finish = finish
runpy.run_module("ckpt_tool", run_name="__main__")
"""
DIES = "os.kill(os.getpid(), signal.SIGKILL)"
FAILS = "raise OSError(28, 'No space left on device')"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    state = {f"layers.{n}.weight": values(32, 32, start=n << 10) for n in range(FILES)}
    return write_rank(tmp_path_factory.mktemp("run") / "global_step_7", state, TINY)


@pytest.fixture(scope="module")
def expected(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("expected")
    done = sbatch(folder, 1, *words(source, folder / "out"))
    assert done.returncode == 0, done.stderr
    return folder / "out"


def words(source: Path, out: Path) -> list[str]:
    return ["fsdp", str(source), str(out), "--no-check-load", "--max-shard-size", SMALL]


def test_the_batch_script_of_the_readme_gives_the_bytes_of_one_process(
    source: Path, expected: Path, tmp_path: Path
) -> None:
    done = sbatch(tmp_path / "job", 3, *words(source, tmp_path / "out"), "--verify")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(f"Wrote {FILES} tensors") == 1
    assert "ckpt: " not in done.stderr
    assert_same_folders(tmp_path / "out", expected)


def run_slow(tmp_path: Path, source: Path, rank: int, end: str) -> tuple[int, str]:
    (tmp_path / "slow.py").write_text(SLOW.format(rank=rank, end=end))
    program = str(tmp_path / "slow.py")
    done = sbatch(tmp_path / "job", 3, *words(source, tmp_path / "out"), program=program)
    assert not (tmp_path / "out").exists()
    assert done.stdout == ""
    return done.returncode, done.stderr


def count_kept(tmp_path: Path) -> int:
    (partial,) = tmp_path.glob(".out*-partial")
    return len(list(partial.glob("*.safetensors")))


@pytest.mark.parametrize("rank", [0, 1, 2])
def test_where_one_dies_the_others_stop_and_name_it(
    source: Path, expected: Path, tmp_path: Path, rank: int
) -> None:
    code, said = run_slow(tmp_path, source, rank, DIES)
    assert code
    named = f"rank {rank} (on {os.uname().nodename})" if rank else r"rank 0, or what started it"
    errors = [line for line in said.splitlines() if line.startswith("ckpt: error: ")]
    assert len(errors) == 1, said
    assert errors[0].startswith(f"ckpt: error: {named}")
    assert "is gone: it was killed, or its machine or network is down" in errors[0]
    assert "Traceback" not in said
    assert count_kept(tmp_path) < FILES * 2 / 3  # they did not go on to the end of their shares
    write = WriteOptions(resume=True, check_load=False)
    merge_fsdp(source, tmp_path / "out", MergeOptions(max_shard_size=SMALL, write=write))
    assert_same_folders(tmp_path / "out", expected)


def test_where_one_fails_the_others_stop_and_say_why(source: Path, tmp_path: Path) -> None:
    code, said = run_slow(tmp_path, source, 1, FAILS)
    assert code == 2
    errors = [line for line in said.splitlines() if line.startswith("ckpt: error: ")]
    assert errors == ["ckpt: error: rank 1: [Errno 28] No space left on device"]
    assert re.search(r"\d+ finished files are kept in .*: --resume continues", said)
    assert count_kept(tmp_path) < FILES * 2 / 3


@pytest.mark.parametrize(
    ("lost", "rank", "is_said"),
    [
        ("rank 2 (on b)", 0, True),
        ("rank 2 (on b)", 1, False),
        ("rank 0 (on a)", 1, True),
        ("rank 0 (on a)", 2, False),
        ("rank 10 (on c)", 0, True),
        ("", 0, True),
        ("", 3, False),
    ],
)
def test_one_process_says_who_is_gone(lost: str, rank: int, is_said: bool) -> None:
    error = LostError(lost, rank)
    assert error.is_said is is_said
    assert str(error).startswith(f"{lost or 'another process of this run'} is gone")
