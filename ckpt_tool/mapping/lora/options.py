"""What is asked of LoRA adapters, and what becomes of them: plain data."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ckpt_tool.common.errors import UsageError
from ckpt_tool.mapping.lora.checked import require_alpha
from ckpt_tool.tensors.lazy import LazyTensor

MODES = ("fuse", "split", "both")


@dataclass(frozen=True)
class LoraOptions:
    """``mode``: ``fuse``, ``split`` or ``both``; None: fuse, where there is something to fuse.

    ``alpha`` is for checkpoints that do not say it, ``base`` the model of adapters that were saved
    alone.
    """

    mode: str | None = None
    alpha: float | None = None
    base: Path | None = None

    def __post_init__(self) -> None:
        """UsageError where the options make no sense, whatever the checkpoint."""
        if self.mode is not None and self.mode not in MODES:
            raise UsageError(f"`lora.mode={self.mode!r}`: expected one of {', '.join(MODES)}")
        if self.alpha is not None:
            require_alpha(self.alpha)

    @property
    def asked(self) -> bool:
        """Whether anything was asked for."""
        return (self.mode, self.alpha, self.base) != (None, None, None)


@dataclass(frozen=True)
class LoraNote:
    """What was done with adapters: said with the result, in JSON and in the manifest.

    ``rank``: of most modules. ``trained_whole``: modules with weights of their own
    (``modules_to_save``), and what was saved beside adapters. ``num_tokens``: rows of embeddings
    that were trained. ``adapter``: the folder with them below OUT, None where there is none.
    """

    mode: str
    num_modules: int
    rank: int
    alpha: float
    source: str
    trained_whole: list[str] = field(default_factory=list)
    num_tokens: int = 0
    adapter: str | None = None


@dataclass(frozen=True)
class AdapterFiles:
    """What is written into ``folder`` (below OUT; empty: OUT itself) for peft."""

    folder: str
    tensors: dict[str, LazyTensor]
    config: dict[str, Any]

    def path(self, name: str) -> str:
        """The path below OUT of a file, or the name that its tensors have in a plan."""
        return f"{self.folder}/{name}" if self.folder else name
