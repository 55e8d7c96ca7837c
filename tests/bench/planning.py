"""``python -m tests.bench.planning``: how long planning takes, on checkpoints without numbers.

Each checkpoint of :mod:`tests.bench.scale` is written, looked at by ``ckpt inspect``, planned on as
a merge does (which, as a command, asks for room for the model), and removed. Wall time, processor
time and anonymous memory are as :mod:`tests.bench.measure` has them; the page cache is warm. One
process plans on one core, whatever there are: processor time is held against the budgets.
megatron-core's checkpoints are those of :mod:`tests.bench.planning_mcore`.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tests.bench.measure import run
from tests.bench.planning_mcore import CHECKPOINTS, PLAN, judge, measure_mcore
from tests.bench.planning_team import plan_as_team
from tests.bench.scale import MODELS, generate

_COMMANDS = {
    "inspect": ("-m", "ckpt_tool", "inspect"),
    "plan of a merge": ("-c", PLAN, "fsdp"),
}
#: Seconds of one core, and MiB of anonymous memory.
_BUDGETS = {
    "30B-A3B": (8.0, 256),
    "235B-A22B": (60.0, 512),
    "dense 70B": (2.0, 256),
    "671B fused": (10.0, 256),
}
#: Processes that plan together: what the busiest of them takes.
_TEAMS = (2, 8)
_ROW = "{:<12} {:>5} {:>10} {:<16} {:>8} {:>8} {:>9} {:>9}"


def main() -> None:
    """Measure those that are named; by default all that take no more than some minutes."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.planning", description=__doc__)
    parser.add_argument("names", nargs="*", default=["30B-A3B", "dense 70B", *CHECKPOINTS])
    parser.add_argument("--folder", type=Path, help="where they are written; some GB")
    options = parser.parse_args()
    known = {**dict.fromkeys(MODELS, _measure), **dict.fromkeys(CHECKPOINTS, measure_mcore)}
    unknown = [name for name in options.names if name not in known]
    if unknown:
        parser.error(f"{', '.join(unknown)}: expected some of {', '.join(known)}")
    print(_ROW.format("model", "ranks", "pieces", "command", "wall", "cpu", "memory", "a piece"))
    for name in options.names:
        folder = Path(tempfile.mkdtemp(dir=options.folder))
        try:
            for row in known[name](name, folder):
                print(_ROW.format(*row), flush=True)
        finally:
            shutil.rmtree(folder)


def _measure(name: str, folder: Path) -> Iterator[tuple[object, ...]]:
    model, world = MODELS[name]
    generate(folder / "ckpt", name)
    pieces = sum(1 for _ in model.shapes()) * world
    for title, words in _COMMANDS.items():
        command = [sys.executable, *words, str(folder / "ckpt")]
        found = min((run(command) for _ in range(2)), key=lambda each: each.seconds)
        each = f"{found.seconds / pieces * 1e6:.0f} us"
        memory = f"{found.anonymous >> 20} MiB"
        times = f"{found.seconds:.2f} s", f"{found.user + found.system:.2f} s"
        seconds, room = _BUDGETS[name]
        said = judge(found, seconds, room << 20)
        yield (name, world, f"{pieces:,}", title, *times, memory, f"{each} {said}")
    for count in _TEAMS:
        team = min((plan_as_team(folder / "ckpt", count) for _ in range(2)), key=lambda t: t.cpu)
        times = f"{team.seconds:.2f} s", f"{team.cpu:.2f} s"
        memory = f"{team.anonymous >> 20} MiB"
        yield (name, world, f"{pieces:,}", f"by {count} processes", *times, memory, "")


if __name__ == "__main__":
    main()
