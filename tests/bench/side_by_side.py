"""``python -m tests.bench.side_by_side``: the tool beside others, on the same checkpoints.

One model is saved by four ranks as three kinds of checkpoint (:mod:`tests.bench.write_sharded`);
each is merged by the tool and by the programs that read this kind (:mod:`tests.bench.peers`), in
interleaved rounds. Whether a result is right says ``ckpt verify``, which holds every bit of it
against the model. None of the others waits for the disk, as the tool does unless told
``--no-fsync``. What is not installed, or fails, is named in the table with the reason.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from tests.bench.generate_hf import dense_model, write_model
from tests.bench.measure import Command, CommandError, Runs, measure, run
from tests.bench.peers import Peer, list_peers
from tests.bench.report import WIDTH, facts
from tests.bench.results import NO_FSYNC, TOOL
from tests.bench.write_sharded import DCP, FSDP, SHARDS, write_sharded

_KINDS = {
    FSDP: "rank files of FSDP, as verl saves them",
    DCP: "torch.distributed.checkpoint, as accelerate saves it",
    SHARDS: "safetensors by rank, as transformers saves them",
}
_TOOLS = ("ckpt merge", f"ckpt merge {NO_FSYNC}")
_RIGHT = "right"


@dataclass
class Row:
    """A program on a kind of checkpoint: what came of it, and its runs where it was timed."""

    peer: Peer
    command: Command
    found: str
    runs: Runs = field(default_factory=Runs)


def _arguments(given: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.side_by_side", description=__doc__)
    add = parser.add_argument
    add("--gb", type=float, default=2.0, help="size of the model (default: %(default)s)")
    add("--dir", type=Path, default=Path(), help="where a temporary folder is made, with room for"
        " six times the size (default: here)")  # fmt: skip
    add("--repeat", type=int, default=3, help="timed rounds (default: %(default)s)")
    add("--dim", type=int, choices=(0, 1), default=0, help="along which matrices are cut")
    add("--verl", type=Path, default=Path(".venv-verl"), metavar="FOLDER",
        help="verl's environment, made where it is not there (default: ./%(default)s)")  # fmt: skip
    return parser.parse_args(given)


def main(given: Sequence[str] | None = None) -> int:
    options = _arguments(given)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the big files go
    peers, machine, rows = list_peers(options.verl), facts(options.dir), list[Row]()
    with tempfile.TemporaryDirectory(prefix="ckpt-bench-", dir=options.dir) as name:
        folder = Path(name).absolute()
        os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
        _say("writing the checkpoints")
        files = write_model(folder / "model", dense_model(int(options.gb * 1e9)))
        write_sharded(folder / "model", folder / "sharded", options.dim)
        size = sum(path.stat().st_size for path in files)
        try:
            for kind in _KINDS:
                rows += _bench(kind, peers, folder, size, options.repeat)
        finally:  # it takes long: what was measured before an interruption is shown
            _show(rows, size, options.dim, machine)
    return 0


def _bench(kind: str, peers: Sequence[Peer], folder: Path, size: int, repeat: int) -> Iterator[Row]:
    """All programs on one kind of checkpoint: each once for its result, the others' time then."""
    source, out = folder / "sharded" / kind, folder / "out"
    rows = []
    for peer in [*_tools(kind, folder / "model"), *(peer for peer in peers if peer.kind == kind)]:
        _say(f"{kind}: {peer.label}")
        command = Command(peer.label, peer.command(source, out), out, size)
        found = f"not installed: {peer.missing}" if peer.missing else _judge(command, folder)
        rows.append(Row(peer, command, found))
    timed = [row.command for row in rows if row.found == _RIGHT or row.found.startswith("WRONG")]
    inputs = sorted(path for path in source.rglob("*") if path.is_file())
    runs = measure(timed, inputs, repeat, lambda text: _say(f"{kind}: {text}"))
    for row in rows:
        yield Row(row.peer, row.command, row.found, runs.get(row.peer.label, Runs()))


def _tools(kind: str, model: Path) -> Iterator[Peer]:
    config = () if kind == FSDP else ("--config", str(model))
    for label in _TOOLS:
        flags = (NO_FSYNC,) if label.endswith(NO_FSYNC) else ()
        yield Peer(label, kind, (*TOOL, "merge", *config, "--dtype", "keep", *flags))


def _judge(command: Command, folder: Path) -> str:
    """What the program makes, held against the model."""
    out = folder / "out"
    try:
        run(command.argv)
    except (CommandError, OSError) as error:
        return f"failed: {str(error).splitlines()[-1][:120]}"
    try:
        run((*TOOL, "verify", str(out), str(folder / "model")))
    except CommandError as error:
        return f"WRONG: {str(error).splitlines()[-1][:120]}"
    finally:
        shutil.rmtree(out) if out.is_dir() else out.unlink(missing_ok=True)
    return _RIGHT


def _show(rows: Sequence[Row], size: int, dim: int, machine: dict[str, object]) -> None:
    console = Console(width=WIDTH + 10, highlight=False)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column(f"{size / 1e9:.2f} GB bf16, Shard({dim})")
    for name in ("seconds", "user", "sys", "MiB", "x ckpt"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("result")
    for kind, title in _KINDS.items():
        table.add_row(title)
        of_kind = [row for row in rows if row.peer.kind == kind]
        ours = next((row.runs.seconds for row in of_kind if row.runs.runs), None)
        for row in of_kind:
            table.add_row(f"  {row.peer.label}", *_numbers(row.runs, ours), row.found)
        table.add_section()
    console.print(table)
    console.print(
        "seconds: whole process, median. MiB: peak of anonymous memory. right: every bit is the"
        " model's, by ckpt verify. x ckpt: against ckpt merge, which alone waits for the disk."
    )
    console.print(
        "{cores} cores of {cpu}, {memory}, Linux {kernel}, {file_system}, load {load:.1f};"
        " Python {python}, numpy {numpy}, torch {torch}".format(**machine)
    )


def _numbers(runs: Runs, ours: float | None) -> tuple[str, ...]:
    if not runs.runs or ours is None:
        return ("",) * 5
    numbers = f"{runs.seconds:.2f}", f"{runs.user:.2f}", f"{runs.system:.2f}"
    return (*numbers, f"{runs.anonymous >> 20:,}", f"{runs.seconds / ours:.2f}")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
