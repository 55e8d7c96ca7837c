"""Which word of ``ckpt merge`` is for which checkpoint, and what is said of another one."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from ckpt_tool.common.errors import UsageError
from ckpt_tool.common.wording import add_article
from ckpt_tool.operations.runs import list_run, say_steps
from ckpt_tool.operations.source import holds_megatron, is_adapter_of_peft, is_named
from ckpt_tool.readers import find_format, list_titles
from ckpt_tool.readers.base import Checkpoint


def require_kind(checkpoint: Checkpoint, wanted: str, paths: Sequence[Path]) -> None:
    """UsageError where another word merges this checkpoint, or none does.

    ``wanted``: the word; empty: any.
    """
    row = find_format(checkpoint.format)
    kind = "megatron" if holds_megatron(checkpoint) else row.merge_command
    is_adapter = is_adapter_of_peft(checkpoint)
    if is_adapter:
        kind = "dcp"
    if kind and kind == (wanted or kind):
        return
    found = "an adapter of peft" if is_adapter else add_article(row.title)
    if row.names == "nested":
        are = "are" if kind == "megatron" else "are not"
        found += f", whose tensors {are} named as megatron-core names them"
    expected = f"; expected: {', '.join(list_titles(wanted))}" if wanted else ""
    raise UsageError(
        f"{checkpoint.path}: this is {found}{expected}", hint=_advise(checkpoint, kind, paths)
    )


def _advise(checkpoint: Checkpoint, kind: str, paths: Sequence[Path]) -> str:
    named = shlex.join(map(str, paths))
    if kind:
        return f"Merge it with: ckpt merge {kind} {named} OUT"
    if is_named(checkpoint):
        steps = [each for each in list_run(paths[0]).checkpoints if each.format.merge_command]
        if steps:
            return f"Steps of its run are below it: take one with `step=N`{say_steps(steps)}."
        return (
            "There is nothing to merge. Compare it with a checkpoint:"
            f" ckpt verify CKPT {named}. Make one of megatron-core of it: ckpt to-mcore {named} OUT"
        )
    if checkpoint.format == "fsdp-rank":
        folder = shlex.quote(str(checkpoint.path.parent))
        return f"Merge all ranks, by their folder: ckpt merge {folder} OUT"
    return f"See what it is with: ckpt inspect {named}"
