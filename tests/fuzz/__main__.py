"""``python -m tests.fuzz``: crafted input for every parser, for as long as it is let.

Nothing may come of an input but success or an error of ours: no traceback, no hang, no gigabytes,
no import, process, connection, nor file outside of the folder. It exits with 1 where something
else did; each such input is left as a folder that ``--replay`` runs again, and that can be moved to
``tests/fuzz/corpus`` as it is.
"""

from __future__ import annotations

import argparse
import math
import os
import platform
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from itertools import count, islice
from pathlib import Path

from ckpt_tool.cli.consoles import make_printable
from tests.fuzz.case import Case, run_case
from tests.fuzz.children import BATCH, Batch, Finding, Setting, Tally, run_batches
from tests.fuzz.findings import Findings
from tests.fuzz.modules import hide_libraries, import_all
from tests.fuzz.seeds import Target, load_targets, write_seeds


def _arguments(given: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    add = parser.add_argument
    add("--minutes", type=float, default=10.0, help="how long (default: %(default)s)")
    add("--inputs", type=int, help="how many instead, of all targets together")
    add("--jobs", type=int, default=os.cpu_count() or 1, help="processes (default: %(default)s)")
    add("--seed", default="0", help="another one gives other inputs (default: %(default)s)")
    add("--only", nargs="+", metavar="TARGET", help="these targets alone")
    add("--out", type=Path, default=Path("fuzz-findings"), help="where findings go (%(default)s)")
    add("--seeds", type=Path, help="a folder for the seeds, kept and used again")
    add("--replay", type=Path, metavar="FOLDER", help="run one finding again, in this process")
    return parser.parse_args(given)


def main(given: Sequence[str] | None = None) -> int:
    options = _arguments(given)
    if options.replay:
        outcome = run_case(Case.load(options.replay), options.replay)
        print(outcome.kind, make_printable(outcome.said, "\n"), sep="\n")
        return int(outcome.is_defect)
    shared = Path("/dev/shm")
    place = shared if shared.is_dir() and os.access(shared, os.W_OK) else None
    work = Path(tempfile.mkdtemp(prefix="ckpt-fuzz-", dir=place))
    try:
        return _fuzz(options, work)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _fuzz(options: argparse.Namespace, work: Path) -> int:
    targets = _load(options, work)
    findings = Findings(options.out, options.seed)
    begun = time.monotonic()
    end = begun + options.minutes * 60

    shown = begun

    def tell(tally: Tally) -> None:
        nonlocal shown
        now = time.monotonic()
        if now - shown > (1 if sys.stderr.isatty() else 60):
            shown = now
            show_line(tally, now - begun, len(findings.kinds))

    def keep(finding: Finding) -> None:
        findings.keep(finding)

    stopped: list[int] = []
    for way in (signal.SIGINT, signal.SIGTERM):  # what was tried until then is shown all the same
        signal.signal(way, lambda number, _: stopped.append(number))
    batches = list_batches(targets, options.inputs)
    batches = _until(end if options.inputs is None else math.inf, stopped, batches)
    tally = run_batches(batches, Setting(options.seed, options.jobs, work), keep, tell)
    seconds = time.monotonic() - begun
    print(file=sys.stderr)
    print(make_table(tally, targets, seconds, options), findings.describe(), sep="\n")
    return int(bool(findings.kinds))


def _load(options: argparse.Namespace, work: Path) -> list[Target]:
    """The targets, warmed up: what runs import is imported before this process is forked."""
    folder = options.seeds or work / "seeds"
    if not folder.is_dir():
        write_seeds(folder)
    targets = load_targets(folder)
    import_all()
    hide_libraries()
    for target in targets:
        warm_up(target, work / "warm" / target.name)
    return [each for each in targets if not options.only or each.name in options.only]


def warm_up(target: Target, root: Path) -> None:
    """Run what a target is made of, unchanged: everything must be well with it."""
    target.write(root)
    for number in range(8):
        outcome = run_case(target.case, root, number)
        if outcome.kind != "ok":
            raise RuntimeError(f"{target.name}: {outcome.kind}: {outcome.said}")


def list_batches(targets: Sequence[Target], inputs: int | None = None) -> Iterator[Batch]:
    """A batch of each target in turn, of large ones less often; so many inputs, or endless."""
    size = BATCH if inputs is None else max(1, min(BATCH, inputs // len(targets)))
    endless = (
        Batch(target, number // target.every * size, (number // target.every + 1) * size)
        for number in count()
        for target in targets
        if number % target.every == 0
    )
    return endless if inputs is None else islice(endless, inputs // size)


def _until(end: float, stopped: list[int], batches: Iterator[Batch]) -> Iterator[Batch]:
    for batch in batches:
        if stopped or time.monotonic() > end:
            return
        yield batch


def show_line(tally: Tally, seconds: float, kinds: int) -> None:
    done = tally.inputs.total()
    print(
        f"\r{done:,} inputs, {done / max(seconds, 1e-9):,.0f}/s, {tally.defects.total()} defects of"
        f" {kinds} kinds, {seconds:.0f} s",
        end="",
        file=sys.stderr,
    )


def make_table(
    tally: Tally, targets: Sequence[Target], seconds: float, options: argparse.Namespace
) -> str:
    """Inputs by target, what came of them, and on what machine."""
    lines = [f"{'target':26} {'inputs':>10} {'ok':>9} {'refused':>9} {'defects':>8} {'slowest':>8}"]
    for name in (target.name for target in targets):
        inputs, refused, defects = (c[name] for c in (tally.inputs, tally.refused, tally.defects))
        seconds_of, number = tally.slowest.get(name, (0.0, 0))
        lines.append(
            f"{name:26} {inputs:10,} {inputs - refused - defects:9,} {refused:9,} {defects:8,}"
            f" {seconds_of:7.2f}s  #{number}"
        )
    total, refused, defects = (c.total() for c in (tally.inputs, tally.refused, tally.defects))
    lines.append(f"{'all':26} {total:10,} {total - refused - defects:9,} {refused:9,} {defects:8,}")
    python = f"Python {platform.python_version()}, {platform.machine()}, {os.cpu_count()} cores"
    rate = total / max(seconds, 1e-9)
    said = f"seed {options.seed}, {options.jobs} jobs, {seconds:.0f} s, {rate:.0f}/s"
    return "\n".join([*lines, f"{said}; {python}, {_name_processor()}"])


def _name_processor() -> str:
    with open("/proc/cpuinfo") as file:
        named = (line.partition(":")[2].strip() for line in file if line.startswith("model name"))
        return next(named, "processor unknown")


if __name__ == "__main__":
    sys.exit(main())
