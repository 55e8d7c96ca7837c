"""Where `ckpt` is started: few open files, little memory, no streams, folders of others."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.common.test_parallel import PROJECT
from tests.support.merging import TINY, assert_same, load_folder, values, write_rank

pytestmark = pytest.mark.slow

#: What a merge, its child and Python itself might import; Python looks for those before us.
NAMES = """torch json typing __future__ typer numpy transformers dataclasses xxhash safetensors
ctypes shutil subprocess rich click accelerate re inspect hashlib logging tempfile""".split()


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    state = {f"layers.{n}.weight": values(64, 64, start=n << 12) for n in range(4)}
    return write_rank(tmp_path_factory.mktemp("source"), state, TINY)


def run(line: str, *words: object, cwd: Path = PROJECT) -> subprocess.CompletedProcess[str]:
    """Run a line of the shell, in which `ckpt` is what follows it with `words`."""
    command = [sys.executable, "-m", "ckpt_tool", *map(str, words)]
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("SLURM_")},
        "PYTHONPATH": str(PROJECT),
    }
    return subprocess.run(
        ["bash", "-c", line.replace("ckpt", '"$@"'), "bash", *command],
        cwd=cwd, env=environment, capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip


def merge_words(source: Path, out: Path) -> tuple[object, ...]:
    return ("merge", "fsdp", source, out, "--no-check-load", "--max-shard-size", "20KB")


def whole(source: Path) -> dict[str, torch.Tensor]:
    return torch.load(source / "model_world_size_1_rank_0.pt")


@pytest.mark.parametrize("line", ["ckpt >&-", "ckpt 2>&-", "ckpt >&- 2>&-", "ckpt <&- >&- 2>&-"])
def test_streams_that_are_closed(source: Path, tmp_path: Path, line: str) -> None:
    out = tmp_path / "out"
    done = run(line, *merge_words(source, out), "--verify")
    assert (done.returncode, done.stderr) == (0, "")
    assert load_folder(out).keys() == whole(source).keys()
    again = run(line, *merge_words(source, out))
    assert (again.returncode, again.stdout) == (2, "")


def test_an_answer_that_cannot_be_printed_is_said_not_to_be(source: Path, tmp_path: Path) -> None:
    for words in (("inspect", source), merge_words(source, tmp_path / "out")):
        done = run("ckpt > /dev/full", *words)
        assert done.returncode == 2
        assert "cannot be printed to stdout (No space left on device)" in done.stderr
        assert "Exception" not in done.stderr
    assert f"{tmp_path / 'out'}: is complete and in its place." in done.stderr
    assert (tmp_path / "out" / "config.json").exists()
    assert run("ckpt 2> /dev/full", *merge_words(source, tmp_path / "out")).returncode == 2


def test_threads_without_number_are_refused_and_many_are_no_more_than_tasks(
    source: Path, tmp_path: Path
) -> None:
    for words in (merge_words(source, tmp_path / "out"), ("verify", source, source)):
        done = run("ckpt", *words, "--jobs", 20_000)
        assert done.returncode == 2
        assert "--jobs" in done.stderr
        assert "512" in done.stderr
    assert not (tmp_path / "out").exists()
    many = ("--jobs", 512, "--verify")
    done = run("ulimit -v 2000000; ckpt", *merge_words(source, tmp_path / "out"), *many)
    assert done.returncode == 0, done.stderr


def test_a_name_that_no_file_can_have_is_not_changed_by_options_of_other_commands(
    source: Path, tmp_path: Path
) -> None:
    state = {**whole(source), "__metadata__": values(2)}
    bad = write_rank(tmp_path / "bad", state, TINY)
    done = run("ckpt", *merge_words(bad, tmp_path / "out"))
    assert done.returncode == 2
    assert "Save the checkpoint with other names." in done.stderr
    assert "--rename" not in done.stderr


def test_a_limit_on_files_is_said_with_the_file(source: Path, tmp_path: Path) -> None:
    done = run("ulimit -f 8; ckpt", *merge_words(source, tmp_path / "out"))
    assert done.returncode == 2
    partial = tmp_path / ".out.ckpt-partial"
    assert f"{partial}/model-00001-of-00004.safetensors: File too large: no file" in done.stderr
    assert "more than 8,192 bytes (ulimit -f)" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_journal_that_is_a_folder_is_named_with_what_to_do(source: Path, tmp_path: Path) -> None:
    journal = tmp_path / ".out.ckpt-journal"
    journal.mkdir()
    done = run("ckpt", *merge_words(source, tmp_path / "out"))
    assert done.returncode == 2
    assert f"{journal}: is not a file" in done.stderr
    assert "Remove it, or choose another output folder." in done.stderr


def test_a_few_files_may_be_open(source: Path, tmp_path: Path) -> None:
    """The files of a hundred ranks, which hold the same, where sixty-four may be open."""
    many, out = tmp_path / "in", tmp_path / "out"
    for rank in range(100):
        write_rank(many, whole(source), TINY, rank, world_size=100)
    done = run("ulimit -n 64; ckpt", *merge_words(many, out), "--check-replicas", "--verify")
    assert done.returncode == 0, done.stderr
    assert_same(load_folder(out), whole(source))


@pytest.mark.parametrize("kilobytes", [100_000, 150_000, 200_000, 300_000, 1_000_000])
def test_little_memory_is_said_to_be_little(source: Path, tmp_path: Path, kilobytes: int) -> None:
    out = tmp_path / "out"
    done = run(f"ulimit -v {kilobytes}; ckpt", *merge_words(source, out))
    assert done.returncode in (0, 2) or "OpenBLAS error" in done.stderr  # which ends the process
    assert "bug" not in done.stderr
    assert (done.returncode == 0) == out.exists()
    assert kilobytes < 1_000_000 or done.returncode == 0


@pytest.mark.parametrize("mask", ["0002", "0027", "0077"])
def test_umask_says_who_may_read_all_of_it(source: Path, tmp_path: Path, mask: str) -> None:
    out = tmp_path / "out"
    for more in ((), ("--overwrite",)):
        assert run(f"umask {mask}; ckpt", *merge_words(source, out), *more).returncode == 0
        modes = {path.stat().st_mode & 0o777 for path in out.iterdir()}
        assert modes == {0o666 & ~int(mask, 8)}
        assert out.stat().st_mode & 0o777 == 0o777 & ~int(mask, 8)


def test_files_of_no_bytes_are_said_to_be_empty(source: Path, tmp_path: Path) -> None:
    failed = tmp_path / "in"
    failed.mkdir()
    for rank in range(3):
        (failed / f"model_world_size_3_rank_{rank}.pt").touch()
    done = run("ckpt", *merge_words(failed, tmp_path / "out"))
    assert done.returncode == 2
    assert done.stderr.count("empty file") == 3
    assert not (tmp_path / "out").exists()


def test_nothing_is_imported_from_the_current_folder(source: Path, tmp_path: Path) -> None:
    """Neither by `python -m ckpt_tool` nor by the process that it asks about the architecture."""
    here = tmp_path / "here"
    here.mkdir()
    for name in NAMES:
        (here / f"{name}.py").write_text(f"open('{here}/imported', 'a').write('{name} ')\n")
    words = ("merge", "fsdp", source, tmp_path / "out")
    cache = f"XDG_CACHE_HOME={tmp_path}/cache ckpt"
    done = run(cache, *words, cwd=here)
    assert not (here / "imported").exists(), (here / "imported").read_text()
    assert "LlamaForCausalLM" in done.stderr  # it is not the whole model: the child has looked
    assert done.returncode == 2


@pytest.mark.parametrize("command", ["merge", "to-mcore"])
def test_tasks_of_srun_write_nothing_before_they_have_met(
    source: Path, tmp_path: Path, command: str
) -> None:
    out = tmp_path / "out"
    words = merge_words(source, out) if command == "merge" else (command, source, out)
    done = run("SLURM_NTASKS=8 SLURM_PROCID=5 ckpt", *words)
    assert done.returncode == 2
    assert "task 5 of 8 that srun started" in done.stderr
    assert "torchrun --nproc-per-node 8" in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("way", [signal.SIGINT, signal.SIGTERM])
def test_whoever_interrupts_early_is_told_so_and_nothing_else(
    way: signal.Signals, source: Path
) -> None:
    """In the midst of loading, before a command is at work, and in its midst."""
    script = (
        "import os, sys; import ckpt_tool.cli.app as app\n"
        "import ckpt_tool.common.parallel as team\n"
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # as if unset
        f"def interrupt(*_, **__): os.kill(os.getpid(), {way}); [0 for _ in range(10**7)]\n"
        "if sys.argv.pop(1) == 'loading': app.gc.set_threshold = interrupt\n"
        "else: team.form_team_alone = interrupt\n"
        "app.main()"
    )
    places = ["loading", "working"] if way is signal.SIGINT else ["working"]
    for place in places:
        done = subprocess.run(
            [sys.executable, "-c", script, place, "inspect", source, "--check-crc"],
            cwd=PROJECT, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert (done.returncode, done.stderr) == (130, "ckpt: interrupted.\n")
