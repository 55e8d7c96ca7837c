"""``python -m tests.bench``: how fast and how small the tool is on this machine.

The result is numbers, not a test: a slow run exits with 0. It exits with 1 where something
fails, also where the tool's result is not that of the plain way.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

from tests.bench.computed_scenarios import bench_fp8, bench_lora
from tests.bench.family_scenarios import FAMILY_VARIANTS, bench_family
from tests.bench.mcore_scenarios import MCORE_VARIANTS, bench_mcore
from tests.bench.measure import CommandError
from tests.bench.report import as_json, facts, show
from tests.bench.results import Result, Say
from tests.bench.scenarios import VARIANTS, bench

_DEFAULT_FOLDER = "bench"

#: Each takes the size in bytes, the number of rounds, a folder and where to tell of progress.
_SCENARIOS: dict[str, Callable[[int, int, Path, Say], Result]] = {
    **{variant.name: partial(bench, variant) for variant in VARIANTS},
    **{variant.name: partial(bench_mcore, variant) for variant in MCORE_VARIANTS},
    **{variant.name: partial(bench_family, variant) for variant in FAMILY_VARIANTS},
    "lora": bench_lora,
    "fp8": bench_fp8,
}


def _arguments(given: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    add = parser.add_argument
    add("--gb", type=float, default=4.5, help="size of each checkpoint (default: %(default)s)")
    add(
        "--dir",
        type=Path,
        default=Path(_DEFAULT_FOLDER),
        help="where a temporary folder is made, with room for 3.5 times the size"
        " (default: ./%(default)s)",
    )
    add("--repeat", type=int, default=5, help="timed rounds (default: %(default)s)")
    add("--json", type=Path, metavar="FILE", help="write every run to FILE")
    names = list(_SCENARIOS)
    add("--only", nargs="+", choices=names, default=names, metavar="NAME", help=", ".join(names))
    options = parser.parse_args(given)
    if options.gb <= 0 or options.repeat < 1:
        parser.error("--gb must be above 0 and --repeat 1 or more")
    return options


def main(given: Sequence[str] | None = None) -> int:
    options = _arguments(given)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the big files go
    options.dir.mkdir(parents=True, exist_ok=True)
    try:
        return _run(options)
    except (CommandError, OSError) as error:
        print(error, file=sys.stderr)
    except subprocess.CalledProcessError as error:
        print(
            f"{error.cmd[:3]}: exit status {error.returncode}\n{error.stderr or ''}",
            file=sys.stderr,
        )
    finally:
        if options.dir == Path(_DEFAULT_FOLDER):
            with suppress(OSError):  # another run is using it
                options.dir.rmdir()
    return 1


def _run(options: argparse.Namespace) -> int:
    size = int(options.gb * 1e9)
    free = shutil.disk_usage(options.dir).free
    if free < 3.5 * size:
        print(
            f"{options.dir}: {free / 1e9:.1f} GB free, --gb {options.gb} needs more",
            file=sys.stderr,
        )
        return 1
    machine = facts(options.dir)
    results: list[Result] = []
    try:
        with tempfile.TemporaryDirectory(prefix="ckpt-bench-", dir=options.dir) as folder:
            # Of its own: what the first merge of a config finds out is there for the others.
            os.environ["XDG_CACHE_HOME"] = str(Path(folder) / "cache")
            for name, scenario in _SCENARIOS.items():
                if name in options.only:
                    results.append(scenario(size, options.repeat, Path(folder), _say))
    finally:  # it takes an hour: what was measured before an interruption is shown
        if results:
            show(machine, results)
            if options.json:
                options.json.write_text(json.dumps(as_json(machine, results), indent=2) + "\n")
    return 0


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
