"""What a merge says of a run's state that lies beside the weights, and that it leaves out."""

from __future__ import annotations

from ckpt_tool.mapping.training import training_kind
from ckpt_tool.readers.base import Checkpoint
from ckpt_tool.wording import human_bytes, plural


def left_out(checkpoint: Checkpoint) -> dict[str, str]:
    """Patterns of names and what they are, one for each kind of state."""
    kinds: dict[str, list[int]] = {}
    for name, entry in checkpoint.left_out.items():
        kinds.setdefault(training_kind(name), []).append(entry.nbytes)
    return {
        f"{kind}.*": f"state of training: {plural(len(sizes), 'tensor')}, {human_bytes(sum(sizes))}"
        for kind, sizes in kinds.items()
    }
