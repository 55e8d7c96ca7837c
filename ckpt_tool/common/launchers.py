"""What the environment says of the processes that were started together, and whether it is enough.

``torchrun`` says who is who, and where the first is: :data:`VARIABLES`. Other launchers say who is
who in variables of their own, and nothing of where: their processes cannot find each other. Each
would do the whole job, so that such a start is refused. One process is never to be: where nothing
says that there are several, there is one.

The names are those that Slurm's srun(1), Open MPI, MPICH's and Intel's Hydra (PMI_*), MVAPICH2,
IBM's jsrun, flux-core, HPE's PALS and the PMIx standard document for the processes they start.
"""

from __future__ import annotations

import os
import re

from ckpt_tool.common.errors import UsageError

#: Threads at most, so that a slip of the hand is said: each takes memory, and few gain by more.
MAX_JOBS = 512

#: What ``torchrun`` sets.
VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")

#: What starts several processes: its name, where it says the number of each, and where that of all.
#: Of the last, the first that is set: what is said of a step of a job is truer than of the job.
_LAUNCHERS = (
    ("srun", "SLURM_PROCID", ("SLURM_STEP_NUM_TASKS", "SLURM_NTASKS", "SLURM_NPROCS")),
    ("flux run", "FLUX_TASK_RANK", ("FLUX_JOB_SIZE",)),
    ("jsrun", "JSM_NAMESPACE_RANK", ("JSM_NAMESPACE_SIZE",)),
    ("mpirun", "OMPI_COMM_WORLD_RANK", ("OMPI_COMM_WORLD_SIZE",)),
    ("mpirun of MVAPICH", "MV2_COMM_WORLD_RANK", ("MV2_COMM_WORLD_SIZE",)),
    ("mpiexec", "PMI_RANK", ("PMI_SIZE",)),
)

#: Launchers that may not say how many they start. Who is first may be alone; the next is not.
_UNCOUNTED = (("mpiexec of PALS", "PALS_RANKID"), ("a launcher with PMIx", "PMIX_RANK"))

#: Steps of Slurm from this number on are no tasks: the shell of ``salloc``, a script of ``sbatch``.
_FIRST_SPECIAL_STEP = 0xFFFFFFF0

_LARGEST_PORT = 65_535

_HOW_TO_START = (
    "Start one process (srun --ntasks 1 ckpt ...), or several that share the work"
    " (srun --nodes 1 --ntasks 1 torchrun --nproc-per-node {size} -m ckpt_tool ...)."
    " Where each task is a job of its own, set WORLD_SIZE=1."
)


def find_place() -> tuple[int, int] | None:
    """Which process this is, and of how many, as ``torchrun`` says; None where it is alone.

    UsageError where the variables make no sense, and where there are others and nothing says how
    to find them.
    """
    if not os.environ.get("WORLD_SIZE"):
        _refuse_strangers()
        return None
    size = _whole("WORLD_SIZE", 1)
    if size == 1:
        return None
    absent = [name for name in VARIABLES if not os.environ.get(name)]
    if absent:
        are = "is" if len(absent) == 1 else "are"
        raise UsageError(
            f"WORLD_SIZE={size} in the environment, so this is one of {size} processes, and nothing"
            f" says how they find each other: {', '.join(absent)} {are} not set",
            hint=f"torchrun sets {', '.join(VARIABLES)}. {_HOW_TO_START.format(size=size)}",
        )
    _whole("MASTER_PORT", 1, _LARGEST_PORT)
    return _whole("RANK", 0, size - 1), size


def read_count(name: str) -> int | None:
    """The number that a variable holds; None where it is not set, or holds something else."""
    text = os.environ.get(name, "").strip()
    return int(text) if re.fullmatch("[0-9]{1,18}", text) else None


def _whole(name: str, least: int, most: int | None = None) -> int:
    found = read_count(name)
    if found is None or found < least or (most is not None and found > most):
        wanted = f"{least} or more" if most is None else f"{least} to {most}"
        raise UsageError(
            f"{name}={os.environ[name]!r} in the environment, expected a number: {wanted}",
            hint="Start with torchrun, which sets it, or set WORLD_SIZE=1 to run one process.",
        )
    return found


def _refuse_strangers() -> None:
    """UsageError where a launcher started several of us, who would all do the whole job at once."""
    counted = False
    for launcher, number, totals in _LAUNCHERS:
        rank = read_count(number)
        size = read_count(next((name for name in totals if name in os.environ), ""))
        if rank is None or size is None:
            continue
        counted = True
        if size > 1 and not (launcher == "srun" and rank == 0 and _is_no_task()):
            _refuse(f"task {rank} of {size} that {launcher} started", str(size))
    for launcher, number in () if counted else _UNCOUNTED:
        if (rank := read_count(number)) is not None and rank > 0:
            _refuse(f"task {rank} of several that {launcher} started ({number})", "N")


def _refuse(what: str, size: str) -> None:
    raise UsageError(
        f"{what}, and nothing says how they find each other: {', '.join(VARIABLES)} are not set",
        hint=_HOW_TO_START.format(size=size),
    )


def _is_no_task() -> bool:
    """Whether this is a script or shell of a job of Slurm, with the variables of the whole job."""
    steps = [read_count(name) for name in ("SLURM_STEP_ID", "SLURM_STEPID") if name in os.environ]
    if not steps:
        return "SLURM_JOB_ID" in os.environ
    return any(step is not None and step >= _FIRST_SPECIAL_STEP for step in steps)


def is_parallel() -> bool:
    """Whether this process is one of several that can find each other (:func:`find_place`)."""
    return _find_known_place() is not None


def is_first() -> bool:
    """Whether this process is the one that speaks."""
    place = _find_known_place()
    return place is None or place[0] == 0


def count_processes() -> int:
    """How many processes do the work together."""
    place = _find_known_place()
    return 1 if place is None else place[1]


def _find_known_place() -> tuple[int, int] | None:
    """What :func:`find_place` finds; where it refuses, each says so by itself, as if alone."""
    try:
        return find_place()
    except UsageError:
        return None
