"""Slurm on one machine, as far as a batch script needs it: `srun`, `scontrol` lie beside this."""

import os
import re
import subprocess
import sys
from pathlib import Path

from tests.common.test_parallel import PROJECT

_README = PROJECT / "ckpt_tool" / "operations" / "README.md"
_NEXT_JOB = iter(range(os.getpid(), 10**9))


def read_script() -> str:
    """The batch script that the README has."""
    (script,) = re.findall(
        r"^```bash\n(#!/bin/bash\n#SBATCH.*?)^```", _README.read_text(), re.M | re.S
    )
    return script


def sbatch(
    folder: Path, tasks: int, *words: object, program: str = "-m ckpt_tool"
) -> subprocess.CompletedProcess[str]:
    """Run the README's batch script with ``words`` in so many tasks; ``program``: what ckpt is."""
    folder.mkdir(exist_ok=True)
    (folder / "ckpt").write_text(f'#!/bin/bash\nexec {sys.executable} {program} "$@"\n')
    (folder / "ckpt").chmod(0o755)
    (folder / "merge.sh").write_text(read_script())
    job = {
        "SLURM_JOB_ID": str(next(_NEXT_JOB)),
        "SLURM_JOB_NODELIST": "localhost,node2,node3",
        "SLURM_NTASKS": str(tasks),
        "PATH": f"{folder}:{Path(__file__).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(PROJECT),
        "OMP_NUM_THREADS": "1",
    }
    return subprocess.run(
        ["bash", str(folder / "merge.sh"), *map(str, words)],
        env=os.environ | job, capture_output=True, text=True, check=False, timeout=180,
    )  # fmt: skip
