"""What launchers say of several processes: those that cannot find each other are refused."""

import os

import pytest

from ckpt_tool.common import launchers, parallel
from ckpt_tool.common.errors import UsageError

PREFIXES = ("SLURM_", "OMPI_", "PMI_", "PMIX_", "PALS_", "FLUX_", "JSM_", "MV2_")

TORCHRUN = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
STEP = {"SLURM_JOB_ID": "5", "SLURM_STEP_ID": "0"}
SHELL = {"SLURM_JOB_ID": "5", "SLURM_STEP_ID": "4294967290", "SLURM_PROCID": "0"}

LAUNCHED = {
    "srun": {"SLURM_NTASKS": "8", "SLURM_PROCID": "3"},
    "srun, the first": {"SLURM_NTASKS": "8", "SLURM_PROCID": "0"},
    "srun in a job": {**STEP, "SLURM_NTASKS": "8", "SLURM_PROCID": "0"},
    "srun that counts the step alone": {**STEP, "SLURM_STEP_NUM_TASKS": "8", "SLURM_PROCID": "0"},
    "srun by its older name": {**STEP, "SLURM_NPROCS": "8", "SLURM_PROCID": "3"},
    "srun of more tasks than the job": {**STEP, "SLURM_STEP_NUM_TASKS": "8", "SLURM_NTASKS": "1",
                                        "SLURM_PROCID": "0"},
    "RANK and WORLD_SIZE alone": {"RANK": "3", "WORLD_SIZE": "8"},
    "WORLD_SIZE alone": {"WORLD_SIZE": "8"},
    "no MASTER_PORT": {"RANK": "1", "WORLD_SIZE": "8", "MASTER_ADDR": "host"},
    "with half of the variables": {"SLURM_NTASKS": "8", "SLURM_PROCID": "3", "WORLD_SIZE": "8",
                                   "RANK": "3"},
    "mpirun": {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "0"},
    "mpiexec": {"PMI_SIZE": "2", "PMI_RANK": "1"},
    "flux": {"FLUX_TASK_RANK": "0", "FLUX_JOB_SIZE": "4"},
    "jsrun": {"JSM_NAMESPACE_RANK": "0", "JSM_NAMESPACE_SIZE": "4"},
    "mvapich": {"MV2_COMM_WORLD_RANK": "0", "MV2_COMM_WORLD_SIZE": "4"},
    "pmix, not the first": {"PMIX_RANK": "1"},
    "pals, not the first": {"PALS_RANKID": "1"},
}  # fmt: skip
ALONE = {
    "nothing": {},
    "srun of one": {"SLURM_NTASKS": "1", "SLURM_PROCID": "0", "SLURM_STEP_ID": "0"},
    "srun of one in a job of many": {**STEP, "SLURM_STEP_NUM_TASKS": "1", "SLURM_NTASKS": "8",
                                     "SLURM_NPROCS": "8", "SLURM_PROCID": "0"},
    "a script of sbatch": {"SLURM_JOB_ID": "1", "SLURM_NTASKS": "8", "SLURM_PROCID": "0"},
    "a script of sbatch, older": {"SLURM_JOB_ID": "1", "SLURM_NPROCS": "8", "SLURM_PROCID": "0"},
    "a shell of salloc": {"SLURM_JOB_ID": "1", "SLURM_NTASKS": "8"},
    "a shell of salloc that is a step": {**SHELL, "SLURM_NTASKS": "8", "SLURM_STEP_NUM_TASKS": "1"},
    "a shell of salloc with the job's numbers": {**SHELL, "SLURM_NTASKS": "8"},
    "each by itself": {"SLURM_NTASKS": "8", "SLURM_PROCID": "3", "WORLD_SIZE": "1"},
    "one of torchrun": {**TORCHRUN, "RANK": "0", "WORLD_SIZE": "1"},
    "nonsense": {"SLURM_NTASKS": "many", "SLURM_PROCID": "3"},
    "no digits of ours": {"SLURM_NTASKS": "\u00b2", "SLURM_PROCID": "\u00b2"},
    "a rank alone": {"RANK": "3"},
    "flux of one": {"FLUX_TASK_RANK": "0", "FLUX_JOB_SIZE": "1"},
    "pmix, perhaps the only one": {"PMIX_RANK": "0"},
    "pals, perhaps the only one": {"PALS_RANKID": "0"},
    "one that mpirun started in a task of another": {"OMPI_COMM_WORLD_RANK": "0",
                                                     "OMPI_COMM_WORLD_SIZE": "1", "PMIX_RANK": "3"},
}  # fmt: skip
WRONG = {
    "a word for a rank": ("RANK", "first"),
    "a rank in digits that int does not read": ("RANK", "\u00b2"),
    "a rank past the last": ("RANK", "2"),
    "a rank below the first": ("RANK", "-1"),
    "a size that is a word": ("WORLD_SIZE", "two"),
    "a size of none": ("WORLD_SIZE", "0"),
    "a size of 5,000 digits": ("WORLD_SIZE", "9" * 5000),
    "a port past the last": ("MASTER_PORT", "99999"),
    "no port": ("MASTER_PORT", "0"),
    "a port that is a word": ("MASTER_PORT", "abc"),
}


def set_launcher(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]) -> None:
    for name in list(os.environ):
        if name.startswith(PREFIXES) or name in launchers.VARIABLES:
            monkeypatch.delenv(name)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize("variables", LAUNCHED.values(), ids=LAUNCHED)
def test_several_that_cannot_find_each_other_do_nothing(monkeypatch, variables) -> None:
    set_launcher(monkeypatch, variables)
    with pytest.raises(UsageError, match="nothing says how they find each other") as error:
        parallel.join_world().__enter__()
    assert "torchrun --nproc-per-node" in error.value.hint
    assert "WORLD_SIZE=1" in error.value.hint
    assert launchers.is_first()  # each says it


@pytest.mark.parametrize("variables", ALONE.values(), ids=ALONE)
def test_one_process_is_left_alone_whatever_launchers_say(monkeypatch, variables) -> None:
    set_launcher(monkeypatch, variables)
    with parallel.join_world() as found:
        assert found is parallel.ALONE


@pytest.mark.parametrize(("name", "value"), WRONG.values(), ids=WRONG)
def test_variables_that_make_no_sense_are_named_at_once(monkeypatch, name, value) -> None:
    set_launcher(monkeypatch, {**TORCHRUN, name: value})
    with pytest.raises(UsageError, match=f"^{name}=.*, expected a number: [01] "):
        parallel.join_world().__enter__()
    assert launchers.is_first()  # so that it is said


def test_what_torchrun_says_is_believed(monkeypatch) -> None:
    set_launcher(monkeypatch, {**TORCHRUN, "LOCAL_WORLD_SIZE": "2", "SLURM_NTASKS": "8"})
    assert launchers.find_place() == (1, 2)
    assert launchers.is_parallel()
    assert not launchers.is_first()
    assert parallel.count_local() == 2
