"""Fixtures for all tests: real checkpoints, written once per run."""

import fcntl
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from ckpt_tool.verify import VerifyResult
from tests.real.fsdp_cases import CASES
from tests.real.write_fsdp import write_cases
from tests.verifying import Plant, Tensors, judge

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


@pytest.fixture
def plant(checkpoints: dict[str, Path], tmp_path: Path) -> Plant:
    """`judge` of a case, that of `fsdp2_w2` where none is named."""

    def run(change: Callable[[Tensors], object], case: str = "fsdp2_w2") -> VerifyResult:
        return judge(checkpoints[case], tmp_path / "planted", change)

    return run
