"""How much memory there is for more."""

from __future__ import annotations

from pathlib import Path

_MEMINFO = Path("/proc/meminfo")

#: Of the second version of control groups, and of the first: the limit, what is used, what of that
#: is files that can be read again, and by what name.
_GROUPS = (
    ("memory.max", "memory.current", "inactive_file"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "total_inactive_file"),
)
_ROOT = Path("/sys/fs/cgroup")


def find_available_memory() -> int:
    """Bytes that the machine, or the group of processes that this one is in, has left."""
    there = _read_fields(_MEMINFO).get("MemAvailable:", 0) * 1024
    for limit, used, files in _GROUPS:
        most, taken = _read_number(_ROOT / limit), _read_number(_ROOT / used)
        if most is not None and taken is not None:
            again = _read_fields((_ROOT / limit).with_name("memory.stat")).get(files, 0)
            there = min(there, max(0, most - taken + again))
    return there


def _read_fields(path: Path) -> dict[str, int]:
    """A name and a number in each line; nothing where there is no such file."""
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return {}
    pairs = (line.split()[:2] for line in lines)
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdecimal()}


def _read_number(path: Path) -> int | None:
    """A number in a file; None where there is none ("max": no limit)."""
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None
