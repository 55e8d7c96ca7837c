"""``check_load`` of to-mcore: real megatron-core loads what was written, in a process of its own.

megatron-core needs patches to run without a GPU, and keeps state of its own in the process: a child
(:mod:`ckpt_tool.plans.checks.megatron_child`) does it all, is asked in JSON and answers in JSON.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ckpt_tool.common.errors import MappingError, UsageError
from ckpt_tool.mapping.megatron.rules import Rules
from ckpt_tool.plans.options import LoadCheck

_NEEDED = {"torch": "torch", "megatron.core": "megatron-core"}
_WITHOUT = "Leave `write.check_load` out, or install a megatron-core that knows the model."

#: The child imports what this process would, wherever that was started from.
_CHILD = (
    "import sys; sys.path[:] = sys.argv[1:];"
    " from ckpt_tool.plans.checks.megatron_child.__main__ import main; main()"
)

#: Who is who in a run of several processes: the child is alone.
_RANKS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")

_LAST_LINES = 12


def require_megatron() -> None:
    """UsageError where megatron-core or torch is not installed; imports neither."""
    for module, package in _NEEDED.items():
        try:
            found = find_spec(module)
        except ModuleNotFoundError:
            found = None
        if found is None:
            raise UsageError(
                f"`write.check_load` needs {package}, which is not installed",
                hint=f"pip install {package}, or leave `write.check_load` out.",
            )


def check_mcore_load(rules: Rules, folder: Path) -> LoadCheck:
    """Have megatron-core build the model of ``rules`` and load the checkpoint ``folder``.

    MappingError lists every missing, unexpected and misshapen tensor, or quotes what megatron-core
    says of the files, or the last words of a child process that dies; UsageError where it is not
    installed or cannot build the model.
    """
    require_megatron()
    answer = _ask(make_request(rules, folder))
    model, library = _model(rules), answer["library"]
    if "unusable" in answer:
        raise UsageError(
            f"`write.check_load`: {library} cannot build this {rules.config.model_type}:"
            f" {answer['unusable']}",
            hint=_WITHOUT,
        )
    if "faults" in answer:
        message = f"`write.check_load`: {model} of {library} {answer['message']}"
        raise MappingError(message, answer["faults"])
    return LoadCheck(model, answer["num_tensors"], library)


def make_request(rules: Rules, folder: Path) -> dict[str, Any]:
    """What the child is asked, in JSON's types."""
    numbers = asdict(rules.numbers)
    sets = {name: sorted(numbers[name]) for name in ("moe", "flags")}
    return {
        "config": rules.config.raw,
        "numbers": numbers | sets,
        "layout": rules.layout,
        "folder": str(folder.resolve()),
    }


def _model(rules: Rules) -> str:
    """What is compared: what comes before a vision tower's blocks is not of megatron-core."""
    if rules.numbers.vision_layers:
        return "GPTModel and vision tower (without patch_embed)"
    return "GPTModel"


def _ask(request: dict[str, Any]) -> dict[str, Any]:
    """The child's answer; MappingError with its last words where it has none."""
    environment = {name: value for name, value in os.environ.items() if name not in _RANKS}
    child = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _CHILD, *sys.path],
        input=json.dumps(request).encode(),
        capture_output=True,
        env=environment,
        check=False,
    )
    try:
        answer = json.loads(child.stdout) if child.returncode == 0 else None
    except ValueError:
        answer = None
    if isinstance(answer, dict):
        return answer
    lines = child.stderr.decode(errors="replace").strip().splitlines()[-_LAST_LINES:]
    raise MappingError(
        f"`write.check_load`: the process that runs megatron-core ended with {child.returncode}",
        lines,
        hint="Leave `write.check_load` out to write the checkpoint unchecked.",
    )
