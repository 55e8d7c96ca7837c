"""How long planning takes on checkpoints of megatron-core: rows of :mod:`tests.bench.planning`.

Each is written at a tenth of its size, too: a tensor takes as long in both where nothing grows
faster than their number.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.bench.measure import Run, run
from tests.bench.results import TOOL
from tests.bench.scale import Model
from tests.bench.scale_mcore import LARGE, SMALL, count_tensors, write_model, write_torch_dist

#: Plans a merge of the kind and the folder that are its arguments.
PLAN = """
import gc, sys
from ckpt_tool.common.parallel import form_team_alone
from ckpt_tool.operations.merge_plan import make_plan
from ckpt_tool.operations.options import MergeOptions
gc.set_threshold(100_000, 50, 50)  # as the program has it
make_plan(sys.argv[2], sys.argv[1], MergeOptions(), form_team_alone(0))
"""
_MERGE = {
    "inspect": (*TOOL, "inspect", "CKPT"),
    "plan of a merge": (sys.executable, "-c", PLAN, "megatron", "CKPT"),
}
_CONVERT = {"to-mcore": (*TOOL, "to-mcore", "CKPT", "OUT", "--dry-run")}
#: Of the large ones: seconds of one core, and bytes of anonymous memory.
_SECONDS, _MEMORY = 3.0, 200 << 20


def _convert(folder: Path, model: Model) -> None:
    """What `ckpt to-mcore` writes: layers and experts stacked, a block for each expert."""
    source = folder.with_name("source")
    write_model(source, model)
    run((*TOOL, "to-mcore", str(source), str(folder)))
    shutil.copy(source / "config.json", folder)
    shutil.rmtree(source)


#: name -> how it is written, and what is measured on it.
CHECKPOINTS: dict[str, tuple[Callable[[Path, Model], None], dict[str, tuple[str, ...]]]] = {
    "torch_dist": (write_torch_dist, _MERGE),
    "to-mcore's": (_convert, _MERGE),
    "HF model": (write_model, _CONVERT),
}


def measure_mcore(name: str, folder: Path) -> Iterator[tuple[object, ...]]:
    """The rows of a checkpoint of CHECKPOINTS; at their ends whether it is inside the budget."""
    write, commands = CHECKPOINTS[name]
    for model in (SMALL, LARGE):
        place = folder / "ckpt"
        write(place, model)
        count = count_tensors(model)
        for title, words in commands.items():
            put = {"CKPT": str(place), "OUT": str(folder / "out")}
            command = [put.get(word, word) for word in words]
            found = min((run(command) for _ in range(2)), key=lambda each: each.seconds)
            times = f"{found.seconds:.2f} s", f"{found.user + found.system:.2f} s"
            each = f"{found.seconds / count * 1e6:.0f} us"
            said = f" {judge(found, _SECONDS, _MEMORY)}" if model is LARGE else ""
            memory = f"{found.anonymous >> 20} MiB"
            yield (name, 1, f"{count:,}", title, *times, memory, each + said)
        shutil.rmtree(place)


def judge(found: Run, seconds: float, memory: int) -> str:
    """Whether a run was inside its budget, of seconds of one core and bytes of its own memory."""
    missed = [
        *(["time"] if found.user + found.system > seconds else ()),
        *(["memory"] if found.anonymous > memory else ()),
    ]
    return f"{' and '.join(missed)} over budget" if missed else "ok"
