"""``python -m tests.bench.nodes``: DeepSeek-V3 on many nodes, from its real sizes.

Its 671 billion parameters are those of transformers' own class, built without memory, on 256 ranks
whose files have no numbers (:mod:`tests.bench.scale`). Planning on them is measured, and the rate
at which one process writes, on a small checkpoint with numbers; how files are shared out is what
:meth:`ckpt_tool.common.parallel.World.share` says. The rest is arithmetic: what a run of so many
nodes takes, where the file system gives each of them what it gives one here.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ckpt_tool.common.parallel import World, form_team_alone
from ckpt_tool.operations.merge_plan import make_plan
from ckpt_tool.operations.options import MergeOptions
from tests.bench.generate import generate, spec_of_size
from tests.bench.measure import run
from tests.bench.planning_mcore import PLAN
from tests.bench.scale import Shape, write_ranks

RANKS = 256
NODES = (1, 2, 4, 8, 16, 32, 64, 128)
_ROW = "{:>6} {:>12} {:>10} {:>8} {:>10}"


@dataclass(frozen=True)
class Listed:
    """Tensors as a file lists them."""

    path: Path

    def shapes(self) -> Iterator[tuple[str, Shape]]:
        """Name and shape of each."""
        for name, shape in json.loads(self.path.read_text()):
            yield name, tuple(shape)


def list_tensors(folder: Path) -> Path:
    """DeepSeek-V3's ``config.json``, beside a list of its tensors as a trainer has them."""
    import torch
    from transformers import DeepseekV3Config, DeepseekV3ForCausalLM

    config = DeepseekV3Config(architectures=["DeepseekV3ForCausalLM"], dtype="bfloat16")
    with torch.device("meta"):
        state = DeepseekV3ForCausalLM(config).state_dict()
    config.save_pretrained(folder)
    listed = folder.parent / "tensors.json"
    listed.write_text(json.dumps([(name, list(each.shape)) for name, each in state.items()]))
    return listed


def write(folder: Path, jobs: int = 2) -> Path:
    """All ranks, each some at a time; subprocess.CalledProcessError where one fails."""
    (folder / "huggingface").mkdir(parents=True)
    listed = list_tensors(folder / "huggingface")
    command = [sys.executable, "-m", "tests.bench.nodes", "--write-ranks", str(listed), str(folder)]
    running = [
        subprocess.Popen([*command, *map(str, range(first, RANKS, jobs))]) for first in range(jobs)
    ]
    for process in running:
        if process.wait():
            raise subprocess.CalledProcessError(process.returncode, command)
    return folder


def share_out(sizes: list[int], nodes: int) -> int:
    """Bytes of the process that has most to write."""
    world = World()
    world.size = nodes
    largest = 0
    for rank in range(nodes):
        world.rank = rank
        largest = max(largest, sum(sizes[index] for index in world.share(sizes)))
    return largest


def measure_rate(folder: Path, size: int) -> float:
    """Bytes a second that one process writes, of the best of three merges."""
    generate(folder / "in", spec_of_size(size, "bfloat16", 0))
    rates = []
    for _ in range(3):
        words = ("merge", "fsdp", str(folder / "in"), str(folder / "out"), "--overwrite", "--json")
        command = [sys.executable, "-m", "ckpt_tool", *words]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        rates.append(float(json.loads(done.stdout)["bytes_per_second"]))
    shutil.rmtree(folder)
    return max(rates)


def simulate(folder: Path, rate: float) -> None:
    """Measure planning on the checkpoint in ``folder``, and show what so many nodes take."""
    found = min(
        (run([sys.executable, "-c", PLAN, "fsdp", str(folder)]) for _ in range(2)),
        key=lambda each: each.user + each.system,
    )
    seconds = found.user + found.system
    plan = make_plan(folder, "fsdp", MergeOptions(), form_team_alone(0))
    sizes = [file.size for file in plan.files]
    print(
        f"DeepSeek-V3: {plan.num_tensors:,} tensors of {plan.total_bytes / 1e12:.3f} TB in"
        f" {len(sizes)} files, from {RANKS} ranks with {len(plan.checkpoint.entries) * RANKS:,}"
        f" pieces; plan: {seconds:.1f} s of one core and {found.anonymous >> 20} MiB in every"
        f" process; one process writes {rate / 1e9:.2f} GB/s"
    )
    print(_ROW.format("nodes", "most bytes", "writing", "in all", "speed-up"))
    alone = seconds + sum(sizes) / rate
    for nodes in NODES:
        largest = share_out(sizes, nodes)
        total = seconds + largest / rate
        row = (f"{largest / 1e9:.1f} GB", f"{largest / rate:.0f} s", f"{total:.0f} s")
        print(_ROW.format(nodes, *row, f"{alone / total:.1f} x"))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.nodes", description=__doc__)
    parser.add_argument("--folder", type=Path, help="where it is written; some GB")
    parser.add_argument("--rate", type=float, help="GB/s of one process; default: measured")
    parser.add_argument("--gb", type=float, default=2.0, help="size of what that is measured on")
    parser.add_argument("--write-ranks", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.write_ranks:
        listed, folder, *ranks = options.write_ranks
        write_ranks(Listed(Path(listed)), RANKS, Path(folder), [*map(int, ranks)])
        return
    root = Path(tempfile.mkdtemp(dir=options.folder))
    try:
        rate = options.rate * 1e9 if options.rate else 0.0
        rate = rate or measure_rate(root / "small", int(options.gb * 1e9))
        simulate(write(root / "ckpt"), rate)
    finally:
        shutil.rmtree(root)


if __name__ == "__main__":
    main()
