"""``python -m tests.bench.hygiene``: what a merge leaves of other programs' cached files.

A process group that may have so much memory, page cache included, caches a file that has nothing to
do with the merge; then ``ckpt merge`` runs in it, of a checkpoint that is several times as large,
and so does ``cp``, to compare. How much of that file is in memory then is what mincore(2) says. It
needs a memory controller of cgroups, v1 or v2, in which a group can be made.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tests.bench.generate import generate, spec_of_size
from tests.support.resident import drop, measure_resident

_ROOT = Path("/sys/fs/cgroup")
_ROW = "{:<28} {:>16} {:>16} {:>16}"


class Group:
    """A group of processes with ``limit`` bytes of memory; OSError where none can be made."""

    def __init__(self, limit: int) -> None:
        old = (_ROOT / "memory").is_dir()
        self.path = _ROOT / ("memory" if old else "") / "ckpt-hygiene"
        self.path.mkdir()
        name = "memory.limit_in_bytes" if old else "memory.max"
        (self.path / name).write_text(str(limit))

    def run(self, command: Sequence[str]) -> None:
        """Run a command in it; subprocess.CalledProcessError where that fails."""
        join = f'echo $$ > {self.path}/cgroup.procs; exec "$@"'
        subprocess.run(["sh", "-c", join, "sh", *command], check=True, stdout=subprocess.DEVNULL)

    def remove(self) -> None:
        self.path.rmdir()


def measure(folder: Path, size: int, limit: int) -> None:
    """The table: each command, and what is in memory of the other file, of sources and outputs."""
    source, other, out = folder / "in", folder / "other", folder / "out"
    files = generate(source, spec_of_size(size, "bfloat16", 0))
    other.write_bytes(bytes(limit // 4))
    merge = [sys.executable, "-m", "ckpt_tool", "merge", "fsdp", str(source), str(out)]
    copy = ["sh", "-c", 'mkdir "$0" && cp "$@" "$0" && sync "$0"/*', str(out), *map(str, files)]
    commands = {"ckpt merge": [*merge, "--no-check-load"], "cp + sync": copy}
    print(f"{size / 1e9:.1f} GB in a group that may have {limit / 1e9:.1f} GB")
    print(_ROW.format("in memory afterwards, of", "the other file", "sources", "outputs"))
    for title, command in commands.items():
        group = Group(limit)
        try:
            for path in (*files, other):
                drop(path)
            group.run(["cat", str(other)])
            before = measure_resident(other)
            group.run(command)
            written = [path for path in out.iterdir() if path.stat().st_size > limit // 100]
            shares = [_mean([other]), _mean(files), _mean(written)]
            said = f"{title} (before: {before:.0%})"
            print(_ROW.format(said, *(f"{share:.0%}" for share in shares)), flush=True)
        finally:
            group.remove()
            shutil.rmtree(out, ignore_errors=True)


def _mean(paths: Sequence[Path]) -> float:
    """Which part of all their bytes is in memory."""
    sizes = [path.stat().st_size for path in paths]
    shares = map(measure_resident, paths)
    return sum(share * size for share, size in zip(shares, sizes, strict=True)) / sum(sizes)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.hygiene", description=__doc__)
    parser.add_argument("--gb", type=float, default=4.0, help="size of the checkpoint")
    parser.add_argument("--limit", type=float, default=1.0, help="GB of memory of the group")
    parser.add_argument("--folder", type=Path, help="where all is written")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(dir=options.folder))
    try:
        measure(folder, int(options.gb * 1e9), int(options.limit * 1e9))
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
