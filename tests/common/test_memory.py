"""Memory that is left: of the machine, or of a group of processes that has less."""

from pathlib import Path

import pytest

from ckpt_tool.common import memory
from ckpt_tool.common.memory import find_available_memory

MIB = 1 << 20


@pytest.fixture
def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine of which 1000 MiB are left."""
    (tmp_path / "meminfo").write_text(f"MemFree: 10 kB\nMemAvailable:   {1000 * 1024} kB\nodd\n")
    (tmp_path / "memory").mkdir()
    monkeypatch.setattr(memory, "_MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(memory, "_ROOT", tmp_path)
    return tmp_path


def write(folder: Path, **numbers: object) -> None:
    for name, number in numbers.items():
        (folder / name.replace("__", ".")).write_text(f"{number}\n")


def test_the_machine_says_what_is_left(system: Path) -> None:
    assert find_available_memory() == 1000 * MIB
    (system / "meminfo").unlink()
    assert find_available_memory() == 0


def test_a_group_may_have_less(system: Path) -> None:
    write(system, memory__max=500 * MIB, memory__current=450 * MIB)
    assert find_available_memory() == 50 * MIB
    write(system, memory__stat=f"anon 3\ninactive_file {300 * MIB}")
    assert find_available_memory() == 350 * MIB, "files can be read again"
    write(system, memory__max="max")
    assert find_available_memory() == 1000 * MIB


def test_groups_of_the_first_version(system: Path) -> None:
    folder = system / "memory"
    write(folder, memory__limit_in_bytes=800 * MIB, memory__usage_in_bytes=900 * MIB)
    assert find_available_memory() == 0
    write(folder, memory__stat=f"total_inactive_file {150 * MIB}")
    assert find_available_memory() == 50 * MIB


def test_there_is_some_here() -> None:
    assert find_available_memory() > 10 * MIB
