"""The fuzzer itself: its inputs stay the same, it sees what it is to see, and finds nothing."""

import os
import pickle
import shutil
import socket
import subprocess
import sys
from importlib import import_module
from itertools import islice, pairwise
from pathlib import Path

import pytest

from tests.fuzz import case, children
from tests.fuzz.__main__ import list_batches
from tests.fuzz.case import Case, Outcome
from tests.fuzz.children import Batch, Setting, run_apart, run_batches
from tests.fuzz.seeds import Target, load_targets, write_seeds


@pytest.fixture(scope="module")
def targets(tmp_path_factory) -> list[Target]:
    folder = tmp_path_factory.mktemp("seeds")
    write_seeds(folder)
    return load_targets(folder)


PLAIN = Target(
    "plain", Case("merge", "fsdp"), {"ck/a.json": b'{"a": [1, "b"]}', "ck/b.dat": b"x" * 50}
)


def test_the_same_numbers_give_the_same_inputs():
    one, same, other = ([PLAIN.mutate(seed, n) for n in range(50)] for seed in ("0", "0", "1"))
    assert one == same
    assert one != other
    assert len(set(one)) > 40


def test_every_target_has_its_turn_and_large_ones_less_often():
    large = Target("large", PLAIN.case, {"ck/a": bytes(30_000)})
    batches = list(islice(list_batches([PLAIN, large]), 15))
    assert [batch.target.name for batch in batches[:6]] == ["plain", "large", *["plain"] * 4][:6]
    for target in (PLAIN, large):
        spans = [(each.start, each.end) for each in batches if each.target is target]
        assert all(a[1] == b[0] for a, b in pairwise(spans))


def test_so_many_inputs_as_are_asked_for():
    assert sum(each.end - each.start for each in list_batches([PLAIN], 1000)) == 1000


def spin() -> None:
    while True:
        pass


def hold_memory() -> None:
    bytearray(8 << 30)


def read_elsewhere() -> None:
    Path("/etc/hostname").read_bytes()


def read_elsewhere_and_hide_it() -> None:
    try:
        read_elsewhere()
    except Exception:
        return


def write_here(root: Path) -> None:
    (root / "new").write_text("x")


def unpickle_code() -> None:
    pickle.loads(b"cos\ngetcwd\n.")


WRONG = {
    "a hang": (lambda _: spin(), "signal"),
    "memory": (lambda _: hold_memory(), "MemoryError"),
    "an exception": (lambda _: {}["a"], "KeyError"),
    "no memory for a stack": (lambda _: os.abort(), "signal"),
    "a file elsewhere": (lambda _: read_elsewhere(), "Violation"),
    "hidden": (lambda _: read_elsewhere_and_hide_it(), "Violation"),
    "a list elsewhere": (lambda _: list(Path("/").iterdir()), "Violation"),
    "written": (write_here, "Violation"),
    "removed": (lambda root: (root / "ck" / "a.json").unlink(), "Violation"),
    "an import": (lambda _: import_module("this"), "Violation"),
    "a process": (lambda _: subprocess.run(["true"], check=True), "Violation"),
    "a fork": (lambda _: os.fork(), "Violation"),
    "a socket": (lambda _: socket.socket(), "Violation"),
    "code": (lambda _: exec("1"), "Violation"),
    "a pickle": (lambda _: unpickle_code(), "Violation"),
}


@pytest.mark.parametrize(("wrong", "kind"), WRONG.values(), ids=WRONG.keys())
def test_it_sees(wrong, kind, tmp_path, monkeypatch):
    monkeypatch.setitem(case._ACTIONS, "wrong", lambda _, root: wrong(root))
    monkeypatch.setattr(case, "_show", lambda *_: None)
    monkeypatch.setattr(children, "SECONDS", 0.3)
    PLAIN.write(tmp_path)
    outcome = run_apart(Case("wrong"), tmp_path, 0)
    assert outcome.is_defect
    assert outcome.kind.startswith(kind), outcome


def test_a_defect_ends_a_child_and_not_its_batch(tmp_path, monkeypatch):
    """Every third input is one: all are run, and each defect is told of once, by its number."""
    monkeypatch.setattr(children, "run_case", lambda *args: _fail_at(args[2]))
    found = []
    tally = run_batches(
        iter([Batch(PLAIN, 0, 10), Batch(PLAIN, 10, 20)]),
        Setting("0", 2, tmp_path),
        found.append,
        lambda _: None,
    )
    assert sorted(finding.number for finding in found) == list(range(0, 20, 3))
    assert {finding.outcome.kind for finding in found} == {"KeyError", "signal 6"}
    assert (tally.inputs["plain"], tally.defects["plain"]) == (20, 7)


def _fail_at(number: int) -> Outcome:
    if number % 6 == 3:
        os.abort()
    return Outcome("ok" if number % 3 else "KeyError", "", "a.py:b")


@pytest.mark.slow
def test_no_input_of_a_short_run_is_a_defect(targets, tmp_path):
    """With a seed that stays; `make fuzz` takes others, for hours."""
    work = Path("/dev/shm") / f"ckpt-fuzz-test-{os.getpid()}"
    command = [
        sys.executable,
        "-m",
        "tests.fuzz",
        "--inputs",
        "1400",
        "--jobs",
        "2",
        "--seed",
        "ci",
    ]
    try:
        for target in targets:
            target.write(work / target.name)
        done = subprocess.run(
            [*command, "--seeds", str(work), "--out", str(tmp_path / "found")],
            capture_output=True,
            text=True,
            check=False,
            cwd=Path(__file__).parents[2],
        )
    finally:
        shutil.rmtree(work, ignore_errors=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "no defects" in done.stdout
