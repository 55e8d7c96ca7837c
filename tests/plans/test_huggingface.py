"""Output appears whole or not at all, whatever interrupts the work."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from ckpt_tool.common.errors import FormatError, OutputError, UsageError
from ckpt_tool.common.parallel import ALONE, Team
from ckpt_tool.common.progress import NoProgress
from ckpt_tool.operations.merge import merge_fsdp
from ckpt_tool.operations.merge_plan import make_plan
from ckpt_tool.operations.options import MergeOptions
from ckpt_tool.plans.options import WriteOptions
from ckpt_tool.plans.write import write
from ckpt_tool.writers.stream import digest_file
from tests.support.merging import TINY, assert_same, load_folder, write_rank

LAYERS = 24
#: The weights are no model's: many files are all that matters.
UNCHECKED = MergeOptions(write=WriteOptions(check_load=False))
RESUME = MergeOptions(max_shard_size="4MB", write=WriteOptions(check_load=False, resume=True))


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Enough bytes and files (24 of 4 MB) to be interrupted in the middle."""
    folder = tmp_path_factory.mktemp("large")
    numbers = torch.arange(LAYERS << 20, dtype=torch.int32).view(torch.float32)
    state = {f"layers.{n}.weight": part for n, part in enumerate(numbers.chunk(LAYERS))}
    return write_rank(folder, state, TINY | {"model_type": "llama"})


# The real program on a slow disk: the merge would else be done before a signal reaches it.
# What was started in the background ignores ^C.
SLOWED = """
import os, signal, time
signal.signal(signal.SIGINT, signal.default_int_handler)
plain = os.pwrite
os.pwrite = lambda *where: (time.sleep(0.05), plain(*where))[1]
from ckpt_tool.cli.app import main
main()
"""


