"""What a merge says of the tensors beside the model that it leaves out."""

from __future__ import annotations

from ckpt_tool.common.wording import human_bytes, plural
from ckpt_tool.mapping.frameworks.training import is_training_state, training_kind
from ckpt_tool.readers.base import Checkpoint


def left_out(checkpoint: Checkpoint) -> dict[str, str]:
    """Patterns of names and what they are, one for each kind of state or first part of a name."""
    kinds: dict[tuple[str, str], list[int]] = {}
    for name, entry in checkpoint.left_out.items():
        if is_training_state(name):
            kind = (training_kind(name), "state of training")
        else:
            kind = (name.split(".", maxsplit=1)[0], "not selected")
        kinds.setdefault(kind, []).append(entry.nbytes)
    return {
        f"{start}.*": f"{why}: {plural(len(sizes), 'tensor')}, {human_bytes(sum(sizes))}"
        for (start, why), sizes in kinds.items()
    }
