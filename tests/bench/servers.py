"""What the benches of servers print, and hold the tool against."""

from __future__ import annotations

from tests.bench.measure import Runs

_BUDGET = 0.7  # of the rate of what does nothing else
_MOST = 256 << 20  # bytes of memory

_ROW = "{:<24} {:>8} {:>8} {:>8} {:>10} {:>10}"

LOOKING = "ckpt inspect"

#: Of rclone, which else lists its folders anew for each request, and reads megabytes that nobody
#: asked for behind each range.
QUICK = ("--dir-cache-time", "1h", "--buffer-size", "0")


def limit(megabytes: int) -> list[str]:
    """How rclone is told to send or take so many megabytes a second; 0: as many as it can."""
    return ["--bwlimit", f"{megabytes * 1_000_000}B"] if megabytes else []


def show(found: dict[str, Runs], size: int, ours: str, theirs: str) -> None:
    """Print the runs of each command, and how the one called ``ours`` does beside ``theirs``.

    ``size``: the bytes that each moves but :data:`LOOKING`.
    """
    print(_ROW.format("", "seconds", "GB/s", "user+sys", "MiB", "resident"))
    for label, runs in found.items():
        cpu = f"{runs.user + runs.system:.2f}"
        memory = f"{runs.anonymous >> 20}", f"{runs.resident >> 20}"
        rate = "" if label == LOOKING else f"{size / runs.seconds / 1e9:.2f}"
        print(_ROW.format(label, f"{runs.seconds:.2f}", rate, cpu, *memory))
    tool, plain = found[ours], found[theirs]
    print(f"\n{plain.seconds / tool.seconds:.2f} x: {theirs}; budget: {_BUDGET} or more")
    print(f"{tool.anonymous >> 20} MiB of memory; budget: {_MOST >> 20} or less")
