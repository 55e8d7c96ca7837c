"""Have a fault happen to every call of every case, and look at what is left: `make faults`."""

import argparse
import hashlib
import json
import os
import platform
import random
import signal
import socketserver
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.faults.cases import Case, attempt, make_cases, read_all
from tests.faults.shim import READS, TAKES_SPACE, WAYS, WRITES, Shim

_SECONDS = 60
_FOLLOWS = (True, False)  # whether the next run resumes


@dataclass
class Tally:
    """How many faults there were, by what came of them, and what is wrong."""

    outcomes: Counter[str] = field(default_factory=Counter)
    defects: list[str] = field(default_factory=list)

    @property
    def injected(self) -> int:
        return self.outcomes.total()

    def add(self, other: "Tally") -> None:
        self.outcomes += other.outcomes
        self.defects += other.defects


def in_child(work: Any) -> tuple[int, dict[str, Any]]:
    """The exit code of a forked process, and what ``work`` returned there, if it came to that."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        code = 1
        try:
            os.close(reading)
            signal.alarm(_SECONDS)
            answer = json.dumps(work()).encode()
            os.write(writing, answer)
            code = 0
        except BaseException:
            os.write(writing, json.dumps({"traceback": traceback.format_exc()}).encode())
        finally:
            os._exit(code)
    os.close(writing)
    with os.fdopen(reading, "rb") as stream:
        said = stream.read()
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status), json.loads(said) if said else {}


def count_calls(case: Case) -> list[str]:
    """The calls of a run to which nothing happens; what it makes is what others are to make."""

    def work() -> dict[str, Any]:
        shim = Shim(str(case.folder))
        said = attempt(case, shim)
        return {"trace": shim.trace, "said": said}

    case.set_up()
    code, found = in_child(work)
    assert code == 0, found
    assert found["said"] == "", found
    case.expected = read_all(case.out) or {}
    trace: list[str] = found["trace"]
    return trace


def digest(folder: Path) -> str:
    """Of names, modes, times and contents of all that is below a folder."""
    whole = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        found = path.lstat()
        whole.update(f"{path} {found.st_mode} {found.st_mtime_ns} {found.st_size}".encode())
        whole.update(path.read_bytes() if path.is_file() else b"")
    return whole.hexdigest()


def inject(case: Case, way: str, at: int, *, resume: bool) -> Tally:
    """One fault, and the next run."""

    def fault() -> dict[str, Any]:
        shim = Shim(str(case.folder), way, at)
        said = attempt(case, shim)
        return {"said": said, "hit": shim.hit}

    def follow() -> dict[str, Any]:
        return {"said": attempt(case, None, resume=resume, again=True)}

    tally, before = Tally(), digest(case.source)
    case.set_up()
    code, found = in_child(fault)
    was_killed = code == -signal.SIGKILL
    outcome = "killed" if was_killed else "refused" if found.get("said") else "done"
    if not was_killed and not found.get("hit") and code == 0:
        return tally  # nothing happened: a call of that number, or kind, was not made
    tally.outcomes[outcome] += 1
    faults = [] if was_killed or code == 0 else [f"ends with {code}: {found.get('traceback')}"]
    said = found.get("said", "")
    is_done = not was_killed and code == 0 and not said
    faults += case.find_faults(is_done=is_done, was_killed=was_killed, said=said)
    code, after = in_child(follow)
    if code or after["said"]:
        faults.append(f"the next run: {code} {after}")
    faults += case.find_faults_at_last()
    if digest(case.source) != before:
        faults.append("the source was touched")
    where = f"{case.name}: {way} at {at} ({found.get('hit')}), resume={resume}"
    tally.defects += [f"{where}: {fault}" for fault in faults]
    return tally


def list_faults(trace: list[str]) -> Iterator[tuple[str, int, bool]]:
    """Every way at every call to which it can happen, each with both kinds of a next run."""
    for way in WAYS:
        for at, name in enumerate(trace):
            if way == "short" and name not in (*READS, *WRITES):
                continue
            if way == "torn" and name not in WRITES:
                continue
            if way == "full" and name not in TAKES_SPACE:
                continue
            for resume in _FOLLOWS:
                yield way, at, resume


def run(folder: Path, names: str = "", share: int = 0, seed: int = 0) -> dict[str, Tally]:
    """All faults, or a random ``share`` of each case; by case."""
    tallies: dict[str, Tally] = {}
    with make_cases(folder, names) as cases:
        for case in cases:
            case.warm_up()
            tally = tallies[case.name] = Tally()
            faults = list(list_faults(count_calls(case)))
            if share:
                faults = random.Random(seed).sample(faults, min(share, len(faults)))
            for way, at, resume in faults:
                tally.add(inject(case, way, at, resume=resume))
    return tallies


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--case", default="", help="those whose names begin so")
    parser.add_argument("--share", type=int, default=0, help="so many of each, by chance")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", default=None, help="on which file system")
    asked = parser.parse_args()
    started = time.monotonic()
    socketserver.BaseServer.handle_error = lambda *_: None  # clients that are killed
    with tempfile.TemporaryDirectory(dir=asked.folder) as folder:
        tallies = run(Path(folder).resolve(), asked.case, asked.share, asked.seed)
    whole = Tally()
    print(f"{'case':40} {'faults':>7} {'killed':>7} {'refused':>8} {'done':>6} {'defects':>8}")
    for name, tally in tallies.items():
        whole.add(tally)
        print(_row(name, tally))
    print(_row("all", whole))
    for defect in whole.defects[:50]:
        print(f"- {defect}")
    seconds = time.monotonic() - started
    machine = f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    print(f"{whole.injected:,} faults in {seconds:.0f} s ({machine})")
    sys.exit(bool(whole.defects))


def _row(name: str, tally: Tally) -> str:
    counts = [tally.outcomes[each] for each in ("killed", "refused", "done")]
    killed, refused, done = counts
    return f"{name:40} {tally.injected:7} {killed:7} {refused:8} {done:6} {len(tally.defects):8}"


if __name__ == "__main__":
    main()
