"""How long planning takes processes that read a checkpoint's ranks together.

They are started here as `srun` starts them, all on this machine: where there are more of them than
cores, processor time is what says how long each would take on a node of its own.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from tests.bench.measure import CommandError
from tests.bench.watch import Sampler

_PROGRAM = """
import gc, json, sys, time
from ckpt_tool.common.parallel import join_team
from ckpt_tool.operations.merge_plan import make_plan
from ckpt_tool.operations.options import MergeOptions
gc.set_threshold(100_000, 50, 50)  # as the program has it
with join_team(1, None) as team:
    wall, cpu = time.perf_counter(), time.process_time()
    make_plan(sys.argv[1], "fsdp", MergeOptions(), team)
    print(json.dumps([time.perf_counter() - wall, time.process_time() - cpu]))
"""


@dataclass(frozen=True)
class TeamRun:
    """The slowest of several processes: wall and processor time in seconds, anonymous bytes."""

    seconds: float
    cpu: float
    anonymous: int


def plan_as_team(folder: Path, count: int) -> TeamRun:
    """Have ``count`` processes plan a merge of the ranks in ``folder``; CommandError if one fails.

    Times are of planning alone: the processes have met, and torch, which that takes, is there.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    place = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    command = [sys.executable, "-c", _PROGRAM, str(folder)]
    with ExitStack() as stack:
        running = [
            subprocess.Popen(
                command,
                env=os.environ | place | {"RANK": str(rank), "OMP_NUM_THREADS": "1"},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for rank in range(count)
        ]
        samplers = [stack.enter_context(Sampler(process.pid)) for process in running]
        said = [process.communicate() for process in running]
    for process, (_, error) in zip(running, said, strict=True):
        if process.returncode:
            raise CommandError(f"exit status {process.returncode}: {error[-2000:]}")
    times = [json.loads(out) for out, _ in said]
    wall, cpu = (max(each[at] for each in times) for at in (0, 1))
    return TeamRun(wall, cpu, max(sampler.largest for sampler in samplers))
