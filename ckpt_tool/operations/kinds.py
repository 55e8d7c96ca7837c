"""Which word of ``ckpt merge`` is for which checkpoint, and what is said of another one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ckpt_tool.common.errors import UsageError
from ckpt_tool.operations.source import holds_megatron, is_named
from ckpt_tool.readers import find_format, list_titles
from ckpt_tool.readers.base import Checkpoint


def require_kind(checkpoint: Checkpoint, wanted: str, paths: Sequence[Path]) -> None:
    """UsageError where another word merges this checkpoint, or none does.

    ``wanted``: the word; empty: any.
    """
    row = find_format(checkpoint.format)
    kind = "megatron" if holds_megatron(checkpoint) else row.merge_command
    if kind and kind == (wanted or kind):
        return
    found = f"a checkpoint of format {checkpoint.format}"
    if row.names == "nested":
        are = "are" if kind == "megatron" else "are not"
        found += f", whose tensors {are} named as megatron-core names them"
    raise UsageError(
        f"{checkpoint.path}: {found}; expected: {', '.join(list_titles(wanted))}",
        hint=_advise(checkpoint, kind, paths),
    )


def _advise(checkpoint: Checkpoint, kind: str, paths: Sequence[Path]) -> str:
    named = " ".join(map(str, paths))
    if kind:
        return f"Merge it with: ckpt merge {kind} {named} OUT"
    if is_named(checkpoint):
        return "This is a Hugging Face model already: there is nothing to merge."
    return f"See what it is with: ckpt inspect {named}"
