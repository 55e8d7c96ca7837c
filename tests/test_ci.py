"""What CI runs: two lanes side by side, of which what the slower one says is never lost."""

import os
import shutil
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

#: Stands in for make: each target notes its group of processes, then does as it is told.
MAKE = """#!/bin/bash
cut -d' ' -f5 /proc/$$/stat > "$1.group.new"; mv "$1.group.new" "$1.group"
[ "$1" != test-oldest ] || echo "said by the oldest"
[ "$1" = test-oldest ] || while [ ! -e test-oldest.group ]; do sleep 0.01; done
eval "$(cat "$1.does" 2>/dev/null)"
"""


@pytest.fixture
def begin(tmp_path):
    """Begins the script where a target does the like of ``sleep 60; exit 3``."""
    (tmp_path / ".ci").mkdir()
    shutil.copy(ROOT / ".ci" / "run", tmp_path / ".ci" / "run")
    (tmp_path / "make").write_text(MAKE)
    (tmp_path / "make").chmod(0o755)
    begun = []

    def begin_there(**targets):
        for name, does in targets.items():
            (tmp_path / f"{name.replace('_', '-')}.does").write_text(does)
        environment = os.environ | {
            "PATH": f"{tmp_path}:{os.environ['PATH']}",
            "TMPDIR": str(tmp_path),
        }
        command = ["bash", str(tmp_path / ".ci" / "run")]
        script = subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, text=True, start_new_session=True
        )
        begun.append(script)
        return script

    yield begin_there
    for script in begun:
        script.kill()
        script.communicate()


def groups(folder: Path) -> dict[str, int]:
    return {path.stem: int(path.read_text()) for path in folder.glob("*.group")}


def running() -> set[int]:
    """The groups of all processes that have not ended."""
    found = set()
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it is gone
            state, _, group, *_ = path.read_text().rpartition(")")[2].split()
            found |= {int(group)} if state != "Z" else set()
    return found


@pytest.mark.parametrize(
    ("targets", "code"),
    [({}, 0), ({"test": "exit 4"}, 4), ({"test_oldest": "exit 5"}, 5)],
)
def test_both_lanes_count(begin, tmp_path, targets, code):
    script = begin(**targets)
    assert script.communicate(timeout=30)[0] == "said by the oldest\n"
    assert script.returncode == code
    assert list(tmp_path.glob("tmp.*")) == []


def test_where_the_check_fails_the_other_lane_ends_and_what_it_said_is_shown(begin, tmp_path):
    script = begin(check="exit 3", test_oldest="sleep 60")
    assert script.communicate(timeout=30)[0] == "said by the oldest\n"
    assert script.returncode == 3
    assert list(tmp_path.glob("tmp.*")) == []


def test_a_script_that_is_stopped_leaves_nothing_behind(begin, tmp_path):
    script = begin(test="sleep 60", test_oldest="sleep 60")
    deadline = time.monotonic() + 30
    while len(groups(tmp_path)) < 3 and time.monotonic() < deadline:
        time.sleep(0.02)
    found = groups(tmp_path)
    assert found["test"] == found["check"] == script.pid != found["test-oldest"]
    os.killpg(script.pid, 15)
    assert "said by the oldest" in script.communicate(timeout=30)[0]  # else a lane holds the pipe
    assert running().isdisjoint(found.values())
