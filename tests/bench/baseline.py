"""The merge everybody writes first: load all shards, concatenate, save.

Run as a program, so that its time and memory are measured like the tool's:
``python -m tests.bench.baseline merge CKPT OUT.safetensors [DTYPE]``, and
``python -m tests.bench.baseline compare FOLDER REFERENCE.safetensors``, which exits with 1 and
says what differs where the two do not hold the same tensors, bit for bit.
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch


def merge(checkpoint: str, out: str, dtype: str | None = None) -> None:
    """Merge as the simple scripts do; torch.load runs code, so only for files of our own."""
    import torch
    import torch.distributed.tensor  # what the pickles name
    from safetensors.torch import save_file

    paths = sorted(Path(checkpoint).glob("model_world_size_*_rank_*.pt"))
    shards = [torch.load(path, weights_only=False, mmap=False) for path in paths]
    merged = {}
    for name, first in shards[0].items():
        parts = [shard[name].to_local() for shard in shards]
        whole = torch.cat(parts, dim=first.placements[0].dim)
        merged[name] = whole if dtype is None else whole.to(getattr(torch, dtype))
    save_file(merged, out)


def differences(folder: str, reference: str) -> Iterator[str]:
    """Names of tensors in one of the two only, or not equal in dtype, shape or any bit."""
    from safetensors import safe_open

    expected = safe_open(reference, "pt")
    missing = set(expected.keys())
    for path in sorted(Path(folder).glob("*.safetensors")):
        found = safe_open(str(path), "pt")
        for name in found.keys():  # noqa: SIM118 - a safe_open is no mapping
            if name not in missing or not _same(found.get_tensor(name), expected.get_tensor(name)):
                yield name
            missing.discard(name)
    yield from sorted(missing)


def _same(a: torch.Tensor, b: torch.Tensor) -> bool:
    import torch

    if (a.shape, a.dtype) != (b.shape, b.dtype):
        return False
    return torch.equal(a.view(torch.uint8), b.view(torch.uint8))


def _main(command: str, *arguments: str) -> int:
    warnings.filterwarnings("ignore")  # of meshes unpickled without a process group
    if command == "merge":
        merge(*arguments)
        return 0
    different = list(differences(*arguments))
    for name in different[:10]:
        print(f"differs from the baseline: {name}", file=sys.stderr)
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(_main(*sys.argv[1:]))
