"""A share of all faults (`make faults` has all of them); and what does harm is found out."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.common.test_parallel import PROJECT
from tests.faults.cases import Merge, read_all, write_source
from tests.faults.inject import Tally, count_calls, inject, list_faults

pytestmark = pytest.mark.slow

CASES = ("merge", "to-mcore", "upload")


@pytest.mark.parametrize(("case", "share"), [("merge", 12), ("to-mcore", 10), ("upload", 8)])
def test_whatever_fails_an_output_is_whole_or_is_not_there(case: str, share: int) -> None:
    """In a process of its own, which forks others: no thread is to be there."""
    command = [sys.executable, "-m", "tests.faults.inject", "--case", case, "--share", str(share)]
    folder = ["--folder", "/dev/shm"] if os.access("/dev/shm", os.W_OK) else []
    environment = os.environ | {"PYTHONPATH": str(PROJECT)}
    done = subprocess.run(
        [*command, *folder], cwd=PROJECT, env=environment, capture_output=True, text=True,
        check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    name, injected, *_, defects = done.stdout.splitlines()[-2].split()
    assert (name, defects) == ("all", "0")
    assert int(injected) >= share // 2  # the last calls of a run are not always made


class Careless(Merge):
    """Writes into the output itself, one file after the other."""

    def run(self, *, resume: bool = False, again: bool = False) -> None:
        self.out.mkdir(exist_ok=True)
        for number in range(3):
            (self.out / f"{number}.safetensors").write_bytes(bytes(9))
        (self.source / "touched").touch()


def test_a_writer_without_care_would_be_found_out(tmp_path: Path) -> None:
    write_source(tmp_path / "in")
    case = Careless("careless", tmp_path)
    trace = count_calls(case)
    assert trace.count("write") == 3
    whole = Tally()
    for way, at, resume in list_faults(trace):
        whole.add(inject(case, way, at, resume=resume))
    assert whole.outcomes["killed"] > 10
    said = "\n".join(whole.defects)
    for fault in ("out is torn", "the source was touched"):
        assert fault in said


def test_a_run_to_which_nothing_happens_is_counted_and_complete(tmp_path: Path) -> None:
    write_source(tmp_path / "in")
    case = Merge("merge", tmp_path)
    trace = count_calls(case)
    assert {"open", "pwrite", "fsync", "rename", "mkdir", "preadv", "flock", "fallocate"} <= {
        *trace
    }
    assert sorted(case.expected)[-4:] == [
        "model-00004-of-00004.safetensors", "model.safetensors.index.json",
        "tokenizer.json", "tokenizer_config.json",
    ]  # fmt: skip
    assert read_all(case.out) == case.expected
