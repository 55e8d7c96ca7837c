"""``check_load`` of to-mcore: real megatron-core loads what was written, in a process of its own.

megatron-core needs patches to run without a GPU, and keeps state of its own in the process: a child
(:mod:`ckpt_tool.plans.checks.megatron_child`) does it all.
"""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ckpt_tool.common.errors import MappingError, UsageError
from ckpt_tool.common.packages import require_packages
from ckpt_tool.mapping.megatron.numbers import require_rows
from ckpt_tool.mapping.megatron.rules import Rules
from ckpt_tool.plans.checks.child import Child
from ckpt_tool.plans.checks.judge import Judge, Verdict
from ckpt_tool.plans.checks.unknown import find_unknown
from ckpt_tool.plans.options import LoadCheck

_NEEDED = ("torch", "megatron.core")
_CHILD = "ckpt_tool.plans.checks.megatron_child.__main__"
_WITHOUT = "Leave `write.check_load` out, or install a megatron-core that knows the model."


class MegatronJudge(Judge):
    """Loads what was written, of a model that it has. ``prefix``: of the folder in it."""

    name = "megatron-core"

    def __init__(self, rules: Rules, prefix: str) -> None:
        self._rules = rules
        self._prefix = prefix

    def start(self) -> None:
        """UsageError where megatron-core is not installed, or no release has such a model."""
        require_megatron()
        unknown = find_unknown(self._rules.numbers)
        if unknown:
            kind = self._rules.config.model_type
            raise UsageError(
                f"`write.check_load`: megatron-core cannot build this {kind}: {unknown}",
                hint="Leave `write.check_load` out: the rest is checked all the same.",
            )

    @property
    def is_waited_for(self) -> bool:
        """It works then only."""
        return True

    def finish(self, folder: Path | None) -> Verdict:
        """Raises what :func:`check_mcore_load` raises."""
        if folder is None:
            return Verdict()
        return Verdict(check_mcore_load(self._rules, folder / self._prefix))


def require_megatron() -> None:
    """UsageError where megatron-core or torch is not installed; imports neither."""
    require_packages("`write.check_load`", _NEEDED, otherwise=", or leave `write.check_load` out.")


def check_mcore_load(rules: Rules, folder: Path) -> LoadCheck:
    """Have megatron-core build the model of ``rules`` and load the checkpoint ``folder``.

    MappingError lists every missing, unexpected and misshapen tensor, or quotes what megatron-core
    says of the files, or the last words of a child process that dies; UsageError where it is not
    installed or cannot build the model.
    """
    require_megatron()
    answer = Child(_CHILD, "megatron-core", make_request(rules, folder)).answer()
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
        "folder": os.path.realpath(folder),
    }


def _model(rules: Rules) -> str:
    """What is compared: what comes before a vision tower's blocks is not of megatron-core."""
    if rules.layout == "hybrid":
        return "HybridModel (without the towers)" if rules.numbers.vision_layers else "HybridModel"
    vision = require_rows(rules.config).around.vision
    if vision is not None and rules.numbers.vision_layers:
        mergers = rules.numbers.vision_mergers or not vision.gated
        without = "its blocks" if mergers else "without patch_embed"
        return f"GPTModel and vision tower ({without})"
    if require_rows(rules.config).around.towers:
        return "GPTModel (without the tower)"
    return "GPTModel"
