"""Fixtures for all tests: real checkpoints, written once per run."""

import fcntl
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests.real.fsdp_cases import CASES
from tests.real.write_fsdp import write_cases

settings.register_profile(
    "ckpt", deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)
settings.load_profile("ckpt")


@pytest.fixture(scope="session")
def checkpoints(
    tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> dict[str, Path]:
    """Every case of `tests.real`, by name. Read only: tests that damage one copy it first."""
    base = tmp_path_factory.getbasetemp()
    if hasattr(request.config, "workerinput"):  # pytest-xdist: the workers share one parent
        base = base.parent
    out = base / "checkpoints"
    with (base / "checkpoints.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # one worker writes, the others wait for it here
        if not (base / "checkpoints.done").exists():
            write_cases(out)
            (base / "checkpoints.done").touch()
    return {name: out / name for name in CASES}
