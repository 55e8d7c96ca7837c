"""Have torch's own FSDP write tiny sharded checkpoints, laid out as verl leaves them.

    python -m tests.real.write_fsdp --out DIR [--case NAME ...]

Each `DIR/<case>/` then holds `actor/` (rank files, `huggingface/`, `fsdp_config.json`) and what it
must amount to: `raw_state_dict.safetensors` (names in memory), `reference/` (as `save_pretrained`
writes it for the Hub) and `logits.safetensors` (`input_ids`, `logits` in fp32). With RANK and
WORLD_SIZE in the environment (as torchrun sets them) the process is that one rank and writes the
cases of that world size; the rendezvous is a file in DIR.
"""

import argparse
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing import connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import TYPE_CHECKING

from .fsdp_cases import Case, select_cases

if TYPE_CHECKING:
    from torch import nn

Models = Mapping[str, "nn.Module"]

_MAX_PROCESSES = 4
_PROJECT = Path(__file__).resolve().parents[2]


def write_cases(out: Path, names: Sequence[str] | None = None) -> dict[str, Path]:
    """Write the named cases (default: all) below `out`; case name -> its folder.

    Raises RuntimeError with the ranks' stderr when one of them fails.
    """
    cases = select_cases(names)
    if not cases:
        return {}
    environment = {name: value for name, value in os.environ.items() if name != "RANK"}
    command = [sys.executable, "-m", "tests.real.write_fsdp", "--out", str(out.resolve())]
    done = subprocess.run(
        [*command, *(f"--case={case.name}" for case in cases)],
        cwd=_PROJECT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise RuntimeError(f"writing FSDP checkpoints failed:\n{done.stderr}")
    return {case.name: out / case.name for case in cases}


@dataclass(frozen=True)
class _Group:
    """Cases of one world size which the same rank processes write one after another."""

    world_size: int
    cases: list[Case]


def _groups(cases: Sequence[Case]) -> Iterator[_Group]:
    """Cut the cases by world size, largest first, and into as many groups as may run at once."""
    for world_size in sorted({case.world_size for case in cases}, reverse=True):
        same = [case for case in cases if case.world_size == world_size]
        lanes = min(len(same), _MAX_PROCESSES // world_size)
        yield from (_Group(world_size, same[lane::lanes]) for lane in range(lanes))


def _waves(groups: Iterator[_Group]) -> list[list[_Group]]:
    """Put groups together, first fit, as long as their processes stay within the limit."""
    waves: list[list[_Group]] = []
    for group in groups:
        for wave in waves:
            if sum(other.world_size for other in wave) + group.world_size <= _MAX_PROCESSES:
                wave.append(group)
                break
        else:
            waves.append([group])
    return waves


def _launch(out: Path, cases: Sequence[Case]) -> None:
    """Write `cases` with one forked process per rank.

    torch and transformers take seconds to import and a case takes tenths: forking lets all ranks
    of all world sizes share one import, and the built models too.
    """
    from .fsdp_reference import build_model, configure_process

    configure_process()
    models = {case.name: build_model(case) for case in cases}
    with tempfile.TemporaryDirectory() as scratch:
        for number, wave in enumerate(_waves(_groups(cases))):
            start = time.perf_counter()
            folder = Path(scratch, str(number))
            folder.mkdir()
            _run_wave(wave, models, out, folder)
            ranks = " + ".join(str(group.world_size) for group in wave)
            count = sum(len(group.cases) for group in wave)
            print(f"{ranks} ranks: {count} cases in {time.perf_counter() - start:.2f} s")


def _run_wave(wave: Sequence[_Group], models: Models, out: Path, scratch: Path) -> None:
    """Run the ranks of all groups of a wave side by side; exit with their stderr if one fails."""
    from .fsdp_reference import write_references

    sys.stdout.flush()  # or each forked rank would print again what is still buffered
    ranks = [
        _fork_rank(group, models, rank, out, scratch / f"group{number}")
        for number, group in enumerate(wave)
        for rank in range(group.world_size)
    ]
    try:
        for case in (case for group in wave for case in group.cases):
            write_references(out, case, models[case.name])
        failed = _first_failure(ranks)
    finally:
        for process in ranks:
            process.kill()
            process.join()
    if failed:
        logs = [f"--- {log.stem}\n{log.read_text()}" for log in sorted(scratch.glob("*.log"))]
        sys.exit("\n".join([f"{failed.name} exited with {failed.exitcode}", *logs]))


def _fork_rank(group: _Group, models: Models, rank: int, out: Path, prefix: Path) -> BaseProcess:
    """Start a rank whose stderr, torch's C++ part included, goes to a file of its own."""
    from .fsdp_rank import run_rank

    name = f"{prefix.name}_rank{rank}"

    def run() -> None:
        with prefix.with_name(f"{name}.log").open("w") as stream:
            os.dup2(stream.fileno(), sys.stderr.fileno())
        pairs = [(case, models[case.name]) for case in group.cases]
        run_rank(out, pairs, group.world_size, rank, prefix.with_suffix(".store"))

    process = multiprocessing.get_context("fork").Process(target=run, name=name, daemon=True)
    process.start()
    return process


def _first_failure(processes: Sequence[BaseProcess]) -> BaseProcess | None:
    """Wait for the processes, but not after one has failed: the others would wait for it."""
    running = {process.sentinel: process for process in processes}
    while running:
        for sentinel in connection.wait(list(running)):
            process = running.pop(sentinel)
            process.join()  # a process has no exit code yet just because its sentinel is ready
            if process.exitcode:
                return process
    return None


def main() -> None:
    """Write the cases, or be one of their ranks where the environment says so."""
    parser = argparse.ArgumentParser(description="Have FSDP write tiny sharded checkpoints.")
    parser.add_argument("--out", type=Path, required=True, help="where the case folders go")
    parser.add_argument("--case", action="append", help="a case to write (default: all)")
    arguments = parser.parse_args()
    cases = select_cases(arguments.case)
    # numpy's BLAS starts threads when imported, and forking a process with threads is unsafe.
    os.environ["OPENBLAS_NUM_THREADS"] = "1"
    if "RANK" in os.environ:
        rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        _be_rank(arguments.out, cases, rank, world_size)
    else:
        _launch(arguments.out, cases)


def _be_rank(out: Path, cases: Sequence[Case], rank: int, world_size: int) -> None:
    """Be one rank of those of `cases` that have this world size."""
    from .fsdp_rank import run_rank
    from .fsdp_reference import build_model, configure_process, write_references

    configure_process()
    models = [(case, build_model(case)) for case in cases if case.world_size == world_size]
    if rank == 0:
        for case, model in models:
            write_references(out, case, model)
    run_rank(out, models, world_size, rank, out / f".rendezvous_{world_size}")


if __name__ == "__main__":
    main()
