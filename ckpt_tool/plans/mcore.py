"""A planned megatron-core checkpoint: tensors, metadata, manifest, checks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ckpt_tool.mapping.megatron.convert import from_megatron
from ckpt_tool.mapping.megatron.rules import Rules
from ckpt_tool.mapping.megatron.training_args import describe_content, make_args
from ckpt_tool.plans.checks.megatron import MegatronJudge
from ckpt_tool.plans.plan import Plan
from ckpt_tool.readers.dcp.folder import open_dcp
from ckpt_tool.tensors.lazy import LazyTensor
from ckpt_tool.writers.torch_dist.layout import TorchDistPlan
from ckpt_tool.writers.torch_dist.pickling import Instance, Name

#: ``bare``: the checkpoint itself. ``megatron-lm``: in ``release/``, with a tracker file beside it.
LAYOUTS = ("bare", "megatron-lm")


@dataclass(frozen=True, kw_only=True)
class McorePlan(Plan):
    """A ``torch_dist`` checkpoint, made of ``model`` by ``rules``; ``layout``: one of LAYOUTS.

    ``folder`` says where in the files each block of each of Megatron's tensors lies.
    """

    rules: Rules
    layout: str
    folder: TorchDistPlan

    @property
    def num_tensors(self) -> int:
        """How many tensors Megatron will find."""
        return len(self.folder.tensors)

    def protected(self) -> list[Path]:
        """What is still to be read: the model, and the folder of its config."""
        return [*super().protected(), self.rules.config.folder]

    def make_judge(self, check_load: bool | None) -> MegatronJudge | None:
        """megatron-core, where it is asked for."""
        return MegatronJudge(self.rules, self.folder.prefix) if check_load else None

    def require_readable(self, folder: Path) -> list[str]:
        """Nothing more: torch and megatron-core read no part of it without its metadata."""
        return []

    def side_files(self) -> tuple[()]:
        """None: all that is written beside the tensors is needed to find them."""
        return ()

    def completing_files(self) -> Iterator[tuple[str, bytes]]:
        """All but the tensors: what marks the checkpoint as complete comes last."""
        if self.layout == "bare":
            yield from self.folder.small_files({})
            return
        yield from self.folder.small_files(_common_state(self.rules))
        yield "latest_checkpointed_iteration.txt", b"release"

    def read_back(self, folder: Path) -> dict[str, LazyTensor]:
        """Hugging Face's tensors, taken out of what was written."""
        result = open_dcp(folder / self.folder.prefix)
        result.require_sound()
        return from_megatron(result, self.rules)


def _common_state(rules: Rules) -> dict[str, Any]:
    """What Megatron-LM's loader reads besides tensors: arguments, version, kind of keys.

    ``release`` in the tracker file tells it that there is no optimizer and no iteration to go on
    from; some of its releases read ``iteration`` all the same.
    """
    return {
        "args": Instance(Name("argparse", "Namespace"), make_args(rules)),
        "checkpoint_version": 3.0,
        "iteration": 1,
        "num_floating_point_operations_so_far": 0,
        "content_metadata": describe_content(rules),
    }
