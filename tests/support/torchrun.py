"""How tests start several processes that torch joins."""

import os
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

_PROJECT = Path(__file__).parents[2]


def torchrun_command(ranks: int) -> list[str]:
    """What runs the program named after it in ``ranks`` processes, on a port of its own."""
    options = ["--standalone", "--nproc-per-node", str(ranks)]
    return [sys.executable, "-m", "torch.distributed.run", *options]


def ranks_command(ranks: int) -> list[str]:
    """What does the same with one import of torch, where torchrun itself is not what is tested.

    It is run where ``tests`` can be imported: in the project, or with that in PYTHONPATH.
    """
    return [sys.executable, "-m", "tests.support.forking", str(ranks)]


def run_ranks(module: str, out: Path, ranks: int) -> Path:
    """Have so many ranks run a module of the tests, which writes to ``out``, and wait for them."""
    done = subprocess.run(
        [*ranks_command(ranks), "-m", module, str(out)],
        cwd=_PROJECT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return out


def leave() -> NoReturn:
    """End a rank that has written all it had to, without taking torch down.

    Gloo's threads sometimes abort a process that ends by itself ("terminate called without an
    active exception"), so rarely that it is never where one looks.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
