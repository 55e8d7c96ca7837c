"""Run jobs of `megatron_jobs` in worlds of gloo processes.

    run_jobs([Save(...), Logits(...)])

One Python process imports megatron-core, which takes seconds, and forks the ranks of one world
after another; they do all the jobs of that size in a row. Keep this module light: megatron-core
starts helpers that import it anew.
"""

import argparse
import gc
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing import connection
from multiprocessing.process import BaseProcess
from pathlib import Path

from .megatron_jobs import Job

_PROJECT = Path(__file__).resolve().parents[2]


def run_jobs(jobs: Sequence[Job], *, timeout: float = 120) -> None:
    """Do every job in the smallest world that holds its model: smaller worlds first, else in order.

    Raises RuntimeError with what the ranks said when one fails, or when `timeout` seconds are over.
    """
    with tempfile.TemporaryDirectory() as scratch:
        Path(scratch, "jobs.pickle").write_bytes(pickle.dumps(list(jobs)))
        _supervise(Path(scratch), timeout)


def _supervise(scratch: Path, timeout: float) -> None:
    command = [sys.executable, "-W", "ignore", "-m", "tests.real.megatron_run", str(scratch)]
    # Threads that numpy's or torch's libraries start would not survive the fork, and compiling
    # megatron-core's small functions takes longer than running them.
    settings = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    settings["TORCHDYNAMO_DISABLE"] = "1"
    log = scratch / "launcher.log"
    with log.open("w") as stream:
        process = subprocess.Popen(
            command,
            cwd=_PROJECT,
            env=os.environ | settings,
            stdout=stream,
            stderr=stream,
            start_new_session=True,  # a group of its own, so that no rank or helper is left over
        )
        try:
            code: int | str = process.wait(timeout)
        except subprocess.TimeoutExpired:
            code = f"no end after {timeout} s"
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    if code != 0:
        logs = [f"--- {log.stem}\n{log.read_text()}" for log in sorted(scratch.glob("*.log"))]
        raise RuntimeError("\n".join([f"megatron-core ranks failed: {code}", *logs]))


def _launch(scratch: Path) -> None:
    from . import megatron_rank  # noqa: F401  imported once, before the forks

    gc.freeze()  # what was imported stays, and no rank shall look for garbage in it
    worlds: dict[int, list[Job]] = defaultdict(list)
    for job in pickle.loads((scratch / "jobs.pickle").read_bytes()):
        worlds[job.sizes.world_size].append(job)
    for world_size in sorted(worlds):
        _do_all(worlds[world_size], world_size, scratch)


def _do_all(jobs: Sequence[Job], world_size: int, scratch: Path) -> None:
    """Fork the ranks and wait for them; exit with a failed one's code as soon as there is one."""
    ranks = [_fork_rank(jobs, world_size, rank, scratch) for rank in range(world_size)]
    while ranks:
        ready = connection.wait([process.sentinel for process in ranks])
        for process in [process for process in ranks if process.sentinel in ready]:
            process.join()  # it has no exit code yet just because its sentinel is ready
            if process.exitcode:
                os._exit(1)  # not sys.exit, which would wait for the ranks that wait for this one
            ranks.remove(process)


def _fork_rank(jobs: Sequence[Job], world_size: int, rank: int, scratch: Path) -> BaseProcess:
    """Start a rank whose output goes to a file of its own."""
    from .megatron_rank import run_rank

    def run() -> None:
        with (scratch / f"rank{rank}_of_{world_size}.log").open("w") as stream:
            os.dup2(stream.fileno(), sys.stdout.fileno())
            os.dup2(stream.fileno(), sys.stderr.fileno())
        run_rank(jobs, world_size, rank, scratch)

    # Not a daemon: megatron-core's writer starts processes, which a daemon must not.
    process = multiprocessing.get_context("fork").Process(target=run, name=f"rank{rank}")
    process.start()
    return process


def main() -> None:
    """Be the process that forks the ranks."""
    parser = argparse.ArgumentParser(description="Do the jobs pickled in a scratch folder.")
    parser.add_argument("scratch", type=Path)
    _launch(parser.parse_args().scratch)


if __name__ == "__main__":
    main()