def start(source: Path, out: Path, *flags: str, **settings: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", SLOWED, "merge", "fsdp", str(source), str(out)]
    return subprocess.Popen(
        [*command, "--max-shard-size", "4MB", "--jobs", "1", "--no-check-load", *flags],
        stderr=subprocess.PIPE,
        text=True,
        **settings,
    )


def staging_of(out: Path) -> Path:
    return out.parent / f".{out.name}.ckpt-partial"


def finished_files(out: Path) -> Iterator[str]:
    journal = out.parent / f".{out.name}.ckpt-journal"
    for line in journal.read_text().splitlines()[1:] if journal.exists() else ():
        yield json.loads(line)["name"]


def interrupt(source: Path, out: Path, number: int) -> tuple[subprocess.Popen[str], str]:
    """Start a merge and send it a signal once it has finished two files."""
    process = start(source, out)
    while len(list(finished_files(out))) < 2:
        assert process.poll() is None, "it finished before it could be interrupted"
        time.sleep(0.0005)
    process.send_signal(number)
    _, errors = process.communicate()
    assert not out.exists()
    return process, errors


@pytest.mark.slow
def test_a_killed_merge_leaves_no_output_and_resumes_where_it_was(
    large: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    interrupt(large, out, signal.SIGKILL)
    kept = {name: (staging_of(out) / name).stat().st_ino for name in finished_files(out)}
    assert len(kept) >= 2
    merge_fsdp([large], out, RESUME)
    assert {name: (out / name).stat().st_ino for name in kept} == kept
    whole = torch.load(large / "model_world_size_1_rank_0.pt")
    assert_same(load_folder(out), whole)
    assert not staging_of(out).exists()


@pytest.mark.slow
def test_an_interrupted_merge_says_how_to_go_on(large: Path, tmp_path: Path) -> None:
    process, errors = interrupt(large, tmp_path / "out", signal.SIGINT)
    assert process.returncode == 130
    assert "--resume" in errors
    assert "Traceback" not in errors


@pytest.mark.slow
def test_a_termination_request_is_an_interruption(large: Path, tmp_path: Path) -> None:
    process, errors = interrupt(large, tmp_path / "out", signal.SIGTERM)
    assert process.returncode == 130
    assert "Traceback" not in errors


@pytest.mark.slow
def test_without_resume_a_stale_staging_folder_is_cleared(large: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    interrupt(large, out, signal.SIGKILL)
    (staging_of(out) / "stray").write_text("from before")
    merge_fsdp([large], out, UNCHECKED)
    assert not (out / "stray").exists()
    assert_same(load_folder(out), torch.load(large / "model_world_size_1_rank_0.pt"))


@pytest.mark.slow
def test_a_file_damaged_since_is_written_again(large: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    interrupt(large, out, signal.SIGKILL)
    first = staging_of(out) / next(finished_files(out))
    content = bytearray(first.read_bytes())
    content[-1] ^= 1
    first.write_bytes(content)
    merge_fsdp([large], out, RESUME)
    assert_same(load_folder(out), torch.load(large / "model_world_size_1_rank_0.pt"))


@pytest.mark.slow
def test_resuming_with_other_options_is_refused(large: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    interrupt(large, out, signal.SIGKILL)
    other = MergeOptions(dtype="bfloat16", write=WriteOptions(check_load=False, resume=True))
    with pytest.raises(OutputError, match="with other options"):
        merge_fsdp([large], out, other)


@pytest.mark.slow
def test_resuming_after_the_source_changed_is_refused(large: Path, tmp_path: Path) -> None:
    source, out = tmp_path / "in", tmp_path / "out"
    shutil.copytree(large, source)
    interrupt(source, out, signal.SIGKILL)
    os.utime(source / "model_world_size_1_rank_0.pt")
    with pytest.raises(OutputError, match="another checkpoint"):
        merge_fsdp([source], out, RESUME)


@pytest.mark.slow
def test_resuming_without_an_earlier_run_just_merges(large: Path, tmp_path: Path) -> None:
    merge_fsdp([large], tmp_path / "out", RESUME)
    assert len(load_folder(tmp_path / "out")) == LAYERS


@pytest.mark.slow
def test_two_merges_into_one_output_do_not_mix(large: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = start(large, out)
    while not list(finished_files(out)):
        assert first.poll() is None, "it finished before it could be stopped"
        time.sleep(0.0005)
    first.send_signal(signal.SIGSTOP)
    try:
        with pytest.raises(OutputError, match="another ckpt is writing"):
            merge_fsdp([large], out, UNCHECKED)
    finally:
        first.send_signal(signal.SIGCONT)
        first.communicate()
    assert first.returncode == 0
    assert len(load_folder(out)) == LAYERS


@pytest.mark.slow
def test_a_full_disk_is_an_error_that_says_where(large: Path, tmp_path: Path) -> None:
    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))

    out = tmp_path / "out"
    process = start(large, out, preexec_fn=limit)
    _, errors = process.communicate()
    assert process.returncode == 2
    assert str(out) in errors
    assert "Traceback" not in errors
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_too_little_space_is_found_before_anything_is_written(
    large: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1 << 20))
    with pytest.raises(OutputError, match="1,048,576 are free"):
        merge_fsdp([large], tmp_path / "out", UNCHECKED)
    assert not list(tmp_path.iterdir())


def test_a_source_that_shrinks_while_it_is_read_is_an_error(tmp_path: Path) -> None:
    source = write_rank(tmp_path / "in", {"a.weight": torch.arange(1 << 20).float()}, TINY)
    plan = make_plan(source, "fsdp")
    file = source / "model_world_size_1_rank_0.pt"
    os.truncate(file, file.stat().st_size // 2)
    with pytest.raises(FormatError, match="ends at byte"):
        write(plan, tmp_path / "out", WriteOptions(check_load=False), Team(ALONE, 2, NoProgress()))
    assert [p.name for p in tmp_path.iterdir()] == ["in"]


@pytest.mark.slow
def test_an_existing_output_is_only_replaced_on_request(large: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    merge_fsdp([large], out, UNCHECKED)  # empty: nothing is lost
    (out / "notes.txt").write_text("mine")
    with pytest.raises(OutputError, match="not empty"):
        merge_fsdp([large], out, UNCHECKED)
    assert (out / "notes.txt").read_text() == "mine"
    merge_fsdp([large], out, MergeOptions(write=WriteOptions(check_load=False, overwrite=True)))
    assert not (out / "notes.txt").exists()
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_a_failed_overwrite_leaves_the_old_output(large: Path, tmp_path: Path) -> None:
    out, source = tmp_path / "out", tmp_path / "in"
    out.mkdir()
    (out / "old").write_text("still here")
    write_rank(source, {"score.weight": torch.ones(3, 2)}, TINY | {"architectures": ["Nope"]})
    options = MergeOptions(write=WriteOptions(overwrite=True, check_load=True))
    with pytest.raises(UsageError, match="check_load"):
        merge_fsdp([source], out, options)
    assert [p.name for p in out.iterdir()] == ["old"]
    assert {p.name for p in tmp_path.iterdir()} == {"in", "out"}


@pytest.mark.slow
def test_the_manifest_proves_the_files(large: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    merge_fsdp([large], out, MergeOptions(max_shard_size="9MB", write=UNCHECKED.write))
    manifest = json.loads((out / "ckpt_manifest.json").read_text())
    for row in manifest["files"]:
        assert (out / row["name"]).stat().st_size == row["bytes"]
        assert digest_file(out / row["name"]) == row["digest"]
    source = large / "model_world_size_1_rank_0.pt"
    assert manifest["source"]["files"] == [{"name": source.name, "bytes": source.stat().st_size}]


@pytest.mark.slow
def test_verify_finds_a_bit_that_was_written_wrong(
    large: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = os.pwrite

    def flip_one(descriptor: int, data: memoryview, offset: int) -> int:
        at = (3 << 20) - offset  # in the second block of every file
        if 0 <= at < len(data):
            data = memoryview(bytes(data[:at]) + bytes([data[at] ^ 4]) + bytes(data[at + 1 :]))
        return honest(descriptor, data, offset)

    monkeypatch.setattr(os, "pwrite", flip_one)
    options = MergeOptions(max_shard_size="4MB", write=WriteOptions(check_load=False, verify=True))
    result = merge_fsdp([large], tmp_path / "out", options)
    assert result.verified is False
    # 4 MB tensors, a 2 MiB block: each file's second block begins in its first tensor
    assert result.differences == sorted(f"layers.{n}.weight" for n in range(LAYERS))
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_verify_of_a_sound_merge_says_so(large: Path, tmp_path: Path) -> None:
    result = merge_fsdp(
        [large], tmp_path / "out", MergeOptions(write=WriteOptions(check_load=False, verify=True))
    )
    assert result.verified is True
    assert result.differences == []
