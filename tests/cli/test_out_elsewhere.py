"""`ckpt merge` and `to-mcore` with OUT at `s3://`: what is said, and real runs that are ended."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from ckpt_tool.cli.app import app
from tests.cli.test_merge_steps import HEARS
from tests.common.test_parallel import PROJECT
from tests.operations.merge.test_object_output import look, read, states
from tests.support.merging import write_rank
from tests.support.objects.buckets import Bucket
from tests.support.objects.faults import ALWAYS
from tests.support.tiny_llama import LLAMA, make_llama
from tests.support.torchrun import ranks_command

BARE = ("--config", "none", "--max-shard-size", "20KB")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_rank(tmp_path / "run" / "global_step_7" / "actor", states())


def run(*words: object) -> Result:
    return CliRunner(env={"COLUMNS": "100"}).invoke(app, [*map(str, words)])


def start(program: list[str], *words: object) -> subprocess.Popen[str]:
    environment = os.environ | {"PYTHONPATH": str(PROJECT), "COLUMNS": "100"}
    told = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([*program, *map(str, words)], env=environment, cwd=PROJECT, **told)


def test_what_comes_next_works_with_addresses(sink: Bucket, tmp_path: Path) -> None:
    source = write_rank(tmp_path / "global_step_7" / "actor", make_llama(), LLAMA)
    (source / "huggingface" / "tokenizer.json").write_text("{}")
    out = f"{sink.url}/models/llama"
    done = run("merge", source, out)
    assert done.exit_code == 0, done.output
    assert f"4.44 kB in 1 file to {out} (" in done.stdout
    assert done.stdout.partition("\n\n")[2].splitlines() == [
        f"Next, with {out} (float32, 4.44 kB):",
        f"  fetch    aws s3 sync {out} DIR",
        f"  serve    vllm serve {out} --load-format runai_streamer",
        f"  check    ckpt verify {out}",
    ]
    checked = run("verify", out)
    assert checked.exit_code == 0, checked.output
    again = run("merge", source, out, "--resume")
    assert again.stdout.startswith(f"Already complete: 12 tensors, 4.44 kB in 1 file in {out}")


def test_json_has_the_address(source: Path, sink: Bucket) -> None:
    out = f"{sink.url}/out"
    planned = json.loads(run("merge", source, out, *BARE, "--dry-run", "--json").stdout)
    written = json.loads(run("merge", source, out, *BARE, "--json").stdout)
    assert (planned["output"], written["output"]) == (out, out)
    assert f"Would write to {out}" in run("merge", source, f"{out}2", *BARE, "--dry-run").stdout


def test_steps_that_are_there_are_not_written_again(source: Path, sink: Bucket) -> None:
    words = ("merge", source.parents[1], f"{sink.url}/hf/{{step}}", "--steps", "all", *BARE)
    first = run(*words)
    assert first.exit_code == 0, first.output
    write_rank(source.parents[1] / "global_step_8" / "actor", states(start=5))
    second = run(*words)
    rows = [line.split() for line in second.stdout.splitlines() if sink.url in line]
    assert [row[2:5] for row in rows] == [
        [f"{sink.url}/hf/7", "was", "complete"],
        [f"{sink.url}/hf/8", "written", "49.5"],
    ]
    assert "hf/8/ckpt_manifest.json" in look(sink)


REFUSED = [
    (("--upload", "org/name"), "--upload: sends a folder, and OUT is s3://"),
    (("--no-fsync",), "--no-fsync: is about files on a disk, and OUT is s3://"),
    (("--no-direct-io",), "--no-direct-io: is about files on a disk, and OUT is s3://"),
]


@pytest.mark.parametrize(("words", "said"), REFUSED)
def test_options_that_make_no_sense_there_are_refused(
    source: Path, sink: Bucket, words: tuple[str, ...], said: str
) -> None:
    done = run("merge", source, f"{sink.url}/out", *BARE, *words)
    assert done.exit_code == 2
    assert said in done.stderr
    assert sink.requests == []


def test_whoever_has_no_credentials_is_told_how_to_give_them(
    source: Path, sink: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "ckptanothersecret")
    done = run("merge", source, f"{sink.url}/out", *BARE)
    assert done.exit_code == 2
    assert done.stderr.startswith(f"ckpt: error: {sink.url}/out")
    assert "refused: 403 SignatureDoesNotMatch" in done.stderr
    assert "AWS_ACCESS_KEY_ID" in done.stderr


def hold(sink: Bucket, key: str) -> tuple[threading.Event, threading.Event]:
    """Have the first request to send a key wait: whether it has come, and what lets it go on."""
    came, go_on = threading.Event(), threading.Event()

    def wait() -> None:
        came.set()
        go_on.wait(60)

    sink.fail(method="PUT", key=key, before=wait)
    return came, go_on


def test_ctrl_c_leaves_nothing(source: Path, sink: Bucket) -> None:
    came, go_on = hold(sink, "out/model-00002-*")
    process = start([sys.executable, "-c", HEARS], "merge", source, f"{sink.url}/out", *BARE)
    assert came.wait(60)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    go_on.set()
    assert process.returncode == 130, stderr
    assert look(sink) == set()


#: A request that comes back long after all is done.
LATE = f"import threading, time; threading.Thread(target=time.sleep, args=(600,)).start(); {HEARS}"


@pytest.mark.parametrize(("name", "code"), [("actor", 0), ("critic", 2)])
def test_nobody_waits_for_a_store_when_all_is_said(
    source: Path, sink: Bucket, name: str, code: int
) -> None:
    shutil.copytree(source, sink.folder / "run" / "actor")
    words = ("inspect", f"{sink.url}/run/{name}", "--json")
    process = start([sys.executable, "-c", LATE], *words)
    stdout, stderr = process.communicate(timeout=60)
    here = run(*words)
    assert (process.returncode, here.exit_code) == (code, code)
    assert (stdout, stderr) == (here.stdout, here.stderr)
    assert bool(stdout) == (code == 0)


def test_a_run_that_is_killed_leaves_its_mark_and_the_next_one_goes_on(
    source: Path, sink: Bucket, tmp_path: Path
) -> None:
    came, go_on = hold(sink, "out/model-00002-*")
    words = ("merge", source, f"{sink.url}/out", *BARE)
    process = start([sys.executable, "-m", "ckpt_tool"], *words)
    assert came.wait(60)
    refused = run(*words)
    assert refused.exit_code == 2
    assert "another ckpt is writing it just now" in refused.stderr
    process.kill()
    process.communicate(timeout=60)
    go_on.set()
    assert look(sink) == {"out/.ckpt-partial"}
    assert run(*words).exit_code == 0
    assert run("merge", source, tmp_path / "out", *BARE).exit_code == 0
    assert read(sink.folder / "out") == read(tmp_path / "out")


def test_what_a_run_let_appear_that_was_killed_is_removed_by_the_next(
    source: Path, sink: Bucket, tmp_path: Path
) -> None:
    came, go_on = threading.Event(), threading.Event()

    def wait() -> None:
        came.set()
        go_on.wait(60)

    last = {"method": "POST", "key": "out/ckpt_manifest.json", "before": wait}
    sink.fail(method="PUT", key="out/ckpt_manifest.json", before=lambda: sink.fail(**last))
    words = ("merge", source, f"{sink.url}/out")
    process = start([sys.executable, "-m", "ckpt_tool"], *words, *BARE)
    assert came.wait(60)
    assert "out/model-00001-of-00003.safetensors" in look(sink)
    process.kill()
    process.communicate(timeout=60)
    go_on.set()
    done = run(*words, "--config", "none")  # other files than before
    assert done.exit_code == 0, done.output
    assert "what a run had put there that was killed was removed" in done.stderr
    assert run("merge", source, tmp_path / "out", "--config", "none").exit_code == 0
    assert read(sink.folder / "out") == read(tmp_path / "out")


@pytest.mark.real
def test_processes_of_a_run_send_their_shares(source: Path, sink: Bucket, tmp_path: Path) -> None:
    words = ("merge", source, f"{sink.url}/out", *BARE, "--verify")
    process = start([*ranks_command(2), "-m", "ckpt_tool"], *words)
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 0, stderr
    assert run("merge", source, tmp_path / "out", *BARE).exit_code == 0
    assert read(sink.folder / "out") == read(tmp_path / "out")


@pytest.mark.real
def test_where_one_process_fails_none_leaves_anything(source: Path, sink: Bucket) -> None:
    for number in (1, 2, 3):
        sink.fail(
            method="PUT",
            key=f"out/model-0000{number}-*",
            status=403 if number == 2 else 0,
            code="AccessDenied",
            times=ALWAYS,
        )
    words = ("merge", source, f"{sink.url}/out", *BARE)
    process = start([*ranks_command(2), "-m", "ckpt_tool"], *words)
    _, stderr = process.communicate(timeout=120)
    assert process.returncode != 0
    assert "model-00002-of-00003.safetensors: refused: 403 AccessDenied" in stderr
    assert look(sink) == set()
