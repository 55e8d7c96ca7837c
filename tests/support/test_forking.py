"""Ranks that are forked end where their launcher does."""

import os
import signal
import subprocess
import sys
from contextlib import suppress

import pytest

from tests.support.torchrun import ranks_command

PROGRAM = r"""
import os, time
os.write(1, b"%d\n" % os.getpid())  # at once, or the lines of two are mixed
time.sleep(60)
"""
WITHOUT_STORE = """
import sys
import torch.distributed

def fail(*arguments, **options):
    raise RuntimeError("no port")

torch.distributed.TCPStore = fail
sys.argv = ["forking", "2", "program.py"]
from tests.support import forking
sys.exit(forking.main())
"""


@pytest.mark.slow
def test_a_launcher_that_is_stopped_takes_its_ranks_along(tmp_path):
    (tmp_path / "program.py").write_text(PROGRAM)
    command = [*ranks_command(2), str(tmp_path / "program.py")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as launcher:
        assert launcher.stdout is not None
        ranks = [int(launcher.stdout.readline()) for _ in range(2)]
        launcher.terminate()
        try:
            assert launcher.wait(30) == 128 + signal.SIGTERM
            assert launcher.stdout.read() == ""  # closed, by the ranks too
        finally:
            for rank in ranks:
                with suppress(ProcessLookupError):
                    os.kill(rank, signal.SIGKILL)


@pytest.mark.slow
def test_a_launcher_that_fails_leaves_no_rank_waiting():
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_STORE],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        start_new_session=True,
    )
    assert done.returncode == 1
    assert "no port" in done.stderr
