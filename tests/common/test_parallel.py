"""Several processes that do one job: shares, failures, and the same bytes as one process."""

import filecmp
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckpt_tool.common import launchers, parallel
from ckpt_tool.common.errors import UsageError
from ckpt_tool.common.parallel import World
from tests.support import megatron
from tests.support.torchrun import ranks_command, torchrun_command

PROJECT = Path(__file__).resolve().parents[2]


def world(rank: int, size: int) -> World:
    found = World()
    found.rank, found.size = rank, size
    return found


@given(st.lists(st.integers(0, 1000), max_size=30), st.integers(1, 6))
def test_every_item_is_one_process_s(sizes, size):
    shares = [world(rank, size).share(sizes) for rank in range(size)]
    assert sorted(index for share in shares for index in share) == list(range(len(sizes)))
    loads = [sum(sizes[index] for index in share) for share in shares]
    assert max(loads) - min(loads) <= max(sizes, default=0)


def test_shares_by_hand():
    assert [world(rank, 2).share([5, 1, 4, 3]) for rank in (0, 1)] == [[0, 1], [2, 3]]


def test_alone_everyone_is_this_process():
    assert parallel.ALONE.everyone(lambda: 7) == [7]
    assert parallel.ALONE.first(lambda: "x") == "x"


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, False),
        ({"WORLD_SIZE": "8"}, False),
        ({"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "a", "MASTER_PORT": "1"}, False),
        ({"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "a", "MASTER_PORT": "1"}, True),
    ],
)
def test_only_all_variables_together_make_a_group(monkeypatch, variables, expected):
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert launchers.is_parallel() is expected


def test_jobs_have_an_upper_end() -> None:
    assert parallel.choose_jobs(launchers.MAX_JOBS) == launchers.MAX_JOBS
    for jobs in (-1, launchers.MAX_JOBS + 1, 20_000, 10**30):
        with pytest.raises(UsageError, match=f"`jobs={jobs}`: expected 1 to {launchers.MAX_JOBS}"):
            parallel.choose_jobs(jobs)


def run_together(*arguments: str, ranks: int = 2) -> subprocess.CompletedProcess[str]:
    launcher = ranks_command(ranks)
    command = [*launcher, "-m", "ckpt_tool", *arguments]
    environment = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE")}
    environment["OMP_NUM_THREADS"] = "1"
    return subprocess.run(
        command, cwd=PROJECT, env=environment, capture_output=True, text=True, check=False
    )


def assert_same_folders(one: Path, other: Path) -> None:
    names = sorted(str(path.relative_to(one)) for path in one.rglob("*") if path.is_file())
    assert names == sorted(str(p.relative_to(other)) for p in other.rglob("*") if p.is_file())
    _, mismatch, errors = filecmp.cmpfiles(one, other, names, shallow=False)
    assert not mismatch
    assert not errors


def test_several_ranks_write_the_same_bytes_as_one(megatron_cases, tmp_path):
    """Files of a few hundred kilobytes, so that every rank has some to write."""
    model = megatron.hf(megatron_cases, "deepseek_v3_mtp")
    small = "import ckpt_tool.writers.torch_dist.layout as t; t.FILE_BYTES = 300_000; import runpy;"
    program = tmp_path / "small.py"
    program.write_text(f"{small} runpy.run_module('ckpt_tool', run_name='__main__')")
    for command, out in (([sys.executable], "one"), (torchrun_command(3), "three")):
        done = subprocess.run(
            [*command, str(program), "to-mcore", str(model), str(tmp_path / out), "--verify"],
            cwd=PROJECT,
            env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(PROJECT)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("Wrote 78 tensors") == 1
        assert "every bit as planned" in done.stdout
    assert len(list((tmp_path / "one").glob("*.distcp"))) > 3
    assert_same_folders(tmp_path / "one", tmp_path / "three")


def test_what_fails_in_all_ranks_is_said_once(megatron_cases, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "kept").write_text("mine")
    done = run_together("to-mcore", str(megatron.hf(megatron_cases, "llama")), str(out))
    assert done.returncode != 0
    assert done.stderr.count("exists and is not empty") == 1
    assert [path.name for path in out.iterdir()] == ["kept"]


def test_what_cannot_be_sent_has_failed_where_it_was_made(tmp_path) -> None:
    program = tmp_path / "sends.py"
    program.write_text(
        "from ckpt_tool.common.parallel import join_world\n"
        "with join_world() as world:\n"
        "    try:\n"
        "        world.everyone(lambda: (lambda: 1) if world.rank else 1)\n"
        "    except Exception as error:\n"
        "        print(f'{world.rank} {type(error).__name__} {error}\\n', end='')\n"
        "    print(f'{world.rank} {world.everyone(lambda: world.rank)}\\n', end='')\n"
    )
    done = subprocess.run(
        [*ranks_command(2), str(program)],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(PROJECT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "0 PeerError rank 1: " in done.stdout
    assert {"0 [0, 1]", "1 [0, 1]"} <= set(done.stdout.splitlines())


def test_what_fails_in_one_rank_stops_all(megatron_cases, tmp_path):
    """The second rank's disk is full; what the first one finished is kept for `--resume`."""
    program = tmp_path / "blind.py"
    program.write_text(
        "import os, runpy\n"
        "import ckpt_tool.plans.stage as m\n"
        "def refuse(*_):\n    raise OSError(28, 'No space left on device')\n"
        "if os.environ['RANK'] == '1':\n    m.write_files = refuse\n"
        "runpy.run_module('ckpt_tool', run_name='__main__')\n"
    )
    launcher = torchrun_command(2)
    model = megatron.hf(megatron_cases, "llama")
    done = subprocess.run(
        [*launcher, str(program), "to-mcore", str(model), str(tmp_path / "out")],
        cwd=PROJECT,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(PROJECT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    assert "rank 1: [Errno 28] No space left on device" in done.stderr
    assert "--resume continues" in done.stderr
    assert not (tmp_path / "out").exists()
