"""Fixtures for all tests: real checkpoints, written once per run.

What takes seconds to import is imported by the fixture that needs it: pytest reads this file first,
in the process that only hands out the tests too.
"""

from __future__ import annotations

import fcntl
import gc
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings

if TYPE_CHECKING:
    from ckpt_tool.operations.verify import VerifyResult
    from tests.support.objects.buckets import Bucket, Store
    from tests.support.verifying import Plant, Tensors

settings.register_profile(
    "ckpt", deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)
settings.register_profile("fast", settings.get_profile("ckpt"), max_examples=10)
settings.load_profile("ckpt")

#: What real trainers save, for which they run first.
_TRAINED = {"checkpoints", "megatron_cases"}


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """Collect no garbage while tests are collected, nor look at any of that again.

    What torch and transformers make on import stays to the end; to look for garbage in it took a
    third of the time until the first test, and as long again on exit.
    """
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what needs a real trainer, so that `make test-fast` leaves it out."""
    for item in items:
        if _TRAINED & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.real)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say how many classes of transformers hold, where any were looked at."""
    from tests.support.sweep_summary import summarise

    reports = [
        each
        for outcome in ("passed", "failed", "skipped")
        for each in terminalreporter.stats.get(outcome, ())
        if hasattr(each, "user_properties")
    ]
    for number, line in enumerate(summarise(reports)):
        if not number:
            terminalreporter.section("every class of transformers")
        terminalreporter.line(line)


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A user's cache that is empty: tests neither read the real one nor leave anything there."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))
        yield


@pytest.fixture(scope="session")
def checkpoints(
    tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> dict[str, Path]:
    """Every case of `tests.real`, by name. Read only: tests that damage one copy it first.

    A test that asks for one that the installed libraries cannot write is skipped.
    """
    from tests.real.fsdp_cases import ALL_CASES
    from tests.real.write_fsdp import write_cases
    from tests.support import versions

    names = [name for name, case in ALL_CASES.items() if not versions.refusal(case)]
    out = once(tmp_path_factory, request, "checkpoints", lambda out: write_cases(out, names))
    return versions.Written({name: out / name for name in names})


@pytest.fixture(scope="session")
def megatron_cases(
    tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Path:
    """What `tests.support.megatron` builds. Read only."""
    from tests.support import megatron, versions

    if versions.MEGATRON_CORE < (0, 16):
        pytest.skip("older ranks do not load every layout; what they saved is in tests/fixtures")
    return once(tmp_path_factory, request, "megatron", megatron.build)


def once(
    factory: pytest.TempPathFactory,
    request: pytest.FixtureRequest,
    name: str,
    make: Callable[[Path], object],
) -> Path:
    """The folder `name` that `make` fills, by the first of the workers that needs it."""
    base = factory.getbasetemp()
    if hasattr(request.config, "workerinput"):  # pytest-xdist: the workers share one parent
        base = base.parent
    with (base / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # one worker writes, the others wait for it here
        if not (base / f"{name}.done").exists():
            make(base / name)
            (base / f"{name}.done").touch()
    return base / name


@pytest.fixture(scope="session")
def object_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """A real object store of this run of tests."""
    from tests.support.objects import buckets

    with buckets.serving(tmp_path_factory.mktemp("objects")) as store:
        yield store


@pytest.fixture
def bucket(object_store: Store, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    """An empty bucket, which the environment says how to reach."""
    from tests.support.objects import buckets

    buckets.set_environment(monkeypatch, object_store.proxy.url)
    yield object_store.make_bucket()
    object_store.proxy.faults.planned.clear()


@pytest.fixture(scope="session")
def object_sink(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """A real object store of this run of tests, to write to."""
    from tests.support.objects import buckets

    with buckets.taking(tmp_path_factory.mktemp("objects")) as store:
        yield store


@pytest.fixture
def sink(object_sink: Store, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    """An empty bucket to write to, which the environment says how to reach."""
    from tests.support.objects import buckets

    buckets.set_environment(monkeypatch, object_sink.proxy.url)
    yield object_sink.make_bucket()
    object_sink.proxy.faults.planned.clear()


@pytest.fixture(autouse=True)
def nothing_elsewhere() -> Iterator[None]:
    """What one test has read of a store is not there for the next one, nor that there is any."""
    yield
    shadow = sys.modules.get("ckpt_tool.common.remote.shadow")
    if shadow is not None:
        shadow.clear()


@pytest.fixture
def plant(checkpoints: dict[str, Path], tmp_path: Path) -> Plant:
    """`judge` of a case, that of `fsdp2_w2` where none is named."""
    from tests.support.verifying import judge

    def run(change: Callable[[Tensors], object], case: str = "fsdp2_w2") -> VerifyResult:
        return judge(checkpoints[case], tmp_path / "planted", change)

    return run
