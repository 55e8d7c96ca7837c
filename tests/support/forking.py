"""What stands in for torchrun in most tests: one import of torch, and the ranks are forked from it.

    python -m tests.support.forking 2 PROGRAM.py ARGUMENTS
    python -m tests.support.forking 2 -m MODULE ARGUMENTS

Torchrun imports torch, which takes two seconds of a processor, and so does every rank of its own.
The variables are the same, and so is where the ranks meet: a store that is the launcher's. But it
ends no rank because another has failed: they shall know by themselves, within a minute. Where it
ends itself, none goes on. What a module of the tests imports is imported before the fork too.
"""

import atexit
import importlib
import multiprocessing
import os
import runpy
import signal
import sys
from collections.abc import Sequence
from multiprocessing import connection
from multiprocessing.process import BaseProcess


def main() -> int:
    # As in a rank that is not forked. Threads of libraries would not survive the fork.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    from torch.distributed import TCPStore

    size, *words = sys.argv[1:]
    if words[0] == "-m" and words[1].startswith("tests."):
        importlib.import_module(words[1])
    context = multiprocessing.get_context("fork")
    pipes = [context.Pipe(duplex=False) for _ in range(int(size))]
    ranks = [
        context.Process(target=_be, args=(rank, int(size), words, port))
        for rank, (port, _) in enumerate(pipes)
    ]
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        for process in ranks:
            process.start()
        store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        for _, tell in pipes:
            tell.send(store.port)
        return int(any(_wait(ranks)))
    finally:
        for process in multiprocessing.active_children():
            process.kill()


def _wait(ranks: Sequence[BaseProcess]) -> list[int | None]:
    """The exit codes. Where one has failed, the others have a minute to know."""
    running = {process.sentinel: process for process in ranks}
    while running:
        failed = any(process.exitcode for process in ranks)
        ended = connection.wait(list(running), 60 if failed else None)
        if not ended:
            print("ranks go on where one has failed: they are killed", file=sys.stderr)
            for process in running.values():
                process.kill()
        for sentinel in ended or list(running):
            running.pop(sentinel).join()
    return [process.exitcode for process in ranks]


def _be(rank: int, size: int, words: Sequence[str], port: connection.Connection) -> None:
    """Do what the rank does, and end as a program ends: `multiprocessing` leaves that out."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(size),
        "LOCAL_WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port.recv()),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
    }
    try:
        if words[0] == "-m":
            sys.argv = list(words[1:])
            runpy.run_module(words[1], run_name="__main__", alter_sys=True)
        else:
            sys.argv = list(words)
            runpy.run_path(words[0], run_name="__main__")
    finally:
        atexit._run_exitfuncs()


if __name__ == "__main__":
    sys.exit(main())
